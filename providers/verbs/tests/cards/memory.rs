//! Registered memory: what is kept makes way for what is needed.

use crate::driver::{Node, connect, until};
use crate::machine::cards;
use kfab_core::Kind;
use kfab_core::mem::{Buffer, Pool};
use kfab_core::spi::{Rights, Rma};
use std::process::Command;

/// Tells this program to be the child of a test here, and which.
const CHILD: &str = "KFAB_VERBS_MEMORY";
/// Memory that a child may lock. Two ports have theirs in it, and a window.
const LOCKED: usize = 24 << 20;
/// A child writes so many pieces of its own memory, all of which together it may not lock.
const PIECES: u64 = 10;
const PIECE: usize = 4 << 20;

/// The child's life, if this is one: does not return then.
pub(crate) fn live_if_child() {
    if std::env::var_os(CHILD).is_some() {
        write_more_than_may_be_locked();
        println!("done");
        std::process::exit(0);
    }
}

pub(crate) fn kept_registrations_make_way() {
    let me = std::env::current_exe().expect("this program");
    // Whoever may lock what he likes (root) has no limit.
    let mut child = Command::new("setpriv");
    child.args(["--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock"]);
    child.args(["prlimit", &format!("--memlock={LOCKED}:{LOCKED}")]).arg(me).env(CHILD, "1");
    let out = child.output().expect("setpriv and prlimit (util-linux)");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.contains("done"), "{said}{}", String::from_utf8_lossy(&out.stderr));
}

fn write_more_than_may_be_locked() {
    let c = cards().expect("checked before");
    let (mut a, mut b) = (Node::open(&c[0]), Node::open(&c[1]));
    let (ca, _) = connect(&mut a, &mut b);
    let pool = Pool::new(Default::default());
    let w = pool.alloc_window(PIECE).expect("memory");
    let e = b.port.expose(&w.as_source(), Rights::WRITE).expect("exposed");
    let mut alive = Vec::new();
    for n in 0..PIECES {
        let source = Buffer::adopt(vec![n as u8 + 1; PIECE]).as_source();
        a.start(ca, Rma::Write { source: source.clone(), key: e.key, offset: 0 }, n);
        // Else its registration would end with it.
        alive.push(source);
        until("a write", &mut [&mut a, &mut b], |nodes| nodes[0].rma.contains_key(&n));
        assert!(a.rma[&n].1.is_ok(), "write {n}: {:?}", a.rma[&n].1);
        let mut got = vec![0; PIECE];
        w.read(0, &mut got);
        assert!(got.iter().all(|byte| *byte == n as u8 + 1), "write {n} arrived changed");
    }
    let large = pool.alloc_window(LOCKED).expect("memory");
    let why = b.port.expose(&large.as_source(), Rights::WRITE).expect_err("more than may be locked");
    assert_eq!(why.kind(), Kind::Limit, "{why}");
    assert!(why.to_string().contains(&format!("locked memory is {} KiB", LOCKED / 1024)), "{why}");
}
