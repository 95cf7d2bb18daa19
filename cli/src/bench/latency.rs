//! Half the round trip, by the client's clock.
//!
//! Reading the clock takes about as long as a small message over shared memory. So round trips that are shorter than
//! [`QUICK_NS`] are measured twice in turn: sixteen at a time, which gives mean, least and median, and one by one (less the price of
//! reading the clock), which gives the tail. The row says so.

use super::figures::{Histogram, Row};
use super::{Client, Load, rounds, unexpected};
use crate::control::{Reply, Request};
use crate::failure::{Failure, Result};
use crate::payload::{Outgoing, cut, is_intact, stamp_of};
use std::time::{Duration, Instant};

/// Below this round trip, nanoseconds, the clock is too slow for single ones.
const QUICK_NS: f64 = 3000.0;
/// Round trips per reading of the clock then.
pub(crate) const BATCH: u64 = 16;
/// Readings that are put into the histogram at once.
const AT_ONCE: usize = 4096;
/// Every so manieth message is compared whole.
const SAMPLE: u64 = 1024;

/// Nanoseconds between two readings of the clock with nothing in between: the least of many.
pub(crate) fn clock_price() -> f64 {
    const READINGS: u32 = 64;
    let once = || {
        let start = Instant::now();
        for _ in 1..READINGS {
            std::hint::black_box(Instant::now());
        }
        start.elapsed().as_nanos() as f64 / f64::from(READINGS)
    };
    (0..200).map(|_| once()).fold(f64::MAX, f64::min)
}

struct Pair<'a> {
    client: &'a Client,
    out: Outgoing,
    load: &'a Load,
    stamp: u64,
    damaged: u64,
}

impl Pair<'_> {
    /// One message there and one back.
    #[inline]
    fn round_trip(&mut self) -> kfab::Result<()> {
        self.stamp += 1;
        self.out.stamp(self.stamp);
        let sent = self.out.send(&self.client.peer);
        let back = self.client.endpoint.recv_with().from(&self.client.peer).post();
        let m = back.wait()?;
        sent.wait()?;
        let wrong = m.len() != self.load.size
            || stamp_of(&m) != cut(self.stamp, self.load.size)
            || (self.load.check && self.stamp.is_multiple_of(SAMPLE) && !is_intact(&m));
        self.damaged += u64::from(wrong);
        Ok(())
    }

    /// A round: the histogram gets half round trips, `batch` of them in one reading, many readings at once: what it costs to put them there
    /// is in none. Returns the time of the whole.
    fn round(&mut self, count: u64, batch: u64, price: f64, into: &mut Histogram) -> Result<Duration> {
        let load = self.load;
        self.client.prepare(Request::Echo { size: load.size, count, check: load.check })?;
        let mut record = |readings: &[Instant]| {
            for two in readings.windows(2) {
                let ns = (two[1].duration_since(two[0]).as_nanos() as f64 - price).max(1.0);
                into.record(ns / (2 * batch) as f64);
            }
        };
        let mut readings = Vec::with_capacity(AT_ONCE);
        let start = Instant::now();
        readings.push(start);
        for _ in 0..count / batch {
            for _ in 0..batch {
                self.round_trip()?;
            }
            readings.push(Instant::now());
            if readings.len() == AT_ONCE {
                record(&readings);
                readings.clear();
                readings.push(Instant::now());
            }
        }
        for _ in 0..count % batch {
            self.round_trip()?;
        }
        let took = start.elapsed();
        record(&readings);
        match self.client.reply()? {
            Reply::Counted { damaged: 0, .. } if self.damaged == 0 => Ok(took),
            Reply::Counted { damaged, .. } => {
                let all = damaged + self.damaged;
                Err(Failure::failed(format!(
                    "{all} of {count} messages of {} bytes arrived damaged",
                    load.size
                )))
            }
            other => Err(unexpected(&other)),
        }
    }
}

pub(super) fn run(client: &Client, load: &Load, tick: &mut dyn FnMut(f64)) -> Result<Row> {
    let out = Outgoing::new(&client.endpoint, load.size)?;
    let mut pair = Pair { client, out, load, stamp: 0, damaged: 0 };
    let price = clock_price();
    let (mut single, mut batched) = (Histogram::new(), Histogram::new());
    let mut quick = false;
    let mut count_all = 0;
    let mut turn = 0;
    rounds(load, tick, |count, counts| {
        if !counts {
            let took = pair.round(count, 1, price, &mut Histogram::new())?;
            quick = (took.as_nanos() as f64) < QUICK_NS * count as f64;
            return Ok(took);
        }
        count_all += count;
        turn += 1;
        // Two of three rounds in batches.
        if quick && !u32::is_multiple_of(turn, 3) && count >= BATCH {
            pair.round(count, BATCH, price, &mut batched)
        } else {
            pair.round(count, 1, price, &mut single)
        }
    })?;
    if single.is_empty() {
        // Too short for both: the batches are all there is.
        single = batched.clone();
    }
    Ok(Row::of_latency(load.size, count_all, &single, (!batched.is_empty()).then_some(&batched)))
}
