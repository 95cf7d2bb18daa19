//! What a world is like: its clock, its delivery promise, its limits, and the faults of its links.

use kfab_core::spi::{Caps, Delivery};

/// Whose time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Time moves only by [`World::advance`](crate::World::advance) and its kin; the `now_ns` of a poll is ignored.
    Virtual,
    /// Time is the latest `now_ns` that any poll was called with; ports can be slept on.
    Real,
}

/// The behaviour of a link, in one direction. Chances are between 0 and 1, times in nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// Chance that a frame is lost. In a world with [`Delivery::Connection`]: that it takes
    /// [`WorldConfig::retry_ns`] longer, as if it had been sent again below. Without effect with [`Delivery::Process`].
    pub loss: f64,
    /// Chance that a frame arrives twice ([`Delivery::Datagram`] only).
    pub duplicate: f64,
    /// Chance that a frame takes up to [`Faults::reorder_ns`] longer, so that later ones may overtake it
    /// (with an ordered promise those wait for it).
    pub reorder: f64,
    /// The most that [`Faults::reorder`] adds, ns.
    pub reorder_ns: u64,
    /// The shortest way, ns.
    pub delay_min_ns: u64,
    /// The longest way without reordering, ns; each frame draws evenly between the two.
    pub delay_max_ns: u64,
    /// Bits per second; 0 for no limit. Frames queue for the link.
    pub bandwidth_bps: u64,
}

impl Default for Faults {
    /// A clean and fast link: 1 to 2 us, no faults, no bandwidth limit.
    fn default() -> Self {
        Faults {
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_ns: 100_000,
            delay_min_ns: 1_000,
            delay_max_ns: 2_000,
            bandwidth_bps: 0,
        }
    }
}

/// Which links: any that match all the fields given. A link is named by its sender's host and rail and its receiver's host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Sent by this host.
    pub from: Option<u32>,
    /// Sent to this host.
    pub to: Option<u32>,
    /// Leaving from a port on this rail.
    pub rail: Option<u32>,
}

impl Path {
    /// Every link.
    pub const ALL: Path = Path { from: None, to: None, rail: None };

    /// From one host to another, this direction only, all rails.
    pub fn one_way(from: u32, to: u32) -> Path {
        Path { from: Some(from), to: Some(to), rail: None }
    }

    /// Every link of one rail.
    pub fn rail(rail: u32) -> Path {
        Path { rail: Some(rail), ..Path::ALL }
    }

    /// The same, on one rail only.
    pub fn on_rail(self, rail: u32) -> Path {
        Path { rail: Some(rail), ..self }
    }

    pub(crate) fn matches(&self, from: u32, to: u32, rail: u32) -> bool {
        self.from.is_none_or(|f| f == from)
            && self.to.is_none_or(|t| t == to)
            && self.rail.is_none_or(|r| r == rail)
    }
}

/// How a world behaves. [`WorldConfig::new`] gives a clean one; change fields to taste.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// Whose time it is.
    pub clock: Clock,
    /// What every port promises. [`Delivery::Process`] ignores cuts, dead rails and loss, as memory has none.
    pub delivery: Delivery,
    /// `true` if ports serve one-sided access.
    pub rma: bool,
    /// `true` if peers are told when a host crashes (`Down` with `PeerDead`); else they meet silence.
    pub sees_death: bool,
    /// `true` if both ends are told at once when their rail dies (`Down` with `Broken`); else they meet silence.
    pub sees_rail_death: bool,
    /// `true` if a port reaches ports on other rails too. A frame then needs both rails alive.
    pub routed: bool,
    /// The links' behaviour where no rule of [`World::set_faults`](crate::World::set_faults) matches.
    pub faults: Faults,
    /// Frames of one direction of a connection under way and not yet consumed by the receiver (with
    /// [`Delivery::Datagram`]: under way) before `post` refuses more. At least 1.
    pub queue_frames: usize,
    /// The same in bytes of body: a frame is refused when this many are queued already.
    pub queue_bytes: usize,
    /// [`Delivery::Datagram`]: frames that wait for the receiver's poll before more are dropped.
    pub inbox_frames: usize,
    /// [`Delivery::Datagram`]: no frame arrives later than this after it was sent, ns.
    pub lifetime_ns: u64,
    /// [`Delivery::Connection`]: a connection whose frames do not get through for this long is `Broken`, ns. Also the time
    /// after which a one-sided operation that does not get through fails.
    pub break_after_ns: u64,
    /// Time between attempts of whatever is sent again below the port (connecting, closing, [`Faults::loss`]), ns.
    pub retry_ns: u64,
    /// With [`WorldConfig::sees_death`]: peers are told within this time, ns.
    pub death_notice_ns: u64,
    /// Chance that `take` ends later (`Event::Taken`) and not within the call.
    pub late_take: f64,
    /// [`Delivery::Process`] with [`WorldConfig::rma`]: chance that `rma` ends later and not within the call. With other
    /// promises it always ends later.
    pub late_rma: f64,
    /// The most that a late `take` takes, ns.
    pub late_ns: u64,
    /// The largest body, bytes.
    pub max_body: usize,
    /// Up to here the protocol should send eagerly, bytes.
    pub eager_max: usize,
    /// The preferred piece of a large transfer, bytes.
    pub fragment: usize,
    /// The most events of one poll.
    pub batch: usize,
    /// Entries of the trace that are kept (the latest); 0 for none.
    pub trace: usize,
}

impl WorldConfig {
    /// A clean world with virtual time and this promise.
    pub fn new(delivery: Delivery) -> WorldConfig {
        WorldConfig {
            clock: Clock::Virtual,
            delivery,
            rma: false,
            sees_death: delivery == Delivery::Process,
            sees_rail_death: true,
            routed: true,
            faults: Faults::default(),
            queue_frames: 128,
            queue_bytes: 1 << 20,
            inbox_frames: 4096,
            lifetime_ns: 1_000_000_000,
            break_after_ns: 500_000_000,
            retry_ns: 1_000_000,
            death_notice_ns: 1_000_000,
            late_take: 0.5,
            late_rma: 0.5,
            late_ns: 2_000,
            max_body: 64 << 10,
            eager_max: 8 << 10,
            fragment: 32 << 10,
            batch: 64,
            trace: 0,
        }
    }

    /// The same with one-sided access.
    pub fn with_rma(self) -> WorldConfig {
        WorldConfig { rma: true, ..self }
    }

    /// The same in real time.
    pub fn real_time(self) -> WorldConfig {
        WorldConfig { clock: Clock::Real, ..self }
    }

    /// The capabilities that follow.
    pub fn caps(&self) -> Caps {
        Caps {
            delivery: self.delivery,
            max_body: self.max_body,
            eager_max: self.eager_max,
            fetch_min: 0,
            fragment: self.fragment,
            rma: self.rma,
            zero_copy: true,
            sees_death: self.sees_death,
            weight: 1000,
            rank: 0,
            node: None,
        }
    }
}

impl Default for WorldConfig {
    /// The harshest promise: [`Delivery::Datagram`], still without faults.
    fn default() -> Self {
        WorldConfig::new(Delivery::Datagram)
    }
}
