//! A port with what it reported, a child that is one, and patience.

use kfab_core::Error;
use kfab_core::mem::{Buffer, Landing, Pool};
use kfab_core::spi::{
    Body, Conn, DownReason, Event, Frame, Inline, Port, PortConfig, Provider, RemoteKey, Rights, Rma,
    RmaStarted, RmaToken, Way,
};
use kfab_verbs::Verbs;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes that long, whatever else the machine does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of the child's window.
pub(crate) const WINDOW: usize = 4 << 20;
const CHILD: &str = "KFAB_VERBS_CHILD";

type Got = (Conn, [u8; 16], Vec<u8>, Vec<u8>);
type Ended = (Option<Vec<u8>>, Result<(), Error>);

/// A port and what it reported.
pub(crate) struct Node {
    pub(crate) port: Box<dyn Port>,
    pub(crate) up: Vec<Conn>,
    pub(crate) incoming: Vec<Conn>,
    /// Connection, header, inline part, body.
    pub(crate) frames: Vec<Got>,
    pub(crate) down: HashMap<Conn, (DownReason, String)>,
    /// The bytes read and the outcome, by token.
    pub(crate) rma: HashMap<u64, Ended>,
    pub(crate) writable: usize,
    /// Leaves bodies where they are, and counts them.
    pub(crate) holds: Option<usize>,
    born: Instant,
}

impl Node {
    pub(crate) fn open(card: &str) -> Node {
        Node::new(
            Verbs
                .open(&PortConfig { device: Some(card.to_owned()), ..Default::default() })
                .unwrap_or_else(|e| panic!("{e}")),
        )
    }

    fn new(port: Box<dyn Port>) -> Node {
        Node {
            port,
            up: Vec::new(),
            incoming: Vec::new(),
            frames: Vec::new(),
            down: HashMap::new(),
            rma: HashMap::new(),
            writable: 0,
            holds: None,
            born: Instant::now(),
        }
    }

    pub(crate) fn poll(&mut self) -> bool {
        let (mut events, now) = (Vec::new(), self.born.elapsed().as_nanos() as u64);
        let busy = self.port.poll(now, &mut events);
        events.into_iter().for_each(|e| self.on(e));
        busy
    }

    fn on(&mut self, e: Event) {
        match e {
            Event::Up { conn } => self.up.push(conn),
            Event::Incoming { conn } => self.incoming.push(conn),
            Event::Down { conn, reason, detail } => {
                assert!(self.down.insert(conn, (reason, detail)).is_none(), "{conn:?} went down twice");
            }
            Event::Frame { body_len: 1.., .. } if self.holds.is_some() => {
                self.holds = self.holds.map(|n| n + 1);
            }
            Event::Frame { conn, header, inline, body_len } => {
                let mut body = Vec::new();
                if body_len > 0 {
                    let l = Landing::whole(Buffer::adopt(vec![0; body_len])).expect("one owner");
                    let l = self.port.take(conn, Some(l)).flatten().expect("taken at once");
                    body = l.into_buffer().expect("a buffer").to_vec();
                }
                self.frames.push((conn, header, inline.as_slice().to_vec(), body));
            }
            Event::RmaDone { token, landing, result } => {
                let bytes = landing.and_then(Landing::into_buffer).map(|b| b.to_vec());
                assert!(self.rma.insert(token.0, (bytes, result)).is_none(), "{token:?} ended twice");
            }
            Event::Writable { .. } => self.writable += 1,
            Event::Taken { .. } => panic!("bodies are taken at once"),
        }
    }

    pub(crate) fn send(&mut self, conn: Conn, n: u32, inline: &[u8], body: Body<'_>) -> bool {
        let inline = Inline::new(inline).expect("short");
        self.port.post(conn, &[Frame { header: header(n), inline, body, more: false }]) == 1
    }

    /// Starts a one-sided operation; an end within the call is filed like a late one.
    pub(crate) fn start(&mut self, conn: Conn, rma: Rma, token: u64) {
        let (landing, result) = match self.port.rma(conn, rma, RmaToken(token)) {
            RmaStarted::Pending => return,
            RmaStarted::Done(l) => (l, Ok(())),
            RmaStarted::Failed(l, e) => (l, Err(e)),
        };
        self.rma.insert(token, (landing.and_then(Landing::into_buffer).map(|b| b.to_vec()), result));
    }

    pub(crate) fn way(&self) -> Way {
        self.port.ways().remove(0)
    }
}

pub(crate) fn header(n: u32) -> [u8; 16] {
    let mut h = [7; 16];
    h[..4].copy_from_slice(&n.to_le_bytes());
    h
}

/// Polls until `done`.
pub(crate) fn until(what: &str, nodes: &mut [&mut Node], mut done: impl FnMut(&mut [&mut Node]) -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !done(nodes) {
        assert!(
            Instant::now() < limit,
            "{what}: it did not happen; {:?}",
            nodes.iter().map(|n| &n.down).collect::<Vec<_>>()
        );
        let busy = nodes.iter_mut().map(|n| usize::from(n.poll())).sum::<usize>();
        if busy == 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Connects; the names at both ends.
pub(crate) fn connect(a: &mut Node, b: &mut Node) -> (Conn, Conn) {
    let before = b.incoming.len();
    let conn = a.port.connect(&b.way()).expect("a way");
    until("a connection", &mut [a, b], |n| {
        assert!(!n[0].down.contains_key(&conn), "{:?}", n[0].down);
        n[0].up.contains(&conn) && n[1].incoming.len() > before
    });
    (conn, *b.incoming.last().expect("waited for"))
}

pub(crate) fn key_bytes(k: &RemoteKey) -> [u8; 24] {
    let mut b = [0; 24];
    b[..8].copy_from_slice(&k.region.to_le_bytes());
    b[8..16].copy_from_slice(&k.base.to_le_bytes());
    b[16..].copy_from_slice(&k.secret.to_le_bytes());
    b
}

pub(crate) fn key_of(b: &[u8]) -> RemoteKey {
    let n = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("eight bytes"));
    RemoteKey { region: n(0), base: n(8), secret: n(16) }
}

/// A process that has a port, exposes a window to whoever connects, and sends its key. Killed on drop.
pub(crate) struct Peer {
    pub(crate) way: Way,
    child: Child,
}

impl Peer {
    pub(crate) fn spawn(card: &str) -> Peer {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .env(CHILD, card)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let (scheme, rest) = line.trim().split_once(':').unwrap_or_else(|| panic!("the child said {line:?}"));
        Peer { way: Way::new(scheme, rest), child }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's life, if this is one: does not return then.
pub(crate) fn serve_if_child() {
    let Ok(card) = std::env::var(CHILD) else { return };
    let mut n = Node::open(&card);
    println!("{}", n.way());
    let window = Pool::new(Default::default()).alloc_window(WINDOW).expect("memory");
    std::thread::spawn(|| {
        // Ends with the parent.
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    let mut served = 0;
    loop {
        if !n.poll() {
            std::thread::sleep(Duration::from_micros(200));
        }
        if n.incoming.len() > served {
            let e = n.port.expose(&window.as_source(), Rights::READ | Rights::WRITE).expect("exposed");
            let conn = n.incoming[served];
            n.send(conn, 0, &key_bytes(&e.key), Body::Empty);
            served += 1;
        }
        n.frames.clear();
    }
}

pub(crate) fn text_of(e: &(dyn std::any::Any + Send)) -> String {
    let text = e.downcast_ref::<String>().cloned();
    text.or_else(|| e.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_else(|| "a panic".to_owned())
}
