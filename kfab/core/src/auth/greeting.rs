//! How two ports agree before a connection between them is up: version, fabric key, sealing. Sans-io; one [`Greeter`] per
//! connection that is not up yet. Called by the providers whose connections begin with a stream of bytes (sockets, verbs).
//!
//! ```text
//! connector                          acceptor
//! Greeting, proof 1        ->
//!                          <-        Greeting (status), proof 2
//! words                   <->        as the provider wants, sealed under the session if there is a key
//! ```
//! Proofs are the two messages of Noise NNpsk0. The first can be a replay, so an acceptor with a key believes nobody before a
//! word of this session opens: the provider's own, or the confirmation. Whoever refuses says why in one status byte and closes.

use super::{FabricKey, Handshake, MAX_HANDSHAKE, Session, TAG_LEN};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a greeting without its proof.
pub const GREETING_LEN: usize = 16;
/// The most bytes of a word.
pub const MAX_WORD: usize = MAX_HANDSHAKE - TAG_LEN;

/// Flag: a proof of the fabric key follows.
const KEYED: u8 = 1;
/// Flag: what follows the greeting stays sealed.
const SEALED: u8 = 2;
/// The word that confirms: only this session's connector can have sealed it.
const CONFIRMATION: &[u8; 8] = b"kfab yes";

const _: () = assert!(size_of::<Greeting>() == GREETING_LEN && GREETING_LEN < MAX_HANDSHAKE);

/// What the acceptor answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Come in. Always 0 on the wire.
    Welcome,
    /// The versions differ.
    OtherVersion,
    /// The keys differ, or only one side has one.
    WrongKey,
    /// Only one side seals.
    OtherSealing,
    /// No room for another connection.
    Full,
}

/// What distinguishes the greetings of one provider from all others'.
#[derive(Debug)]
pub struct Dialect {
    /// The first bytes of every greeting.
    pub magic: [u8; 8],
    /// The version of the provider's protocol.
    pub version: u16,
    /// Whether connections may stay sealed.
    pub seals: bool,
    /// The statuses it uses; the place in the list is the byte on the wire.
    pub statuses: &'static [Status],
}

/// What a port demands of every connection.
#[derive(Clone, Debug)]
pub struct Terms {
    /// In which words.
    pub dialect: &'static Dialect,
    /// Both have this key, or none.
    pub key: Option<FabricKey>,
    /// What follows stays sealed; counts with a key only.
    pub seal: bool,
}

/// What either side says first; `proof_len` bytes of Noise handshake follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Greeting {
    magic: [u8; 8],
    version: U16,
    flags: u8,
    status: u8,
    proof_len: U16,
    reserved: U16,
}

/// How a greeting stands after some bytes.
#[derive(Debug)]
pub enum Outcome {
    /// More bytes are needed.
    More,
    /// Both sides agree. The provider says and hears its words now, or ends with [`Greeter::confirm`].
    Agreed,
    /// The word that was awaited with [`Greeter::hear`].
    Word(Vec<u8>),
    /// The connection is up: the confirmation was said, or has come.
    Confirmed,
    /// We refuse: send what is in `out`, then close.
    Refuse,
    /// The peer refuses us, or lacks the key.
    Denied(String),
    /// The peer has no room for us.
    Full,
    /// The peer speaks something else.
    Garbage(&'static str),
}

#[derive(Clone, Copy)]
enum Step {
    Greeting,
    Proof(Greeting),
    Word,
    Confirmation,
    Over,
}

/// One side of a greeting. It never waits for more bytes than the step it is at can have.
pub struct Greeter {
    connector: bool,
    handshake: Option<Box<Handshake>>,
    session: Option<Box<Session>>,
    step: Step,
    held: [u8; MAX_HANDSHAKE],
    have: usize,
    want: usize,
}

impl Terms {
    fn flags(&self) -> u8 {
        match (&self.key, self.seal) {
            (None, _) => 0,
            (Some(_), false) => KEYED,
            (Some(_), true) => KEYED | SEALED,
        }
    }

