//! For tests that kill processes: this program again as another process, and a load on a node that is watched meanwhile.

use super::{BITS, PORTAL, WAIT, until_or};
use futures_lite::future::block_on;
use lnet_shim::nid::ProcessId;
use lnet_shim::node::Node;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Before the word of a process that is ready.
const READY: &str = "READY ";

/// One test of this program, run by a process of its own. Killed with this value.
pub(crate) struct Part {
    child: Child,
    /// What it said with [`ready`].
    pub(crate) word: String,
}

impl Part {
    /// Starts `test` with these variables, and waits until it is [`ready`].
    pub(crate) fn start(test: &str, variables: &[(&str, &str)]) -> Part {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let word = lines.map_while(|l| l.ok()).find_map(|l| l.strip_prefix(READY).map(str::to_owned));
        Part { child, word: word.expect("the process says that it is ready") }
    }

    /// SIGKILL.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Tells who started this process that it is ready.
pub(crate) fn ready(word: &str) {
    // The harness may have printed on the same line.
    println!("\n{READY}{word}");
    std::io::stdout().flush().unwrap();
}

#[derive(Default)]
struct Count {
    stop: AtomicBool,
    good: AtomicU64,
    bad: AtomicU64,
    /// Calls that ended, by thread.
    ended: [AtomicU64; 4],
}

/// Puts and gets of 1 MiB from four threads.
pub(crate) struct Load {
    count: Arc<Count>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(node: &Node, to: &str) -> Load {
        let (target, count) = (ProcessId::lnet(to.parse().unwrap()), Arc::new(Count::default()));
        let one = |i: usize| {
            let (node, count) = (node.clone(), count.clone());
            move || {
                while !count.stop.load(Ordering::Relaxed) {
                    let well = if i < 2 {
                        block_on(node.put_bytes(target, PORTAL, BITS, vec![1; 1 << 20], WAIT)).is_ok()
                    } else {
                        block_on(node.get_bytes(target, PORTAL, BITS, 0, 1 << 20, WAIT)).is_ok()
                    };
                    if well { &count.good } else { &count.bad }.fetch_add(1, Ordering::Relaxed);
                    count.ended[i].fetch_add(1, Ordering::Relaxed);
                    if !well {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            }
        };
        let threads = (0..4).map(|i| std::thread::spawn(one(i))).collect();
        Load { count, threads }
    }

    /// Waits until some more have gone well.
    pub(crate) fn goes_well(&self, report: impl Fn() -> String) {
        let good = || self.count.good.load(Ordering::Relaxed);
        let before = good();
        until_or("calls go well", || good() > before + 8, report);
    }

    /// Calls that ended, by thread.
    pub(crate) fn ended(&self) -> [u64; 4] {
        self.count.ended.each_ref().map(|n| n.load(Ordering::Relaxed))
    }

    /// Calls that failed.
    pub(crate) fn failed(&self) -> u64 {
        self.count.bad.load(Ordering::Relaxed)
    }

    /// Waits for the threads to end: for ever, unless `stop`.
    pub(crate) fn join(self, stop: bool) {
        self.count.stop.store(stop, Ordering::Relaxed);
        self.threads.into_iter().for_each(|t| t.join().unwrap());
    }
}
