//! Examples as processes of their own, with a watchdog.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(90);

/// How a process ended.
pub(crate) struct Ended {
    pub(crate) good: bool,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Ended {
    /// What it said, as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

/// Cargo builds the examples beside the tests: target/PROFILE/{deps/THIS_TEST, examples/NAME}.
pub(crate) fn program(name: &str) -> Command {
    let me = std::env::current_exe().unwrap();
    Command::new(me.parent().and_then(Path::parent).unwrap().join("examples").join(name))
}

/// Runs a command to its end, in time.
pub(crate) fn run(command: &mut Command) -> Ended {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (drain(child.stdout.take().unwrap()), drain(child.stderr.take().unwrap()));
    let started = Instant::now();
    let status = loop {
        if let Some(s) = child.try_wait().unwrap() {
            break s;
        }
        if started.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} hangs; it said:\n{}", String::from_utf8_lossy(&out.join().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (out, err) = (out.join().unwrap(), err.join().unwrap());
    Ended { good: status.success(), out, err: String::from_utf8_lossy(&err).into_owned() }
}

fn drain(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}
