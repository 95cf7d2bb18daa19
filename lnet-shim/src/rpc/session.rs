//! What a server remembers of a client: one slot for each call that may be under way, with the reply of the slot's last call
//! until the next call shows that the client has it (as NFS 4.1's sessions and eRPC's do). So the cache is bounded by the
//! slots, nothing in it is ever evicted too early, and no call runs twice.

use super::body::Body;
use super::wire::{CallId, Status};

/// How a call ended.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    pub(crate) arg: u32,
    pub(crate) body: Body,
}

impl Answer {
    pub(crate) fn empty(status: Status) -> Answer {
        Answer { status, arg: 0, body: Body::EMPTY }
    }
}

#[derive(Debug)]
enum State {
    /// Sent back with "retry after", or never used: no call of this number is begun any more. A copy of the packet that comes late must
    /// not run what the client is about to send again, under the next number.
    Refused,
    Running,
    Done(Answer),
    /// Done, and the client has said that it has the answer.
    Known,
}

#[derive(Debug)]
struct Slot {
    seq: u64,
    state: State,
}

impl Slot {
    #[inline]
    fn runs(&self, id: CallId) -> bool {
        self.seq == id.seq && matches!(self.state, State::Running)
    }
}

/// What to do with a call that has arrived.
#[derive(Debug)]
pub(crate) enum Admission {
    /// Run it.
    New {
        /// The slot's earlier call still runs, and nobody wants its answer any more.
        abandoned: Option<CallId>,
    },
    /// It runs already: the resend has nothing to tell.
    Running,
    /// It ran: the same answer again.
    Again(Answer),
    /// An old packet, late.
    Stale,
    /// No such slot.
    NoSlot,
    /// It is not begun and never will be: sent back before, or the cache is full of large replies that the client has not confirmed.
    Refused,
}

/// One client's slots.
#[derive(Debug)]
pub(crate) struct Session {
    slots: Vec<Slot>,
    slots_max: u16,
    cached: usize,
    cache_max: usize,
    /// When the client was last heard, server time.
    pub(crate) heard: u64,
}

impl Session {
    pub(crate) fn new(slots_max: u16, cache_max: usize, now: u64) -> Session {
        Session { slots: Vec::new(), slots_max, cached: 0, cache_max, heard: now }
    }

    /// A call arrives.
    #[inline]
    pub(crate) fn admit(&mut self, id: CallId) -> Admission {
        let at = usize::from(id.slot);
        if at >= self.slots.len() {
            if id.slot >= self.slots_max {
                return Admission::NoSlot;
            }
            self.slots.resize_with(at + 1, || Slot { seq: 0, state: State::Refused });
        }
        let slot = &mut self.slots[at];
        match (id.seq.cmp(&slot.seq), &slot.state) {
            (std::cmp::Ordering::Less, _) | (std::cmp::Ordering::Equal, State::Known) => {
                return Admission::Stale;
            }
            (std::cmp::Ordering::Equal, State::Running) => return Admission::Running,
            (std::cmp::Ordering::Equal, State::Done(answer)) => return Admission::Again(answer.clone()),
            (std::cmp::Ordering::Equal, State::Refused) => return Admission::Refused,
            _ => {}
        }
        let running = matches!(slot.state, State::Running);
        let abandoned = running.then_some(CallId { slot: id.slot, seq: slot.seq });
        if let State::Done(answer) = &slot.state {
            self.cached -= answer.body.len();
        }
        *slot = Slot { seq: id.seq, state: State::Refused };
        if self.cached > self.cache_max {
            return Admission::Refused;
        }
        slot.state = State::Running;
        Admission::New { abandoned }
    }

    /// A call has ended: its answer, which is kept from now on. `None` if nobody waits for it any more.
    #[inline]
    pub(crate) fn finish(&mut self, id: CallId, answer: Answer) -> Option<&Answer> {
        let slot = self.slots.get_mut(usize::from(id.slot)).filter(|s| s.runs(id))?;
        self.cached += answer.body.len();
        slot.state = State::Done(answer);
        match &slot.state {
            State::Done(answer) => Some(answer),
            _ => None,
        }
    }

    /// A call is not begun after all.
    pub(crate) fn refuse(&mut self, id: CallId) -> bool {
        let Some(slot) = self.running(id) else { return false };
        slot.state = State::Refused;
        true
    }

