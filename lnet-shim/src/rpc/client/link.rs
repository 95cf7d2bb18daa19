//! The client's endpoint side: the server's addresses in turn, the receive that is posted, and how packets leave.

use super::super::body::Body;
use super::super::error::{Kind as Failure, Result};
use super::super::faults::{Blow, Dice};
use super::super::outbox::Packet;
use super::super::wire::{TAG_CLIENT, TAG_TO_CLIENT};
use super::core::{Core, Send, Start};
use kfab::{Buffer, Endpoint, Kind, Message, Op, Payload, Peer};
use std::time::{Duration, Instant};

/// Pause after all addresses failed, first and longest, ns.
const PAUSE: (u64, u64) = (5_000_000, 500_000_000);

/// How packets leave, and what befalls them.
pub(super) struct Wire {
    peer: Option<Peer>,
    dice: Option<Dice>,
    late: Vec<(u64, Peer, u64, Vec<u8>)>,
    now: u64,
}

impl Wire {
    #[cold]
    fn hurt(&mut self, peer: &Peer, tag: u64, packet: &Packet<'_>) -> bool {
        let Some(dice) = &mut self.dice else { return true };
        let bytes = || match packet {
            Packet::Whole(b) => b.to_vec(),
            Packet::Tailed(b, tail) => [b, &tail[..]].concat(),
        };
        match dice.throw() {
            Blow::None => return true,
            Blow::Drop => {}
            Blow::Duplicate => {
                drop(peer.send_tagged(tag, &bytes()[..]));
                return true;
            }
            Blow::Delay => self.late.push((self.now + dice.late_ns(), peer.clone(), tag, bytes())),
        }
        false
    }

    fn tick(&mut self, now: u64) {
        self.now = now;
        for (_, peer, tag, bytes) in self.late.extract_if(.., |l| l.0 <= now).collect::<Vec<_>>() {
            drop(peer.send_tagged(tag, &bytes[..]));
        }
    }
}

impl Send for Wire {
    #[inline]
    fn send(&mut self, tag: u64, packet: Packet<'_>) {
        if self.dice.is_some()
            && let Some(peer) = self.peer.clone()
            && !self.hurt(&peer, tag, &packet)
        {
            return;
        }
        let Some(peer) = &self.peer else { return };
        // A send that fails is as good as lost: the receive that is posted tells that the peer is gone.
        match packet {
            Packet::Whole(bytes) => drop(peer.send_tagged(tag, bytes)),
            Packet::Tailed(head, tail) => {
                let parts = vec![Buffer::adopt(head.to_vec()), tail];
                drop(peer.send_tagged(tag, Payload::Buffers(parts)));
            }
        }
    }
}

/// The core and what carries it.
pub(super) struct State {
    pub(super) core: Core,
    pub(super) wire: Wire,
    client: u64,
    receive: Option<Op<Message>>,
    /// The last packet: its memory is given up while the next is waited for.
    read: Option<Message>,
    addresses: Vec<String>,
    next: usize,
    next_try: u64,
    pause: u64,
    /// A thread waits on the receive, which is not here then.
    pub(super) leading: bool,
    /// Somebody drives in a loop: polled calls need not.
    pub(super) driven: usize,
    start: Instant,
    /// The last look at the clock.
    pub(super) now: u64,
    /// Calls that have begun since then.
    begun: Vec<usize>,
}

impl State {
    pub(super) fn new(core: Core, client: u64, addresses: Vec<String>, dice: Option<Dice>) -> State {
        State {
            core,
            wire: Wire { peer: None, dice, late: Vec::new(), now: 0 },
            client,
            receive: None,
            read: None,
            addresses,
            next: 0,
            next_try: 0,
            pause: PAUSE.0,
            leading: false,
            driven: 0,
            start: Instant::now(),
            now: 0,
            begun: Vec::new(),
        }
    }

    /// Looks at the clock. Calls that have begun since the last look count from this one.
    #[inline]
    pub(super) fn clock(&mut self) {
        let now = self.start.elapsed().as_nanos() as u64;
        let passed = now - self.now;
        self.now = now;
        for key in self.begun.drain(..) {
            self.core.began_later(key, passed);
        }
    }

    /// Begins a call. To look at the clock takes longer than most of it: that is for later, once for many.
    #[inline]
    pub(super) fn begin(&mut self, start: Start) -> Result<usize> {
        let key = self.core.start(self.now, start, &mut self.wire)?;
        self.begun.push(key);
        Ok(key)
    }