    /// A greeting of ours, with its proof.
    fn greeting(&self, status: Status, proof: &[u8], out: &mut Vec<u8>) {
        let byte = self.dialect.statuses.iter().position(|s| *s == status);
        let g = Greeting {
            magic: self.dialect.magic,
            version: self.dialect.version.into(),
            flags: self.flags(),
            status: byte.expect("a status of the dialect") as u8,
            proof_len: (proof.len() as u16).into(),
            reserved: 0.into(),
        };
        out.extend_from_slice(g.as_bytes());
        out.extend_from_slice(proof);
    }

    /// Checks what every version must have: the magic and a proof of bearable length.
    fn parse(&self, bytes: &[u8]) -> Result<Greeting, &'static str> {
        let g = Greeting::read_from_bytes(bytes).map_err(|_| "a greeting of another length")?;
        if g.magic != self.dialect.magic {
            return Err("not a greeting of this protocol");
        }
        if usize::from(g.proof_len.get()) > MAX_HANDSHAKE {
            return Err("a proof too long");
        }
        let known = if self.dialect.seals { KEYED | SEALED } else { KEYED };
        if g.version.get() == self.dialect.version && (g.reserved.get() != 0 || g.flags & !known != 0) {
            return Err("reserved bits of the greeting are set");
        }
        Ok(g)
    }
}

impl Greeter {
    /// The connecting side; what it says first is appended to `out`.
    pub fn connector(terms: &Terms, out: &mut Vec<u8>) -> crate::Result<Greeter> {
        let mut g = Greeter { connector: true, ..Greeter::acceptor() };
        let mut proof = Vec::new();
        if let Some(key) = &terms.key {
            let mut h = Handshake::initiator(key)?;
            proof = h.write()?;
            g.handshake = Some(Box::new(h));
        }
        terms.greeting(Status::Welcome, &proof, out);
        Ok(g)
    }

    /// The accepting side; it says nothing before it has heard.
    pub fn acceptor() -> Greeter {
        Greeter {
            connector: false,
            handshake: None,
            session: None,
            step: Step::Greeting,
            held: [0; MAX_HANDSHAKE],
            have: 0,
            want: GREETING_LEN,
        }
    }

