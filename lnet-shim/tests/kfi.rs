//! Nodes that talk over kfi, with shared memory and with sockets below it; both networks at once.

mod common;

use common::*;
use futures_lite::future::block_on;
use kfab::topo::{CpuSet, Partition, Topology};
use lnet_shim::core::*;
use lnet_shim::kfi::{Book, Frame, KfiParams, Outcome};
use lnet_shim::network::Failure;
use lnet_shim::nid::ProcessId;
use lnet_shim::node::{FaultAction, FaultRule, Frequency, NiConfig, Node, NodeParams};
use lnet_shim::wire::lnet::{Body, LnetHeader, MsgType, WireHandle};
use std::time::Duration;

#[test]
fn put_and_get_with_acknowledgement() {
    on_all("put and get", |scheme| {
        let book = Book::new();
        let (a, b) = (Kfi::start("57@kfi", scheme, &book), Kfi::start("58@kfi", scheme, &book));
        let (memory, events) = serve(&b.node, 64 << 10);
        let to = ProcessId::lnet(b.nid);
        // Small: with the message. Above 4096 bytes: by a window.
        for (i, len) in [0, 1, 40, 4096, 4097, 64 << 10].into_iter().enumerate() {
            let bytes = pattern(len, i);
            let took = block_on(a.node.put_bytes(to, PORTAL, BITS, bytes.clone(), WAIT)).unwrap();
            assert_eq!(took as usize, len);
            let event = events.recv_timeout(WAIT).unwrap();
            assert_eq!((event.kind, event.mlength as usize), (EventKind::Put, len));
            assert_eq!((event.initiator.nid, event.source), (a.nid, a.nid));
            assert_eq!(memory.to_vec()[..len], bytes);
            let got = block_on(a.node.get_bytes(to, PORTAL, BITS, 0, len, WAIT)).unwrap();
            assert_eq!(got, bytes);
            assert_eq!(events.recv_timeout(WAIT).unwrap().kind, EventKind::Get);
        }
        a.at_rest();
        b.at_rest();
    });
}

/// A peer may be quicker than we are: its message is in the endpoint before the node has the interface.
#[test]
fn a_message_that_came_before_the_interface_is_served() {
    on_all("early message", |scheme| {
        for i in 0..20 {
            let (book, place) = (Book::new(), endpoint(scheme, None));
            book.set("58@kfi".parse().unwrap(), &[place.address().to_string()]).unwrap();
            let a = Kfi::start("57@kfi", scheme, &book);
            let (node, to) = (a.node.clone(), ProcessId::lnet("58@kfi".parse().unwrap()));
            let put =
                std::thread::spawn(move || block_on(node.put_bytes(to, PORTAL, BITS, vec![i; 100], WAIT)));
            until("the message waits", || {
                place.progress();
                place.stats().lane.unexpected > 0
            });
            let b = Node::new(NodeParams::default()).unwrap();
            let (memory, _events) = serve(&b, 4096);
            let _b = Kfi::of(b, "58@kfi", vec![place], &book, &KfiParams::default());
            assert_eq!(put.join().unwrap().unwrap(), 100);
            assert_eq!(memory.to_vec()[..100], [i; 100]);
        }
    });
}

#[test]
fn one_message_and_one_read_move_a_mebibyte() {
    on_all("1 MiB", |scheme| {
        let book = Book::new();
        let (a, b) = (Kfi::start("57@kfi", scheme, &book), Kfi::start("58@kfi", scheme, &book));
        let (memory, _events) = serve(&b.node, 1 << 20);
        let to = ProcessId::lnet(b.nid);
        let bytes = pattern(1 << 20, 3);
        block_on(a.node.put_bytes(to, PORTAL, BITS, vec![0; 8], WAIT)).unwrap();
        let before = (a.messages(), b.messages());
        block_on(a.node.put_bytes(to, PORTAL, BITS, bytes.clone(), WAIT)).unwrap();
        assert_eq!(memory.to_vec(), bytes);
        // The PUT one way, the ACK the other; the read's notice is no message.
        assert_eq!((a.messages() - before.0, b.messages() - before.1), (1, 1));
        let got = block_on(a.node.get_bytes(to, PORTAL, BITS, 0, 1 << 20, WAIT)).unwrap();
        assert_eq!(got, bytes);
        // The GET one way, the offer of the REPLY the other.
        assert_eq!((a.messages() - before.0, b.messages() - before.1), (2, 2));
        a.at_rest();
        b.at_rest();
    });
}

