//! Tests of `core`.

use super::*;
use crate::nid::Net;
use crate::wire::lnet::{LnetHeader, MsgType, WireHandle};
use proptest::prelude::*;
use std::cell::Cell;
use std::rc::Rc;

#[derive(Clone)]
struct Room(Rc<Cell<i64>>);

impl Handler for Room {
    fn reserve(&self, n: usize) -> bool {
        let left = self.0.get() - n as i64;
        if left >= 0 {
            self.0.set(left);
        }
        left >= 0
    }
    fn release(&self, n: usize) {
        self.0.set(self.0.get() + n as i64);
    }
}

fn room(n: i64) -> Room {
    Room(Rc::new(Cell::new(n)))
}

fn id(n: u32) -> ProcessId {
    ProcessId::lnet(Nid::small(Net::TCP, n))
}

const ME: u32 = 99;

fn incoming(from: u32, body: Body, payload: &[u8]) -> Incoming {
    let header = LnetHeader { dest: id(ME), src: id(from), payload_len: payload.len() as u32, body };
    Incoming { header, initiator: id(from), sender: id(from).nid, via: 7, payload: payload.to_vec().into() }
}

fn put_body(portal: u32, match_bits: u64, offset: u32, ack: bool) -> Body {
    let handle = if ack { WireHandle::new(1, 2) } else { WireHandle::NONE };
    Body::Put { handle, match_bits, hdr_data: 5, portal, offset }
}

fn get_body(portal: u32, match_bits: u64, offset: u32, sink_len: u32) -> Body {
    Body::Get { handle: WireHandle::new(1, 2), match_bits, portal, offset, sink_len }
}

#[derive(Default)]
struct Drained {
    events: Vec<Event>,
    sends: Vec<Outgoing>,
    parked: Vec<(u64, usize, bool)>,
    fetches: Vec<Fetch>,
    refused: Vec<u64>,
    answered: Vec<OpId>,
}

/// Takes all outputs; gives the room of each event back, as a reader of the queue would.
fn drain(core: &mut Core<Room>) -> Drained {
    let mut all = Drained::default();
    while let Some(output) = core.poll() {
        match output {
            Output::Event(room, event) => {
                room.release(1);
                all.events.push(event);
            }
            Output::Send(send) => all.sends.push(send),
            Output::Fetch(fetch) => all.fetches.push(fetch),
            Output::Answered(op) => all.answered.push(op),
            Output::Refuse { via } => all.refused.push(via),
            Output::Parked { via, bytes } => all.parked.push((via, bytes, true)),
            Output::Unparked { via, bytes } => all.parked.push((via, bytes, false)),
        }
    }
    all
}

fn core() -> Core<Room> {
    Core::new(0xabc, 4, 100)
}

#[test]
fn put_lands_and_is_acked() {
    let (mut core, room, memory) = (core(), room(100), SharedBytes::zeroed(8));
    let me = core.me_attach(MeParams::new(3, 0x42)).unwrap();
    core.md_attach(
        me,
        memory.memory(),
        TargetOptions { user: 77, ..TargetOptions::once(Access::Put) },
        room.clone(),
    )
    .unwrap();
    core.receive(incoming(1, put_body(3, 0x42, 0, true), b"hello")).unwrap();
    let out = drain(&mut core);
    assert_eq!(memory.to_vec(), b"hello\0\0\0");
    let e = &out.events[0];
    assert_eq!((e.kind, e.mlength, e.user, e.hdr_data, e.unlinked), (EventKind::Put, 5, 77, 5, true));
    assert_eq!(out.sends[0].body, Body::Ack { handle: WireHandle::new(1, 2), match_bits: 0x42, mlength: 5 });
    assert_eq!((out.sends[0].src, out.sends[0].dest), (Some(id(ME).nid), id(1)));
    assert_eq!(core.objects(), (0, 0));
    assert_eq!(room.0.get(), 100);
    assert_eq!(core.receive(incoming(1, put_body(3, 0x42, 0, true), b"x")), Err(DropReason::NoMatch));
    assert_eq!(core.counters().drop_count, 1);
}

