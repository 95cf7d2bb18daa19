//! Matching: receives that wait for a message, and messages that wait for a receive. First come, first served on both sides.
//!
//! Both queues are bounded: receives by `Limits::max_ops`, messages by the credits of each peer.

use crate::message::Data;
use crate::message::{OpId, Peeked, PeerId, Want};
use crate::wire::Rts;
use kfab_core::mem::Buffer;
use std::collections::VecDeque;

/// The bytes of an arrived message, or the promise of them.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// Here.
    Whole(Data),
    /// At the sender.
    Promise { rts: Rts },
}

/// A message that waits for a receive.
#[derive(Debug)]
pub(crate) struct Unexpected {
    pub(crate) from: PeerId,
    pub(crate) tag: Option<u64>,
    pub(crate) what: Arrived,
    pub(crate) cost: Cost,
    /// See [`Message::nth`](crate::Message::nth); 0 until it is offered to receives for the first time.
    pub(crate) nth: u64,
}

/// Credit units that something holds while it waits, and whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) units: u32,
    /// Its sender's, who gets them back when it is received. Else the sender is gone, and the machine counts them.
    owed: bool,
}

impl Cost {
    /// Nobody's: what it was has been received before.
    pub(crate) const NONE: Cost = Cost { units: 0, owed: false };

    #[inline(always)]
    pub(crate) fn owed(units: u32) -> Cost {
        Cost { units, owed: true }
    }

    #[inline(always)]
    pub(crate) fn is_owed(self) -> bool {
        self.owed
    }

    /// The sender is gone; how many units are nobody's now that were somebody's.
    pub(crate) fn is_left(&mut self) -> u32 {
        if std::mem::take(&mut self.owed) { self.units } else { 0 }
    }
}

impl Unexpected {
    pub(crate) fn len(&self) -> u64 {
        match &self.what {
            Arrived::Whole(Data::Inline(i)) => i.as_slice().len() as u64,
            Arrived::Whole(Data::Buffer { len, .. }) => *len as u64,
            Arrived::Promise { rts } => rts.len(),
        }
    }
}

/// A receive that waits.
#[derive(Debug)]
pub(crate) struct Receive {
    pub(crate) op: OpId,
    pub(crate) want: Want,
    /// The buffer it brought.
    pub(crate) into: Option<Buffer>,
}

/// Receives that wait, in order. The first is at hand, most often the only one, and is written and read where it lies: a receive is
/// many small fields, and to move it whole takes longer than all else that is done with it.
#[derive(Debug)]
struct Posted {
    /// Nobody's, without a buffer: none waits.
    first: Receive,
    /// Empty if there is no first.
    rest: VecDeque<Receive>,
}

impl Posted {
    const EMPTY: Posted =
        Posted { first: Receive { op: OpId::NOBODY, want: Want::ANY, into: None }, rest: VecDeque::new() };

    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.first.op == OpId::NOBODY
    }

    /// One more, with the buffer that lies in `into`.
    #[inline(always)]
    fn push(&mut self, op: OpId, want: &Want, into: &mut Option<Buffer>) {
        if !self.is_empty() {
            return self.push_behind(op, want, into);
        }
        let first = &mut self.first;
        first.op = op;
        first.want.tag = want.tag;
        first.want.from = want.from;
        // Looked at before it is moved: mostly there is none.
        if into.is_some() {
            first.into = into.take();
        }
    }

    #[inline(never)]
    fn push_behind(&mut self, op: OpId, want: &Want, into: &mut Option<Buffer>) {
        self.rest.push_back(Receive { op, want: *want, into: into.take() });
    }

    fn push_first(&mut self, one: Receive) {
        let was_empty = self.is_empty();
        let second = std::mem::replace(&mut self.first, one);
        if !was_empty {
            self.rest.push_front(second);
        }
    }

    /// Ends the first, whose buffer has been taken.
    #[inline(always)]
    fn end_first(&mut self) {
        if self.rest.is_empty() && self.first.into.is_none() {
            self.first.op = OpId::NOBODY;
        } else {
            self.pop();
        }
    }

    #[inline(never)]
    fn pop(&mut self) -> Option<Receive> {
        if self.is_empty() {
            return None;
        }
        let next = self.rest.pop_front().unwrap_or(Posted::EMPTY.first);
        Some(std::mem::replace(&mut self.first, next))
    }

    /// Takes out the first that fits.
    #[inline]
    fn take(&mut self, fits: impl Fn(&Receive) -> bool) -> Option<Receive> {
        if self.is_empty() {
            return None;
        }
        if fits(&self.first) {
            return self.pop();
        }
        let at = self.rest.iter().position(fits)?;
        self.rest.remove(at)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Receive> {
        let first = (self.first.op != OpId::NOBODY).then_some(&mut self.first);
        first.into_iter().chain(&mut self.rest)
    }

    fn len(&self) -> usize {
        usize::from(!self.is_empty()) + self.rest.len()
    }
}