#[test]
fn what_fits_is_fetched_and_what_matches_nothing_is_not() {
    on_all("truncation", |scheme| {
        let book = Book::new();
        let (a, b) = (Kfi::start("57@kfi", scheme, &book), Kfi::start("58@kfi", scheme, &book));
        let queue = EventQueue::new(64);
        let cut = SharedBytes::zeroed(5000);
        let options = TargetOptions { truncate: true, ..TargetOptions::once(Access::Put) };
        b.node.attach(MeParams::new(PORTAL, 1), cut.memory(), options, &queue.sink()).unwrap();
        let whole = SharedBytes::zeroed(5000);
        b.node
            .attach(MeParams::new(PORTAL, 2), whole.memory(), TargetOptions::once(Access::Put), &queue.sink())
            .unwrap();
        let to = ProcessId::lnet(b.nid);
        let bytes = pattern(9000, 1);
        assert_eq!(block_on(a.node.put_bytes(to, PORTAL, 1, bytes.clone(), WAIT)).unwrap(), 5000);
        let event = queue.recv_timeout(WAIT).unwrap();
        assert_eq!((event.rlength, event.mlength, event.unlinked), (9000, 5000, true));
        assert_eq!(cut.to_vec(), bytes[..5000]);
        // Too long, no truncation; no match; a portal that does not exist: dropped, no ACK, no event, no window left.
        let soon = Duration::from_millis(300);
        for (portal, bits) in [(PORTAL, 2), (PORTAL, 3), (63, 1)] {
            assert!(block_on(a.node.put_bytes(to, portal, bits, bytes.clone(), soon)).is_err());
        }
        let dropped = || b.node.with_engine(|e, _| e.stats().core.drop_count);
        until("all three are dropped", || dropped() >= 3);
        assert!(queue.try_recv().is_none());
        assert_eq!(whole.to_vec(), vec![0; 5000]);
        assert_eq!(dropped(), 3);
        // A GET whose sink is shorter than what the target has.
        let source = SharedBytes::new(pattern(20_000, 5));
        b.node
            .attach(MeParams::new(PORTAL, 4), source.memory(), TargetOptions::new(Access::Get), &queue.sink())
            .unwrap();
        let options = TargetOptions { truncate: true, ..TargetOptions::new(Access::Get) };
        b.node.attach(MeParams::new(PORTAL, 5), source.memory(), options, &queue.sink()).unwrap();
        let got = block_on(a.node.get_bytes(to, PORTAL, 5, 0, 30_000, WAIT)).unwrap();
        assert_eq!(got, source.to_vec());
        let part = block_on(a.node.get_bytes(to, PORTAL, 4, 0, 7000, WAIT)).unwrap();
        assert_eq!(part, source.to_vec()[..7000]);
        a.at_rest();
        b.at_rest();
    });
}

#[test]
fn a_put_waits_at_a_lazy_portal_without_its_payload() {
    on_all("lazy", |scheme| {
        let book = Book::new();
        let (a, b) = (Kfi::start("57@kfi", scheme, &book), Kfi::start("58@kfi", scheme, &book));
        b.node.set_lazy(PORTAL, true).unwrap();
        let bytes = pattern(1 << 20, 9);
        let (to, node, sent) = (ProcessId::lnet(b.nid), a.node.clone(), bytes.clone());
        let put = std::thread::spawn(move || block_on(node.put_bytes(to, PORTAL, BITS, sent, WAIT)));
        until("it waits", || b.node.with_engine(|e, _| e.stats().core.parked) == 1);
        assert_eq!(b.node.with_engine(|e, _| e.stats().core.parked_bytes), 0);
        assert_eq!(a.endpoint.stats().lane.windows, 1);
        let (memory, _events) = serve(&b.node, 1 << 20);
        assert_eq!(put.join().unwrap().unwrap(), 1 << 20);
        assert_eq!(memory.to_vec(), bytes);
        a.at_rest();
        b.at_rest();
        // And dropped when the portal stops being lazy: the window closes all the same.
        let (node, bits) = (a.node.clone(), BITS + 1);
        let put = std::thread::spawn(move || {
            block_on(node.put_bytes(to, PORTAL, bits, vec![1; 9000], Duration::from_secs(1)))
        });
        until("it waits", || b.node.with_engine(|e, _| e.stats().core.parked) == 1);
        b.node.set_lazy(PORTAL, false).unwrap();
        assert!(put.join().unwrap().is_err());
        a.at_rest();
        b.at_rest();
    });
}

