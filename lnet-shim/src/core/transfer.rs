//! PUT, GET, ACK, REPLY: beginning them, receiving them, ending them.

use super::*;
use crate::wire::lnet::{LnetHeader, MsgType, WireHandle};

/// The payload of a message that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Here it is.
    Bytes(Vec<u8>),
    /// So many bytes are still with the sender: they are fetched into the memory that matches, or refused.
    Remote(u32),
}

impl Content {
    /// Bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Remote(len) => *len as usize,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes kept in this node's memory.
    fn held(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Remote(_) => 0,
        }
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

/// A payload to be fetched into memory.
pub struct Fetch {
    /// Given back with the outcome.
    pub op: OpId,
    /// As given with the message.
    pub via: u64,
    /// Where to.
    pub memory: Arc<dyn Memory>,
    /// Where in it, bytes.
    pub offset: u64,
    /// The first so many bytes of the payload.
    pub len: u32,
}

impl std::fmt::Debug for Fetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fetch({:?}, {} bytes by {})", self.op, self.len, self.via)
    }
}

/// A fetch under way: its operation's event, and the ACK that follows.
pub(super) struct Fetching {
    md: MdHandle,
    event: Event,
    ack: Option<Outgoing>,
    /// The operation of ours that this answers.
    answers: Option<OpId>,
}

/// A message that has arrived.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Its header.
    pub header: LnetHeader,
    /// The sender by its primary NID.
    pub initiator: ProcessId,
    /// The last hop.
    pub sender: Nid,
    /// Where it came in; given back when the message has waited.
    pub via: u64,
    /// Its payload.
    pub payload: Content,
}

/// Why a message was dropped. No answer is ever sent for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Portal above 63.
    NoPortal,
    /// Nothing matches.
    NoMatch,
    /// The first match has not enough space and does not truncate.
    TooLong,
    /// The handle of an ACK or REPLY names nothing (any more).
    NoDescriptor,
    /// A lazy portal has its fill of waiting messages.
    TooMany,
}

/// Where a PUT goes.
#[derive(Debug, Clone, Copy)]
pub struct PutParams {
    /// The target.
    pub target: ProcessId,
    /// The portal there.
    pub portal: u32,
    /// Its match bits.
    pub match_bits: u64,
    /// Where in the target's memory, if it is managed by us.
    pub offset: u32,
    /// For the target's event.
    pub hdr_data: u64,
    /// Whether an ACK is wanted.
    pub ack: bool,
}

enum Match {
    Found { md: MdHandle, offset: u64, mlength: u32 },
    TooLong,
    None,
}

/// The parts of a request that matching looks at.
#[derive(Clone, Copy)]
struct Request {
    access: Access,
    portal: u32,
    bits: u64,
    offset: u32,
    len: u32,
}

impl<H: Handler> Core<H> {
    /// Begins a PUT of the whole of `md`. The event SEND follows, and ACK if asked for.
    pub fn put(&mut self, md: SourceMd, p: PutParams) -> Result<OpId> {
        let len = self.begin(md.0, p.portal, if p.ack { 2 } else { 1 }, "put")?;
        let op = OpId(self.object());
        let handle = if p.ack { self.expect_answer(op, md.0) } else { WireHandle::NONE };
        let (portal, match_bits) = (p.portal, p.match_bits);
        let body = Body::Put { handle, match_bits, hdr_data: p.hdr_data, portal, offset: p.offset };
        let payload = self.descriptors.get(&md.0).map(|d| Payload::new(d.memory.clone(), 0, len));
        let mut event = self.blank_event(md.0, EventKind::Send);
        event.hdr_data = p.hdr_data;
        event.offset = p.offset.into();
        self.initiate(op, md, p.target, body, payload.unwrap_or(Payload::EMPTY), event, len);
        Ok(op)
    }

    /// Begins a GET that fills `md`. The events SEND and REPLY follow, in either order.
    pub fn get(
        &mut self,
        md: SourceMd,
        target: ProcessId,
        portal: u32,
        match_bits: u64,
        offset: u32,
    ) -> Result<OpId> {
        let sink_len = self.begin(md.0, portal, 2, "get")?;
        let op = OpId(self.object());
        let handle = self.expect_answer(op, md.0);
        let body = Body::Get { handle, match_bits, portal, offset, sink_len };
        let event = self.blank_event(md.0, EventKind::Send);
        self.initiate(op, md, target, body, Payload::EMPTY, event, sink_len);
        Ok(op)
    }

