//! The opening of a connection: who speaks which version, with which key. Sans-io; one [`Greeter`] per connection that is not
//! up yet. Called by `link`.
//!
//! ```text
//! connector                          acceptor
//! Greeting, proof 1        ->
//!                          <-        Greeting (status), proof 2
//! confirmation (keyed)     ->        only now is the connection reported
//! records                 <->        records
//! ```
//! Proofs are the two messages of Noise NNpsk0. The first can be a replay, so the acceptor waits for the confirmation, sealed
//! under this session, before it believes the peer. Whoever refuses says why in one status byte and closes.

use crate::wire::{FLAG_KEYED, FLAG_SEALED, GREETING_LEN, Greeting, SEAL_PREFIX, Status, VERSION};
use kfab_core::auth::{FabricKey, Handshake, MAX_HANDSHAKE, Session, TAG_LEN};
use zerocopy::IntoBytes;

/// What the connector seals to prove that its first message was no replay.
const CONFIRMATION: &[u8; 8] = b"kfab yes";
const CONFIRM_LEN: usize = CONFIRMATION.len() + TAG_LEN;
/// Bytes a greeter holds at most.
const HOLD: usize = MAX_HANDSHAKE;

const _: () = assert!(HOLD >= GREETING_LEN && HOLD >= CONFIRM_LEN && SEAL_PREFIX == 2);

/// What this port demands of every connection.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) key: Option<FabricKey>,
    /// Only with a key.
    pub(crate) encrypt: bool,
}

impl Policy {
    fn flags(&self) -> u8 {
        match (&self.key, self.encrypt) {
            (None, _) => 0,
            (Some(_), false) => FLAG_KEYED,
            (Some(_), true) => FLAG_KEYED | FLAG_SEALED,
        }
    }
}

/// How a greeting stands.
pub(crate) enum Outcome {
    /// More bytes are needed.
    More,
    /// The connection is up; with a session if records are sealed.
    Done(Option<Box<Session>>),
    /// We refuse: send what is in `out`, then close.
    Refuse,
    /// The peer refuses us, or lacks the key.
    Denied(String),
    /// The peer has no room for us.
    Full,
    /// The peer speaks something else.
    Garbage(&'static str),
}

enum Step {
    Greeting,
    Proof(Greeting),
    Confirmation(Box<Session>),
    Over,
}

/// One side of a greeting.
pub(crate) struct Greeter {
    connector: bool,
    handshake: Option<Box<Handshake>>,
    step: Step,
    held: [u8; HOLD],
    have: usize,
    want: usize,
}

impl Greeter {
    /// The connecting side; what it says first is appended to `out`.
    pub(crate) fn connector(policy: &Policy, out: &mut Vec<u8>) -> kfab_core::Result<Greeter> {
        let mut g = Greeter::acceptor();
        g.connector = true;
        let mut proof = Vec::new();
        if let Some(key) = &policy.key {
            let mut h = Handshake::initiator(key)?;
            proof = h.write()?;
            g.handshake = Some(Box::new(h));
        }
        out.extend_from_slice(Greeting::new(policy.flags(), Status::Welcome, proof.len()).as_bytes());
        out.extend_from_slice(&proof);
        Ok(g)
    }

    /// The accepting side; it says nothing before it has heard.
    pub(crate) fn acceptor() -> Greeter {
        Greeter {
            connector: false,
            handshake: None,
            step: Step::Greeting,
            held: [0; HOLD],
            have: 0,
            want: GREETING_LEN,
        }
    }

    /// Where the next bytes of the peer go: never more than belong to the greeting. Then [`Greeter::received`].
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.held[self.have..self.want]
    }

