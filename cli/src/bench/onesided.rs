//! Reads and writes on a window of the server, which takes no part where the provider allows it. Timed by the client: first one at a
//! time for the latency of a whole operation, then a window of them for the rate.

use super::figures::{Histogram, Row, Throughput};
use super::latency::{BATCH, clock_price};
use super::{Client, Length, Load, Test, rounds, unexpected};
use crate::control::{self, Reply, Request};
use crate::failure::{Failure, INTERRUPTED, Result};
use crate::payload::{Outgoing, is_intact, stamp_of};
use crate::stop;
use kfab::{Buffer, Op, WindowKey};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Below this time of one operation, nanoseconds, several share a reading of the clock.
const QUICK_NS: f64 = 1500.0;

struct Side<'a> {
    client: &'a Client,
    key: WindowKey,
    out: Outgoing,
    /// Where reads land; those not under way. The last one used is the next.
    free: Vec<Buffer>,
    size: usize,
}

impl Side<'_> {
    #[inline(always)]
    fn write(&self) -> Op<()> {
        match &self.out {
            Outgoing::Small(b, len) => self.client.peer.write(&self.key, 0, &b[..*len]),
            Outgoing::Large(b) => self.client.peer.write(&self.key, 0, b.clone()),
        }
    }

    fn read(&mut self) -> kfab::Result<Op<Buffer>> {
        let into = match self.free.pop() {
            Some(b) => b,
            None => self.client.endpoint.buffer(self.size)?,
        };
        Ok(self.client.peer.read(&self.key, 0, into))
    }

    #[inline]
    fn one(&mut self, test: Test) -> kfab::Result<()> {
        if test == Test::Write {
            return self.write().wait();
        }
        let b = self.read()?.wait()?;
        self.free.push(b);
        Ok(())
    }

    /// `count` operations, one after the other, timed in batches.
    fn singly(
        &mut self,
        test: Test,
        count: u64,
        batch: u64,
        price: f64,
        into: &mut Histogram,
    ) -> Result<Duration> {
        let start = Instant::now();
        let (mut last, mut left) = (start, count);
        while left > 0 {
            let n = batch.min(left);
            for _ in 0..n {
                self.one(test)?;
            }
            let now = Instant::now();
            if n == batch {
                into.record((now.duration_since(last).as_nanos() as f64 - price).max(1.0) / n as f64);
            }
            (last, left) = (now, left - n);
        }
        Ok(start.elapsed())
    }

    /// `count` operations, `window` of them under way.
    fn many(&mut self, test: Test, count: u64, window: usize) -> Result<Duration> {
        let start = Instant::now();
        match test {
            Test::Write => {
                let mut under_way: VecDeque<Op<()>> = VecDeque::with_capacity(window);
                for _ in 0..count {
                    if under_way.len() == window
                        && let Some(op) = under_way.pop_front()
                    {
                        op.wait()?;
                    }
                    let op = self.write();
                    if op.has_ended() {
                        op.wait()?;
                    } else {
                        under_way.push_back(op);
                    }
                }
                for op in under_way {
                    op.wait()?;
                }
            }
            _ => self.many_reads(count, window)?,
        }
        Ok(start.elapsed())
    }

    fn many_reads(&mut self, count: u64, window: usize) -> Result<()> {
        let mut under_way: VecDeque<Op<Buffer>> = VecDeque::with_capacity(window);
        for _ in 0..count {
            if under_way.len() == window
                && let Some(op) = under_way.pop_front()
            {
                let b = op.wait()?;
                self.free.push(b);
            }
            // A read that ended within the call gives its buffer back at once: the next lands where the cache is warm.
            let op = self.read()?;
            match op.try_take() {
                Ok(b) => self.free.push(b?),
                Err(op) => under_way.push_back(op),
            }
        }
        for op in under_way {
            let b = op.wait()?;
            self.free.push(b);
        }
        Ok(())
    }

    /// Compares both sides' bytes.
    fn verify(&mut self, test: Test, stamp: u64) -> Result<()> {
        let wrong =
            |what: &str| Err(Failure::failed(format!("{}: {what} ({} bytes)", test.name(), self.size)));
        if test == Test::Write {
            self.out.stamp(stamp);
            self.write().wait()?;
            self.client.request(Request::Inspect { stamp })?;
            return match self.client.reply()? {
                Reply::Inspected { stamp_is_right: true, intact: true } => Ok(()),
                Reply::Inspected { .. } => wrong("the window does not hold what was written"),
                other => Err(unexpected(&other)),
            };
        }
        let mut fresh = self.client.endpoint.buffer(self.size)?;
        if let Some(bytes) = fresh.get_mut() {
            bytes.fill(0xa5);
        }
        let b = self.client.peer.read(&self.key, 0, fresh).wait()?;
        if stamp_of(&b) != 0 || !is_intact(&b) || b.len() != self.size {
            return wrong("what was read is not what the window holds");
        }
        Ok(())
    }
}

fn open(client: &Client, size: usize) -> Result<WindowKey> {
    client.request(Request::Window { size })?;
    let text = match client.reply()? {
        Reply::Window { key } => key,
        other => return Err(unexpected(&other)),
    };
    let bytes =
        control::from_hex(&text).ok_or_else(|| Failure::failed("the server's window key has no digits"))?;
    Ok(WindowKey::from_bytes(&bytes)?)
}

/// Part `share` of a load.
fn share(load: &Load, share: f64) -> Load {
    let length = match load.length {
        Length::Iterations(n) => Length::Iterations(((n as f64 * share) as u64).max(1)),
        Length::Duration(d) => Length::Duration(d.mul_f64(share)),
    };
    Load { length, ..*load }
}

pub(super) fn run(client: &Client, test: Test, load: &Load, tick: &mut dyn FnMut(f64)) -> Result<Row> {
    let key = open(client, load.size)?;
    let out = Outgoing::new(&client.endpoint, load.size)?;
    let mut side = Side { client, key, out, free: Vec::new(), size: load.size };
    let price = clock_price();
    let (mut single, mut batched, mut all) = (Histogram::new(), Histogram::new(), Throughput::new(load.size));
    let (mut quick, mut turn) = (false, 0);
    rounds(&share(load, 0.4), &mut |part| tick(0.4 * part), |count, counts| {
        if !counts {
            let took = side.singly(test, count, 1, price, &mut Histogram::new())?;
            quick = (took.as_nanos() as f64) < QUICK_NS * count as f64;
            return Ok(took);
        }
        turn += 1;
        if quick && turn % 2 == 1 && count >= BATCH {
            side.singly(test, count, BATCH, price, &mut batched)
        } else {
            side.singly(test, count, 1, price, &mut single)
        }
    })?;
    let mut rest = || {
        stop::check()?;
        rounds(&share(load, 0.6), &mut |part| tick(0.4 + 0.6 * part), |count, counts| {
            let took = side.many(test, count, load.window)?;
            if counts {
                all.add(count, took.as_nanos() as u64);
            }
            Ok(took)
        })?;
        stop::check()?;
        if load.check {
            side.verify(test, 0x1234_5678_9abc_def0)?;
        }
        client.prepare(Request::Close)
    };
    match rest() {
        // There are figures, and nobody who waits for more.
        Err(f) if f.code == INTERRUPTED => {}
        ended => ended?,
    }
    if single.is_empty() {
        single = batched.clone();
    }
    let mut row = all.row();
    row.take_latency(&single, (!batched.is_empty()).then_some(&batched));
    Ok(row)
}
