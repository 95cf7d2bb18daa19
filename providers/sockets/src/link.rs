//! One connection: its phase, its two halves, and the body that waits. Called by `port`, which owns the table of links, the
//! epoll descriptor and the clock; a link touches nothing but its own socket.
//!
//! Invariants: after a `Frame` with a body nothing more is read until it is taken; a link that ends hands back a lent landing
//! before its `Down`; `readable` is `false` only after the socket said that it is empty, so that an edge-triggered epoll
//! reports the next arrival.

use crate::receive::{Item, Receiver};
use crate::send::{Sender, Wrote};
use crate::stage::StagePool;
use kfab_core::auth::Session;
use kfab_core::auth::greeting::{Greeter, Outcome, Terms};
use kfab_core::mem::Landing;
use kfab_core::spi::{Conn, DownReason, Event, Small};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What all links of a port share.
pub(crate) struct Shared {
    pub(crate) pool: StagePool,
    /// Memory for the body that is expected next, on whichever link: see [`Receiver::expected`].
    pub(crate) spare: Option<Landing>,
    /// Bulk came since that was last looked at.
    pub(crate) bulk: bool,
    pub(crate) terms: Terms,
}

/// Why a link ends.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) reason: DownReason,
    pub(crate) detail: String,
}

impl End {
    pub(crate) fn new(reason: DownReason, detail: impl Into<String>) -> End {
        End { reason, detail: detail.into() }
    }

    fn hostile(why: &str) -> End {
        End::new(DownReason::Hostile, why)
    }

    pub(crate) fn broken(doing: &str, e: Errno) -> End {
        End::new(DownReason::Broken, format!("{doing}: {e}"))
    }
}

/// How far a connection has come.
pub(crate) enum Phase {
    /// Waits for its turn to connect.
    Queued,
    /// The kernel is connecting.
    Connecting,
    /// Greetings are exchanged.
    Greeting(Box<Greeter>),
    /// We refused; the answer leaves, then the link ends.
    Refusing,
    /// Frames flow.
    Up,
    /// Our goodbye is queued or sent; the peer's frames still arrive.
    Closing,
}

/// The body of the last frame.
enum Waiting {
    None,
    /// Not yet taken.
    Untaken {
        len: usize,
    },
    /// Taken; `filled` bytes have arrived, those beyond the landing dropped.
    Filling {
        landing: Option<Landing>,
        len: usize,
        filled: usize,
    },
}

/// What a turn brought.
pub(crate) struct Turn {
    /// Something happened.
    pub(crate) moved: bool,
    /// The batch was full: there is more.
    pub(crate) again: bool,
}

/// One connection.
pub(crate) struct Link {
    pub(crate) id: Conn,
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) to: Option<SocketAddr>,
    pub(crate) phase: Phase,
    pub(crate) session: Option<Box<Session>>,
    pub(crate) rx: Receiver,
    pub(crate) tx: Sender,
    waiting: Waiting,
    /// The end, while an untaken body holds it back.
    pub(crate) dead: Option<End>,
    pub(crate) readable: bool,
    /// The socket told of a hang-up: read until its end.
    pub(crate) hup: bool,
    pub(crate) tx_blocked: bool,
    /// The writing side failed; what is queued is dropped, reading goes on to the end.
    tx_dead: Option<Errno>,
    /// `post` accepted fewer than offered.
    pub(crate) refused: bool,
    pub(crate) in_ready: bool,
    pub(crate) dirty: bool,
    /// Taken out of epoll: hot, and polled for a long while without sleep.
    pub(crate) detached: bool,
    got_goodbye: bool,
    /// Connecting side: counted against `max_connecting`.
    pub(crate) attempt: bool,
    /// Reported to the caller (`Incoming`) or asked for by it (`connect`): its end is an event.
    pub(crate) known: bool,
    pub(crate) deadline_ns: Option<u64>,
}

impl Link {
    /// A link without a socket yet, or with an accepted one.
    pub(crate) fn new(id: Conn, to: Option<SocketAddr>, accepted: Option<OwnedFd>) -> Link {
        let phase = match accepted {
            Some(_) => Phase::Greeting(Box::new(Greeter::acceptor())),
            None => Phase::Queued,
        };
        Link {
            id,
            fd: accepted,
            to,
            phase,
            session: None,
            rx: Receiver::default(),
            tx: Sender::default(),
            waiting: Waiting::None,
            dead: None,
            readable: false,
            hup: false,
            tx_blocked: false,
            tx_dead: None,
            refused: false,
            in_ready: false,
            dirty: false,
            detached: false,
            got_goodbye: false,
            attempt: false,
            known: to.is_some(),
            deadline_ns: None,
        }
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, End> {
        self.fd.as_ref().map(|f| f.as_fd()).ok_or_else(|| End::new(DownReason::Broken, "no socket"))
    }

    /// `true` while frames may flow either way.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Up | Phase::Closing)
    }