#[test]
fn get_is_replied_and_reported_when_sent() {
    let (mut core, room) = (core(), room(100));
    let me = core.me_attach(MeParams::new(3, 1)).unwrap();
    let options = TargetOptions { manage_remote: true, truncate: true, ..TargetOptions::new(Access::Get) };
    let md = core.md_attach(me, SharedBytes::new(b"0123456789".to_vec()).memory(), options, room).unwrap();
    core.receive(incoming(1, get_body(3, 1, 4, 100), b"")).unwrap();
    let out = drain(&mut core);
    assert!(out.events.is_empty());
    assert_eq!(out.sends[0].payload.to_vec(), b"456789");
    // Unlinked while the reply is on its way: the completion is the last event, and says so.
    core.md_unlink(md, Status::Ok).unwrap();
    assert!(drain(&mut core).events.is_empty());
    core.finish(out.sends[0].op.unwrap(), Status::Ok, id(ME));
    let e = drain(&mut core).events.remove(0);
    assert_eq!((e.kind, e.rlength, e.mlength, e.offset), (EventKind::Get, 100, 6, 4));
    assert_eq!((e.unlinked, e.status), (true, Status::TimedOut));
    assert_eq!(core.objects(), (0, 0));
}

fn bound(core: &mut Core<Room>, room: &Room, bytes: &[u8], operations: u32) -> SourceMd {
    let options = SourceOptions { truncate: true, ..SourceOptions::once(operations) };
    core.md_bind(SharedBytes::new(bytes.to_vec()).memory(), options, room.clone()).unwrap()
}

fn put_params(ack: bool) -> PutParams {
    PutParams { target: id(2), portal: 4, match_bits: 9, offset: 0, hdr_data: 0, ack }
}

fn handle_of(send: &Outgoing) -> WireHandle {
    match send.body {
        Body::Put { handle, .. } | Body::Get { handle, .. } => handle,
        _ => panic!("{send:?}"),
    }
}

#[test]
fn send_and_ack_in_either_order() {
    for ack_first in [false, true] {
        let (mut core, room) = (core(), room(100));
        let md = bound(&mut core, &room, b"abc", 2);
        let op = core.put(md, put_params(true)).unwrap();
        let sent = drain(&mut core).sends.remove(0);
        assert_eq!(sent.payload.to_vec(), b"abc");
        let ack = incoming(2, Body::Ack { handle: handle_of(&sent), match_bits: 9, mlength: 3 }, b"");
        if ack_first {
            core.receive(ack.clone()).unwrap();
            core.finish(op, Status::Ok, id(ME));
        } else {
            core.finish(op, Status::Ok, id(ME));
            core.receive(ack.clone()).unwrap();
        }
        let kinds: Vec<_> = drain(&mut core).events.iter().map(|e| (e.kind, e.unlinked)).collect();
        let (first, second) =
            if ack_first { (EventKind::Ack, EventKind::Send) } else { (EventKind::Send, EventKind::Ack) };
        assert_eq!(kinds, [(first, false), (second, true)]);
        assert_eq!(core.receive(ack), Err(DropReason::NoDescriptor));
        assert_eq!((room.0.get(), core.objects()), (100, (0, 0)));
    }
}

#[test]
fn threshold_one_put_unlinks_before_its_ack() {
    let (mut core, room) = (core(), room(100));
    let md = bound(&mut core, &room, b"abc", 1);
    let op = core.put(md, put_params(true)).unwrap();
    let sent = drain(&mut core).sends.remove(0);
    core.finish(op, Status::Ok, id(ME));
    let e = drain(&mut core).events.remove(0);
    assert_eq!((e.kind, e.unlinked), (EventKind::Send, true));
    assert_eq!((e.initiator, e.target, e.source), (id(ME), id(2), id(ME).nid));
    let ack = incoming(2, Body::Ack { handle: handle_of(&sent), match_bits: 9, mlength: 3 }, b"");
    assert_eq!(core.receive(ack), Err(DropReason::NoDescriptor));
    assert_eq!(room.0.get(), 100);
}