#[test]
fn two_hundred_at_once() {
    on_all("200 at once", |scheme| {
        let book = Book::new();
        let (a, b) = (Kfi::start("57@kfi", scheme, &book), Kfi::start("58@kfi", scheme, &book));
        let to = ProcessId::lnet(b.nid);
        let queue = EventQueue::new(1024);
        let len = |i: usize| [64, 4096, 5000, 100_000, 300_000][i % 5];
        let memory: Vec<SharedBytes> = (0..200).map(|i| SharedBytes::zeroed(len(i))).collect();
        for (i, m) in memory.iter().enumerate() {
            let options = TargetOptions { manage_remote: true, ..TargetOptions::new(Access::PutGet) };
            b.node.attach(MeParams::new(PORTAL, i as u64), m.memory(), options, &queue.sink()).unwrap();
        }
        std::thread::scope(|s| {
            for i in 0..200 {
                let node = &a.node;
                s.spawn(move || {
                    let bytes = pattern(len(i), i);
                    let took = block_on(node.put_bytes(to, PORTAL, i as u64, bytes.clone(), WAIT)).unwrap();
                    assert_eq!(took as usize, len(i));
                    let got = block_on(node.get_bytes(to, PORTAL, i as u64, 0, len(i), WAIT)).unwrap();
                    assert!(got == bytes, "{i}");
                });
            }
        });
        for (i, m) in memory.iter().enumerate() {
            assert!(m.to_vec() == pattern(len(i), i), "{i}");
        }
        a.at_rest();
        b.at_rest();
        let peer = a.node.with_engine(|e, _| e.peer(b.nid)).unwrap();
        let ni = &peer.interfaces[0];
        assert_eq!((ni.credits, ni.max_credits), (16, 16));
        assert!(ni.min_credits < 0, "{ni:?}");
    });
}

#[test]
fn several_lanes_and_buffers_of_the_endpoints_own() {
    on_all("lanes", |scheme| {
        let book = Book::new();
        let params = KfiParams::default();
        let a = Kfi::with_lanes("57@kfi", scheme, &book, 3, &params);
        let b = Kfi::with_lanes("58@kfi1", scheme, &book, 2, &params);
        // Another network: no way there, said at once and not by a timeout.
        assert!(block_on(a.node.ping(b.nid, WAIT)).is_err());
        let c = Kfi::with_lanes("59@kfi", scheme, &book, 2, &params);
        let (memory, _events) = serve(&c.node, 1 << 20);
        let mut own = a.endpoint.buffer(1 << 20).unwrap();
        own.get_mut().unwrap().copy_from_slice(&pattern(1 << 20, 2));
        let queue = EventQueue::new(8);
        let source = SharedBytes::from_buffer(own);
        let md = a.node.bind(source.memory(), SourceOptions::once(2), &queue.sink()).unwrap();
        let target = ProcessId::lnet(c.nid);
        let put = PutParams { target, portal: PORTAL, match_bits: BITS, offset: 0, hdr_data: 0, ack: true };
        a.node.put(md, put, Some(WAIT)).unwrap();
        let kinds: Vec<EventKind> = (0..2).map(|_| queue.recv_timeout(WAIT).unwrap().kind).collect();
        assert!(kinds.contains(&EventKind::Send) && kinds.contains(&EventKind::Ack), "{kinds:?}");
        assert_eq!(memory.to_vec(), pattern(1 << 20, 2));
        assert_eq!(source.to_vec(), pattern(1 << 20, 2));
    });
}

