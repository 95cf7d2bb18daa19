//! The suite can fail: ports that break the contract in one way each are caught by the case that is meant to catch them.

use kfab_conformance::{Rig, Victim, run_only};
use kfab_core::mem::{Landing, Slice};
use kfab_core::spi::*;
use kfab_core::{Error, Kind, Result};
use kfab_sim::{Clock, Sim, World, WorldConfig};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// How a port misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    LoseEach50th,
    SwapEach50th,
    DoubleEach50th,
    CutInline,
    FillWholeLanding,
    IgnoreFlush,
    KeepOwned,
    SwallowWritable,
    SwallowDown,
    DoubleDown,
    DownInsteadOfClosed,
    NeverFull,
    ArmAlways,
    DeafFd,
    ReviveKey,
    IgnoreRights,
    KeepReadLanding,
    AcceptMalformed,
    SameNames,
}

struct Bad {
    port: Box<dyn Port>,
    fault: Fault,
    posted: u64,
    kept: Vec<Slice>,
    quiet: std::os::fd::OwnedFd,
}

impl Bad {
    fn post_one(&mut self, conn: Conn, f: &Frame<'_>) -> usize {
        self.posted += 1;
        let mut f = *f;
        if let (Fault::KeepOwned, Body::Owned(s)) = (self.fault, f.body) {
            self.kept.extend(s.iter().cloned());
        }
        let each_50th = self.posted.is_multiple_of(50);
        match self.fault {
            Fault::LoseEach50th if each_50th => return 1,
            Fault::DoubleEach50th if each_50th => drop(self.port.post(conn, &[f])),
            Fault::CutInline if f.inline.as_slice().len() == 40 => {
                f.inline = Inline::new(&f.inline.as_slice()[..39]).unwrap();
            }
            Fault::IgnoreFlush if f.more => {}
            _ => {}
        }
        self.port.post(conn, &[f])
    }

    fn twist(&self, e: Event, out: &mut Vec<Event>) {
        match (self.fault, e) {
            (Fault::SwallowWritable, Event::Writable { .. }) | (Fault::SwallowDown, Event::Down { .. }) => {}
            (Fault::DoubleDown, Event::Down { conn, reason, detail }) => {
                out.push(Event::Down { conn, reason, detail: detail.clone() });
                out.push(Event::Down { conn, reason, detail });
            }
            (Fault::DownInsteadOfClosed, Event::Down { conn, detail, .. }) => {
                out.push(Event::Down { conn, reason: DownReason::Broken, detail });
            }
            (Fault::KeepReadLanding, Event::RmaDone { token, result, .. }) => {
                out.push(Event::RmaDone { token, landing: None, result });
            }
            (Fault::SameNames, Event::Incoming { .. }) => out.push(Event::Incoming { conn: Conn(4) }),
            (_, e) => out.push(e),
        }
    }
}

impl Port for Bad {
    fn caps(&self) -> &Caps {
        self.port.caps()
    }
    fn ways(&self) -> Vec<Way> {
        self.port.ways()
    }
    fn connect(&mut self, way: &Way) -> Result<Conn> {
        let made = self.port.connect(way);
        if self.fault == Fault::AcceptMalformed {
            made.or_else(|_| self.port.connect(&Way::new("sim", "9.9")))
        } else {
            made
        }
    }
    fn close(&mut self, conn: Conn) {
        self.port.close(conn);
    }
    fn post(&mut self, conn: Conn, frames: &[Frame<'_>]) -> usize {
        if self.fault == Fault::SwapEach50th && frames.len() == 1 && self.posted % 50 == 7 {
            // This one goes after a copy of itself with another number.
            self.posted += 1;
            let mut f = frames[0];
            f.header[0] ^= 1;
            return self.port.post(conn, &[f]);
        }
        for (n, f) in frames.iter().enumerate() {
            if self.post_one(conn, f) == 0 {
                return if self.fault == Fault::NeverFull { frames.len() } else { n };
            }
        }
        frames.len()
    }
    fn flush(&mut self) {
        if self.fault != Fault::IgnoreFlush {
            self.port.flush();
        }
    }
    fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> bool {
        let mut raw = Vec::new();
        self.port.poll(now_ns, &mut raw);
        raw.into_iter().for_each(|e| self.twist(e, events));
        !events.is_empty()
    }
    fn take(&mut self, conn: Conn, landing: Option<Landing>) -> Option<Option<Landing>> {
        let mut done = self.port.take(conn, landing);
        if let (Fault::FillWholeLanding, Some(Some(l))) = (self.fault, &mut done) {
            l.copy_from(l.len().saturating_sub(1), &[0xAA]);
        }
        done
    }
    fn expose(&mut self, memory: &Slice, rights: Rights) -> Result<Exposure> {
        let rights = if self.fault == Fault::IgnoreRights { Rights::READ | Rights::WRITE } else { rights };
        self.port.expose(memory, rights)
    }
    fn revoke(&mut self, exposure: Exposure) {
        if self.fault != Fault::ReviveKey {
            self.port.revoke(exposure);
        }
    }
    fn rma(&mut self, conn: Conn, rma: Rma, token: RmaToken) -> RmaStarted {
        self.port.rma(conn, rma, token)
    }
    fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        if self.fault == Fault::DeafFd { self.quiet.as_fd() } else { self.port.fd() }
    }
    fn arm(&mut self) -> bool {
        let slept = self.port.arm();
        self.fault == Fault::ArmAlways || slept
    }
}

