//! The table of connections: a name is an index and a generation, so a name is never used again.

use crate::greet::{End, Greeting};
use crate::link::Link;
use kfab_core::spi::Conn;

/// Bits of an index; above them are the kind of an epoll name and the generation.
const INDEX_BITS: u32 = 24;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;

/// A connection being made.
pub(crate) struct Attempt {
    pub(crate) greeting: Greeting,
    /// How long it has been waited for.
    pub(crate) patience: Patience,
    /// When to dial again; 0: now.
    pub(crate) again_ns: u64,
    /// `true` if the caller knows this connection (it asked for it).
    pub(crate) known: bool,
    /// The caller tried to post already: tell it when there is room.
    pub(crate) refused: bool,
    /// It has failed; to be reported at the next poll.
    pub(crate) failed: Option<End>,
}

/// The time that was spent waiting for somebody, by the caller's clock. Only so much of the time between two looks counts:
/// what a port spends on other greetings (proofs of a key take a while, and a storm brings many) or without a processor is no
/// fault of the peer's.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    waited_ns: u64,
    looked_ns: Option<u64>,
}

impl Patience {
    /// The most that counts between two looks, as a part of the limit.
    const STEPS: u64 = 8;

    /// A look at the clock: `true` once it has been waited for `limit_ns`.
    pub(crate) fn is_over(&mut self, now_ns: u64, limit_ns: u64) -> bool {
        let since = self.looked_ns.map_or(0, |at| now_ns.saturating_sub(at));
        self.waited_ns = self.waited_ns.saturating_add(since.min(limit_ns / Self::STEPS));
        self.looked_ns = Some(now_ns);
        self.waited_ns >= limit_ns
    }

    /// When to look again. `None`: at the next chance.
    pub(crate) fn look_at_ns(&self, limit_ns: u64) -> Option<u64> {
        let left = limit_ns.saturating_sub(self.waited_ns).min(limit_ns / Self::STEPS);
        self.looked_ns.map(|at| at.saturating_add(left.max(1)))
    }
}

pub(crate) enum State {
    Free,
    Attempt(Box<Attempt>),
    Up(Box<Link>),
}

struct Entry {
    generation: u32,
    state: State,
}

/// All connections of a port.
#[derive(Default)]
pub(crate) struct Conns {
    entries: Vec<Entry>,
    free: Vec<u32>,
    len: usize,
}

fn name(index: u32, generation: u32) -> Conn {
    Conn(u64::from(generation) << 32 | u64::from(index))
}

impl Conns {
    /// The most connections a table can name.
    pub(crate) const MAX: usize = 1 << INDEX_BITS;

    /// Takes a connection in; the caller keeps to [`Conns::MAX`].
    pub(crate) fn insert(&mut self, state: State) -> Conn {
        self.len += 1;
        if let Some(i) = self.free.pop() {
            let e = &mut self.entries[i as usize];
            e.state = state;
            return name(i, e.generation);
        }
        self.entries.push(Entry { generation: 1, state });
        name(self.entries.len() as u32 - 1, 1)
    }

    pub(crate) fn remove(&mut self, conn: Conn) -> State {
        let Some(e) = self.entry(conn) else { return State::Free };
        let state = std::mem::replace(&mut e.state, State::Free);
        e.generation = e.generation.wrapping_add(1);
        if !matches!(state, State::Free) {
            self.len -= 1;
            self.free.push((conn.0 & INDEX_MASK) as u32);
        }
        state
    }

    #[inline(always)]
    fn entry(&mut self, conn: Conn) -> Option<&mut Entry> {
        let e = self.entries.get_mut((conn.0 & INDEX_MASK) as usize)?;
        (u64::from(e.generation) == conn.0 >> 32).then_some(e)
    }

    /// What a name stands for; `Free` for one that is gone.
    pub(crate) fn state(&mut self, conn: Conn) -> Option<&mut State> {
        self.entry(conn).map(|e| &mut e.state).filter(|s| !matches!(s, State::Free))
    }

    /// A connection that is up.
    #[inline(always)]
    pub(crate) fn link(&mut self, conn: Conn) -> Option<&mut Link> {
        match &mut self.entry(conn)?.state {
            State::Up(l) => Some(l),
            _ => None,
        }
    }

    /// Changes the state of a connection.
    pub(crate) fn set(&mut self, conn: Conn, state: State) {
        if let Some(e) = self.entry(conn) {
            e.state = state;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All that are up.
    pub(crate) fn links(&mut self) -> impl Iterator<Item = (Conn, &mut Link)> {
        self.entries.iter_mut().enumerate().filter_map(|(i, e)| match &mut e.state {
            State::Up(l) => Some((name(i as u32, e.generation), &mut **l)),
            _ => None,
        })
    }
}

/// What an epoll name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Listener,
    Doorbell,
    Socket(Conn),
    Process(Conn),
}

/// The kind of a name, between index and generation.
const PROCESS: u64 = 1 << INDEX_BITS;

impl Source {
    pub(crate) fn to_u64(self) -> u64 {
        match self {
            Source::Listener => u64::MAX,
            Source::Doorbell => u64::MAX - 1,
            Source::Socket(c) => c.0,
            Source::Process(c) => c.0 | PROCESS,
        }
    }

    pub(crate) fn from_u64(n: u64) -> Source {
        match n {
            u64::MAX => Source::Listener,
            n if n == u64::MAX - 1 => Source::Doorbell,
            n if n & PROCESS != 0 => Source::Process(Conn(n & !PROCESS)),
            n => Source::Socket(Conn(n)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_waiting_only() {
        let mut p = Patience::default();
        assert_eq!(p.look_at_ns(800), None);
        assert!(!p.is_over(1_000, 800));
        // Away for long: an eighth counts.
        assert!(!p.is_over(1_000_000, 800));
        assert_eq!(p.look_at_ns(800), Some(1_000_100));
        for i in 1..7 {
            assert!(!p.is_over(1_000_000 + i * 100, 800), "{i}");
        }
        assert_eq!(p.look_at_ns(800), Some(1_000_700));
        assert!(p.is_over(1_000_700, 800));
    }

    #[test]
    fn patience_ends_on_time_where_it_is_looked_at_often() {
        let (mut p, mut now) = (Patience::default(), 5);
        while !p.is_over(now, 800) {
            now = p.look_at_ns(800).unwrap().min(now + 30);
        }
        assert_eq!(now, 805);
    }
}
