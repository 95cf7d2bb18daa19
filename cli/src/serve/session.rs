//! The server's side of a measurement: takes requests one by one and serves each to its end. One client at a time; others wait
//! in the fabric's queue. A client that dies ends its request with an error, and the server goes on. What stays between requests is
//! each client's window.

use crate::args::MAX_WINDOW_BYTES;
use crate::control::{self, REPLY, REQUEST, Reply, Request, VERSION};
use crate::failure::{Failure, Result};
use crate::payload::{Incoming, Outgoing, SMALL, is_intact, stamp_of};
use kfab::{Endpoint, Events, FabricEvent, Kind, Message, Op, Peer, Rights, Window};
use rustix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often an idle server looks whether it should stop.
const LOOK: Duration = Duration::from_millis(200);
/// Of large messages every so manieth is compared whole.
const SAMPLE: u64 = 64;
/// How long a client may leave a sleeping server waiting.
pub(crate) const WAKE_LIMIT: Duration = Duration::from_secs(30);

/// The most windows at once, one for each client; together they have at most [`MAX_WINDOW_BYTES`].
const MAX_WINDOWS: usize = 64;

/// A server on an endpoint.
pub(crate) struct Server<'a> {
    endpoint: &'a Endpoint,
    /// Of clients that are there.
    windows: Vec<(Peer, Window)>,
    events: Events,
    /// For others to read, in the middle of a request too.
    pub(crate) counts: Arc<Counts>,
}