    /// What the answer to an operation will name.
    fn expect_answer(&mut self, op: OpId, md: MdHandle) -> WireHandle {
        self.answers.insert(op, md);
        if let Some(d) = self.descriptors.get_mut(&md) {
            d.unanswered.push(op);
        }
        WireHandle::new(self.interface_cookie, op.0)
    }

    /// Checks a descriptor, reserves room for `events`, spends one of its operations; gives its length.
    fn begin(&mut self, md: MdHandle, portal: u32, events: usize, op: &'static str) -> Result<u32> {
        self.portal_mut(portal, op)?;
        let d = self.descriptors.get_mut(&md).ok_or_else(|| gone(op, "descriptor"))?;
        if d.threshold.is_spent() || d.aborted {
            return Err(Error::new(ErrorKind::Invalid, op, "the descriptor is used up"));
        }
        if !d.handler.reserve(events) {
            return Err(Error::new(ErrorKind::Busy, op, "the event queue has no room"));
        }
        d.reserved += events;
        d.threshold.spend();
        d.in_flight += 1;
        Ok(d.memory.len() as u32)
    }

    #[allow(clippy::too_many_arguments)]
    fn initiate(
        &mut self,
        op: OpId,
        md: SourceMd,
        target: ProcessId,
        body: Body,
        payload: Payload,
        mut event: Event,
        len: u32,
    ) {
        event.target = target;
        event.msg_type = Some(body.msg_type());
        event.portal = body.portal().unwrap_or(0);
        if let Body::Put { match_bits, .. } | Body::Get { match_bits, .. } = body {
            event.match_bits = match_bits;
        }
        (event.rlength, event.mlength) = (len, len);
        self.operations.insert(op, (md.0, event));
        let (op, dest, src) = (Some(op), target, None);
        self.outputs.push_back(Output::Send(Outgoing { op, dest, src, body, payload }));
    }

    /// The NUMA node of the memory of an operation under way, if it is known.
    pub fn memory_node(&self, op: OpId) -> Option<u32> {
        let (md, _) = self.operations.get(&op)?;
        self.descriptors.get(md)?.memory.node()
    }

    /// Ends an operation whose message has left (or failed). `source` is who it left from. Unknown ids are ignored.
    pub fn finish(&mut self, op: OpId, status: Status, source: ProcessId) {
        let Some((md, mut event)) = self.operations.remove(&op) else { return };
        if event.kind == EventKind::Send {
            (event.initiator, event.source, event.sender) = (source, source.nid, source.nid);
        }
        self.complete(md, event, status);
    }

    /// The event of an operation's end, and the descriptor's if that was its last.
    fn complete(&mut self, md: MdHandle, mut event: Event, status: Status) {
        let Some(d) = self.descriptors.get_mut(&md) else { return };
        d.in_flight = d.in_flight.saturating_sub(1);
        let used_up = d.unlink == Unlink::Auto && d.is_exhausted();
        event.unlinked = d.in_flight == 0 && (d.aborted || used_up);
        event.status = if d.aborted && status.is_ok() { Status::TimedOut } else { status };
        if event.unlinked {
            return self.destroy(md, event);
        }
        d.reserved = d.reserved.saturating_sub(1);
        let handler = d.handler.clone();
        self.emit(handler, event);
    }

    /// Takes a message that has arrived. `Err` says why it was dropped (counted here).
    pub fn receive(&mut self, incoming: Incoming) -> std::result::Result<(), DropReason> {
        let (len, via) = (incoming.payload.len(), incoming.via);
        let remote = matches!(incoming.payload, Content::Remote(_));
        let result = match incoming.header.body {
            Body::Put { portal, .. } => match self.receive_request(&incoming) {
                Err(DropReason::NoMatch) => self.park(incoming, portal),
                other => other,
            },
            Body::Get { .. } => self.receive_request(&incoming),
            Body::Ack { handle, mlength, match_bits } => {
                self.receive_ack(&incoming, handle, match_bits, mlength)
            }
            Body::Reply { handle } => self.receive_reply(&incoming, handle),
        };
        if result.is_err() {
            self.count_drop(len);
            if remote {
                self.outputs.push_back(Output::Refuse { via });
            }
        }
        result
    }

    /// Drops a message that had waited.
    pub(super) fn discard(&mut self, incoming: &Incoming) {
        self.count_drop(incoming.payload.len());
        if matches!(incoming.payload, Content::Remote(_)) {
            self.outputs.push_back(Output::Refuse { via: incoming.via });
        }
    }

    fn count_drop(&mut self, len: usize) {
        self.counters.drop_count += 1;
        self.counters.drop_length += len as u64;
    }

