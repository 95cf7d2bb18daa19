//! One end of a connection.

use crate::net::Place;
use crate::wire::{Flight, Packet};
use kfab_core::mem::Landing;
use kfab_core::spi::{DownReason, Rma, RmaToken};
use std::collections::{BTreeMap, VecDeque};

/// How far an end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Asked, not answered.
    Connecting,
    /// Frames flow.
    Up,
    /// Closed from here; waits for the peer's goodbye.
    Closing,
    /// Its `Down` waits in the inbox.
    Ended,
}

/// What a port has to report of a connection, in order.
#[derive(Debug)]
pub(crate) enum Item {
    Up,
    Incoming,
    Frame(Packet),
    Down(DownReason, String),
}

/// The body of the last frame reported.
#[derive(Debug, Default)]
pub(crate) enum Waiting {
    #[default]
    Nothing,
    /// To be taken.
    Body(Packet),
    /// Taken, ends later.
    Taking(Packet, Option<Landing>),
}

/// A one-sided operation under way.
#[derive(Debug)]
pub(crate) struct PendingRma {
    pub(crate) token: RmaToken,
    pub(crate) rma: Rma,
}

#[derive(Debug)]
pub(crate) struct Half {
    pub(crate) port: u64,
    pub(crate) place: Place,
    pub(crate) peer_place: Place,
    /// The other end's name; 0 while connecting.
    pub(crate) peer: u64,
    pub(crate) dialed: bool,
    pub(crate) born: u64,
    pub(crate) phase: Phase,
    /// Frames that wait for a flush.
    pub(crate) staged: Vec<Packet>,
    /// Frames and bytes accepted and not yet consumed.
    pub(crate) out_frames: usize,
    pub(crate) out_bytes: usize,
    pub(crate) wants_writable: bool,
    /// The latest arrival of what was sent.
    pub(crate) last_due: u64,
    /// What could not get through and waits for the path.
    pub(crate) held: VecDeque<Flight>,
    /// Counts the times that `held` became empty: a timeout of an earlier time is void.
    pub(crate) held_epoch: u64,
    pub(crate) inbox: VecDeque<Item>,
    pub(crate) waiting: Waiting,
    /// The connection broke: what is not yet taken may be lost.
    pub(crate) broke: bool,
    pub(crate) in_ready: bool,
    pub(crate) fin_tries: u32,
    pub(crate) rma: BTreeMap<u64, PendingRma>,
}

impl Half {
    pub(crate) fn new(
        port: u64,
        place: Place,
        peer_place: Place,
        peer: u64,
        dialed: bool,
        born: u64,
    ) -> Half {
        Half {
            port,
            place,
            peer_place,
            peer,
            dialed,
            born,
            phase: if dialed { Phase::Connecting } else { Phase::Up },
            staged: Vec::new(),
            out_frames: 0,
            out_bytes: 0,
            wants_writable: false,
            last_due: 0,
            held: VecDeque::new(),
            held_epoch: 0,
            inbox: VecDeque::new(),
            waiting: Waiting::Nothing,
            broke: false,
            in_ready: false,
            fin_tries: 0,
            rma: BTreeMap::new(),
        }
    }

    /// `true` while frames may arrive.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Up | Phase::Closing)
    }

    /// `true` if a poll would bring something.
    pub(crate) fn has_work(&self) -> bool {
        !self.inbox.is_empty() && matches!(self.waiting, Waiting::Nothing)
    }
}
