//! Messages in one direction, a window of them under way, counted by the receiver and timed by its clock.

use super::figures::{Row, Throughput};
use super::{Client, Load, rounds, unexpected};
use crate::control::{Reply, Request};
use crate::failure::{Failure, Result};
use crate::payload::{Outgoing, SMALL, cut};
use kfab::Op;
use std::collections::VecDeque;
use std::time::Instant;

/// Receives that the server keeps posted: enough to have the next one ready, few enough to stay in its cache.
const DEPTH: usize = 1;

pub(super) fn run(client: &Client, load: &Load, tick: &mut dyn FnMut(f64)) -> Result<Row> {
    let mut out = Outgoing::new(&client.endpoint, load.size)?;
    let mut all = Throughput::new(load.size);
    rounds(load, tick, |count, counts| {
        let depth = load.window.min(DEPTH);
        client.prepare(Request::Sink { size: load.size, count, depth, check: load.check })?;
        let started = Instant::now();
        let stamps = send_all(client, load, &mut out, count)?;
        match client.reply()? {
            Reply::Counted { damaged: 0, stamps: theirs, count: n, .. } if theirs != stamps || n != count => {
                Err(Failure::failed(format!("{count} messages were sent, others ({n}) have arrived")))
            }
            Reply::Counted { damaged: 0, elapsed_ns, .. } => {
                let took = started.elapsed();
                match count {
                    _ if !counts => {}
                    // From the first to the last arrival is nothing; the client's clock must do.
                    1 => all.add(1, took.as_nanos() as u64),
                    _ => all.add(count - 1, elapsed_ns.max(1)),
                }
                Ok(took)
            }
            Reply::Counted { damaged, .. } => Err(Failure::failed(format!(
                "{damaged} of {count} messages of {} bytes arrived damaged",
                load.size
            ))),
            other => Err(unexpected(&other)),
        }
    })?;
    Ok(all.row())
}

/// Sends `count` messages, at most the window of them under way; the sum of their stamps.
fn send_all(client: &Client, load: &Load, out: &mut Outgoing, count: u64) -> Result<u64> {
    let mut under_way: VecDeque<Op<()>> = VecDeque::with_capacity(load.window);
    let (mut stamps, mut last) = (0u64, 0);
    let small = load.size <= SMALL;
    if !small {
        out.stamp(0);
    }
    for i in 0..count {
        if under_way.len() == load.window
            && let Some(op) = under_way.pop_front()
        {
            op.wait()?;
        }
        // Large messages share one buffer, whose stamp stays while one is under way.
        if small && out.stamp(i) {
            last = i;
        }
        stamps = stamps.wrapping_add(cut(last, load.size));
        let op = out.send(&client.peer);
        if op.has_ended() {
            op.wait()?;
        } else {
            under_way.push_back(op);
        }
    }
    for op in under_way {
        op.wait()?;
    }
    Ok(stamps)
}
