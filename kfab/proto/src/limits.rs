//! Every limit of the protocol: named, documented, and readable from an open endpoint.

use std::time::Duration;

/// The limits of one lane. What is bounded here is bounded nowhere else.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Limits {
    /// Credit units a peer may have in use here: memory that messages without a posted receive may hold (default 1024).
    pub credits: u32,
    /// Bytes per credit unit (default 1 KiB): a message costs one unit per started unit, at least one.
    /// Peers are told and count so.
    pub credit_bytes: u32,
    /// The largest single message, bytes (default 1 GiB).
    pub max_message: u64,
    /// The most operations under way at once on a lane (default 65,536). More is `Kind::Limit`.
    pub max_ops: usize,
    /// The most peers known at once on a lane (default 65,536). For more, those make room that were not used for
    /// [`Limits::peer_timeout`]; `Kind::Limit` if there are none.
    pub max_peers: usize,
    /// Credit units of messages and notices that wait here of peers that are gone (default 65,536). While there are as many, no new peer that
    /// calls is let in, and none that was restarted: they try again until some have been received. So memory is bounded however often
    /// peers come and go. What has a tag that nobody asks for counts as well, until a receive of any tag (every bit ignored)
    /// takes it, and a notice until it is taken or its window is closed.
    pub max_left_behind: u64,
    /// The most frames to one peer that may be unacknowledged (default 4096).
    pub max_unacked: usize,
    /// Bytes of pieces of large transfers to one peer that may be unacknowledged (default 16 MiB).
    pub max_unacked_bytes: usize,
    /// Messages up to this many bytes may share a frame when a peer has a backlog (default 1 KiB).
    pub coalesce_max: usize,
    /// Above this many bytes a message in a slab buffer is fetched by the receiver in one copy, where the port can (default 2 KiB).
    pub fetch_min: usize,
    /// After this long without a word from a peer that owes one, it is probed (default 500 ms).
    pub probe_after: Duration,
    /// After this long without a word although probed, or without a way to it, the peer is lost (default 5 s).
    pub peer_timeout: Duration,
    /// A rail that owes answers for this long while another rail works is given up, its frames move (default 400 ms).
    pub rail_timeout: Duration,
    /// First resend of a frame on a lossy rail when its round trip is not yet known (default 20 ms).
    pub resend_after: Duration,
    /// Waiting acknowledgements are sent on their own after this long without traffic to carry them (default 1 ms); those of messages
    /// with a body, for whose memory the sender may wait, after 50 us.
    pub ack_delay: Duration,
    /// A connection unused for this long is closed, to be made again when needed (default 10 min; zero: never).
    pub idle_close: Duration,
    /// The first and the longest pause between attempts to connect (default 10 ms and 1 s). A peer that was restarted may be found as much
    /// later.
    pub reconnect: (Duration, Duration),
}

/// Longer times than this count as this: ten years are for ever, and sums of times, and small multiples, stay times.
pub const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The largest message that any provider wants as one frame, bytes. One that waits for the first connection may be as large, and would
/// wait for ever at a peer whose credit it exceeds.
const EAGER_MOST: u64 = 64 << 10;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            credits: 1024,
            credit_bytes: 1024,
            max_message: 1 << 30,
            max_ops: 65_536,
            max_peers: 65_536,
            max_left_behind: 65_536,
            max_unacked: 4096,
            max_unacked_bytes: 16 << 20,
            coalesce_max: 1024,
            fetch_min: 2048,
            probe_after: Duration::from_millis(500),
            peer_timeout: Duration::from_secs(5),
            rail_timeout: Duration::from_millis(400),
            resend_after: Duration::from_millis(20),
            ack_delay: Duration::from_millis(1),
            idle_close: Duration::from_secs(600),
            reconnect: (Duration::from_millis(10), Duration::from_secs(1)),
        }
    }
}

impl Limits {
    /// Credit units that a message of `bytes` costs.
    #[inline]
    pub fn units(&self, bytes: usize) -> u32 {
        units(bytes, self.credit_bytes)
    }

    /// With no time longer than [`FOR_EVER`].
    pub(crate) fn in_time(mut self) -> Limits {
        let times = [
            &mut self.probe_after,
            &mut self.peer_timeout,
            &mut self.rail_timeout,
            &mut self.resend_after,
            &mut self.ack_delay,
            &mut self.idle_close,
            &mut self.reconnect.0,
            &mut self.reconnect.1,
        ];
        for t in times {
            *t = FOR_EVER.min(*t);
        }
        self
    }

