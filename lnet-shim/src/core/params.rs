//! What a user says about match entries and memory descriptors.
//!
//! Rules that LNet checks at run time are types here: an attached descriptor names what it may be used for, a bound one
//! cannot be a target, and only bound ones can be put or got.

use crate::nid::ProcessId;

/// How many portals a node has.
pub const PORTALS: u32 = 64;

/// Where a match entry is put in its portal's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Position {
    /// At the head: matched first.
    Before,
    /// At the tail: matched last.
    #[default]
    After,
}

/// Whether an object goes by itself when it is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unlink {
    /// It goes by itself.
    #[default]
    Auto,
    /// It stays until unlinked.
    Retain,
}

/// A match entry: which messages to a portal are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeParams {
    /// The portal, below 64.
    pub portal: u32,
    /// From whom; each half may be ANY.
    pub match_id: ProcessId,
    /// The bits wanted.
    pub match_bits: u64,
    /// The bits that do not matter.
    pub ignore_bits: u64,
    /// Whether the entry goes with its descriptor.
    pub unlink: Unlink,
    /// Where in the list.
    pub position: Position,
}

impl MeParams {
    /// An entry at the tail for messages from anyone with exactly these bits, going with its descriptor.
    pub fn new(portal: u32, match_bits: u64) -> Self {
        Self {
            portal,
            match_id: ProcessId::ANY,
            match_bits,
            ignore_bits: 0,
            unlink: Unlink::Auto,
            position: Position::After,
        }
    }

    /// Whether the entry can only be matched by one peer with one set of bits.
    pub(crate) fn is_unique(&self) -> bool {
        self.ignore_bits == 0 && !self.match_id.nid.is_any() && self.match_id.pid != crate::nid::PID_ANY
    }
}

/// How often a descriptor may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threshold {
    /// Any number of times.
    Infinite,
    /// This many operations: a PUT is one, and one more with ACK; a GET is two.
    Count(u32),
}

impl Threshold {
    pub(crate) fn is_spent(self) -> bool {
        self == Self::Count(0)
    }

    pub(crate) fn spend(&mut self) {
        if let Self::Count(n) = self {
            *n = n.saturating_sub(1);
        }
    }
}

/// What others may do to an attached descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Leave bytes.
    Put,
    /// Take bytes.
    Get,
    /// Both.
    PutGet,
}

/// A descriptor attached to a match entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetOptions {
    /// What others may do.
    pub access: Access,
    /// How often.
    pub threshold: Threshold,
    /// If set, the descriptor is used up once less than this many bytes are left, and no message may be longer.
    pub max_size: Option<u32>,
    /// The offset comes with the request; otherwise each operation goes behind the one before.
    pub manage_remote: bool,
    /// Too long messages are cut; otherwise dropped.
    pub truncate: bool,
    /// No ACK even if asked for.
    pub ack_disable: bool,
    /// What to do when used up.
    pub unlink: Unlink,
    /// Anything; comes with each event.
    pub user: u64,
}

impl TargetOptions {
    /// A descriptor that can be used any number of times, with local offsets.
    pub fn new(access: Access) -> Self {
        Self {
            access,
            threshold: Threshold::Infinite,
            max_size: None,
            manage_remote: false,
            truncate: false,
            ack_disable: false,
            unlink: Unlink::Retain,
            user: 0,
        }
    }

    /// A descriptor for one operation, gone after it.
    pub fn once(access: Access) -> Self {
        Self { threshold: Threshold::Count(1), unlink: Unlink::Auto, ..Self::new(access) }
    }
}

/// A descriptor that PUTs are sent from and GETs arrive in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceOptions {
    /// How often; see [`Threshold::Count`].
    pub threshold: Threshold,
    /// A longer REPLY is cut; otherwise dropped.
    pub truncate: bool,
    /// What to do when used up.
    pub unlink: Unlink,
    /// Anything; comes with each event.
    pub user: u64,
}

impl SourceOptions {
    /// For `operations`, gone after them.
    pub fn once(operations: u32) -> Self {
        Self { threshold: Threshold::Count(operations), truncate: false, unlink: Unlink::Auto, user: 0 }
    }
}
