//! Frames that wait before they are looked at: until another connection, which the same frame is coming over, has ended, until a fault
//! rule lets go of their sender, or until there is memory for their body. Part of the way up, see `receive`.

use crate::machine::{ConnState, Io, Machine};
use crate::wire::*;
use kfab_core::spi::{Conn, Delivery, Inline};

/// How often frames that wait are looked at: nobody tells us when memory is free.
pub(crate) const LOOK_AGAIN_NS: u64 = 1_000_000;

/// A frame that waits: its first copy is still being taken from a connection that is dying, a fault rule stalls its sender, or there is no
/// memory for its body.
#[derive(Debug)]
pub(crate) struct Parked {
    port: usize,
    conn: Conn,
    ci: u32,
    header: [u8; 16],
    inline: Inline,
    body_len: usize,
}

impl Machine {
    /// The frame is also on its way over another connection, which its sender has given up: wait until that one has ended.
    pub(crate) fn park(&mut self, io: &mut Io<'_>, ci: u32, h: &Header, inline: Inline, body_len: usize) {
        let pi = self.conns[ci as usize].peer;
        if self.conns[ci as usize].delivery == Delivery::Datagram {
            return self.discard(io, ci, None, body_len);
        }
        let rails = pi.map(|pi| self.peers[pi as usize].rails.clone()).unwrap_or_default();
        for other in rails.into_iter().filter(|o| *o != ci) {
            let o = &self.conns[other as usize];
            if o.taking.is_some() {
                io.ports[o.port].close(o.conn);
            }
        }
        self.wait_with(io.now, ci, h, inline, body_len);
    }

    fn wait_with(&mut self, now: u64, ci: u32, h: &Header, inline: Inline, body_len: usize) {
        let ConnState { port, conn, .. } = self.conns[ci as usize];
        self.next_tick = self.next_tick.min(now + LOOK_AGAIN_NS);
        self.parked.push(Parked { port, conn, ci, header: h.to_bytes(), inline, body_len });
    }

    /// A fault rule stalls the peer: what its sender does not keep must not be lost by that, and waits until the rule is gone. What
    /// there is no room to keep is heard.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "the parts of one frame, taken apart once")]
    pub(crate) fn hold_back(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        pi: u32,
        kind: FrameKind,
        h: &Header,
        inline: &Inline,
        body_len: usize,
    ) {
        if !kind.is_sequenced() && kind != FrameKind::Ack {
            return self.discard(io, ci, None, body_len);
        }
        if self.parked.len() >= self.limits.max_unacked {
            return self.hear(io, ci, pi, kind, h, inline, body_len);
        }
        self.wait_with(io.now, ci, h, *inline, body_len);
    }

    /// There is no memory for a body. It stays in the port, and what comes over that connection behind it, until there is: the sender sees
    /// back-pressure. A datagram is sent again.
    #[cold]
    pub(crate) fn wait_for_memory(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        h: &Header,
        inline: Inline,
        body_len: usize,
    ) {
        if self.conns[ci as usize].delivery == Delivery::Datagram {
            return self.discard(io, ci, None, body_len);
        }
        self.wait_with(io.now, ci, h, inline, body_len);
    }

    pub(crate) fn retry_parked(&mut self, io: &mut Io<'_>) {
        for k in std::mem::take(&mut self.parked) {
            self.look_again(io, &k);
        }
    }

    /// A connection ends: what waits of it is looked at now or never.
    pub(crate) fn release_parked(&mut self, io: &mut Io<'_>, ci: u32) {
        for k in self.parked.extract_if(.., |k| k.ci == ci).collect::<Vec<_>>() {
            self.look_again(io, &k);
        }
    }

    fn look_again(&mut self, io: &mut Io<'_>, k: &Parked) {
        let c = &self.conns[k.ci as usize];
        if c.live && (c.port, c.conn) == (k.port, k.conn) {
            self.on_frame(io, k.ci, Header::parse(&k.header), &k.inline, k.body_len);
        }
    }
}
