//! Numbers with units, short.

/// `8 B`, `4 KiB`, `1 MiB`.
pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{} GiB", b >> 30),
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

/// Three digits or so, whatever the unit.
fn digits(v: f64) -> String {
    match v {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn scaled(v: f64, units: &[(f64, &str)]) -> String {
    let (scale, unit) = units.iter().find(|(s, _)| v >= *s).or(units.last()).copied().unwrap_or((1.0, ""));
    format!("{} {unit}", digits(v / scale))
}

/// Nanoseconds as `85.2 ns`, `6.21 us`, `1.20 ms`.
pub(crate) fn time(ns: f64) -> String {
    scaled(ns, &[(1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns")])
}

/// Bytes per second as `5.30 GB/s` (powers of ten).
pub(crate) fn bandwidth(bytes_per_s: f64) -> String {
    scaled(bytes_per_s, &[(1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")])
}

/// Messages per second as `15.1 M/s`.
pub(crate) fn rate(per_s: f64) -> String {
    scaled(per_s, &[(1e6, "M/s"), (1e3, "k/s"), (1.0, "/s")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([size(8), size(4096), size(5000), size(1 << 20)], ["8 B", "4 KiB", "5000 B", "1 MiB"]);
        assert_eq!([time(85.24), time(6212.0), time(1.2e6)], ["85.2 ns", "6.21 us", "1.20 ms"]);
        assert_eq!([bandwidth(5.3e9), rate(15.13e6), rate(12.0)], ["5.30 GB/s", "15.1 M/s", "12.0 /s"]);
    }
}
