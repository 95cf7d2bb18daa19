//! Entries for fuzzing what a peer can write: the segment, the slot table's claims, control messages. No processes.

use crate::link::hostile;
use crate::mem::{Channel, SEGMENT_BYTES, Side};
use crate::wire::Msg;
use kfab_core::mem::{Buffer, Landing};
use kfab_core::spi::{Body, HEADER_LEN, Inline, Next, Small};
use kfab_core::sys::{map_foreign, sealed_memfd};

/// Fills a segment with `data` (repeated) or, where its first byte is odd, pokes bytes of a segment in use; then sends and
/// receives on it. Whatever is there, every call returns, and what is reported keeps the limits.
pub fn fuzz_ring(data: &[u8]) {
    let [how, rest @ ..] = data else { return };
    let Ok((fd, map)) = sealed_memfd("kfab-fuzz", SEGMENT_BYTES, false) else { return };
    let Ok(far) = map_foreign(&fd, true, SEGMENT_BYTES) else { return };
    let (Some(mut us), Some(mut peer)) =
        (Channel::new(map, Side::Server, false), Channel::new(far, Side::Client, false))
    else {
        return;
    };
    if how & 1 == 0 {
        us.scribble(rest);
        return exercise(&mut us);
    }
    for chunk in rest.chunks(5) {
        let _ = peer.push(&[7; HEADER_LEN], &Inline::EMPTY, &Body::Borrowed(chunk));
        if let [a, b, c, xor, ..] = chunk {
            // Near the front, where words and first lines are, or anywhere.
            let at = usize::from(*a) | usize::from(*b) << 8 | usize::from(*c & 15) << 16;
            us.poke(if c & 16 == 0 { at % 8192 } else { at }, *xor);
        }
        exercise(&mut us);
    }
}

fn exercise(us: &mut Channel) {
    let Ok(mut landing) = Landing::whole(Buffer::adopt(vec![0; crate::MAX_BODY])) else { return };
    let mut small = Small::EMPTY;
    for round in 0..32 {
        if round % 4 == 3 && us.next_small(&mut small) == Ok(Next::Frame) && small.body_len > 0 {
            assert!(small.body_len <= crate::MAX_BODY);
            us.take(small.body_len, Some(&mut landing));
        }
        match us.peek().map_err(hostile) {
            Ok(Some(rx)) => {
                assert!(
                    rx.body_len <= crate::MAX_BODY && rx.inline.as_slice().len() <= rx.inline.array().len()
                );
                us.take(rx.body_len, (round % 2 == 0).then_some(&mut landing));
                us.publish();
            }
            Ok(None) => {}
            Err(_) => break,
        }
        let body = [round as u8; 100];
        if us.push(&[round as u8; HEADER_LEN], &Inline::EMPTY, &Body::Borrowed(&body)).is_err()
            || us.has_room().is_err()
        {
            break;
        }
        us.take_bell();
        us.peer_is_in(0);
        us.peer_said();
    }
}

/// Parses a control message.
pub fn fuzz_message(data: &[u8]) {
    if let Some(m) = Msg::parse(data) {
        assert!(Msg::parse(&m.encode()).is_some());
    }
}
