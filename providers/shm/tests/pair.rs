//! Two ports in one process: frames, bodies, windows, ends. What needs another process is in `processes.rs`.

mod common;

use common::{Watchdog, frame, open, pump, until};
use kfab_core::auth::FabricKey;
use kfab_core::mem::{Buffer, Landing, Pool};
use kfab_core::spi::{Body, Conn, DownReason, Event, Port, PortConfig, Rights, Rma, RmaStarted, RmaToken};
use kfab_core::{Kind, spi::Inline};

type Pair = (Box<dyn Port>, Conn, Box<dyn Port>, Conn);

fn pair() -> Pair {
    pair_with(&PortConfig::default(), &PortConfig::default()).unwrap()
}

/// Connects two ports; the connector's end if it fails.
fn pair_with(a: &PortConfig, b: &PortConfig) -> Result<Pair, DownReason> {
    let (mut a, mut b) = (open(a), open(b));
    let ca = a.connect(&b.ways()[0]).unwrap();
    let (mut up, mut incoming, mut down) = (false, None, None);
    until("connected", || {
        for e in pump(&mut *a) {
            match e {
                Event::Up { conn } => up = conn == ca,
                Event::Down { reason, .. } => down = Some(reason),
                e => panic!("{e:?}"),
            }
        }
        for e in pump(&mut *b) {
            match e {
                Event::Incoming { conn } => incoming = Some(conn),
                Event::Down { .. } => {}
                e => panic!("{e:?}"),
            }
        }
        (up && incoming.is_some()) || down.is_some()
    });
    match down {
        Some(reason) => {
            assert_eq!(incoming, None, "a refused stranger was announced");
            Err(reason)
        }
        None => Ok((a, ca, b, incoming.unwrap())),
    }
}

