//! Queue pairs: requests are staged, posted in chains with one doorbell, and own their memory until they have ended.

use super::{Cq, INLINE_MAX, Mr, Pd, RECV, SGE_MAX, Slot, Srq, Wc, done, loaded, made};
use crate::ffi;
use kfab_core::mem::{Landing, Slice};
use kfab_core::spi::RmaToken;
use std::collections::VecDeque;
use std::ffi::{c_int, c_uint};
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// The memory of a work request, owned by the queue pair until it has ended.
#[expect(dead_code, reason = "some fields only keep what they hold alive")]
pub(crate) enum Keep {
    /// All bytes are in the request itself.
    Nothing,
    /// A slot with the whole frame, or its head and the memory its body is in.
    Frame(Slot, Vec<(Slice, Arc<Mr>)>),
    /// A piece of a read that is not its last.
    Piece,
    /// (The last piece of) a read.
    Read(Landing, Arc<Mr>, RmaToken),
    /// (The last piece of) a write.
    Write(Slice, Option<Arc<Mr>>, RmaToken),
    /// The goodbye.
    Goodbye,
}

/// What a work request does.
#[derive(Clone, Copy)]
enum Verb {
    Send,
    Write { remote: u64, rkey: u32 },
    Read { remote: u64, rkey: u32 },
}

struct Staged {
    verb: Verb,
    sges: [ffi::Sge; SGE_MAX],
    n: usize,
    /// Bytes to copy into the request; the pieces then do not count.
    inline: [u8; INLINE_MAX],
    inline_len: usize,
    keep: Keep,
}

struct Flying {
    seq: u32,
    signalled: bool,
    keep: Keep,
}

/// How a queue pair is made.
pub(crate) struct QpLimits {
    pub(crate) depth: usize,
    pub(crate) sges: usize,
}

/// Both ends of a connection, for [`Qp::connect`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) qpn: u32,
    pub(crate) own_psn: u32,
    pub(crate) psn: u32,
    pub(crate) gid: [u8; 16],
    pub(crate) lid: u16,
    pub(crate) mtu: c_int,
    pub(crate) reads_out: u8,
    pub(crate) reads_in: u8,
    pub(crate) port: u8,
    pub(crate) gid_index: u8,
}

/// Unacknowledged messages are sent again after 4.096 us * 2^this (67 ms) ...
const ACK_TIMEOUT: u8 = 14;
/// ... this often. (7 would be for ever on some devices.)
const RETRIES: u8 = 6;
/// Receiver-not-ready cannot occur by design; should it, the peer waits 0.64 ms.
const MIN_RNR_TIMER: u8 = 12;
const RNR_RETRIES: u8 = 6;
/// A request without memory to hand back asks for a completion at the latest after so many.
const SIGNAL_EVERY: usize = 16;

handle! {
    /// A reliable connection's queue pair, with the memory of everything under way on it.
    Qp {
        raw: NonNull<ffi::Qp>, tag: u32, depth: usize, inline: usize, staged: Vec<Staged>, flying: VecDeque<Flying>,
        next: u32, unsignalled: usize, in_error: bool, _cq: Arc<Cq>, _pd: Arc<Pd>
    }
}

