//! A run from start to end: one guest or two, the rails' cuts, the limit.
//!
//! One thread does it all: it waits for the guests' lines, the next step of the script and the limit,
//! whichever comes first. The lines are in `lab/setup.sh`. Called by [`super::run`] and the self-test.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::accel::Accel;
use super::cut::{self, Order, Step};
use super::job::Side;
use super::kernel::Kernel;
use super::machine::{Event, Machine};
pub(crate) use super::machine::{Remains, Sinks};
use super::options::{Plan, Wire};
use super::qemu;
use super::scratch::Scratch;

/// How long a companion may go on after the command.
const COMPANION_GRACE: Duration = Duration::from_secs(5);
/// Longest wait for the first guest's wire sockets.
const WIRE_LIMIT: Duration = Duration::from_secs(120);
/// Longest time in which guests come up: seconds as a rule, under translation beside other work some more.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How often guests are started before the run is given up. A kernel that is translated on a host which lets it
/// stand still at the wrong moment may stop for good, or panic, before the command's turn has come.
const BOOTS: u32 = 3;
/// How long QEMU may take to tell where a stuck guest's processors stand.
const REGISTERS_LIMIT: Duration = Duration::from_secs(2);

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The command ended.
    Status(u8),
    /// There is no status, because of this.
    Lost(String),
    /// The command did not even start, because of this: another try may fare better.
    Unborn(String),
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How it ended.
    pub(crate) ending: Ending,
    /// From the start until the command ran; `None` when it never did.
    pub(crate) boot: Option<Duration>,
    /// From the start until all guests were gone.
    pub(crate) total: Duration,
    /// What the guests left to explain an ending without status.
    pub(crate) remains: String,
}

/// Runs `plan` to its end; guests that do not come up are started again, within the plan's limit.
///
/// # Errors
/// When a guest cannot be started. All that happens later is an [`Ending`], never an [`Ending::Unborn`].
pub(crate) fn run(
    plan: &Plan,
    kernel: &Kernel,
    accel: Accel,
    sinks: &mut dyn FnMut(Side) -> Sinks,
) -> Result<Outcome> {
    let begun = Instant::now();
    for boot in 1.. {
        let outcome = run_once(plan, kernel, accel, sinks, begun)?;
        let Ending::Unborn(why) = outcome.ending else { return Ok(outcome) };
        if boot == BOOTS || begun.elapsed() >= plan.limit {
            return Ok(Outcome { ending: Ending::Lost(why), ..outcome });
        }
        eprint!("lab: {why}; it is started again\n{}", outcome.remains);
    }
    unreachable!("the last boot returns")
}

/// Starts the guests and follows them to their end.
fn run_once(
    plan: &Plan,
    kernel: &Kernel,
    accel: Accel,
    sinks: &mut dyn FnMut(Side) -> Sinks,
    begun: Instant,
) -> Result<Outcome> {
    let (born_by, deadline) = (Instant::now() + BOOT_LIMIT, begun + plan.limit);
    let scratch = Scratch::new()?;
    let (sender, events) = sync_channel(256);
    let mut machines = Vec::new();
    let sides: &[Side] = if plan.companion.is_some() { &[Side::A, Side::B] } else { &[Side::One] };
    for &side in sides {
        machines.push(Machine::start(
            plan,
            side,
            accel,
            kernel,
            scratch.path(),
            (sinks(side), sender.clone()),
            deadline,
        )?);
        if side == Side::A {
            let deadline = deadline.min(Instant::now() + WIRE_LIMIT);
            await_wires(&scratch, plan.wiring.rails, deadline, || machines[0].lives())
                .with_context(|| format!("QEMU says: {}", machines[0].complaints().trim()))?;
        }
    }
    drop(sender);
    let guests = machines.len();
    let mut session = Session {
        plan,
        machines,
        up: vec![false; guests],
        statuses: vec![None; guests],
        begun,
        born_by,
        started: None,
        steps: cut::steps(&plan.cuts).into(),
        grace: None,
    };
    let ending = session.drive(&events);
    let boot = session.started.map(|at| at - begun);
    // A thread of a guest may be about to send: it must not wait for us while we wait for it.
    drop(events);
    let mut remains = String::new();
    for machine in session.machines {
        let side = machine.side;
        tell_remains(&mut remains, side, &machine.stop());
    }
    Ok(Outcome { ending, boot, total: begun.elapsed(), remains })
}

