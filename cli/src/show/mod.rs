//! How figures are shown: tables for people, JSON and CSV for programs, SVG for reports, a progress bar for the patient.

pub(crate) mod bar;
pub(crate) mod csv;
pub(crate) mod svg;
pub(crate) mod table;
pub(crate) mod units;

use crate::failure::{Failure, Result};
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::failed(format!("standard output: {e}"))),
        _ => Ok(()),
    }
}

/// Writes one JSON document, on one line.
pub(crate) fn print_json(document: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(document).map_err(|e| Failure::failed(e.to_string()))?;
    print(&format!("{text}\n"))
}