#[test]
fn nobody_there_is_said_soon() {
    on_all("nobody", |scheme| {
        let book = Book::new();
        let soon = endpoint_with(scheme, None, kfab::Progress::Inline, Duration::from_secs(2));
        let a = Kfi::on("57@kfi", vec![soon], &book, NodeParams::default(), &KfiParams::default());
        let unknown = block_on(a.node.ping("99@kfi".parse().unwrap(), WAIT)).unwrap_err();
        assert_eq!(unknown.kind(), lnet_shim::ErrorKind::Unreachable);
        let nowhere = endpoint(scheme, None).address().to_string();
        book.set("98@kfi".parse().unwrap(), &[nowhere]).unwrap();
        let gone = block_on(a.node.ping("98@kfi".parse().unwrap(), WAIT)).unwrap_err();
        assert_eq!(gone.kind(), lnet_shim::ErrorKind::Unreachable);
        a.at_rest();
    });
}

#[test]
fn of_two_networks_the_better_is_taken_and_the_other_when_it_fails() {
    on_all("two networks", |scheme| {
        let book = Book::new();
        let params = NodeParams { fail_on_peer_lost: true, ..quick() };
        let ip =
            |host: u8| if scheme == "shm" { format!("127.0.13.{host}") } else { format!("127.0.14.{host}") };
        let both = |nid: &str, host: u8| {
            let kfi = Kfi::with_params(nid, scheme, &book, params.clone());
            let tcp: lnet_shim::nid::Nid = format!("{}@tcp", ip(host)).parse().unwrap();
            kfi.node.add_tcp(NiConfig::new(tcp), lnet_shim::tcp::TcpParams::unprivileged(19_901)).unwrap();
            (kfi, tcp)
        };
        let ((a, a_tcp), (b, b_tcp)) = (both("57@kfi", 1), both("58@kfi", 2));
        let (memory, _events) = serve(&b.node, 1 << 20);
        // Asked by tcp, found to have kfi as well, and reached by that.
        let peer = block_on(a.node.discover(b_tcp, false)).unwrap();
        assert_eq!((peer.primary, peer.interfaces.len()), (b.nid, 2));
        let sent =
            |local| a.node.with_engine(|e, _| e.nis().into_iter().find(|n| n.nid == local).unwrap().sent.put);
        let before = (sent(a.nid), sent(a_tcp));
        for i in 0..20 {
            let bytes = pattern(10_000, i);
            block_on(a.node.put_bytes(ProcessId::lnet(b_tcp), PORTAL, BITS, bytes.clone(), WAIT)).unwrap();
            assert_eq!(memory.to_vec()[..10_000], bytes);
        }
        assert_eq!((sent(a.nid) - before.0, sent(a_tcp) - before.1), (20, 0));
        // kfi drops what is sent: sent again by tcp, and by tcp at once from then on.
        let mut rule = FaultRule::all(FaultAction::Fail(Failure::RemoteDropped));
        rule.dst = Some("*@kfi".parse().unwrap());
        let rule = a.node.with_engine(|e, _| e.add_fault(rule)).unwrap();
        for i in 0..20 {
            let bytes = pattern(10_000, i + 20);
            block_on(a.node.put_bytes(ProcessId::lnet(b.nid), PORTAL, BITS, bytes.clone(), WAIT)).unwrap();
            assert_eq!(memory.to_vec()[..10_000], bytes);
        }
        assert_eq!(sent(a_tcp) - before.1, 20);
        assert!(a.node.with_engine(|e, _| e.stats().resends) < 20);
        // It works again: pings bring its health back, and it is taken.
        a.node.with_engine(|e, _| e.remove_faults(Some(rule)));
        until("kfi is well", || {
            a.node.with_engine(|e, _| e.peer(b.nid)).unwrap().interfaces.iter().all(|i| i.health == 1000)
        });
        block_on(a.node.put_bytes(ProcessId::lnet(b.nid), PORTAL, BITS, pattern(9, 9), WAIT)).unwrap();
        assert_eq!(sent(a_tcp) - before.1, 20);
        // Its kfi interface goes altogether, and it says so by tcp.
        let Kfi { node: b_node, nid: b_nid, endpoint } = b;
        drop(endpoint);
        b_node.remove_network(b_nid).unwrap();
        until("it is known", || a.node.with_engine(|e, _| e.peer(b_tcp)).unwrap().interfaces.len() == 1);
        for i in 0..20 {
            let bytes = pattern(10_000, i + 50);
            block_on(a.node.put_bytes(ProcessId::lnet(b_tcp), PORTAL, BITS, bytes.clone(), WAIT)).unwrap();
            assert_eq!(memory.to_vec()[..10_000], bytes);
        }
        assert!(sent(a_tcp) - before.1 >= 40);
    });
}