/// Waits until the first guest's QEMU listens on the rails' sockets: the second one tries only once.
fn await_wires(
    scratch: &Scratch,
    rails: u32,
    deadline: Instant,
    mut lives: impl FnMut() -> bool,
) -> Result<()> {
    while !(0..rails).all(|rail| qemu::wire_socket(scratch.path(), rail).exists()) {
        ensure!(lives(), "QEMU ended before the first guest offered its wires");
        ensure!(Instant::now() < deadline, "the first guest offers no wire");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn tell_remains(text: &mut String, side: Side, remains: &Remains) {
    let registers =
        remains.monitor.lines().filter(|line| line.contains("RIP=")).collect::<Vec<_>>().join("\n");
    for (what, said) in [("console", &remains.console), ("stands at", &registers), ("QEMU", &remains.qemu)] {
        let lines: Vec<_> = said.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        for line in telling(&lines) {
            let _ = writeln!(text, "  {} {what}: {line}", side.name());
        }
    }
}

/// The lines that tell most: from the first that speaks of trouble, or else the last.
fn telling<'a, 'b>(lines: &'a [&'b str]) -> &'a [&'b str] {
    const TROUBLE: [&str; 5] =
        ["lab: guest start", "Kernel panic", "BUG:", "Oops:", "general protection fault"];
    const LINES: usize = 40;
    let trouble = lines.iter().position(|line| TROUBLE.iter().any(|word| line.contains(word)));
    let from = trouble.unwrap_or(lines.len().saturating_sub(LINES));
    &lines[from..lines.len().min(from + LINES)]
}

struct Session<'a> {
    plan: &'a Plan,
    machines: Vec<Machine>,
    up: Vec<bool>,
    statuses: Vec<Option<u8>>,
    begun: Instant,
    /// Until when the guests must have come up.
    born_by: Instant,
    /// When the commands were let go.
    started: Option<Instant>,
    steps: VecDeque<Step>,
    /// Until when a companion is waited for.
    grace: Option<Instant>,
}

