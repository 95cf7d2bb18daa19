//! Connections: dialing the ways of an address best first, the hello, rails coming and going, restarts, the loss of a peer.

use crate::events::FabricEvent;
use crate::faults::{Strike, split_mix};
use crate::limits::Limits;
use crate::machine::{Io, Machine};
use crate::message::*;
use crate::ops::Proto;
use crate::pairs::pairs;
use crate::peer::{Candidate, Dial, Held, Rx, Tx};
use crate::transmit::NOWHERE;
use crate::wire::*;
use kfab_core::mem::Landing;
use kfab_core::spi::{Address, Body, Conn, Delivery, DownReason, Frame, Inline, Way};
use kfab_core::{Error, Fate, Kind};
use zerocopy::IntoBytes;

/// Restarts of a peer under one number of our state.
const PAST_MAX: usize = 8;

impl Machine {
    // ---- dialing ----

    /// Pairs the ways of a peer's address with our ports of the same scheme.
    pub(crate) fn list_candidates(&mut self, io: &Io<'_>, pi: u32) {
        let Some(address) = &self.peers[pi as usize].address else { return };
        let mut list: Vec<Candidate> = Vec::new();
        let mut schemes: Vec<&str> = Vec::new();
        for w in address.ways() {
            if !schemes.contains(&w.scheme.as_str()) {
                schemes.push(&w.scheme);
            }
        }
        for scheme in schemes {
            let ways: Vec<_> = address.ways().iter().filter(|w| w.scheme == scheme).collect();
            let has = |p: &usize| io.ports[*p].ways().first().is_some_and(|w| w.scheme == scheme);
            let ports: Vec<_> = (0..io.ports.len()).filter(has).collect();
            let reaches = |w: usize, p: usize| io.ports[ports[p]].reaches(ways[w]);
            for (way, port) in pairs(ways.len(), ports.len(), reaches) {
                let (way, port) = (ways[way].clone(), ports[port]);
                let rank = io.ports[port].caps().rank;
                let dial = Dial::Down { next_try: 0 };
                list.push(Candidate { port, way, rank, dial, fails: 0, refused: false, why: String::new() });
            }
        }
        list.sort_by_key(|c| c.rank);
        self.peers[pi as usize].candidates = list;
        self.measure_frames(io, pi);
    }

    /// Finds the largest body of a frame for a peer: by any port of ours that may lead to it.
    pub(crate) fn measure_frames(&mut self, io: &Io<'_>, pi: u32) {
        let p = &mut self.peers[pi as usize];
        let leads = |scheme: &str| match &p.address {
            Some(a) => a.ways().iter().any(|w| w.scheme == scheme),
            None => true,
        };
        let ports = io.ports.iter().filter(|p| p.ways().first().is_none_or(|w| leads(&w.scheme)));
        p.frame_max = ports.map(|p| p.caps().max_body).min().unwrap_or(1024);
    }

    /// There is something to send and no connection.
    pub(crate) fn want_connection(&mut self, io: &mut Io<'_>, pi: u32) {
        let p = &mut self.peers[pi as usize];
        if p.candidates.is_empty() {
            self.list_candidates(io, pi);
        }
        self.dial(io, pi);
        self.set_timer(pi, io.now);
    }

    /// Starts the connections that are due: the best rank first; a worse one only when every better way has failed.
    pub(crate) fn dial(&mut self, io: &mut Io<'_>, pi: u32) {
        let p = &self.peers[pi as usize];
        let best_up = p.active.first().map(|ci| self.conns[*ci as usize].rank);
        let mut ranks: Vec<u8> = p.candidates.iter().map(|c| c.rank).collect();
        ranks.dedup();
        for rank in ranks {
            if best_up.is_some_and(|b| rank > b) {
                return;
            }
            let mut hope = false;
            for i in 0..self.peers[pi as usize].candidates.len() {
                let c = &self.peers[pi as usize].candidates[i];
                if c.rank == rank {
                    let due = matches!(c.dial, Dial::Down { next_try } if next_try <= io.now);
                    hope |= matches!(c.dial, Dial::Dialing { .. } | Dial::Up { .. }) || c.fails == 0;
                    if due && !self.faults.cuts(self.peers[pi as usize].name, c.port) {
                        self.dial_one(io, pi, i);
                    }
                }
            }
            if hope {
                return;
            }
        }
    }

