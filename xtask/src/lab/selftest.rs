//! The lab's check of itself: `cargo xtask lab --selftest` boots guests and looks at what comes of them.
//!
//! Each [`Check`] is a command line for the lab and what must be true of the run. The same list runs under
//! `cargo test -p xtask` when `KFAB_LAB=1` is set. Nothing here looks at how fast anything was.

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::accel::{self, Accel};
use super::job::Side;
use super::kernel::Kernel;
use super::options::Options;
use super::session::{self, Ending, Outcome, Sinks};

/// A run and what must be true of it.
struct Check {
    name: &'static str,
    options: &'static [&'static str],
    /// For a shell in the (first) guest.
    script: &'static str,
    verdict: fn(&Run) -> Result<()>,
}

/// What a run left behind.
struct Run {
    outcome: Outcome,
    out: String,
    err: String,
    companion: String,
    /// From the first output to the end.
    tail: Duration,
}

impl Run {
    fn ended_with(&self, status: u8) -> Result<()> {
        let ending = &self.outcome.ending;
        let remains = &self.outcome.remains;
        ensure!(
            *ending == Ending::Status(status),
            "ended with {ending:?}, not with status {status}\n{remains}"
        );
        Ok(())
    }

    fn lost(&self, why: &str) -> Result<()> {
        let ending = &self.outcome.ending;
        ensure!(
            matches!(ending, Ending::Lost(text) if text.contains(why)),
            "ended with {ending:?}, not {why:?}"
        );
        Ok(())
    }

    fn says(&self, lines: &[&str]) -> Result<()> {
        for line in lines {
            ensure!(self.out.lines().any(|out| out.trim() == *line), "no line {line:?}");
        }
        Ok(())
    }
}