    /// Calls have begun since the last look at the clock.
    #[inline]
    pub(super) fn has_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Sends what waits, and only then looks at the clock.
    #[inline]
    pub(super) fn leave(&mut self) {
        self.core.flush(&mut self.wire);
        self.clock();
    }

    /// Connects if need be, sends what waits, and looks at the timers.
    #[inline]
    pub(super) fn advance(&mut self, endpoint: &Endpoint) {
        let now = self.now;
        if !self.wire.late.is_empty() {
            self.wire.tick(now);
        }
        if self.core.is_down() {
            self.connect(endpoint);
        }
        if now >= self.core.due() && self.core.tick(now, &mut self.wire) {
            self.lost();
            self.connect(endpoint);
        }
        self.core.flush(&mut self.wire);
    }

    /// How long to wait for a packet at most.
    #[inline]
    pub(super) fn patience(&self) -> Duration {
        let mut due = self.core.due();
        if self.core.is_down() {
            due = due.min(self.next_try);
        }
        let late = self.wire.late.iter().map(|l| l.0).min().unwrap_or(u64::MAX);
        Duration::from_nanos(due.min(late).saturating_sub(self.now).clamp(1, 1_000_000_000))
    }

    /// The posted receive, to be waited for. While no peer is there, one that nothing will ever end but its time.
    #[inline]
    pub(super) fn take_receive(&mut self, endpoint: &Endpoint) -> Op<Message> {
        self.read = None;
        if let Some(op) = self.receive.take() {
            return op;
        }
        let tag = TAG_TO_CLIENT | self.client & TAG_CLIENT;
        match &self.wire.peer {
            Some(peer) => endpoint.recv_with().tag(tag, 0).from(peer).post(),
            None => endpoint.recv_tagged(tag | 0xff << 48, 0),
        }
    }

    pub(super) fn put_receive(&mut self, op: Op<Message>) {
        self.receive = Some(op);
    }

    /// What the receive ended with.
    #[inline]
    pub(super) fn received(&mut self, result: kfab::Result<Message>) {
        match result {
            Ok(message) => {
                self.packet(message);
                if self.core.is_up() {
                    // The next loss begins with short pauses again.
                    self.pause = PAUSE.0;
                }
            }
            Err(e) => match e.kind() {
                Kind::TimedOut | Kind::Canceled => {}
                Kind::Closed => self.core.end_all(Failure::Closed, "the endpoint was closed"),
                _ => {
                    tracing::debug!(target: "lnet", "rpc server lost: {e}");
                    self.lost();
                }
            },
        }
    }

    #[inline]
    fn packet(&mut self, message: Message) {
        // A large reply keeps the message's memory; it is taken out of the cell by whoever shares it.
        let (len, start) = (message.len(), self.start);
        let now = || start.elapsed().as_nanos() as u64;
        if len <= super::super::outbox::COPY_MAX {
            self.core.receive(now, &message, |_| None, &mut self.wire);
            self.read = Some(message);
            return;
        }
        match Body::from_message(message, 0) {
            Ok(body) => {
                let buffer = body.into_buffer();
                let share =
                    |at: usize| (at <= buffer.len()).then(|| Body::from(buffer.slice(at..buffer.len())));
                self.core.receive(now, &buffer, share, &mut self.wire);
            }
            Err(e) => tracing::warn!(target: "lnet", "a reply is lost: {e}"),
        }
    }

    /// Takes packets that have come already.
    pub(super) fn pump(&mut self, endpoint: &Endpoint) {
        for _ in 0..64 {
            let mut op = self.take_receive(endpoint);
            if !op.is_done() {
                self.receive = Some(op);
                return;
            }
            self.received(op.wait());
        }
    }

    fn lost(&mut self) {
        self.core.link_lost();
        (self.wire.peer, self.receive) = (None, None);
    }

    fn connect(&mut self, endpoint: &Endpoint) {
        if self.core.under_way() == 0 || self.now < self.next_try {
            return;
        }
        let address = self.addresses[self.next % self.addresses.len()].clone();
        self.next += 1;
        if self.next.is_multiple_of(self.addresses.len()) {
            // All have been tried: not at once again.
            self.next_try = self.now + self.pause;
            self.pause = (self.pause * 2).min(PAUSE.1);
        }
        match endpoint.peer(&address) {
            Ok(peer) => {
                (self.wire.peer, self.receive) = (Some(peer), None);
                self.core.connect(self.now, &mut self.wire);
            }
            Err(e) => tracing::warn!(target: "lnet", "{address}: {e}"),
        }
    }
}
