//! A port with a memory: everything it reported, checked against the rules that hold for every event.

use kfab_core::Error;
use kfab_core::mem::{Buffer, Landing};
use kfab_core::spi::{
    Body, Conn, DownReason, Event, Exposure, Frame, HEADER_LEN, Inline, Port, RemoteKey, Rights, Rma,
    RmaStarted, RmaToken,
};
use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;

/// A frame with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// Of which connection.
    pub conn: Conn,
    /// As posted.
    pub header: [u8; HEADER_LEN],
    /// As posted.
    pub inline: Vec<u8>,
    /// As posted, if it was taken by the node.
    pub body: Vec<u8>,
}

/// A read or write that ended.
#[derive(Debug)]
pub struct RmaEnd {
    /// The bytes read.
    pub bytes: Option<Vec<u8>>,
    /// How it ended.
    pub result: Result<(), Error>,
}

/// A port and what it reported.
pub struct Node {
    port: Box<dyn Port>,
    /// Whole frames, in the order of their completion.
    pub frames: Vec<Got>,
    /// Connections that came up here, asked for from here.
    pub up: Vec<Conn>,
    /// Connections that peers made.
    pub incoming: Vec<Conn>,
    /// Connections that ended.
    pub down: Vec<(Conn, DownReason)>,
    /// Times that a connection had room again.
    pub writable: Vec<Conn>,
    /// One-sided operations that ended, by token.
    pub rma: HashMap<u64, RmaEnd>,
    /// `false`: bodies wait until the case takes them.
    pub auto_take: bool,
    /// Bodies that wait, in order (not [`Node::auto_take`]): the frame without its body, and the body's length.
    pub waiting: Vec<(Got, usize)>,
    /// Landings that came back from late takes the case asked for.
    pub landed: Vec<(Conn, Option<Landing>)>,
    /// Connections whose body is being delivered.
    taking: HashMap<Conn, Got>,
    /// Takes whose landing belongs to the case.
    manual: HashSet<Conn>,
    known: HashSet<Conn>,
    gone: HashSet<Conn>,
    refused: HashSet<Conn>,
}

impl Node {
    /// Around an open port.
    pub fn new(port: Box<dyn Port>) -> Node {
        Node {
            port,
            frames: Vec::new(),
            up: Vec::new(),
            incoming: Vec::new(),
            down: Vec::new(),
            writable: Vec::new(),
            rma: HashMap::new(),
            auto_take: true,
            waiting: Vec::new(),
            landed: Vec::new(),
            taking: HashMap::new(),
            manual: HashSet::new(),
            known: HashSet::new(),
            gone: HashSet::new(),
            refused: HashSet::new(),
        }
    }

    /// The port itself.
    pub fn port(&mut self) -> &mut dyn Port {
        self.port.as_mut()
    }

