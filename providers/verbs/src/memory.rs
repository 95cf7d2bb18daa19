//! The registered memory of a port: slots to receive into, shared by all connections, and slots to send from.
//!
//! The promise that no message ever finds no receive: each connection's peer may send so many messages unasked ([`Memory::provide`]),
//! and at least as many receives as all peers together may use are posted, or hold messages that were not reported yet. Only when a
//! receive is posted anew does the peer get its credit back (see `flow`). Called by `connect`, `flow` and `port`.

use crate::cache::Cache;
use crate::device::refusal;
use crate::sys::{Pd, Slot, Srq, Wc};
use crate::wire::SLOT_LEN;
use kfab_core::{Error, Kind, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Slots for heads of messages whose body stays where it is, and for small messages.
const SMALL_LEN: usize = 1024;
/// Slots registered at once.
const RECV_CHUNK: usize = 64;
const SEND_CHUNK: usize = 32;
const SMALL_CHUNK: usize = 128;
/// The most slots to send from; then posting has to wait.
const SEND_MAX: usize = 1024;
const SMALL_MAX: usize = 4096;
/// The largest of these registrations.
pub(crate) const LARGEST_BYTES: usize = RECV_CHUNK * SLOT_LEN;
/// Receives posted beyond what peers were promised: what a connection that breaks takes with it is missed before it can be replaced ...
const SLACK: usize = 8;
/// ... and empty ones are posted so many at a time.
const POST_AT: usize = 8;
/// What a queue must hold beyond what is promised: those, and some for connections that break within [`GONE`].
pub(crate) const EXTRA: usize = SLACK + POST_AT + 48;
/// A receive that later ones have overtaken for so long is in no living connection's hands: a card's retries end before.
const GONE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 20_000 });

/// Which receives are lost with connections that broke: see [`Memory::age`].
struct Inquest {
    /// The last receive that was posted then.
    until: u64,
    /// How many may be lost.
    suspects: usize,
    /// Since when later ones have come back.
    passed: Option<Instant>,
}

/// See the module.
pub(crate) struct Memory {
    pub(crate) srq: Srq,
    pub(crate) cache: Cache,
    /// To be posted with the next doorbell.
    repost: Vec<Slot>,
    /// Receives that are not needed now.
    spare: Vec<Slot>,
    /// Receives posted, to be posted, or holding a message.
    active: usize,
    /// Receives that peers were promised.
    promised: usize,
    /// Receives that there may be, see [`Memory::allow`] ...
    allowed: usize,
    /// ... and that the queue holds.
    depth: usize,
    /// Messages that were not reported or not taken yet ...
    held: usize,
    /// ... and those of them whose connection has ended: receives no more.
    orphans: usize,
    /// Receives that may be lost: see [`Memory::maybe_lost`] ...
    suspects: usize,
    /// ... and those in the queue that are: see [`Memory::age`].
    lost: usize,
    inquest: Option<Inquest>,
    big: Vec<Slot>,
    bigs: usize,
    small: Vec<Slot>,
    smalls: usize,
    pd: Arc<Pd>,
    card: String,
    node: Option<u32>,
}

impl Memory {
    /// A shared receive queue of `depth`; [`Memory::allow`] follows.
    pub(crate) fn new(pd: &Arc<Pd>, card: &str, node: Option<u32>, depth: usize) -> Result<Memory> {
        if let Some(why) = pd.room().lacks() {
            return Err(Error::new(Kind::Unavailable, "open", format!("{card}: {why}")));
        }
        let srq = Srq::new(pd, depth)
            .map_err(|e| Error::os("open", format!("{card}: a shared receive queue"), e))?;
        let mut m = Memory {
            srq,
            cache: Cache::new(pd),
            repost: Vec::new(),
            spare: Vec::new(),
            active: 0,
            promised: 0,
            allowed: 0,
            depth,
            held: 0,
            orphans: 0,
            suspects: 0,
            lost: 0,
            inquest: None,
            big: Vec::new(),
            bigs: 0,
            small: Vec::new(),
            smalls: 0,
            pd: pd.clone(),
            card: card.to_owned(),
            node,
        };
        // What every port needs, now: if the limit on locked memory is too small, `open` says so.
        m.spare = m.make(RECV_CHUNK, SLOT_LEN)?;
        m.big = m.make(SEND_CHUNK, SLOT_LEN)?;
        m.small = m.make(SMALL_CHUNK, SMALL_LEN)?;
        (m.bigs, m.smalls) = (SEND_CHUNK, SMALL_CHUNK);
        Ok(m)
    }

