//! LNet's semantics as a machine without sockets, clocks or threads.
//!
//! [`Core`] holds portals, match entries and memory descriptors of one node. The node calls it under its lock: operations
//! and received messages go in; [`Output`]s (events, messages to send, parked and released bytes) come out of
//! [`Core::poll`], to be drained after each call. Invariants:
//! * each operation begun on a descriptor ends exactly once, by [`Core::finish`] or at once;
//! * room for every event is reserved before the operation begins ([`Handler`]);
//! * a descriptor is destroyed only with no operation in flight, and its last event says `unlinked`.

mod event;
mod memory;
mod params;
mod queue;
mod table;
mod transfer;

pub use event::{Event, EventKind, Status};
pub use memory::{Fragments, Memory, Payload, SharedBytes};
pub use params::{Access, MeParams, PORTALS, Position, SourceOptions, TargetOptions, Threshold, Unlink};
pub use queue::{EventQueue, EventSink};
pub use transfer::{Content, DropReason, Fetch, Incoming, PutParams};

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::nid::{Nid, ProcessId};
use crate::wire::MAX_PAYLOAD;
use crate::wire::lnet::Body;
use table::Table;

/// Names a match entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MeHandle(u64);

/// Names a memory descriptor of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MdHandle(u64);

/// Names a descriptor that PUT and GET can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceMd(MdHandle);

impl SourceMd {
    /// As it appears in events.
    pub fn handle(self) -> MdHandle {
        self.0
    }
}

/// Names an operation whose message is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpId(u64);

/// Where a descriptor's events go. Room must be promised before an operation begins.
pub trait Handler: Clone {
    /// Promises room for `n` events; `false` if there is none.
    fn reserve(&self, n: usize) -> bool;
    /// Gives back promised room.
    fn release(&self, n: usize);
}

/// A message to be sent.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// To be given to [`Core::finish`] when the message has left or failed; ACKs have none.
    pub op: Option<OpId>,
    /// To whom.
    pub dest: ProcessId,
    /// From which of our NIDs, where that is given (answers).
    pub src: Option<Nid>,
    /// The message.
    pub body: Body,
    /// Its payload.
    pub payload: Payload,
}

/// What the machine wants done.
#[derive(Debug)]
pub enum Output<H> {
    /// Tell the owner.
    Event(H, Event),
    /// Send.
    Send(Outgoing),
    /// Fetch what is still with the sender, and call [`Core::fetched`].
    Fetch(Fetch),
    /// No answer to this operation is waited for any more: it has come, or its descriptor has gone.
    Answered(OpId),
    /// What is still with the sender is not wanted.
    Refuse {
        /// As given with the message.
        via: u64,
    },
    /// A PUT waits at a lazy portal: this many bytes that came by `via` are kept.
    Parked {
        /// As given with the message.
        via: u64,
        /// Bytes.
        bytes: usize,
    },
    /// Bytes kept earlier are free.
    Unparked {
        /// As given with the message.
        via: u64,
        /// Bytes.
        bytes: usize,
    },
}

struct MatchEntry {
    params: MeParams,
    md: Option<MdHandle>,
}

enum Role {
    Target { me: Option<MeHandle>, options: TargetOptions },
    Source,
}

struct Descriptor<H> {
    memory: Arc<dyn Memory>,
    role: Role,
    threshold: Threshold,
    truncate: bool,
    unlink: Unlink,
    user: u64,
    handler: H,
    offset: u64,
    in_flight: u32,
    aborted: bool,
    reserved: usize,
    /// Operations whose answers have yet to come.
    unanswered: Vec<OpId>,
}

impl<H> Descriptor<H> {
    fn new(
        memory: Arc<dyn Memory>,
        role: Role,
        handler: H,
        threshold: Threshold,
        truncate: bool,
        unlink: Unlink,
        user: u64,
    ) -> Self {
        let (offset, in_flight, aborted, reserved, unanswered) = (0, 0, false, 1, Vec::new());
        Self {
            memory,
            role,
            threshold,
            truncate,
            unlink,
            user,
            handler,
            offset,
            in_flight,
            aborted,
            reserved,
            unanswered,
        }
    }

    fn is_exhausted(&self) -> bool {
        let too_full = match &self.role {
            Role::Target { options: TargetOptions { max_size: Some(max), .. }, .. } => {
                self.memory.len().saturating_sub(self.offset) < u64::from(*max)
            }
            _ => false,
        };
        self.threshold.is_spent() || too_full
    }
}

struct Portal {
    table: Table,
    lazy: bool,
    waiting: VecDeque<Incoming>,
}

/// Counts of what a node has dropped and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct CoreCounters {
    /// Messages dropped.
    pub drop_count: u64,
    /// Their payload, bytes.
    pub drop_length: u64,
    /// Messages waiting at lazy portals now.
    pub parked: u64,
    /// Their payload, bytes.
    pub parked_bytes: u64,
}