/// Each operation of a descriptor has an answer of its own, and one only.
#[test]
fn answers_name_their_operation() {
    let (mut core, room) = (core(), room(100));
    let md = bound(&mut core, &room, b"abc", 4);
    let ops = [0, 1].map(|_| core.put(md, put_params(true)).unwrap());
    let sends = drain(&mut core).sends;
    let ack =
        |i: usize| incoming(2, Body::Ack { handle: handle_of(&sends[i]), match_bits: 9, mlength: 3 }, b"");
    core.receive(ack(1)).unwrap();
    assert_eq!(core.receive(ack(1)), Err(DropReason::NoDescriptor), "it has been answered");
    let drained = drain(&mut core);
    assert_eq!((drained.answered, drained.events.len()), (vec![ops[1]], 1));
    core.finish(ops[0], Status::Ok, id(ME));
    core.finish(ops[1], Status::Ok, id(ME));
    core.md_unlink(md.handle(), Status::TimedOut).unwrap();
    let drained = drain(&mut core);
    assert_eq!((drained.answered, drained.events.last().unwrap().unlinked), (vec![ops[0]], true));
    assert_eq!(core.receive(ack(0)), Err(DropReason::NoDescriptor));
    assert_eq!((room.0.get(), core.objects()), (100, (0, 0)));
}

#[test]
fn replies_fill_cut_and_drop() {
    let (mut core, room) = (core(), room(100));
    for (truncate, want) in [(true, Ok(())), (false, Err(DropReason::TooLong))] {
        let memory = SharedBytes::zeroed(4);
        let options = SourceOptions { truncate, ..SourceOptions::once(2) };
        let md = core.md_bind(memory.memory(), options, room.clone()).unwrap();
        let op = core.get(md, id(2), 0, 1, 0).unwrap();
        let sent = drain(&mut core).sends.remove(0);
        core.finish(op, Status::Ok, id(ME));
        drain(&mut core);
        let reply = incoming(2, Body::Reply { handle: handle_of(&sent) }, b"abcdef");
        assert_eq!(core.receive(reply), want);
        if truncate {
            assert_eq!(memory.to_vec(), b"abcd");
            let e = drain(&mut core).events.remove(0);
            assert_eq!((e.kind, e.rlength, e.mlength, e.unlinked), (EventKind::Reply, 6, 4, true));
        }
    }
    let foreign = incoming(2, Body::Reply { handle: WireHandle::new(0xdef, 5) }, b"");
    assert_eq!(core.receive(foreign), Err(DropReason::NoDescriptor));
}

#[test]
fn lazy_portal_keeps_puts_until_there_is_memory() {
    let (mut core, room, memory) = (core(), room(100), SharedBytes::zeroed(6));
    core.set_lazy(5, true).unwrap();
    for text in [b"ab", b"cd", b"ef", b"gh"] {
        core.receive(incoming(1, put_body(5, 1, 0, false), text)).unwrap();
    }
    assert_eq!(core.receive(incoming(1, put_body(5, 1, 0, false), b"x")), Err(DropReason::TooMany));
    assert_eq!(core.receive(incoming(1, get_body(5, 1, 0, 4), b"")), Err(DropReason::NoMatch));
    assert_eq!(drain(&mut core).parked, vec![(7, 2, true); 4]);
    let me = core.me_attach(MeParams::new(5, 1)).unwrap();
    let options =
        TargetOptions { max_size: Some(2), unlink: Unlink::Auto, ..TargetOptions::new(Access::Put) };
    core.md_attach(me, memory.memory(), options, room).unwrap();
    let out = drain(&mut core);
    assert_eq!(memory.to_vec(), b"abcdef");
    assert_eq!(out.parked, vec![(7, 2, false); 3]);
    assert_eq!(
        out.events.iter().map(|e| (e.offset, e.unlinked)).collect::<Vec<_>>(),
        [(0, false), (2, false), (4, true)]
    );
    assert_eq!(core.counters().parked, 1);
    core.set_lazy(5, false).unwrap();
    assert_eq!((core.counters().parked, core.counters().drop_count), (0, 3));
    core.set_lazy(5, true).unwrap();
    core.receive(incoming(1, put_body(5, 1, 0, false), &[0; 60])).unwrap();
    assert_eq!(core.receive(incoming(1, put_body(5, 1, 0, false), &[0; 60])), Err(DropReason::TooMany));
    assert_eq!(core.counters().parked_bytes, 60);
}