/// The tag of kfi's messages.
const TAG: u64 = 0x6b66_696c_6e65_7401;

/// A PUT as a stranger would make it.
fn put_header(src: &str, dest: &str, bits: u64, payload_len: u32) -> LnetHeader {
    let id = |text: &str| ProcessId::lnet(text.parse().unwrap());
    let handle = WireHandle::NONE;
    let body = Body::Put { handle, match_bits: bits, hdr_data: 0, portal: PORTAL, offset: 0 };
    LnetHeader { dest: id(dest), src: id(src), payload_len, body }
}

#[test]
fn a_stranger_breaks_nothing() {
    on_all("stranger", |scheme| {
        let book = Book::new();
        let a = Kfi::start("57@kfi", scheme, &book);
        let params = KfiParams { max_offers: 4, ..KfiParams::default() };
        let b = Kfi::with_lanes("58@kfi", scheme, &book, 1, &params);
        b.node.set_lazy(PORTAL, true).unwrap();
        let stranger = endpoint_with(scheme, None, kfab::Progress::Helper, WAIT);
        let peer = stranger.peer(&b.endpoint.address().to_string()).unwrap();
        let say = |bytes: &[u8]| peer.send_tagged(TAG, bytes).wait_timeout(WAIT).unwrap();
        for len in 0..100 {
            say(&pattern(len, 7));
            say(&[&[1, 2, 0, 0][..], &vec![0; len]].concat());
        }
        // For another; in the name of the node itself.
        say(&Frame::Immediate(put_header("99@kfi", "60@kfi", 1, 1), b"x").encode());
        say(&Frame::Immediate(put_header("58@kfi", "58@kfi", 1, 1), b"x").encode());
        until("all is read", || b.endpoint.stats().lane.totals.rx_messages >= 202);
        assert_eq!(b.node.with_engine(|e, _| e.stats().received.put), 0);
        // A key that is none, and one of another length than the message says.
        let window = stranger.window_of(vec![1; 100].into()).unwrap();
        let key = window.key().to_bytes();
        let offer = |bits, len, key: &[u8]| {
            say(&Frame::Offer(put_header("99@kfi", "58@kfi", bits, len), key).encode());
        };
        offer(1, 100, &key[1..]);
        offer(1, 101, &key);
        // A second name for the same peer; then more offers than one may have.
        say(&Frame::Immediate(put_header("98@kfi", "58@kfi", 1, 1), b"x").encode());
        (3..9).for_each(|bits| offer(bits, 100, &key));
        let told = || window.notice().wait_timeout(WAIT).map(|n| (Outcome::from_value(n.value()), n.bytes()));
        let told = [told().unwrap(), told().unwrap(), told().unwrap()];
        assert_eq!(told, [(Outcome::Failed, 0), (Outcome::Busy, 0), (Outcome::Busy, 0)]);
        // The stranger's window closes while its offers wait: the fetch fails, and is an event that says so.
        drop(window);
        let queue = EventQueue::new(8);
        let memory = SharedBytes::zeroed(100);
        b.node
            .attach(
                MeParams::new(PORTAL, 3),
                memory.memory(),
                TargetOptions::once(Access::Put),
                &queue.sink(),
            )
            .unwrap();
        let event = queue.recv_timeout(WAIT).unwrap();
        assert_eq!((event.status.is_ok(), event.mlength, event.unlinked), (false, 0, true));
        // It dies with three offers waiting: they are forgotten.
        assert_eq!(b.node.with_engine(|e, _| e.stats().core.parked), 3);
        drop(stranger);
        until("its offers are gone", || b.node.with_engine(|e, _| e.stats().core.parked) == 0);
        block_on(a.node.ping(b.nid, WAIT)).unwrap();
        b.at_rest();
    });
}

