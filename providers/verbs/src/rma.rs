//! One-sided access: windows as registrations of their own, transfers of a pool's memory through the kept ones, reads and writes by the
//! card. Part of `port`.
//!
//! | key | what |
//! |---|---|
//! | `region` | the card's remote key, masked by the secret: a changed or guessed secret names no registration |
//! | `base` | the address of the memory |
//! | `secret` | random, of each exposure |
//!
//! Access is checked by the card that owns the memory: rights and range, to the byte, of a window. A refused access breaks the
//! connection, as reliable connections do. Revoking ends the registration before it returns; where the card does not do that, no
//! queue pair is left that reaches it, and the card is opened anew.

use crate::device::refusal;
use crate::link::{Phase, RMA_WAITING_MAX};
use crate::port::VerbsPort;
use crate::sys::{Mr, Reach};
use kfab_core::auth::random_u64;
use kfab_core::mem::{Access, Landing, Slice};
use kfab_core::spi::{Conn, Event, Exposure, RemoteKey, Rights, Rma, RmaStarted, RmaToken};
use kfab_core::{Error, Kind, Result};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Attempts to end a registration that the card says is in use, and the rest between them.
const REVOKE_TRIES: u32 = 10;
const REVOKE_REST: Duration = Duration::from_millis(5);

/// An exposure, with what it keeps alive.
enum Exposed {
    /// By a registration of its own, which ends with it: a window, or a transfer of memory that is the program's heap again afterwards.
    Own { mr: Mr, memory: Slice },
    /// A transfer through a registration that is kept.
    Kept { _mr: Arc<Mr>, _memory: Slice },
}

/// The exposures of a port.
#[derive(Default)]
pub(crate) struct Exposures {
    by_id: HashMap<u64, Exposed>,
    next: u64,
    /// What a card would not let go of: kept until the port is closed.
    quarantine: Vec<(Mr, Slice)>,
}

impl Exposures {
    /// None; the names used so far are not used again.
    pub(crate) fn after(next: u64) -> Exposures {
        Exposures { next, ..Default::default() }
    }

    /// What [`Exposures::after`] wants to know.
    pub(crate) fn last(&self) -> u64 {
        self.next
    }
}

/// A bijection in which every bit of the input moves about half of those of the output (SplitMix64's finaliser).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn masked(rkey: u32, base: u64, secret: u64) -> RemoteKey {
    RemoteKey { region: u64::from(rkey) ^ mix(secret), base, secret }
}

/// The card's key; `None` for one that was tampered with.
pub(crate) fn unmasked(key: &RemoteKey) -> Option<u32> {
    u32::try_from(key.region ^ mix(key.secret)).ok()
}

/// The landing of a read.
pub(crate) fn landing_of(rma: Rma) -> Option<Landing> {
    match rma {
        Rma::Read { landing, .. } => Some(landing),
        Rma::Write { .. } => None,
    }
}

impl VerbsPort {
    pub(crate) fn expose_memory(&mut self, memory: &Slice, rights: Rights) -> Result<Exposure> {
        let bad = |why: &str| Error::new(Kind::InvalidArgument, "expose", why);
        let region = memory.region();
        if rights.contains(Rights::WRITE) && region.access() != Access::PeersWrite {
            return Err(bad("peers can be given the right to write window memory only"));
        }
        if memory.is_empty() {
            return Err(bad("no bytes"));
        }
        let failed = |e: std::io::Error| {
            Error::new(Kind::Limit, "expose", refusal(&self.pd, &self.card.name, memory.len(), &e))
        };
        let secret = random_u64()?;
        let base = memory.as_ptr() as u64;
        let transfer = rights.contains(Rights::TRANSFER) && !rights.contains(Rights::WRITE);
        let (rkey, exposed) = if transfer && region.access() != Access::Private {
            let mr = self.memory.cache.open(region, memory.offset(), memory.len()).map_err(failed)?;
            (mr.rkey(), Exposed::Kept { _mr: mr, _memory: memory.clone() })
        } else {
            let reach = match (rights.contains(Rights::READ), rights.contains(Rights::WRITE)) {
                (true, true) => Reach::ReadWrite,
                (false, true) => Reach::Write,
                (true, false) => Reach::Read,
                (false, false) => Reach::Nobody,
            };
            let register = || Mr::new(&self.pd, region, memory.offset(), memory.len(), reach);
            let mr = self.memory.cache.spared_for(register).map_err(failed)?;
            (mr.rkey(), Exposed::Own { mr, memory: memory.clone() })
        };
        self.exposures.next += 1;
        let id = self.exposures.next;
        self.exposures.by_id.insert(id, exposed);
        Ok(Exposure { key: masked(rkey, base, secret), id })
    }

    pub(crate) fn revoke_memory(&mut self, exposure: Exposure) {
        let Some(Exposed::Own { mr, memory }) = self.exposures.by_id.remove(&exposure.id) else { return };
        let Err((mut mr, e)) = mr.end() else { return };
        // The card says that somebody is in the middle of it: nobody is, once the queue pairs are in error.
        tracing::warn!(%e, "a window could not be taken back; connections are broken for it");
        self.end_all("a window in use was taken back");
        for _ in 0..REVOKE_TRIES {
            std::thread::sleep(REVOKE_REST);
            match mr.end() {
                Ok(()) => return,
                Err((m, _)) => mr = m,
            }
        }
        // Its key would open it to the next who connects. So nobody does, until all that was made on the card is closed with it.
        self.lose("a window could not be taken back");
        self.exposures.quarantine.push((mr, memory));
    }

