//! What a guest is told: the files under `/job` in its initial file system.
//!
//! The scripts are the ones in the repository's `lab/` folder, built into this program; beside them come
//! `env` (settings for the scripts), `command` (what to run) and `shares` (folders that may be written).
//! Called by [`super::session`]; the files are read by `lab/init.sh` and `lab/setup.sh`.

use std::fmt::Write as _;
use std::path::Path;

use super::cpio::Archive;
use super::options::Plan;

const INIT: &str = include_str!("../../../lab/init.sh");
const SCRIPTS: [(&str, &str); 3] = [
    ("job/setup.sh", include_str!("../../../lab/setup.sh")),
    ("job/wire.sh", include_str!("../../../lab/wire.sh")),
    ("job/lab", include_str!("../../../lab/lab.sh")),
];

/// Which guest of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The only one: it has both ends of every rail.
    One,
    /// The one of two that runs the caller's command.
    A,
    /// The one of two that runs the companion.
    B,
}

impl Side {
    /// The name the guest's scripts know it by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The ends of rails that are in this guest, with their number.
    pub(crate) fn ends(self) -> &'static [(char, u8)] {
        match self {
            Self::One => &[('a', 1), ('b', 2)],
            Self::A => &[('a', 1)],
            Self::B => &[('b', 2)],
        }
    }
}

/// The archive that holds `/init` and `/job`.
pub(crate) fn archive(plan: &Plan, side: Side, kernel_root: &Path) -> Vec<u8> {
    let mut files = Archive::default();
    files.folder("job");
    files.file("init", 0o755, INIT.as_bytes());
    for (name, text) in SCRIPTS {
        files.file(name, 0o755, text.as_bytes());
    }
    files.file("job/env", 0o644, env(plan, side, kernel_root).as_bytes());
    files.file("job/command", 0o644, command(plan, side).as_bytes());
    let shares: String = plan.shares.iter().map(|dir| format!("{}\n", dir.display())).collect();
    files.file("job/shares", 0o644, shares.as_bytes());
    files.finish()
}

fn env(plan: &Plan, side: Side, kernel_root: &Path) -> String {
    let hostname = match side {
        Side::One => "lab",
        Side::A => "lab-a",
        Side::B => "lab-b",
    };
    let memlock = plan.memlock_kib.map_or("unlimited".to_owned(), |kib| kib.to_string());
    let settings = [
        ("LAB_KERNEL_ROOT", kernel_root.display().to_string()),
        ("LAB_SIDE", side.name().to_owned()),
        ("LAB_HOSTNAME", hostname.to_owned()),
        ("LAB_WIRE", plan.wiring.wire.name().to_owned()),
        ("LAB_CARD", if plan.wiring.iwarp { "siw" } else { "rxe" }.to_owned()),
        ("LAB_CARDS", plan.wiring.cards.to_string()),
        ("LAB_RAILS", plan.wiring.rails.to_string()),
        ("LAB_MTU", plan.wiring.mtu.to_string()),
        ("LAB_MEMLOCK", memlock),
        ("LAB_USER", plan.user.clone().unwrap_or_default()),
    ];
    settings.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name}={}", quoted(value));
        text
    })
}

fn command(plan: &Plan, side: Side) -> String {
    let mut text = String::new();
    for (name, value) in &plan.env {
        let _ = writeln!(text, "export {name}={}", quoted(value));
    }
    let _ = writeln!(text, "export LAB_SIDE={}", side.name());
    let _ = writeln!(text, "cd {} || exit 125", quoted(&plan.folder.display().to_string()));
    let line = match (side, &plan.companion) {
        (Side::B, Some(companion)) => companion,
        _ => &plan.command,
    };
    text + line + "\n"
}

/// A word as a shell takes it literally.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::super::options::Options;
    use super::*;

    fn plan(words: &[&str]) -> Plan {
        Options::read(words.iter().copied()).unwrap().plan(Path::new("/")).unwrap()
    }

    #[test]
    fn quoted_words_come_out_of_a_shell_as_they_went_in() {
        let words = ["a b", "it's", "$HOME `ls` \\ \"", "", "new\nline", "-n"];
        for word in words {
            let script = format!("printf %s {}", quoted(word));
            let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(out.stdout, word.as_bytes());
        }
    }

    #[test]
    fn each_guest_is_told_its_own_command_and_settings() {
        let plan =
            plan(&["--two", "serve | tee x", "--user", "nobody", "--memlock", "64", "--env", "A=b c", "ask"]);
        let root = Path::new("/cache/6.1");
        assert!(command(&plan, Side::A).ends_with("|| exit 125\nexec 'ask'\n"));
        assert!(command(&plan, Side::B).ends_with("|| exit 125\nserve | tee x\n"));
        assert!(command(&plan, Side::B).contains("export A='b c'\n"));
        let text = env(&plan, Side::B, root);
        for line in
            ["LAB_SIDE='b'", "LAB_USER='nobody'", "LAB_MEMLOCK='64'", "LAB_WIRE='pci'", "LAB_RAILS='2'"]
        {
            assert!(text.lines().any(|l| l == line), "{line} not in {text}");
        }
    }
}
