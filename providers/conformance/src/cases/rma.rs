//! One-sided access: contents, ranges, rights, revocation, secrets.

use crate::bench::{Bench, body, header};
use crate::node::Node;
use kfab_core::Result;
use kfab_core::mem::{Buffer, WindowMem};
use kfab_core::spi::{Body, Conn, Exposure, RemoteKey, Rights};

const LEN: usize = 1 << 20;

/// A window of [`LEN`] bytes with known contents at the second of two connected ports.
struct Scene {
    x: Node,
    y: Node,
    cx: Conn,
    window: WindowMem,
    exposure: Exposure,
    next_token: u64,
}

impl Scene {
    fn new(b: &Bench, rights: Rights) -> Scene {
        let (x, mut y, cx, _) = b.connected();
        let window = b.pool.alloc_window(LEN).expect("memory");
        window.write(0, &body(1, LEN));
        let exposure = y.expose(&window.as_source(), rights);
        Scene { x, y, cx, window, exposure, next_token: 1 }
    }

    /// After a refusal the connection may be gone: a new one, for what follows.
    fn renew(&mut self, b: &Bench) {
        b.quiet(&mut [&mut self.x, &mut self.y]);
        if self.x.ended(self.cx).is_some() {
            self.cx = b.connect(&mut self.x, &mut self.y).0;
        }
    }

    fn contents(&self) -> Vec<u8> {
        let mut now = vec![0; LEN];
        assert_eq!(self.window.read(0, &mut now), LEN);
        now
    }

    fn wait(&mut self, b: &Bench, token: u64) -> (Result<()>, Option<Vec<u8>>) {
        b.until("the operation ends", &mut [&mut self.x, &mut self.y], |n| n[0].rma.contains_key(&token));
        let end = self.x.rma.remove(&token).expect("waited for");
        (end.result, end.bytes)
    }

    fn read(&mut self, b: &Bench, key: RemoteKey, offset: u64, len: usize) -> Result<Vec<u8>> {
        let token = self.token();
        self.x.read(self.cx, token, key, offset, len);
        let (result, bytes) = self.wait(b, token);
        let bytes = bytes.expect("the landing of a read comes back, whatever happened");
        assert_eq!(bytes.len(), len);
        result.map(|()| bytes)
    }

    fn write(&mut self, b: &Bench, key: RemoteKey, offset: u64, bytes: &[u8]) -> Result<()> {
        let token = self.token();
        let source = b.pool.copy_from(bytes).expect("memory");
        self.x.write(self.cx, token, key, offset, source.as_source());
        self.wait(b, token).0
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }
}

const BOTH: Rights = Rights::READ.union(Rights::WRITE);

pub(super) fn reads_and_writes_move_the_bytes(b: &Bench) {
    let mut s = Scene::new(b, BOTH);
    let key = s.exposure.key;
    let mut model = body(1, LEN);
    for (i, len) in [1, 7, 8, 63, 64, 65, 4095, 4096, 4097, 65_536, 300_001, LEN].into_iter().enumerate() {
        for at in [0, 1, 4096 - 3, LEN - len] {
            let at = at.min(LEN - len);
            assert!(
                s.read(b, key, at as u64, len).expect("a read inside") == model[at..at + len],
                "read {at}+{len}"
            );
            let data = body(100 + i as u32 + at as u32, len);
            s.write(b, key, at as u64, &data).expect("a write inside");
            model[at..at + len].copy_from_slice(&data);
            assert!(s.contents() == model, "after write {at}+{len}");
        }
    }
    // Writes of the owner are seen by readers.
    s.window.write(500, b"owner");
    assert_eq!(s.read(b, key, 500, 5).expect("a read inside"), b"owner");
    // A part of a window, exposed on its own, counts from its own beginning.
    let part = s.window.as_source().part(1000, 100).expect("inside");
    let e = s.y.expose(&part, BOTH);
    s.write(b, e.key, 10, b"part").expect("a write inside");
    let mut got = [0; 4];
    s.window.read(1010, &mut got);
    assert_eq!(&got, b"part");
}

/// What notices rest on: who is told by a frame that a write has ended sees its bytes.
pub(super) fn a_frame_after_a_write_finds_it_there(b: &Bench) {
    let mut s = Scene::new(b, BOTH);
    let key = s.exposure.key;
    for (i, len) in [1, 8, 64, 4097, 100_000, LEN].into_iter().cycle().take(60).enumerate() {
        let data = body(i as u32, len);
        s.write(b, key, 0, &data).expect("a write inside");
        s.x.send(s.cx, header(i as u32), &[], Body::Empty);
        b.frames(&mut [&mut s.x, &mut s.y], i + 1);
        let mut now = vec![0; len];
        s.window.read(0, &mut now);
        assert!(now == data, "write {i} of {len} bytes");
    }
}