impl Session<'_> {
    fn drive(&mut self, events: &Receiver<(Side, Event)>) -> Ending {
        let deadline = self.begun + self.plan.limit;
        loop {
            let now = Instant::now();
            self.take_due_steps(now);
            if let Some(status) = self.status(now) {
                return Ending::Status(status);
            }
            let boot = self.started.is_none().then_some(self.born_by);
            if now >= deadline || boot.is_some_and(|born_by| now >= born_by) {
                return self.over_limit(now >= deadline);
            }
            let wake =
                [self.next_step(), self.grace, boot].into_iter().flatten().fold(deadline, Instant::min);
            let ending = match events.recv_timeout(wake.saturating_duration_since(now)) {
                Ok((side, Event::Line(line))) => self.heed(side, &line),
                Ok((side, Event::Gone)) => self.gone(side),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Ending::Lost("all guests are gone".to_owned())),
            };
            if let Some(ending) = ending {
                return ending;
            }
        }
    }

    fn next_step(&self) -> Option<Instant> {
        Some(self.started? + self.steps.front()?.at)
    }

    fn take_due_steps(&mut self, now: Instant) {
        while self.next_step().is_some_and(|at| at <= now) {
            if let Some(step) = self.steps.pop_front() {
                self.set_rail(step.rail, step.order);
            }
        }
    }

    /// The run's status, when there is nothing more to wait for.
    fn status(&self, now: Instant) -> Option<u8> {
        let first = self.statuses[0]?;
        let others = &self.statuses[1..];
        let waiting = others.iter().any(Option::is_none) && self.grace.is_some_and(|grace| now < grace);
        if waiting {
            return None;
        }
        let companion = others.iter().flatten().copied().find(|status| *status != 0);
        Some(if first == 0 { companion.unwrap_or(0) } else { first })
    }

    fn over_limit(&mut self, all: bool) -> Ending {
        if self.started.is_none() {
            for machine in &mut self.machines {
                machine.tell_registers(REGISTERS_LIMIT);
            }
        }
        let limit = self.plan.limit.as_secs_f64();
        match (self.started, all) {
            (Some(_), _) => Ending::Lost(format!("the command has not ended within {limit} s (--limit)")),
            (None, true) => Ending::Unborn(format!("the guest has not come up within {limit} s (--limit)")),
            (None, false) => {
                Ending::Unborn(format!("the guest has not come up within {} s", BOOT_LIMIT.as_secs_f64()))
            }
        }
    }

    fn gone(&self, side: Side) -> Option<Ending> {
        let known = self.statuses[self.index(side)].is_some();
        let (ending, when): (fn(String) -> Ending, _) = match self.started {
            Some(_) => (Ending::Lost, "before its command did"),
            None => (Ending::Unborn, "while it started"),
        };
        (!known)
            .then(|| ending(format!("guest {:?} ended {when}: a kernel panic, or QEMU failed", side.name())))
    }

    fn index(&self, side: Side) -> usize {
        self.machines.iter().position(|machine| machine.side == side).unwrap_or(0)
    }

    /// Does what a guest's line asks for; what cannot be read is shown and left.
    fn heed(&mut self, side: Side, line: &str) -> Option<Ending> {
        let mut words = line.splitn(3, ' ');
        match (words.next().unwrap_or_default(), words.next(), words.next()) {
            ("up", None, None) => {
                let index = self.index(side);
                self.up[index] = true;
                if self.up.iter().all(|up| *up) {
                    self.started = Some(Instant::now());
                    self.tell_all("go");
                }
            }
            ("exit", Some(status), written) => self.command_ended(side, status, written),
            ("mark", Some(name), None) if is_mark(name) => self.tell_all(&format!("mark {name}")),
            ("kill", None, None) if self.machines.len() > 1 => self.kill_companion(),
            ("link", Some(rail), Some(order)) => match (rail.parse::<u32>(), order.parse()) {
                (Ok(rail), Ok(order)) if rail < self.plan.wiring.rails => self.set_rail(rail, order),
                (Ok(rail), _) => self.tell_all(&format!("link {rail} refused")),
                _ => eprintln!("lab: cannot do {line:?}"),
            },
            ("fail", ..) => {
                return Some(Ending::Lost(line.trim_start_matches("fail ").to_owned()));
            }
            _ => eprintln!("lab: guest {:?} says {line:?}", side.name()),
        }
        None
    }

    fn command_ended(&mut self, side: Side, status: &str, written: Option<&str>) {
        let index = self.index(side);
        // Without numbers something else still holds the streams: what it writes is not waited for.
        let bytes = written.and_then(|counts| counts.split_once(' '));
        let bytes = bytes.map(|(out, err)| [out, err].map(|count| count.parse().unwrap_or(0)));
        self.machines[index].await_output(bytes);
        self.statuses[index] = Some(status.parse().unwrap_or(125));
        if index == 0 {
            self.grace = Some(Instant::now() + COMPANION_GRACE);
        }
    }

    /// Ends the second guest because it was asked for: that it gave no status is then no failure.
    fn kill_companion(&mut self) {
        self.machines[1].kill();
        self.statuses[1].get_or_insert(0);
        self.tell_all("mark killed");
    }

    fn tell_all(&mut self, line: &str) {
        for machine in &mut self.machines {
            machine.tell(line);
        }
    }

    /// Cuts or heals a rail. PCI cards' cables are QEMU's to pull; the guests do the rest.
    fn set_rail(&mut self, rail: u32, order: Order) {
        let at = self.started.map_or(0.0, |at| at.elapsed().as_secs_f64());
        eprintln!("lab: {at:.3} s: rail {rail} {order}");
        if self.plan.wiring.wire == Wire::Pci && matches!(order, Order::Down | Order::Up) {
            for machine in &mut self.machines {
                for (end, _) in machine.side.ends() {
                    machine.set_link(&qemu::netdev(rail, *end), order == Order::Up);
                }
            }
        }
        self.tell_all(&format!("link {rail} {order}"));
    }
}

/// Whether a mark's name can be a file's.
fn is_mark(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_shown_begin_with_the_trouble() {
        let lines = ["fine", "BUG: bad", "trace", "Kernel panic - not syncing"];
        assert_eq!(telling(&lines), &lines[1..]);
        let many = vec!["fine"; 100];
        assert_eq!(telling(&many).len(), 40);
        assert_eq!(telling(&lines[..1]), ["fine"]);
        assert!(telling(&[]).is_empty());
    }

    #[test]
    fn wires_are_not_waited_for_without_a_guest_nor_beyond_the_limit() {
        let scratch = Scratch::new().unwrap();
        let hour = Instant::now() + Duration::from_secs(3600);
        let dead = await_wires(&scratch, 1, hour, || false).unwrap_err().to_string();
        let late = await_wires(&scratch, 1, Instant::now(), || true).unwrap_err().to_string();
        assert!(dead.contains("QEMU ended") && late.contains("no wire"), "{dead}, {late}");
        std::fs::write(qemu::wire_socket(scratch.path(), 0), "").unwrap();
        await_wires(&scratch, 1, hour, || true).unwrap();
    }

    #[test]
    fn marks_cannot_name_other_folders() {
        assert!(is_mark("up") && is_mark("server-2_b.ok"));
        assert!(!is_mark("../up") && !is_mark("a/b") && !is_mark(".go") && !is_mark("a b"));
    }
}