    fn dial_one(&mut self, io: &mut Io<'_>, pi: u32, i: usize) {
        let c = &self.peers[pi as usize].candidates[i];
        let port = c.port;
        match io.ports[port].connect(&c.way) {
            Ok(conn) => {
                let ci = self.add_conn(io, port, conn, Some(pi));
                self.peers[pi as usize].candidates[i].dial = Dial::Dialing { conn: ci };
            }
            Err(e) => {
                self.dial_failed(io.now, pi, i, e.to_string(), e.kind() == Kind::Unreachable);
                if e.kind() == Kind::InvalidArgument {
                    // It will not make more sense later.
                    self.peers[pi as usize].candidates[i].dial = Dial::Down { next_try: u64::MAX };
                }
            }
        }
    }

    fn dial_failed(&mut self, now: u64, pi: u32, i: usize, why: String, refused: bool) {
        let (first, most) = self.limits.reconnect;
        let c = &mut self.peers[pi as usize].candidates[i];
        let pause = first.saturating_mul(1 << c.fails.min(16)).min(most);
        c.fails += 1;
        c.why = why;
        c.refused = refused;
        c.dial = Dial::Down { next_try: now + pause.as_nanos() as u64 };
    }

    /// What was tried and how it failed, for errors.
    pub(crate) fn tried(&self, pi: u32) -> String {
        let p = &self.peers[pi as usize];
        let said = |c: &Candidate| match (c.fails, &c.dial) {
            (0, Dial::Dialing { .. }) => Some(format!("{} (no answer yet)", c.way)),
            (0, _) => None,
            (fails, _) => Some(format!("{} ({}, {fails} tries)", c.way, c.why)),
        };
        let list: Vec<_> = p.candidates.iter().filter_map(said).collect();
        if list.is_empty() { "no way to it is known".into() } else { list.join("; ") }
    }

    /// The ways before this one in the peer's address for which a port is missing here, and why it is.
    fn passed_over(&self, pi: u32, via: &str) -> Option<String> {
        let ways = self.peers[pi as usize].address.as_ref()?.ways();
        let better = ways.iter().take_while(|w| w.scheme != via);
        let of = |w: &Way| {
            let (_, why) = self.missing.iter().find(|(scheme, _)| *scheme == w.scheme)?;
            Some(format!("{w} (no port here: {why})"))
        };
        let list: Vec<_> = better.filter_map(of).collect();
        (!list.is_empty()).then(|| list.join("; "))
    }

    // ---- connections coming up ----

    pub(crate) fn on_up(&mut self, io: &mut Io<'_>, port: usize, conn: Conn) {
        if let Some(ci) = self.conn_at(port, conn) {
            let c = &mut self.conns[ci as usize];
            (c.ready, c.ready_at) = (true, io.now);
            self.send_hello(io, ci);
            self.await_hello(io.now, ci);
        }
    }

    pub(crate) fn on_incoming(&mut self, io: &mut Io<'_>, port: usize, conn: Conn) {
        let ci = self.add_conn(io, port, conn, None);
        self.await_hello(io.now, ci);
        // The answer waits for the peer's hello: until then we do not know for which state to speak.
    }

    /// The other end owes a hello: it costs its place only for so long, and an answer lost with its connection is not waited for.
    fn await_hello(&mut self, now: u64, ci: u32) {
        self.greeting.push(ci);
        self.next_tick = self.next_tick.min(self.greeting_ends(ci).max(now));
    }

    /// When a connection is given up whose hello has not come. Ours early enough that the peer can be dialed again before it is lost.
    pub(crate) fn greeting_ends(&self, ci: u32) -> u64 {
        let (c, limit) = (&self.conns[ci as usize], self.limits.peer_timeout.as_nanos() as u64);
        c.ready_at + if c.dialed { limit / 3 } else { limit }
    }

