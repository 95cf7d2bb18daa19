//! What a hostile peer can write: any bytes in the segment, any control message, any descriptors.

mod common;

use common::{Watchdog, open, pump, until};
use kfab_core::spi::{Event, PortConfig};
use proptest::prelude::*;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, connect,
    sendmsg, socket,
};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};

/// Descriptors of the process are counted: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_segment(data in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _alone = alone();
        kfab_shm::fuzz_ring(&data);
    }

    /// Mostly small numbers: stamps and lengths that are nearly right.
    #[test]
    fn nearly_right_segments(mut data in proptest::collection::vec(0u8..4, 64..200), odd in any::<bool>()) {
        data[0] = u8::from(odd);
        let _alone = alone();
        kfab_shm::fuzz_ring(&data);
    }

    #[test]
    fn any_message(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        kfab_shm::fuzz_message(&data);
    }
}

fn stranger(name: &str) -> OwnedFd {
    let fd = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&fd, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
    fd
}

fn send(to: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let _ = sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}

fn memfd(len: usize) -> OwnedFd {
    kfab_core::sys::sealed_memfd("garbage", len, false).unwrap().0
}

/// Greetings that make no sense, or come with the wrong things: none is announced, nothing is left, the port serves on.
#[test]
fn bad_greetings_leave_nothing() {
    let _alone = alone();
    let _w = Watchdog::start(60);
    let config = PortConfig { max_connecting: 4, ..PortConfig::default() };
    let mut port = open(&config);
    let way = port.ways()[0].clone();
    let name = way.rest.split('@').next().unwrap().to_owned();
    let hello = [2, b'k', b'f', b's', b'h', 2, 0, 1];
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let blocking = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let (segment, small, table) = (memfd(593_920), memfd(4096), memfd(4096 * 64));
    let unsealed = rustix::fs::memfd_create("u", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, 593_920).unwrap();
    let greetings: Vec<(&[u8], Vec<&OwnedFd>)> = vec![
        (b"", vec![]),
        (b"GET / HTTP/1.1", vec![]),
        (&hello[..7], vec![]),
        (&hello, vec![]),
        (&hello, vec![&segment]),
        (&hello, vec![&small, &bell, &table]),
        (&hello, vec![&unsealed, &bell, &table]),
        (&hello, vec![&segment, &pipe, &table]),
        (&hello, vec![&segment, &blocking, &table]),
        (&hello, vec![&segment, &bell, &small]),
        (&hello, vec![&pipe, &pipe, &pipe]),
        (&[2, b'k', b'f', b's', b'h', 1, 0, 1], vec![&segment, &bell, &table]),
        (&[1, 1, 2, 3], vec![]),
        (&[6; 26], vec![&segment]),
        (&[0; 300], vec![&segment, &segment, &segment, &segment, &segment]),
    ];
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = fds();
    for (bytes, with) in &greetings {
        let s = stranger(&name);
        let with: Vec<_> = with.iter().map(|f| f.as_fd()).collect();
        send(&s, bytes, &with);
        for _ in 0..20 {
            let events = {
                let e = pump(&mut *port);
                std::thread::sleep(std::time::Duration::from_micros(50));
                e
            };
            assert!(events.is_empty(), "{bytes:?}: {events:?}");
        }
    }
    until("nothing is left", || {
        assert!(pump(&mut *port).is_empty());
        fds() == before
    });
    // Strangers who say nothing hold greetings until the time limit; others wait in the backlog, and are then served.
    let silent: Vec<_> = (0..10).map(|_| stranger(&name)).collect();
    let mut client = open(&PortConfig::default());
    client.connect(&way).unwrap();
    (0..100).for_each(|_| assert!(pump(&mut *port).is_empty()));
    drop(silent);
    until("an honest client", || {
        pump(&mut *client);
        pump(&mut *port).iter().any(|e| matches!(e, Event::Incoming { .. }))
    });
}