const CHECKS: [Check; 16] = [
    Check {
        name: "the exit status comes back, both streams come apart",
        options: &["--cards", "0"],
        script: "echo to-out; echo to-err >&2; exit 7",
        verdict: |run| {
            ensure!(run.out == "to-out\n" && run.err == "to-err\n", "the streams are not what was written");
            run.ended_with(7)
        },
    },
    Check {
        name: "output is shown while the command runs",
        options: &["--cards", "0"],
        script: "echo first; sleep 3; echo second",
        verdict: |run| {
            ensure!(run.tail >= Duration::from_secs(2), "nothing was shown before the end");
            run.says(&["first", "second"])?;
            run.ended_with(0)
        },
    },
    Check {
        name: "a daemon that outlives the command holds up nothing, and nothing is lost",
        options: &["--cards", "0"],
        script: "while :; do echo x >&2; sleep 0.3; done & seq 40000; exit 3",
        verdict: |run| {
            ensure!(run.out.lines().count() == 40_000 && run.out.ends_with("\n40000\n"), "output is missing");
            run.ended_with(3)
        },
    },
    Check {
        name: "two cards talk across the wire",
        options: &[],
        script: "ibv_devices; ibv_rc_pingpong -e -d rxe_b0 -g 1 >/dev/null & ibv_devices; \
            lab wait-port 18515 && ibv_rc_pingpong -e -d rxe_a0 -g 1 10.8.0.2 || exit 1; wait; \
            [ $(cat /sys/class/net/a0/statistics/tx_packets) -ge 2000 ] && echo crossed",
        verdict: |run| {
            ensure!(run.out.contains("rxe_a0") && run.out.contains("rxe_b0"), "a card is not listed");
            ensure!(run.out.contains("1000 iters in"), "no ping-pong");
            run.says(&["crossed"])?;
            run.ended_with(0)
        },
    },
    Check {
        name: "files are the host's, and stay as they are",
        options: &[],
        script: "f=$PWD/lab-selftest-$$; echo x >$f && cat $f; cat /proc/sys/kernel/hostname; \
            df /dev/shm | grep -o tmpfs; ulimit -l",
        verdict: |run| {
            let here = std::env::current_dir()?;
            let mut names = fs::read_dir(here)?.filter_map(Result::ok).map(|entry| entry.file_name());
            ensure!(!names.any(|name| name.to_string_lossy().starts_with("lab-selftest-")), "a file got out");
            run.says(&["x", "lab", "tmpfs", "unlimited"])?;
            run.ended_with(0)
        },
    },
    Check {
        name: "user and memory limit are as asked for",
        options: &["--user", "nobody", "--memlock", "64"],
        script: "id -un; ulimit -l; ibv_devinfo -d rxe_a0 | grep -o PORT_ACTIVE; echo y >/dev/stdout",
        verdict: |run| {
            run.says(&["nobody", "64", "PORT_ACTIVE", "y"])?;
            run.ended_with(0)
        },
    },
    Check {
        name: "a guest that cannot come up is given up",
        options: &["--cards", "0", "--cpu", "486"],
        script: "echo never",
        verdict: |run| {
            ensure!(run.out.is_empty(), "the command ran");
            run.lost("while it started")
        },
    },
    Check {
        name: "a kernel panic ends the run",
        options: &["--cards", "0"],
        script: "echo before; sleep 1; echo c >/proc/sysrq-trigger; sleep 100",
        verdict: |run| {
            run.says(&["before"])?;
            ensure!(run.outcome.remains.contains("sysrq triggered crash"), "the console does not tell why");
            run.lost("panic")
        },
    },
    Check {
        name: "a hang ends at the limit",
        options: &["--cards", "0", "--limit", "25"],
        script: "echo before; sleep 1000",
        verdict: |run| {
            run.says(&["before"])?;
            run.lost("the command has not ended within 25 s")
        },
    },
    Check {
        name: "cards sit on the NUMA nodes asked for",
        options: &["--numa", "2", "--card-nodes", "1,0"],
        script: "numactl -H | grep available; for c in a0 b0; do \
            echo $c on $(cat $(readlink -f /sys/class/net/$c/device)/../numa_node); done; \
            numactl -N 1 -m 1 true && echo bound",
        verdict: |run| {
            run.says(&["available: 2 nodes (0-1)", "a0 on 1", "b0 on 0", "bound"])?;
            run.ended_with(0)
        },
    },
    Check {
        name: "a NUMA node can be without CPUs",
        options: &["--cards", "0", "--numa", "2", "--numa-cpuless"],
        script: "numactl -H; nproc",
        verdict: |run| {
            run.says(&["node 0 cpus: 0 1", "node 1 cpus:", "2"])?;
            ensure!(!run.out.contains("node 1 size: 0 MB"), "no memory on node 1");
            run.says(&["available: 2 nodes (0-1)"])?;
            run.ended_with(0)
        },
    },
    Check {
        name: "two guests talk, and marks reach both",
        options: &[
            "--cards",
            "1",
            "--two",
            "ibv_rc_pingpong -e -n 200 -d rxe_b0 -g 1 & lab wait-port 18515 && lab mark up; wait; hostname; exit 0",
        ],
        script: "lab await up && ibv_rc_pingpong -e -n 200 -d rxe_a0 -g 1 10.8.0.2; hostname; exit 5",
        verdict: |run| {
            ensure!(run.out.contains("200 iters in"), "no ping-pong");
            ensure!(run.companion.contains("remote address"), "the companion has not met its peer");
            run.says(&["lab-a"])?;
            run.ended_with(5)
        },
    },
    Check {
        name: "the second of two guests is killed, and the first goes on",
        options: &["--cards", "1", "--two", "echo lives; lab mark up; sleep 1000"],
        script: "lab await up || exit 1; reaches() { /run/lab/busybox ping -c 1 -W 2 10.8.0.2 >/dev/null; }; \
            reaches && echo before; lab kill && { reaches || echo nobody after; }",
        verdict: |run| {
            ensure!(run.companion.contains("lives"), "the companion has not run");
            run.says(&["before", "nobody after"])?;
            run.ended_with(0)
        },
    },
    Check {
        name: "a second guest that dies by itself ends the run",
        options: &["--cards", "1", "--two", "lab await up; echo c >/proc/sysrq-trigger; sleep 100"],
        script: "lab kill extra || echo no such word; lab mark up; sleep 1000",
        verdict: |run| {
            run.says(&["no such word"])?;
            run.lost("guest \"b\" ended before its command did")
        },
    },
    Check {
        name: "the script cuts a rail and heals it, and the other goes on",
        options: &["--cards", "4", "--cut", "2:5:0"],
        script: "is() { until grep -q $1 /sys/class/infiniband/$2/ports/1/state; do sleep 0.1; done; echo $2 $1; }; \
            is ACTIVE rxe_a0; is DOWN rxe_a0; is DOWN rxe_b0; is ACTIVE rxe_a1; \
            ip route get 10.8.1.2 | grep -o 'dev a1'; is ACTIVE rxe_b0; is ACTIVE rxe_a0; \
            rping -s -a 10.8.0.2 -C 3 & lab wait-port 7174 1; rping -c -a 10.8.0.2 -C 3 -I 10.8.0.1 && echo heals; wait",
        verdict: |run| {
            run.says(&["rxe_a0 DOWN", "rxe_b0 DOWN", "rxe_a1 ACTIVE", "dev a1", "rxe_a0 ACTIVE", "heals"])?;
            run.ended_with(0)
        },
    },
    Check {
        name: "the command can pull cables and lose packets itself",
        options: &["--wire", "switch"],
        script: "ping() { /run/lab/busybox ping -c 2 -W 1 -I a0 10.8.0.2 >/dev/null && echo $1 reaches || echo $1 is lost; }; \
            ping first; lab link 0 drop; ping drop; lab link 0 pass; ping pass; lab link 0 down; \
            cat /sys/class/net/a0/carrier /sys/class/net/b0/carrier; ping down; lab link 0 up; sleep 1; ping up; \
            lab link 9 down || echo no such rail",
        verdict: |run| {
            let expected = [
                "first reaches",
                "drop is lost",
                "pass reaches",
                "0",
                "0",
                "down is lost",
                "up reaches",
                "no such rail",
            ];
            ensure!(run.out.lines().eq(expected), "not what was expected: {expected:?}");
            run.ended_with(0)
        },
    },
];