#[test]
fn frames_and_bodies_arrive_whole_and_in_order() {
    let _w = Watchdog::start(60);
    let (mut a, ca, mut b, cb) = pair();
    let data: Vec<u8> = (0..65536u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let len = |i: usize| if i.is_multiple_of(3) { i * 7919 % 65537 } else { 0 };
    let (mut sent, mut got) = (0, 0);
    const N: usize = 3000;
    until("all frames", || {
        while sent < N {
            let body = match len(sent) {
                0 => Body::Empty,
                n => Body::Borrowed(&data[65536 - n..]),
            };
            if a.post(ca, &[frame(sent as u64, body)]) == 0 {
                break;
            }
            sent += 1;
        }
        for e in pump(&mut *b) {
            let Event::Frame { conn, header, inline, body_len } = e else { panic!("{e:?}") };
            assert_eq!((conn, header[0], body_len), (cb, got as u8, len(got)));
            assert_eq!(inline.as_slice(), (got as u64).to_le_bytes());
            if body_len > 0 {
                let l = Landing::whole(Buffer::adopt(vec![0; body_len])).unwrap();
                let l = b.take(cb, Some(l)).expect("at once").expect("handed back");
                assert!(l.into_buffer().unwrap()[..] == data[65536 - body_len..], "frame {got}");
            }
            got += 1;
        }
        pump(&mut *a).iter().for_each(|e| assert!(matches!(e, Event::Writable { .. }), "{e:?}"));
        got == N
    });
}

#[test]
fn refused_posts_are_followed_by_writable() {
    let _w = Watchdog::start(60);
    let (mut a, ca, mut b, _) = pair();
    // More than two for each of the ring's 512 lines.
    let frames = vec![frame(1, Body::Empty); 1200];
    let n = a.post(ca, &frames);
    assert!((1..1200).contains(&n), "{n}");
    assert!(pump(&mut *a).is_empty());
    let mut got = 0;
    until("writable", || {
        got += pump(&mut *b).len();
        pump(&mut *a).iter().any(|e| matches!(e, Event::Writable { conn } if *conn == ca))
    });
    assert!(got >= n / 2);
}

#[test]
fn closing_delivers_what_was_posted_then_one_down_each() {
    let _w = Watchdog::start(60);
    let (mut a, ca, mut b, cb) = pair();
    assert_eq!(a.post(ca, &[frame(1, Body::Empty), frame(2, Body::Borrowed(b"body"))]), 2);
    a.close(ca);
    assert_eq!(b.post(cb, &[frame(3, Body::Empty)]), 1);
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    until("both down", || {
        for e in pump(&mut *b) {
            match e {
                Event::Frame { header, body_len, .. } => {
                    at_b.push(format!("frame {} {body_len}", header[0]));
                    if body_len > 0 {
                        b.take(cb, None);
                    }
                }
                Event::Down { reason, .. } => at_b.push(format!("{reason:?}")),
                e => panic!("{e:?}"),
            }
        }
        for e in pump(&mut *a) {
            match e {
                Event::Frame { header, .. } => at_a.push(format!("frame {}", header[0])),
                Event::Down { reason, .. } => at_a.push(format!("{reason:?}")),
                e => panic!("{e:?}"),
            }
        }
        at_a.last().is_some_and(|s| s == "Closed") && at_b.last().is_some_and(|s| s == "Closed")
    });
    assert_eq!(at_b, ["frame 1 0", "frame 2 4", "Closed"]);
    assert_eq!(at_a, ["frame 3", "Closed"]);
    assert_eq!(a.post(ca, &[frame(4, Body::Empty)]), 0, "refused, not dropped: nobody keeps it");
}

#[test]
fn dropping_a_port_closes_its_connections() {
    let _w = Watchdog::start(60);
    let (mut a, ca, b, _) = pair();
    drop(b);
    let mut downs = Vec::new();
    until("down", || {
        downs.extend(pump(&mut *a));
        !downs.is_empty()
    });
    assert!(
        matches!(&downs[..], [Event::Down { conn, reason: DownReason::Closed, .. }] if *conn == ca),
        "{downs:?}"
    );
}

#[test]
fn keys_let_in_and_keep_out() {
    let _w = Watchdog::start(60);
    let (k, other) = (FabricKey::generate().unwrap(), FabricKey::generate().unwrap());
    let with = |k: Option<&FabricKey>| PortConfig { key: k.cloned(), ..PortConfig::default() };
    assert!(pair_with(&with(Some(&k)), &with(Some(&k))).is_ok());
    for (client, server) in [(Some(&k), Some(&other)), (None, Some(&k)), (Some(&k), None)] {
        assert_eq!(pair_with(&with(client), &with(server)).err(), Some(DownReason::Denied));
    }
}

#[test]
fn wrong_ways_are_errors_by_kind() {
    let _w = Watchdog::start(60);
    let mut a = open(&PortConfig::default());
    let mut way = a.ways()[0].clone();
    way.rest = "nobody.here@00000000".to_owned();
    assert_eq!(a.connect(&way).unwrap_err().kind(), Kind::Unreachable);
    way.rest = "nobody here".to_owned();
    assert_eq!(a.connect(&way).unwrap_err().kind(), Kind::InvalidArgument);
    way = a.ways()[0].clone();
    way.rest = way.rest.replace("kfab.", "nokfab.");
    let c = a.connect(&way).unwrap();
    let mut events = Vec::new();
    until("refused", || {
        events.extend(pump(&mut *a));
        !events.is_empty()
    });
    assert!(
        matches!(&events[..], [Event::Down { conn, reason: DownReason::Refused, .. }] if *conn == c),
        "{events:?}"
    );
}

#[test]
fn a_name_in_use_is_an_error_and_is_free_after_drop() {
    let _w = Watchdog::start(60);
    let config =
        PortConfig { listen: Some(format!("kfab-test.{}", std::process::id())), ..PortConfig::default() };
    let a = open(&config);
    let e = common::try_open(&config).err().expect("a second listener");
    assert_eq!(e.kind(), Kind::AddressInUse);
    drop(a);
    open(&config);
}

/// Runs a one-sided operation to its end.
fn rma(a: &mut dyn Port, b: &mut dyn Port, conn: Conn, op: Rma) -> Result<Option<Landing>, Kind> {
    match a.rma(conn, op, RmaToken(7)) {
        RmaStarted::Done(l) => Ok(l),
        RmaStarted::Failed(_, e) => Err(e.kind()),
        RmaStarted::Pending => {
            let mut done = None;
            until("the operation", || {
                pump(b);
                for e in pump(a) {
                    let Event::RmaDone { token, landing, result } = e else { panic!("{e:?}") };
                    assert_eq!(token, RmaToken(7));
                    done = Some(result.map(|()| landing).map_err(|e| e.kind()));
                }
                done.is_some()
            });
            done.unwrap()
        }
    }
}

fn landing(len: usize) -> Landing {
    Landing::whole(Buffer::adopt(vec![0; len])).unwrap()
}

fn bytes(r: Result<Option<Landing>, Kind>) -> Vec<u8> {
    r.unwrap().unwrap().into_buffer().unwrap().to_vec()
}

#[test]
fn windows_are_read_and_written_within_rights_and_range() {
    let _w = Watchdog::start(60);
    let (mut a, ca, mut b, _) = pair();
    let pool = Pool::new(Default::default());
    let _shift = pool.alloc_window(300).unwrap();
    let w = pool.alloc_window(4096).unwrap();
    w.write(0, b"0123456789");
    let x = b.expose(&w.as_source(), Rights::READ | Rights::WRITE).unwrap();
    assert!(!a.write_now(ca, &x.key, 100, b"early"), "nothing is mapped yet");
    let read = |offset, len| Rma::Read { landing: landing(len), key: x.key, offset };
    assert_eq!(bytes(rma(&mut *a, &mut *b, ca, read(3, 4))), b"3456");
    assert!(matches!(a.rma(ca, read(0, 10), RmaToken(1)), RmaStarted::Done(_)), "mapped once");
    assert!(a.write_now(ca, &x.key, 4088, b"lastbyte") && a.write_now(ca, &x.key, 20, b"five!"));
    let source = Buffer::adopt(vec![9; 50]).as_source();
    rma(&mut *a, &mut *b, ca, Rma::Write { source, key: x.key, offset: 1000 }).unwrap();
    let mut all = vec![0; 4096];
    w.read(0, &mut all);
    assert_eq!(
        (&all[4088..], &all[20..25], &all[999..1051]),
        (&b"lastbyte"[..], &b"five!"[..], &[&[0][..], &[9; 50], &[0]].concat()[..])
    );
    for offset in [4089, 4097, u64::MAX, u64::MAX - 7] {
        assert!(!a.write_now(ca, &x.key, offset, &[1; 8]));
        let write = Rma::Write { source: Buffer::adopt(vec![1; 8]).as_source(), key: x.key, offset };
        assert_eq!(rma(&mut *a, &mut *b, ca, write).unwrap_err(), Kind::InvalidArgument);
        assert_eq!(rma(&mut *a, &mut *b, ca, read(offset, 8)).unwrap_err(), Kind::InvalidArgument);
    }
    for key in [
        kfab_core::spi::RemoteKey { secret: x.key.secret ^ 1, ..x.key },
        kfab_core::spi::RemoteKey { secret: 0, ..x.key },
        kfab_core::spi::RemoteKey { secret: 0, region: 77, base: 0 },
        kfab_core::spi::RemoteKey { region: 1 << 40, ..x.key },
    ] {
        assert!(!a.write_now(ca, &key, 0, &[1; 8]));
        let write = Rma::Write { source: Buffer::adopt(vec![1; 8]).as_source(), key, offset: 0 };
        assert_eq!(rma(&mut *a, &mut *b, ca, write).unwrap_err(), Kind::AccessDenied);
    }
    b.revoke(x);
    assert!(!a.write_now(ca, &x.key, 0, &[1; 8]));
    let write = Rma::Write { source: Buffer::adopt(vec![1; 8]).as_source(), key: x.key, offset: 0 };
    assert_eq!(rma(&mut *a, &mut *b, ca, write).unwrap_err(), Kind::AccessDenied);
    assert_eq!(rma(&mut *a, &mut *b, ca, read(0, 8)).unwrap_err(), Kind::AccessDenied);
}

#[test]
fn a_window_to_read_cannot_be_written() {
    let _w = Watchdog::start(60);
    let (mut a, ca, mut b, _) = pair();
    let pool = Pool::new(Default::default());
    let buffer = pool.copy_from(b"read me").unwrap();
    assert!(b.expose(&buffer.as_source(), Rights::WRITE).is_err(), "a buffer is no window memory");
    let x = b.expose(&buffer.as_source(), Rights::READ).unwrap();
    let read = Rma::Read { landing: landing(4), key: x.key, offset: 3 };
    assert_eq!(bytes(rma(&mut *a, &mut *b, ca, read)), b"d me");
    assert!(!a.write_now(ca, &x.key, 0, b"no"));
    let w = pool.alloc_window(8).unwrap();
    let x = b.expose(&w.as_source(), Rights::READ).unwrap();
    assert!(!a.write_now(ca, &x.key, 0, b"no"));
    let write = Rma::Write { source: buffer.as_source(), key: x.key, offset: 0 };
    assert_eq!(rma(&mut *a, &mut *b, ca, write).unwrap_err(), Kind::AccessDenied);
}

#[test]
fn transfers_read_slabs_and_adopted_memory() {
    let _w = Watchdog::start(60);
    let (mut a, ca, mut b, _) = pair();
    let pool = Pool::new(Default::default());
    let slab = pool.copy_from(b"in a slab").unwrap();
    let adopted = Buffer::adopt(b"a vector".to_vec());
    for (memory, want) in [(slab.slice(3..9), &b"a slab"[..]), (adopted.slice(2..8), b"vector")] {
        let x = b.expose(&memory.as_source(), Rights::READ | Rights::TRANSFER).unwrap();
        assert_ne!(x.key.secret, 0);
        let read = Rma::Read { landing: landing(want.len()), key: x.key, offset: 0 };
        assert_eq!(bytes(rma(&mut *a, &mut *b, ca, read)), want);
        let beyond = kfab_core::spi::RemoteKey { base: 1 << 50, ..x.key };
        assert!(
            rma(&mut *a, &mut *b, ca, Rma::Read { landing: landing(9), key: beyond, offset: 0 }).is_err()
        );
        b.revoke(x);
    }
    let x = b.expose(&slab.as_source(), Rights::READ | Rights::TRANSFER).unwrap();
    let (mut c, cc, ..) = {
        let mut c = open(&PortConfig::default());
        let cc = c.connect(&b.ways()[0]).unwrap();
        until("up", || {
            pump(&mut *b);
            pump(&mut *c).iter().any(|e| matches!(e, Event::Up { .. }))
        });
        (c, cc)
    };
    let wrong = kfab_core::spi::RemoteKey { secret: 1, ..x.key };
    let read = Rma::Read { landing: landing(3), key: wrong, offset: 0 };
    assert_eq!(rma(&mut *c, &mut *b, cc, read).unwrap_err(), Kind::AccessDenied);
}

#[test]
fn two_hundred_connections() {
    let _w = Watchdog::start(100);
    const N: usize = 200;
    let mut server = open(&PortConfig::default());
    let way = server.ways()[0].clone();
    let mut clients: Vec<_> = (0..10).map(|_| open(&PortConfig::default())).collect();
    let conns: Vec<_> = (0..N).map(|i| clients[i % 10].connect(&way).unwrap()).collect();
    let (mut up, mut incoming) = (0, Vec::new());
    until("all up", || {
        for c in &mut clients {
            up += pump(&mut **c).iter().filter(|e| matches!(e, Event::Up { .. })).count();
        }
        for e in pump(&mut *server) {
            let Event::Incoming { conn } = e else { panic!("{e:?}") };
            incoming.push(conn);
        }
        (up, incoming.len()) == (N, N)
    });
    // Long enough for idle links to become cold, then one frame over each, both ways.
    for round in 0..3u64 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        pump(&mut *server);
        std::thread::sleep(std::time::Duration::from_millis(5));
        pump(&mut *server);
        for (i, c) in conns.iter().enumerate() {
            assert_eq!(clients[i % 10].post(*c, &[frame(round, Body::Empty)]), 1);
        }
        let mut got = std::collections::HashSet::new();
        until("a frame of each", || {
            for e in pump(&mut *server) {
                let Event::Frame { conn, inline, .. } = e else { panic!("{e:?}") };
                assert_eq!(inline.as_slice(), round.to_le_bytes());
                assert!(got.insert(conn), "twice");
            }
            got.len() == N
        });
    }
    let f = frame(9, Body::Empty);
    incoming.iter().for_each(|c| assert_eq!(server.post(*c, &[f]), 1));
    let mut back = 0;
    until("all answers", || {
        back += clients.iter_mut().map(|c| pump(&mut **c).len()).sum::<usize>();
        back == N
    });
    assert_eq!(f.inline.as_slice().len(), Inline::new(&[0; 8]).unwrap().as_slice().len());
}