/// The two queues, for untagged and for tagged messages.
#[derive(Debug)]
pub(crate) struct Matcher {
    posted: [Posted; 2],
    unexpected: [VecDeque<Unexpected>; 2],
    /// Receives that have no buffer yet. They get only what has its memory: messages that another receive gave back.
    dry: VecDeque<(OpId, Want)>,
}

impl Default for Matcher {
    fn default() -> Matcher {
        Matcher {
            posted: [Posted::EMPTY, Posted::EMPTY],
            unexpected: Default::default(),
            dry: VecDeque::new(),
        }
    }
}

#[inline]
fn space(tagged: bool) -> usize {
    usize::from(tagged)
}

impl Matcher {
    /// The first waiting message that `want` accepts.
    #[inline]
    pub(crate) fn take_unexpected(&mut self, want: &Want) -> Option<Unexpected> {
        self.take_unexpected_if(want, |_| true)
    }

    /// The same, only if that one fits.
    #[inline]
    pub(crate) fn take_unexpected_if(
        &mut self,
        want: &Want,
        fits: impl Fn(&Unexpected) -> bool,
    ) -> Option<Unexpected> {
        let q = &mut self.unexpected[space(want.tag.is_some())];
        if q.is_empty() {
            return None;
        }
        let at = q.iter().position(|u| want.accepts(u.from, u.tag))?;
        if !fits(&q[at]) {
            return None;
        }
        if at == 0 { q.pop_front() } else { q.remove(at) }
    }

    /// The same, looked at only.
    pub(crate) fn peek(&self, want: &Want) -> Option<Peeked> {
        let q = &self.unexpected[space(want.tag.is_some())];
        let u = q.iter().find(|u| want.accepts(u.from, u.tag))?;
        Some(Peeked { from: u.from, tag: u.tag, len: u.len() })
    }

    /// A receive waits, with the buffer that lies in `into`.
    #[inline(always)]
    pub(crate) fn post(&mut self, op: OpId, want: &Want, into: &mut Option<Buffer>) {
        self.posted[space(want.tag.is_some())].push(op, want, into);
    }

    /// A receive that had been matched waits again, before all others: its message broke on the way.
    pub(crate) fn repost(&mut self, r: Receive) {
        self.posted[space(r.want.tag.is_some())].push_first(r);
    }

    /// The first waiting receive that accepts this message.
    #[inline(always)]
    pub(crate) fn take_posted(&mut self, from: PeerId, tag: Option<u64>) -> Option<Receive> {
        self.posted[space(tag.is_some())].take(|r| r.want.accepts(from, tag))
    }

    /// The place of a receive's buffer, if it is the first that waits for messages with or without a tag, and accepts this one.
    #[inline(always)]
    pub(crate) fn first(&mut self, op: OpId, from: PeerId, tag: Option<u64>) -> Option<&mut Option<Buffer>> {
        let first = &mut self.posted[space(tag.is_some())].first;
        (first.op == op && first.want.accepts(from, tag)).then_some(&mut first.into)
    }

    /// The first receive that waits is served; whom it wanted to hear. Only after [`Matcher::first`] said so.
    #[inline(always)]
    pub(crate) fn end_first(&mut self, tag: Option<u64>) -> Option<PeerId> {
        let posted = &mut self.posted[space(tag.is_some())];
        let from = posted.first.want.from;
        posted.end_first();
        from
    }

    /// `true` if no message waits for a receive like this.
    #[inline(always)]
    pub(crate) fn none_waits(&self, want: &Want) -> bool {
        self.unexpected[space(want.tag.is_some())].is_empty()
    }

    /// `true` if neither a receive like this nor a message for one waits.
    #[inline(always)]
    pub(crate) fn is_idle(&self, want: &Want) -> bool {
        let s = space(want.tag.is_some());
        self.posted[s].is_empty() && self.unexpected[s].is_empty()
    }

    /// A receive is withdrawn; `false` if it was matched already.
    pub(crate) fn withdraw(&mut self, op: OpId) -> bool {
        self.end_dry(op) || self.posted.iter_mut().any(|q| q.take(|r| r.op == op).is_some())
    }

    /// A receive that will have its buffer later. Gives a message that waits for it and brings its own memory, if there is one.
    pub(crate) fn post_dry(&mut self, op: OpId, want: Want) -> Option<Unexpected> {
        let given_back = |u: &Unexpected| !u.cost.is_owed() && matches!(u.what, Arrived::Whole(_));
        let u = self.take_unexpected_if(&want, given_back);
        if u.is_none() {
            self.dry.push_back((op, want));
        }
        u
    }

    /// The first of those that wants this message.
    pub(crate) fn take_dry(&mut self, from: PeerId, tag: Option<u64>) -> Option<OpId> {
        let at = self.dry.iter().position(|(_, want)| want.accepts(from, tag))?;
        self.dry.remove(at).map(|(op, _)| op)
    }