/// The machine. `H` is where events go.
pub struct Core<H> {
    interface_cookie: u64,
    next_object: u64,
    portals: Vec<Portal>,
    entries: HashMap<MeHandle, MatchEntry>,
    descriptors: HashMap<MdHandle, Descriptor<H>>,
    operations: HashMap<OpId, (MdHandle, Event)>,
    /// Where the answer to an operation goes. Its handle on the wire names the operation, so that each is answered once.
    answers: HashMap<OpId, MdHandle>,
    fetches: HashMap<OpId, transfer::Fetching>,
    outputs: VecDeque<Output<H>>,
    sequence: u64,
    counters: CoreCounters,
    max_waiting: usize,
    max_waiting_bytes: usize,
}

impl<H: Handler> Core<H> {
    /// A machine whose handles carry `interface_cookie`, which must differ at each start. At most `max_waiting` messages
    /// wait at each lazy portal, and `max_waiting_bytes` of payload at all of them.
    pub fn new(interface_cookie: u64, max_waiting: usize, max_waiting_bytes: usize) -> Self {
        let portal = || Portal { table: Table::Unset, lazy: false, waiting: VecDeque::new() };
        Self {
            interface_cookie,
            next_object: 1,
            portals: (0..PORTALS).map(|_| portal()).collect(),
            entries: HashMap::new(),
            descriptors: HashMap::new(),
            operations: HashMap::new(),
            answers: HashMap::new(),
            fetches: HashMap::new(),
            outputs: VecDeque::new(),
            sequence: 0,
            counters: CoreCounters::default(),
            max_waiting,
            max_waiting_bytes,
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output<H>> {
        self.outputs.pop_front()
    }

    /// The counters.
    pub fn counters(&self) -> CoreCounters {
        let parked = self.portals.iter().map(|p| p.waiting.len() as u64).sum();
        CoreCounters { parked, ..self.counters }
    }

    /// How many match entries and descriptors exist.
    pub fn objects(&self) -> (usize, usize) {
        (self.entries.len(), self.descriptors.len())
    }

    fn object(&mut self) -> u64 {
        self.next_object += 4;
        self.next_object
    }

    fn portal_mut(&mut self, portal: u32, op: &'static str) -> Result<&mut Portal> {
        let slot = self.portals.get_mut(portal as usize);
        slot.ok_or_else(|| Error::new(ErrorKind::Invalid, op, format!("portal {portal} is above 63")))
    }

    /// Adds a match entry. `Denied` if the portal holds entries of the other kind (unique or wildcard).
    pub fn me_attach(&mut self, params: MeParams) -> Result<MeHandle> {
        let handle = MeHandle(self.object() | 2);
        let portal = self.portal_mut(params.portal, "me_attach")?;
        if !portal.table.insert(handle, &params) {
            let words = format!("portal {} is of the other kind (unique, wildcard)", params.portal);
            return Err(Error::new(ErrorKind::Denied, "me_attach", words));
        }
        self.entries.insert(handle, MatchEntry { params, md: None });
        Ok(handle)
    }

    /// Removes a match entry, and its descriptor as [`Core::md_unlink`] does.
    pub fn me_unlink(&mut self, me: MeHandle) -> Result<()> {
        let entry = self.entries.get(&me).ok_or_else(|| gone("me_unlink", "match entry"))?;
        if let Some(md) = entry.md {
            self.md_unlink(md, Status::Ok)?;
        }
        self.remove_entry(me);
        Ok(())
    }

    fn remove_entry(&mut self, me: MeHandle) {
        if let Some(entry) = self.entries.remove(&me)
            && let Some(portal) = self.portals.get_mut(entry.params.portal as usize)
        {
            portal.table.remove(me, &entry.params);
        }
    }

    /// Attaches memory to a match entry, which must have none. Messages that wait at a lazy portal are tried at once.
    /// `Busy` if `handler` has no room.
    pub fn md_attach(
        &mut self,
        me: MeHandle,
        memory: Arc<dyn Memory>,
        options: TargetOptions,
        handler: H,
    ) -> Result<MdHandle> {
        let entry = self.entries.get(&me).ok_or_else(|| gone("md_attach", "match entry"))?;
        if entry.md.is_some() {
            return Err(Error::new(ErrorKind::Exists, "md_attach", "the entry has a descriptor already"));
        }
        if options.max_size.is_some_and(|m| u64::from(m) > memory.len()) {
            return Err(Error::new(ErrorKind::Invalid, "md_attach", "max_size is above the memory's length"));
        }
        let portal = entry.params.portal;
        let TargetOptions { threshold, truncate, unlink, user, .. } = options;
        let role = Role::Target { me: Some(me), options };
        let descriptor = Descriptor::new(memory, role, handler, threshold, truncate, unlink, user);
        let md = self.add_descriptor(descriptor, "md_attach")?;
        if let Some(entry) = self.entries.get_mut(&me) {
            entry.md = Some(md);
        }
        self.retry_waiting(portal);
        Ok(md)
    }

    /// Makes memory known for PUT and GET: at most 1 MiB. `Busy` if `handler` has no room.
    pub fn md_bind(
        &mut self,
        memory: Arc<dyn Memory>,
        options: SourceOptions,
        handler: H,
    ) -> Result<SourceMd> {
        if memory.len() > MAX_PAYLOAD as u64 {
            return Err(Error::new(ErrorKind::Invalid, "md_bind", "more than 1 MiB"));
        }
        let SourceOptions { threshold, truncate, unlink, user } = options;
        let descriptor = Descriptor::new(memory, Role::Source, handler, threshold, truncate, unlink, user);
        self.add_descriptor(descriptor, "md_bind").map(SourceMd)
    }

    fn add_descriptor(&mut self, descriptor: Descriptor<H>, op: &'static str) -> Result<MdHandle> {
        if !descriptor.handler.reserve(1) {
            return Err(Error::new(ErrorKind::Busy, op, "the event queue has no room"));
        }
        let handle = MdHandle(self.object());
        self.descriptors.insert(handle, descriptor);
        Ok(handle)
    }

    /// Ends a descriptor. Idle: its UNLINK event, with `status`, is out before this returns. Busy: the completion of
    /// its last operation says `unlinked` and [`Status::TimedOut`].
    pub fn md_unlink(&mut self, md: MdHandle, status: Status) -> Result<()> {
        let descriptor = self.descriptors.get_mut(&md).ok_or_else(|| gone("md_unlink", "descriptor"))?;
        descriptor.aborted = true;
        let idle = descriptor.in_flight == 0;
        self.detach_entry(md);
        if idle {
            let mut event = self.blank_event(md, EventKind::Unlink);
            event.status = status;
            event.unlinked = true;
            self.destroy(md, event);
        }
        Ok(())
    }

    /// Ends all descriptors, as [`Core::md_unlink`] does.
    pub fn unlink_all(&mut self, status: Status) {
        let all: Vec<MdHandle> = self.descriptors.keys().copied().collect();
        for md in all {
            let _ = self.md_unlink(md, status);
        }
    }

    /// Parts a descriptor from its match entry, which goes too if it was to.
    fn detach_entry(&mut self, md: MdHandle) {
        let Some(Descriptor { role: Role::Target { me, .. }, .. }) = self.descriptors.get_mut(&md) else {
            return;
        };
        let Some(me) = me.take() else { return };
        let Some(entry) = self.entries.get_mut(&me) else { return };
        entry.md = None;
        if entry.params.unlink == Unlink::Auto {
            self.remove_entry(me);
        }
    }

    /// Emits the last event and forgets the descriptor.
    fn destroy(&mut self, md: MdHandle, event: Event) {
        self.detach_entry(md);
        if let Some(descriptor) = self.descriptors.remove(&md) {
            for op in descriptor.unanswered {
                self.answers.remove(&op);
                self.outputs.push_back(Output::Answered(op));
            }
            descriptor.handler.release(descriptor.reserved.saturating_sub(1));
            self.emit(descriptor.handler, event);
        }
    }

    fn emit(&mut self, handler: H, mut event: Event) {
        self.sequence += 1;
        event.sequence = self.sequence;
        self.outputs.push_back(Output::Event(handler, event));
    }

    fn blank_event(&self, md: MdHandle, kind: EventKind) -> Event {
        Event {
            kind,
            target: ProcessId::ANY,
            initiator: ProcessId::ANY,
            source: Nid::ANY,
            sender: Nid::ANY,
            portal: 0,
            match_bits: 0,
            rlength: 0,
            mlength: 0,
            offset: 0,
            md,
            user: self.descriptors.get(&md).map_or(0, |d| d.user),
            hdr_data: 0,
            msg_type: None,
            status: Status::Ok,
            unlinked: false,
            sequence: 0,
        }
    }

    /// Sets whether PUTs without a match wait at `portal`. Turning it off drops those that wait.
    pub fn set_lazy(&mut self, portal: u32, lazy: bool) -> Result<()> {
        let slot = self.portal_mut(portal, "set_lazy")?;
        slot.lazy = lazy;
        let dropped = if lazy { VecDeque::new() } else { std::mem::take(&mut slot.waiting) };
        for incoming in dropped {
            self.release_parked(&incoming);
            self.discard(&incoming);
        }
        Ok(())
    }
}

fn gone(op: &'static str, what: &str) -> Error {
    Error::new(ErrorKind::NotFound, op, format!("no such {what}"))
}

#[cfg(test)]
mod tests;
