//! `kfab keygen`: a new fabric key, for this user's eyes only.

use crate::failure::{Failure, Result};
use clap::Args;
use kfab::FabricKey;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(crate) struct KeygenArgs {
    /// Where to write it (must not exist; readable by you only); without one, to standard output
    file: Option<PathBuf>,
}

pub(crate) fn run(args: &KeygenArgs) -> Result<()> {
    let text = FabricKey::generate()?.to_hex();
    let Some(path) = &args.file else {
        return crate::show::print(&format!("{text}\n"));
    };
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        writeln!(file, "{text}")?;
        file.sync_all()
    };
    write().map_err(|e| {
        let f = Failure::failed(format!("{}: {e}", path.display()));
        if e.kind() == std::io::ErrorKind::AlreadyExists {
            f.hint("a key is never overwritten: remove it first")
        } else {
            f
        }
    })
}
