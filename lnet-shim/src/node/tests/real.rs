//! Nodes with sockets and threads, on loopback addresses.
use super::*;
use crate::network::ConnectionInfo;
use crate::tcp::TcpParams;
use futures_lite::future::block_on;

fn node(nids: &[&str], params: &TcpParams) -> Node {
    let node = Node::new(NodeParams::default()).unwrap();
    for n in nids {
        node.add_tcp(NiConfig::new(nid(n)), params.clone()).unwrap();
    }
    node
}

const WAIT: Duration = Duration::from_secs(20);

#[test]
fn nodes_ping_discover_push_put_and_get() {
    let mut params = TcpParams::unprivileged(19881);
    params.zero_copy_min = Some(16 << 10);
    let a = node(&["127.0.1.1@tcp", "127.0.1.2@tcp"], &params);
    let b = node(&["127.0.1.3@tcp", "127.0.1.4@tcp"], &params);
    let (b1, b2) = (nid("127.0.1.3@tcp"), nid("127.0.1.4@tcp"));
    let report = block_on(a.ping(b1, WAIT)).unwrap();
    assert_eq!(report.info.entries().iter().map(|e| e.nid).collect::<Vec<_>>(), [b1, b2]);
    let info = block_on(a.discover(b2, false)).unwrap();
    assert_eq!((info.primary, info.multi_rail, info.interfaces.len()), (b1, true, 2));
    let queue = EventQueue::new(1000);
    let memory = SharedBytes::zeroed(1 << 20);
    let entry = MeParams { unlink: Unlink::Retain, ..MeParams::new(9, 7) };
    let options = TargetOptions { manage_remote: true, ..TargetOptions::new(Access::PutGet) };
    b.attach(entry, memory.memory(), options, &queue.sink()).unwrap();
    let target = ProcessId::lnet(b1);
    for len in [0usize, 1, 5000, 1 << 20] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + len) as u8).collect();
        assert_eq!(block_on(a.put_bytes(target, 9, 7, bytes.clone(), WAIT)).unwrap(), len as u32);
        assert_eq!(block_on(a.get_bytes(target, 9, 7, 0, len, WAIT)).unwrap(), bytes);
        let event = queue.recv_timeout(WAIT).unwrap();
        assert_eq!((event.kind, event.mlength), (EventKind::Put, len as u32));
        assert_eq!(queue.recv_timeout(WAIT).unwrap().kind, EventKind::Get);
    }
    assert_eq!(
        block_on(a.get_bytes(target, 9, 8, 0, 4, Duration::from_millis(300))).unwrap_err().kind(),
        crate::ErrorKind::TimedOut
    );
    assert!(a.connections().len() >= 3);
}

/// What cannot begin leaves no descriptor behind.
#[test]
fn an_operation_that_does_not_begin_keeps_nothing() {
    let a = node(&["127.0.3.9@tcp"], &TcpParams::unprivileged(19884));
    let before = a.objects();
    let target = ProcessId::lnet(nid("127.0.3.9@tcp"));
    for _ in 0..3 {
        assert!(block_on(a.put_bytes(target, 64, 7, vec![1], WAIT)).is_err());
        assert!(block_on(a.get_bytes(target, 64, 7, 0, 1, WAIT)).is_err());
    }
    assert_eq!(a.objects(), before);
}

/// What is added twice is refused, and the interface that there is goes on as it was.
#[test]
fn an_interface_is_not_replaced_by_another_of_its_name() {
    let a = node(&["127.0.3.3@tcp"], &TcpParams::unprivileged(19882));
    let _b = node(&["127.0.3.4@tcp"], &TcpParams::unprivileged(19882));
    let again = a.add_tcp(NiConfig::new(nid("127.0.3.3@tcp")), TcpParams::unprivileged(19883)).unwrap_err();
    assert_eq!(again.kind(), crate::ErrorKind::Exists);
    block_on(a.ping(nid("127.0.3.4@tcp"), WAIT)).unwrap();
}

/// One port for what is small, one for bulk.
#[test]
fn bulk_has_a_port_of_its_own() {
    let params = TcpParams { bulk_port: 19899, ..TcpParams::unprivileged(19898) };
    let (a, b) = (node(&["127.0.5.1@tcp"], &params), node(&["127.0.5.2@tcp"], &params));
    let queue = EventQueue::new(16);
    let memory = SharedBytes::zeroed(1 << 20);
    b.attach(MeParams::new(9, 7), memory.memory(), TargetOptions::new(Access::Put), &queue.sink()).unwrap();
    let target = ProcessId::lnet(nid("127.0.5.2@tcp"));
    let bytes = vec![7; 1 << 20];
    assert_eq!(block_on(a.put_bytes(target, 9, 7, bytes.clone(), WAIT)).unwrap(), 1 << 20);
    assert_eq!(memory.to_vec(), bytes);
    let start = std::time::Instant::now();
    let dialled = || {
        let of = |c: &ConnectionInfo| (c.kind.clone(), c.remote.rsplit(':').next().unwrap().to_owned());
        a.connections().iter().map(of).collect::<Vec<_>>()
    };
    while dialled().len() < 3 {
        assert!(start.elapsed() < WAIT, "{:?}", dialled());
        std::thread::sleep(Duration::from_millis(20));
    }
    let want = [("BulkIn", "19899"), ("BulkOut", "19899"), ("Control", "19898")];
    assert_eq!(dialled(), want.map(|(kind, port)| (kind.to_owned(), port.to_owned())));
}