    /// The port's descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.port.fd()
    }

    /// Polls once; `true` if there was anything.
    pub fn poll(&mut self, now: u64) -> bool {
        let mut events = Vec::new();
        let busy = self.port.poll(now, &mut events);
        assert!(busy || events.is_empty(), "poll said that there was nothing to do, and reported {events:?}");
        assert!(events.len() <= 1 << 16, "a batch of {} events", events.len());
        // A body must be taken before the next frame, so what comes in one batch is handled in order.
        events.into_iter().for_each(|e| self.on(e));
        busy
    }

    fn on(&mut self, e: Event) {
        match e {
            Event::Up { conn } => {
                assert!(
                    !self.up.contains(&conn) && !self.gone.contains(&conn),
                    "{conn:?} came up twice or too late"
                );
                self.known.insert(conn);
                self.up.push(conn);
            }
            Event::Incoming { conn } => {
                assert!(!self.gone.contains(&conn), "the name {conn:?} was used again");
                assert!(self.known.insert(conn), "the name {conn:?} is in use");
                self.incoming.push(conn);
            }
            Event::Down { conn, reason, .. } => self.on_down(conn, reason),
            Event::Frame { conn, header, inline, body_len } => {
                let got = Got { conn, header, inline: inline.as_slice().to_vec(), body: Vec::new() };
                self.on_frame(got, body_len);
            }
            Event::Taken { conn, landing, ok } => self.on_taken(conn, landing, ok),
            Event::RmaDone { token, landing, result } => {
                let bytes = landing.and_then(Landing::into_buffer).map(|b| b.to_vec());
                let twice = self.rma.insert(token.0, RmaEnd { bytes, result });
                assert!(twice.is_none(), "one-sided operation {token:?} ended twice");
            }
            Event::Writable { conn } => {
                // One more than needed does no harm; one out of the blue is a mix-up of names.
                assert!(self.refused.contains(&conn), "{conn:?} is writable, but never refused a frame");
                self.writable.push(conn);
            }
        }
    }

    fn on_down(&mut self, conn: Conn, reason: DownReason) {
        assert!(!self.gone.contains(&conn), "{conn:?} went down twice");
        assert!(!self.taking.contains_key(&conn), "{conn:?}: Down before Taken");
        assert!(self.waiting.iter().all(|(g, _)| g.conn != conn), "{conn:?}: Down while a body waits");
        self.gone.insert(conn);
        self.down.push((conn, reason));
    }

    fn on_frame(&mut self, got: Got, body_len: usize) {
        let conn = got.conn;
        assert!(self.known.contains(&conn), "a frame of {conn:?} before it was up");
        assert!(!self.gone.contains(&conn), "a frame of {conn:?} after its Down");
        assert!(!self.taking.contains_key(&conn), "a frame of {conn:?} before Taken");
        assert!(self.waiting.iter().all(|(g, _)| g.conn != conn), "a frame of {conn:?} while a body waits");
        if body_len == 0 {
            return self.frames.push(got);
        }
        if !self.auto_take {
            return self.waiting.push((got, body_len));
        }
        let landing =
            Landing::whole(Buffer::adopt(vec![0xEE; body_len])).expect("a new buffer has one owner");
        match self.port.take(conn, Some(landing)) {
            Some(l) => self.frames.push(Got { body: bytes(l), ..got }),
            None => drop(self.taking.insert(conn, got)),
        }
    }

    fn on_taken(&mut self, conn: Conn, landing: Option<Landing>, ok: bool) {
        assert!(!self.gone.contains(&conn), "Taken of {conn:?} after its Down");
        let got = self.taking.remove(&conn);
        let got = got.unwrap_or_else(|| panic!("Taken of {conn:?}, for which no take is under way"));
        if self.manual.remove(&conn) {
            assert!(ok, "the body of a living connection was not delivered");
            return self.landed.push((conn, landing));
        }
        if ok {
            self.frames.push(Got { body: bytes(landing), ..got });
        }
    }

    /// Takes the first waiting body; what came back goes to [`Node::landed`], at once or later.
    pub fn take(&mut self, landing: Option<Landing>) {
        let (got, _) = self.waiting.remove(0);
        let conn = got.conn;
        match self.port.take(conn, landing) {
            Some(l) => self.landed.push((conn, l)),
            None => {
                self.manual.insert(conn);
                self.taking.insert(conn, got);
            }
        }
    }

    /// Connects to the first way of another node.
    pub fn connect(&mut self, to: &mut Node) -> Conn {
        let way = to.port().ways().into_iter().next().expect("an open port can be reached");
        let conn = self.port.connect(&way).unwrap_or_else(|e| panic!("connect to {way}: {e}"));
        assert!(
            !self.known.contains(&conn) && !self.gone.contains(&conn),
            "the name {conn:?} was used again"
        );
        conn
    }

    /// Posts and remembers a refusal.
    pub fn post(&mut self, conn: Conn, frames: &[Frame<'_>]) -> usize {
        let n = self.port.post(conn, frames);
        assert!(n <= frames.len(), "{n} of {} frames accepted", frames.len());
        if n < frames.len() {
            self.refused.insert(conn);
        }
        n
    }

    /// Posts one frame that must be accepted.
    pub fn send(&mut self, conn: Conn, header: [u8; HEADER_LEN], inline: &[u8], body: Body<'_>) {
        let inline = Inline::new(inline).expect("at most 40 bytes");
        let n = self.post(conn, &[Frame { header, inline, body, more: false }]);
        assert_eq!(n, 1, "an idle connection has room for a frame");
    }

    /// `Some` if the connection has ended.
    pub fn ended(&self, conn: Conn) -> Option<DownReason> {
        self.down.iter().find(|d| d.0 == conn).map(|d| d.1)
    }

    /// Exposes memory; must work.
    pub fn expose(&mut self, memory: &kfab_core::mem::Slice, rights: Rights) -> Exposure {
        self.port.expose(memory, rights).unwrap_or_else(|e| panic!("expose: {e}"))
    }

    /// Starts a read; an end within the call is filed like a late one.
    pub fn read(&mut self, conn: Conn, token: u64, key: RemoteKey, offset: u64, len: usize) {
        let buffer = Buffer::adopt(vec![0xDD; len]);
        self.read_into(conn, token, key, offset, buffer);
    }

    /// Starts a read into a buffer that the case provides.
    pub fn read_into(&mut self, conn: Conn, token: u64, key: RemoteKey, offset: u64, buffer: Buffer) {
        let landing = Landing::whole(buffer).expect("a new buffer has one owner");
        let started = self.port.rma(conn, Rma::Read { landing, key, offset }, RmaToken(token));
        self.file(token, started);
    }

    /// Starts a write.
    pub fn write(
        &mut self,
        conn: Conn,
        token: u64,
        key: RemoteKey,
        offset: u64,
        source: kfab_core::mem::Slice,
    ) {
        let started = self.port.rma(conn, Rma::Write { source, key, offset }, RmaToken(token));
        self.file(token, started);
    }

    fn file(&mut self, token: u64, started: RmaStarted) {
        let to_bytes = |l: Option<Landing>| l.and_then(Landing::into_buffer).map(|b| b.to_vec());
        let end = match started {
            RmaStarted::Pending => return,
            RmaStarted::Done(l) => RmaEnd { bytes: to_bytes(l), result: Ok(()) },
            RmaStarted::Failed(l, e) => RmaEnd { bytes: to_bytes(l), result: Err(e) },
        };
        self.rma.insert(token, end);
    }

    /// For messages of failures.
    pub fn summary(&self) -> String {
        format!(
            "frames {}, up {:?}, incoming {:?}, down {:?}, writable {}, bodies waiting {}, takes under way {}",
            self.frames.len(),
            self.up,
            self.incoming,
            self.down,
            self.writable.len(),
            self.waiting.len(),
            self.taking.len()
        )
    }
}

fn bytes(l: Option<Landing>) -> Vec<u8> {
    let l = l.expect("a landing that was lent comes back");
    l.into_buffer().expect("the node's landings are buffers").to_vec()
}