    fn receive_request(&mut self, incoming: &Incoming) -> std::result::Result<(), DropReason> {
        let request = match incoming.header.body {
            Body::Put { match_bits, portal, offset, .. } => Request {
                access: Access::Put,
                portal,
                bits: match_bits,
                offset,
                len: incoming.payload.len() as u32,
            },
            Body::Get { match_bits, portal, offset, sink_len, .. } => {
                // Nothing above the limit can be sent back, whatever the sink may hold.
                let len = sink_len.min(MAX_PAYLOAD as u32);
                Request { access: Access::Get, portal, bits: match_bits, offset, len }
            }
            _ => return Err(DropReason::NoMatch),
        };
        match self.find(&request, incoming)? {
            Match::Found { md, offset, mlength } => {
                self.commit(md, offset, mlength);
                match request.access {
                    Access::Get => self.serve_get(incoming, &request, md, offset, mlength),
                    _ => self.serve_put(incoming, &request, md, offset, mlength),
                }
                Ok(())
            }
            Match::TooLong => Err(DropReason::TooLong),
            Match::None => Err(DropReason::NoMatch),
        }
    }

    fn find(&self, request: &Request, incoming: &Incoming) -> std::result::Result<Match, DropReason> {
        let portal = self.portals.get(request.portal as usize).ok_or(DropReason::NoPortal)?;
        let pid = incoming.header.src.pid;
        let names = [incoming.initiator, ProcessId { nid: incoming.header.src.nid, pid }];
        for list in portal.table.candidates(request.bits, names) {
            for me in list {
                let Some(entry) = self.entries.get(me) else { continue };
                if !entry_matches(&entry.params, request.bits, names) {
                    continue;
                }
                let Some((md, d)) = entry.md.and_then(|md| Some((md, self.descriptors.get(&md)?))) else {
                    continue;
                };
                match fit(md, d, request) {
                    Match::None => {}
                    found => return Ok(found),
                }
            }
        }
        Ok(Match::None)
    }

    /// Takes one operation of `md` and the space it needs. Room for its event was reserved by the match.
    fn commit(&mut self, md: MdHandle, offset: u64, mlength: u32) {
        let Some(d) = self.descriptors.get_mut(&md) else { return };
        d.reserved += 1;
        d.threshold.spend();
        d.in_flight += 1;
        d.offset = offset + u64::from(mlength);
        if d.unlink == Unlink::Auto && d.is_exhausted() {
            self.detach_entry(md);
        }
    }

    fn target_event(&self, i: &Incoming, r: &Request, md: MdHandle, offset: u64, mlength: u32) -> Event {
        let put = r.access == Access::Put;
        let mut event = self.blank_event(md, if put { EventKind::Put } else { EventKind::Get });
        event.target = i.header.dest;
        event.initiator = i.initiator;
        event.source = i.header.src.nid;
        event.sender = i.sender;
        event.portal = r.portal;
        event.match_bits = r.bits;
        event.rlength = r.len;
        event.mlength = mlength;
        event.offset = offset;
        event.msg_type = Some(if put { MsgType::Put } else { MsgType::Get });
        if let Body::Put { hdr_data, .. } = i.header.body {
            event.hdr_data = hdr_data;
        }
        event
    }

    fn serve_put(&mut self, i: &Incoming, r: &Request, md: MdHandle, offset: u64, mlength: u32) {
        let Some(d) = self.descriptors.get(&md) else { return };
        let silent = matches!(&d.role, Role::Target { options, .. } if options.ack_disable);
        let event = self.target_event(i, r, md, offset, mlength);
        let Body::Put { handle, match_bits, .. } = i.header.body else { return };
        let ack = (!silent && handle != WireHandle::NONE).then(|| {
            let body = Body::Ack { handle, match_bits, mlength };
            answer(i, None, body, Payload::EMPTY)
        });
        match &i.payload {
            Content::Bytes(bytes) => d.memory.write_at(offset, &bytes[..mlength as usize]),
            Content::Remote(_) if mlength > 0 => {
                return self.fetch(i, Fetching { md, event, ack, answers: None }, offset, mlength);
            }
            Content::Remote(_) => self.outputs.push_back(Output::Refuse { via: i.via }),
        }
        self.complete(md, event, Status::Ok);
        self.outputs.extend(ack.map(Output::Send));
    }

    /// Begins to fetch a payload; the operation counts as in flight.
    fn fetch(&mut self, i: &Incoming, fetch: Fetching, offset: u64, len: u32) {
        let Some(d) = self.descriptors.get(&fetch.md) else { return };
        let memory = d.memory.clone();
        let op = OpId(self.object());
        self.fetches.insert(op, fetch);
        self.outputs.push_back(Output::Fetch(Fetch { op, via: i.via, memory, offset, len }));
    }

