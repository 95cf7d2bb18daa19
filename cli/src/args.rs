//! Arguments that several commands share, parsed to values that make sense or refused by name.

use crate::failure::{Failure, Result};
use crate::place::Pin;
use crate::show::units;
use clap::{Args, ValueEnum};
use kfab::{EndpointConfig, Fabric, FabricConfig, FabricKey, Progress, Wait};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A key for those who keep it in their environment; measuring commands hand it on to the processes they start.
const KEY_VARIABLE: &str = "KFAB_KEY";
/// A key file has 64 digits and perhaps blanks; what is longer than this, bytes, is something else.
const MAX_KEY_FILE: usize = 4096;
/// The largest message that the measuring commands send, bytes.
pub(crate) const MAX_SIZE: usize = 256 << 20;
/// The most operations under way at once.
pub(crate) const MAX_WINDOW: usize = 16_384;
/// Bytes that all operations under way together may need.
pub(crate) const MAX_WINDOW_BYTES: usize = 2 << 30;

/// How a side waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitArg {
    /// Spin: lowest latency, a whole core.
    Spin,
    /// Spin for 50 us, then sleep.
    Adaptive,
    /// Sleep at once.
    Sleep,
}

impl WaitArg {
    pub(crate) fn wait(self) -> Wait {
        match self {
            WaitArg::Spin => Wait::Spin,
            WaitArg::Adaptive => Wait::default(),
            WaitArg::Sleep => Wait::Sleep,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            WaitArg::Spin => "spin",
            WaitArg::Adaptive => "adaptive",
            WaitArg::Sleep => "sleep",
        }
    }

    /// Whoever spins needs no helper thread; a sleeper's timers do.
    pub(crate) fn progress(self) -> Progress {
        if self == WaitArg::Spin { Progress::Inline } else { Progress::Helper }
    }
}

/// The fabric to take part in.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FabricArgs {
    /// Only these providers (names as `kfab info` lists them; sockets is another name of tcp)
    #[arg(long, value_name = "P,..", value_delimiter = ',')]
    pub(crate) provider: Vec<String>,
    /// Only these devices, as PROVIDER:DEVICE, each a rail (verbs:mlx5_0, tcp:eth0); otherwise all cards are rails. Without
    /// --provider only their providers are measured
    #[arg(long, value_name = "D,..", value_delimiter = ',')]
    pub(crate) device: Vec<String>,
    /// The fabric's key (made by `kfab keygen`); without it, the variable KFAB_KEY, if it holds one
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// With a key: authenticate, but do not encrypt
    #[arg(long)]
    pub(crate) plain: bool,
}