fn waiting_put(bits: u64, len: u32) -> Incoming {
    let mut put = incoming(1, put_body(3, bits, 0, true), b"");
    put.header.payload_len = len;
    put.payload = Content::Remote(len);
    put
}

#[test]
fn a_payload_that_waits_at_its_sender_is_fetched_once_it_matches() {
    let (mut core, room, memory) = (core(), room(100), SharedBytes::zeroed(8));
    let me = core.me_attach(MeParams::new(3, 1)).unwrap();
    let options = TargetOptions { truncate: true, ..TargetOptions::once(Access::Put) };
    core.md_attach(me, memory.memory(), options, room.clone()).unwrap();
    core.receive(waiting_put(1, 20)).unwrap();
    let mut out = drain(&mut core);
    assert!(out.events.is_empty() && out.sends.is_empty());
    let fetch = out.fetches.remove(0);
    assert_eq!((fetch.via, fetch.offset, fetch.len), (7, 0, 8));
    fetch.memory.write_at(0, b"12345678");
    core.fetched(fetch.op, Status::Ok);
    let out = drain(&mut core);
    assert_eq!(
        (out.events[0].kind, out.events[0].mlength, out.events[0].unlinked),
        (EventKind::Put, 8, true)
    );
    assert!(matches!(out.sends[0].body, Body::Ack { mlength: 8, .. }));
    core.fetched(fetch.op, Status::Ok);
    assert!(drain(&mut core).events.is_empty());
    // Nothing matches: it may be forgotten there, and is counted here.
    assert_eq!(core.receive(waiting_put(1, 20)), Err(DropReason::NoMatch));
    assert_eq!((drain(&mut core).refused, core.counters().drop_length), (vec![7], 20));
    assert_eq!((core.objects(), room.0.get()), ((0, 0), 100));
}

#[test]
fn a_failed_fetch_is_an_event_and_no_acknowledgement() {
    let (mut core, room) = (core(), room(100));
    for (bits, unlink) in [(1, false), (2, true)] {
        let me = core.me_attach(MeParams::new(3, bits)).unwrap();
        let memory = SharedBytes::zeroed(8).memory();
        let md = core.md_attach(me, memory, TargetOptions::once(Access::Put), room.clone()).unwrap();
        core.receive(waiting_put(bits, 8)).unwrap();
        let fetch = drain(&mut core).fetches.remove(0);
        if unlink {
            // Its last event waits for the fetch: until then bytes may come in.
            core.md_unlink(md, Status::Ok).unwrap();
            assert!(drain(&mut core).events.is_empty());
        }
        core.fetched(fetch.op, if unlink { Status::Ok } else { Status::Unreachable });
        let out = drain(&mut core);
        let status = if unlink { Status::TimedOut } else { Status::Unreachable };
        assert_eq!((out.events[0].status, out.events[0].unlinked), (status, true));
        assert_eq!((out.events[0].mlength, out.sends.len()), if unlink { (8, 1) } else { (0, 0) });
    }
    assert_eq!((core.objects(), room.0.get()), ((0, 0), 100));
}