pub(super) fn outside_is_refused(b: &Bench) {
    let mut s = Scene::new(b, BOTH);
    let before = s.contents();
    let len = LEN as u64;
    for (at, n) in [(len, 1), (len - 1, 2), (0, LEN + 1), (u64::MAX, 1), (u64::MAX - 3, 8), (1 << 40, 8)] {
        let key = s.exposure.key;
        s.read(b, key, at, n).expect_err(&format!("a read of {n} bytes at {at} of a window of {LEN}"));
        s.renew(b);
        s.write(b, key, at, &vec![0xAB; n]).expect_err(&format!("a write of {n} bytes at {at}"));
        s.renew(b);
    }
    // A part of a window, exposed on its own, ends where it ends although the memory goes on.
    let part = s.window.as_source().part(1000, 100).expect("inside");
    let e = s.y.expose(&part, BOTH);
    s.write(b, e.key, 90, &[0xAB; 11]).expect_err("a write beyond the exposed part");
    s.renew(b);
    s.read(b, e.key, 90, 11).expect_err("a read beyond the exposed part");
    assert!(s.contents() == before, "a refused write changed the memory");
}

pub(super) fn rights_are_kept(b: &Bench) {
    let mut s = Scene::new(b, Rights::READ);
    let key = s.exposure.key;
    let before = s.contents();
    s.write(b, key, 0, b"no").expect_err("a write without the right");
    s.renew(b);
    assert!(!s.x.port().write_now(s.cx, &key, 0, b"no"), "a write within the call without the right");
    s.renew(b);
    assert!(s.contents() == before, "a refused write changed the memory");
    s.read(b, key, 0, 10).expect("a read with the right");
    let mut s = Scene::new(b, Rights::WRITE);
    let key = s.exposure.key;
    let got = s.read(b, key, 0, 10);
    got.expect_err("a read without the right");
    s.renew(b);
    s.write(b, key, 0, b"yes").expect("a write with the right");
    assert_eq!(&s.contents()[..3], b"yes");
}

pub(super) fn a_revoked_exposure_is_refused(b: &Bench) {
    let mut s = Scene::new(b, BOTH);
    let other = s.y.expose(&s.window.as_source(), BOTH);
    let key = s.exposure.key;
    s.read(b, key, 0, 100).expect("a read before");
    s.y.port().revoke(s.exposure);
    let before = s.contents();
    s.write(b, key, 0, b"late").expect_err("a write after the end of the exposure");
    s.renew(b);
    s.read(b, key, 0, 100).expect_err("a read after the end of the exposure");
    s.renew(b);
    assert!(
        !s.x.port().write_now(s.cx, &key, 0, b"late"),
        "a write within the call after the end of the exposure"
    );
    s.renew(b);
    assert!(s.contents() == before, "a refused write changed the memory");
    s.write(b, other.key, 0, b"fine").expect("the other exposure of the same memory lives");
    assert_eq!(&s.contents()[..4], b"fine");
    // An exposure made afterwards does not revive the old key.
    let e = s.y.expose(&s.window.as_source(), BOTH);
    s.read(b, key, 0, 4).expect_err("the old key");
    s.renew(b);
    assert_eq!(s.read(b, e.key, 0, 4).expect("the new key"), b"fine");
}

pub(super) fn a_guessed_key_is_refused(b: &Bench) {
    let mut s = Scene::new(b, BOTH);
    let (key, before) = (s.exposure.key, s.contents());
    let guesses = [
        RemoteKey { secret: key.secret ^ 1, ..key },
        RemoteKey { secret: 0, ..key },
        RemoteKey { region: key.region.wrapping_add(1 << 20), ..key },
        RemoteKey { region: u64::MAX, base: u64::MAX, secret: u64::MAX },
        RemoteKey::default(),
    ];
    for guess in guesses {
        s.write(b, guess, 0, b"guess").expect_err(&format!("a write with {guess:?}, the key being {key:?}"));
        s.renew(b);
        s.read(b, guess, 0, 5).expect_err(&format!("a read with {guess:?}, the key being {key:?}"));
        s.renew(b);
    }
    assert!(s.contents() == before, "a refused write changed the memory");
    assert_eq!(s.read(b, key, 0, LEN).expect("the right key"), before);
}

pub(super) fn a_buffer_can_be_read_for_a_transfer(b: &Bench) {
    let mut s = Scene::new(b, BOTH);
    let slab = b.pool.copy_from(&body(7, 200_000)).expect("memory");
    let e = s.y.expose(&slab.as_source(), Rights::READ | Rights::TRANSFER);
    assert!(s.read(b, e.key, 0, 200_000).expect("a read") == slab[..]);
    assert!(s.read(b, e.key, 1234, 777).expect("a read") == slab[1234..1234 + 777]);
    s.y.port().revoke(e);
    // Memory of the caller: a port that cannot serve it says so, and the protocol sends it in pieces.
    let adopted = Buffer::adopt(body(8, 100_000));
    if let Ok(e) = s.y.port().expose(&adopted.as_source(), Rights::READ | Rights::TRANSFER) {
        assert!(s.read(b, e.key, 5, 99_000).expect("what was exposed can be read") == adopted[5..99_005]);
        s.y.port().revoke(e);
    }
    drop((slab, adopted, s));
    assert_eq!(b.pool.stats().in_use, 0);
}