    /// Where the next bytes of the peer go: never more than belong to this step. Then [`Greeter::received`].
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.held[self.have..self.want]
    }

    /// `n` bytes of the space were written. `terms` are always the same. `full`: there is no room for another connection. Answers
    /// are appended to `out`.
    pub fn received(&mut self, n: usize, terms: &Terms, full: bool, out: &mut Vec<u8>) -> Outcome {
        self.have = (self.have + n).min(self.want);
        if self.have < self.want {
            return Outcome::More;
        }
        let got = std::mem::take(&mut self.have);
        let held = self.held;
        match std::mem::replace(&mut self.step, Step::Over) {
            Step::Greeting => match terms.parse(&held[..got]) {
                Err(why) => Outcome::Garbage(why),
                Ok(g) if g.proof_len.get() > 0 => self.wait(Step::Proof(g), usize::from(g.proof_len.get())),
                Ok(g) => self.judge(&g, &[], terms, full, out),
            },
            Step::Proof(g) => self.judge(&g, &held[..got], terms, full, out),
            Step::Word => match self.open(&held[..got]) {
                Some(word) => Outcome::Word(word),
                None => Outcome::Garbage("a word that does not open: a replay"),
            },
            Step::Confirmation => match self.open(&held[..got]) {
                Some(word) if word == CONFIRMATION => Outcome::Confirmed,
                _ => Outcome::Garbage("the confirmation does not open: a replay"),
            },
            Step::Over => Outcome::Garbage("bytes after the greeting"),
        }
    }

    /// Says a word of the provider's, at most [`MAX_WORD`] bytes.
    pub fn say(&mut self, word: &[u8], out: &mut Vec<u8>) {
        let Some(s) = &mut self.session else { return out.extend_from_slice(word) };
        let mut sealed = [0; MAX_HANDSHAKE];
        // Fails for too long a word only; the peer would then wait in vain until its limit.
        if let Ok(n) = s.seal(word, &mut sealed) {
            out.extend_from_slice(&sealed[..n]);
        }
    }

    /// Awaits a word of `len` bytes, at most [`MAX_WORD`].
    pub fn hear(&mut self, len: usize) {
        let _ = self.wait(Step::Word, len.min(MAX_WORD) + self.tag_len());
    }

    /// The last word, that all is well: the connector says it, the acceptor awaits it.
    pub fn confirm(&mut self, out: &mut Vec<u8>) -> Outcome {
        if !self.connector {
            return self.wait(Step::Confirmation, CONFIRMATION.len() + self.tag_len());
        }
        self.say(CONFIRMATION, out);
        Outcome::Confirmed
    }

    /// `true` if words are sealed: there is a key.
    pub fn has_session(&self) -> bool {
        self.session.is_some()
    }

    /// The session, for what follows; `None` without a key.
    pub fn take_session(&mut self) -> Option<Box<Session>> {
        self.session.take()
    }

    fn tag_len(&self) -> usize {
        if self.session.is_some() { TAG_LEN } else { 0 }
    }

    fn wait(&mut self, step: Step, bytes: usize) -> Outcome {
        self.step = step;
        self.want = bytes;
        Outcome::More
    }

    fn open(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let Some(s) = &mut self.session else { return Some(bytes.to_vec()) };
        let mut word = vec![0; MAX_HANDSHAKE];
        let n = s.open(bytes, &mut word).ok()?;
        word.truncate(n);
        Some(word)
    }

    fn judge(&mut self, g: &Greeting, proof: &[u8], terms: &Terms, full: bool, out: &mut Vec<u8>) -> Outcome {
        if self.connector {
            self.judge_answer(g, proof, terms)
        } else {
            self.answer(g, proof, terms, full, out)
        }
    }

    fn judge_answer(&mut self, g: &Greeting, proof: &[u8], terms: &Terms) -> Outcome {
        let denied = |why: &str| Outcome::Denied(why.to_owned());
        let (theirs, ours) = (g.version.get(), terms.dialect.version);
        if theirs != ours {
            return Outcome::Denied(format!("the peer speaks version {theirs}, we {ours}"));
        }
        let differ = g.flags ^ terms.flags();
        match terms.dialect.statuses.get(usize::from(g.status)) {
            Some(Status::Welcome) if differ == 0 => {}
            Some(Status::OtherVersion) => return denied("the peer does not speak our version"),
            Some(Status::Welcome) if differ & KEYED == 0 => {
                return denied("only one side asks for encryption");
            }
            Some(Status::OtherSealing) => return denied("only one side asks for encryption"),
            Some(Status::Welcome | Status::WrongKey) => {
                return denied("the peer has another fabric key, or only one side has a key");
            }
            Some(Status::Full) => return Outcome::Full,
            None => return Outcome::Garbage("an unknown status in the greeting"),
        }
        let Some(mut h) = self.handshake.take() else {
            return if proof.is_empty() {
                Outcome::Agreed
            } else {
                Outcome::Garbage("a proof nobody asked for")
            };
        };
        if h.read(proof).is_err() {
            return denied("the peer could not prove that it has the fabric key");
        }
        match h.finish() {
            Ok(s) => self.session = Some(Box::new(s)),
            Err(_) => return denied("the key handshake did not end"),
        }
        Outcome::Agreed
    }

    fn answer(
        &mut self,
        g: &Greeting,
        proof: &[u8],
        terms: &Terms,
        full: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let differ = g.flags ^ terms.flags();
        let refused = if g.version.get() != terms.dialect.version {
            Some(Status::OtherVersion)
        } else if differ & KEYED != 0 {
            Some(Status::WrongKey)
        } else {
            (differ != 0).then_some(Status::OtherSealing)
        };
        let refuse = |status, out: &mut Vec<u8>| {
            terms.greeting(status, &[], out);
            Outcome::Refuse
        };
        if let Some(status) = refused {
            return refuse(status, out);
        }
        let mut reply = Vec::new();
        let mut session = None;
        if let Some(key) = &terms.key {
            match respond(key, proof) {
                Ok((r, s)) => (reply, session) = (r, Some(Box::new(s))),
                Err(_) => return refuse(Status::WrongKey, out),
            }
        } else if !proof.is_empty() {
            return Outcome::Garbage("a proof without a key");
        }
        if full {
            return refuse(Status::Full, out);
        }
        terms.greeting(Status::Welcome, &reply, out);
        self.session = session;
        Outcome::Agreed
    }
}