    pub(crate) fn send_hello(&mut self, io: &mut Io<'_>, ci: u32) {
        let c = &self.conns[ci as usize];
        let Some(pi) = c.peer else { return };
        let p = &self.peers[pi as usize];
        let stranger = if c.dialed && p.identity.is_none() { STRANGER } else { 0 };
        let again = if c.dialed == c.up { AGAIN } else { 0 };
        let calls = if p.is_callable() { CALLS } else { 0 };
        let h = Hello {
            magic: MAGIC.into(),
            version: VERSION.into(),
            port: io.port_name(c.port).into(),
            id: self.identity.into(),
            credits: self.limits.credits.into(),
            flags: ((u32::from(self.keyed) * KEYED) | stranger | again | calls).into(),
            max_body: (io.ports[c.port].caps().max_body as u32).into(),
            session: p.session.into(),
            credit_bytes: self.limits.credit_bytes.into(),
        };
        let inline = Inline::new(h.as_bytes()).expect("a hello fits");
        let header = Header::new(FrameKind::Hello, 0, 0, 0).to_bytes();
        let body = Body::Borrowed(self.my_address.as_bytes());
        io.ports[c.port].post(c.conn, &[Frame { header, inline, body, more: false }]);
        if c.delivery == Delivery::Datagram && !c.up {
            // It may be lost: `clock` repeats it until it is answered.
            self.next_tick = self.next_tick.min(io.now + self.limits.resend_after.as_nanos() as u64);
        }
    }

    pub(crate) fn on_hello(&mut self, io: &mut Io<'_>, ci: u32, inline: Inline, body_len: usize) {
        if self.conns[ci as usize].closing {
            return self.discard(io, ci, None, body_len);
        }
        let Some(h) = Hello::parse(inline.as_slice()).filter(|h| h.magic.get() == MAGIC) else {
            return self.hostile(io, ci, "not a kfab hello");
        };
        if h.version.get() != VERSION {
            return self.hostile(
                io,
                ci,
                &format!("protocol version {}, we speak {VERSION}", h.version.get()),
            );
        }
        if (h.flags.get() & KEYED != 0) != self.keyed {
            return self.hostile(io, ci, "one side has a fabric key and the other has none");
        }
        let c = &self.conns[ci as usize];
        if c.up && c.delivery == Delivery::Datagram {
            // It came twice, or our answer was lost.
            if !c.dialed || h.flags.get() & AGAIN != 0 {
                self.send_hello(io, ci);
            }
            return self.discard(io, ci, None, body_len);
        }
        if c.up || body_len > Address::MAX_LEN {
            return self.hostile(io, ci, "a bad hello");
        }
        let grants =
            Limits { credits: h.credits.get(), credit_bytes: h.credit_bytes.get(), ..Limits::default() };
        if let Err(e) = grants.check() {
            return self.hostile(io, ci, &format!("a hello that grants what cannot be: {e}"));
        }
        if body_len == 0 {
            return self.finish_hello(io, ci, &h, None, 0);
        }
        self.take_hello(io, ci, h, body_len);
    }

