//! The files that git knows or would take, as the rules see them.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use crate::sh::{Sh, root};
use crate::test::find;

/// A file of the repository.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// Its path from the root, with `/` between the parts.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// What it says; empty for a file that is no text.
    pub(crate) text: String,
}

impl File {
    /// True when its name ends so.
    pub(crate) fn is(&self, ending: &str) -> bool {
        self.path.ends_with(ending)
    }
}

/// Everything that rules look at.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) files: Vec<File>,
    /// What `cargo metadata --no-deps` says, with paths from the root.
    pub(crate) metadata: Value,
}

impl Tree {
    /// Reads the repository that this program was built from.
    ///
    /// # Errors
    /// When git, cargo or a file cannot be read.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let files = paths()?.into_iter().filter_map(|path| read_file(&path).transpose());
        Ok(Self { files: files.collect::<anyhow::Result<_>>()?, metadata: find::metadata(false)? })
    }

    /// The Rust files.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.is(".rs"))
    }

    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let file = |&(path, text): &(&str, &str)| File {
            path: path.to_owned(),
            bytes: text.len() as u64,
            text: text.to_owned(),
        };
        Self { files: files.iter().map(file).collect(), metadata: Value::Null }
    }
}

fn paths() -> anyhow::Result<Vec<String>> {
    let git = Sh::line("git ls-files -z --cached --others --exclude-standard").quiet();
    let out = git.read().context("tidy looks at the files that git knows")?;
    Ok(out.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

/// The file at `path`, or nothing when it is no plain file (any more).
fn read_file(path: &str) -> anyhow::Result<Option<File>> {
    let full = root().join(path);
    let Ok(found) = std::fs::symlink_metadata(&full) else { return Ok(None) };
    if !found.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(&full).with_context(|| path.to_owned())?;
    let text = if bytes.contains(&0) { String::new() } else { String::from_utf8(bytes).unwrap_or_default() };
    Ok(Some(File { path: path.to_owned(), bytes: found.len(), text }))
}

/// The Rust files of the repository, from the root.
///
/// # Errors
/// When git cannot be asked.
pub(crate) fn rust_files() -> anyhow::Result<Vec<PathBuf>> {
    let rust = |path: &String| path.ends_with(".rs") && root().join(path).is_file();
    Ok(paths()?.iter().filter(|path| rust(path)).map(|path| Path::new(path).to_path_buf()).collect())
}