impl FabricArgs {
    /// The schemes that were chosen, best first: those named, else those of the devices, else all that can run. A device of another
    /// provider is an error.
    pub(crate) fn schemes(&self) -> Result<Vec<&'static str>> {
        let mut chosen = crate::providers::chosen(&self.provider)?;
        let mut of_devices = Vec::new();
        for device in &self.device {
            let Some((scheme, _)) = device.split_once(':') else {
                return Err(Failure::usage(format!("--device {device}: expected PROVIDER:DEVICE")));
            };
            let all = crate::providers::providers();
            let Some(p) = all.iter().find(|p| p.scheme() == scheme) else {
                return Err(crate::providers::unknown(scheme).during(&format!("--device {device}")));
            };
            if !chosen.contains(&scheme) {
                return Err(match p.probe() {
                    Err(why) => Failure::unavailable(format!("--device {device}: {scheme}: {why}")),
                    Ok(_) => Failure::usage(format!("--device {device}: --provider leaves out {scheme}")),
                });
            }
            of_devices.push(scheme);
        }
        if self.provider.is_empty() && !self.device.is_empty() {
            chosen.retain(|scheme| of_devices.contains(scheme));
        }
        Ok(chosen)
    }

    /// An error that names a device which is not there, or cannot be used, before anything is measured.
    pub(crate) fn check_devices(&self, schemes: &[&str], wait: WaitArg) -> Result<()> {
        let has_devices =
            |s: &&&str| self.device.iter().any(|d| d.split_once(':').is_some_and(|(of, _)| of == **s));
        for scheme in schemes.iter().filter(has_devices) {
            self.fabric()?
                .open(self.config(&[scheme], wait))
                .map_err(|e| Failure::from(e).during("--device"))?;
        }
        Ok(())
    }

    pub(crate) fn key(&self) -> Result<Option<FabricKey>> {
        let Some(path) = &self.key_file else { return self.key_of_variable() };
        let shown = path.display();
        let text = read_start(path, MAX_KEY_FILE + 1)
            .map_err(|e| Failure::unavailable(format!("key file {shown}: {e}")))?;
        if text.len() > MAX_KEY_FILE {
            return Err(Failure::usage(format!(
                "key file {shown}: more than {MAX_KEY_FILE} bytes: a fabric key is 64 hexadecimal digits"
            )));
        }
        let key = FabricKey::from_hex(&String::from_utf8_lossy(&text))
            .map_err(|e| Failure::usage(format!("key file {shown}: {}", e.context())))?;
        Ok(Some(key))
    }

    fn key_of_variable(&self) -> Result<Option<FabricKey>> {
        match std::env::var_os(KEY_VARIABLE).filter(|text| !text.is_empty()) {
            Some(text) => {
                let key = FabricKey::from_hex(&text.to_string_lossy());
                key.map(Some).map_err(|e| Failure::usage(format!("{KEY_VARIABLE}: {}", e.context())))
            }
            None if self.plain => Err(Failure::usage("--plain: there is no key (--key-file or KFAB_KEY)")),
            None => Ok(None),
        }
    }

    pub(crate) fn fabric(&self) -> Result<Fabric> {
        let config = FabricConfig { key: self.key()?, plain: self.plain };
        Ok(Fabric::with_config(crate::providers::providers(), config))
    }

    /// An endpoint over these schemes.
    pub(crate) fn config(&self, schemes: &[&str], wait: WaitArg) -> EndpointConfig {
        EndpointConfig {
            devices: self.device.clone(),
            providers: schemes.iter().map(|s| (*s).to_owned()).collect(),
            wait: wait.wait(),
            progress: wait.progress(),
            ..Default::default()
        }
    }
}

/// At most so many bytes of a file.
fn read_start(path: &Path, most: usize) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path)?.take(most as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// What to measure, how often, and where.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// Message sizes: a list (8,4KiB,1M), or A..B: A and its doubles up to B (8..1000: 8, 16, .. 512)
    #[arg(long, value_name = "LIST|A..B", value_parser = sizes)]
    pub(crate) size: Option<Sizes>,
    /// Operations under way at once
    #[arg(long, value_name = "N", value_parser = window)]
    pub(crate) window: Option<usize>,
    /// Stop after so many operations per size
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) iterations: Option<u64>,
    /// Stop after so many seconds per size
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(crate) duration: Option<Duration>,
    /// Operations before the measurement (default: as many as it takes to settle)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=1_000_000_000))]
    pub(crate) warmup: Option<u64>,
    /// Do not look at the contents of what arrives
    #[arg(long)]
    pub(crate) no_check: bool,
    /// CPUs of this side and the other (A,B), `auto` or `none`
    #[arg(long, value_name = "A,B", default_value = "auto")]
    pub(crate) pin: Pin,
    /// How both sides wait
    #[arg(long, value_enum, default_value = "spin")]
    pub(crate) wait: WaitArg,
}

impl LoadArgs {
    /// Operations of this size under way at once: as many as was said, which may be too many, or `usual`, fewer of large ones.
    pub(crate) fn window_of(&self, size: usize, usual: usize) -> Result<usize> {
        let most = (MAX_WINDOW_BYTES / size).max(1);
        match self.window {
            Some(window) if window > most => {
                let (size, most) = (units::size(size), units::size(MAX_WINDOW_BYTES));
                Err(Failure::usage(format!(
                    "--window {window} of {size} is more than {most} under way at once"
                )))
            }
            window => Ok(window.unwrap_or(usual.min(most))),
        }
    }
}

