//! Running `kfab` under a watchdog.

use crate::terminal::Terminal;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// After this long a process is killed and the test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn kfab(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_kfab"));
    c.args(args).env_remove("KFAB_LOG");
    c
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    #[track_caller]
    pub(crate) fn ok(self) -> Ended {
        self.code(0)
    }

    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Ended {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Everything in `words` is said on standard error.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Ended {
        for w in words {
            assert!(self.err.contains(w), "{w:?} is not in:\n{}", self.err);
        }
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}:\n{}", self.out))
    }
}

/// A running process; killed when dropped.
pub(crate) struct Running {
    child: Child,
    out: Option<JoinHandle<String>>,
    err: Option<JoinHandle<String>>,
    first: std::sync::mpsc::Receiver<String>,
}

fn drain(
    from: impl Read + Send + 'static,
    first: Option<std::sync::mpsc::Sender<String>>,
) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut text = String::new();
        if let Some(tx) = first {
            let _ = from.read_line(&mut text);
            let _ = tx.send(text.trim_end().to_owned());
        }
        let _ = from.read_to_string(&mut text);
        text
    })
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Running {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (tx, first) = std::sync::mpsc::channel();
        let out = Some(drain(child.stdout.take().unwrap(), Some(tx)));
        let err = Some(drain(child.stderr.take().unwrap(), None));
        Running { child, out, err, first }
    }

    /// With a terminal for everything; it has no output of its own then.
    pub(crate) fn start_on(mut command: Command, terminal: &Terminal) -> Running {
        let end = || Stdio::from(terminal.open());
        command.stdin(end()).stdout(end()).stderr(end());
        let child = command.spawn().unwrap();
        Running { child, out: None, err: None, first: std::sync::mpsc::channel().1 }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line of standard output: a server's address.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.first.recv_timeout(LIMIT).expect("a first line")
    }

    pub(crate) fn signal(&self, s: Signal) {
        kill_process(Pid::from_raw(self.pid() as i32).unwrap(), s).unwrap();
    }

    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        let started = Instant::now();
        let text = |of: Option<JoinHandle<String>>| of.map_or_else(String::new, |t| t.join().unwrap());
        let status = loop {
            if let Some(s) = self.child.try_wait().unwrap() {
                break s;
            }
            if started.elapsed() > LIMIT {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!("hangs; stdout:\n{}\nstderr:\n{}", text(self.out.take()), text(self.err.take()));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Ended { code: status.code(), out: text(self.out.take()), err: text(self.err.take()) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
pub(crate) fn run(args: &[&str]) -> Ended {
    Running::start(kfab(args)).end()
}

/// A server over TCP on a free port; its address.
pub(crate) fn server(more: &[&str]) -> (Running, String) {
    let mut args = vec!["serve", "--provider", "tcp", "--listen", "tcp:127.0.0.1:0"];
    args.extend(more);
    let server = Running::start(kfab(&args));
    let address = server.line();
    assert!(address.starts_with("tcp:127.0.0.1:"), "{address:?}: {:?}", server.end());
    (server, address)
}

/// A directory for this test, removed at the end.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("kfab-command-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// A new key in a file.
    pub(crate) fn key(&self, name: &str) -> String {
        let file = self.file(name);
        run(&["keygen", &file]).ok();
        file
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Processes whose command line has `word`.
pub(crate) fn processes_with(word: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
    let lines = lines.map(|l| String::from_utf8_lossy(&l).replace('\0', " "));
    lines.filter(|l| l.contains(word)).collect()
}

/// `true` once a process catches Ctrl-C.
pub(crate) fn catches_ctrl_c(pid: u32) -> bool {
    catches(pid, Signal::INT)
}

/// `true` once a process catches a signal (proc_pid_status(5)).
pub(crate) fn catches(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
    caught
        .and_then(|m| u64::from_str_radix(m.trim(), 16).ok())
        .is_some_and(|m| m >> (signal.as_raw() - 1) & 1 != 0)
}

/// Waits until `done`; `false` if that takes longer than `limit`.
pub(crate) fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < limit {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
