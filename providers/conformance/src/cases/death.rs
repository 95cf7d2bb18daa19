//! Peers that are killed without warning.

use crate::bench::{Bench, body, header};
use crate::child::Victim;
use kfab_core::spi::{Body, DownReason};

fn spawn(b: &Bench) -> Victim {
    b.rig.spawn_peer().expect("checked before").unwrap_or_else(|e| panic!("no peer to kill: {e}"))
}

pub(super) fn a_killed_peer_goes_down(b: &Bench) {
    // Killed while idle, with frames under way, and in the middle of connecting.
    for frames in [0, 1, 200] {
        let mut victim = spawn(b);
        let mut x = b.open(&Default::default());
        let conn = x.port().connect(&victim.way).unwrap_or_else(|e| panic!("{}: {e}", victim.way));
        b.until("the victim is reached", &mut [&mut x], |n| n[0].up.contains(&conn));
        for i in 0..frames {
            let data = b.pool.copy_from(&body(i, 1000)).expect("memory");
            let f = kfab_core::spi::Frame {
                header: header(i),
                inline: kfab_core::spi::Inline::EMPTY,
                body: Body::Owned(&[data.as_source()]),
                more: false,
            };
            if x.post(conn, &[f]) == 0 {
                break;
            }
        }
        victim.kill();
        b.until("its death is noticed", &mut [&mut x], |n| n[0].ended(conn).is_some());
        let reason = x.ended(conn);
        if x.port().caps().sees_death {
            assert_eq!(reason, Some(DownReason::PeerDead));
        } else {
            assert!(matches!(reason, Some(DownReason::PeerDead | DownReason::Broken)), "{reason:?}");
        }
        assert_eq!(b.pool.stats().in_use, 0, "memory lent to the dead connection");
    }
    let mut victim = spawn(b);
    let mut x = b.open(&Default::default());
    let conn = x.port().connect(&victim.way).unwrap_or_else(|e| panic!("{}: {e}", victim.way));
    victim.kill();
    b.until("an end", &mut [&mut x], |n| n[0].ended(conn).is_some());
}

pub(super) fn a_killed_peer_can_be_replaced(b: &Bench) {
    let mut x = b.open(&Default::default());
    for _ in 0..3 {
        let mut victim = spawn(b);
        let conn = x.port().connect(&victim.way).unwrap_or_else(|e| panic!("{}: {e}", victim.way));
        b.until("the victim is reached", &mut [&mut x], |n| n[0].up.contains(&conn));
        victim.kill();
        b.until("its death is noticed", &mut [&mut x], |n| n[0].ended(conn).is_some());
    }
    assert_eq!(x.down.len(), 3);
}
