//! Tests that need something of the machine: what they are told, and what they tell (`kfab/tests/common/skip.rs`).
//!
//! Such a test is skipped where that is missing. `KFAB_TEST_DEMANDS` names what is here: a test that is skipped for want of it fails.
//! Every other skip is a line in the file that `KFAB_TEST_SKIPS` names, since what a test prints is not shown when it passes.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::Context;

use crate::apt;
use crate::sh::{Sh, target_dir};

/// What root may demand beside headers, and the shell commands that work where it is here. `$0` is a name for a namespace, `$1` a program
/// of the tree, which another user has to reach.
const PROBES: [(&str, &str); 4] = [
    ("users", "setpriv --reuid 65534 --regid 65534 --clear-groups test -x \"$1\""),
    ("namespaces", "unshare -n ip link set lo up && ip -n $0 link add p0 type veth peer name p1"),
    ("firewall", "ip netns exec $0 nft add table inet probe"),
    ("descriptors", "ulimit -Sn 8200 || ulimit -n 8200"),
];

/// What is here.
pub(super) struct Demands {
    names: Vec<&'static str>,
    skips: PathBuf,
}

impl Demands {
    /// Looks what this machine has.
    ///
    /// # Errors
    /// When the file for skips cannot be made.
    pub(super) fn of_this_machine() -> anyhow::Result<Self> {
        let mut names = Vec::new();
        if apt::has("libibverbs-dev") && apt::has("librdmacm-dev") {
            names.push("headers");
        }
        if TcpListener::bind("[::1]:0").is_ok() {
            names.push("ipv6");
        }
        let program = std::env::current_exe().context("this program")?.display().to_string();
        let namespace = format!("kfprobe{}", std::process::id());
        let works = |script: &str| {
            let script = format!("ip netns add $0; {script}; status=$?; ip netns del $0; exit $status");
            Sh::new(["sh", "-c", &script, &namespace, &program]).works()
        };
        if apt::is_root() {
            names.extend(PROBES.iter().filter(|(_, script)| works(script)).map(|(name, _)| *name));
        }
        Self::new(names, target_dir().join("tests-skipped"))
    }

    fn new(names: Vec<&'static str>, skips: PathBuf) -> anyhow::Result<Self> {
        fs::write(&skips, "").with_context(|| skips.display().to_string())?;
        Ok(Self { names, skips })
    }

    /// The command, told.
    pub(super) fn put_to(&self, cargo: Sh) -> Sh {
        cargo.env("KFAB_TEST_DEMANDS", self.names.join(",")).env("KFAB_TEST_SKIPS", &self.skips)
    }

    /// What tests have told since, each line once.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn skipped(&self) -> anyhow::Result<Vec<String>> {
        let said = fs::read_to_string(&self.skips).with_context(|| self.skips.display().to_string())?;
        let lines: BTreeSet<&str> = said.lines().collect();
        Ok(lines.into_iter().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_told_and_tell() {
        let file = std::env::temp_dir().join(format!("kfab-xtask-skips-{}", std::process::id()));
        let demands = Demands::new(vec!["headers", "namespaces"], file.clone()).unwrap();
        assert!(demands.skipped().unwrap().is_empty());
        let tell = "echo b: $KFAB_TEST_DEMANDS >>$KFAB_TEST_SKIPS; echo a >>$KFAB_TEST_SKIPS; \
            echo a >>$KFAB_TEST_SKIPS";
        demands.put_to(Sh::new(["sh", "-c", tell]).quiet()).run().unwrap();
        assert_eq!(demands.skipped().unwrap(), ["a", "b: headers,namespaces"]);
        fs::remove_file(file).unwrap();
    }
}
