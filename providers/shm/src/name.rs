//! Names: the abstract socket of a port, and the way's text `NAME@BOOT` that carries it.
//!
//! `BOOT` tells hosts (and network namespaces, which is where abstract names live) apart, so that a way met on another host
//! is refused without trying.

use kfab_core::{Error, Kind, Result, auth};
use std::os::unix::fs::MetadataExt;

/// The longest name, bytes. (An abstract name may have 107; the rest is room for a prefix.)
pub(crate) const MAX_NAME: usize = 80;

/// Eight hexadecimal digits of this boot of this network namespace.
pub(crate) fn boot() -> Result<String> {
    let os = |what: &'static str| move |e| Error::os("open", what, e);
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(os("read the boot id"))?;
    let ns = std::fs::metadata("/proc/self/ns/net").map_err(os("look at the network namespace"))?.ino();
    Ok(format!("{:08x}", fnv(id.trim().bytes().chain(ns.to_le_bytes()))))
}

/// FNV-1a, 32 bits: only to tell boots apart, no secret.
fn fnv(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

/// A name nobody has.
pub(crate) fn random() -> Result<String> {
    Ok(format!("kfab.{:016x}", auth::random_u64()?))
}

fn bad(op: &'static str, text: &str, why: &str) -> Error {
    Error::new(Kind::InvalidArgument, op, format!("{text:?}: {why}"))
}

fn check(op: &'static str, text: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(bad(op, text, "a name has 1 to 80 characters"));
    }
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match name.bytes().position(|b| !ok(b)) {
        Some(i) => {
            let why = format!("character {} is none of a-z A-Z 0-9 . _ -", i + 1);
            Err(bad(op, text, &why))
        }
        None => Ok(()),
    }
}

/// The name in `PortConfig::listen`: `NAME`, or a whole `NAME@BOOT` of this host.
pub(crate) fn of_listen(text: &str, here: &str) -> Result<String> {
    let (name, boot) = text.split_once('@').map_or((text, here), |(n, b)| (n, b));
    check("open", text, name)?;
    if boot != here {
        return Err(bad("open", text, &format!("this host is {here}")));
    }
    Ok(name.to_owned())
}

/// The name in a way's text. `Kind::Unreachable` if it is another host's.
pub(crate) fn of_way(text: &str, here: &str) -> Result<String> {
    let (name, boot) = text
        .split_once('@')
        .ok_or_else(|| bad("connect", text, "expected NAME@BOOT, as an open port prints it"))?;
    check("connect", text, name)?;
    if boot.len() != 8 || !boot.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad("connect", text, "after @ come 8 hexadecimal digits"));
    }
    if boot != here {
        let why = format!("{text:?} is memory of another host, boot or network namespace (this is {here})");
        return Err(Error::new(Kind::Unreachable, "connect", why));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_of_this_host_only() {
        let here = boot().unwrap();
        assert_eq!(here, boot().unwrap());
        assert_eq!(of_way(&format!("a.b-c_1@{here}"), &here).unwrap(), "a.b-c_1");
        let kind = |t: &str| of_way(t, "3b0c55d2").unwrap_err().kind();
        assert_eq!(kind("kfab.1@3b0c55d3"), Kind::Unreachable);
        for t in [
            "kfab.1",
            "@3b0c55d2",
            "a/b@3b0c55d2",
            "a@3b0c55d",
            "a@3b0c55dx",
            &format!("{}@3b0c55d2", "x".repeat(81)),
        ] {
            assert_eq!(kind(t), Kind::InvalidArgument, "{t}");
        }
        assert_eq!(of_listen("srv", "3b0c55d2").unwrap(), "srv");
        assert!(of_listen("srv@00000000", "3b0c55d2").is_err() && of_listen("", "3b0c55d2").is_err());
        assert_ne!(random().unwrap(), random().unwrap());
    }
}