    /// `true` if the caller must take a body before anything else happens here.
    #[inline]
    pub(crate) fn is_untaken(&self) -> bool {
        matches!(self.waiting, Waiting::Untaken { .. })
    }

    /// `true` if the peer has said goodbye.
    pub(crate) fn peer_said_goodbye(&self) -> bool {
        self.got_goodbye
    }

    /// Takes the kernel's word that the connection is made; the greeting starts.
    pub(crate) fn connected(&mut self, sh: &mut Shared) -> Result<(), End> {
        let mut out = Vec::new();
        let g = Greeter::connector(&sh.terms, &mut out)
            .map_err(|e| End::new(DownReason::Denied, e.to_string()))?;
        self.phase = Phase::Greeting(Box::new(g));
        self.tx.raw(&out, &mut sh.pool);
        self.write(sh)
    }

    /// Goes on with the greeting. `Some(event)` when the connection came up.
    pub(crate) fn greet(&mut self, sh: &mut Shared, full: bool) -> Result<Option<Event>, End> {
        let mut out = Vec::new();
        let outcome = loop {
            let Some(fd) = &self.fd else { return Ok(None) };
            let Phase::Greeting(g) = &mut self.phase else { return Ok(None) };
            let n = match recv(fd, g.space(), RecvFlags::empty()) {
                Ok((_, 0)) => {
                    return Err(End::new(DownReason::Broken, "the peer hung up during the greeting"));
                }
                Ok((_, n)) => n,
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    break Outcome::More;
                }
                Err(Errno::INTR) => continue,
                Err(e) => return Err(End::broken("greeting", e)),
            };
            match g.received(n, &sh.terms, full, &mut out) {
                Outcome::More => {}
                Outcome::Agreed if !g.has_session() => break Outcome::Confirmed,
                Outcome::Agreed => {
                    if let Outcome::Confirmed = g.confirm(&mut out) {
                        break Outcome::Confirmed;
                    }
                }
                o => break o,
            }
        };
        self.tx.raw(&out, &mut sh.pool);
        self.write(sh)?;
        match outcome {
            Outcome::More => Ok(None),
            Outcome::Refuse => {
                self.phase = Phase::Refusing;
                self.readable = false;
                self.settled()?;
                Ok(None)
            }
            Outcome::Denied(why) => Err(End::new(DownReason::Denied, why)),
            Outcome::Full => {
                Err(End::new(DownReason::Broken, "the peer has as many connections as it may have"))
            }
            Outcome::Garbage(why) => Err(End::hostile(why)),
            Outcome::Agreed | Outcome::Word(_) => Ok(None),
            Outcome::Confirmed => {
                if let Phase::Greeting(g) = &mut self.phase {
                    self.session = g.take_session().filter(|_| sh.terms.seal);
                }
                self.rx = Receiver::new(self.session.is_some());
                self.phase = Phase::Up;
                self.deadline_ns = None;
                self.known = true;
                let conn = self.id;
                Ok(Some(if self.to.is_some() { Event::Up { conn } } else { Event::Incoming { conn } }))
            }
        }
    }

    /// Writes what is queued, as far as the socket takes it. A failure ends only the writing side.
    pub(crate) fn write(&mut self, sh: &mut Shared) -> Result<(), End> {
        if self.tx.is_empty() || self.tx_blocked {
            return Ok(());
        }
        let Some(fd) = &self.fd else { return Ok(()) };
        let wrote = self.tx.write(fd.as_fd(), self.session.as_deref_mut(), &mut sh.pool);
        self.wrote(wrote, sh)
    }

    /// Notes how a write ended.
    pub(crate) fn wrote(&mut self, wrote: Result<Wrote, Errno>, sh: &mut Shared) -> Result<(), End> {
        match wrote {
            Ok(w) => self.tx_blocked = w == Wrote::Blocked,
            Err(e) => {
                self.tx_dead = Some(e);
                self.tx_blocked = false;
                self.tx.clear(&mut sh.pool);
                (self.readable, self.hup) = (true, true);
            }
        }
        self.settled()
    }

    /// `true` if frames posted now would go nowhere.
    pub(crate) fn is_mute(&self) -> bool {
        self.tx_dead.is_some() || self.dead.is_some() || matches!(self.phase, Phase::Closing)
    }

    /// Ends the link if nothing is left to do on it.
    pub(crate) fn settled(&mut self) -> Result<(), End> {
        if !self.tx.is_empty() {
            return Ok(());
        }
        match self.phase {
            Phase::Refusing => Err(End::new(DownReason::Denied, "refused")),
            Phase::Closing if self.got_goodbye => Err(match self.tx_dead {
                None => End::new(DownReason::Closed, "closed in good order"),
                Some(e) => End::broken("the last frames could not be sent", e),
            }),
            _ => Ok(()),
        }
    }

    /// Queues our goodbye behind what was accepted.
    pub(crate) fn goodbye(&mut self, sh: &mut Shared) -> Result<(), End> {
        if matches!(self.phase, Phase::Up) {
            self.phase = Phase::Closing;
            if self.tx_dead.is_none() {
                self.tx.goodbye(self.session.as_deref_mut(), &mut sh.pool);
            }
            self.write(sh)?;
        }
        self.settled()
    }

    /// Reads and parses until the socket is empty, a body waits, or `events` holds `limit`.
    pub(crate) fn pump(
        &mut self,
        sh: &mut Shared,
        events: &mut Vec<Event>,
        limit: usize,
    ) -> Result<Turn, End> {
        let mut turn = Turn { moved: false, again: false };
        loop {
            if let Waiting::Filling { filled: before, .. } = self.waiting {
                let whole = self.fill(sh)?;
                turn.moved |= matches!(self.waiting, Waiting::Filling { filled, .. } if filled > before);
                match whole {
                    None => return Ok(turn),
                    Some(landing) => {
                        turn.moved = true;
                        events.push(Event::Taken { conn: self.id, landing, ok: true });
                    }
                }
            }
            if self.parse(sh, events, limit, &mut turn)? {
                self.rx.release(&mut sh.pool);
                return Ok(turn);
            }
            if !self.readable {
                self.rx.release(&mut sh.pool);
                return Ok(turn);
            }
            turn.moved |= self.fetch(sh)?;
        }
    }

    /// `true` if the short way up is open: [`Link::next_bare`].
    #[inline]
    pub(crate) fn is_calm(&self) -> bool {
        matches!((&self.phase, &self.waiting), (Phase::Up, Waiting::None))
            && self.session.is_none()
            && self.dead.is_none()
            && !(self.tx_blocked || self.hup || self.got_goodbye)
    }

    /// One read, and the first frame of it. `None`: nothing has arrived. `false`: what came first is no frame without a body.
    /// What else has arrived stays staged.
    #[inline]
    pub(crate) fn next_bare(&mut self, sh: &mut Shared, into: &mut Small) -> Result<Option<bool>, End> {
        let moved = self.fetch(sh)?;
        let frame = self.rx.next_bare();
        self.rx.release(&mut sh.pool);
        let Some((header, inline)) = frame else { return Ok(moved.then_some(false)) };
        let (low, high) = header.split_at(8);
        let word = |half: &[u8]| half.try_into().map_or(0, u64::from_ne_bytes);
        *into = Small { conn: self.id, header: [word(low), word(high)], inline, body_len: 0 };
        Ok(Some(true))
    }

    /// Parses what is staged; `true` if the turn is over.
    #[inline]
    fn parse(
        &mut self,
        sh: &mut Shared,
        events: &mut Vec<Event>,
        limit: usize,
        turn: &mut Turn,
    ) -> Result<bool, End> {
        if self.is_untaken() || self.got_goodbye {
            return Ok(true);
        }
        while events.len() < limit {
            match self.rx.next(self.session.as_deref_mut(), &mut sh.pool).map_err(End::hostile)? {
                Item::Nothing => return Ok(false),
                Item::Goodbye => {
                    self.got_goodbye = true;
                    self.readable = false;
                    self.goodbye(sh)?;
                    return Ok(true);
                }
                Item::Frame { header, inline, body_len } => {
                    turn.moved = true;
                    events.push(Event::Frame { conn: self.id, header, inline, body_len });
                    if body_len > 0 {
                        self.waiting = Waiting::Untaken { len: body_len };
                        return Ok(true);
                    }
                }
            }
        }
        turn.again = true;
        Ok(true)
    }

    /// One read into staging memory; `false` if the socket is empty.
    #[inline]
    fn fetch(&mut self, sh: &mut Shared) -> Result<bool, End> {
        let Some(fd) = &self.fd else { return Err(End::new(DownReason::Broken, "no socket")) };
        let in_body = matches!(self.waiting, Waiting::Filling { .. });
        let expected = if in_body { 0 } else { self.rx.expected() };
        if let Some(mut spare) = sh.spare.take_if(|s| expected > 0 && expected <= s.len()) {
            let head = self.rx.head(&mut sh.pool);
            let asked = head.len() + expected;
            let read = spare.read_behind(fd, head, expected);
            let n = read.as_ref().map_or(0, |n| *n);
            sh.spare = self.rx.received_ahead(n, spare, &mut sh.pool);
            return match read {
                Ok(n) => self.got(n, asked).map(|()| true),
                Err(e) => self.not_read(Errno::from_io_error(&e).unwrap_or(Errno::IO)).map(|()| false),
            };
        }
        let space = self.rx.space(in_body, &mut sh.pool);
        let asked = space.len();
        match recv(fd, space, RecvFlags::empty()) {
            Ok((_, n)) => {
                self.got(n, asked)?;
                self.rx.received(n);
                Ok(true)
            }
            Err(e) => self.not_read(e).map(|()| false),
        }
    }

    /// Judges why a read gave nothing.
    #[inline]
    fn not_read(&mut self, e: Errno) -> Result<(), End> {
        match e {
            Errno::AGAIN => self.readable = false,
            Errno::INTR => {}
            e => return Err(self.lost(Some(e))),
        }
        Ok(())
    }

    /// Judges the length of a read.
    #[inline]
    fn got(&mut self, n: usize, asked: usize) -> Result<(), End> {
        if n == 0 {
            return Err(self.lost(None));
        }
        if n < asked && !self.hup {
            self.readable = false;
        }
        Ok(())
    }

    fn lost(&self, e: Option<Errno>) -> End {
        match e.or(self.tx_dead) {
            Some(e) => End::broken("connection lost", e),
            None => End::new(DownReason::Broken, "the peer hung up without a goodbye"),
        }
    }

    /// Moves body bytes to the landing; `Some` when the body is complete.
    fn fill(&mut self, sh: &mut Shared) -> Result<Option<Option<Landing>>, End> {
        loop {
            let Waiting::Filling { landing, len, filled } = &mut self.waiting else { return Ok(None) };
            let left = *len - *filled;
            if left == 0 {
                let landing = landing.take();
                self.waiting = Waiting::None;
                return Ok(Some(landing));
            }
            let staged = self.rx.body(self.session.as_deref_mut(), &mut sh.pool).map_err(End::hostile)?;
            if !staged.is_empty() {
                let n = staged.len().min(left);
                if let Some(l) = landing {
                    l.copy_from(*filled, &staged[..n]);
                }
                *filled += n;
                self.rx.consume(n);
                continue;
            }
            if !self.readable || self.dead.is_some() {
                self.rx.release(&mut sh.pool);
                return Ok(None);
            }
            let direct = self.rx.is_direct();
            match (landing, &self.fd) {
                (Some(l), Some(fd)) if direct && *filled < l.len() => {
                    let end = l.len().min(*len);
                    let asked = end - *filled;
                    match l.read_from(fd, *filled, end) {
                        Ok(n) => {
                            *filled += n;
                            self.got(n, asked)?;
                        }
                        Err(e) => self.not_read(Errno::from_io_error(&e).unwrap_or(Errno::IO))?,
                    }
                }
                _ => drop(self.fetch(sh)?),
            }
        }
    }

    /// Starts to deliver the waiting body; `Some` if that ended within the call. `None` if no body waits.
    pub(crate) fn take(
        &mut self,
        mut landing: Option<Landing>,
        sh: &mut Shared,
    ) -> Result<Option<Option<Landing>>, End> {
        let Waiting::Untaken { len } = self.waiting else { return Ok(None) };
        let mut filled = 0;
        if let Some((mut spare, came)) = self.rx.take_ahead() {
            filled = came;
            if let Some(l) = &mut landing {
                l.take_over(&mut spare, came);
            }
            sh.spare = Some(spare);
        }
        let expected = self.rx.lands(landing.as_ref());
        if expected > 0 {
            sh.bulk = true;
            if expected > sh.spare.as_ref().map_or(0, Landing::len) {
                sh.spare = landing.as_ref().and_then(Landing::spare);
            }
        }
        self.waiting = Waiting::Filling { landing, len, filled };
        self.readable |= self.dead.is_none();
        self.fill(sh)
    }

    /// The landing of a body that will not become whole; `Some` if there is one to report.
    pub(crate) fn abandon(&mut self) -> Option<Option<Landing>> {
        match std::mem::replace(&mut self.waiting, Waiting::None) {
            Waiting::Filling { landing, .. } => Some(landing),
            _ => None,
        }
    }

    /// Tells the peer's kernel that we send no more.
    pub(crate) fn shut(&self) {
        if let Ok(fd) = self.fd() {
            let _ = shutdown(fd, Shutdown::Write);
        }
    }

    /// Gives all staging memory back.
    pub(crate) fn drain(&mut self, sh: &mut Shared) {
        self.tx.clear(&mut sh.pool);
    }
}
