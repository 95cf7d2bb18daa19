//! Peers that die: a child process that runs the test program itself, or whatever a rig kills by other means.

use kfab_core::Result;
use kfab_core::spi::{Event, Port, Way};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const VARIABLE: &str = "KFAB_CONFORMANCE_CHILD";

/// A peer that can be killed without warning. Killed when dropped.
pub struct Victim {
    /// Where it listens.
    pub way: Way,
    kill: Box<dyn FnMut() + Send>,
}

impl Victim {
    /// A peer at `way` that `kill` kills; called more than once.
    pub fn new(way: Way, kill: impl FnMut() + Send + 'static) -> Victim {
        Victim { way, kill: Box::new(kill) }
    }

    /// Starts this very program as a child, whose `main` must call [`serve_if_child`] with the same `name`; killed by SIGKILL.
    pub fn child(name: &str) -> std::io::Result<Victim> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(VARIABLE, name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let Some((scheme, rest)) = line.trim().split_once(':') else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(std::io::Error::other(format!("the child said {line:?} where its way was expected")));
        };
        let way = Way::new(scheme, rest);
        Ok(Victim::new(way, move || stop(&mut child)))
    }

    /// Kills it.
    pub fn kill(&mut self) {
        (self.kill)();
    }
}

fn stop(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}

/// In a child made by [`Victim::child`] with this `name`: opens a port, prints its first way, and polls it, discarding bodies, until
/// killed (or until its parent is gone, or a minute has passed). Elsewhere: returns at once.
pub fn serve_if_child(name: &str, open: impl FnOnce() -> Result<Box<dyn Port>>) {
    if std::env::var(VARIABLE).as_deref() != Ok(name) {
        return;
    }
    let mut port = match open() {
        Ok(p) => p,
        Err(e) => {
            println!("{e}");
            std::process::exit(1);
        }
    };
    if let Some(way) = port.ways().first() {
        println!("{way}");
    }
    // The pipe of standard input closes when the parent is gone.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    let start = Instant::now();
    let mut events = Vec::new();
    while start.elapsed() < Duration::from_secs(60) {
        let now = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if !port.poll(now + 1, &mut events) {
            std::thread::sleep(Duration::from_micros(200));
        }
        for e in events.drain(..) {
            if let Event::Frame { conn, body_len: 1.., .. } = e {
                port.take(conn, None);
            }
        }
    }
    std::process::exit(0);
}