/// A list of sizes, bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sizes(pub(crate) Vec<usize>);

/// `8`, `4KiB`, `4k`, `1M`, `1MiB`; 1 to [`MAX_SIZE`] bytes.
fn size(text: &str) -> std::result::Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" | "kb" => 1 << 10,
        "m" | "mib" | "mb" => 1 << 20,
        "g" | "gib" | "gb" => 1 << 30,
        u => return Err(format!("{u:?} is not a unit of size (B, KiB, MiB, GiB)")),
    };
    let n: usize = digits.parse().map_err(|_| format!("{text:?} is not a size in bytes"))?;
    match n.checked_mul(unit) {
        Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(n),
        _ => Err(format!("{text} is out of range: a message of these tests has 1 B to 256 MiB")),
    }
}

fn sizes(text: &str) -> std::result::Result<Sizes, String> {
    if let Some((a, b)) = text.split_once("..") {
        let (a, b) = (size(a)?, size(b.trim_start_matches('='))?);
        if a > b {
            return Err(format!("{text}: the first size is larger than the last"));
        }
        let list: Vec<usize> =
            std::iter::successors(Some(a), |n| n.checked_mul(2)).take_while(|n| *n <= b).collect();
        return Ok(Sizes(list));
    }
    text.split(',').map(|t| size(t.trim())).collect::<std::result::Result<_, _>>().map(Sizes)
}

fn window(text: &str) -> std::result::Result<usize, String> {
    let n: usize = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (1..=MAX_WINDOW).contains(&n) {
        return Ok(n);
    }
    Err(format!("{n} is out of range: 1 to {MAX_WINDOW} operations can be under way at once"))
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let s: f64 =
        text.trim_end_matches('s').parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    if (0.01..=86_400.0).contains(&s) {
        Ok(Duration::from_secs_f64(s))
    } else {
        Err("0.01 to 86400 seconds".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_lists_ranges_and_units() {
        assert_eq!(sizes("8,4KiB,1M").unwrap().0, [8, 4096, 1 << 20]);
        assert_eq!(sizes("8..64").unwrap().0, [8, 16, 32, 64]);
        assert_eq!(sizes("5..40").unwrap().0, [5, 10, 20, 40]);
        assert_eq!(sizes("8..1000").unwrap().0, [8, 16, 32, 64, 128, 256, 512]);
        for (bad, word) in
            [("0", "256 MiB"), ("1T", "unit"), ("x", "unit"), ("64..8", "larger"), ("300M", "256 MiB")]
        {
            let e = sizes(bad).unwrap_err();
            assert!(e.contains(word), "{bad}: {e}");
        }
    }

    #[test]
    fn a_window_that_nobody_chose_fits() {
        let of = |window| LoadArgs {
            size: None,
            window,
            iterations: None,
            duration: None,
            warmup: None,
            no_check: false,
            pin: Pin::None,
            wait: WaitArg::Spin,
        };
        let windows = [8, 128 << 20, MAX_SIZE].map(|size| of(None).window_of(size, 16).unwrap());
        assert_eq!(windows, [16, 16, 8]);
        assert_eq!(of(Some(8)).window_of(MAX_SIZE, 16).unwrap(), 8);
        assert!(of(Some(9)).window_of(MAX_SIZE, 16).unwrap_err().what.contains("--window 9 of 256 MiB"));
    }

    #[test]
    fn windows_and_durations_have_bounds() {
        assert_eq!(window("64"), Ok(64));
        assert!(window("0").unwrap_err().contains("16384"));
        assert_eq!(seconds("0.5s"), Ok(Duration::from_millis(500)));
        assert!(seconds("0").is_err());
    }
}
