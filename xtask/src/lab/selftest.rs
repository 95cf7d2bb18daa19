//! stub
use std::process::ExitCode;
use anyhow::Result;
pub(crate) fn run(_o: &super::options::Options, _k: &super::kernel::Kernel) -> Result<ExitCode> { anyhow::bail!("todo") }
