//! Runs the cases of a rig: each in a thread of its own, under a watchdog.

use crate::bench::Bench;
use crate::cases::{CASES, Case};
use crate::rig::Maker;
use kfab_core::spi::{Caps, PortConfig};
use kfab_core::{Error, Kind};
use libtest_mimic::{Arguments, Failed, Trial};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How one case ended.
#[derive(Clone, Debug)]
pub struct CaseResult {
    /// Its name.
    pub name: &'static str,
    /// `None`: passed. Else what went wrong, or why it was skipped.
    pub note: Option<String>,
    /// It does not apply to this rig.
    pub skipped: bool,
}

/// How a whole run ended.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// All cases, in order.
    pub cases: Vec<CaseResult>,
}

impl Report {
    /// The cases that failed.
    pub fn failed(&self) -> impl Iterator<Item = &CaseResult> {
        self.cases.iter().filter(|c| !c.skipped && c.note.is_some())
    }

    /// The number of cases that ran and passed.
    pub fn passed(&self) -> usize {
        self.cases.iter().filter(|c| c.note.is_none()).count()
    }
}

/// Runs all cases that apply, one after the other.
pub fn run(maker: Maker) -> Report {
    run_only(maker, |_| true)
}

/// Runs the cases that apply and whose name is `wanted`.
pub fn run_only(maker: Maker, wanted: impl Fn(&str) -> bool) -> Report {
    let maker = Arc::new(maker);
    let caps = match caps(&maker) {
        Ok(caps) => caps,
        Err((why, skipped)) => {
            return Report { cases: vec![CaseResult { name: "open", note: Some(why), skipped }] };
        }
    };
    let one = |case: &'static Case| match skip(&maker, &caps, case) {
        Some(why) => CaseResult { name: case.name, note: Some(why), skipped: true },
        None => CaseResult { name: case.name, note: guarded(&maker, case).err(), skipped: false },
    };
    Report { cases: CASES.iter().filter(|c| wanted(c.name)).map(one).collect() }
}

/// The `main` of a provider's `tests/conformance.rs`: every case of every rig is a test named `RIG::CASE`. Does not return.
pub fn main(rigs: Vec<(&'static str, Maker)>) -> ! {
    let args = Arguments::from_args();
    let mut trials = Vec::new();
    for (name, maker) in rigs {
        trials_of(name, Arc::new(maker), &mut trials);
    }
    libtest_mimic::run(&args, trials).exit()
}

fn trials_of(rig: &'static str, maker: Arc<Maker>, trials: &mut Vec<Trial>) {
    let caps = match caps(&maker) {
        Ok(caps) => caps,
        Err((why, ignored)) => {
            eprintln!("{rig}: {why}");
            let t = Trial::test(format!("{rig}::open"), move || Err(Failed::from(why)));
            return trials.push(t.with_ignored_flag(ignored));
        }
    };
    for case in CASES {
        let why = skip(&maker, &caps, case);
        if let Some(why) = &why {
            eprintln!("{rig}::{}: {why}", case.name);
        }
        let maker = maker.clone();
        let trial =
            Trial::test(format!("{rig}::{}", case.name), move || guarded(&maker, case).map_err(Failed::from));
        trials.push(trial.with_ignored_flag(why.is_some()));
    }
}

/// What the rig's ports can do; why none can be opened, and whether that skips the rig instead of failing it.
fn caps(maker: &Maker) -> Result<Caps, (String, bool)> {
    let rig = maker();
    let failed =
        |e: Error| (format!("no port can be opened: {e}"), e.kind() == Kind::Unavailable && !rig.demanded());
    rig.open(&PortConfig::default()).map(|p| p.caps().clone()).map_err(failed)
}

/// Why a case does not run with this rig, if it does not.
fn skip(maker: &Maker, caps: &Caps, case: &Case) -> Option<String> {
    let rig = maker();
    if let Some((_, why)) = rig.known_gaps().iter().find(|(n, _)| *n == case.name) {
        return Some(format!("a known gap: {why}"));
    }
    (case.needs)(rig.as_ref(), caps).map(str::to_owned)
}

/// Runs a case in its own thread; one that never returns is left behind and failed.
fn guarded(maker: &Arc<Maker>, case: &'static Case) -> Result<(), String> {
    let (done, ended) = mpsc::channel();
    let bench = Bench::new(maker());
    let limit = bench.rig.patience() + Duration::from_secs(20);
    let body = move || {
        let result = std::panic::catch_unwind(AssertUnwindSafe(move || (case.run)(&bench)));
        let _ = done.send(result.map_err(|e| text_of(e.as_ref())));
    };
    std::thread::Builder::new().name(case.name.to_owned()).spawn(body).map_err(|e| e.to_string())?;
    ended
        .recv_timeout(limit)
        .unwrap_or_else(|_| Err(format!("a call did not return for {} s", limit.as_secs())))
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "a panic".to_owned())
}
