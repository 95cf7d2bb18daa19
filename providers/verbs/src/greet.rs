//! The talk on the side channel that makes a connection: version, fabric key, where the queue pairs are. Sans-io; one
//! [`Greeter`] per connection that is not up yet. Called by `port`.
//!
//! ```text
//! connector                          acceptor
//! Greeting, proof 1        ->
//!                          <-        Greeting (status), proof 2
//! Params                   ->        makes its queue pair, ready to receive and send
//!                          <-        Params
//! READY                    ->        only now is the connection reported
//! ```
//! Proofs are the two messages of Noise NNpsk0; with a key everything after them is sealed, so a replayed proof gets no queue pair
//! and nobody between the two can put in another's. Frames are not encrypted: no card seals them.
//! Whoever refuses says why in one status byte and closes.

use crate::wire::{FLAG_KEYED, GREETING_LEN, Greeting, PARAMS_LEN, Params, Status, VERSION};
use kfab_core::auth::{FabricKey, Handshake, MAX_HANDSHAKE, Session, TAG_LEN};
use zerocopy::IntoBytes;

const READY: &[u8; 8] = b"kfab yes";
const HOLD: usize = MAX_HANDSHAKE;

const _: () = assert!(HOLD >= GREETING_LEN && HOLD >= PARAMS_LEN + TAG_LEN && READY.len() < PARAMS_LEN);

/// How a greeting stands after some bytes.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// More bytes are needed.
    More,
    /// The connector's turn to make a queue pair and call [`Greeter::offer`].
    Offer,
    /// Where the peer's queue pair is. The acceptor connects its own and calls [`Greeter::offer`]; the connector connects
    /// its own and calls [`Greeter::ready`], and is up.
    Params(Params),
    /// The acceptor is up.
    Ready,
    /// We refuse: send what is in `out`, then close.
    Refuse,
    /// The peer refuses us, or lacks the key.
    Denied(&'static str),
    /// The peer has no room for us.
    Full,
    /// The peer speaks something else.
    Garbage(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Greeting,
    Proof(Kept),
    Params,
    Ready,
    Over,
}

/// What is kept of a greeting while its proof is awaited.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kept {
    version: u16,
    flags: u8,
    status: u8,
}

/// One side of a greeting.
pub(crate) struct Greeter {
    connector: bool,
    handshake: Option<Box<Handshake>>,
    session: Option<Box<Session>>,
    step: Step,
    held: [u8; HOLD],
    have: usize,
    want: usize,
}

fn flags(key: Option<&FabricKey>) -> u8 {
    if key.is_some() { FLAG_KEYED } else { 0 }
}

impl Greeter {
    /// The connecting side; what it says first is appended to `out`.
    pub(crate) fn connector(key: Option<&FabricKey>, out: &mut Vec<u8>) -> kfab_core::Result<Greeter> {
        let mut g = Greeter::acceptor();
        g.connector = true;
        let mut proof = Vec::new();
        if let Some(key) = key {
            let mut h = Handshake::initiator(key)?;
            proof = h.write()?;
            g.handshake = Some(Box::new(h));
        }
        out.extend_from_slice(Greeting::new(flags(key), Status::Welcome, proof.len()).as_bytes());
        out.extend_from_slice(&proof);
        Ok(g)
    }

    /// The accepting side; it says nothing before it has heard.
    pub(crate) fn acceptor() -> Greeter {
        Greeter {
            connector: false,
            handshake: None,
            session: None,
            step: Step::Greeting,
            held: [0; HOLD],
            have: 0,
            want: GREETING_LEN,
        }
    }

