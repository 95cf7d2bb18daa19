//! The helper thread: polls when nobody else does. While callers are active it only looks in every few milliseconds; when they have
//! been silent for one such look it takes over, asleep on the descriptors: no processor time until there is news.

use crate::config::{EndpointConfig, Progress};
use crate::lane::{LOOK_IN, Lane};
use kfab_core::{Error, Result};
use std::sync::{Arc, Weak, mpsc};

/// Starts the lane's thread, if it is to have one. Where it is bound is in the lane's placement afterwards.
pub(crate) fn start(lane: &Arc<Lane>, config: &EndpointConfig) -> Result<()> {
    if config.progress == Progress::Inline {
        return Ok(());
    }
    let weak = Arc::downgrade(lane);
    let (partition, spinning) = (config.partition.clone(), config.progress == Progress::Spinning);
    let (tell, placed) = mpsc::sync_channel(1);
    let run = move || {
        // Only a thread can bind itself.
        if let Some(p) = partition {
            let _ = tell.send(p.bind_current_thread("progress thread"));
        }
        drop(tell);
        if spinning { spin(&weak) } else { help(&weak) }
    };
    let thread = std::thread::Builder::new().name("kfab-progress".into()).stack_size(256 << 10).spawn(run);
    let handle = thread.map_err(|e| Error::os("endpoint", "starting the progress thread", e))?;
    *lane.helper.lock().unwrap_or_else(|e| e.into_inner()) = Some(handle);
    if let Ok(placed) = placed.recv() {
        if !placed.is_met() {
            tracing::warn!(target: "kfab", "{placed}");
        }
        lane.placement.lock().unwrap_or_else(|e| e.into_inner()).push(placed);
    }
    Ok(())
}

fn spin(lane: &Weak<Lane>) {
    while let Some(lane) = lane.upgrade() {
        let mut s = lane.lock();
        if s.ports.is_empty() || s.machine.is_closed() {
            return;
        }
        s.poll();
        for _ in 0..64 {
            s.poll_again();
        }
        // Who sleeps on the descriptors hears nothing there any more.
        lane.tell_sleeper(&mut s);
        drop(s);
        lane.make_way();
    }
}

fn help(lane: &Weak<Lane>) {
    let (mut seen, mut rounds) = (0, 0);
    while let Some(lane) = lane.upgrade() {
        let mut s = lane.lock();
        if s.ports.is_empty() || s.machine.is_closed() {
            return;
        }
        if lane.is_asleep(&s) {
            // A caller sleeps on the descriptors itself. To poll now would disarm them under it.
            s.helper_idle = true;
            drop(s);
            lane.rest(None);
            continue;
        }
        let (silent, short) = (s.turns == seen, s.rounds == rounds);
        (seen, rounds) = (s.turns, s.rounds);
        if silent || s.watched {
            s.watched = false;
            for _ in 0..4 {
                s.poll();
            }
            lane.sleep_on_ports(s, None, None);
        } else {
            if short {
                // They find what they want by the short way, which looks at nothing else.
                s.poll();
                lane.leave(&mut s);
            }
            drop(s);
            lane.rest(Some(LOOK_IN));
        }
    }
}
