//! The ring under loom (`RUSTFLAGS="--cfg loom" cargo test -p kfab-core --release loom_`) and against a naive queue.

use super::primitive::Block;
#[cfg(not(loom))]
use super::shape::Consumed;
use super::*;
use std::ptr::NonNull;

/// A ring in ordinary memory, made of the very types that lie in shared memory.
struct Memory {
    words: Box<Words>,
    lines: Box<[Line]>,
    data: Box<[Block]>,
    shape: Shape,
}

impl Memory {
    fn ends(&mut self) -> (Producer, Consumer) {
        let data = NonNull::new(self.data.as_mut_ptr()).unwrap();
        let lines = NonNull::new(self.lines.as_mut_ptr()).unwrap();
        let words = NonNull::from(&mut *self.words);
        let parts = Parts { words, lines, data, shape: self.shape };
        // SAFETY: the boxes outlive the ends in each test below, and hold as many lines and blocks as the shape says; one
        // producer and one consumer are made.
        unsafe { (Producer::new(parts), Consumer::new(parts)) }
    }
}

#[cfg(not(loom))]
mod plain {
    use super::*;
    use crate::mem::{Buffer, Landing};
    use crate::spi::{Body, Inline, Next, Small};
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn memory(lines: u32, data: usize, max_body: usize) -> Memory {
        let shape = Shape::new(lines, data, max_body).unwrap();
        // SAFETY: all of these are atomics and plain bytes, for which zeros are a value.
        unsafe {
            Memory {
                words: Box::new(std::mem::zeroed()),
                lines: (0..lines).map(|_| std::mem::zeroed()).collect(),
                data: (0..data / 64).map(|_| [0; 64]).collect(),
                shape,
            }
        }
    }

    fn take(c: &mut Consumer, len: usize) -> Vec<u8> {
        let mut l = Landing::whole(Buffer::adopt(vec![0; len])).unwrap();
        c.take(len, Some(&mut l));
        l.into_buffer().map_or(Vec::new(), |b| b.to_vec())
    }

    #[test]
    fn shapes_outside_the_limits_are_none() {
        assert!(Shape::new(512, 256 << 10, 64 << 10).is_some());
        for (lines, data, body) in
            [(3, 64, 1), (1, 64, 1), (4, 96, 1), (4, 32, 1), (4, 128, 65), (4, 1 << 30, 1 << 24)]
        {
            assert!(Shape::new(lines, data, body).is_none(), "{lines} {data} {body}");
        }
    }