    fn make(&mut self, n: usize, len: usize) -> Result<Vec<Slot>> {
        let (pd, node) = (&self.pd, self.node);
        self.cache
            .spared_for(|| Slot::make(pd, n, len, node))
            .map_err(|e| Error::new(Kind::Unavailable, "register", refusal(pd, &self.card, n * len, &e)))
    }

    /// Lets there be so many receives, as far as the queue holds them: all may complete before anybody looks. How many that is.
    pub(crate) fn allow(&mut self, n: usize) -> usize {
        self.allowed = n.min(self.depth);
        self.allowed
    }

    /// `true` if there may be as many receives as the queue holds.
    pub(crate) fn is_whole(&self) -> bool {
        self.allowed == self.depth
    }

    /// `true` if there may be receives for another connection.
    pub(crate) fn has_room(&self, n: usize) -> bool {
        let missing = (self.promised + n).saturating_sub(self.active);
        self.all() + missing <= self.allowed
    }

    /// Receives, wherever they are, with those that may be lost.
    fn all(&self) -> usize {
        (self.srq.len() + self.repost.len() + self.held - self.orphans).saturating_sub(self.lost)
    }

    /// Time passes: finds out which of the receives that may be lost are. The queue takes receives in the order in which they were posted; one that was there when a
    /// connection broke, and did not come back long after later ones did, is nobody's. Its memory stays with the queue, but it takes no place; the
    /// others were replaced without need and are taken out as they come.
    #[inline]
    pub(crate) fn age(&mut self, now: Instant) {
        if self.suspects > 0 {
            self.look_for_lost(now);
        }
    }

    fn look_for_lost(&mut self, now: Instant) {
        let (posts, suspects) = (self.srq.posts(), self.suspects);
        let inquest = self.inquest.get_or_insert(Inquest { until: posts, suspects, passed: None });
        if self.srq.reached() < inquest.until {
            return;
        }
        let passed = *inquest.passed.get_or_insert(now);
        if now.saturating_duration_since(passed) < GONE {
            return;
        }
        let lost = self.srq.missing(inquest.until);
        self.active = (self.active + inquest.suspects + self.lost).saturating_sub(lost);
        self.suspects -= inquest.suspects;
        (self.lost, self.inquest) = (lost, None);
        if let Err(e) = self.fill() {
            tracing::warn!(%e, "a lost receive could not be replaced");
        }
    }

    /// Takes a message out of the queue; [`Memory::recycle`], [`Memory::returned`] or [`Memory::buried`] follows.
    #[inline]
    pub(crate) fn complete(&mut self, wc: &Wc) -> Option<Slot> {
        let slot = self.srq.complete(wc)?;
        self.held += 1;
        Some(slot)
    }

    /// Posts receives for a peer that will be promised `n`.
    pub(crate) fn provide(&mut self, n: usize) -> Result<()> {
        self.promised += n;
        let filled = self.fill();
        if filled.is_err() {
            self.promised -= n;
        }
        filled
    }

    /// Receives that should be posted or hold a message.
    fn wanted(&self) -> usize {
        if self.promised == 0 { 0 } else { self.promised + SLACK + POST_AT }
    }

    fn fill(&mut self) -> Result<()> {
        while self.active < self.wanted() {
            if self.all() >= self.allowed {
                if self.active >= self.promised {
                    break;
                }
                let why = format!(
                    "{}: the shared receive queue holds {} receives at most",
                    self.card, self.allowed
                );
                return Err(Error::new(Kind::Limit, "connect", why));
            }
            if self.spare.is_empty() {
                self.spare = self.make(RECV_CHUNK, SLOT_LEN)?;
            }
            self.repost.extend(self.spare.pop());
            self.active += 1;
        }
        self.post()
    }

