//! A server and a client, each on its own core.

use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Bench;
use crate::sh::watched;

const START: Duration = Duration::from_secs(10);
const LIMIT_S: u64 = 120;

/// The words of a server and of its client, by the port they meet on.
pub(super) struct Pair<S, C> {
    pub(super) server: S,
    pub(super) client: C,
    pub(super) env: Vec<(&'static str, String)>,
}

/// Runs the pair once, the server on the first core and the client on the second; returns what the client
/// printed. Both are gone afterwards.
///
/// # Errors
/// When either does not start, the client fails or runs too long; with the end of what it said.
pub(super) fn run_pair<S, C>(bench: &Bench, pair: &Pair<S, C>) -> anyhow::Result<String>
where
    S: Fn(u16) -> Vec<String>,
    C: Fn(u16) -> Vec<String>,
{
    let port = free_port()?;
    let mut server = Guard(start(bench.cores[0], &(pair.server)(port), &pair.env)?);
    server.wait_for_port(port)?;
    let client = start(bench.cores[1], &(pair.client)(port), &pair.env)?;
    let out = client.wait_with_output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let all = format!("{text}{}", String::from_utf8_lossy(&out.stderr));
        let tail: Vec<&str> = all.lines().rev().take(3).collect();
        bail!("the client failed ({}): {}", out.status, tail.join(" | "));
    }
    Ok(text)
}

fn start(core: usize, words: &[String], env: &[(&'static str, String)]) -> anyhow::Result<Child> {
    let mut command = watched(LIMIT_S, 2);
    command.args(["taskset", "-c", &core.to_string()]).args(words);
    command.envs(env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| words.join(" "))
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// True when a socket of this machine listens on `port`, as the kernel's tables say.
fn listens(port: u16) -> bool {
    let table = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|name| listed(&table(name), port))
}

/// True when `table` has a socket in the state of listening (0A) with this local port.
fn listed(table: &str, port: u16) -> bool {
    let local = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|address| address.ends_with(&local)) && words.nth(1) == Some("0A")
    })
}

/// A server that is ended with this value.
struct Guard(Child);

impl Guard {
    fn wait_for_port(&mut self, port: u16) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !listens(port) {
            if let Some(status) = self.0.try_wait()? {
                let mut said = String::new();
                if let Some(stderr) = &mut self.0.stderr {
                    stderr.read_to_string(&mut said)?;
                }
                bail!("the server ended at once ({status}): {}", said.lines().last().unwrap_or(""));
            }
            if begun.elapsed() > START {
                bail!("the server does not listen after {} s", START.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Guard {
    /// Gives the server a second to end by itself, then asks `timeout` to end it.
    fn drop(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench() -> Bench {
        Bench { cores: [0, 0], divide: 1, kfab: None, folder: std::path::PathBuf::new() }
    }

    #[test]
    fn a_listening_port_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens(port));
        let table = "  sl  local_address rem_address   st\n   0: 0100007F:1F90 00000000:0000 0A 0\n\
            1: 0100007F:1F91 0100007F:1F90 01 0\n";
        assert!(listed(table, 0x1f90));
        assert!(!listed(table, 0x1f91));
    }

    #[test]
    fn a_server_that_ends_at_once_is_told_with_its_words() {
        let words = |text: &str| text.split('+').map(str::to_owned).collect::<Vec<_>>();
        let pair = Pair {
            server: |_| words("sh+-c+echo no such thing >&2; exit 4"),
            client: |_| words("true"),
            env: vec![],
        };
        let error = run_pair(&bench(), &pair).unwrap_err().to_string();
        assert!(error.contains("no such thing"), "{error}");
    }
}