    /// The client has the answer.
    pub(crate) fn known(&mut self, id: CallId) {
        let slot = self.slots.get_mut(usize::from(id.slot)).filter(|s| s.seq == id.seq);
        if let Some(Slot { state, .. }) = slot
            && let State::Done(answer) = state
        {
            self.cached -= answer.body.len();
            *state = State::Known;
        }
    }

    /// A call runs and its answer is wanted.
    pub(crate) fn is_running(&mut self, id: CallId) -> bool {
        self.running(id).is_some()
    }

    /// Calls that run.
    pub(crate) fn running_calls(&self) -> impl Iterator<Item = CallId> + '_ {
        let running = self.slots.iter().enumerate().filter(|(_, s)| matches!(s.state, State::Running));
        running.map(|(at, s)| CallId { slot: at as u16, seq: s.seq })
    }

    /// Bytes of replies kept.
    pub(crate) fn cached(&self) -> usize {
        self.cached
    }

    #[inline]
    fn running(&mut self, id: CallId) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(id.slot)).filter(|s| s.runs(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(slot: u16, seq: u64) -> CallId {
        CallId { slot, seq }
    }

    fn ok(bytes: &[u8]) -> Answer {
        Answer { status: Status::Ok, arg: 0, body: Body::copy(bytes) }
    }

    #[test]
    fn a_call_runs_once_and_is_answered_as_often_as_asked() {
        let mut s = Session::new(4, 1000, 0);
        assert!(matches!(s.admit(id(1, 1)), Admission::New { abandoned: None }));
        assert!(matches!(s.admit(id(1, 1)), Admission::Running));
        assert!(s.finish(id(1, 1), ok(b"yes")).is_some_and(|a| &*a.body == b"yes"));
        assert!(s.finish(id(1, 1), ok(b"no")).is_none());
        for _ in 0..3 {
            assert!(matches!(s.admit(id(1, 1)), Admission::Again(a) if &*a.body == b"yes"));
        }
        s.known(id(1, 1));
        assert!(matches!(s.admit(id(1, 1)), Admission::Stale));
        assert!(matches!(s.admit(id(1, 2)), Admission::New { abandoned: None }));
        assert!(matches!(s.admit(id(1, 3)), Admission::New { abandoned: Some(old) } if old == id(1, 2)));
        assert!(s.finish(id(1, 2), ok(b"late")).is_none());
        assert!(matches!(s.admit(id(1, 2)), Admission::Stale));
        assert!(matches!(s.admit(id(4, 1)), Admission::NoSlot));
    }

    #[test]
    fn a_call_that_was_not_begun_comes_again_under_another_number() {
        let mut s = Session::new(1, 1000, 0);
        assert!(matches!(s.admit(id(0, 5)), Admission::New { .. }));
        assert!(s.refuse(id(0, 5)));
        assert!(matches!(s.admit(id(0, 5)), Admission::Refused));
        assert!(matches!(s.admit(id(0, 6)), Admission::New { abandoned: None }));
    }

    #[test]
    fn large_replies_are_bounded_and_make_room_when_known() {
        let mut s = Session::new(4, 100, 0);
        for slot in 0..2 {
            assert!(matches!(s.admit(id(slot, 1)), Admission::New { .. }));
            s.finish(id(slot, 1), ok(&[7; 80]));
        }
        assert_eq!(s.cached(), 160);
        assert!(matches!(s.admit(id(2, 1)), Admission::Refused));
        s.known(id(0, 1));
        assert!(matches!(s.admit(id(2, 2)), Admission::New { .. }));
        assert!(matches!(s.admit(id(1, 2)), Admission::New { .. }));
        assert_eq!(s.cached(), 0);
    }

    proptest! {
        /// Whatever order packets come in, and however often: each call begins at most once, and not after it was refused.
        #[test]
        fn never_twice(packets in proptest::collection::vec((0u16..3, 1u64..6, any::<bool>(), 0..4), 0..200)) {
            let mut s = Session::new(3, 1 << 20, 0);
            let mut begun = std::collections::HashSet::new();
            for (slot, seq, finish, refuse) in packets {
                let id = id(slot, seq);
                if let Admission::New { .. } = s.admit(id) {
                    prop_assert!(begun.insert(id), "{id:?} began twice");
                    if refuse == 0 {
                        prop_assert!(s.refuse(id));
                    }
                }
                if finish {
                    s.finish(id, ok(&seq.to_le_bytes()));
                }
                if let Admission::Again(a) = s.admit(id) {
                    prop_assert_eq!(&*a.body, &seq.to_le_bytes());
                }
            }
        }
    }
}