    #[test]
    fn a_shuttle_carries_every_size_and_waits_for_its_place() {
        // SAFETY: atomics and plain bytes, for which zeros are a value.
        let line: &'static mut Line = Box::leak(Box::new(unsafe { std::mem::zeroed() }));
        let at = NonNull::from(line).cast::<u8>();
        // SAFETY: leaked, aligned by its type; one value of each side.
        let (mut a, mut b) = unsafe { (Shuttle::new(at, 0), Shuttle::new(at, 1)) };
        let bytes: Vec<u8> = (1..=40).collect();
        let mut small = Small::EMPTY;
        for len in 0..=40u32 {
            assert!(a.is_here() && !b.is_here() && !b.has_come());
            a.send(u128::from(len) << 64 | 7, &bytes[..len as usize], (1 << 24) + len);
            assert!(!a.is_here() && b.has_come() && !a.has_come());
            assert_eq!(b.take(len + 1, &mut small), Ok(false));
            assert_eq!(b.take(len, &mut small), Ok(true));
            assert_eq!(
                (small.header, small.inline.as_slice()),
                ([7, u64::from(len)], &bytes[..len as usize])
            );
            b.send(9, &bytes[..1], 0);
            assert_eq!(a.take(0, &mut small), Ok(true));
            assert_eq!((small.header, small.inline.as_slice()), ([9, 0], &[1][..]));
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize, usize),
        Take,
        /// The same by `next_small`.
        TakeShortly,
        Publish,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0usize..=40, prop_oneof![Just(0usize), 1usize..=256]).prop_map(|(i, b)| Step::Push(i, b)),
            2 => Just(Step::Take),
            2 => Just(Step::TakeShortly),
            1 => Just(Step::Publish),
        ]
    }

    proptest! {
        /// Whatever the order of calls: what comes out is what went in, and "full" is said only when it is.
        #[test]
        fn like_a_queue(steps in proptest::collection::vec(step(), 1..400)) {
            let mut m = memory(8, 512, 256);
            let (mut p, mut c) = m.ends();
            let mut queue = VecDeque::new();
            let (mut pushed, mut taken, mut published) = (0usize, 0usize, 0usize);
            for (i, s) in steps.into_iter().enumerate() {
                match s {
                    Step::Push(inline, body) => {
                        let bytes: Vec<u8> = (0..body).map(|k| (i + k) as u8).collect();
                        let inline = vec![i as u8; inline];
                        let b = if body == 0 { Body::Empty } else { Body::Borrowed(&bytes) };
                        let went = p.push(&[i as u8; 16], &Inline::new(&inline).unwrap(), &b).unwrap();
                        // Two small frames share a line; a larger one begins its own.
                        let small = inline.len() <= 8 && body == 0;
                        let after = pushed + if small { 1 } else { 2 + pushed % 2 };
                        if went {
                            pushed = after;
                            queue.push_back((i as u8, inline, bytes, after));
                            prop_assert!(pushed - published <= 16);
                        } else if body == 0 {
                            // A line is begun when all of it is free.
                            prop_assert!(after.next_multiple_of(2) - published > 16, "full while there is room");
                        } else {
                            prop_assert!(!queue.is_empty() || taken > published, "full while empty");
                        }
                    }
                    Step::Take => match (c.peek().unwrap(), queue.pop_front()) {
                        (None, None) => prop_assert!(c.is_empty()),
                        (Some(rx), Some((h, inline, body, after))) => {
                            prop_assert_eq!(rx.header, [h; 16]);
                            prop_assert_eq!(rx.inline.as_slice(), &inline[..]);
                            prop_assert_eq!(rx.body_len, body.len());
                            if body.is_empty() { c.advance() } else { prop_assert_eq!(take(&mut c, body.len()), body) }
                            taken = after;
                            prop_assert_eq!(c.consumed() as usize, taken);
                        }
                        (got, want) => prop_assert!(false, "{:?} instead of {:?}", got, want),
                    },
                    Step::TakeShortly => {
                        let mut small = Small::EMPTY;
                        match (c.next_small(&mut small).unwrap(), queue.pop_front()) {
                            (Next::Nothing, None) => {}
                            (Next::Frame, Some((h, inline, body, after))) => {
                                prop_assert_eq!(small.header_bytes(), [h; 16]);
                                prop_assert_eq!(small.inline.as_slice(), &inline[..]);
                                prop_assert_eq!(small.body_len, body.len());
                                if !body.is_empty() { prop_assert_eq!(take(&mut c, body.len()), body) }
                                taken = after;
                            }
                            (got, want) => prop_assert!(false, "{:?} instead of {:?}", got, want),
                        }
                    }
                    Step::Publish => {
                        c.publish(false);
                        published = taken;
                    }
                }
            }
        }

        /// Any bytes anywhere: limits are kept, nothing panics or hangs.
        #[test]
        fn garbage_is_hostile_or_within_limits(
            words in proptest::collection::vec(any::<u32>(), 8),
            stamps in proptest::collection::vec((0u32..20, prop_oneof![any::<u32>(), 0u32..256]), 16),
        ) {
            let mut m = memory(8, 512, 256);
            for (half, (stamp, lens)) in m.lines.iter_mut().flat_map(|l| &mut l.halves).zip(&stamps) {
                half.stamp = (*stamp).into();
                // SAFETY: nobody else has the half.
                unsafe { half.rest.as_ptr().write(shape::Rest { lens: *lens, header: [9; 16], bytes: [8; 8] }) };
            }
            let counters = Consumed { halves: words[0].into(), data: (u64::from(words[1]) << (words[2] & 31)).into() };
            m.words.consumed.0 = counters;
            let (mut p, mut c) = m.ends();
            let mut small = Small::EMPTY;
            for i in 0..40 {
                if i % 2 == 1 && c.next_small(&mut small) == Ok(Next::Frame) {
                    prop_assert!(small.body_len <= 256 && small.inline.as_slice().len() <= 40);
                    if small.body_len > 0 {
                        c.take(small.body_len, None);
                    }
                    continue;
                }
                match c.peek() {
                    Ok(Some(rx)) => {
                        prop_assert!(rx.body_len <= 256 && rx.inline.as_slice().len() <= 40);
                        c.take(rx.body_len, None);
                    }
                    Ok(None) => break,
                    Err(Hostile(_)) => break,
                }
            }
            for i in 0..40usize {
                let body = vec![1; i * 7 % 257];
                if p.push(&[0; 16], &Inline::EMPTY, &Body::Borrowed(&body)).is_err() {
                    break;
                }
            }
            let _ = p.has_room();
        }
    }

    #[test]
    fn positions_wrap_around_2_to_the_32() {
        let mut m = memory(4, 64, 32);
        let (mut p, mut c) = m.ends();
        let start = u32::MAX - 5;
        p.start_at(start);
        c.start_at(start);
        m.words.consumed.0.halves = start.into();
        for (i, h) in m.lines.iter_mut().flat_map(|l| &mut l.halves).enumerate() {
            // As the lap before left them.
            h.stamp = (start - ((start - 1 - i as u32) & 7)).into();
        }
        for i in 0..40u8 {
            assert!(c.peek().unwrap().is_none(), "{i}: old bytes are no news");
            let inline = Inline::new(&[i; 9][..if i % 5 < 3 { 1 } else { 9 }]).unwrap();
            assert!(p.push(&[i; 16], &inline, &Body::Empty).unwrap());
            assert_eq!(c.peek().unwrap().unwrap().header, [i; 16]);
            c.advance();
            c.publish(false);
        }
    }

    #[test]
    fn bytes_of_a_whole_line_are_no_stamp_of_a_half() {
        let mut m = memory(2, 64, 32);
        let (mut p, mut c) = m.ends();
        // Over the second half of the first line lie bytes that are its stamp one lap later.
        let bytes = [0u32, 0, 6, 6, 6, 6, 6, 6, 6, 6].map(u32::to_ne_bytes).concat();
        for inline in [&bytes[..], &bytes, &[]] {
            assert!(p.push(&[1; 16], &Inline::new(inline).unwrap(), &Body::Empty).unwrap());
            assert_eq!(c.peek().unwrap().unwrap().inline.as_slice(), inline);
            c.advance();
            c.publish(false);
        }
        assert!(c.consumed() == 5 && c.is_empty() && c.peek().unwrap().is_none());
    }

    #[test]
    fn half_a_line_is_passed_over_for_a_whole_one_only() {
        let mut m = memory(4, 64, 32);
        let (mut p, mut c) = m.ends();
        assert!(p.push(&[1; 16], &Inline::new(&[1]).unwrap(), &Body::Empty).unwrap());
        let mut small = Small::EMPTY;
        assert_eq!(c.next_small(&mut small), Ok(Next::Frame));
        let half = &mut m.lines[0].halves[1];
        half.stamp = 2.into();
        // SAFETY: nobody else has the half.
        unsafe {
            half.rest.as_ptr().write(shape::Rest { lens: shape::SKIPPED, header: [0; 16], bytes: [0; 8] })
        };
        // Nothing to wait for: else a peer could keep its reader awake for ever.
        assert!(!c.is_empty() && c.next_small(&mut small).is_err() && c.peek().is_err());
    }

    #[test]
    fn counters_ahead_of_what_was_sent_are_hostile() {
        for (halves, data) in [(9, 0), (u32::MAX, 0), (0, 64), (8, 1 << 40)] {
            let mut m = memory(4, 128, 64);
            let (mut p, _) = m.ends();
            for _ in 0..8 {
                assert!(p.push(&[0; 16], &Inline::EMPTY, &Body::Empty).unwrap());
            }
            assert!(!p.push(&[0; 16], &Inline::EMPTY, &Body::Empty).unwrap());
            m.words.consumed.0 = Consumed { halves: halves.into(), data: data.into() };
            assert!(p.push(&[0; 16], &Inline::EMPTY, &Body::Empty).is_err(), "{halves} {data}");
        }
    }

    /// For ThreadSanitizer and for the processor: two real threads, every byte checked.
    #[test]
    fn two_threads_pass_everything() {
        const N: usize = if cfg!(miri) { 200 } else { 100_000 };
        let mut m = memory(16, 4096, 1024);
        let (mut p, mut c) = m.ends();
        let len = |i: usize| if i.is_multiple_of(4) { 1 + i * 131 % 1024 } else { 0 };
        // Half a line, or a whole one whose bytes lie where stamps of halves do.
        let inline = |i: usize| [i.to_le_bytes(); 5].concat()[..if i % 7 < 4 { 8 } else { 40 }].to_vec();
        std::thread::scope(|s| {
            s.spawn(move || {
                let mut i = 0;
                while i < N {
                    let bytes = vec![i as u8; len(i)];
                    let b = if bytes.is_empty() { Body::Empty } else { Body::Borrowed(&bytes) };
                    if p.push(&[i as u8; 16], &Inline::new(&inline(i)).unwrap(), &b).unwrap() {
                        i += 1;
                    } else {
                        std::thread::yield_now();
                    }
                }
            });
            let mut i = 0;
            while i < N {
                match c.peek().unwrap() {
                    None => std::thread::yield_now(),
                    Some(rx) => {
                        assert_eq!((rx.header, rx.inline.as_slice()), ([i as u8; 16], &inline(i)[..]));
                        assert_eq!(rx.body_len, len(i));
                        match rx.body_len {
                            0 => c.advance(),
                            n => assert!(take(&mut c, n).iter().all(|b| *b == i as u8), "body {i}"),
                        }
                        i += 1;
                        c.publish(false);
                    }
                }
            }
        });
    }
}