    /// It has its buffer, or is over; `true` if it was one.
    pub(crate) fn end_dry(&mut self, op: OpId) -> bool {
        let at = self.dry.iter().position(|(o, _)| *o == op);
        at.and_then(|at| self.dry.remove(at)).is_some()
    }

    /// A message waits, behind all that came before it: at the end, or where it was if its receive gave it back.
    #[inline]
    pub(crate) fn push(&mut self, u: Unexpected) {
        let q = &mut self.unexpected[space(u.tag.is_some())];
        if q.back().is_none_or(|last| last.nth < u.nth) {
            return q.push_back(u);
        }
        let at = q.partition_point(|other| other.nth < u.nth);
        q.insert(at, u);
    }

    /// Forgets the promises of a peer that is lost; whole messages stay, they have arrived. Their credit is nobody's any more: what
    /// comes after the peer has credit of its own. How many units.
    pub(crate) fn forget_peer(&mut self, peer: PeerId) -> u64 {
        for q in &mut self.unexpected {
            q.retain(|u| u.from != peer || matches!(u.what, Arrived::Whole(_)));
        }
        let left = self.unexpected.iter_mut().flatten().filter(|u| u.from == peer);
        left.map(|u| u64::from(u.cost.is_left())).sum()
    }

    /// A peer has got another name.
    pub(crate) fn rename_peer(&mut self, old: PeerId, new: PeerId) {
        self.unexpected.iter_mut().flatten().filter(|u| u.from == old).for_each(|u| u.from = new);
        let dry = self.dry.iter_mut().filter(|(_, want)| want.from == Some(old));
        dry.for_each(|(_, want)| want.from = Some(new));
        self.posted
            .iter_mut()
            .flat_map(Posted::iter_mut)
            .filter(|r| r.want.from == Some(old))
            .for_each(|r| r.want.from = Some(new));
    }

    /// Receives that wait, and messages that wait.
    pub(crate) fn depths(&self) -> (usize, usize) {
        (self.posted.iter().map(Posted::len).sum(), self.unexpected.iter().map(VecDeque::len).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfab_core::spi::Inline;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Arrive(u32, Option<u64>),
        Recv(Option<u32>, Option<(u64, u64)>),
        Withdraw(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let tag = proptest::option::of(0u64..4);
        let one = prop_oneof![
            (0u32..3, tag).prop_map(|(p, t)| Step::Arrive(p, t)),
            (proptest::option::of(0u32..3), proptest::option::of((0u64..4, 0u64..4)))
                .prop_map(|(p, t)| Step::Recv(p, t)),
            (0usize..8).prop_map(Step::Withdraw),
        ];
        proptest::collection::vec(one, 0..200)
    }

    fn peer(i: u32) -> PeerId {
        PeerId { index: i, generation: 0 }
    }

    proptest! {
        /// The oracle: plain lists, searched from the front.
        #[test]
        fn agrees_with_plain_lists(steps in steps()) {
            let mut m = Matcher::default();
            let mut posted: Vec<(u32, Want)> = Vec::new();
            let mut waiting: Vec<(u32, PeerId, Option<u64>)> = Vec::new();
            let mut next = 0u32;
            for s in steps {
                next += 1;
                match s {
                    Step::Arrive(p, tag) => {
                        let want = posted.iter().position(|(_, w)| w.accepts(peer(p), tag)).map(|i| posted.remove(i).0);
                        let got = m.take_posted(peer(p), tag).map(|r| r.op.index() as u32);
                        prop_assert_eq!(got, want);
                        if got.is_none() {
                            let data = Inline::new(&next.to_le_bytes()).unwrap();
                            m.push(Unexpected { from: peer(p), tag, what: Arrived::Whole(Data::Inline(data)), cost: Cost::owed(1), nth: u64::from(next) });
                            waiting.push((next, peer(p), tag));
                        }
                    }
                    Step::Recv(p, tag) => {
                        let w = Want { tag, from: p.map(peer) };
                        let want = waiting.iter().position(|(_, f, t)| w.accepts(*f, *t)).map(|i| waiting.remove(i).0);
                        let got = m.take_unexpected(&w).map(|u| match u.what {
                            Arrived::Whole(Data::Inline(i)) => u32::from_le_bytes(i.as_slice().try_into().unwrap()),
                            _ => unreachable!(),
                        });
                        prop_assert_eq!(got, want);
                        if got.is_none() {
                            m.post(OpId::new(next, 1), &w, &mut None);
                            posted.push((next, w));
                        }
                    }
                    Step::Withdraw(i) => {
                        let id = posted.get(i).map(|(o, _)| *o);
                        if let Some(id) = id {
                            let name = OpId::new(id, 1);
                            prop_assert!(m.withdraw(name));
                            posted.remove(i);
                        } else {
                            let nobody = OpId::new(0, 9);
                            prop_assert!(!m.withdraw(nobody));
                        }
                    }
                }
                prop_assert_eq!(m.depths(), (posted.len(), waiting.len()));
            }
        }
    }
}
