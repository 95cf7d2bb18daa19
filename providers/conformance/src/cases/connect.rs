//! Making connections.

use crate::bench::{Bench, all_arrived, body, header};
use crate::node::Node;
use kfab_core::Kind;
use kfab_core::auth::FabricKey;
use kfab_core::spi::{Address, Body, Conn, DownReason, PortConfig, Way};
use std::collections::HashSet;

/// One frame each way over a connection.
fn talk(b: &Bench, x: &mut Node, y: &mut Node, cx: Conn, cy: Conn) {
    let (at_x, at_y) = (x.frames.len(), y.frames.len());
    x.send(cx, header(1), b"to y", Body::Borrowed(&body(1, 100)));
    y.send(cy, header(2), b"to x", Body::Borrowed(&body(2, 200)));
    b.until("a frame each way", &mut [x, y], |n| n[0].frames.len() > at_x && n[1].frames.len() > at_y);
    let (got_x, got_y) = (&x.frames[at_x], &y.frames[at_y]);
    assert_eq!((got_y.conn, got_y.header, &got_y.inline[..]), (cy, header(1), &b"to y"[..]));
    assert_eq!((got_x.conn, got_x.header, &got_x.inline[..]), (cx, header(2), &b"to x"[..]));
    assert_eq!((&got_x.body, &got_y.body), (&body(2, 200), &body(1, 100)));
}

pub(super) fn connects_and_accepts(b: &Bench) {
    let (mut x, mut y, cx, cy) = b.connected();
    talk(b, &mut x, &mut y, cx, cy);
    assert_eq!((x.up.len(), x.incoming.len()), (1, 0));
    assert_eq!((y.up.len(), y.incoming.len()), (0, 1));
    assert!(x.down.is_empty() && y.down.is_empty());
}

pub(super) fn a_malformed_way_is_an_error_that_names_it(b: &Bench) {
    let mut x = b.open(&PortConfig::default());
    let scheme = x.port().ways()[0].scheme.clone();
    let texts = b.rig.malformed();
    assert!(!texts.is_empty(), "the rig lists malformed ways");
    for text in texts {
        let e = x.port().connect(&Way::new(&scheme, text.clone()));
        let e = e.expect_err(&format!("{text:?} was taken for a way"));
        assert!(e.to_string().contains(&text), "{e} does not name {text:?}");
    }
    b.quiet(&mut [&mut x]);
    assert!(x.up.is_empty() && x.down.is_empty(), "an error is all there is");
}

pub(super) fn a_foreign_scheme_is_an_error(b: &Bench) {
    let (mut x, mut y) = b.pair();
    let rest = y.port().ways()[0].rest.clone();
    let e =
        x.port().connect(&Way::new("otherscheme", rest)).expect_err("a way of another provider was taken");
    assert!(e.to_string().contains("otherscheme"), "{e} does not name the way");
}

pub(super) fn every_way_parses_and_reaches(b: &Bench) {
    let (mut x, mut y) = b.pair();
    let ways = y.port().ways();
    assert!(!ways.is_empty());
    let address = Address::new(ways.clone());
    assert_eq!(address.to_string().parse::<Address>().expect("an address of these ways"), address);
    for way in ways {
        let before = y.incoming.len();
        let cx = x.port().connect(&way).unwrap_or_else(|e| panic!("{way}: {e}"));
        b.until(&format!("{way} reaches"), &mut [&mut x, &mut y], |n| {
            n[0].up.contains(&cx) && n[1].incoming.len() > before
        });
        let cy = y.incoming[before];
        talk(b, &mut x, &mut y, cx, cy);
    }
}

pub(super) fn fifty_connections_are_told_apart(b: &Bench) {
    let (mut x, mut y) = b.pair();
    let names: Vec<Conn> = (0..50).map(|_| x.connect(&mut y)).collect();
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), 50);
    b.until("50 connections", &mut [&mut x, &mut y], |n| n[0].up.len() == 50 && n[1].incoming.len() == 50);
    for (i, conn) in names.iter().enumerate() {
        x.send(*conn, header(i as u32), &[i as u8], Body::Borrowed(&body(i as u32, i * 10)));
    }
    b.frames(&mut [&mut x, &mut y], 50);
    let mut seen = HashSet::new();
    for g in &y.frames {
        let i = usize::from(g.inline[0]);
        assert_eq!((g.header, &g.body), (header(i as u32), &body(i as u32, i * 10)));
        assert!(seen.insert((g.conn, i)));
    }
    assert_eq!(
        seen.iter().map(|s| s.0).collect::<HashSet<_>>().len(),
        50,
        "two frames came over one connection"
    );
    // Answers go back over the connection their question came on.
    for (conn, i) in seen {
        y.send(conn, header(i as u32), &[i as u8], Body::Empty);
    }
    b.frames(&mut [&mut y, &mut x], 50);
    x.frames.iter().for_each(|g| assert_eq!(g.conn, names[usize::from(g.inline[0])]));
}

pub(super) fn both_sides_may_dial(b: &Bench) {
    let (mut x, mut y) = b.pair();
    let (cx, cy) = (x.connect(&mut y), y.connect(&mut x));
    b.until("both connections", &mut [&mut x, &mut y], |n| {
        n.iter().all(|n| n.up.len() == 1 && n.incoming.len() == 1)
    });
    let (ix, iy) = (x.incoming[0], y.incoming[0]);
    assert!(cx != ix && cy != iy);
    talk(b, &mut x, &mut y, cx, iy);
    talk(b, &mut x, &mut y, ix, cy);
}

