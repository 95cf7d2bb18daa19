//! What a peer that breaks the rules can do to a port, on real cards: nothing but lose its connection. `KFAB_LAB_RDMA=1` demands two cards joined by a
//! cable, as in `cargo xtask lab`; elsewhere these tests say why they look at nothing.

use crate::rail::Rail;
use crate::wire::{self, Kind};
use kfab_core::mem::{Landing, Pool, WindowMem};
use kfab_core::spi::{Body, Conn, DownReason, Event, Frame, HEADER_LEN, Inline, Port, PortConfig, Rights};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

struct Node {
    rail: Rail,
    pool: Pool,
    born: Instant,
    up: Vec<Conn>,
    /// Connection and body.
    frames: Vec<(Conn, Vec<u8>)>,
    down: HashMap<Conn, (DownReason, String)>,
}

impl Node {
    fn open(card: &str, max_conns: usize) -> Node {
        let config = PortConfig { device: Some(card.to_owned()), max_conns, ..Default::default() };
        Node {
            rail: crate::rail(&config).expect("a port"),
            pool: Pool::new(Default::default()),
            born: Instant::now(),
            up: Vec::new(),
            frames: Vec::new(),
            down: HashMap::new(),
        }
    }

    fn poll(&mut self) {
        let mut events = Vec::new();
        self.rail.poll(self.born.elapsed().as_nanos() as u64, &mut events);
        for e in events {
            match e {
                Event::Up { conn } | Event::Incoming { conn } => self.up.push(conn),
                Event::Down { conn, reason, detail } => drop(self.down.insert(conn, (reason, detail))),
                Event::Frame { conn, body_len, .. } => {
                    let mut body = Vec::new();
                    if body_len > 0 {
                        let landing = self.pool.landing(body_len).expect("memory");
                        let landing = self.rail.take(conn, Some(landing)).flatten();
                        body = landing.and_then(Landing::into_buffer).expect("taken at once").to_vec();
                    }
                    self.frames.push((conn, body));
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, conn: Conn, body: &[u8]) -> bool {
        let body = Body::Borrowed(body);
        let f = Frame { header: [1; HEADER_LEN], inline: Inline::EMPTY, body, more: false };
        self.rail.post(conn, &[f]) == 1
    }
}

fn until(what: &str, nodes: &mut [&mut Node], mut done: impl FnMut(&mut [&mut Node]) -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !done(nodes) {
        assert!(Instant::now() < limit, "{what} did not happen");
        nodes.iter_mut().for_each(|n| n.poll());
    }
}

/// Connects; the connection's names here and there.
fn connect(a: &mut Node, b: &mut Node) -> (Conn, Conn) {
    let (here, there) = (a.up.len(), b.up.len());
    let conn = a.rail.connect(&b.rail.ways()[0]).expect("a way");
    until("a connection", &mut [a, b], |n| {
        assert!(!n[0].down.contains_key(&conn), "{:?}", n[0].down[&conn]);
        n[0].up.len() > here && n[1].up.len() > there
    });
    (conn, b.up[there])
}

/// Two cards, or why there are none.
fn cards() -> Option<[String; 2]> {
    let all: Vec<String> = crate::device::cards().unwrap_or_default().into_iter().map(|c| c.label).collect();
    let two = all.into_iter().collect::<Vec<_>>().try_into().ok();
    assert!(two.is_some() || std::env::var_os("KFAB_LAB_RDMA").is_none(), "KFAB_LAB_RDMA demands two cards");
    if two.is_none() {
        eprintln!("skipped: two RDMA cards are needed");
    }
    two
}

/// A hostile peer, an honest one, and whom they talk to, with a window: `(hostile, honest, victim, its names of the two)`.
fn three() -> Option<(Node, Conn, Node, Conn, Node, Conn, Conn)> {
    let [x, y] = cards()?;
    let (mut bad, mut good, mut victim) = (Node::open(&x, 8), Node::open(&x, 8), Node::open(&y, 8));
    let (to_bad, from_bad) = connect(&mut bad, &mut victim);
    let (to_good, from_good) = connect(&mut good, &mut victim);
    Some((bad, to_bad, good, to_good, victim, from_bad, from_good))
}

/// The victim ends the hostile connection, and hears the honest peer as before.
fn only_the_bad_one_goes(good: &mut Node, to: Conn, victim: &mut Node, bad: Conn, bad_node: &mut Node) {
    until("the verdict", &mut [bad_node, good, victim], |n| n[2].down.contains_key(&bad));
    assert_eq!(victim.down[&bad].0, DownReason::Hostile, "{}", victim.down[&bad].1);
    let before = victim.frames.len();
    for i in 0..100u8 {
        until("room for a frame", &mut [good, victim], |n| n[0].send(to, &[i; 300]));
    }
    until("the honest one's frames", &mut [good, victim], |n| n[1].frames.len() == before + 100);
    assert!((0..100).all(|i| victim.frames[before + usize::from(i)].1 == [i; 300]));
    assert!(good.down.is_empty() && victim.down.len() == 1, "{:?} {:?}", good.down, victim.down);
}

fn window(victim: &mut Node) -> (WindowMem, u64, u32) {
    let w = victim.pool.alloc_window(4096).expect("memory");
    let e = victim.rail.expose(&w.as_source(), Rights::READ | Rights::WRITE).expect("exposed");
    (w, e.key.base, crate::rma::unmasked(&e.key).expect("its own key"))
}

#[test]
fn a_write_with_immediate_data_is_no_message() {
    let Some((mut bad, to_bad, mut good, to_good, mut victim, from_bad, _)) = three() else { return };
    // What others have said lies in the receives.
    for _ in 0..100 {
        until("room for a frame", &mut [&mut good, &mut victim], |n| {
            n[0].send(to_good, b"a secret of the honest")
        });
    }
    until("all of them", &mut [&mut good, &mut victim], |n| n[1].frames.len() == 100);
    let (w, base, rkey) = window(&mut victim);
    let source = bad.pool.copy_from(&[7; 64]).expect("memory").as_source();
    let port = bad.rail.here();
    let qp = port.links.get(to_bad).and_then(|l| l.qp.as_mut()).expect("up");
    qp.write_inline(source, base, rkey, kfab_core::spi::RmaToken(1));
    qp.with_immediate_data();
    port.requests += 1;
    port.ring(to_bad);
    only_the_bad_one_goes(&mut good, to_good, &mut victim, from_bad, &mut bad);
    assert!(victim.frames.iter().all(|f| f.0 != from_bad), "an old frame came again, as the writer's");
    drop(w);
}

#[test]
fn more_frames_than_were_granted_are_an_offence() {
    let Some((mut bad, to_bad, mut good, to_good, mut victim, from_bad, _)) = three() else { return };
    let l = bad.rail.here().links.get(to_bad).expect("up");
    (l.credits, l.credits_max) = (wire::CREDITS + 1, wire::CREDITS + 1);
    (0..=wire::CREDITS).for_each(|_| assert!(bad.send(to_bad, &[9; 300])));
    only_the_bad_one_goes(&mut good, to_good, &mut victim, from_bad, &mut bad);
    assert!(victim.frames.iter().filter(|f| f.0 == from_bad).count() <= usize::from(wire::CREDITS));
}

#[test]
fn reports_of_nothing_are_an_offence() {
    let Some((mut bad, to_bad, mut good, to_good, mut victim, from_bad, _)) = three() else { return };
    let port = bad.rail.here();
    let qp = port.links.get(to_bad).and_then(|l| l.qp.as_mut()).expect("up");
    let (head, n) = wire::head(Kind::Credit, 0, &[0; HEADER_LEN], &Inline::EMPTY);
    qp.send_inline(|to| {
        to[..n].copy_from_slice(&head[..n]);
        n
    });
    port.requests += 1;
    port.ring(to_bad);
    only_the_bad_one_goes(&mut good, to_good, &mut victim, from_bad, &mut bad);
}

#[test]
fn connections_that_break_take_nobodys_place() {
    let Some([x, y]) = cards() else { return };
    // Room for two: the honest one stays, the other breaks and comes again.
    let (mut bad, mut good, mut victim) = (Node::open(&x, 8), Node::open(&x, 8), Node::open(&y, 2));
    let (to_good, from_good) = connect(&mut good, &mut victim);
    // More often than there are receives to spare: those that were not lost are found again.
    for turn in 0..100u8 {
        if turn % 20 == 19 {
            let pause = Instant::now() + Duration::from_secs(1);
            until("a pause", &mut [&mut good, &mut victim], |n| {
                let _ = n[0].send(to_good, b"go on");
                Instant::now() > pause
            });
        }
        let (to, from) = connect(&mut bad, &mut victim);
        until("room for a frame", &mut [&mut bad, &mut victim], |n| n[0].send(to, &[turn; 300]));
        victim.rail.here().end(from, DownReason::Broken, "on purpose");
        until("the end", &mut [&mut bad, &mut victim], |n| {
            n[0].down.contains_key(&to) && n[1].down.contains_key(&from)
        });
    }
    victim.frames.clear();
    for i in 0..200u8 {
        until("room for a frame", &mut [&mut good, &mut victim], |n| n[0].send(to_good, &[i; 300]));
    }
    let last = |n: &Node| n.frames.iter().any(|f| *f == (from_good, vec![199; 300]));
    until("all of them", &mut [&mut good, &mut victim], |n| last(n[1]));
}