    /// `n` bytes of the space were written. `full`: there is no room for another connection. Answers are appended to `out`.
    pub(crate) fn received(&mut self, n: usize, policy: &Policy, full: bool, out: &mut Vec<u8>) -> Outcome {
        self.have = (self.have + n).min(self.want);
        if self.have < self.want {
            return Outcome::More;
        }
        let got = self.have;
        self.have = 0;
        let held = self.held;
        match std::mem::replace(&mut self.step, Step::Over) {
            Step::Greeting => match Greeting::parse(&held[..got]) {
                Err(why) => Outcome::Garbage(why),
                Ok(g) if g.proof_len.get() > 0 => {
                    self.want = usize::from(g.proof_len.get());
                    self.step = Step::Proof(g);
                    Outcome::More
                }
                Ok(g) => self.judge(&g, &[], policy, full, out),
            },
            Step::Proof(g) => self.judge(&g, &held[..got], policy, full, out),
            Step::Confirmation(session) => confirm(session, &held[..got], policy),
            Step::Over => Outcome::Garbage("bytes after the greeting"),
        }
    }

    fn judge(
        &mut self,
        g: &Greeting,
        proof: &[u8],
        policy: &Policy,
        full: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if self.connector {
            self.judge_answer(g, proof, policy, out)
        } else {
            self.answer(g, proof, policy, full, out)
        }
    }

    fn judge_answer(&mut self, g: &Greeting, proof: &[u8], policy: &Policy, out: &mut Vec<u8>) -> Outcome {
        let denied = |why: &str| Outcome::Denied(why.to_owned());
        match Status::from_wire(g.status) {
            _ if g.version.get() != VERSION => {
                return Outcome::Denied(format!("the peer speaks version {}, we {VERSION}", g.version.get()));
            }
            Some(Status::Welcome) if g.flags == policy.flags() => {}
            Some(Status::OtherVersion) => return denied("the peer does not speak our version"),
            Some(Status::WrongKey) => {
                return denied("the peer has another fabric key, or only one side has a key");
            }
            Some(Status::Welcome | Status::OtherSealing) => {
                return denied("only one side asks for encryption");
            }
            Some(Status::Full) => return Outcome::Full,
            None => return Outcome::Garbage("an unknown status in the greeting"),
        }
        let Some(mut h) = self.handshake.take() else {
            return if proof.is_empty() {
                Outcome::Done(None)
            } else {
                Outcome::Garbage("a proof nobody asked for")
            };
        };
        if h.read(proof).is_err() {
            return denied("the peer could not prove that it has the fabric key");
        }
        let Ok(mut session) = h.finish() else { return denied("the key handshake did not end") };
        let mut sealed = [0; CONFIRM_LEN];
        if session.seal(CONFIRMATION, &mut sealed).is_err() {
            return denied("the confirmation could not be sealed");
        }
        out.extend_from_slice(&sealed);
        Outcome::Done(policy.encrypt.then(|| Box::new(session)))
    }

    fn answer(
        &mut self,
        g: &Greeting,
        proof: &[u8],
        policy: &Policy,
        full: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let mut refuse = |status| {
            out.extend_from_slice(Greeting::new(policy.flags(), status, 0).as_bytes());
            Outcome::Refuse
        };
        if g.version.get() != VERSION {
            return refuse(Status::OtherVersion);
        }
        let differ = g.flags ^ policy.flags();
        if differ & FLAG_KEYED != 0 {
            return refuse(Status::WrongKey);
        }
        if differ != 0 {
            return refuse(Status::OtherSealing);
        }
        let Some(key) = &policy.key else {
            if !proof.is_empty() {
                return Outcome::Garbage("a proof without a key");
            }
            if full {
                return refuse(Status::Full);
            }
            out.extend_from_slice(Greeting::new(policy.flags(), Status::Welcome, 0).as_bytes());
            return Outcome::Done(None);
        };
        let Ok(mut h) = Handshake::responder(key) else { return refuse(Status::WrongKey) };
        if h.read(proof).is_err() {
            return refuse(Status::WrongKey);
        }
        if full {
            return refuse(Status::Full);
        }
        let Ok((reply, session)) = h.write().and_then(|r| Ok((r, h.finish()?))) else {
            return refuse(Status::WrongKey);
        };
        out.extend_from_slice(Greeting::new(policy.flags(), Status::Welcome, reply.len()).as_bytes());
        out.extend_from_slice(&reply);
        self.step = Step::Confirmation(Box::new(session));
        self.want = CONFIRM_LEN;
        Outcome::More
    }
}