    /// Checks that the limits make sense together; the error names the first that does not.
    ///
    /// ```
    /// # use kfab_proto::Limits;
    /// assert!(Limits::default().check().is_ok());
    /// let e = Limits { credits: 16, ..Default::default() }.check().unwrap_err();
    /// assert!(e.to_string().contains("at least 65536"), "{e}");
    /// ```
    pub fn check(&self) -> kfab_core::Result<()> {
        let bad = |what: &str| Err(kfab_core::Error::new(kfab_core::Kind::InvalidArgument, "limits", what));
        match () {
            _ if !(16..=32_768).contains(&self.credits) => bad("credits must be 16..=32768"),
            _ if self.max_message > crate::wire::Rts::MAX_LEN => bad("max_message must be below 2^48"),
            _ if self.credit_bytes < 64 => bad("credit_bytes must be at least 64"),
            _ if u64::from(self.credits) * u64::from(self.credit_bytes) < EAGER_MOST => bad(
                "credits times credit_bytes must be at least 65536: a message that a rail carries as one frame",
            ),
            _ if self.max_unacked == 0 || self.max_unacked > 16_384 => bad("max_unacked must be 1..=16384"),
            _ if self.coalesce_max > 16_384 => bad("coalesce_max must be at most 16384"),
            _ if self.max_ops == 0 || self.max_ops > 1 << 24 => bad("max_ops must be 1..=16777216"),
            _ if self.max_unacked_bytes == 0 => {
                bad("max_unacked_bytes must not be 0: no large message would ever leave")
            }
            _ if self.max_peers == 0 => bad("max_peers must not be 0"),
            _ if self.max_left_behind == 0 => bad("max_left_behind must not be 0: nobody would be let in"),
            _ if self.probe_after.is_zero() => bad("probe_after must not be 0"),
            _ if self.rail_timeout.is_zero() => bad("rail_timeout must not be 0"),
            _ if self.resend_after.is_zero() => bad("resend_after must not be 0"),
            _ if self.reconnect.0.is_zero() => bad(
                "reconnect must not begin with a pause of 0: attempts to connect would follow without end",
            ),
            _ if self.reconnect.1 < self.reconnect.0 => {
                bad("reconnect: the longest pause must not be shorter than the first")
            }
            _ if self.peer_timeout < self.probe_after => {
                bad("peer_timeout must not be shorter than probe_after")
            }
            _ => Ok(()),
        }
    }
}

/// Credit units of a message where so many bytes cost one.
#[inline]
pub(crate) fn units(bytes: usize, credit_bytes: u32) -> u32 {
    if bytes <= credit_bytes as usize { 1 } else { bytes.div_ceil(credit_bytes as usize) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_with_which_nothing_would_move_are_refused_by_name() {
        let (zero, one) = (Duration::ZERO, Duration::from_secs(1));
        let good = Limits::default;
        let bad = [
            ("max_unacked_bytes", Limits { max_unacked_bytes: 0, ..good() }),
            ("max_unacked", Limits { max_unacked: 0, ..good() }),
            ("max_peers", Limits { max_peers: 0, ..good() }),
            ("max_left_behind", Limits { max_left_behind: 0, ..good() }),
            ("max_ops", Limits { max_ops: 0, ..good() }),
            ("probe_after", Limits { probe_after: zero, ..good() }),
            ("rail_timeout", Limits { rail_timeout: zero, ..good() }),
            ("resend_after", Limits { resend_after: zero, ..good() }),
            ("reconnect", Limits { reconnect: (zero, one), ..good() }),
            ("reconnect", Limits { reconnect: (one, zero), ..good() }),
            ("peer_timeout", Limits { peer_timeout: zero, ..good() }),
        ];
        for (name, limits) in bad {
            let e = limits.check().expect_err(name);
            assert!(
                e.kind() == kfab_core::Kind::InvalidArgument && e.context().starts_with(name),
                "{name}: {e}"
            );
        }
        assert!(Limits { idle_close: zero, ack_delay: zero, max_unacked_bytes: 1, ..good() }.check().is_ok());
    }
}
