//! Scripts that cut and heal rails while a command runs: `--cut CUT:HEAL:RAIL[:HOW],...`.
//!
//! Times are seconds after the command's start, with a fraction if wanted; HEAL is `-` for a rail that stays
//! cut. HOW is `down` (both ends lose their carrier; the default), `drop` (every packet is lost and no end
//! is told) or `drop/N` (one packet in N is lost). [`Order`] is also what the guest's `lab link` asks for.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};

/// A rail's state, as the host and the guest tell it to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// No carrier.
    Down,
    /// Carrier.
    Up,
    /// One packet in so many is lost; 1 loses all.
    Drop(u32),
    /// No packet is lost.
    Pass,
}

impl Order {
    /// What undoes it.
    fn cure(self) -> Self {
        match self {
            Self::Down | Self::Up => Self::Up,
            Self::Drop(_) | Self::Pass => Self::Pass,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("down"),
            Self::Up => f.write_str("up"),
            Self::Drop(1) => f.write_str("drop"),
            Self::Drop(one_in) => write!(f, "drop/{one_in}"),
            Self::Pass => f.write_str("pass"),
        }
    }
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        Ok(match word {
            "down" => Self::Down,
            "up" => Self::Up,
            "drop" => Self::Drop(1),
            "pass" => Self::Pass,
            other => {
                let one_in = other.strip_prefix("drop/").and_then(|n| n.parse().ok());
                // The kernel's limit (net/sched/act_gact.c keeps it in 16 bits).
                let one_in = one_in.filter(|n| (1..=10_000).contains(n));
                Self::Drop(one_in.with_context(|| format!("{other:?}: not down, drop or drop/N"))?)
            }
        })
    }
}

/// One cut of one rail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// After the command's start.
    pub(crate) at: Duration,
    /// After the command's start; `None` when it stays cut.
    pub(crate) heal: Option<Duration>,
    /// Which rail, from 0.
    pub(crate) rail: u32,
    /// [`Order::Down`] or [`Order::Drop`].
    pub(crate) how: Order,
}

/// One step of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// After the command's start.
    pub(crate) at: Duration,
    /// Which rail.
    pub(crate) rail: u32,
    /// What becomes of it.
    pub(crate) order: Order,
}

/// Reads a script.
///
/// # Errors
/// Says which cut cannot be read and why.
pub(crate) fn parse(script: &str) -> Result<Vec<Cut>> {
    script.split(',').map(|cut| parse_one(cut).with_context(|| format!("--cut {cut:?}"))).collect()
}

fn parse_one(cut: &str) -> Result<Cut> {
    let parts: Vec<_> = cut.split(':').collect();
    let (times, rail, how) = match parts[..] {
        [at, heal, rail] => ([at, heal], rail, Order::Down),
        [at, heal, rail, how] => ([at, heal], rail, how.parse()?),
        _ => bail!("a cut is CUT:HEAL:RAIL or CUT:HEAL:RAIL:HOW"),
    };
    ensure!(matches!(how, Order::Down | Order::Drop(_)), "{how} does not cut anything");
    let at = seconds(times[0])?;
    let heal = if times[1] == "-" { None } else { Some(seconds(times[1])?) };
    ensure!(heal.is_none_or(|heal| heal > at), "heals before it is cut");
    let rail = rail.parse().with_context(|| format!("{rail:?}: not a rail's number"))?;
    Ok(Cut { at, heal, rail, how })
}

fn seconds(word: &str) -> Result<Duration> {
    let seconds: f64 = word.parse().with_context(|| format!("{word:?}: not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).with_context(|| format!("{word:?}: not a time"))
}

/// The steps of all cuts, in order of time.
pub(crate) fn steps(cuts: &[Cut]) -> Vec<Step> {
    let mut steps: Vec<_> = cuts
        .iter()
        .flat_map(|cut| {
            let begin = Step { at: cut.at, rail: cut.rail, order: cut.how };
            let end = cut.heal.map(|at| Step { at, rail: cut.rail, order: cut.how.cure() });
            std::iter::once(begin).chain(end)
        })
        .collect();
    steps.sort_by_key(|step| step.at);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_becomes_steps_in_order_of_time() {
        let cuts = parse("2:3.5:0,1.25:-:1:drop,2.5:4:2:drop/50").unwrap();
        let told: Vec<_> =
            steps(&cuts).iter().map(|s| format!("{} {} {}", s.at.as_secs_f64(), s.rail, s.order)).collect();
        assert_eq!(told, ["1.25 1 drop", "2 0 down", "2.5 2 drop/50", "3.5 0 up", "4 2 pass"]);
    }

    #[test]
    fn bad_scripts_are_refused() {
        for bad in [
            "",
            "1",
            "1:2",
            "a:2:0",
            "1:b:0",
            "1:2:x",
            "1:2:-1",
            "2:1:0",
            "1:1:0",
            "-1:2:0",
            "1:2:0:burn",
            "1:2:0:up",
            "1:2:0:pass",
            "1:2:0:drop/0",
            "1:2:0:drop/99999",
            "1:2:0:drop/",
            "1:2:0:down:9",
            "1:2:0,",
            "nan:2:0",
            "inf:-:0",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn orders_read_back_as_written() {
        for order in [Order::Down, Order::Up, Order::Drop(1), Order::Drop(7), Order::Pass] {
            assert_eq!(order.to_string().parse::<Order>().unwrap(), order);
        }
    }
}
