//! Child processes: this very test program, run again with the variable `KFAB_TEST_CHILD`, which the test `child_main` of the
//! program obeys. Lines that a child prints after `@` reach its parent; a child dies with its parent.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Tells a child what to be.
pub(crate) const ROLE: &str = "KFAB_TEST_CHILD";

/// A running child; killed when dropped.
pub(crate) struct Kid {
    child: Child,
    lines: Receiver<String>,
    reader: Option<JoinHandle<()>>,
}

impl Kid {
    /// Starts a child in this role.
    pub(crate) fn start(role: &str, args: &[&str]) -> Kid {
        Kid::run(Command::new(std::env::current_exe().unwrap()), role, args)
    }

    /// Starts a child in a network namespace.
    pub(crate) fn start_in(namespace: &str, role: &str, args: &[&str]) -> Kid {
        let mut c = Command::new("ip");
        c.args(["netns", "exec", namespace]).arg(std::env::current_exe().unwrap());
        Kid::run(c, role, args)
    }

    /// Starts a child that may look into no process that hides: root may into each, and so it is not root's.
    pub(crate) fn start_plain(role: &str, args: &[&str]) -> Kid {
        let mut c = Command::new(std::env::current_exe().unwrap());
        if rustix::process::geteuid().is_root() {
            // nobody(5)
            std::os::unix::process::CommandExt::uid(&mut c, 65534);
        }
        Kid::run(c, role, args)
    }

    fn run(mut command: Command, role: &str, args: &[&str]) -> Kid {
        let mut child = command
            .args(["--exact", "child_main", "--nocapture", "--test-threads=1"])
            .env(ROLE, std::iter::once(role).chain(args.iter().copied()).collect::<Vec<_>>().join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a child");
        let out = child.stdout.take().unwrap();
        let (tx, lines) = channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Some((_, said)) = line.split_once('@') {
                    let _ = tx.send(said.to_owned());
                }
            }
        });
        Kid { child, lines, reader: Some(reader) }
    }

    /// What it says next after the word `word`; other lines are dropped.
    pub(crate) fn says(&self, word: &str) -> String {
        self.says_within(word, Duration::from_secs(60))
            .unwrap_or_else(|| panic!("the child does not say {word:?}"))
    }

    /// The same, with a limit of time.
    pub(crate) fn says_within(&self, word: &str, limit: Duration) -> Option<String> {
        loop {
            match self.lines.recv_timeout(limit) {
                Ok(l) => match l.split_once(' ').unwrap_or((&l, "")) {
                    (w, rest) if w == word => return Some(rest.to_owned()),
                    _ => {}
                },
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("the child ended before it said {word:?}"),
            }
        }
    }

    /// A line on its standard input.
    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").expect("the child listens");
    }

    /// `kill -9`; returns when it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(r) = self.reader.take() {
            let _ = r.join();
        }
    }

    /// Sends the signal only.
    pub(crate) fn shoot(&mut self) {
        let _ = self.child.kill();
    }

    /// A thread that ends, with the time, when the kernel says that the child is dead.
    pub(crate) fn death(&self) -> JoinHandle<Instant> {
        let pid = Pid::from_child(&self.child);
        let fd = pidfd_open(pid, PidfdFlags::empty()).expect("a descriptor of the child");
        std::thread::spawn(move || {
            let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], None);
            Instant::now()
        })
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// `true` while it runs.
    pub(crate) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Kid {
    fn drop(&mut self) {
        self.kill();
    }
}

/// In a child: its role and arguments. A child ends when its standard input does, as it does when its parent is gone.
pub(crate) fn role() -> Option<Vec<String>> {
    let role = std::env::var(ROLE).ok()?;
    Some(role.split(' ').map(str::to_owned).collect())
}

/// In a child: tells the parent.
pub(crate) fn say(line: &str) {
    // A line of its own, whatever libtest printed before; a parent that is gone is no failure.
    let _ = writeln!(std::io::stdout(), "\n@{line}");
    let _ = std::io::stdout().flush();
}

/// In a child: ends it when the parent is gone; what the parent tells meanwhile goes to `f`.
pub(crate) fn listen(mut f: impl FnMut(&str) + Send + 'static) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            f(line.trim());
        }
        std::process::exit(0);
    });
}
