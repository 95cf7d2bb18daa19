//! Queue pairs: requests are staged, posted in chains with one doorbell, and own their memory until they have ended.

use super::manager::{Id, Pass};
use super::{Cq, INLINE_MAX, Mr, Pd, RECV, SGE_MAX, Slot, Srq, Wc, done, ended, loaded, made};
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
    /// All bytes are in the request itself: nothing is remembered of it.
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
    /// A read or write whose memory is lost with a queue pair that the card would not let go.
    Lost(RmaToken),
}

/// What a work request does.
#[derive(Clone, Copy)]
enum Verb {
    Send,
    Write { remote: u64, rkey: u32 },
    Read { remote: u64, rkey: u32 },
}

/// Requests posted with one doorbell.
const CHAIN: usize = 16;

/// Requests that wait for the doorbell, in the driver's own form. They point at one another only while it reads them.
struct Chain {
    wrs: [ffi::SendWr; CHAIN],
    sges: [[ffi::Sge; SGE_MAX]; CHAIN],
    /// Bytes to copy into a request.
    inline: [[u8; INLINE_MAX]; CHAIN],
}

impl Chain {
    fn new() -> Box<Chain> {
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
        let sges = [[ffi::Sge::default(); SGE_MAX]; CHAIN];
        Box::new(Chain { wrs: [empty; CHAIN], sges, inline: [[0; INLINE_MAX]; CHAIN] })
    }
}