pub(super) fn closed_before_it_was_up(b: &Bench) {
    let (mut x, mut y) = b.pair();
    let cx = x.connect(&mut y);
    x.port().close(cx);
    b.until("its end", &mut [&mut x, &mut y], |n| n[0].ended(cx).is_some());
    b.until("its end there, if it came", &mut [&mut x, &mut y], |n| n[1].incoming.len() == n[1].down.len());
    b.quiet(&mut [&mut x, &mut y]);
    assert_eq!(y.incoming.len(), y.down.len());
    let (cx, cy) = b.connect(&mut x, &mut y);
    talk(b, &mut x, &mut y, cx, cy);
}

pub(super) fn names_are_not_used_again(b: &Bench) {
    let (mut x, mut y) = b.pair();
    // The nodes themselves check that no name comes back.
    for _ in 0..20 {
        let (cx, cy) = b.connect(&mut x, &mut y);
        x.port().close(cx);
        b.until("the end", &mut [&mut x, &mut y], |n| n[0].ended(cx).is_some() && n[1].ended(cy).is_some());
    }
}

pub(super) fn a_full_port_refuses(b: &Bench) {
    let mut x = b.open(&PortConfig::default());
    let mut y = b.open(&PortConfig { max_conns: 2, ..PortConfig::default() });
    let (c1, d1) = b.connect(&mut x, &mut y);
    let (c2, d2) = b.connect(&mut x, &mut y);
    let third = x.connect(&mut y);
    b.until("the third is turned away", &mut [&mut x, &mut y], |n| n[0].ended(third).is_some());
    // Not as if nobody were there.
    assert_eq!(x.ended(third), Some(DownReason::Broken));
    assert_eq!((x.up.len(), y.incoming.len()), (2, 2));
    talk(b, &mut x, &mut y, c1, d1);
    talk(b, &mut x, &mut y, c2, d2);
}

pub(super) fn nobody_there_is_refused(b: &Bench) {
    let way = b.rig.nobody().expect("checked before");
    let mut x = b.open(&PortConfig::default());
    let conn = x.port().connect(&way).unwrap_or_else(|e| panic!("{way} makes sense, but: {e}"));
    b.until("the refusal", &mut [&mut x], |n| n[0].ended(conn).is_some());
    assert_eq!(x.ended(conn), Some(DownReason::Refused));
    assert!(x.up.is_empty());
}

pub(super) fn a_taken_place_is_an_error(b: &Bench) {
    let mut x = b.open(&PortConfig::default());
    let listen = b.rig.listen_at(&x.port().ways()[0]);
    let e =
        b.rig.open(&PortConfig { listen, ..PortConfig::default() }).err().expect("two ports at one place");
    assert_eq!(e.kind(), Kind::AddressInUse, "{e}");
}

pub(super) fn a_new_port_at_an_old_place_is_reached(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let way = y.port().ways()[0].clone();
    let listen = b.rig.listen_at(&way);
    drop(y);
    let mut y = b.open(&PortConfig { listen, ..PortConfig::default() });
    b.until("the old connection ends", &mut [&mut x, &mut y], |n| n[0].ended(cx).is_some());
    let cx = x.port().connect(&way).expect("the way has not changed");
    b.until("the new port is reached", &mut [&mut x, &mut y], |n| {
        n[0].up.contains(&cx) && !n[1].incoming.is_empty()
    });
    let cy = y.incoming[0];
    talk(b, &mut x, &mut y, cx, cy);
}

fn keyed(n: u8) -> PortConfig {
    PortConfig { key: Some(FabricKey::from_bytes([n; 32])), ..PortConfig::default() }
}

pub(super) fn the_same_key_connects(b: &Bench) {
    for encrypt in [true, false] {
        let config = PortConfig { encrypt, ..keyed(1) };
        let (mut x, mut y) = (b.open(&config), b.open(&config));
        let (cx, cy) = b.connect(&mut x, &mut y);
        let caps = x.port().caps().clone();
        let sizes = [0, 1, 63, 4097, caps.eager_max, caps.max_body.min(1 << 20)];
        for (i, len) in sizes.into_iter().enumerate() {
            x.send(cx, header(i as u32), &[9; 40], Body::Borrowed(&body(i as u32, len)));
            b.frames(&mut [&mut x, &mut y], i + 1);
        }
        all_arrived(&y, &caps, sizes.len() as u32);
        talk(b, &mut x, &mut y, cx, cy);
    }
}

fn denied(b: &Bench, x: &PortConfig, y: &PortConfig) {
    let (mut x, mut y) = (b.open(x), b.open(y));
    let conn = x.connect(&mut y);
    b.until("the denial", &mut [&mut x, &mut y], |n| n[0].ended(conn).is_some());
    assert_eq!(x.ended(conn), Some(DownReason::Denied));
    b.quiet(&mut [&mut x, &mut y]);
    assert!(x.up.is_empty() && y.incoming.is_empty() && y.down.is_empty(), "a stranger left a trace");
}

pub(super) fn another_key_is_denied(b: &Bench) {
    denied(b, &keyed(1), &keyed(2));
}

pub(super) fn no_key_is_denied(b: &Bench) {
    denied(b, &PortConfig::default(), &keyed(2));
    denied(b, &keyed(2), &PortConfig::default());
}