pub(super) fn only_windows_can_be_written(b: &Bench) {
    let mut s = Scene::new(b, BOTH);
    let slab = b.pool.copy_from(&[1; 100]).expect("memory");
    let adopted = Buffer::adopt(vec![1; 100]);
    for buffer in [&slab, &adopted] {
        let e = s.y.port().expose(&buffer.as_source(), BOTH);
        e.expect_err("a Buffer was exposed for writing: its owner may hold references to it");
    }
}

pub(super) fn many_operations_end_once(b: &Bench) {
    let mut s = Scene::new(b, BOTH);
    let (key, cx) = (s.exposure.key, s.cx);
    for i in 0..64u64 {
        s.x.read(cx, i, key, i * 1000, 1000);
    }
    b.until("64 reads end", &mut [&mut s.x, &mut s.y], |n| n[0].rma.len() == 64);
    let all = body(1, LEN);
    for (i, end) in std::mem::take(&mut s.x.rma) {
        end.result.expect("a read inside");
        let at = i as usize * 1000;
        assert!(end.bytes.expect("its landing") == all[at..at + 1000], "read {i}");
    }
    for i in 0..64u64 {
        let data = b.pool.copy_from(&body(i as u32, 500)).expect("memory");
        s.x.write(cx, i, key, i * 500, data.as_source());
    }
    b.until("64 writes end", &mut [&mut s.x, &mut s.y], |n| n[0].rma.len() == 64);
    b.quiet(&mut [&mut s.x, &mut s.y]);
    assert!(s.x.rma.values().all(|e| e.result.is_ok()));
    let now = s.contents();
    (0..64).for_each(|i| assert!(now[i * 500..(i + 1) * 500] == body(i as u32, 500), "write {i}"));
}

pub(super) fn small_writes_within_the_call(b: &Bench) {
    let mut s = Scene::new(b, BOTH);
    let (key, cx) = (s.exposure.key, s.cx);
    // The first access may be what maps the memory.
    s.write(b, key, 0, b"first").expect("a write");
    let mut model = s.contents();
    if !s.x.port().write_now(cx, &key, 0, &model[..8]) {
        eprintln!("this port has no writes within the call");
        return;
    }
    for (i, len) in [1usize, 2, 8, 13, 64].into_iter().enumerate() {
        let (at, data) = (i * 100 + 3, body(i as u32 + 50, len));
        assert!(s.x.port().write_now(cx, &key, at as u64, &data), "a write inside");
        model[at..at + len].copy_from_slice(&data);
        assert!(s.contents() == model, "{len} bytes at {at} were not there when the call returned");
    }
    for key in [key, RemoteKey { secret: key.secret ^ 1, ..key }, RemoteKey { secret: 0, ..key }] {
        assert!(!s.x.port().write_now(cx, &key, LEN as u64 - 4, &[0xAB; 8]), "a write over the end");
        let wrong = key != s.exposure.key;
        assert!(!(wrong && s.x.port().write_now(cx, &key, 0, &[0xAB; 8])), "a write with another secret");
    }
    assert!(s.contents() == model);
}

pub(super) fn a_dead_connection_fails_operations(b: &Bench) {
    let mut s = Scene::new(b, BOTH);
    let (key, cx) = (s.exposure.key, s.cx);
    s.x.port().close(cx);
    b.until("the end", &mut [&mut s.x, &mut s.y], |n| n[0].ended(cx).is_some());
    s.read(b, key, 0, 8).expect_err("a read over a connection that is gone");
    s.write(b, key, 0, b"x").expect_err("a write over a connection that is gone");
    s.renew(b);
    assert_eq!(s.read(b, key, 0, 8).expect("the exposure outlives connections"), body(1, LEN)[..8]);
    s.x.send(s.cx, header(1), &[], Body::Empty);
    b.frames(&mut [&mut s.x, &mut s.y], 1);
}

pub(super) fn operations_let_memory_go(b: &Bench) {
    let mut s = Scene::new(b, BOTH);
    let (key, cx) = (s.exposure.key, s.cx);
    for i in 0..32 {
        s.x.read_into(cx, i, key, 0, b.pool.alloc(10_000).expect("memory"));
        let data = b.pool.copy_from(&[1; 10_000]).expect("memory");
        s.x.write(cx, 100 + i, key, 0, data.as_source());
    }
    // Dropped in the middle.
    drop(s);
    assert_eq!(b.pool.stats().in_use, 0, "memory of one-sided operations outlived their ports");
}