/// A question whose asker dies is answered to nobody: to wait for a successor would take the endpoint's `peer_timeout`, and it has not
/// asked. One that asks is answered.
#[test]
fn answers_to_the_dead_end_and_their_successors_are_answered() {
    on_all("answers to the dead", |scheme| {
        let book = Book::new();
        let at = endpoint_with(scheme, None, kfab::Progress::Inline, WAIT * 4);
        let b = Kfi::on("58@kfi", vec![at], &book, NodeParams::default(), &KfiParams::default());
        let (_memory, events) = serve(&b.node, 64);
        let late = FaultRule {
            src: None,
            dst: None,
            local: None,
            portal: None,
            kind: Some(MsgType::Ack),
            frequency: Frequency::Always,
            action: FaultAction::Delay(Duration::from_secs(1)),
        };
        b.node.with_engine(|e, _| e.add_fault(late)).unwrap();
        let handle = WireHandle::new(1, 4);
        let body = Body::Put { handle, match_bits: BITS, hdr_data: 0, portal: PORTAL, offset: 0 };
        let put =
            Frame::Immediate(LnetHeader { body, ..put_header("99@kfi", "58@kfi", BITS, 1) }, b"x").encode();
        let asker = || {
            let asker = endpoint_with(scheme, None, kfab::Progress::Helper, WAIT);
            book.set("99@kfi".parse().unwrap(), &[asker.address().to_string()]).unwrap();
            let peer = asker.peer(&b.endpoint.address().to_string()).unwrap();
            peer.send_tagged(TAG, &put[..]).wait_timeout(WAIT).unwrap();
            events.recv_timeout(WAIT).unwrap();
            asker
        };
        drop(asker());
        b.at_rest();
        let answer = asker().recv_tagged(TAG, 0).wait_timeout(WAIT).unwrap();
        let Ok(Frame::Immediate(header, _)) = Frame::decode(&answer) else { panic!("{answer:?}") };
        assert!(matches!(header.body, Body::Ack { .. }), "{header:?}");
        b.at_rest();
    });
}

#[test]
fn a_fetch_that_fails_is_told_to_the_windows_owner() {
    on_all("failed fetch", |scheme| {
        let book = Book::new();
        let b = Kfi::start("58@kfi", scheme, &book);
        let (_memory, events) = serve(&b.node, 9000);
        let owner = endpoint_with(scheme, None, kfab::Progress::Helper, WAIT);
        let peer = owner.peer(&b.endpoint.address().to_string()).unwrap();
        // More than the window has, as the message and its key say.
        let window = owner.window_of(vec![1; 5000].into()).unwrap();
        let mut key = window.key().to_bytes();
        key[24..32].copy_from_slice(&9000u64.to_le_bytes());
        assert_eq!(kfab::WindowKey::from_bytes(&key).unwrap().len(), 9000);
        let offer = Frame::Offer(put_header("99@kfi", "58@kfi", BITS, 9000), &key).encode();
        peer.send_tagged(TAG, &offer[..]).wait_timeout(WAIT).unwrap();
        let notice = window.notice().wait_timeout(WAIT).unwrap();
        assert_eq!((Outcome::from_value(notice.value()), notice.bytes()), (Outcome::Failed, 0));
        let event = events.recv_timeout(WAIT).unwrap();
        assert_eq!((event.status.is_ok(), event.mlength), (false, 0));
        b.at_rest();
    });
}

#[test]
fn an_offer_that_nobody_takes_ends_in_time_and_reads_take_turns() {
    on_all("turns", |scheme| {
        let book = Book::new();
        let quick = KfiParams { bulk_timeout: Duration::from_millis(300), ..KfiParams::default() };
        let a = Kfi::with_lanes("57@kfi", scheme, &book, 1, &quick);
        let b =
            Kfi::with_lanes("58@kfi", scheme, &book, 1, &KfiParams { max_reads: 1, ..KfiParams::default() });
        b.node.set_lazy(PORTAL, true).unwrap();
        let to = ProcessId::lnet(b.nid);
        let late = block_on(a.node.put_bytes(to, PORTAL, 99, vec![1; 9000], WAIT)).unwrap_err();
        assert_eq!(late.kind(), lnet_shim::ErrorKind::TimedOut);
        a.at_rest();
        let c = Kfi::start("59@kfi", scheme, &book);
        let (_memory, _events) = serve(&b.node, 300_000);
        std::thread::scope(|s| {
            for i in 0..20 {
                let node = &c.node;
                s.spawn(move || {
                    let bytes = pattern(300_000, i);
                    assert_eq!(block_on(node.put_bytes(to, PORTAL, BITS, bytes, WAIT)).unwrap(), 300_000);
                });
            }
        });
        c.at_rest();
        b.at_rest();
    });
}