fn confirm(mut session: Box<Session>, sealed: &[u8], policy: &Policy) -> Outcome {
    let mut plain = [0; CONFIRM_LEN];
    match session.open(sealed, &mut plain) {
        Ok(n) if plain[..n] == *CONFIRMATION => Outcome::Done(policy.encrypt.then_some(session)),
        _ => Outcome::Garbage("the confirmation does not open: a replay"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(key: Option<u8>, encrypt: bool) -> Policy {
        Policy { key: key.map(|b| FabricKey::from_bytes([b; 32])), encrypt }
    }

    /// Feeds `bytes` in pieces of `step`; the outcome and the bytes used.
    fn feed(
        g: &mut Greeter,
        mut bytes: &[u8],
        step: usize,
        p: &Policy,
        full: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        while !bytes.is_empty() {
            let space = g.space();
            let n = space.len().min(bytes.len()).min(step);
            space[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            match g.received(n, p, full, out) {
                Outcome::More => {}
                o => return o,
            }
        }
        Outcome::More
    }

    fn greet(a: &Policy, b: &Policy, full: bool, step: usize) -> (Outcome, Outcome) {
        let (mut to_b, mut to_a) = (Vec::new(), Vec::new());
        let mut ga = Greeter::connector(a, &mut to_b).unwrap();
        let mut gb = Greeter::acceptor();
        let mut ob = feed(&mut gb, &to_b, step, b, full, &mut to_a);
        to_b.clear();
        let oa = feed(&mut ga, &to_a, step, a, false, &mut to_b);
        if matches!(ob, Outcome::More) {
            ob = feed(&mut gb, &to_b, step, b, full, &mut to_a);
        }
        (oa, ob)
    }

    #[test]
    fn those_who_agree_come_up_however_the_bytes_arrive() {
        for step in [1, 7, 1000] {
            for p in [policy(None, false), policy(Some(1), false), policy(Some(1), true)] {
                let (Outcome::Done(a), Outcome::Done(b)) = greet(&p, &p, false, step) else { panic!() };
                assert_eq!((a.is_some(), b.is_some()), (p.encrypt, p.encrypt));
                if let (Some(mut a), Some(mut b)) = (a, b) {
                    let (mut sealed, mut plain) = ([0; 32], [0; 32]);
                    let n = a.seal(b"hello", &mut sealed).unwrap();
                    let n = b.open(&sealed[..n], &mut plain).unwrap();
                    assert_eq!(&plain[..n], b"hello");
                }
            }
        }
    }

    #[test]
    fn those_who_differ_are_denied_and_told_why() {
        let all = [policy(None, false), policy(Some(1), false), policy(Some(1), true), policy(Some(2), true)];
        for (i, a) in all.iter().enumerate() {
            for b in all.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, b)| b) {
                let (oa, ob) = greet(a, b, false, 1000);
                assert!(matches!(oa, Outcome::Denied(_)), "{a:?} {b:?}");
                assert!(matches!(ob, Outcome::Refuse), "{a:?} {b:?}");
            }
            assert!(matches!(greet(a, a, true, 1000), (Outcome::Full, Outcome::Refuse)));
        }
    }

    #[test]
    fn a_replayed_greeting_is_not_believed() {
        let p = policy(Some(1), false);
        let (mut first, mut out) = (Vec::new(), Vec::new());
        Greeter::connector(&p, &mut first).unwrap();
        let mut g = Greeter::acceptor();
        assert!(matches!(feed(&mut g, &first, 999, &p, false, &mut out), Outcome::More));
        assert!(matches!(feed(&mut g, &[0; CONFIRM_LEN], 999, &p, false, &mut out), Outcome::Garbage(_)));
    }

    #[test]
    fn another_version_is_told_so() {
        let p = policy(None, false);
        let mut g = Greeting::new(0, Status::Welcome, 0);
        g.version = 2.into();
        let mut out = Vec::new();
        let o = feed(&mut Greeter::acceptor(), g.as_bytes(), 99, &p, false, &mut out);
        assert!(matches!(o, Outcome::Refuse));
        assert_eq!(Greeting::parse(&out).unwrap().status, Status::OtherVersion as u8);
    }
}