/// The memory of a request that is staged or posted, and its number.
struct Flying {
    number: u32,
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
/// Receiver-not-ready cannot occur among honest peers, by design. If one that is not uses up what all share, the others wait 10.24 ms and try again, by when
/// it has been found out and the receives are posted anew.
const MIN_RNR_TIMER: u8 = 20;
const RNR_RETRIES: u8 = 6;
/// A request without memory to hand back asks for a completion at the latest after so many.
const SIGNAL_EVERY: usize = 16;

handle! {
    /// A reliable connection's queue pair, with the memory of everything under way on it. Requests are numbered; those in `first..next`
    /// have not ended, of which the last `staged` are not posted, and those before `signalled` will surely be completed.
    Qp {
        raw: NonNull<ffi::Qp>, tag: u32, depth: usize, inline: usize, chain: Box<Chain>, staged: usize, failed: Option<io::Error>,
        flying: VecDeque<Flying>, first: u32, next: u32, signalled: u32, unsignalled: usize, in_error: bool, gone: bool, id: Option<Id>,
        _cq: Arc<Cq>, _pd: Arc<Pd>
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
                        chain: Chain::new(),
                        staged: 0,
                        failed: None,
                        flying: VecDeque::new(),
                        first: 0,
                        next: 0,
                        signalled: 0,
                        unsignalled: 0,
                        in_error: false,
                        gone: false,
                        id: None,
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
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.depth.saturating_sub(self.next.wrapping_sub(self.first) as usize)
    }

    /// Requests posted and not known to have ended.
    pub(crate) fn flying(&self) -> usize {
        self.next.wrapping_sub(self.first) as usize - self.staged
    }

    /// Requests staged and not posted.
    pub(crate) fn staged(&self) -> usize {
        self.staged
    }

    /// `true` if a request is under way that has memory to give back.
    pub(crate) fn holds(&self) -> bool {
        !self.flying.is_empty()
    }

    /// `true` if a request that will surely be completed is under way.
    pub(crate) fn awaits(&self) -> bool {
        is_before(self.first, self.signalled)
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

    /// The identifier under which the connection manager connects it.
    pub(crate) fn id(&mut self) -> &mut Option<Id> {
        &mut self.id
    }

    /// Moves into a state with the attributes that the manager says; `false` where the card does that by itself.
    fn follow(&mut self, state: c_int) -> io::Result<bool> {
        let (mut attr, mask) = self.named()?.attributes(state)?;
        if mask & ffi::QP_STATE == 0 {
            return Ok(false);
        }
        // Rights and patience are ours.
        attr.qp_access_flags = (ffi::ACCESS_REMOTE_READ | ffi::ACCESS_REMOTE_WRITE) as c_uint;
        attr.min_rnr_timer = MIN_RNR_TIMER;
        (attr.timeout, attr.retry_cnt, attr.rnr_retry) = (ACK_TIMEOUT, RETRIES, RNR_RETRIES);
        self.modify(&mut attr, mask)?;
        Ok(true)
    }

    fn named(&self) -> io::Result<&Id> {
        self.id.as_ref().ok_or_else(|| io::Error::other("the connection manager has no name for it"))
    }

    /// What the managers tell each other: `reads` served and started at a time.
    fn terms(&self, reads: (u8, u8)) -> ffi::ConnParam {
        ffi::ConnParam {
            private_data: std::ptr::null(),
            private_data_len: 0,
            responder_resources: reads.0,
            initiator_depth: reads.1,
            flow_control: 0,
            retry_count: RETRIES,
            rnr_retry_count: RNR_RETRIES,
            srq: 1,
            qp_num: self.number(),
        }
    }

    /// Asks the peer's manager to connect it.
    pub(crate) fn request(&mut self, pass: &Pass, reads: (u8, u8)) -> io::Result<()> {
        self.follow(ffi::QPS_INIT)?;
        self.named()?.connect(self.terms(reads), pass)
    }

    /// Grants the request that its identifier came with; `true` if it can be used now.
    pub(crate) fn accept(&mut self, reads: (u8, u8)) -> io::Result<bool> {
        self.follow(ffi::QPS_INIT)?;
        let ready = self.follow(ffi::QPS_RTR)? && self.follow(ffi::QPS_RTS)?;
        self.named()?.accept(self.terms(reads))?;
        Ok(ready)
    }

    /// The peer has granted the request.
    pub(crate) fn accepted(&mut self) -> io::Result<()> {
        self.follow(ffi::QPS_RTR)?;
        self.follow(ffi::QPS_RTS)?;
        self.named()?.establish()
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

    /// Stages a request of `n` pieces of memory, which `pieces` names.
    fn stage(&mut self, verb: Verb, keep: Keep, pieces: impl FnOnce(&mut [ffi::Sge; SGE_MAX]) -> usize) {
        self.stage_flagged(verb, keep, 0, |chain, at| pieces(&mut chain.sges[at]));
    }

    /// Stages a request whose bytes `fill` writes; it returns how many.
    #[inline(always)]
    fn stage_inline(&mut self, verb: Verb, keep: Keep, fill: impl FnOnce(&mut [u8; INLINE_MAX]) -> usize) {
        self.stage_flagged(verb, keep, ffi::SEND_INLINE, |chain, at| {
            let len = fill(&mut chain.inline[at]).min(INLINE_MAX);
            chain.sges[at][0] =
                ffi::Sge { addr: chain.inline[at].as_ptr() as u64, length: len as u32, lkey: 0 };
            1
        });
    }

    #[inline(always)]
    fn stage_flagged(
        &mut self,
        verb: Verb,
        keep: Keep,
        flags: c_uint,
        pieces: impl FnOnce(&mut Chain, usize) -> usize,
    ) {
        if self.staged == CHAIN
            && let Err(e) = self.post_chain()
        {
            self.failed = Some(e);
        }
        let at = self.staged;
        let n = pieces(&mut self.chain, at);
        let wr = &mut self.chain.wrs[at];
        wr.num_sge = n.min(SGE_MAX) as c_int;
        (wr.opcode, wr.remote_addr, wr.rkey) = match verb {
            Verb::Send => (ffi::WR_SEND, 0, 0),
            Verb::Write { remote, rkey } => (ffi::WR_RDMA_WRITE, remote, rkey),
            Verb::Read { remote, rkey } => (ffi::WR_RDMA_READ, remote, rkey),
        };
        let number = self.next;
        wr.wr_id = (u64::from(self.tag) << 32) | u64::from(number);
        self.next = number.wrapping_add(1);
        self.staged += 1;
        self.unsignalled += 1;
        let ends = matches!(keep, Keep::Read(..) | Keep::Write(..) | Keep::Goodbye);
        wr.send_flags = flags;
        if ends || self.unsignalled >= SIGNAL_EVERY {
            wr.send_flags |= ffi::SEND_SIGNALED;
            (self.unsignalled, self.signalled) = (0, self.next);
        }
        match keep {
            Keep::Nothing => {}
            keep => self.flying.push_back(Flying { number, keep }),
        }
    }

    /// Stages a message of at most [`Qp::inline`] bytes, which `fill` writes; it returns how many.
    #[inline(always)]
    pub(crate) fn send_inline(&mut self, fill: impl FnOnce(&mut [u8; INLINE_MAX]) -> usize) {
        self.stage_inline(Verb::Send, Keep::Nothing, fill);
    }

    /// Posts such a message, after what is staged.
    #[inline(always)]
    pub(crate) fn send_now(&mut self, fill: impl FnOnce(&mut [u8; INLINE_MAX]) -> usize) -> io::Result<()> {
        if self.staged > 0 {
            self.send_inline(fill);
            return self.ring();
        }
        self.send_inline(fill);
        self.post_chain()
    }

    /// Stages the goodbye.
    pub(crate) fn send_goodbye(&mut self, bytes: &[u8]) {
        self.stage_inline(Verb::Send, Keep::Goodbye, |to| {
            to[..bytes.len()].copy_from_slice(bytes);
            bytes.len()
        });
    }

    /// Stages a message: the first `len` bytes of the slot, then the bodies (at most [`SGE_MAX`] - 1).
    pub(crate) fn send(&mut self, slot: Slot, len: usize, bodies: Vec<(Slice, Arc<Mr>)>) {
        let first = slot.sge(len);
        let mut rest = [ffi::Sge::default(); SGE_MAX - 1];
        for (to, (s, mr)) in rest.iter_mut().zip(&bodies) {
            *to = mr.sge(s.as_ptr(), s.len());
        }
        let n = 1 + bodies.len().min(rest.len());
        self.stage(Verb::Send, Keep::Frame(slot, bodies), |sges| {
            sges[0] = first;
            sges[1..].copy_from_slice(&rest);
            n
        });
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
            self.stage_one(Verb::Read { remote: remote.wrapping_add(at as u64), rkey }, Keep::Piece, sge);
            at += piece;
        }
        let sge = mr.sge(base.wrapping_add(at), len - at);
        let keep = Keep::Read(landing, mr, token);
        self.stage_one(Verb::Read { remote: remote.wrapping_add(at as u64), rkey }, keep, sge);
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
            self.stage_one(Verb::Write { remote: remote.wrapping_add(at as u64), rkey }, Keep::Piece, sge);
            at += piece;
        }
        let sge = mr.sge(base.wrapping_add(at), len - at);
        let keep = Keep::Write(source, Some(mr), token);
        self.stage_one(Verb::Write { remote: remote.wrapping_add(at as u64), rkey }, keep, sge);
    }

    /// Makes the last request that is staged, a write, one with immediate data: no honest peer does.
    #[cfg(test)]
    pub(crate) fn with_immediate_data(&mut self) {
        self.chain.wrs[self.staged - 1].opcode = ffi::WR_RDMA_WRITE_WITH_IMM;
    }

    fn stage_one(&mut self, verb: Verb, keep: Keep, sge: ffi::Sge) {
        self.stage(verb, keep, |sges| {
            sges[0] = sge;
            1
        });
    }

    /// Stages a write of at most [`Qp::inline`] bytes, copied now.
    pub(crate) fn write_inline(&mut self, source: Slice, remote: u64, rkey: u32, token: RmaToken) {
        debug_assert!(source.len() <= self.inline);
        let keep = Keep::Write(source.clone(), None, token);
        self.stage_inline(Verb::Write { remote, rkey }, keep, |to| source.copy_to(0, to));
    }

    /// Posts what is staged, with one doorbell. On an error nothing of what was not posted will ever be: the connection is broken.
    pub(crate) fn ring(&mut self) -> io::Result<()> {
        let posted = self.post_chain();
        self.failed.take().map_or(posted, Err)
    }

    #[inline(always)]
    fn post_chain(&mut self) -> io::Result<()> {
        // Behind requests that were not posted none is: a completion of it would speak for them.
        if self.failed.is_some() {
            self.staged = 0;
            return Ok(());
        }
        let n = std::mem::take(&mut self.staged);
        let Some(last) = n.checked_sub(1) else { return Ok(()) };
        let staged = self.next.wrapping_sub(n as u32);
        if self.unsignalled > 0 && self.flying.back().is_some_and(|f| !is_before(f.number, staged)) {
            // Memory is to come back soon.
            (self.unsignalled, self.signalled) = (0, self.next);
            self.chain.wrs[last].send_flags |= ffi::SEND_SIGNALED;
        }
        let (first, sges) = (self.chain.wrs.as_mut_ptr(), self.chain.sges.as_mut_ptr());
        for i in 0..n {
            // SAFETY: `i` and, where it is used, `i + 1` are below `n`, inside both arrays.
            unsafe {
                (*first.add(i)).sg_list = sges.add(i).cast();
                (*first.add(i)).next = if i < last { first.add(i + 1) } else { null_mut() };
            }
        }
        let mut bad = null_mut();
        // SAFETY: a live queue pair and a chain of `n` requests in arrays that outlive the call, which copies inline bytes.
        // The other memory they name is in `flying` and stays there until completion or destruction, whatever the call says about
        // how far it came.
        done(unsafe { ((*self.raw.as_ref().context).ops.post_send)(self.raw.as_ptr(), first, &mut bad) })
    }

    /// Ends the requests that a completion tells of: how many. It is the one that it names and all before it; [`Qp::pop`] then hands out
    /// their memory. Only the one it names can have failed: those before it went well, as a queue that is flushed reports each,
    /// signalled or not.
    #[inline]
    pub(crate) fn ended(&mut self, wc: &Wc) -> usize {
        if wc.0.wr_id & RECV != 0 || (wc.0.wr_id >> 32) as u32 != self.tag {
            return 0;
        }
        let n = (wc.0.wr_id as u32).wrapping_sub(self.first) as usize + 1;
        if n > self.flying() {
            return 0;
        }
        self.first = self.first.wrapping_add(n as u32);
        n
    }

    /// The memory of a request that has ended, oldest first, and whether it was the last that did.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<(Keep, bool)> {
        if !is_before(self.flying.front()?.number, self.first) {
            return None;
        }
        let f = self.flying.pop_front()?;
        Some((f.keep, f.number.wrapping_add(1) == self.first))
    }

