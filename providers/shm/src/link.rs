//! A connection that is up: its rings, its doorbell, what of the peer is mapped, and how it ends.

use crate::greet::{End, Parts};
use crate::mem::{Channel, Far};
use kfab_core::mem::{Landing, Slice};
use kfab_core::spi::{Conn, DownReason, Event, Frame, Next, Rma, RmaToken, Small};
use kfab_core::{Error, Kind};
use std::collections::HashSet;
use std::os::fd::OwnedFd;

/// One-sided operations that wait for memory to be mapped, of one connection.
pub(crate) const MAX_WAITING: usize = 1024;

/// A one-sided operation whose memory the owner was asked for.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) region: u64,
    pub(crate) secret: u64,
    pub(crate) rma: Rma,
    pub(crate) token: RmaToken,
}

/// A connection that is up.
pub(crate) struct Link {
    pub(crate) channel: Channel,
    pub(crate) far: Far,
    /// The length of a body that waits to be taken; 0: none.
    pub(crate) untaken: usize,
    /// It brought frames since the last look at who is idle.
    pub(crate) active: bool,
    /// It is looked at in each poll.
    pub(crate) hot: bool,
    /// A post was refused: the caller waits for `Writable`.
    pub(crate) refused: bool,
    /// We have said goodbye: nothing more is sent.
    pub(crate) closing: bool,
    /// How it ends, once its ring is empty.
    pub(crate) ending: Option<End>,
    /// Polls since then with something left in it.
    pub(crate) drains: u32,
    /// The peer hung up or died: it touches nothing of ours any more.
    pub(crate) gone: bool,
    /// Forget about it if the peer has not hung up by then (caller's clock).
    pub(crate) close_by_ns: Option<u64>,
    pub(crate) doorbell: OwnedFd,
    pub(crate) socket: OwnedFd,
    pub(crate) pidfd: OwnedFd,
    pub(crate) pid: i32,
    /// Whether process_vm_readv works here; `None`: not tried.
    pub(crate) cma: Option<bool>,
    pub(crate) waiting: Vec<Waiting>,
    /// Regions of ours that the peer was given.
    pub(crate) granted: HashSet<u64>,
    /// Window memory that could not be taken back from this peer in time: kept until it is gone.
    pub(crate) quarantine: Vec<Slice>,
}

/// How a post went.
pub(crate) enum Posted {
    All,
    /// So many; the ring is full.
    Some(usize),
    Failed(End),
}

pub(crate) fn hostile(h: kfab_core::ring::Hostile) -> End {
    End::new(DownReason::Hostile, h.0)
}

impl Link {
    pub(crate) fn new(p: Parts) -> Link {
        Link {
            channel: p.channel,
            far: Far::new(p.slots),
            untaken: 0,
            active: true,
            hot: true,
            refused: false,
            closing: false,
            ending: None,
            drains: 0,
            gone: false,
            close_by_ns: None,
            doorbell: p.doorbell,
            socket: p.socket,
            pidfd: p.pidfd,
            pid: p.pid,
            cma: None,
            waiting: Vec::new(),
            granted: HashSet::new(),
            quarantine: Vec::new(),
        }
    }

    /// It is up, and neither side has begun to end it.
    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        !self.closing && self.ending.is_none()
    }

    /// Wakes the peer. An eventfd whose counter is full is readable already.
    #[cold]
    #[inline(never)]
    pub(crate) fn ring(&self) -> bool {
        let _ = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
        true
    }

    /// Copies frames into the ring, and wakes the peer if it sleeps.
    #[inline(always)]
    pub(crate) fn post(&mut self, frames: &[Frame<'_>]) -> Posted {
        let mut done = 0;
        for f in frames {
            match self.channel.push(&f.header, &f.inline, &f.body) {
                Ok(true) => done += 1,
                Ok(false) => {
                    let len = f.body.len();
                    if len > crate::MAX_BODY {
                        let why =
                            format!("a body of {len} bytes was posted; at most {} fit", crate::MAX_BODY);
                        return Posted::Failed(End::new(DownReason::Broken, why));
                    }
                    break;
                }
                Err(h) => return Posted::Failed(hostile(h)),
            }
        }
        if done > 0 && self.channel.take_bell() {
            self.ring();
        }
        if done == frames.len() { Posted::All } else { Posted::Some(done) }
    }

    /// Copies a frame of `bytes` into the ring, and wakes the peer if it sleeps. `false`, and nothing has happened, if that cannot be.
    #[inline(always)]
    pub(crate) fn post_small(&mut self, header: u128, bytes: &[u8]) -> bool {
        let sent = self.is_open() && matches!(self.channel.push_bytes(header, bytes), Ok(true));
        sent && (!self.channel.take_bell() || self.ring())
    }

    /// The next frame; its body, if it has one, waits for [`Link::take`]. `Poll` for what is hostile: [`Link::receive`] says it.
    #[inline(always)]
    pub(crate) fn next_small(&mut self, into: &mut Small) -> Next {
        if self.untaken != 0 {
            return Next::Nothing;
        }
        let Ok(next) = self.channel.next_small(into) else { return Next::Poll };
        if next == Next::Frame {
            self.active = true;
            self.untaken = into.body_len;
            if into.body_len == 0 && self.channel.publish() {
                self.ring();
            }
        }
        next
    }

    /// Reports up to `limit` frames from the ring; how many. Stops at a body, which waits for [`Link::take`].
    #[inline(always)]
    pub(crate) fn receive(
        &mut self,
        conn: Conn,
        events: &mut Vec<Event>,
        limit: usize,
    ) -> Result<usize, End> {
        if self.untaken != 0 {
            return Ok(0);
        }
        let mut n = 0;
        while n < limit {
            let rx = match self.channel.peek() {
                Ok(Some(rx)) => rx,
                Ok(None) => break,
                Err(h) => return Err(hostile(h)),
            };
            n += 1;
            events.push(Event::Frame { conn, header: rx.header, inline: rx.inline, body_len: rx.body_len });
            if rx.body_len != 0 {
                self.untaken = rx.body_len;
                break;
            }
            self.channel.advance();
        }
        if n > 0 {
            self.active = true;
            if self.channel.publish() {
                self.ring();
            }
        }
        Ok(n)
    }

    /// Delivers the body that waits.
    #[inline]
    pub(crate) fn take(&mut self, landing: Option<&mut Landing>) {
        self.channel.take(std::mem::take(&mut self.untaken), landing);
        if self.channel.publish() {
            self.ring();
        }
    }

    /// `true` if a look at the ring now would find something to report.
    pub(crate) fn has_news(&self) -> bool {
        self.untaken == 0 && !self.channel.is_empty()
    }

    /// Ends all one-sided operations that wait.
    pub(crate) fn fail_waiting(&mut self, why: &End, events: &mut Vec<Event>) {
        for w in self.waiting.drain(..) {
            let kind = if why.reason == DownReason::Closed { Kind::Closed } else { Kind::PeerLost };
            let result = Err(Error::new(kind, "rma", why.detail.clone()));
            events.push(Event::RmaDone { token: w.token, landing: landing_of(w.rma), result });
        }
    }
}

/// The landing of an operation that did not happen.
pub(crate) fn landing_of(rma: Rma) -> Option<Landing> {
    match rma {
        Rma::Read { landing, .. } => Some(landing),
        Rma::Write { .. } => None,
    }
}
