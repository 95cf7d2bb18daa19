//! A cable in user space: two processes, each with a TAP card in its own network namespace, hand each other's frames over after a
//! delay of their own. What a queue does not hold any more is dropped, as a switch does.

use super::{child, sys};
use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Frames on their way: more than a connection keeps under way in these tests.
const QUEUE: usize = 8192;
const MAX_FRAME: usize = 2048;

/// The role `cable CARD OWN OTHER DELAY_US`: the sockets are paths, for abstract names end at the namespace.
pub(crate) fn end_of_cable(card: &str, own: &str, other: &str, delay: Duration) {
    child::listen(|_| {});
    let tap = sys::tap(card).expect("a TAP card");
    let socket = UnixDatagram::bind(own).expect("a socket");
    let (tx, rx) = sync_channel::<(Instant, Vec<u8>)>(QUEUE);
    let (mut from_kernel, mut to_kernel) = (tap.try_clone().unwrap(), tap);
    let out = socket.try_clone().unwrap();
    let other = other.to_owned();
    std::thread::spawn(move || {
        for (due, frame) in rx {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // The other end may not be there yet, or not any more: lost.
            let _ = out.send_to(&frame, &other);
        }
    });
    std::thread::spawn(move || {
        let mut frame = [0; MAX_FRAME];
        while let Ok(n) = socket.recv(&mut frame) {
            // A card that is down takes nothing.
            let _ = to_kernel.write(&frame[..n]);
        }
    });
    child::say("ready");
    let mut frame = [0; MAX_FRAME];
    loop {
        match from_kernel.read(&mut frame) {
            Ok(n) => match tx.try_send((Instant::now() + delay, frame[..n].to_vec())) {
                Ok(()) | Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Disconnected(_)) => return,
            },
            // Down: come back later.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