#[test]
fn payloads_that_wait_at_a_lost_sender_are_forgotten() {
    let mut core = core();
    core.set_lazy(3, true).unwrap();
    core.receive(waiting_put(1, 1 << 20)).unwrap();
    core.receive(incoming(1, put_body(3, 1, 0, false), b"here")).unwrap();
    assert_eq!((core.counters().parked, core.counters().parked_bytes), (2, 4));
    core.forget_sender(id(2).nid);
    assert_eq!(core.counters().parked, 2);
    core.forget_sender(id(1).nid);
    assert_eq!((core.counters().parked, drain(&mut core).refused), (1, vec![7]));
}

#[test]
fn a_reply_that_waits_at_its_sender_is_fetched() {
    let (mut core, room, memory) = (core(), room(100), SharedBytes::zeroed(8));
    let md = core.md_bind(memory.memory(), SourceOptions::once(2), room.clone()).unwrap();
    let op = core.get(md, id(1), 3, 1, 0).unwrap();
    let handle = handle_of(&drain(&mut core).sends[0]);
    core.finish(op, Status::Ok, id(ME));
    let mut reply = incoming(1, Body::Reply { handle }, b"");
    reply.payload = Content::Remote(8);
    core.receive(reply.clone()).unwrap();
    let mut out = drain(&mut core);
    let fetch = out.fetches.remove(0);
    // A second one finds the first at work.
    assert_eq!(core.receive(reply), Err(DropReason::NoDescriptor));
    let bytes = memory.memory().lend(0, 8).unwrap();
    assert_eq!(memory.to_vec(), [0; 8]);
    let mut filled = bytes;
    filled.get_mut().unwrap().copy_from_slice(b"replyrep");
    fetch.memory.restore(filled);
    core.fetched(fetch.op, Status::Ok);
    let out = drain(&mut core);
    assert_eq!(
        (out.events[0].kind, out.events[0].mlength, out.events[0].unlinked),
        (EventKind::Reply, 8, true)
    );
    assert_eq!((memory.to_vec(), core.objects(), room.0.get()), (b"replyrep".to_vec(), (0, 0), 100));
}

#[test]
fn shared_memory_keeps_what_was_sent() {
    let memory = SharedBytes::new(b"abcdef".to_vec());
    let sent = memory.share(1, 3).unwrap();
    assert!(memory.lend(0, 6).is_none());
    memory.write_at(0, b"ABCDEF");
    assert_eq!((&sent[..], &memory.to_vec()[..]), (&b"bcd"[..], &b"ABCDEF"[..]));
    assert!(memory.lend(0, 5).is_none() && memory.lend(1, 5).is_none());
    let lent = memory.lend(0, 6).unwrap();
    assert!(memory.share(0, 6).is_none() && memory.buffer().is_none());
    drop(lent);
    memory.write_at(2, b"x");
    assert_eq!(memory.to_vec(), b"\0\0x\0\0\0");
}

#[test]
fn a_full_event_queue_holds_operations_back() {
    let (mut core, room, memory) = (core(), room(2), SharedBytes::zeroed(64));
    core.set_lazy(5, true).unwrap();
    let me = core.me_attach(MeParams::new(5, 1)).unwrap();
    core.md_attach(me, memory.memory(), TargetOptions::new(Access::Put), room.clone()).unwrap();
    core.receive(incoming(1, put_body(5, 1, 0, false), b"a")).unwrap();
    core.receive(incoming(1, put_body(5, 1, 0, false), b"b")).unwrap();
    assert_eq!(core.counters().parked, 1);
    assert_eq!(drain(&mut core).events.len(), 1);
    assert_eq!(core.waiting_portals(), [5]);
    core.retry_waiting(5);
    assert_eq!(drain(&mut core).events[0].offset, 1);
    assert!(core.md_bind(memory.memory(), SourceOptions::once(1), self::room(0)).is_err());
}

