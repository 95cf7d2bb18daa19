//! What systems whose calls are futures share: a runtime of one thread, and how they are measured on it.

use crate::load::{Job, Load, median, rate};
use anyhow::bail;
use futures::{StreamExt, stream::FuturesUnordered};
use std::future::Future;
use tokio::runtime::{Builder, Runtime};

/// Calls in a round of [`rate`].
const ROUND: usize = 2000;

/// One thread, as ours has.
pub fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// The figure for calls that `one` makes.
pub fn measure<F>(runtime: &Runtime, load: &Load, one: impl Fn() -> F) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<()>>,
{
    match load.job {
        Job::Latency => median(load.length, || runtime.block_on(one())),
        Job::Rate => rate(load.length, || {
            runtime.block_on(async {
                let mut calls: FuturesUnordered<_> = (0..load.flight).map(|_| one()).collect();
                for _ in load.flight..ROUND {
                    calls.next().await.unwrap_or(Ok(()))?;
                    calls.push(one());
                }
                while let Some(ended) = calls.next().await {
                    ended?;
                }
                Ok(ROUND as u64)
            })
        }),
        Job::Read | Job::Write => bail!("only ours is measured at bulk data"),
    }
}
