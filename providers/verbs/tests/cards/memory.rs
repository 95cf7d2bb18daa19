//! Registered memory: what is kept makes way for what is needed, is open to peers only where it was promised to one, and a card that
//! holds on to some is let go.

use crate::driver::{Node, connect, until};
use crate::life::works_again;
use crate::machine::{cards, registration};
use kfab_core::Kind;
use kfab_core::mem::{Buffer, Landing, Pool};
use kfab_core::spi::{Conn, RemoteKey, Rights, Rma};
use std::process::Command;

/// Tells this program to be the child of a test here, and which.
const CHILD: &str = "KFAB_VERBS_MEMORY";
/// Memory that a child may lock. Two ports have theirs in it, and a window.
const LOCKED: usize = 24 << 20;
/// A child writes so many pieces of its own memory, all of which together it may not lock.
const PIECES: u64 = 10;
const PIECE: usize = 4 << 20;
/// While this file is there, a child's libibverbs refuses to end registrations.
const REFUSE: &str = "/tmp/kfab-verbs-refuse";
/// An auditor for the dynamic linker (rtld-audit(7)), which puts itself in the place of that call.
const AUDITOR: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <link.h>
#include <string.h>
#include <unistd.h>
static int (*real)(void *);
static int refusing(void *mr) { return access("REFUSE", F_OK) ? real(mr) : EBUSY; }
unsigned la_version(unsigned version) { return version; }
unsigned la_objopen(struct link_map *map, Lmid_t lmid, uintptr_t *cookie) { return LA_FLG_BINDTO | LA_FLG_BINDFROM; }
uintptr_t la_symbind64(Elf64_Sym *sym, unsigned n, uintptr_t *by, uintptr_t *in, unsigned *flags, const char *name) {
    if (strcmp(name, "ibv_dereg_mr")) return sym->st_value;
    real = (int (*)(void *))sym->st_value;
    return (uintptr_t)refusing;
}
"#;

/// The child's life, if this is one: does not return then.
pub(crate) fn live_if_child() {
    let Ok(which) = std::env::var(CHILD) else { return };
    match which.as_str() {
        "locked" => write_more_than_may_be_locked(),
        "refused" => revoke_what_the_card_does_not_let_go(),
        other => panic!("{other}"),
    }
    println!("done");
    std::process::exit(0);
}

/// Runs this program as a child, behind these words.
fn run(which: &str, mut command: Command) {
    let out = command.env(CHILD, which).output().expect("a child (setpriv and prlimit are in util-linux)");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.contains("done"), "{said}{}", String::from_utf8_lossy(&out.stderr));
}

pub(crate) fn a_window_that_the_card_holds_on_to_is_closed() {
    let dir = std::env::temp_dir();
    let (source, library) = (dir.join("kfab-verbs-auditor.c"), dir.join("kfab-verbs-auditor.so"));
    std::fs::write(&source, AUDITOR.replace("REFUSE", REFUSE)).expect("a file");
    let cc = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(cc.expect("a C compiler").success());
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.env("LD_AUDIT", library);
    run("refused", command);
}