#[cfg(loom)]
mod model {
    use super::super::primitive::{AtomicU32, AtomicU64, Cell, Ordering, WEAK};
    use super::super::shape::{Consumed, Half, Padded, Rest};
    use super::*;
    use crate::mem::{Buffer, Landing};
    use crate::spi::{Body, Inline, Next, Small};

    fn line() -> Line {
        let half = || Half { stamp: AtomicU32::new(0), rest: Cell::new(Rest::ZERO) };
        Line { halves: [half(), half()] }
    }

    fn memory(lines: u32, data: usize, max_body: usize) -> Memory {
        let words = Words {
            consumed: Padded(Consumed { halves: AtomicU32::new(0), data: AtomicU64::new(0) }),
            armed: Padded(AtomicU32::new(0)),
            wants_room: Padded(AtomicU32::new(0)),
        };
        Memory {
            words: Box::new(words),
            lines: (0..lines).map(|_| line()).collect(),
            data: (0..data / 64).map(|_| Cell::new([0; 64])).collect(),
            shape: Shape::new(lines, data, max_body).unwrap(),
        }
    }

    fn check(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
        let mut b = loom::model::Builder::new();
        b.preemption_bound = Some(preemptions);
        b.check(f);
    }

    /// Frame `n` in a ring of many: every third has half a line, and the rest of one is used and passed over in turn.
    fn inline(n: u8) -> Vec<u8> {
        vec![n; if n % 3 == 1 { 2 } else { 12 }]
    }