#[test]
fn privileged_nodes_dial_and_a_killed_one_is_an_error() {
    // Needs the right to bind low ports: without it, the words must say so.
    let params = TcpParams { port: 989, bulk_port: 989, ..TcpParams::default() };
    let a = Node::new(NodeParams { fail_on_peer_lost: true, ..NodeParams::default() }).unwrap();
    if let Err(e) = a.add_tcp(NiConfig::new(nid("127.0.2.1@tcp")), params.clone()) {
        assert!(e.to_string().contains("CAP_NET_BIND_SERVICE"), "{e}");
        return;
    }
    let b = node(&["127.0.2.2@tcp"], &params);
    let b1 = nid("127.0.2.2@tcp");
    assert!(block_on(a.discover(b1, false)).is_ok());
    assert!(a.connections().iter().all(|c| c.peer == ProcessId::lnet(b1)));
    b.set_lazy(9, true).unwrap();
    let waiting = a.clone();
    let put = std::thread::spawn(move || {
        block_on(waiting.put_bytes(ProcessId::lnet(b1), 9, 7, b"never".to_vec(), WAIT))
    });
    std::thread::sleep(Duration::from_millis(300));
    drop(b);
    assert_eq!(put.join().unwrap().unwrap_err().kind(), crate::ErrorKind::Unreachable);
    assert!(block_on(a.ping(b1, WAIT)).is_err());
    // Restarted, it is reached again once the pause is over.
    let _b = node(&["127.0.2.2@tcp"], &params);
    let again = (0..40).any(|_| {
        std::thread::sleep(Duration::from_millis(250));
        block_on(a.ping(b1, WAIT)).is_ok()
    });
    assert!(again);
}

#[test]
fn a_node_that_goes_tells_everyone() {
    let params = TcpParams::unprivileged(19883);
    let (a, b) = (node(&["127.0.4.1@tcp"], &params), node(&["127.0.4.2@tcp"], &params));
    b.set_lazy(9, true).unwrap();
    let queue = EventQueue::new(16);
    let entry = MeParams::new(5, 7);
    a.attach(entry, SharedBytes::zeroed(4).memory(), TargetOptions::new(Access::Put), &queue.sink()).unwrap();
    let md = a.bind(SharedBytes::zeroed(4).memory(), SourceOptions::once(2), &queue.sink()).unwrap();
    let target = ProcessId::lnet(nid("127.0.4.2@tcp"));
    let put = PutParams { target, portal: 9, match_bits: 1, offset: 0, hdr_data: 0, ack: true };
    a.put(md, put, None).unwrap();
    assert_eq!(queue.recv_timeout(WAIT).unwrap().kind, EventKind::Send);
    drop(a);
    let last: Vec<Event> = (0..2).map(|_| queue.recv_timeout(WAIT).unwrap()).collect();
    assert!(last.iter().all(|e| e.unlinked && e.status == Status::Shutdown), "{last:?}");
}

#[test]
fn callbacks_run_one_at_a_time_and_may_call_the_node() {
    let params = TcpParams::unprivileged(19882);
    let (a, b) = (node(&["127.0.3.1@tcp"], &params), node(&["127.0.3.2@tcp"], &params));
    let (inside, seen) = (std::sync::atomic::AtomicU32::new(0), OneShot::default());
    let (done, reply_to, mut count) = (seen.clone(), b.clone(), 0);
    let sink = EventSink::callback(64, move |event| {
        use std::sync::atomic::Ordering::SeqCst;
        assert_eq!(inside.fetch_add(1, SeqCst), 0);
        assert_eq!(event.kind, EventKind::Put);
        assert!(reply_to.primary() == event.target.nid);
        count += 1;
        if count == 50 {
            done.complete(count);
        }
        inside.fetch_sub(1, SeqCst);
    });
    let entry = MeParams { unlink: Unlink::Retain, ..MeParams::new(9, 7) };
    b.set_lazy(9, true).unwrap();
    b.attach(entry, SharedBytes::zeroed(4096).memory(), TargetOptions::new(Access::Put), &sink).unwrap();
    let threads: Vec<_> = (0..5)
        .map(|_| {
            let a = a.clone();
            std::thread::spawn(move || {
                for _ in 0..10 {
                    block_on(a.put_bytes(ProcessId::lnet(nid("127.0.3.2@tcp")), 9, 7, vec![1; 8], WAIT))
                        .unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(seen.wait_timeout(WAIT), Some(50));
}