impl Qp {
    /// A queue pair whose completions carry `tag`.
    pub(crate) fn new(pd: &Arc<Pd>, cq: &Arc<Cq>, srq: &Srq, tag: u32, limits: &QpLimits) -> io::Result<Qp> {
        let mut last = io::Error::other("no size of inline data was tried");
        for inline in [INLINE_MAX, 128, 64, 0] {
            let cap = ffi::QpCap {
                max_send_wr: limits.depth as u32,
                max_recv_wr: 0,
                max_send_sge: limits.sges.min(SGE_MAX) as u32,
                max_recv_sge: 0,
                max_inline_data: inline as u32,
            };
            let mut init = ffi::QpInitAttr {
                qp_context: null_mut(),
                send_cq: cq.raw.as_ptr(),
                recv_cq: cq.raw.as_ptr(),
                srq: srq.raw.as_ptr(),
                cap,
                qp_type: ffi::QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: domain and queues are live and of one context; `init` has the layout that the call reads.
            match made(unsafe { (loaded().ibv_create_qp)(pd.raw.as_ptr(), &mut init) }) {
                Ok(raw) => {
                    return Ok(Qp {
                        raw,
                        tag: tag & !(1 << 31),
                        depth: limits.depth,
                        inline: inline.min(init.cap.max_inline_data as usize),
                        staged: Vec::new(),
                        flying: VecDeque::new(),
                        next: 0,
                        unsignalled: 0,
                        in_error: false,
                        _cq: cq.clone(),
                        _pd: pd.clone(),
                    });
                }
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => last = e,
                Err(e) => return Err(e),
            }
        }
        Err(last)
    }

    pub(crate) fn number(&self) -> u32 {
        // SAFETY: a live queue pair.
        unsafe { self.raw.as_ref().qp_num }
    }

    /// Bytes that a request carries itself.
    pub(crate) fn inline(&self) -> usize {
        self.inline
    }

    /// Requests that can be staged or posted now.
    pub(crate) fn room(&self) -> usize {
        self.depth.saturating_sub(self.staged.len() + self.flying.len())
    }

    /// Requests posted and not known to have ended.
    pub(crate) fn flying(&self) -> usize {
        self.flying.len()
    }

    /// Requests that wait for [`Qp::ring`].
    pub(crate) fn staged(&self) -> usize {
        self.staged.len()
    }

    /// `true` if a request that will surely be completed is under way.
    pub(crate) fn awaits(&self) -> bool {
        self.flying.iter().any(|f| f.signalled)
    }

    fn modify(&mut self, attr: &mut ffi::QpAttr, mask: c_int) -> io::Result<()> {
        // SAFETY: a live queue pair; `attr` has the layout that the call reads.
        done(unsafe { (loaded().ibv_modify_qp)(self.raw.as_ptr(), attr, mask) })
    }

    /// Makes the queue pair ready to receive and to send.
    pub(crate) fn connect(&mut self, r: &Route) -> io::Result<()> {
        let mut init = ffi::QpAttr {
            qp_state: ffi::QPS_INIT,
            port_num: r.port,
            qp_access_flags: (ffi::ACCESS_REMOTE_READ | ffi::ACCESS_REMOTE_WRITE) as c_uint,
            ..Default::default()
        };
        self.modify(&mut init, ffi::QP_STATE | ffi::QP_PKEY_INDEX | ffi::QP_PORT | ffi::QP_ACCESS_FLAGS)?;
        let ah_attr = ffi::AhAttr {
            dgid: ffi::Gid(r.gid),
            sgid_index: r.gid_index,
            hop_limit: 64,
            dlid: r.lid,
            is_global: 1,
            port_num: r.port,
            ..Default::default()
        };
        let mut rtr = ffi::QpAttr {
            qp_state: ffi::QPS_RTR,
            path_mtu: r.mtu,
            dest_qp_num: r.qpn,
            rq_psn: r.psn,
            max_dest_rd_atomic: r.reads_in,
            min_rnr_timer: MIN_RNR_TIMER,
            ah_attr,
            ..Default::default()
        };
        let mask = ffi::QP_STATE | ffi::QP_AV | ffi::QP_PATH_MTU | ffi::QP_DEST_QPN | ffi::QP_RQ_PSN;
        self.modify(&mut rtr, mask | ffi::QP_MAX_DEST_RD_ATOMIC | ffi::QP_MIN_RNR_TIMER)?;
        let mut rts = ffi::QpAttr {
            qp_state: ffi::QPS_RTS,
            sq_psn: r.own_psn,
            timeout: ACK_TIMEOUT,
            retry_cnt: RETRIES,
            rnr_retry: RNR_RETRIES,
            max_rd_atomic: r.reads_out,
            ..Default::default()
        };
        let mask = ffi::QP_STATE | ffi::QP_TIMEOUT | ffi::QP_RETRY_CNT | ffi::QP_RNR_RETRY;
        self.modify(&mut rts, mask | ffi::QP_SQ_PSN | ffi::QP_MAX_QP_RD_ATOMIC)
    }

    /// Moves to the error state: what is under way is flushed, peers are refused.
    pub(crate) fn fail(&mut self) {
        if !self.in_error {
            self.in_error = true;
            let mut attr = ffi::QpAttr { qp_state: ffi::QPS_ERR, ..Default::default() };
            if let Err(e) = self.modify(&mut attr, ffi::QP_STATE) {
                tracing::debug!(%e, "a queue pair could not be put into the error state");
            }
        }
    }

    fn stage(&mut self, verb: Verb, sges: &[ffi::Sge], inline: &[u8], keep: Keep) {
        let mut s = Staged {
            verb,
            sges: [ffi::Sge::default(); SGE_MAX],
            n: sges.len().min(SGE_MAX),
            inline: [0; INLINE_MAX],
            inline_len: inline.len().min(INLINE_MAX),
            keep,
        };
        s.sges[..s.n].copy_from_slice(&sges[..s.n]);
        s.inline[..s.inline_len].copy_from_slice(&inline[..s.inline_len]);
        self.staged.push(s);
    }

    /// Stages a message of at most [`Qp::inline`] bytes.
    pub(crate) fn send_inline(&mut self, bytes: &[u8], goodbye: bool) {
        debug_assert!(bytes.len() <= self.inline && !bytes.is_empty());
        self.stage(Verb::Send, &[], bytes, if goodbye { Keep::Goodbye } else { Keep::Nothing });
    }

    /// Stages a message: the first `len` bytes of the slot, then the bodies (at most [`SGE_MAX`] - 1).
    pub(crate) fn send(&mut self, slot: Slot, len: usize, bodies: Vec<(Slice, Arc<Mr>)>) {
        let mut sges = [ffi::Sge::default(); SGE_MAX];
        sges[0] = slot.sge(len);
        let mut n = 1;
        for (s, mr) in bodies.iter().take(SGE_MAX - 1) {
            sges[n] = mr.sge(s.as_ptr(), s.len());
            n += 1;
        }
        self.stage(Verb::Send, &sges[..n], &[], Keep::Frame(slot, bodies));
    }

    /// Stages a read in pieces of at most `piece` bytes; the token comes back with the last.
    pub(crate) fn read(
        &mut self,
        mut landing: Landing,
        mr: Arc<Mr>,
        remote: u64,
        rkey: u32,
        piece: usize,
        token: RmaToken,
    ) {
        let (base, len) = (landing.as_mut_ptr(), landing.len());
        let mut at = 0;
        while len - at > piece {
            let sge = mr.sge(base.wrapping_add(at), piece);
            self.stage(Verb::Read { remote: remote.wrapping_add(at as u64), rkey }, &[sge], &[], Keep::Piece);
            at += piece;
        }
        let sge = mr.sge(base.wrapping_add(at), len - at);
        self.stage(
            Verb::Read { remote: remote.wrapping_add(at as u64), rkey },
            &[sge],
            &[],
            Keep::Read(landing, mr, token),
        );
    }

    /// Stages a write in pieces of at most `piece` bytes; the token comes back with the last.
    pub(crate) fn write(
        &mut self,
        source: Slice,
        mr: Arc<Mr>,
        remote: u64,
        rkey: u32,
        piece: usize,
        token: RmaToken,
    ) {
        let (base, len) = (source.as_ptr(), source.len());
        let mut at = 0;
        while len - at > piece {
            let sge = mr.sge(base.wrapping_add(at), piece);
            self.stage(
                Verb::Write { remote: remote.wrapping_add(at as u64), rkey },
                &[sge],
                &[],
                Keep::Piece,
            );
            at += piece;
        }
        let sge = mr.sge(base.wrapping_add(at), len - at);
        let keep = Keep::Write(source, Some(mr), token);
        self.stage(Verb::Write { remote: remote.wrapping_add(at as u64), rkey }, &[sge], &[], keep);
    }

    /// Stages a write of at most [`Qp::inline`] bytes, copied now.
    pub(crate) fn write_inline(&mut self, source: Slice, remote: u64, rkey: u32, token: RmaToken) {
        let mut bytes = [0; INLINE_MAX];
        let n = source.copy_to(0, &mut bytes);
        debug_assert!(n <= self.inline);
        self.stage(Verb::Write { remote, rkey }, &[], &bytes[..n], Keep::Write(source, None, token));
    }

    /// Posts what is staged, with one doorbell. On an error nothing of what was not posted will ever be: the connection is broken.
    pub(crate) fn ring(&mut self) -> io::Result<()> {
        while !self.staged.is_empty() {
            self.ring_some()?;
        }
        Ok(())
    }

    fn ring_some(&mut self) -> io::Result<()> {
        const CHAIN: usize = 16;
        let n = self.staged.len().min(CHAIN);
        let empty = ffi::SendWr {
            wr_id: 0,
            next: null_mut(),
            sg_list: null_mut(),
            num_sge: 0,
            opcode: 0,
            send_flags: 0,
            imm_data: 0,
            remote_addr: 0,
            rkey: 0,
            room: [0; 9],
        };
        let mut wrs = [empty; CHAIN];
        let mut inline_sges = [ffi::Sge::default(); CHAIN];
        let first = wrs.as_mut_ptr();
        let keeps = self.staged[..n].iter().any(|s| !matches!(s.keep, Keep::Nothing));
        let mut signals = [false; CHAIN];
        for (i, s) in self.staged[..n].iter_mut().enumerate() {
            let wr = &mut wrs[i];
            self.unsignalled += 1;
            let ends = matches!(s.keep, Keep::Read(..) | Keep::Write(..) | Keep::Goodbye);
            signals[i] = ends || self.unsignalled >= SIGNAL_EVERY || (keeps && i + 1 == n);
            if signals[i] {
                self.unsignalled = 0;
                wr.send_flags |= ffi::SEND_SIGNALED;
            }
            wr.wr_id = (u64::from(self.tag) << 32) | u64::from(self.next.wrapping_add(i as u32));
            (wr.opcode, wr.remote_addr, wr.rkey) = match s.verb {
                Verb::Send => (ffi::WR_SEND, 0, 0),
                Verb::Write { remote, rkey } => (ffi::WR_RDMA_WRITE, remote, rkey),
                Verb::Read { remote, rkey } => (ffi::WR_RDMA_READ, remote, rkey),
            };
            if s.inline_len > 0 {
                wr.send_flags |= ffi::SEND_INLINE;
                inline_sges[i] =
                    ffi::Sge { addr: s.inline.as_ptr() as u64, length: s.inline_len as u32, lkey: 0 };
                wr.sg_list = &mut inline_sges[i];
                wr.num_sge = 1;
            } else {
                wr.sg_list = s.sges.as_mut_ptr();
                wr.num_sge = s.n as c_int;
            }
            // SAFETY: `i + 1 < n` is inside the array.
            wr.next = if i + 1 < n { unsafe { first.add(i + 1) } } else { null_mut() };
        }
        // From here on the memory belongs to the queue pair, whatever the call says about how far it came.
        let mut bad = null_mut();
        // SAFETY: a live queue pair and a chain of `n` requests in arrays that outlive the call, which copies inline bytes.
        // The other memory they name is moved to `flying` below and stays there until completion or destruction.
        let rc =
            done(unsafe { ((*self.raw.as_ref().context).ops.post_send)(self.raw.as_ptr(), first, &mut bad) });
        for (i, s) in self.staged.drain(..n).enumerate() {
            self.flying.push_back(Flying { seq: self.next, signalled: signals[i], keep: s.keep });
            self.next = self.next.wrapping_add(1);
        }
        rc
    }

    /// Takes the completion of a request: hands out the memory of it and of all before it, which have ended too. With an error
    /// only this one has ended for sure in this way, and those before it well.
    pub(crate) fn complete(&mut self, wc: &Wc, mut each: impl FnMut(Keep, bool)) {
        let seq = wc.0.wr_id as u32;
        if wc.0.wr_id & RECV != 0 || (wc.0.wr_id >> 32) as u32 != self.tag {
            return;
        }
        let Some(first) = self.flying.front() else { return };
        if seq.wrapping_sub(first.seq) as usize >= self.flying.len() {
            return;
        }
        while let Some(f) = self.flying.pop_front() {
            let this = f.seq == seq;
            // A flushed queue reports each request, a signalled or not; those skipped before a success went well.
            each(f.keep, !this || wc.0.status == ffi::WC_SUCCESS);
            if this {
                return;
            }
        }
    }

    /// Destroys the queue pair and hands out the memory of all that never ended, in order.
    pub(crate) fn destroy(mut self) -> Vec<Keep> {
        let flying = std::mem::take(&mut self.flying);
        let staged = std::mem::take(&mut self.staged);
        // SAFETY: made once; `self` is forgotten below, so that it is destroyed once.
        let rc = unsafe { (loaded().ibv_destroy_qp)(self.raw.as_ptr()) };
        // SAFETY: the fields are moved out of a value that is not dropped.
        let (cq, pd) = unsafe { (std::ptr::read(&self._cq), std::ptr::read(&self._pd)) };
        std::mem::forget(self);
        if rc != 0 {
            // The card may still use the memory: it is lost, and what hangs on it.
            tracing::warn!(rc, "a queue pair could not be destroyed");
            std::mem::forget((flying, cq, pd));
            return staged.into_iter().map(|s| s.keep).collect();
        }
        flying.into_iter().map(|f| f.keep).chain(staged.into_iter().map(|s| s.keep)).collect()
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        // SAFETY: made once; `destroy` forgets the value.
        if unsafe { (loaded().ibv_destroy_qp)(self.raw.as_ptr()) } != 0 {
            std::mem::forget(std::mem::take(&mut self.flying));
        }
    }
}