    pub(crate) fn start_rma(&mut self, conn: Conn, rma: Rma, token: RmaToken) -> RmaStarted {
        let (len, key) = match &rma {
            Rma::Read { landing, key, .. } => (landing.len(), *key),
            Rma::Write { source, key, .. } => (source.len(), *key),
        };
        let fail = |rma, kind, why: String| RmaStarted::Failed(landing_of(rma), Error::new(kind, "rma", why));
        if unmasked(&key).is_none() {
            return fail(rma, Kind::AccessDenied, "no such window".to_owned());
        }
        let pieces = len.div_ceil(self.max_message).max(1);
        let most = self.limits.depth / 2;
        if pieces > most {
            let why = format!("{len} bytes: one operation moves at most {}", most * self.max_message);
            return fail(rma, Kind::InvalidArgument, why);
        }
        let Some(l) = self.links.get(conn).filter(|l| l.phase == Phase::Up && !l.closing) else {
            return fail(rma, Kind::PeerLost, "the connection is not up".to_owned());
        };
        if len == 0 {
            return RmaStarted::Done(landing_of(rma));
        }
        if l.rma_waiting.is_empty() && l.rma_room() >= pieces && self.requests + pieces < self.requests_max {
            return match self.stage_rma(conn, rma, token) {
                Ok(()) => {
                    self.ring(conn);
                    RmaStarted::Pending
                }
                Err((landing, e)) => RmaStarted::Failed(landing, e),
            };
        }
        if l.rma_waiting.len() >= RMA_WAITING_MAX {
            return fail(rma, Kind::Limit, format!("{RMA_WAITING_MAX} operations wait on this connection"));
        }
        l.rma_waiting.push_back((rma, token));
        self.list(conn);
        RmaStarted::Pending
    }

    fn stage_rma(
        &mut self,
        conn: Conn,
        rma: Rma,
        token: RmaToken,
    ) -> std::result::Result<(), (Option<Landing>, Error)> {
        let gone = || Error::new(Kind::PeerLost, "rma", "the connection is not up");
        let piece = self.max_message;
        let (pd, card) = (&self.pd, &self.card.name);
        let failed = |len, e: std::io::Error| Error::new(Kind::Limit, "rma", refusal(pd, card, len, &e));
        let qp = self.links.get(conn).and_then(|l| l.qp.as_mut());
        match rma {
            Rma::Read { mut landing, key, offset } => {
                let (Some(qp), Some(rkey)) = (qp, unmasked(&key)) else {
                    return Err((Some(landing), gone()));
                };
                let (at, len) =
                    (landing.as_mut_ptr() as usize - landing.region().base() as usize, landing.len());
                match self.memory.cache.get(landing.region(), at, len) {
                    Ok(mr) => qp.read(landing, mr, key.base.wrapping_add(offset), rkey, piece, token),
                    Err(e) => return Err((Some(landing), failed(len, e))),
                }
                self.requests += len.div_ceil(piece);
            }
            Rma::Write { source, key, offset } => {
                let (Some(qp), Some(rkey)) = (qp, unmasked(&key)) else { return Err((None, gone())) };
                let (remote, len) = (key.base.wrapping_add(offset), source.len());
                if len <= qp.inline() {
                    qp.write_inline(source, remote, rkey, token);
                } else {
                    match self.memory.cache.get(source.region(), source.offset(), len) {
                        Ok(mr) => qp.write(source, mr, remote, rkey, piece, token),
                        Err(e) => return Err((None, failed(len, e))),
                    }
                }
                self.requests += len.div_ceil(piece);
            }
        }
        Ok(())
    }

    /// Stages operations that waited, as far as there is room.
    pub(crate) fn go_on_with_rma(&mut self, conn: Conn, events: &mut Vec<Event>) {
        let mut staged = false;
        loop {
            let message = self.max_message;
            let Some(l) = self.links.get(conn) else { return };
            let Some((rma, _)) = l.rma_waiting.front() else { break };
            let len = match rma {
                Rma::Read { landing, .. } => landing.len(),
                Rma::Write { source, .. } => source.len(),
            };
            let pieces = len.div_ceil(message).max(1);
            if l.rma_room() < pieces {
                break;
            }
            if self.is_crowded(pieces) {
                self.starves(conn);
                break;
            }
            let Some(l) = self.links.get(conn) else { return };
            let Some((rma, token)) = l.rma_waiting.pop_front() else { break };
            match self.stage_rma(conn, rma, token) {
                Ok(()) => staged = true,
                Err((landing, e)) => events.push(Event::RmaDone { token, landing, result: Err(e) }),
            }
        }
        if staged {
            self.ring(conn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_with_its_own_secret_only() {
        let key = masked(0x1234_5678, 0x1000, 0xfeed_beef_dead_cafe);
        assert_eq!(unmasked(&key), Some(0x1234_5678));
        for bit in 0..64 {
            let other = RemoteKey { secret: key.secret ^ (1 << bit), ..key };
            assert_ne!(unmasked(&other), Some(0x1234_5678));
        }
        let none = (0..64)
            .filter(|b| unmasked(&RemoteKey { secret: key.secret ^ (1 << b), ..key }).is_none())
            .count();
        assert_eq!(none, 64, "the high half of a masked key must show tampering");
    }
}
