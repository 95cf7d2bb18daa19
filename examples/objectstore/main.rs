//! An object store over kfab's RPC: what a storage engineer copies from. Without arguments it shows itself: two servers on two
//! NIDs over one directory, a load, one server killed in the middle of it, and a check that nothing acknowledged is lost.
//!
//! ```text
//! objectstore                                            the demonstration
//! objectstore serve DIR tcp:10.0.0.1:7000                prints its address for the book, serves until standard input ends
//! objectstore --book BOOK put NAME FILE | get NAME [OFFSET LEN] | list [PREFIX] | delete NAME | stat NAME | ping
//! objectstore --book BOOK load [THREADS] [BYTES] [SECONDS]
//! objectstore --over verbs,tcp ...                       only over these providers
//! ```
//!
//! The book has a line `NID ADDRESS` for each server; the first line's is preferred. Both servers must see the same directory, as
//! the servers of a fail-over pair do.

#![allow(unreachable_pub, reason = "its modules are there to be copied")]

mod client;
mod load;
mod protocol;
mod server;
mod store;

use client::Objects;
use kfab::{Fabric, Provider};
use lnet_shim::rpc::Book;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A fabric of these providers; of all, if none is named.
fn fabric(over: &str) -> Fabric {
    let all: [Arc<dyn Provider>; 3] =
        [Arc::new(kfab_shm::Shm), Arc::new(kfab_verbs::Verbs), Arc::new(kfab_sockets::Sockets)];
    let chosen = |p: &Arc<dyn Provider>| over.is_empty() || over.split(',').any(|name| name == p.scheme());
    Fabric::new(all.into_iter().filter(chosen).collect::<Vec<_>>())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (over, words) = match words[..] {
        ["--over", over, ref rest @ ..] => (over, rest),
        ref rest => ("", rest),
    };
    match *words {
        [] => demonstrate(over),
        ["serve", dir, ref listen @ ..] => serve(over, dir.into(), listen),
        ["--book", book, ref command @ ..] => {
            let text = std::fs::read_to_string(book)?;
            let nids: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().next()).collect();
            let objects = Objects::open(&fabric(over), &Book::parse(&text)?, &nids, "objectstore")?;
            run(&objects, command)
        }
        _ => {
            Err("usage: objectstore [--over PROVIDERS] [serve DIR [LISTEN...] | --book BOOK COMMAND...]"
                .into())
        }
    }
}

fn serve(over: &str, dir: PathBuf, listen: &[&str]) -> Result<()> {
    let listen = listen.iter().map(|l| (*l).to_owned()).collect();
    let server = server::start(&fabric(over), dir, listen)?;
    println!("{}", server.addresses()[0]);
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    server.stats().iter().for_each(|s| eprintln!("{}", s.summary()));
    Ok(())
}

fn run(objects: &Objects, command: &[&str]) -> Result<()> {
    match *command {
        ["put", name, file] => objects.put(name, &std::fs::read(file)?, true)?,
        ["get", name] => print(&objects.get_whole(name)?)?,
        ["get", name, offset, len] => print(&objects.get(name, offset.parse()?, len.parse()?)?)?,
        ["list"] => list(objects, "")?,
        ["list", prefix] => list(objects, prefix)?,
        ["delete", name] => {
            print(if objects.delete(name)? { b"deleted\n" } else { b"was not there\n" })?;
        }
        ["stat", name] => print(format!("{} bytes\n", objects.stat(name)?).as_bytes())?,
        ["ping"] => objects.ping()?,
        ["load", ref numbers @ ..] => {
            let number = |at: usize, default| numbers.get(at).map_or(Ok(default), |w| w.parse::<u64>());
            let (threads, len, seconds) = (number(0, 4)?, number(1, 64 << 10)?, number(2, 5)?);
            let report = load::run(objects, threads as u32, len as usize, Duration::from_secs(seconds))?;
            print(format!("{}\n", report.summary(len as usize)).as_bytes())?;
        }
        _ => return Err("commands: put, get, list, delete, stat, ping, load".into()),
    }
    Ok(())
}

fn list(objects: &Objects, prefix: &str) -> Result<()> {
    let names: String = objects.list(prefix)?.iter().map(|name| format!("{name}\n")).collect();
    print(names.as_bytes())
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
fn print(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// A server in a process of its own.
struct Process(Child);

impl Process {
    fn start(over: &str, dir: &Path) -> Result<(Process, String)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--over", over, "serve"]).arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let out = child.stdout.take().ok_or("no output")?;
        let process = Process(child);
        let mut address = String::new();
        BufReader::new(out).read_line(&mut address)?;
        Ok((process, address.trim().to_owned()))
    }

    /// With SIGKILL.
    fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

const OBJECT: usize = 64 << 10;

fn demonstrate(over: &str) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("objectstore-{}", std::process::id()));
    let shown = show(over, &dir);
    let _ = std::fs::remove_dir_all(&dir);
    shown
}

fn show(over: &str, dir: &Path) -> Result<()> {
    let ((mut first, a), (_second, b)) = (Process::start(over, dir)?, Process::start(over, dir)?);
    let book = Book::parse(&format!("57@kfi {a}\n58@kfi {b}\n"))?;
    print!("{book}");
    let objects = Objects::open(&fabric(over), &book, &["57@kfi", "58@kfi"], "demo.1")?;

    objects.put("hello", b"hello, object store", true)?;
    println!(
        "stat: {} bytes; range: {:?}",
        objects.stat("hello")?,
        String::from_utf8(objects.get("hello", 7, 6)?)?
    );
    println!("list: {:?}; deleted: {}", objects.list("")?, objects.delete("hello")?);
    let missing = objects.get("hello", 0, 1).err().ok_or("a deleted object was read")?;
    println!("get: {missing}");

    let loader = objects.clone();
    let length = Duration::from_millis(1500);
    let load = std::thread::spawn(move || load::run(&loader, 4, OBJECT, length));
    std::thread::sleep(length / 2);
    first.kill()?;
    println!("57@kfi killed under load");
    let report = load.join().map_err(|_| "the load panicked")??;
    println!("{}", report.summary(OBJECT));

    let mut checked = 0;
    for (thread, count) in report.acknowledged.iter().enumerate() {
        for n in 0..*count {
            let data = objects.get(&load::name(thread as u32, n), 0, OBJECT)?;
            assert!(
                data == load::content(thread as u32, n, OBJECT),
                "object {n} of thread {thread} is damaged"
            );
            checked += 1;
        }
    }
    let counts = objects.counts();
    println!("58@kfi has all {checked} objects that were acknowledged; servers lost: {}", counts.links_lost);
    Ok(())
}