    /// Where the next bytes of the peer go: never more than belong to this step. Then [`Greeter::received`].
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.held[self.have..self.want]
    }

    /// `n` bytes of the space were written. `full`: there is no room for another connection. Answers are appended to `out`.
    pub(crate) fn received(
        &mut self,
        n: usize,
        key: Option<&FabricKey>,
        full: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.have = (self.have + n).min(self.want);
        if self.have < self.want {
            return Outcome::More;
        }
        let got = std::mem::take(&mut self.have);
        let held = self.held;
        match std::mem::replace(&mut self.step, Step::Over) {
            Step::Greeting => match Greeting::parse(&held[..got]) {
                Err(why) => Outcome::Garbage(why),
                Ok(g) => {
                    let kept = Kept { version: g.version.get(), flags: g.flags, status: g.status };
                    if g.proof_len.get() > 0 {
                        self.await_bytes(Step::Proof(kept), usize::from(g.proof_len.get()));
                        return Outcome::More;
                    }
                    self.judge(kept, &[], key, full, out)
                }
            },
            Step::Proof(g) => self.judge(g, &held[..got], key, full, out),
            Step::Params => self.params(&held[..got]),
            Step::Ready => match self.open(&held[..got]) {
                Some((plain, n)) if plain[..n] == *READY => Outcome::Ready,
                _ => Outcome::Garbage("the last word of the greeting is wrong"),
            },
            Step::Over => Outcome::Garbage("bytes after the greeting"),
        }
    }

    /// Tells the peer where our queue pair is.
    pub(crate) fn offer(&mut self, p: &Params, out: &mut Vec<u8>) {
        self.seal(p.as_bytes(), out);
        if self.connector {
            self.await_sealed(Step::Params, PARAMS_LEN);
        } else {
            self.await_sealed(Step::Ready, READY.len());
        }
    }

    /// The connector's last word: its queue pair is ready.
    pub(crate) fn ready(&mut self, out: &mut Vec<u8>) {
        self.seal(READY, out);
    }

    fn await_bytes(&mut self, step: Step, n: usize) {
        self.step = step;
        self.want = n;
    }

    fn await_sealed(&mut self, step: Step, plain: usize) {
        let tag = if self.session.is_some() { TAG_LEN } else { 0 };
        self.await_bytes(step, plain + tag);
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        let Some(s) = &mut self.session else { return out.extend_from_slice(plain) };
        let mut sealed = [0; HOLD];
        // Fails for too long a text only; the peer would then wait in vain until its limit.
        if let Ok(n) = s.seal(plain, &mut sealed) {
            out.extend_from_slice(&sealed[..n]);
        }
    }

    fn open(&mut self, bytes: &[u8]) -> Option<([u8; HOLD], usize)> {
        let mut plain = [0; HOLD];
        let n = match &mut self.session {
            Some(s) => s.open(bytes, &mut plain).ok()?,
            None => {
                plain[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            }
        };
        Some((plain, n))
    }

    fn params(&mut self, bytes: &[u8]) -> Outcome {
        let Some((plain, n)) = self.open(bytes) else {
            return Outcome::Garbage("parameters that do not open: a replay");
        };
        match Params::parse(&plain[..n]) {
            Ok(p) => Outcome::Params(p),
            Err(why) => Outcome::Garbage(why),
        }
    }

    fn judge(
        &mut self,
        g: Kept,
        proof: &[u8],
        key: Option<&FabricKey>,
        full: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if self.connector { self.judge_answer(g, proof, key) } else { self.answer(g, proof, key, full, out) }
    }

    fn judge_answer(&mut self, g: Kept, proof: &[u8], key: Option<&FabricKey>) -> Outcome {
        let is = |s: Status| g.status == s as u8;
        if g.version != VERSION || is(Status::OtherVersion) {
            return Outcome::Denied("the peer speaks another version");
        }
        if is(Status::WrongKey) || (is(Status::Welcome) && g.flags != flags(key)) {
            return Outcome::Denied("the peer has another fabric key, or only one side has a key");
        }
        if is(Status::Full) {
            return Outcome::Full;
        }
        if !is(Status::Welcome) {
            return Outcome::Garbage("an unknown status in the greeting");
        }
        if let Some(mut h) = self.handshake.take() {
            if h.read(proof).is_err() {
                return Outcome::Denied("the peer could not prove that it has the fabric key");
            }
            match h.finish() {
                Ok(s) => self.session = Some(Box::new(s)),
                Err(_) => return Outcome::Denied("the key handshake did not end"),
            }
        } else if !proof.is_empty() {
            return Outcome::Garbage("a proof nobody asked for");
        }
        Outcome::Offer
    }

    fn answer(
        &mut self,
        g: Kept,
        proof: &[u8],
        key: Option<&FabricKey>,
        full: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let mut refuse = |status| {
            out.extend_from_slice(Greeting::new(flags(key), status, 0).as_bytes());
            Outcome::Refuse
        };
        if g.version != VERSION {
            return refuse(Status::OtherVersion);
        }
        if g.flags != flags(key) {
            return refuse(Status::WrongKey);
        }
        let mut reply = Vec::new();
        if let Some(key) = key {
            let Ok(mut h) = Handshake::responder(key) else { return refuse(Status::WrongKey) };
            if h.read(proof).is_err() {
                return refuse(Status::WrongKey);
            }
            let Ok((r, session)) = h.write().and_then(|r| Ok((r, h.finish()?))) else {
                return refuse(Status::WrongKey);
            };
            (reply, self.session) = (r, Some(Box::new(session)));
        } else if !proof.is_empty() {
            return Outcome::Garbage("a proof without a key");
        }
        if full {
            return refuse(Status::Full);
        }
        out.extend_from_slice(Greeting::new(flags(key), Status::Welcome, reply.len()).as_bytes());
        out.extend_from_slice(&reply);
        self.await_sealed(Step::Params, PARAMS_LEN);
        Outcome::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{CREDITS, MAX_BODY};

    fn params(qpn: u32) -> Params {
        Params {
            qpn: qpn.into(),
            psn: 3.into(),
            max_body: (MAX_BODY as u32).into(),
            credits: CREDITS.into(),
            lid: 0.into(),
            mtu: 5,
            reads: 16,
            reserved: 0.into(),
            gid: [1; 16],
        }
    }

    fn feed(
        g: &mut Greeter,
        bytes: &[u8],
        key: Option<&FabricKey>,
        full: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = g.space();
            let n = space.len().min(rest.len()).min(7);
            space[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            match g.received(n, key, full, out) {
                Outcome::More => {}
                o => {
                    assert!(rest.is_empty(), "{} bytes more than the step wanted", rest.len());
                    return o;
                }
            }
        }
        Outcome::More
    }

    fn key(n: u8) -> Option<FabricKey> {
        Some(FabricKey::from_bytes([n; 32]))
    }

    #[test]
    fn those_who_agree_exchange_their_queue_pairs() {
        for k in [None, key(1)] {
            let k = k.as_ref();
            let (mut ab, mut ba) = (Vec::new(), Vec::new());
            let mut a = Greeter::connector(k, &mut ab).unwrap();
            let mut b = Greeter::acceptor();
            assert!(matches!(feed(&mut b, &ab, k, false, &mut ba), Outcome::More));
            assert!(matches!(feed(&mut a, &std::mem::take(&mut ba), k, false, &mut ab), Outcome::Offer));
            ab.clear();
            a.offer(&params(17), &mut ab);
            assert_eq!(ab.len(), PARAMS_LEN + if k.is_some() { TAG_LEN } else { 0 });
            let Outcome::Params(p) = feed(&mut b, &ab, k, false, &mut ba) else { panic!() };
            assert_eq!(p, params(17));
            b.offer(&params(18), &mut ba);
            let Outcome::Params(p) = feed(&mut a, &ba, k, false, &mut ab) else { panic!() };
            assert_eq!(p, params(18));
            ab.clear();
            a.ready(&mut ab);
            assert!(matches!(feed(&mut b, &ab, k, false, &mut ba), Outcome::Ready));
        }
    }

    #[test]
    fn those_who_differ_are_denied_and_the_full_say_so() {
        let all = [None, key(1), key(2)];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                let (mut ab, mut ba) = (Vec::new(), Vec::new());
                let mut ga = Greeter::connector(a.as_ref(), &mut ab).unwrap();
                let ob = feed(&mut Greeter::acceptor(), &ab, b.as_ref(), true, &mut ba);
                assert!(matches!(ob, Outcome::Refuse));
                match feed(&mut ga, &ba, a.as_ref(), false, &mut ab) {
                    Outcome::Full => assert_eq!(i, j),
                    Outcome::Denied(_) => assert_ne!(i, j),
                    o => panic!("{o:?}"),
                }
            }
        }
    }

    #[test]
    fn a_replayed_greeting_gets_no_queue_pair() {
        let (k, mut first, mut out) = (key(1), Vec::new(), Vec::new());
        Greeter::connector(k.as_ref(), &mut first).unwrap();
        let mut g = Greeter::acceptor();
        assert!(matches!(feed(&mut g, &first, k.as_ref(), false, &mut out), Outcome::More));
        let o = feed(&mut g, &[0; PARAMS_LEN + TAG_LEN], k.as_ref(), false, &mut out);
        assert!(matches!(o, Outcome::Garbage(_)));
    }
}