/// Our own NID is in no book here, as with the command line: the pings that bring an interface's health back need none.
#[test]
fn an_interface_that_failed_recovers_by_itself() {
    on_all("own health", |scheme| {
        let book = Book::new();
        let (a, b) =
            (Kfi::with_params("57@kfi", scheme, &book, quick()), Kfi::start("58@kfi", scheme, &book));
        assert!(book.remove(a.nid));
        block_on(a.node.discover(b.nid, false)).unwrap();
        let fails = FaultRule::all(FaultAction::Fail(Failure::LocalError));
        a.node.with_engine(|e, _| e.add_fault(fails)).unwrap();
        for _ in 0..3 {
            assert!(block_on(a.node.ping(b.nid, WAIT)).is_err());
        }
        assert!(a.node.with_engine(|e, _| e.nis()[0].health) <= 700);
        a.node.with_engine(|e, _| e.remove_faults(None));
        let health = || a.node.with_engine(|e, _| e.nis()[0].health);
        // Pings that fail meanwhile make the pauses longer; 0.2 s, 0.4 s, 0.8 s, 1.6 s at most for so few.
        until_or("health is back", || health() == 1000, || a.report());
        let peers = a.node.with_engine(|e, _| e.peers());
        assert_eq!(peers.iter().map(|p| p.primary).collect::<Vec<_>>(), [b.nid], "we are no peer of ours");
        a.at_rest();
    });
}

/// What the kernel says of the thread with this name.
fn cpus_of(thread: &str) -> Option<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let named = |at: &std::path::PathBuf| {
        std::fs::read_to_string(at.join("comm")).is_ok_and(|comm| comm.trim_end() == thread)
    };
    let status = std::fs::read_to_string(tasks.map(|t| t.path()).find(named)?.join("status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?;
    Some(line.trim().to_owned())
}

/// Each lane's thread runs on its partition and nowhere else, which the node reports.
#[test]
fn lanes_run_on_their_partitions() {
    on_all("partitions", |scheme| {
        let usable: Vec<u32> = Topology::discover().usable.iter().collect();
        let cpus = [usable[0], *usable.last().unwrap()];
        let of = |(index, cpu): (usize, &u32)| {
            let (cpus, devices) = (CpuSet::from_iter([*cpu]), vec![]);
            Partition { index, cpus, node: None, memory_node: None, devices }
        };
        let partitions = cpus.iter().enumerate().map(of).collect();
        let params = KfiParams { partitions, ..KfiParams::default() };
        let book = Book::new();
        let (a, b) =
            (Kfi::with_lanes("71@kfi", scheme, &book, 3, &params), Kfi::start("72@kfi", scheme, &book));
        for (lane, cpu) in cpus.iter().enumerate() {
            assert_eq!(cpus_of(&format!("lnet-71@kfi-{lane}")), Some(cpu.to_string()));
        }
        let all = cpus_of("lnet-71@kfi-2");
        assert_eq!(all, cpus_of("lnet-72@kfi-0"), "a lane without one runs anywhere");
        let said: Vec<String> = a.node.placement(a.nid).iter().map(ToString::to_string).collect();
        let want = [0, 1].map(|lane| format!("lane {lane}: CPU {}", cpus[lane]));
        assert_eq!(said, want);
        assert!(b.node.placement(b.nid).is_empty());
        // What cannot be had is said, and the lane runs all the same.
        let nowhere = Partition {
            index: 0,
            cpus: CpuSet::from_iter([4000]),
            node: None,
            memory_node: None,
            devices: vec![],
        };
        let params = KfiParams { partitions: vec![nowhere], ..KfiParams::default() };
        let c = Kfi::with_lanes("73@kfi", scheme, &book, 1, &params);
        let said = &c.node.placement(c.nid)[0];
        assert!(!said.is_met() && said.to_string().contains("CPU 4000 asked"), "{said}");
        block_on(b.node.ping(c.nid, WAIT)).unwrap();
        block_on(b.node.ping(a.nid, WAIT)).unwrap();
    });
}
