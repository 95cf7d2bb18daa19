//! Bare TCP on loopback: non-blocking sockets, TCP_NODELAY, both sides spin. What sockets can reach without a library.

use super::{Limit, Spin, median, on_two};
use crate::failure::{Failure, Result};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

fn pair() -> Result<(TcpStream, TcpStream)> {
    let open = || {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let a = TcpStream::connect(listener.local_addr()?)?;
        let (b, _) = listener.accept()?;
        for s in [&a, &b] {
            s.set_nodelay(true)?;
            s.set_nonblocking(true)?;
        }
        Ok((a, b))
    };
    open().map_err(|e: std::io::Error| Failure::unavailable(format!("a TCP connection on loopback: {e}")))
}

/// Reads exactly, spinning; `false` at the end of the stream.
fn read_all(s: &mut TcpStream, mut into: &mut [u8], spin: Spin) -> bool {
    while !into.is_empty() {
        match s.read(into) {
            Ok(0) => return false,
            Ok(n) => into = &mut into[n..],
            Err(e) if e.kind() == ErrorKind::WouldBlock => spin.once(),
            Err(_) => return false,
        }
    }
    true
}

fn write_all(s: &mut TcpStream, mut from: &[u8], spin: Spin) -> bool {
    while !from.is_empty() {
        match s.write(from) {
            Ok(n) => from = &from[n..],
            Err(e) if e.kind() == ErrorKind::WouldBlock => spin.once(),
            Err(_) => return false,
        }
    }
    true
}

/// The median of half round trips.
pub(super) fn ping_pong(cpus: Option<(u32, u32)>, spin: Spin, size: usize, part: Duration) -> Result<Limit> {
    let (mut a, mut b) = pair()?;
    let ping = move || {
        let mut bytes = vec![7; size];
        let (started, mut seen) = (Instant::now(), Vec::new());
        while started.elapsed() < part || seen.len() < 100 {
            let start = Instant::now();
            if !write_all(&mut a, &bytes, spin) || !read_all(&mut a, &mut bytes, spin) {
                break;
            }
            seen.push(start.elapsed().as_nanos() as f64 / 2.0);
        }
        median(seen)
    };
    let pong = move || {
        let mut bytes = vec![0; size];
        while read_all(&mut b, &mut bytes, spin) && write_all(&mut b, &bytes, spin) {}
    };
    Ok(Limit::latency("tcp_pingpong", Some(size), on_two(cpus, ping, pong).0))
}

/// Messages of `size` bytes in one direction, counted by the receiver.
pub(super) fn stream(cpus: Option<(u32, u32)>, spin: Spin, size: usize, part: Duration) -> Result<Limit> {
    let (mut a, mut b) = pair()?;
    let send = move || {
        let bytes = vec![7; size];
        let started = Instant::now();
        while started.elapsed() < part && write_all(&mut a, &bytes, spin) {}
    };
    let receive = move || {
        let mut bytes = vec![0; size];
        let (mut count, mut started) = (0u64, None);
        while read_all(&mut b, &mut bytes, spin) {
            match started {
                None => started = Some(Instant::now()),
                Some(_) => count += 1,
            }
        }
        let ns = started.map_or(1, |s: Instant| s.elapsed().as_nanos().max(1));
        (count * size as u64) as f64 * 1e9 / ns as f64
    };
    Ok(Limit::bandwidth("tcp_stream", size, on_two(cpus, receive, send).0))
}