struct BadRig {
    sim: Sim,
    fault: Fault,
}

impl Rig for BadRig {
    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>> {
        let port = self.sim.open(config)?;
        let quiet = std::os::unix::net::UnixStream::pair().expect("a socket pair");
        // The other end stays open, so that this one never becomes readable.
        std::mem::forget(quiet.1);
        Ok(Box::new(Bad { port, fault: self.fault, posted: 0, kept: Vec::new(), quiet: quiet.0.into() }))
    }
    fn idle(&self) {
        let world = self.sim.world();
        if self.real_time() {
            std::thread::sleep(Duration::from_micros(50));
        } else if !world.step() {
            world.advance(1_000_000);
        }
    }
    fn real_time(&self) -> bool {
        self.sim.world().clock() == Clock::Real
    }
    fn malformed(&self) -> Vec<String> {
        vec!["nonsense".to_owned()]
    }
    fn nobody(&self) -> Option<Way> {
        Some(Way::new("sim", "77.0"))
    }
    fn patience(&self) -> Duration {
        // A fault may only show by the watchdog; without one the machine may be as slow as it likes.
        Duration::from_secs(if self.fault == Fault::None { 120 } else { 4 })
    }
}

/// Runs one case against a fault; `true` if it passed.
fn passes(case: &'static str, fault: Fault) -> bool {
    let config = WorldConfig::new(Delivery::Connection).with_rma();
    let real =
        matches!(fault, Fault::ArmAlways | Fault::DeafFd) || case.contains("wake") || case.contains("arm_");
    let config = if real { config.real_time() } else { config };
    let report = run_only(
        Box::new(move || Box::new(BadRig { sim: Sim::new(&World::new(5, config.clone())), fault })),
        |name| name == case,
    );
    assert_eq!(report.cases.len(), 1, "no case {case}");
    assert!(!report.cases[0].skipped, "{case} was skipped");
    report.passed() == 1
}

#[test]
fn each_fault_is_caught_by_its_case() {
    let table = [
        (Fault::LoseEach50th, "many_frames_arrive"),
        (Fault::LoseEach50th, "a_full_connection_refuses_and_loses_nothing"),
        (Fault::SwapEach50th, "many_frames_arrive"),
        (Fault::DoubleEach50th, "many_frames_arrive"),
        (Fault::CutInline, "inline_parts_of_every_length"),
        (Fault::FillWholeLanding, "a_longer_landing_keeps_its_rest"),
        (Fault::IgnoreFlush, "more_waits_for_flush"),
        (Fault::KeepOwned, "owned_memory_is_let_go"),
        (Fault::SwallowWritable, "a_full_connection_refuses_and_loses_nothing"),
        (Fault::SwallowDown, "everything_arrives_before_closed"),
        (Fault::DoubleDown, "close_twice_is_harmless"),
        (Fault::DownInsteadOfClosed, "both_sides_close"),
        (Fault::NeverFull, "a_full_connection_refuses_and_loses_nothing"),
        (Fault::ArmAlways, "arm_says_no_when_work_is_there"),
        (Fault::DeafFd, "a_sleeper_wakes_for_a_frame"),
        (Fault::DeafFd, "no_wake_up_is_lost"),
        (Fault::ReviveKey, "a_revoked_exposure_is_refused"),
        (Fault::IgnoreRights, "rights_are_kept"),
        (Fault::KeepReadLanding, "reads_and_writes_move_the_bytes"),
        (Fault::AcceptMalformed, "a_malformed_way_is_an_error_that_names_it"),
        (Fault::SameNames, "names_are_not_used_again"),
    ];
    // The cases of one table run beside each other: some only fail by their watchdog.
    std::thread::scope(|s| {
        for (fault, case) in table {
            s.spawn(move || {
                assert!(!passes(case, fault), "{case} does not notice {fault:?}");
                assert!(passes(case, Fault::None), "{case} fails without a fault");
            });
        }
    });
}

/// A rig with a peer to kill that does not start, and, without a world, with ports that cannot be had.
struct Poor {
    sim: Option<Sim>,
    demanded: bool,
}

impl Rig for Poor {
    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>> {
        let none = || Error::new(Kind::Unavailable, "open", "nothing here");
        self.sim.as_ref().ok_or_else(none)?.open(config)
    }
    fn malformed(&self) -> Vec<String> {
        Vec::new()
    }
    fn nobody(&self) -> Option<Way> {
        None
    }
    fn spawn_peer(&self) -> Option<std::io::Result<Victim>> {
        Some(Err(std::io::Error::other("it cannot open a port")))
    }
    fn demanded(&self) -> bool {
        self.demanded
    }
}

#[test]
fn a_peer_that_does_not_start_fails_the_cases_of_death() {
    let world = World::new(5, WorldConfig::new(Delivery::Connection).real_time());
    let maker = move || -> Box<dyn Rig> { Box::new(Poor { sim: Some(Sim::new(&world)), demanded: false }) };
    let report = run_only(Box::new(maker), |name| name.starts_with("a_killed_peer"));
    assert_eq!((report.cases.len(), report.failed().count()), (2, 2), "{report:?}");
}

#[test]
fn a_rig_without_ports_is_skipped_unless_it_is_demanded() {
    for demanded in [false, true] {
        let maker = move || -> Box<dyn Rig> { Box::new(Poor { sim: None, demanded }) };
        let report = run_only(Box::new(maker), |_| true);
        assert_eq!((report.passed(), report.failed().count()), (0, usize::from(demanded)), "{report:?}");
    }
}