    /// The peer that was promised `n` is gone for good, and so is the queue pair; not `well` if it broke.
    pub(crate) fn withdraw(&mut self, n: usize, well: bool) {
        self.promised = self.promised.saturating_sub(n);
        if !well {
            self.maybe_lost();
        }
        if self.promised == 0 && self.held == 0 && self.suspects + self.lost > 0 {
            self.renew();
        }
    }

    /// No queue pair is left: a new queue, so that no receive is lost for good. The old one's slots are freed with it.
    fn renew(&mut self) {
        match Srq::new(&self.pd, self.depth) {
            Ok(new) => {
                self.srq = new;
                self.spare.append(&mut self.repost);
                (self.active, self.suspects, self.lost, self.inquest) = (0, 0, 0, None);
            }
            Err(e) => tracing::debug!(%e, "the shared receive queue is kept, with what may be lost in it"),
        }
    }

    /// A receive is empty again.
    #[inline(always)]
    pub(crate) fn recycle(&mut self, slot: Slot) {
        self.held -= 1;
        if self.active > self.wanted() {
            self.active -= 1;
            self.spare.push(slot);
        } else {
            self.repost.push(slot);
        }
    }

    /// A connection broke: the receive that a message was arriving in may be lost with it (soft-RoCE), so another takes its
    /// place. If it does come back, as an error, see [`Memory::returned`]; if not, the queue holds one more than it needs, which
    /// soon does not count (see [`Memory::age`]), until no connection is left.
    fn maybe_lost(&mut self) {
        self.suspects += 1;
        self.active = self.active.saturating_sub(1);
        if let Err(e) = self.fill() {
            tracing::warn!(%e, "a lost receive could not be replaced");
        }
    }

    /// A connection has ended with so many messages that nobody has taken yet: they are no receives for others, who are given new ones when
    /// they are promised any. [`Memory::buried`] follows for each.
    pub(crate) fn orphan(&mut self, n: usize) {
        self.active = self.active.saturating_sub(n);
        self.orphans += n;
    }

    /// One of [`Memory::orphan`] was taken.
    pub(crate) fn buried(&mut self, slot: Slot) {
        self.orphans -= 1;
        self.returned(slot);
    }

    /// A receive came back with an error.
    pub(crate) fn returned(&mut self, slot: Slot) {
        self.held -= 1;
        self.spare.push(slot);
    }

    /// Posts what [`Memory::recycle`] gathered, if it is many: before any peer is told of it. The few that wait are not missed while
    /// all those beyond the promise are there.
    #[inline]
    pub(crate) fn post_many(&mut self) -> Result<()> {
        if self.repost.is_empty() || (self.repost.len() < POST_AT && self.active >= self.wanted()) {
            return Ok(());
        }
        self.post()
    }

    fn post(&mut self) -> Result<()> {
        self.srq
            .post(&mut self.repost)
            .map_err(|e| Error::os("receive", format!("{}: post receives", self.card), e))
    }

    /// A slot to send `len` bytes from; `None` if too many are under way.
    #[inline]
    pub(crate) fn send_slot(&mut self, len: usize) -> Option<Slot> {
        if len <= SMALL_LEN {
            if self.small.is_empty() && self.smalls < SMALL_MAX {
                self.small = self.make(SMALL_CHUNK, SMALL_LEN).ok()?;
                self.smalls += SMALL_CHUNK;
            }
            return self.small.pop();
        }
        if self.big.is_empty() && self.bigs < SEND_MAX {
            self.big = self.make(SEND_CHUNK, SLOT_LEN).ok()?;
            self.bigs += SEND_CHUNK;
        }
        self.big.pop()
    }

    /// Takes a slot of [`Memory::send_slot`] back.
    pub(crate) fn sent(&mut self, slot: Slot) {
        if slot.len() == SMALL_LEN { self.small.push(slot) } else { self.big.push(slot) }
    }

    /// Receives posted now; for tests and logs.
    pub(crate) fn posted(&self) -> usize {
        self.srq.len()
    }
}
