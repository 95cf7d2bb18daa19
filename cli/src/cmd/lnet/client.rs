//! The asking side: finds the node, asks, shows the answer.

use super::Out;
use super::request::{Line, Request};
use crate::failure::{Failure, Result};
use serde_json::Value;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

/// The first part of the names of nodes' sockets.
pub(crate) const PREFIX: &str = "kfab-lnet.";
/// How often a waiting command looks whether Ctrl-C was pressed.
const LOOK: Duration = Duration::from_millis(200);
/// How long a node that is told to stop may take to say what there is so far.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Asks a node and prints the answer: as JSON, or as `table` makes it.
pub(crate) fn ask(out: &Out, request: &Request, table: impl FnOnce(&Value) -> String) -> Result<()> {
    ask_with(out, request, |_, _| {}, table).map(drop)
}

/// The same, with the progress shown; the answer. On Ctrl-C a node that takes its time may say what there is so far: that is shown, and
/// then comes the error.
pub(crate) fn ask_with(
    out: &Out,
    request: &Request,
    mut progress: impl FnMut(f64, &str),
    table: impl FnOnce(&Value) -> String,
) -> Result<Value> {
    let value = call(out, request, &mut progress)?;
    if out.json {
        crate::show::print_json(&value)?
    } else {
        crate::show::print(&table(&value))?
    }
    crate::stop::check()?;
    Ok(value)
}

fn call(out: &Out, request: &Request, progress: &mut dyn FnMut(f64, &str)) -> Result<Value> {
    let name = choose(&running()?, out.node.as_deref())?;
    let unreachable = |e: std::io::Error| Failure::unavailable(format!("node {name}: {e}"));
    let connect = || {
        let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(format!("{PREFIX}{name}"))?)?;
        stream.set_read_timeout(Some(LOOK))?;
        Ok(stream)
    };
    let mut stream = connect().map_err(unreachable)?;
    let text = serde_json::to_string(request).map_err(|e| Failure::failed(e.to_string()))?;
    stream.write_all(format!("{text}\n").as_bytes()).map_err(unreachable)?;
    let mut lines = BufReader::new(stream);
    let (mut text, mut until) = (String::new(), None);
    loop {
        if crate::stop::pressed() {
            let until = *until.get_or_insert_with(|| {
                let _ = lines.get_ref().shutdown(Shutdown::Write);
                Instant::now() + LAST_WORDS
            });
            if !request.takes_its_time() || Instant::now() > until {
                return Err(Failure::interrupted());
            }
        }
        if !line(&mut lines, &mut text, &name)? {
            continue;
        }
        match serde_json::from_str(&std::mem::take(&mut text)) {
            Ok(Line::Progress { part, text }) => progress(part, &text),
            Ok(Line::Done(value)) => return Ok(value),
            Ok(Line::Failed { code, what, hint }) => return Err(Failure { code, what, hint }),
            Err(e) => return Err(Failure::failed(format!("node {name}: not an answer: {e}"))),
        }
    }
}

/// Reads on; `true` once `text` is a whole line.
fn line(lines: &mut BufReader<UnixStream>, text: &mut String, name: &str) -> Result<bool> {
    match lines.read_line(text) {
        Ok(0) => Err(Failure::unavailable(format!("node {name} is gone, or belongs to another user"))),
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
        Err(e) => Err(Failure::unavailable(format!("node {name}: {e}"))),
    }
}

/// The names of all nodes of this machine (of this network namespace).
fn running() -> Result<Vec<String>> {
    let path = "/proc/net/unix";
    let text = std::fs::read_to_string(path).map_err(|e| Failure::unavailable(format!("{path}: {e}")))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<String> {
    let listening = |line: &&str| line.split_whitespace().nth(3) == Some("00010000");
    let name = |line: &str| {
        Some(line.split_whitespace().nth(7)?.strip_prefix('@')?.strip_prefix(PREFIX)?.to_owned())
    };
    let mut all: Vec<String> = text.lines().filter(listening).filter_map(name).collect();
    all.sort();
    all.dedup();
    all
}

fn choose(all: &[String], which: Option<&str>) -> Result<String> {
    let list = all.join(", ");
    match (which, all) {
        (Some(name), _) if all.iter().any(|n| n == name) => Ok(name.to_owned()),
        (Some(name), []) => Err(Failure::unavailable(format!("no node {name:?}: none is running"))
            .hint("start one with `kfab lnet node`")),
        (Some(name), _) => Err(Failure::unavailable(format!("no node {name:?}; there are: {list}"))),
        (None, [one]) => Ok(one.clone()),
        (None, []) => {
            Err(Failure::unavailable("no LNet node is running").hint("start one with `kfab lnet node`"))
        }
        (None, _) => Err(Failure::usage(format!("say which node (--node NAME): {list}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIX: &str = "Num       RefCount Protocol Flags    Type St Inode Path
0000: 00000002 00000000 00010000 0001 01 11 @kfab-lnet.two
0000: 00000002 00000000 00010000 0001 01 12 @kfab-lnet.one
0000: 00000003 00000000 00000000 0001 03 13 @kfab-lnet.one
0000: 00000002 00000000 00010000 0001 01 15 @kfab-stats.7.1
";

    #[test]
    fn nodes_are_found_and_chosen() {
        let all = parse(UNIX);
        assert_eq!(all, ["one", "two"]);
        assert_eq!(choose(&all, Some("two")).unwrap(), "two");
        assert_eq!(choose(&all[..1], None).unwrap(), "one");
        assert!(choose(&all, None).unwrap_err().what.contains("one, two"));
        assert!(choose(&all, Some("x")).unwrap_err().what.contains("one, two"));
        assert_eq!(choose(&[], None).unwrap_err().code, crate::failure::UNAVAILABLE);
    }
}