    fn read(c: &mut Consumer, want: u8, body: usize) -> bool {
        let Some(rx) = c.peek().unwrap() else { return false };
        assert_eq!((rx.header, rx.inline.as_slice(), rx.body_len), ([want; 16], &inline(want)[..], body));
        if body == 0 {
            c.advance();
        } else {
            let mut l = Landing::whole(Buffer::adopt(vec![0; body])).unwrap();
            c.take(body, Some(&mut l));
            assert_eq!(l.into_buffer().unwrap()[..], vec![want; body][..]);
        }
        true
    }

    fn write(p: &mut Producer, n: u8, body: usize) -> bool {
        let bytes = vec![n; body];
        let b = if body == 0 { Body::Empty } else { Body::Borrowed(&bytes) };
        p.push(&[n; 16], &Inline::new(&inline(n)).unwrap(), &b).unwrap()
    }

    /// `n` frames through a ring of two lines and two blocks: publish, consume, full, wrap of lines and of data.
    fn pass(n: u8, body: usize) {
        let mut m = memory(2, 128, 64);
        let (mut p, mut c) = m.ends();
        let t = loom::thread::spawn(move || {
            for i in 1..=n {
                while !write(&mut p, i, body) {
                    loom::thread::yield_now();
                }
            }
        });
        for i in 1..=n {
            while !read(&mut c, i, body) {
                loom::thread::yield_now();
            }
            c.publish(false);
        }
        t.join().unwrap();
    }

    #[test]
    fn loom_lines_pass_and_wrap() {
        check(3, || pass(4, 0));
    }

    #[test]
    fn loom_bodies_pass_and_wrap() {
        check(3, || pass(4, 3));
    }

    /// The twin: the same with the hand-over orders weakened must be found out.
    #[test]
    #[should_panic]
    fn loom_weak_stamps_are_found() {
        WEAK.set(true);
        check(3, || pass(1, 0));
    }