/// Requests served, and those that failed.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) served: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// Nanoseconds on the clock that all processes of this machine share.
pub(crate) fn clock_ns(id: ClockId) -> u64 {
    let t = clock_gettime(id);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

impl<'a> Server<'a> {
    pub(crate) fn new(endpoint: &'a Endpoint) -> Server<'a> {
        Server { endpoint, windows: Vec::new(), events: endpoint.subscribe(), counts: Arc::default() }
    }

    /// Serves until `stop` says so.
    pub(crate) fn run(&mut self, stop: impl Fn() -> bool) -> Result<()> {
        while !stop() {
            let received = self.endpoint.recv_tagged(REQUEST, 0).wait_timeout(LOOK);
            self.forget_lost();
            match received {
                Ok(message) => self.answer(&message),
                Err(e) if e.kind() == Kind::TimedOut => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Closes the windows of clients that are lost, or have begun anew.
    fn forget_lost(&mut self) {
        let (events, missed) = self.events.read();
        for event in events {
            if let FabricEvent::PeerLost { peer, .. } = event {
                self.windows.retain(|(of, _)| of.id() != peer);
            }
        }
        if missed > 0 {
            self.windows.retain(|(of, _)| of.info().is_some());
        }
    }

    fn answer(&mut self, message: &Message) {
        let peer = message.from();
        let request = control::parse::<Request>(message).and_then(|r| r.check().map(|()| r));
        let reply = match request {
            Ok(r) => self.serve(&peer, r).unwrap_or_else(|e| Reply::Refused { why: e.to_string() }),
            Err(why) => Reply::Refused { why },
        };
        match &reply {
            Reply::Refused { .. } => &self.counts.failed,
            _ => &self.counts.served,
        }
        .fetch_add(1, Ordering::Relaxed);
        // A client that is gone needs no reply.
        let _ = control::send(&peer, REPLY, &reply);
    }

    fn serve(&mut self, peer: &Peer, request: Request) -> Result<Reply> {
        match request {
            Request::Hello { .. } => Ok(Reply::Hello {
                version: VERSION,
                pid: std::process::id(),
                address: self.endpoint.address().to_string(),
            }),
            Request::Echo { size, count, check } => self.echo(peer, size, count, check),
            Request::Sink { size, count, depth, check } => self.sink(peer, size, count, depth, check),
            Request::Window { size } => self.open(peer, size),
            Request::Inspect { stamp } => self.inspect(peer, stamp),
            Request::Close => {
                self.close(peer);
                Ok(Reply::Ready)
            }
            Request::Wake { count } => self.wake(peer, count),
            Request::Idle => self.idle(peer),
        }
    }

    fn ready(peer: &Peer) -> Result<()> {
        control::send(peer, REPLY, &Reply::Ready)
    }

    fn echo(&mut self, peer: &Peer, size: usize, count: u64, check: bool) -> Result<Reply> {
        let mut out = Outgoing::new(self.endpoint, size)?;
        let (mut stamps, mut damaged) = (0u64, 0);
        Self::ready(peer)?;
        let started = Instant::now();
        let mut sent: Option<Op<()>> = None;
        for i in 0..count {
            let m = self.endpoint.recv_with().from(peer).post().wait()?;
            if let Some(op) = sent.take() {
                op.wait()?;
            }
            let stamp = stamp_of(&m);
            stamps = stamps.wrapping_add(stamp);
            out.stamp(stamp);
            let op = out.send(peer);
            damaged += u64::from(m.len() != size || (check && i.is_multiple_of(SAMPLE) && !is_intact(&m)));
            sent = Some(op);
        }
        if let Some(op) = sent {
            op.wait()?;
        }
        Ok(Reply::Counted { count, elapsed_ns: started.elapsed().as_nanos() as u64, stamps, damaged })
    }

    fn sink(&mut self, peer: &Peer, size: usize, count: u64, depth: usize, check: bool) -> Result<Reply> {
        let large = size > SMALL;
        // Small messages need no place that waits for them.
        let depth = if large { depth } else { 0 };
        let mut incoming = Incoming::new(self.endpoint, size, depth)?;
        let mut posted: VecDeque<Op<Message>> = VecDeque::with_capacity(depth);
        for _ in 0..depth.min(count as usize) {
            posted.push_back(incoming.post(self.endpoint, peer));
        }
        let (mut stamps, mut damaged, mut started) = (0u64, 0, Instant::now());
        Self::ready(peer)?;
        for i in 0..count {
            let m = match posted.pop_front() {
                Some(op) => op.wait()?,
                None => incoming.post(self.endpoint, peer).wait()?,
            };
            if i == 0 {
                started = Instant::now();
            }
            stamps = stamps.wrapping_add(stamp_of(&m));
            damaged += u64::from(m.len() != size || (check && i.is_multiple_of(SAMPLE) && !is_intact(&m)));
            incoming.reuse(m)?;
            if depth > 0 && i + (depth as u64) < count {
                posted.push_back(incoming.post(self.endpoint, peer));
            }
        }
        Ok(Reply::Counted { count, elapsed_ns: started.elapsed().as_nanos() as u64, stamps, damaged })
    }

    fn open(&mut self, peer: &Peer, size: usize) -> Result<Reply> {
        self.close(peer);
        let sizes: Vec<usize> = self.windows.iter().map(|(_, w)| w.len()).collect();
        has_room(&sizes, size).map_err(Failure::failed)?;
        let window = self.endpoint.window(size, Rights::READ | Rights::WRITE)?;
        let mut bytes = vec![0; size];
        crate::payload::stamp(&mut bytes, 0);
        crate::payload::fill(&mut bytes);
        window.write_at(0, &bytes);
        let key = control::to_hex(&window.key().to_bytes());
        self.windows.push((peer.clone(), window));
        Ok(Reply::Window { key })
    }

    fn close(&mut self, peer: &Peer) {
        self.windows.retain(|(of, _)| of != peer);
    }

    fn inspect(&mut self, peer: &Peer, stamp: u64) -> Result<Reply> {
        let Some((_, window)) = self.windows.iter().find(|(of, _)| of == peer) else {
            return Ok(Reply::Refused { why: "no window is open".into() });
        };
        let mut bytes = vec![0; window.len()];
        window.read_at(0, &mut bytes);
        let want = crate::payload::cut(stamp, bytes.len());
        Ok(Reply::Inspected { stamp_is_right: stamp_of(&bytes) == want, intact: is_intact(&bytes) })
    }

    fn wake(&mut self, peer: &Peer, count: u64) -> Result<Reply> {
        Self::ready(peer)?;
        let mut ns = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let m = self.endpoint.recv_with().from(peer).post().wait_timeout(WAKE_LIMIT)?;
            let now = clock_ns(ClockId::Monotonic);
            ns.push(now.saturating_sub(stamp_of(&m)));
            peer.send(&m).wait()?;
        }
        ns.sort_unstable();
        Ok(Reply::Woken { ns })
    }

    fn idle(&mut self, peer: &Peer) -> Result<Reply> {
        Self::ready(peer)?;
        let (cpu, wall) = (clock_ns(ClockId::ProcessCPUTime), clock_ns(ClockId::Monotonic));
        self.endpoint.recv_with().from(peer).post().wait_timeout(WAKE_LIMIT)?;
        let cpu_ns = clock_ns(ClockId::ProcessCPUTime) - cpu;
        Ok(Reply::Slept { cpu_ns, wall_ns: clock_ns(ClockId::Monotonic) - wall })
    }
}

/// Whether there may be one more window beside those of these sizes.
fn has_room(others: &[usize], size: usize) -> std::result::Result<(), String> {
    let (count, bytes) = (others.len(), others.iter().sum::<usize>());
    if count < MAX_WINDOWS && bytes.saturating_add(size) <= MAX_WINDOW_BYTES {
        return Ok(());
    }
    Err(format!(
        "other clients have {count} windows of {bytes} bytes open: all may have {MAX_WINDOWS} and {MAX_WINDOW_BYTES} bytes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    const LIMIT: Duration = Duration::from_secs(20);

    fn endpoint() -> Endpoint {
        kfab::Fabric::with_config(crate::providers::providers(), Default::default()).endpoint().unwrap()
    }

    /// Runs a server beside `client`, which gets an endpoint and the server as its peer.
    fn beside(client: impl FnOnce(&Endpoint, &Peer)) {
        let far = endpoint();
        beside_of(&far, client);
    }

    fn beside_of(far: &Endpoint, client: impl FnOnce(&Endpoint, &Peer)) {
        let near = endpoint();
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            let server = s.spawn(|| Server::new(far).run(|| stop.load(Ordering::Relaxed)));
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                client(&near, &near.peer(&far.address().to_string()).unwrap());
            }));
            stop.store(true, Ordering::Relaxed);
            server.join().unwrap().unwrap();
            outcome.unwrap_or_else(|e| std::panic::resume_unwind(e));
        });
    }

    fn ask(near: &Endpoint, peer: &Peer, request: &[u8]) -> Reply {
        peer.send_tagged(REQUEST, request).wait_timeout(LIMIT).unwrap();
        control::parse(&near.recv_tagged(REPLY, 0).wait_timeout(LIMIT).unwrap()).unwrap()
    }

    fn json(r: &Request) -> Vec<u8> {
        serde_json::to_vec(r).unwrap()
    }

    #[test]
    fn garbage_and_greed_are_refused_and_the_server_goes_on() {
        beside(|near, peer| {
            let greedy = json(&Request::Window { size: usize::MAX });
            let deep = "[".repeat(100_000);
            for request in [&b""[..], b"{", b"\xff\xfe", b"{\"Echo\":{}}", &greedy, deep.as_bytes()] {
                assert!(matches!(ask(near, peer, request), Reply::Refused { .. }));
            }
            let hello = ask(near, peer, &json(&Request::Hello { version: VERSION }));
            assert!(matches!(hello, Reply::Hello { pid, .. } if pid == std::process::id()), "{hello:?}");
        });
    }

    #[test]
    fn what_arrives_damaged_or_in_another_length_is_counted() {
        beside(|near, peer| {
            let request = Request::Sink { size: 100, count: 3, depth: 1, check: true };
            assert_eq!(ask(near, peer, &json(&request)), Reply::Ready);
            let mut good = vec![0; 100];
            crate::payload::fill(&mut good);
            let mut bad = good.clone();
            bad[50] ^= 1;
            for m in [&bad[..], &good[..99], &good[..]] {
                peer.send(m).wait_timeout(LIMIT).unwrap();
            }
            let reply = control::parse(&near.recv_tagged(REPLY, 0).wait_timeout(LIMIT).unwrap()).unwrap();
            assert!(matches!(reply, Reply::Counted { count: 3, damaged: 2, .. }), "{reply:?}");
        });
    }

    fn window(near: &Endpoint, peer: &Peer) -> kfab::WindowKey {
        let Reply::Window { key } = ask(near, peer, &json(&Request::Window { size: 64 })) else { panic!() };
        kfab::WindowKey::from_bytes(&control::from_hex(&key).unwrap()).unwrap()
    }

    #[test]
    fn each_client_has_a_window_of_its_own_for_as_long_as_it_is_there() {
        let far = endpoint();
        beside_of(&far, |near, peer| {
            let other = endpoint();
            let there = other.peer(&far.address().to_string()).unwrap();
            let mine = window(near, peer);
            window(&other, &there);
            // It writes where it may, and nobody else is told that it did.
            peer.write(&mine, 40, b"x").wait_timeout(LIMIT).unwrap();
            let inspect = json(&Request::Inspect { stamp: 0 });
            let as_it_was = Reply::Inspected { stamp_is_right: true, intact: true };
            assert_eq!(ask(&other, &there, &inspect), as_it_was);
            assert_eq!(ask(&other, &there, &json(&Request::Close)), Reply::Ready);
            assert!(matches!(ask(&other, &there, &inspect), Reply::Refused { .. }));
            assert!(matches!(ask(near, peer, &inspect), Reply::Inspected { intact: false, .. }));
            window(&other, &there);
            window(&other, &there);
            assert_eq!(far.stats().lane.windows, 2);
            drop((there, other));
            let until = Instant::now() + LIMIT;
            while far.stats().lane.windows > 1 {
                assert!(Instant::now() < until, "the window of who is gone stays");
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(matches!(ask(near, peer, &inspect), Reply::Inspected { intact: false, .. }));
        });
    }

    #[test]
    fn windows_have_bounds_that_are_named() {
        assert_eq!(has_room(&[], MAX_WINDOW_BYTES), Ok(()));
        assert!(has_room(&[1], MAX_WINDOW_BYTES).unwrap_err().contains("2147483648"));
        assert_eq!(has_room(&[1; MAX_WINDOWS - 1], 1), Ok(()));
        assert!(has_room(&[1; MAX_WINDOWS], 1).unwrap_err().contains("64"));
    }

    #[test]
    fn a_window_is_inspected_as_it_is() {
        beside(|near, peer| {
            let refused = ask(near, peer, &json(&Request::Inspect { stamp: 0 }));
            assert!(matches!(refused, Reply::Refused { .. }), "{refused:?}");
            let key = window(near, peer);
            let intact = Reply::Inspected { stamp_is_right: true, intact: true };
            assert_eq!(ask(near, peer, &json(&Request::Inspect { stamp: 0 })), intact);
            peer.write(&key, 40, b"x").wait_timeout(LIMIT).unwrap();
            let damaged = Reply::Inspected { stamp_is_right: true, intact: false };
            assert_eq!(ask(near, peer, &json(&Request::Inspect { stamp: 0 })), damaged);
        });
    }
}