/// The acceptor's half of the handshake.
fn respond(key: &FabricKey, proof: &[u8]) -> crate::Result<(Vec<u8>, Session)> {
    let mut h = Handshake::responder(key)?;
    h.read(proof)?;
    let reply = h.write()?;
    Ok((reply, h.finish()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Status::*;

    /// As of a provider that seals, and of one that does not.
    static SEALING: Dialect = Dialect {
        magic: *b"kfab-abc",
        version: 1,
        seals: true,
        statuses: &[Welcome, OtherVersion, WrongKey, OtherSealing, Full],
    };
    static OPEN: Dialect = Dialect {
        magic: *b"kfab-xyz",
        version: 1,
        seals: false,
        statuses: &[Welcome, OtherVersion, WrongKey, Full],
    };

    fn terms(dialect: &'static Dialect, key: Option<u8>, seal: bool) -> Terms {
        Terms { dialect, key: key.map(|b| FabricKey::from_bytes([b; 32])), seal }
    }

    /// All that differ.
    fn all() -> Vec<Terms> {
        let sealing = [(None, false), (Some(1), false), (Some(1), true), (Some(2), true)];
        sealing.map(|(key, seal)| terms(&SEALING, key, seal)).to_vec()
    }

    /// Feeds `bytes` in pieces of `step`; no step takes more than belongs to it.
    fn feed(
        g: &mut Greeter,
        mut bytes: &[u8],
        step: usize,
        t: &Terms,
        full: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        while !bytes.is_empty() {
            let space = g.space();
            let n = space.len().min(bytes.len()).min(step);
            space[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            match g.received(n, t, full, out) {
                Outcome::More => {}
                o => {
                    assert!(bytes.is_empty(), "{} bytes more than the step wanted", bytes.len());
                    return o;
                }
            }
        }
        Outcome::More
    }

    /// Both sides after the first round.
    fn greet(a: &Terms, b: &Terms, full: bool, step: usize) -> ((Greeter, Outcome), (Greeter, Outcome)) {
        let (mut to_b, mut to_a) = (Vec::new(), Vec::new());
        let mut ga = Greeter::connector(a, &mut to_b).unwrap();
        let mut gb = Greeter::acceptor();
        let ob = feed(&mut gb, &to_b, step, b, full, &mut to_a);
        let oa = feed(&mut ga, &to_a, step, a, false, &mut to_b);
        ((ga, oa), (gb, ob))
    }

    #[test]
    fn golden_bytes() {
        let bytes = |t: &Terms, status, proof: &[u8]| {
            let mut out = Vec::new();
            t.greeting(status, proof, &mut out);
            out
        };
        let g = bytes(&terms(&SEALING, Some(1), true), Full, &[7; 48]);
        assert_eq!(g[..16], *b"kfab-abc\x01\x00\x03\x04\x30\x00\x00\x00");
        assert_eq!(g[16..], [7; 48]);
        let g = bytes(&terms(&OPEN, Some(1), false), Full, &[]);
        assert_eq!(g, b"kfab-xyz\x01\x00\x01\x03\x00\x00\x00\x00");
        assert_eq!(bytes(&terms(&OPEN, None, true), Welcome, &[])[8..], [1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn those_who_agree_come_up_however_the_bytes_arrive() {
        for (step, t) in [1, 7, 1000].into_iter().flat_map(|s| all().into_iter().map(move |t| (s, t))) {
            let ((mut a, Outcome::Agreed), (mut b, Outcome::Agreed)) = greet(&t, &t, false, step) else {
                panic!("{t:?}")
            };
            assert_eq!((a.has_session(), b.has_session()), (t.key.is_some(), t.key.is_some()));
            let (mut said, mut none) = (Vec::new(), Vec::new());
            assert!(matches!(a.confirm(&mut said), Outcome::Confirmed));
            assert!(matches!(b.confirm(&mut none), Outcome::More) && none.is_empty());
            assert!(matches!(feed(&mut b, &said, step, &t, false, &mut none), Outcome::Confirmed));
            let (a, b) = (a.take_session(), b.take_session());
            assert_eq!((a.is_some(), b.is_some()), (t.key.is_some(), t.key.is_some()));
            if let (Some(mut a), Some(mut b)) = (a, b) {
                let (mut sealed, mut plain) = ([0; 32], [0; 32]);
                let n = a.seal(b"hello", &mut sealed).unwrap();
                let n = b.open(&sealed[..n], &mut plain).unwrap();
                assert_eq!(&plain[..n], b"hello");
            }
        }
    }

    #[test]
    fn words_go_both_ways_before_the_last() {
        for t in [terms(&OPEN, None, false), terms(&OPEN, Some(1), false)] {
            let ((mut a, _), (mut b, _)) = greet(&t, &t, false, 7);
            let tag = if t.key.is_some() { TAG_LEN } else { 0 };
            let mut out = Vec::new();
            for (word, a_says) in [([1; MAX_WORD], true), ([2; MAX_WORD], false)] {
                let (from, to) = if a_says { (&mut a, &mut b) } else { (&mut b, &mut a) };
                let mut said = Vec::new();
                from.say(&word, &mut said);
                assert_eq!(said.len(), MAX_WORD + tag);
                to.hear(MAX_WORD);
                let Outcome::Word(heard) = feed(to, &said, 7, &t, false, &mut out) else { panic!() };
                assert_eq!(heard, word);
            }
            let mut said = Vec::new();
            let _ = (a.confirm(&mut said), b.confirm(&mut out));
            assert!(matches!(feed(&mut b, &said, 7, &t, false, &mut out), Outcome::Confirmed));
            assert!(out.is_empty());
        }
    }

    #[test]
    fn those_who_differ_are_denied_and_told_why() {
        for (i, a) in all().iter().enumerate() {
            for (_, b) in all().iter().enumerate().filter(|(j, _)| *j != i) {
                let ((_, oa), (_, ob)) = greet(a, b, false, 1000);
                assert!(matches!(oa, Outcome::Denied(_)), "{a:?} {b:?}");
                assert!(matches!(ob, Outcome::Refuse), "{a:?} {b:?}");
            }
            let ((_, oa), (_, ob)) = greet(a, a, true, 1000);
            assert!(matches!((oa, ob), (Outcome::Full, Outcome::Refuse)));
        }
    }

    #[test]
    fn a_replayed_greeting_is_not_believed() {
        let t = terms(&SEALING, Some(1), false);
        for provider_word in [true, false] {
            let (mut first, mut out) = (Vec::new(), Vec::new());
            Greeter::connector(&t, &mut first).unwrap();
            let mut g = Greeter::acceptor();
            assert!(matches!(feed(&mut g, &first, 999, &t, false, &mut out), Outcome::Agreed));
            if provider_word {
                g.hear(CONFIRMATION.len());
            } else {
                let _ = g.confirm(&mut out);
            }
            let word = [0; CONFIRMATION.len() + TAG_LEN];
            assert!(matches!(feed(&mut g, &word, 999, &t, false, &mut out), Outcome::Garbage(_)));
        }
    }

    #[test]
    fn another_version_is_told_so_and_bad_fields_are_garbage() {
        let t = terms(&OPEN, None, false);
        let mut good = Vec::new();
        t.greeting(Welcome, &[], &mut good);
        let heard = |at: usize, value: u8| {
            let (mut bytes, mut out) = (good.clone(), Vec::new());
            bytes[at] = value;
            (feed(&mut Greeter::acceptor(), &bytes, 99, &t, false, &mut out), out)
        };
        let (o, said) = heard(8, 2);
        assert!(matches!(o, Outcome::Refuse));
        assert_eq!(t.parse(&said).unwrap().status, 1);
        // Magic, a flag that this dialect has not, a proof too long, reserved bytes.
        for (at, value) in [(0, b'x'), (10, SEALED), (13, 2), (14, 1), (15, 1)] {
            assert!(matches!(heard(at, value), (Outcome::Garbage(_), out) if out.is_empty()), "byte {at}");
        }
        assert!((0..GREETING_LEN).all(|cut| t.parse(&good[..cut]).is_err()));
        let (mut answer, mut out) = (good.clone(), Vec::new());
        answer[11] = 4;
        let mut g = Greeter::connector(&t, &mut out).unwrap();
        assert!(matches!(feed(&mut g, &answer, 99, &t, false, &mut out), Outcome::Garbage(_)));
    }
}