    /// The hello is complete: the connection belongs to a peer and is a rail. Who dials a name for the first time does not know whom it
    /// will meet: perhaps somebody it knows by another name. So it is told who we are, and what it says then counts.
    pub(crate) fn finish_hello(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        h: &Hello,
        landing: Option<Landing>,
        len: usize,
    ) {
        if self.conns[ci as usize].closing {
            // Given up while its address came: the other end speaks for a state that is gone.
            return;
        }
        let buffer = landing.and_then(Landing::into_buffer);
        let text = buffer.as_ref().and_then(|b| std::str::from_utf8(b.get(..len)?).ok());
        let address = text.and_then(|t| t.parse::<Address>().ok());
        let id = h.id.get();
        if self.left_behind >= self.limits.max_left_behind && self.is_new(ci, h) {
            return self.turn_away(io, ci);
        }
        let Some(pi) = self.whose(io, ci, id, address) else {
            return self.hostile(io, ci, "too many peers (Limits::max_peers)");
        };
        let (flags, c) = (h.flags.get(), &mut self.conns[ci as usize]);
        c.peer = Some(pi);
        if flags & STRANGER != 0 && !c.dialed {
            if self.peers[pi as usize].identity.is_none() {
                self.peers[pi as usize].identity = Some(id);
                self.by_identity.insert(id, pi);
            }
            return self.send_hello(io, ci);
        }
        let session = h.session.get();
        let p = &self.peers[pi as usize];
        if p.past.contains(&session) {
            // Frames of the state with these two numbers may be counted there: it must not come again.
            return self.reset_peer(io, pi, None, Kind::PeerLost, "the peer speaks for a state that is over");
        }
        let forgotten = p.identity.is_some_and(|i| i != id) || p.far_session.is_some_and(|s| s != session);
        if forgotten {
            self.stream.push(FabricEvent::PeerRestarted { peer: self.peers[pi as usize].name });
            // The other end may have the number of our state: it stays, so that both sides start anew under the same two numbers.
            let spare = Some(ci).filter(|_| p.past.len() < PAST_MAX);
            self.reset_peer(io, pi, spare, Kind::PeerLost, "the peer restarted");
            if spare.is_none() {
                return;
            }
        }
        let was_up = !self.peers[pi as usize].rails.is_empty();
        if self.peers[pi as usize].frame_max == 0 {
            self.measure_frames(io, pi);
        }
        self.peers[pi as usize].identity = Some(id);
        let c = &mut self.conns[ci as usize];
        (c.peer, c.up, c.far_port) = (Some(pi), true, h.port.get());
        if c.dialed == (flags & AGAIN != 0) {
            self.send_hello(io, ci);
        }
        let (port, dialed) = (self.conns[ci as usize].port, self.conns[ci as usize].dialed);
        let via = io.ports[port].ways().first().map_or_else(String::new, |w| w.scheme.clone());
        let p = &mut self.peers[pi as usize];
        p.far_session = Some(session);
        p.is_granted(h.credits.get(), h.credit_bytes.get());
        p.last_heard = io.now;
        p.cut_since = None;
        p.recall_until = 0;
        (p.ever_up, p.untold) = (true, false);
        p.called |= dialed;
        p.calls_us |= !dialed || flags & CALLS != 0;
        p.rails.push(ci);
        for c in &mut p.candidates {
            if matches!(c.dial, Dial::Dialing { conn } if conn == ci) {
                c.dial = Dial::Up { conn: ci };
                c.fails = 0;
            }
        }
        let name = p.name;
        let best = p.candidates.first().map_or(u8::MAX, |c| c.rank);
        self.by_identity.insert(id, pi);
        self.refresh_rails(pi);
        self.stream.push(FabricEvent::RailUp { peer: name, rail: ci, via: via.clone() });
        if !was_up {
            let fallback = (best < self.conns[ci as usize].rank).then(|| self.tried(pi));
            let fallback = fallback.or_else(|| self.passed_over(pi, &via));
            self.stream.push(FabricEvent::PeerUp { peer: name, via, fallback });
        }
        self.mark_dirty(pi);
    }

    /// Whether a hello is the first that we hear on a connection from somebody who is not here already. Who has heard ours may count on it:
    /// what it sends over memory nobody keeps.
    fn is_new(&self, ci: u32, h: &Hello) -> bool {
        let c = &self.conns[ci as usize];
        let here = self.by_identity.get(&h.id.get()).map(|pi| &self.peers[*pi as usize]);
        // A stranger's session is not yet that of the peer it may turn out to be.
        let is_here = here.is_some_and(|p| match h.flags.get() & STRANGER {
            0 => p.far_session == Some(h.session.get()),
            _ => !p.rails.is_empty(),
        });
        !c.dialed && c.peer.is_none() && !is_here
    }

    /// What peers left behind is all that may wait of such: nobody new is let in until some of it has been received. Who is turned away
    /// tries again, as with everybody who does not answer.
    #[cold]
    fn turn_away(&mut self, io: &mut Io<'_>, ci: u32) {
        let units = self.left_behind;
        let reason =
            format!("messages of peers that are gone wait here, {units} units (Limits::max_left_behind)");
        self.close_conn(io, ci);
        self.stream.push(FabricEvent::Rejected { reason });
    }