    /// The memory of what was staged and never posted.
    pub(crate) fn unstage(&mut self) -> Vec<Keep> {
        self.next = self.next.wrapping_sub(std::mem::take(&mut self.staged) as u32);
        if is_before(self.next, self.signalled) {
            self.signalled = self.next;
        }
        let at = self.flying.partition_point(|f| is_before(f.number, self.next));
        self.flying.split_off(at).into_iter().map(|f| f.keep).collect()
    }

    /// Destroys the queue pair and hands out the memory of all that never ended, in order. May take long if it broke.
    pub(crate) fn destroy(mut self) -> Vec<Keep> {
        let staged = self.unstage();
        self.end().into_iter().map(|f| f.keep).chain(staged).collect()
    }

    /// Destroys it, once; the memory of what was posted.
    fn end(&mut self) -> VecDeque<Flying> {
        let flying = std::mem::take(&mut self.flying);
        if std::mem::replace(&mut self.gone, true) {
            return flying;
        }
        // SAFETY: made once, and destroyed once: `gone` says so.
        if let Err(e) = ended(unsafe { (loaded().ibv_destroy_qp)(self.raw.as_ptr()) }) {
            // The card may still use the memory: it is lost, and what hangs on it. Who waits for it is told.
            tracing::warn!(%e, "a queue pair could not be destroyed");
            let waits = |f: &Flying| match f.keep {
                Keep::Read(_, _, token) | Keep::Write(_, _, token) => {
                    Some(Flying { number: f.number, keep: Keep::Lost(token) })
                }
                _ => None,
            };
            let lost = flying.iter().filter_map(waits).collect();
            std::mem::forget((flying, self._cq.clone(), self._pd.clone()));
            return lost;
        }
        flying
    }
}

/// Whether a request comes before another: no two under way are further apart than half of all numbers.
#[inline]
fn is_before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}

impl Drop for Qp {
    fn drop(&mut self) {
        self.end();
    }
}