    /// A payload has been fetched, or could not be. Unknown ids are ignored.
    pub fn fetched(&mut self, op: OpId, status: Status) {
        let Some(mut fetch) = self.fetches.remove(&op) else { return };
        if !status.is_ok() {
            fetch.event.mlength = 0;
        }
        self.outputs.extend(fetch.answers.map(Output::Answered));
        self.complete(fetch.md, fetch.event, status);
        if status.is_ok() {
            self.outputs.extend(fetch.ack.map(Output::Send));
        }
    }

    /// Drops what waits and is still with a sender that is lost.
    pub fn forget_sender(&mut self, sender: Nid) {
        let lost = |i: &Incoming| i.sender == sender && matches!(i.payload, Content::Remote(_));
        for portal in 0..self.portals.len() {
            let waiting = std::mem::take(&mut self.portals[portal].waiting);
            let (gone, stay) = waiting.into_iter().partition(lost);
            self.portals[portal].waiting = stay;
            let gone: VecDeque<Incoming> = gone;
            gone.iter().for_each(|i| self.discard(i));
        }
    }

    fn serve_get(&mut self, i: &Incoming, r: &Request, md: MdHandle, offset: u64, mlength: u32) {
        let Some(d) = self.descriptors.get(&md) else { return };
        let payload = Payload::new(d.memory.clone(), offset, mlength);
        let event = self.target_event(i, r, md, offset, mlength);
        let op = OpId(self.object());
        self.operations.insert(op, (md, event));
        if let Body::Get { handle, .. } = i.header.body {
            self.outputs.push_back(Output::Send(answer(i, Some(op), Body::Reply { handle }, payload)));
        }
    }

    /// The operation of ours that a PUT or GET names for its answer.
    pub fn answers_to(&self, body: &Body) -> Option<OpId> {
        let (Body::Put { handle, .. } | Body::Get { handle, .. }) = body else { return None };
        let (interface, object) = handle.cookies();
        (interface == self.interface_cookie).then_some(OpId(object))
    }

    /// The operation that an ACK or REPLY names, if it has not been answered, its live descriptor and that one's length.
    fn addressee(&mut self, handle: WireHandle) -> std::result::Result<(OpId, MdHandle, u64), DropReason> {
        let (interface, object) = handle.cookies();
        let op = OpId(object);
        let md = *self.answers.get(&op).ok_or(DropReason::NoDescriptor)?;
        let live = |d: &&mut Descriptor<H>| {
            matches!(d.role, Role::Source) && !d.threshold.is_spent() && !d.aborted && d.reserved > 1
        };
        let found = self.descriptors.get_mut(&md).filter(live);
        match found {
            Some(d) if interface == self.interface_cookie => Ok((op, md, d.memory.len())),
            _ => Err(DropReason::NoDescriptor),
        }
    }

    /// The event of an answer, which no other can follow; it is in flight until [`Core::complete`].
    fn response_event(
        &mut self,
        i: &Incoming,
        op: OpId,
        md: MdHandle,
        kind: EventKind,
        mlength: u32,
    ) -> Event {
        self.answers.remove(&op);
        let mut event = self.blank_event(md, kind);
        event.target = i.header.dest;
        event.initiator = i.initiator;
        event.source = i.header.src.nid;
        event.sender = i.sender;
        event.mlength = mlength;
        event.rlength = if kind == EventKind::Ack { mlength } else { i.payload.len() as u32 };
        event.msg_type = Some(i.header.body.msg_type());
        if let Body::Ack { match_bits, .. } = i.header.body {
            event.match_bits = match_bits;
        }
        if let Some(d) = self.descriptors.get_mut(&md) {
            d.unanswered.retain(|o| *o != op);
            d.threshold.spend();
            d.in_flight += 1;
        }
        event
    }

    fn receive_ack(
        &mut self,
        i: &Incoming,
        handle: WireHandle,
        _bits: u64,
        mlength: u32,
    ) -> std::result::Result<(), DropReason> {
        let (op, md, _) = self.addressee(handle)?;
        let event = self.response_event(i, op, md, EventKind::Ack, mlength);
        self.outputs.push_back(Output::Answered(op));
        self.complete(md, event, Status::Ok);
        Ok(())
    }