    /// The peer that this identity belongs to, known or new.
    fn whose(&mut self, io: &mut Io<'_>, ci: u32, id: u64, address: Option<Address>) -> Option<u32> {
        let known = self.by_identity.get(&id).copied();
        if let Some(dialed) = self.conns[ci as usize].peer {
            if let Some(other) = known.filter(|k| *k != dialed) {
                self.merge(io, other, dialed);
            }
            return Some(dialed);
        }
        if known.is_some() {
            return known;
        }
        let text = address.as_ref().map(Address::to_string);
        if let Some(&pi) = text.as_ref().and_then(|t| self.by_address.get(t)) {
            return Some(self.peers[pi as usize].alias.map_or(pi, |real| real.index));
        }
        let pi = self.new_peer(io, address, false).ok()?;
        if let Some(t) = text {
            self.by_address.insert(t, pi);
        }
        Some(pi)
    }

    /// Two names turn out to be one peer: `known` (it connected to us) continues under the name `dialed` (the user's).
    fn merge(&mut self, io: &mut Io<'_>, known: u32, dialed: u32) {
        if self.peers[dialed as usize].identity.is_some() {
            // The dialed name has a life of its own: its peer was replaced at that address.
            return self.reset_peer(
                io,
                known,
                None,
                Kind::PeerLost,
                "the peer is now reached under another address",
            );
        }
        let (old, new) = (self.peers[known as usize].name, self.peers[dialed as usize].name);
        let session = split_mix(&mut self.sessions);
        let fresh = crate::peer::Peer::new(old, None, true, session, io.now);
        let mut real = std::mem::replace(&mut self.peers[known as usize], fresh);
        self.peers[known as usize].alias = Some(new);
        let shell = &mut self.peers[dialed as usize];
        (real.name, real.known_at) = (new, io.now);
        self.past_totals.add(&shell.counters);
        for (_, held) in &mut real.rx.held {
            match held {
                Held::Message(m) => m.from = new,
                Held::Notice(n) => n.from = new,
            }
        }
        real.wanted = true;
        real.address = shell.address.take();
        real.candidates = std::mem::take(&mut shell.candidates);
        real.tx.control.append(&mut shell.tx.control);
        real.tx.deferred.append(&mut shell.tx.deferred);
        real.expects += shell.expects;
        (real.timed, real.dirty) = (shell.timed, shell.dirty);
        if let Some(id) = real.identity {
            self.by_identity.insert(id, dialed);
        }
        *shell = real;
        for (_, late, _) in self.late.iter_mut().filter(|l| l.1 == known) {
            *late = dialed;
        }
        self.timed.retain(|p| *p != known);
        self.dirty.retain(|p| *p != known);
        for c in self.conns.iter_mut().filter(|c| c.live && c.peer == Some(known)) {
            c.peer = Some(dialed);
        }
        self.ops.rename_peer(old, new);
        self.matcher.rename_peer(old, new);
        self.faults.rename_peer(old, new);
        self.windows.rename_peer(old, new);
        for a in self.peers.iter_mut().filter(|p| p.alias == Some(old)) {
            a.alias = Some(new);
        }
        self.set_timer(dialed, io.now);
        self.mark_dirty(dialed);
    }

    // ---- connections going down ----