/// Output that is kept, with the time of its first byte.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<(Vec<u8>, Option<Instant>)>>);

impl Kept {
    fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept.0).into_owned()
    }

    fn first(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0.extend_from_slice(bytes);
        kept.1.get_or_insert_with(Instant::now);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs all checks on `kernel`. With words after the options, only those whose name has one of them.
///
/// # Errors
/// When the accelerator cannot be probed. A check that fails is told of, and makes the status 1.
pub(super) fn run(options: &Options, kernel: &Kernel) -> Result<ExitCode> {
    let accel = accel::choose(options.accel, &super::cache(), kernel)?;
    let wanted =
        |name: &str| options.command.is_empty() || options.command.iter().any(|word| name.contains(word));
    println!("lab: checking {} on {accel:?}", kernel.release()?);
    let mut failed = 0;
    for check in CHECKS.iter().filter(|check| wanted(check.name)) {
        let begun = Instant::now();
        let done = passes(check, kernel, accel);
        let word = if done.is_ok() { "ok    " } else { "FAILED" };
        println!("{word} {:5.1} s  {}", begun.elapsed().as_secs_f64(), check.name);
        if let Err(error) = done {
            println!("{error:#}");
            failed += 1;
        }
    }
    if let Err(error) = nothing_left() {
        println!("FAILED {error:#}");
        failed += 1;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn passes(check: &Check, kernel: &Kernel, accel: Accel) -> Result<()> {
    let mut words = check.options.to_vec();
    words.extend(["--", "sh", "-c", check.script]);
    let plan = Options::read(words)?.plan(&std::env::current_dir()?)?;
    let (out, err, companion) = (Kept::default(), Kept::default(), Kept::default());
    let outcome = session::run(&plan, kernel, accel, &mut |side| match side {
        Side::One | Side::A => Sinks { out: Box::new(out.clone()), err: Box::new(err.clone()) },
        Side::B => Sinks { out: Box::new(companion.clone()), err: Box::new(companion.clone()) },
    })?;
    let tail = out.first().map_or(Duration::ZERO, |first| first.elapsed());
    let run = Run { outcome, out: out.text(), err: err.text(), companion: companion.text(), tail };
    (check.verdict)(&run)
        .with_context(|| format!("out: {}\nerr: {}\ncompanion: {}", run.out, run.err, run.companion))
}

/// No folder in /tmp and no child may outlive a run.
fn nothing_left() -> Result<()> {
    let ours = format!("kfab-lab-{}-", std::process::id());
    for entry in fs::read_dir("/tmp")? {
        let name = entry?.file_name();
        ensure!(!name.to_string_lossy().starts_with(&ours), "{} is left", name.display());
    }
    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    ensure!(children.trim().is_empty(), "processes are left: {children}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::options::{AccelChoice, KernelLine};
    use super::super::{cache, kernel, packages};
    use super::*;

    #[test]
    fn lab_passes_its_own_checks() {
        if std::env::var_os("KFAB_LAB").is_none_or(|value| value != "1") {
            eprintln!("set KFAB_LAB=1 to boot guests");
            return;
        }
        packages::ensure_installed().unwrap();
        let kernel = kernel::prepare(&cache(), KernelLine::V6_1, false).unwrap();
        let accel = accel::choose(AccelChoice::Auto, &cache(), &kernel).unwrap();
        for check in &CHECKS {
            passes(check, &kernel, accel).with_context(|| check.name).unwrap();
        }
        nothing_left().unwrap();
    }

    #[test]
    fn a_wrong_run_fails_its_check() {
        let run = |ending| Run {
            outcome: Outcome { ending, boot: None, total: Duration::ZERO, remains: String::new() },
            out: "to-out\n".to_owned(),
            err: "to-err\n".to_owned(),
            companion: String::new(),
            tail: Duration::ZERO,
        };
        assert!((CHECKS[0].verdict)(&run(Ending::Status(7))).is_ok());
        assert!((CHECKS[0].verdict)(&run(Ending::Status(0))).is_err());
        assert!((CHECKS[0].verdict)(&run(Ending::Lost("panic".to_owned()))).is_err());
    }
}
