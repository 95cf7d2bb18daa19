//! Two ports joined by queues in memory: every frame arrives at the next poll, bodies are copied once.

use kfab_core::mem::{Landing, Slice};
use kfab_core::spi::{
    Body, Caps, Conn, Delivery, Event, Exposure, Frame, HEADER_LEN, Inline, Port, Rights, Rma, RmaStarted,
    RmaToken, Way,
};
use kfab_core::{Error, Kind, Result};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

enum Item {
    Incoming,
    Up,
    Frame([u8; HEADER_LEN], Inline, Vec<u8>),
}

type Queue = Arc<Mutex<VecDeque<Item>>>;

/// The one connection of each port.
const CONN: Conn = Conn(1);

struct Looped {
    caps: Caps,
    name: &'static str,
    to_me: Queue,
    to_peer: Queue,
    body: Vec<u8>,
    fd: std::fs::File,
}

/// Two ports, `loop:a` and `loop:b`, with this delivery promise.
///
/// # Panics
/// If `/dev/null` cannot be opened.
pub fn pair(delivery: Delivery) -> (Box<dyn Port>, Box<dyn Port>) {
    let caps = Caps {
        delivery,
        max_body: 64 << 10,
        eager_max: 16 << 10,
        fetch_min: 0,
        fragment: 64 << 10,
        rma: false,
        zero_copy: false,
        sees_death: true,
        weight: 1,
        rank: 0,
        node: None,
    };
    let (x, y) = (Queue::default(), Queue::default());
    let port = |name, to_me: &Queue, to_peer: &Queue| {
        let fd = std::fs::File::open("/dev/null").expect("/dev/null");
        let (caps, to_me, to_peer) = (caps.clone(), to_me.clone(), to_peer.clone());
        Box::new(Looped { caps, name, to_me, to_peer, body: Vec::new(), fd }) as Box<dyn Port>
    };
    (port("a", &x, &y), port("b", &y, &x))
}

impl Looped {
    fn refused(op: &'static str) -> Error {
        Error::new(Kind::Unavailable, op, "a looped port has no one-sided access")
    }
}

fn lock(q: &Queue) -> std::sync::MutexGuard<'_, VecDeque<Item>> {
    q.lock().unwrap_or_else(|e| e.into_inner())
}

impl Port for Looped {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn ways(&self) -> Vec<Way> {
        vec![Way::new("loop", self.name)]
    }

    fn connect(&mut self, _: &Way) -> Result<Conn> {
        lock(&self.to_me).push_back(Item::Up);
        lock(&self.to_peer).push_back(Item::Incoming);
        Ok(CONN)
    }

    fn close(&mut self, _: Conn) {}

    fn post(&mut self, _: Conn, frames: &[Frame<'_>]) -> usize {
        let mut q = lock(&self.to_peer);
        for f in frames {
            let body = match f.body {
                Body::Empty => Vec::new(),
                Body::Borrowed(b) => b.to_vec(),
                Body::Owned(parts) => parts.iter().flat_map(|p| p.bytes().unwrap_or(&[])).copied().collect(),
            };
            q.push_back(Item::Frame(f.header, f.inline, body));
        }
        frames.len()
    }

    fn flush(&mut self) {}

    fn poll(&mut self, _: u64, events: &mut Vec<Event>) -> bool {
        let mut q = lock(&self.to_me);
        let had = !q.is_empty();
        while let Some(item) = q.pop_front() {
            match item {
                Item::Incoming => events.push(Event::Incoming { conn: CONN }),
                Item::Up => events.push(Event::Up { conn: CONN }),
                Item::Frame(header, inline, body) => {
                    let body_len = body.len();
                    self.body = body;
                    events.push(Event::Frame { conn: CONN, header, inline, body_len });
                    // Its body must be taken before the next frame is reported.
                    if body_len > 0 {
                        break;
                    }
                }
            }
        }
        had
    }

    fn take(&mut self, _: Conn, landing: Option<Landing>) -> Option<Option<Landing>> {
        Some(landing.map(|mut l| {
            let n = self.body.len().min(l.len());
            l.copy_from(0, &self.body[..n]);
            l
        }))
    }

    fn expose(&mut self, _: &Slice, _: Rights) -> Result<Exposure> {
        Err(Looped::refused("expose"))
    }

    fn revoke(&mut self, _: Exposure) {}

    fn rma(&mut self, _: Conn, rma: Rma, _: RmaToken) -> RmaStarted {
        let landing = match rma {
            Rma::Read { landing, .. } => Some(landing),
            Rma::Write { .. } => None,
        };
        RmaStarted::Failed(landing, Looped::refused("rma"))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn arm(&mut self) -> bool {
        lock(&self.to_me).is_empty()
    }
}