    pub(crate) fn on_down(
        &mut self,
        io: &mut Io<'_>,
        port: usize,
        conn: Conn,
        reason: DownReason,
        detail: String,
    ) {
        let Some(ci) = self.conn_at(port, conn) else { return };
        let ours = std::mem::replace(&mut self.conns[ci as usize].closing, true);
        if !self.parked.is_empty() {
            self.release_parked(io, ci);
        }
        let c = &mut self.conns[ci as usize];
        let (was_up, dialed, process) = (c.up, c.dialed, c.delivery == Delivery::Process);
        let peer = c.peer.filter(|_| was_up || c.dialed);
        c.taking = None;
        self.remove_conn(ci);
        if matches!(reason, DownReason::Hostile | DownReason::Denied) {
            self.stream.push(FabricEvent::Rejected { reason: format!("{reason:?}: {detail}") });
        }
        let Some(pi) = peer else { return };
        let text = if detail.is_empty() { format!("{reason:?}") } else { detail };
        self.candidate_down(io.now, pi, ci, &text, reason == DownReason::Refused);
        if !was_up {
            return self.dial_ended(io, pi, reason, &text);
        }
        let resent = self.strand(pi, ci);
        let p = &mut self.peers[pi as usize];
        p.rails.retain(|r| *r != ci);
        let name = p.name;
        // One that was closed in good order had nothing under way, unless on purpose.
        let moved = reason != DownReason::Closed || resent > 0 || self.faults.cuts(name, port);
        p.counters.failovers += u64::from(moved && p.active.contains(&ci) && !p.rails.is_empty());
        self.refresh_rails(pi);
        self.stream.push(FabricEvent::RailDown { peer: name, rail: ci, reason: text.clone(), resent });
        if reason == DownReason::PeerDead || (process && reason != DownReason::Closed) {
            return self.reset_peer(io, pi, None, Kind::PeerLost, &text);
        }
        let idle = ours && !self.faults.cuts(name, port);
        let p = &mut self.peers[pi as usize];
        if dialed && !p.calls_us && !process && !idle {
            // It may have something to say, and no other way to say it. Later than this it has given us up.
            p.recall_until = io.now + self.limits.peer_timeout.as_nanos() as u64;
        }
        if p.rails.is_empty() && (p.is_busy() || p.recall_until > io.now) {
            self.want_connection(io, pi);
        }
        self.mark_dirty(pi);
    }

    /// Takes a rail out of service before its transport has noticed anything.
    pub(crate) fn abandon_rail(&mut self, io: &mut Io<'_>, ci: u32, why: &str) {
        let Some(pi) = self.conns[ci as usize].peer else { return };
        self.candidate_down(io.now, pi, ci, why, false);
        let (first, _) = self.limits.reconnect;
        for c in &mut self.peers[pi as usize].candidates {
            if let Dial::Down { next_try } = &mut c.dial {
                *next_try = (*next_try).max(io.now + first.as_nanos() as u64);
            }
        }
        let resent = self.strand(pi, ci);
        let c = &mut self.conns[ci as usize];
        (c.up, c.unacked_bytes) = (false, 0);
        if c.taking.is_some() {
            self.leaving.push(ci);
        }
        self.close_conn(io, ci);
        let p = &mut self.peers[pi as usize];
        p.rails.retain(|r| *r != ci);
        p.counters.failovers += 1;
        let name = p.name;
        self.refresh_rails(pi);
        self.stream.push(FabricEvent::RailDown { peer: name, rail: ci, reason: why.to_owned(), resent });
        self.mark_dirty(pi);
    }

    /// A connection that never came up. Everybody who refuses us after having been there is dead; a wrong key is final.
    fn dial_ended(&mut self, io: &mut Io<'_>, pi: u32, reason: DownReason, text: &str) {
        let p = &self.peers[pi as usize];
        if !p.rails.is_empty() || !(p.is_busy() || p.recall_until > io.now) {
            return;
        }
        if reason == DownReason::Denied {
            return self.reset_peer(io, pi, None, Kind::AuthFailed, &format!("refused by the peer: {text}"));
        }
        let all_refused = p.candidates.iter().all(|c| c.refused && matches!(c.dial, Dial::Down { .. }));
        // Whom we could never call, a wall may stand before: it is given the time to call us.
        let patience = self.limits.rail_timeout.as_nanos() as u64;
        let waits = !p.called && p.cut_since.is_none_or(|since| io.now < since + patience);
        if (p.ever_up || p.untold) && all_refused && p.is_busy() && !waits {
            let why = format!("nobody listens at its address any more: {}", self.tried(pi));
            return self.reset_peer(io, pi, None, Kind::PeerLost, &why);
        }
        self.dial(io, pi);
        // The timer was set for an answer; now the next try is due sooner.
        self.set_timer(pi, io.now);
    }