/// A peer that guesses a registration's key reads nothing of what we only write from, and one that keeps the key of a promise nothing
/// once that is over.
pub(crate) fn what_was_never_promised_is_not_open() {
    /// A length that no other registration has.
    const LEN: usize = 3 << 20;
    let c = cards().expect("checked before");
    let (mut a, mut b) = (Node::open(&c[0]), Node::open(&c[1]));
    let (ca, cb) = connect(&mut a, &mut b);
    let w = Pool::new(Default::default()).alloc_window(LEN).expect("memory");
    let e = b.port.expose(&w.as_source(), Rights::WRITE).expect("exposed");
    let bytes: Vec<u8> = (0..LEN).map(|i| (i ^ (i >> 8)) as u8).collect();
    let source = Buffer::adopt(bytes.clone()).as_source();
    a.start(ca, Rma::Write { source: source.clone(), key: e.key, offset: 0 }, 1);
    until("a write", &mut [&mut a, &mut b], |n| n[0].rma.contains_key(&1));
    assert!(a.rma[&1].1.is_ok(), "{:?}", a.rma[&1].1);

    let read = |conn: Conn, key: RemoteKey, token, a: &mut Node, b: &mut Node| {
        let landing = Landing::whole(Buffer::adopt(vec![0; LEN])).expect("one owner");
        b.start(conn, Rma::Read { landing, key, offset: 0 }, token);
        until("a read ends", &mut [a, &mut *b], |n| n[1].rma.contains_key(&token));
        b.rma.remove(&token).expect("waited for")
    };
    // Of a secret of 0 the mask is 0.
    let region = registration(&c[0], LEN).expect("it is kept");
    let guessed = RemoteKey { region, base: source.as_ptr() as u64, secret: 0 };
    let refused =
        read(cb, guessed, 2, &mut a, &mut b).1.expect_err("memory that nobody was promised is open");
    assert_eq!(refused.kind(), Kind::AccessDenied, "{refused}");

    let promised = a.port.expose(&source, Rights::READ | Rights::TRANSFER).expect("exposed");
    let (_, cb) = connect(&mut a, &mut b);
    let (back, result) = read(cb, promised.key, 3, &mut a, &mut b);
    assert!(result.is_ok() && back.expect("handed back") == bytes, "a promise was not kept: {result:?}");
    a.port.revoke(promised);

    // It is the program's heap again.
    let (_, cb) = connect(&mut a, &mut b);
    let refused =
        read(cb, promised.key, 4, &mut a, &mut b).1.expect_err("a promise that is over is open still");
    assert_eq!(refused.kind(), Kind::AccessDenied, "{refused}");
}

/// The registration stays, and so does its key at the peer: no connection leads to it any more.
fn revoke_what_the_card_does_not_let_go() {
    let c = cards().expect("checked before");
    let (mut a, mut b) = (Node::open(&c[0]), Node::open(&c[1]));
    let (ca, _) = connect(&mut a, &mut b);
    let pool = Pool::new(Default::default());
    let w = pool.alloc_window(4096).expect("memory");
    let source = pool.copy_from(&[0xAB; 4096]).expect("memory").as_source();
    let e = b.port.expose(&w.as_source(), Rights::READ | Rights::WRITE).expect("exposed");
    let write = |conn, token, a: &mut Node, b: &mut Node| {
        a.start(conn, Rma::Write { source: source.clone(), key: e.key, offset: 0 }, token);
        until("a write ends", &mut [&mut *a, b], |n| n[0].rma.contains_key(&token));
        let mut got = [1; 4096];
        w.read(0, &mut got);
        (a.rma[&token].1.is_ok(), got)
    };
    assert_eq!(write(ca, 1, &mut a, &mut b), (true, [0xAB; 4096]));
    let epoch = b.port.epoch();
    std::fs::write(REFUSE, "").expect("a file");
    b.port.revoke(e);
    w.fill(0);
    assert_eq!(write(ca, 2, &mut a, &mut b), (false, [0; 4096]));
    works_again(&mut a, &mut b);
    let (ca, _) = connect(&mut a, &mut b);
    assert_eq!(write(ca, 3, &mut a, &mut b), (false, [0; 4096]), "the key of before still opens it");
    assert_ne!(b.port.epoch(), epoch, "peers would go on using other keys of before");
    std::fs::remove_file(REFUSE).expect("still there");
}

pub(crate) fn kept_registrations_make_way() {
    let me = std::env::current_exe().expect("this program");
    // Whoever may lock what he likes (root) has no limit.
    let mut child = Command::new("setpriv");
    child.args(["--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock"]);
    child.args(["prlimit", &format!("--memlock={LOCKED}:{LOCKED}")]).arg(me);
    run("locked", child);
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
