//! The entry for fuzzing what a peer can write: messages over the queue pair, and parameters on the side channel. No card.

use crate::wire::{HEAD_LEN, MAX_BODY, Params, SLOT_LEN, head, header_of, inline_of, parse};
use zerocopy::IntoBytes;

/// Parses a message as it lies in a receive, and parameters: what is found good has its lengths within it and is written back as the same bytes.
pub fn fuzz_message(data: &[u8]) {
    let data = &data[..data.len().min(SLOT_LEN)];
    if let Ok(m) = parse(data) {
        assert!((HEAD_LEN..=data.len()).contains(&m.body_at));
        let mut slot = vec![0xff; SLOT_LEN];
        slot[..data.len()].copy_from_slice(data);
        let inline = inline_of(&slot, m.body_at);
        let (bytes, len) = head(m.kind, m.credits, header_of(data), &inline);
        assert_eq!(&bytes[..len], &data[..m.body_at]);
    }
    if let Ok(p) = Params::parse(data) {
        assert_eq!(p.as_bytes(), data);
        assert!(p.max_body.get() as usize >= MAX_BODY && p.credits.get() > 0 && p.qpn.get() < 1 << 24);
    }
}