    fn candidate_down(&mut self, now: u64, pi: u32, ci: u32, why: &str, refused: bool) {
        let at = self.peers[pi as usize]
            .candidates
            .iter()
            .position(|c| matches!(c.dial, Dial::Dialing { conn } | Dial::Up { conn } if conn == ci));
        if let Some(i) = at {
            let was_up = matches!(self.peers[pi as usize].candidates[i].dial, Dial::Up { .. });
            self.dial_failed(now, pi, i, why.to_owned(), refused);
            let c = &mut self.peers[pi as usize].candidates[i];
            if was_up {
                // It worked until now: try again at once.
                c.dial = Dial::Down { next_try: now };
                c.fails = 0;
            }
        }
    }

    /// Frames under way on a connection that is gone must be sent again; how many.
    fn strand(&mut self, pi: u32, ci: u32) -> usize {
        // What we told the peer last may have been lost as well: tell it again over the next rail.
        let rx = &mut self.peers[pi as usize].rx;
        rx.told_next = rx.dedup.next().wrapping_sub(1) & (SEQ_MOD - 1);
        rx.ack_now = true;
        let mut n = 0;
        for u in self.peers[pi as usize].tx.unacked.iter_mut().filter(|u| u.conn == ci) {
            u.conn = NOWHERE;
            n += 1;
        }
        n
    }

    /// Which rails carry traffic: those of the best rank that is up.
    pub(crate) fn refresh_rails(&mut self, pi: u32) {
        self.assert_no_tab();
        let cut = |ci: &u32| self.faults.cuts(self.peers[pi as usize].name, self.conns[*ci as usize].port);
        let usable: Vec<u32> = self.peers[pi as usize].rails.iter().copied().filter(|ci| !cut(ci)).collect();
        let best = usable.iter().map(|ci| self.conns[*ci as usize].rank).min();
        let active: Vec<u32> =
            usable.into_iter().filter(|ci| Some(self.conns[*ci as usize].rank) == best).collect();
        let keep = active.iter().any(|ci| self.conns[*ci as usize].delivery != Delivery::Process);
        let p = &mut self.peers[pi as usize];
        p.keep = keep || !self.faults.is_empty();
        p.short = match active[..] {
            [one] if self.faults.is_empty() && !self.closed => one,
            _ => NOWHERE,
        };
        p.active = active;
    }

    /// Closes the rails that a fault rule cuts.
    pub(crate) fn cut_rails(&mut self, io: &mut Io<'_>) {
        for ci in 0..self.conns.len() as u32 {
            let c = &self.conns[ci as usize];
            let Some(pi) = c.peer.filter(|_| c.live && !c.closing) else { continue };
            let peer = self.peers[pi as usize].name;
            if let Some(Strike { rule, hits, .. }) = self.faults.cut(peer, c.port) {
                self.stream.push(FabricEvent::FaultStruck { rule, peer, hits });
                self.close_conn(io, ci);
            }
        }
    }

    pub(crate) fn close_conn(&mut self, io: &mut Io<'_>, ci: u32) {
        let c = &mut self.conns[ci as usize];
        if c.live && !c.closing {
            c.closing = true;
            if !self.parked.is_empty() {
                self.release_parked(io, ci);
            }
            let c = &self.conns[ci as usize];
            io.ports[c.port].close(c.conn);
        }
    }

    /// The peer broke the rules: this connection ends, and with it, as its state cannot be trusted, the peer.
    pub(crate) fn hostile(&mut self, io: &mut Io<'_>, ci: u32, why: &str) {
        if self.conns[ci as usize].closing {
            return;
        }
        self.stream.push(FabricEvent::Rejected { reason: why.to_owned() });
        self.close_conn(io, ci);
        let c = &self.conns[ci as usize];
        if let Some(pi) = c.peer {
            self.reset_peer(io, pi, None, Kind::Protocol, &format!("the peer broke the protocol: {why}"));
        }
    }

    pub(crate) fn say_bye(&mut self, io: &mut Io<'_>, pi: u32) {
        if !self.peers[pi as usize].rails.is_empty() {
            self.send_bare(io, pi, FrameKind::Bye, 0);
        }
    }

