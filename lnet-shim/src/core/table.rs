//! The match entries of one portal, in the order in which they are tried.
//!
//! The first entry fixes the portal's kind for ever. A *unique* portal hashes by peer and bits. A *wildcard* portal has one
//! list of entries with ignore bits, tried first, and 256 heads by the low eight match bits for the rest.

use std::collections::{HashMap, VecDeque};

use super::{MeHandle, MeParams, Position};
use crate::nid::ProcessId;

pub(super) enum Table {
    /// No entry yet.
    Unset,
    Unique(HashMap<(u64, ProcessId), VecDeque<MeHandle>>),
    Wildcard {
        ignoring: VecDeque<MeHandle>,
        heads: Vec<VecDeque<MeHandle>>,
    },
}

impl Table {
    /// Adds an entry; `false` if the portal is of the other kind.
    pub(super) fn insert(&mut self, me: MeHandle, params: &MeParams) -> bool {
        if matches!(self, Self::Unset) {
            *self = if params.is_unique() {
                Self::Unique(HashMap::new())
            } else {
                Self::Wildcard { ignoring: VecDeque::new(), heads: vec![VecDeque::new(); 256] }
            };
        }
        if params.is_unique() != matches!(self, Self::Unique(_)) {
            return false;
        }
        if let Some(list) = self.list_mut(params) {
            match params.position {
                Position::Before => list.push_front(me),
                Position::After => list.push_back(me),
            }
        }
        true
    }

    pub(super) fn remove(&mut self, me: MeHandle, params: &MeParams) {
        if let Some(list) = self.list_mut(params) {
            list.retain(|m| *m != me);
        }
        if let Self::Unique(map) = self {
            let key = (params.match_bits, params.match_id);
            if map.get(&key).is_some_and(VecDeque::is_empty) {
                map.remove(&key);
            }
        }
    }

    /// The list an entry belongs to.
    fn list_mut(&mut self, params: &MeParams) -> Option<&mut VecDeque<MeHandle>> {
        match self {
            Self::Unset => None,
            Self::Unique(map) => Some(map.entry((params.match_bits, params.match_id)).or_default()),
            Self::Wildcard { ignoring, .. } if params.ignore_bits != 0 => Some(ignoring),
            Self::Wildcard { heads, .. } => heads.get_mut((params.match_bits & 0xff) as usize),
        }
    }

    /// Entries that may match, in order. `names` are the names the initiator goes by.
    pub(super) fn candidates(&self, bits: u64, names: [ProcessId; 2]) -> Vec<&VecDeque<MeHandle>> {
        match self {
            Self::Unset => Vec::new(),
            Self::Unique(map) => {
                let second = (names[1] != names[0]).then_some(names[1]);
                let keys = std::iter::once(names[0]).chain(second);
                keys.filter_map(|id| map.get(&(bits, id))).collect()
            }
            Self::Wildcard { ignoring, heads } => vec![ignoring, &heads[(bits & 0xff) as usize]],
        }
    }
}
