//! Keeps a session alive: a node that hears nothing of its console for the time it has named ends the session.
//!
//! Lustre's console sends DEBUG for that, and so do we. One thread for each console; a node that does not answer delays none of the
//! others by more than its own pause.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_lite::future::{block_on, or};

use super::rpc::{Bulk, Ids, Rpc, all, status_of};
use crate::error::{Error, Result};
use crate::nid::ProcessId;
use crate::node::OneShot;
use crate::wire::lst::{LstBody, Service, SessionId};

/// How many times within its timeout a node hears of us.
const PER_TIMEOUT: u32 = 4;
/// The longest sleep: a node may be added meanwhile.
const BEAT: Duration = Duration::from_millis(250);

/// The thread, and whom it tells.
pub(super) struct Keeper {
    nodes: Arc<Mutex<Vec<Kept>>>,
    stop: OneShot<()>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy)]
struct Kept {
    node: ProcessId,
    every: Duration,
    due: Instant,
}

impl Keeper {
    /// Begins with no node.
    pub(super) fn start(rpc: Arc<Rpc>, session: SessionId) -> Result<Self> {
        let (nodes, stop) = (Arc::new(Mutex::new(Vec::new())), OneShot::default());
        let (theirs, stopped) = (nodes.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("lst-keeper".into())
            .spawn(move || {
                while stopped.wait_timeout(nap(&theirs)).is_none() {
                    let told = async {
                        tell(&rpc, session, due(&theirs)).await;
                        false
                    };
                    let over = async {
                        stopped.recv().await;
                        true
                    };
                    if block_on(or(over, told)) {
                        return;
                    }
                }
            })
            .map_err(|e| Error::io("lst", "starting the thread that keeps the session", e))?;
        Ok(Self { nodes, stop, thread: Some(thread) })
    }

    /// Keeps a node that ends the session after `timeout` of silence; zero: it never does.
    pub(super) fn keep(&self, node: ProcessId, timeout: Duration) {
        let mut nodes = lock(&self.nodes);
        nodes.retain(|k| k.node != node);
        if !timeout.is_zero() {
            let every = timeout / PER_TIMEOUT;
            nodes.push(Kept { node, every, due: Instant::now() + every });
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.complete(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(nodes: &Mutex<Vec<Kept>>) -> MutexGuard<'_, Vec<Kept>> {
    nodes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nap(nodes: &Mutex<Vec<Kept>>) -> Duration {
    let now = Instant::now();
    let next = lock(nodes).iter().map(|k| k.due.saturating_duration_since(now)).min();
    next.map_or(BEAT, |d| d.min(BEAT))
}

/// Those whose time has come; it comes again.
fn due(nodes: &Mutex<Vec<Kept>>) -> Vec<Kept> {
    let now = Instant::now();
    let mut nodes = lock(nodes);
    let due = nodes.iter_mut().filter(|k| k.due <= now);
    due.map(|k| {
        k.due = now + k.every;
        *k
    })
    .collect()
}

async fn tell(rpc: &Rpc, session: SessionId, nodes: Vec<Kept>) {
    let one = |k: Kept| async move {
        let body = |ids: Ids| LstBody::Debug { reply_id: ids.reply_id, session, flags: 0 };
        match rpc.call(k.node, Service::Debug, body, Bulk::None, k.every).await {
            Ok(reply) if status_of(&reply) == 0 => {}
            Ok(reply) => {
                tracing::warn!(node = %k.node, status = status_of(&reply), "is in no session of ours")
            }
            Err(error) => tracing::debug!(node = %k.node, %error, "does not hear us"),
        }
    };
    all(nodes.into_iter().map(one)).await;
}