    // ---- the loss of a peer ----

    /// Ends everything with a peer: operations, queues, connections (but `spare`). A peer the user named can be reached again at once;
    /// another is forgotten.
    pub(crate) fn reset_peer(&mut self, io: &mut Io<'_>, pi: u32, spare: Option<u32>, kind: Kind, why: &str) {
        self.assert_no_tab();
        if self.peers[pi as usize].gone {
            return;
        }
        let name = self.peers[pi as usize].name;
        let untold = kind == Kind::PeerLost && self.ops.of_peer(name).is_empty();
        let again = self.end_operations(io, pi, kind, why);
        self.left_behind += self.matcher.forget_peer(name) + self.windows.forget_peer(name);
        for ci in 0..self.conns.len() as u32 {
            let c = &mut self.conns[ci as usize];
            // Another that the new incarnation has dialed, and whose last hello is to come, is none of the old. It stays the peer's: it
            // was told our number, and must end with the next state that has it.
            let is_old = c.up || c.dialed || spare.is_none();
            if c.live && c.peer == Some(pi) && Some(ci) != spare && is_old {
                c.peer = None;
                if std::mem::take(&mut c.up) {
                    let reason = why.to_owned();
                    self.stream.push(FabricEvent::RailDown { peer: name, rail: ci, reason, resent: 0 });
                }
                self.close_conn(io, ci);
            }
        }
        let fresh_session = split_mix(&mut self.sessions);
        let p = &mut self.peers[pi as usize];
        let known = p.identity.take();
        (p.tx, p.rx) = (Tx::default(), Rx::default());
        p.past.extend(p.far_session.take());
        p.cut_since = None;
        (p.calls_us, p.recall_until) = (false, 0);
        p.rails.clear();
        p.active.clear();
        p.short = NOWHERE;
        (p.ever_up, p.untold) = (false, untold);
        p.counters.lost += 1;
        if spare.is_none() {
            p.session = fresh_session;
            p.past.clear();
        }
        for c in &mut p.candidates {
            if !matches!(c.dial, Dial::Dialing { conn } if Some(conn) == spare) {
                c.dial = Dial::Down { next_try: io.now };
                c.fails = 0;
            }
        }
        if let Some(id) = known {
            self.by_identity.remove(&id);
        }
        again.into_iter().for_each(|op| self.wait_again(io, op));
        self.stream.push(FabricEvent::PeerLost { peer: name, reason: why.to_owned() });
        if spare.is_none() && !self.peers[pi as usize].wanted {
            self.forget_peer(pi);
        }
    }

    /// Ends what concerns a peer. Those that are left are receives that others may serve as well.
    fn end_operations(&mut self, io: &mut Io<'_>, pi: u32, kind: Kind, why: &str) -> Vec<OpId> {
        let mut again = Vec::new();
        let name = self.peers[pi as usize].name;
        let never_up = !self.peers[pi as usize].ever_up;
        let unsent: Vec<OpId> = self.peers[pi as usize].tx.deferred.iter().map(|d| d.op).collect();
        for op in self.ops.of_peer(name) {
            let for_any = |p: &mut Proto| match p {
                Proto::Fetch { waited, .. } | Proto::Pieces { waited: Some(waited), .. } => {
                    waited.want.from.is_none()
                }
                _ => false,
            };
            if self.ops.proto(op).is_some_and(for_any) {
                self.give_message_up(io.now, op);
                again.push(op);
                continue;
            }
            let proto = self.ops.proto(op);
            // A part of a write may have gone before what waits of it.
            let waits =
                unsent.contains(&op) && matches!(proto, Some(Proto::Send { .. } | Proto::Large { .. }));
            let fate = if never_up || waits { Fate::NotSent } else { Fate::Unknown };
            let op_name = proto.as_ref().map_or("send", |p| p.name());
            if matches!(proto, Some(Proto::Recv { .. } | Proto::RecvAll { .. })) {
                self.matcher.withdraw(op);
            }
            self.drop_exposure(io, op);
            self.finish(op, Err(Error::new(kind, op_name, why).with_fate(fate)));
        }
        again
    }
}
