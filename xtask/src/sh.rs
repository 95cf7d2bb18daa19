//! Commands: building, announcing, running and reading them.
//!
//! Every command gets no standard input, so that nothing can wait for an answer, and runs under [`watched`].

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The target folder that cargo uses.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// True when a command of this name is on the path.
pub(crate) fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).any(|folder| folder.join(name).is_file())
}

/// A command that ends, with all that it started, after so many seconds (coreutils `timeout` ends its whole process group) and when
/// the thread that started it has ended: its group is not ours, so that Ctrl-C does not reach it. The words come after this.
pub(crate) fn watched(limit_s: u64, grace_s: u64) -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "TERM",
        "timeout",
        &format!("--kill-after={grace_s}"),
        &limit_s.to_string(),
    ]);
    command
}

/// A command under a time limit.
pub(crate) struct Sh {
    words: Vec<String>,
    folder: Option<PathBuf>,
    env: Vec<(String, String)>,
    limit_s: u64,
    quiet: bool,
}

impl Sh {
    /// A command of these words, with the default limit of 30 minutes.
    pub(crate) fn new<W: AsRef<str>>(words: impl IntoIterator<Item = W>) -> Self {
        let words = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        Self { words, folder: None, env: Vec::new(), limit_s: 30 * 60, quiet: false }
    }

    /// A command written as one line, its words apart by blanks.
    pub(crate) fn line(line: &str) -> Self {
        Self::new(line.split_whitespace())
    }

    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.to_owned(), value.as_ref().to_string_lossy().into_owned()));
        self
    }

    /// Runs it in this folder.
    pub(crate) fn within(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Adds more words.
    pub(crate) fn args<W: AsRef<str>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.words.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Ends the command and all it started after this many seconds.
    pub(crate) fn limit_s(mut self, limit_s: u64) -> Self {
        self.limit_s = limit_s;
        self
    }

    /// Does not announce the command.
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// The command as a person would type it.
    pub(crate) fn shown(&self) -> String {
        let env = self.env.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        let words = self.words.iter().map(|word| quoted(word));
        env.chain(words).collect::<Vec<_>>().join(" ")
    }

    fn command(&self) -> Command {
        let mut command = watched(self.limit_s, 10);
        command.args(&self.words).envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command.stdin(Stdio::null());
        if !self.quiet {
            println!("  $ {}", self.shown());
        }
        command
    }

    /// Runs it with its output on ours.
    ///
    /// # Errors
    /// When it cannot be started, exits with anything but 0, or runs past its limit.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let status = self.command().status().with_context(|| self.shown())?;
        self.judge(status.code(), "")
    }

    /// Runs it, shows its standard output line by line and returns it as well.
    ///
    /// # Errors
    /// As [`Sh::run`]; the lines were shown by then.
    pub(crate) fn tee(&self) -> anyhow::Result<String> {
        let mut child = self.command().stdout(Stdio::piped()).spawn().with_context(|| self.shown())?;
        let mut kept = String::new();
        let stdout = child.stdout.take().context("no standard output")?;
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            kept.push_str(&line);
            kept.push('\n');
        }
        self.judge(child.wait()?.code(), "").map(|()| kept)
    }

    /// Runs it and returns its standard output; standard error goes into the error, if there is one.
    ///
    /// # Errors
    /// As [`Sh::run`].
    pub(crate) fn read(&self) -> anyhow::Result<String> {
        let output = self.command().output().with_context(|| self.shown())?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        self.judge(output.status.code(), &stderr)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// True when it runs and exits with 0. Shows nothing.
    pub(crate) fn works(mut self) -> bool {
        self.quiet = true;
        self.command().stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    }

    fn judge(&self, code: Option<i32>, stderr: &str) -> anyhow::Result<()> {
        let tail: Vec<&str> = stderr.lines().rev().take(6).collect();
        let tail: String = tail.iter().rev().map(|line| format!("\n    {line}")).collect();
        match code {
            Some(0) => Ok(()),
            Some(124 | 137) => bail!("ran past its limit of {} s: {}{tail}", self.limit_s, self.shown()),
            Some(code) => bail!("exit code {code}: {}{tail}", self.shown()),
            None => bail!("ended by a signal: {}{tail}", self.shown()),
        }
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_typed() {
        let sh = Sh::line("cargo test").args(["-p", "a b"]).env("FLAG", "x;y");
        assert_eq!(sh.shown(), "FLAG='x;y' cargo test -p 'a b'");
    }

    #[test]
    fn output_is_read_and_failure_names_the_command() {
        assert_eq!(Sh::line("echo one two").quiet().read().unwrap(), "one two\n");
        let error = Sh::new(["sh", "-c", "echo why >&2; exit 3"]).quiet().read().unwrap_err().to_string();
        assert!(error.contains("exit code 3") && error.contains("why"), "{error}");
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let error = Sh::line("sleep 60").quiet().limit_s(1).run().unwrap_err().to_string();
        assert!(error.contains("past its limit of 1 s"), "{error}");
    }

    #[test]
    fn a_command_and_what_it_started_end_with_the_thread_that_started_it() {
        let start = || {
            let sh = Sh::new(["sh", "-c", "sleep 60 & echo $!; wait"]).quiet();
            let mut child = sh.command().stdout(Stdio::piped()).spawn().unwrap();
            let mut pid = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut pid).unwrap();
            (child, pid)
        };
        let (mut child, pid) = std::thread::spawn(start).join().unwrap();
        assert!(pid.trim().parse::<u32>().is_ok(), "it has not started: {pid:?}");
        let begun = std::time::Instant::now();
        assert!(!child.wait().unwrap().success());
        let running = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while running() {
            assert!(begun.elapsed().as_secs() < 30, "what it started is left");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(begun.elapsed().as_secs() < 30, "it was not ended");
    }

    #[test]
    fn a_command_on_the_path_is_found() {
        assert!(on_path("sh"));
        assert!(!on_path("no-such-command-here"));
    }
}