#[test]
fn kinds_of_portals_do_not_mix() {
    let mut core = core();
    core.me_attach(MeParams::new(1, 1)).unwrap();
    let unique = MeParams { match_id: id(1), ..MeParams::new(1, 1) };
    assert_eq!(core.me_attach(unique).unwrap_err().kind(), ErrorKind::Denied);
    core.me_attach(MeParams { portal: 2, ..unique }).unwrap();
    assert_eq!(core.me_attach(MeParams::new(2, 1)).unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(core.me_attach(MeParams::new(64, 1)).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn queue_streams_calls_back_and_bounds() {
    let queue = EventQueue::new(4);
    let sink = queue.sink();
    assert!(sink.reserve(4) && !sink.reserve(1));
    let core = core();
    let event = core.blank_event(MdHandle(1), EventKind::Put);
    let kicked = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let k = kicked.clone();
    sink.set_hook(Arc::new(move || {
        k.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }));
    sink.push(event.clone());
    assert_eq!(futures_lite::future::block_on(queue.recv()), event);
    assert_eq!(kicked.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(sink.reserve(1));
    assert!(queue.recv_timeout(std::time::Duration::from_millis(5)).is_none());
    let seen = Arc::new(std::sync::Mutex::new(vec![]));
    let s = seen.clone();
    let callback = EventSink::callback(10, move |e| s.lock().unwrap().push(e.sequence));
    for sequence in 0..3 {
        assert!(callback.reserve(1));
        callback.push(Event { sequence, ..event.clone() });
    }
    callback.run();
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
}

#[test]
fn fragments_are_one_memory() {
    let (a, b) = (SharedBytes::zeroed(4), SharedBytes::zeroed(4));
    let f = Fragments::new(vec![(a.memory(), 1, 2), (b.memory(), 0, 0), (b.memory(), 0, 3)]).unwrap();
    assert_eq!(f.len(), 5);
    f.write_at(1, b"xyz");
    assert_eq!((a.to_vec(), b.to_vec()), (b"\0\0x\0".to_vec(), b"yz\0\0".to_vec()));
    let mut out = [0; 4];
    f.read_at(1, &mut out);
    assert_eq!(&out, b"xyz\0");
    assert!(Fragments::new(vec![(a.memory(), 3, 2)]).is_none());
}

// ---- the naive oracle ----

#[derive(Debug, Clone)]
enum Step {
    Attach { params: MeParams, options: TargetOptions, len: usize },
    Request { from: u32, get: bool, bits: u64, offset: u32, payload: Vec<u8>, ack: bool },
    UnlinkMe(usize),
    UnlinkMd(usize),
}

struct Model {
    list: Vec<Entry>,
}

struct Entry {
    tag: u64,
    params: MeParams,
    md: Option<ModelMd>,
}

struct ModelMd {
    options: TargetOptions,
    left: Option<u32>,
    bytes: Vec<u8>,
    offset: usize,
}

#[derive(Debug, PartialEq)]
struct Effect {
    tag: u64,
    offset: u64,
    mlength: u32,
    unlinked: bool,
}

impl ModelMd {
    fn exhausted(&self) -> bool {
        self.left == Some(0)
            || self
                .options
                .max_size
                .is_some_and(|m| self.bytes.len().saturating_sub(self.offset) < m as usize)
    }
}

impl Model {
    /// What a request must do: straight from the rules, no hashing, no handles.
    fn request(
        &mut self,
        from: u32,
        get: bool,
        bits: u64,
        offset: u32,
        data: &[u8],
    ) -> std::result::Result<Effect, DropReason> {
        let (first, second): (Vec<usize>, Vec<usize>) =
            (0..self.list.len()).partition(|i| self.list[*i].params.ignore_bits != 0);
        for i in first.into_iter().chain(second) {
            let e = &mut self.list[i];
            let p = &e.params;
            let from_ok = p.match_id == ProcessId::ANY || p.match_id == id(from);
            if (p.match_bits ^ bits) & !p.ignore_bits != 0 || !from_ok {
                continue;
            }
            let Some(md) = &mut e.md else { continue };
            let allowed = match md.options.access {
                Access::Put => !get,
                Access::Get => get,
                Access::PutGet => true,
            };
            if !allowed || md.exhausted() {
                continue;
            }
            let at = if md.options.manage_remote { offset as usize } else { md.offset };
            let mut space = md.bytes.len().saturating_sub(at);
            if let Some(max) = md.options.max_size {
                space = space.min(max as usize);
            }
            let mlength = data.len().min(space);
            if mlength < data.len() && !md.options.truncate {
                return Err(DropReason::TooLong);
            }
            let at = at.min(md.bytes.len());
            if !get {
                md.bytes[at..at + mlength].copy_from_slice(&data[..mlength]);
            }
            md.offset = at + mlength;
            md.left = md.left.map(|n| n - 1);
            let unlinked = md.options.unlink == Unlink::Auto && md.exhausted();
            let effect = Effect { tag: e.tag, offset: at as u64, mlength: mlength as u32, unlinked };
            if unlinked {
                self.unlink_md(i);
            }
            return Ok(effect);
        }
        Err(DropReason::NoMatch)
    }

    fn unlink_md(&mut self, i: usize) {
        self.list[i].md = None;
        if self.list[i].params.unlink == Unlink::Auto {
            self.list.remove(i);
        }
    }
}

fn steps(unique: bool) -> impl Strategy<Value = Vec<Step>> {
    let bits = prop_oneof![0u64..3, Just(0x100), Just(0x101)];
    let unlink = |auto: bool| if auto { Unlink::Auto } else { Unlink::Retain };
    let params =
        (bits.clone(), 0u64..3, 1u32..3, any::<[bool; 3]>()).prop_map(move |(b, ignore, who, f)| MeParams {
            portal: 1,
            match_id: if unique || f[0] { id(who) } else { ProcessId::ANY },
            match_bits: b,
            ignore_bits: if unique { 0 } else { ignore.max(u64::from(f[0])) },
            unlink: unlink(f[1]),
            position: if f[2] { Position::Before } else { Position::After },
        });
    let options = (
        0u8..3,
        proptest::option::of(0u32..4),
        proptest::option::of(0u32..8),
        any::<[bool; 4]>(),
        8usize..24,
    );
    let options = options.prop_map(move |(access, threshold, max_size, f, len)| {
        let options = TargetOptions {
            access: [Access::Put, Access::Get, Access::PutGet][access as usize],
            threshold: threshold.map_or(Threshold::Infinite, Threshold::Count),
            max_size,
            manage_remote: f[0],
            truncate: f[1],
            ack_disable: f[2],
            unlink: unlink(f[3]),
            user: 0,
        };
        (options, len)
    });
    let attach = (params, options).prop_map(|(params, (options, len))| Step::Attach { params, options, len });
    let payload = proptest::collection::vec(any::<u8>(), 0..12);
    let request = (1u32..4, any::<bool>(), bits, 0u32..30, payload, any::<bool>()).prop_map(
        |(from, get, bits, offset, payload, ack)| Step::Request { from, get, bits, offset, payload, ack },
    );
    let step = prop_oneof![
        3 => attach, 6 => request, 1 => (0usize..8).prop_map(Step::UnlinkMe), 1 => (0usize..8).prop_map(Step::UnlinkMd)
    ];
    proptest::collection::vec(step, 1..60)
}

/// The machine beside the model.
struct Both {
    core: Core<Room>,
    model: Model,
    room: Room,
    handles: Vec<(u64, MeHandle, MdHandle, SharedBytes)>,
    next: u64,
}

impl Both {
    fn attach(&mut self, params: MeParams, options: TargetOptions, len: usize) {
        self.next += 1;
        let (tag, memory) = (self.next, SharedBytes::zeroed(len));
        let options = TargetOptions { user: tag, ..options };
        let me = self.core.me_attach(params).unwrap();
        let md = self.core.md_attach(me, memory.memory(), options, self.room.clone()).unwrap();
        self.handles.push((tag, me, md, memory));
        let left = match options.threshold {
            Threshold::Infinite => None,
            Threshold::Count(n) => Some(n),
        };
        let md = ModelMd { options, left, bytes: vec![0; len], offset: 0 };
        let entry = Entry { tag, params, md: Some(md) };
        match params.position {
            Position::Before => self.model.list.insert(0, entry),
            Position::After => self.model.list.push(entry),
        }
    }

    fn request(&mut self, from: u32, get: bool, bits: u64, offset: u32, payload: &[u8], ack: bool) {
        let want = self.model.request(from, get, bits, offset, payload);
        let body = if get {
            get_body(1, bits, offset, payload.len() as u32)
        } else {
            put_body(1, bits, offset, ack)
        };
        let got = self.core.receive(incoming(from, body, if get { b"" } else { payload }));
        assert_eq!(got.err(), want.as_ref().err().copied());
        let Ok(want) = want else { return assert!(drain(&mut self.core).events.is_empty()) };
        let mut out = drain(&mut self.core);
        if get {
            self.core.finish(out.sends[0].op.unwrap(), Status::Ok, id(ME));
            out.events = drain(&mut self.core).events;
            assert_eq!(out.sends[0].payload.len(), want.mlength);
        }
        let e = &out.events[0];
        let got = Effect { tag: e.user, offset: e.offset, mlength: e.mlength, unlinked: e.unlinked };
        assert_eq!((got, out.events.len()), (want, 1));
        assert_eq!(e.msg_type, Some(if get { MsgType::Get } else { MsgType::Put }));
        if !get {
            assert!(out.sends.len() <= usize::from(ack));
        }
    }

    fn unlink(&mut self, pick: usize, entry: bool) {
        let Some((tag, me, md, _)) = self.handles.get(pick).map(|h| (h.0, h.1, h.2, ())) else { return };
        let at = self.model.list.iter().position(|e| e.tag == tag);
        let (exists, has_md) = (at.is_some(), at.is_some_and(|i| self.model.list[i].md.is_some()));
        if entry {
            assert_eq!(self.core.me_unlink(me).is_ok(), exists);
            if let Some(i) = at {
                self.model.list.remove(i);
            }
        } else {
            assert_eq!(self.core.md_unlink(md, Status::Ok).is_ok(), has_md);
            if has_md {
                self.model.unlink_md(at.unwrap());
            }
        }
        let events = drain(&mut self.core).events;
        assert_eq!(events.len(), usize::from(has_md));
        assert!(events.iter().all(|e| e.kind == EventKind::Unlink && e.unlinked && e.user == tag));
    }

    fn check(&self) {
        let mds = self.model.list.iter().filter(|e| e.md.is_some()).count();
        assert_eq!(self.core.objects(), (self.model.list.len(), mds));
        assert_eq!(self.room.0.get(), 1000 - mds as i64);
        for e in &self.model.list {
            if let Some(md) = &e.md {
                let (_, _, _, memory) = self.handles.iter().find(|h| h.0 == e.tag).unwrap();
                assert_eq!(memory.to_vec(), md.bytes);
            }
        }
    }
}

fn run_steps(steps: Vec<Step>) {
    let mut both =
        Both { core: core(), model: Model { list: vec![] }, room: room(1000), handles: vec![], next: 0 };
    for step in steps {
        match step {
            Step::Attach { params, options, len } => both.attach(params, options, len),
            Step::Request { from, get, bits, offset, payload, ack } => {
                both.request(from, get, bits, offset, &payload, ack);
            }
            Step::UnlinkMe(i) => both.unlink(i, true),
            Step::UnlinkMd(i) => both.unlink(i, false),
        }
        both.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn wildcard_matching_agrees_with_the_oracle(steps in steps(false)) {
        run_steps(steps);
    }

    #[test]
    fn unique_matching_agrees_with_the_oracle(steps in steps(true)) {
        run_steps(steps);
    }
}