    fn receive_reply(&mut self, i: &Incoming, handle: WireHandle) -> std::result::Result<(), DropReason> {
        let (op, md, space) = self.addressee(handle)?;
        let Some(d) = self.descriptors.get(&md) else { return Err(DropReason::NoDescriptor) };
        let mlength = (i.payload.len() as u64).min(space) as usize;
        if mlength < i.payload.len() && !d.truncate {
            return Err(DropReason::TooLong);
        }
        match &i.payload {
            Content::Bytes(bytes) => d.memory.write_at(0, &bytes[..mlength]),
            Content::Remote(_) if mlength > 0 => {
                let event = self.response_event(i, op, md, EventKind::Reply, mlength as u32);
                self.fetch(i, Fetching { md, event, ack: None, answers: Some(op) }, 0, mlength as u32);
                return Ok(());
            }
            Content::Remote(_) => self.outputs.push_back(Output::Refuse { via: i.via }),
        }
        let event = self.response_event(i, op, md, EventKind::Reply, mlength as u32);
        self.outputs.push_back(Output::Answered(op));
        self.complete(md, event, Status::Ok);
        Ok(())
    }

    fn park(&mut self, incoming: Incoming, portal: u32) -> std::result::Result<(), DropReason> {
        let max = self.max_waiting;
        let slot = self.portals.get_mut(portal as usize).ok_or(DropReason::NoPortal)?;
        if !slot.lazy {
            return Err(DropReason::NoMatch);
        }
        let held = incoming.payload.held();
        let bytes = self.counters.parked_bytes + held as u64;
        if slot.waiting.len() >= max || bytes > self.max_waiting_bytes as u64 {
            return Err(DropReason::TooMany);
        }
        self.counters.parked_bytes = bytes;
        self.outputs.push_back(Output::Parked { via: incoming.via, bytes: held });
        slot.waiting.push_back(incoming);
        Ok(())
    }

    pub(super) fn release_parked(&mut self, incoming: &Incoming) {
        let bytes = incoming.payload.held();
        self.counters.parked_bytes -= bytes as u64;
        self.outputs.push_back(Output::Unparked { via: incoming.via, bytes });
    }

    /// Tries messages that wait at `portal` again, in order of arrival. Called by itself when a descriptor is attached;
    /// call it when an event queue has room again.
    pub fn retry_waiting(&mut self, portal: u32) {
        let Some(slot) = self.portals.get_mut(portal as usize) else { return };
        let waiting = std::mem::take(&mut slot.waiting);
        let mut still = VecDeque::new();
        for incoming in waiting {
            match self.receive_request(&incoming) {
                Err(DropReason::NoMatch) => still.push_back(incoming),
                Ok(()) => self.release_parked(&incoming),
                Err(_) => {
                    self.release_parked(&incoming);
                    self.discard(&incoming);
                }
            }
        }
        if let Some(slot) = self.portals.get_mut(portal as usize) {
            slot.waiting = still;
        }
    }

    /// Portals at which messages wait.
    pub fn waiting_portals(&self) -> Vec<u32> {
        let waits = |(i, p): (usize, &Portal)| (!p.waiting.is_empty()).then_some(i as u32);
        self.portals.iter().enumerate().filter_map(waits).collect()
    }
}

fn answer(i: &Incoming, op: Option<OpId>, body: Body, payload: Payload) -> Outgoing {
    let (dest, src) = (i.header.src, Some(i.header.dest.nid));
    Outgoing { op, dest, src, body, payload }
}

fn entry_matches(params: &MeParams, bits: u64, names: [ProcessId; 2]) -> bool {
    let id = params.match_id;
    let named = |name: ProcessId| {
        (id.nid.is_any() || id.nid == name.nid) && (id.pid == crate::nid::PID_ANY || id.pid == name.pid)
    };
    (params.match_bits ^ bits) & !params.ignore_bits == 0 && names.into_iter().any(named)
}

/// Whether and how `d` takes the request. Reserves room for the event if so.
fn fit<H: Handler>(md: MdHandle, d: &Descriptor<H>, r: &Request) -> Match {
    let Role::Target { options, .. } = &d.role else { return Match::None };
    let allowed = options.access == Access::PutGet || options.access == r.access;
    if !allowed || d.is_exhausted() || d.aborted {
        return Match::None;
    }
    let offset = if options.manage_remote { u64::from(r.offset) } else { d.offset };
    let left = d.memory.len().saturating_sub(offset);
    let space = options.max_size.map_or(left, |max| left.min(max.into()));
    let mlength = u64::from(r.len).min(space) as u32;
    if mlength < r.len && !options.truncate {
        return Match::TooLong;
    }
    if !d.handler.reserve(1) {
        return Match::None;
    }
    // Beyond the end nothing fits, and nothing is touched.
    Match::Found { md, offset: offset.min(d.memory.len()), mlength }
}