    #[test]
    #[should_panic]
    fn loom_weak_counters_are_found() {
        check(3, || {
            // Strong stamps, weak counters: set and unset by the consumer around its publishing.
            let mut m = memory(2, 128, 64);
            let (mut p, mut c) = m.ends();
            let t = loom::thread::spawn(move || {
                for i in 1..=3 {
                    while !write(&mut p, i, 0) {
                        loom::thread::yield_now();
                    }
                }
            });
            for i in 1..=3 {
                while !read(&mut c, i, 0) {
                    loom::thread::yield_now();
                }
                c.publish_weakly();
            }
            t.join().unwrap();
        });
    }

    /// The consumer arms, looks and sleeps; the producer pushes and rings. `barriers`: with the fences, or without.
    fn arm_and_ring(barriers: bool) {
        let mut m = memory(2, 128, 64);
        let (mut p, c) = m.ends();
        let bell = loom::sync::Arc::new(AtomicU32::new(0));
        let rung = bell.clone();
        let t = loom::thread::spawn(move || {
            assert!(write(&mut p, 1, 0));
            let ring = if barriers { p.take_bell(true) } else { p.take_bell_weakly() };
            if ring {
                rung.store(1, Ordering::Release);
            }
        });
        c.arm();
        if barriers {
            loom::sync::atomic::fence(Ordering::SeqCst);
        }
        let sleeps = c.is_empty();
        t.join().unwrap();
        assert!(!sleeps || bell.load(Ordering::Acquire) == 1, "asleep, and nobody rang");
    }

    #[test]
    fn loom_no_wake_up_is_lost() {
        check(5, || arm_and_ring(true));
    }

    #[test]
    #[should_panic(expected = "nobody rang")]
    fn loom_a_wake_up_without_barriers_is_lost() {
        check(5, || arm_and_ring(false));
    }

    /// The shuttle goes to and fro, and a frame in the ring that was sent after it is taken after it.
    fn to_and_fro() {
        let shared: &'static mut Line = Box::leak(Box::new(line()));
        let at = NonNull::from(shared).cast::<u8>();
        let mut m = memory(2, 128, 64);
        let (mut p, mut c) = m.ends();
        // SAFETY: the line is leaked, of loom's own type, and has one value of each side.
        let (mut first, mut second) = unsafe { (Shuttle::new(at, 0), Shuttle::new(at, 1)) };
        let t = loom::thread::spawn(move || {
            first.send(1, &[1], p.pushed());
            assert!(!first.is_here() && p.push_bytes(2, &[2]) == Ok(true));
            let mut small = Small::EMPTY;
            while !first.has_come() {
                loom::thread::yield_now();
            }
            assert_eq!(first.take(0, &mut small), Ok(true));
            (small.header, small.inline.as_slice()[0])
        });
        let mut small = Small::EMPTY;
        // Whoever sees the ring's line sees the shuttle that left before it.
        while c.is_empty() {
            loom::thread::yield_now();
        }
        assert!(second.has_come());
        assert_eq!(second.take(c.consumed(), &mut small), Ok(true));
        assert_eq!((small.header[0], small.inline.as_slice()), (1, &[1][..]));
        second.send(3, &[3], 0);
        assert_eq!(c.next_small(&mut small), Ok(Next::Frame));
        assert_eq!((small.header[0], small.inline.as_slice()), (2, &[2][..]));
        assert_eq!(t.join().unwrap(), ([3, 0], 3));
    }

    #[test]
    fn loom_the_shuttle_goes_to_and_fro_in_order() {
        check(3, to_and_fro);
    }

    #[test]
    #[should_panic]
    fn loom_a_weak_shuttle_is_found() {
        WEAK.set(true);
        check(3, to_and_fro);
    }

    /// The producer waits for room, the consumer frees it and rings.
    #[test]
    fn loom_no_room_is_overlooked() {
        check(5, || {
            let mut m = memory(2, 128, 64);
            let (mut p, mut c) = m.ends();
            assert!(write(&mut p, 1, 0) && write(&mut p, 2, 0) && !write(&mut p, 3, 0));
            let t = loom::thread::spawn(move || {
                assert!(read(&mut c, 1, 0) && read(&mut c, 2, 0));
                c.publish(true)
            });
            p.want_room();
            loom::sync::atomic::fence(Ordering::SeqCst);
            let sleeps = !p.has_room().unwrap();
            let rang = t.join().unwrap();
            assert!(!sleeps || rang, "asleep, and nobody rang");
        });
    }
}
