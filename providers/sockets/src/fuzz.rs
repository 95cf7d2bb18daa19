//! The entry for fuzzing everything a peer can write: greetings of both sides, records, sealed pieces. No sockets.

use crate::receive::{Item, Receiver};
use crate::stage::StagePool;
use crate::wire::{DIALECT, HEAD_MAX};
use kfab_core::auth::greeting::{Greeter, Outcome, Terms};
use kfab_core::auth::{FabricKey, Handshake, Session};
use kfab_core::mem::Pool;

/// Feeds `data` to a greeting (first byte: bit 0 connecting side, bit 1 with key, bit 2 encrypted, bit 3 skip the greeting;
/// second byte: how many bytes arrive at once) and what is left to the record parser.
pub fn fuzz_stream(data: &[u8]) {
    let [how, step, rest @ ..] = data else { return };
    let step = usize::from(*step).pow(2).max(1);
    let key = FabricKey::from_bytes([7; 32]);
    let terms = Terms { dialect: &DIALECT, key: (how & 2 != 0).then(|| key.clone()), seal: how & 4 != 0 };
    if how & 8 != 0 {
        return records(rest, step, terms.key.filter(|_| terms.seal).and_then(|k| session(&k)));
    }
    let mut out = Vec::new();
    let mut g = match how & 1 {
        0 => Greeter::acceptor(),
        _ => match Greeter::connector(&terms, &mut out) {
            Ok(g) => g,
            Err(_) => return,
        },
    };
    let mut at = 0;
    while at < rest.len() {
        let space = g.space();
        let n = space.len().min(step).min(rest.len() - at);
        space[..n].copy_from_slice(&rest[at..at + n]);
        at += n;
        let mut outcome = g.received(n, &terms, false, &mut out);
        if let Outcome::Agreed = outcome {
            outcome = if g.has_session() { g.confirm(&mut out) } else { Outcome::Confirmed };
        }
        match outcome {
            Outcome::More => {}
            Outcome::Confirmed => {
                let session = g.take_session().filter(|_| terms.seal);
                return records(&rest[at..], step, session);
            }
            _ => return,
        }
    }
}

fn session(key: &FabricKey) -> Option<Box<Session>> {
    let (mut a, mut b) = (Handshake::initiator(key).ok()?, Handshake::responder(key).ok()?);
    b.read(&a.write().ok()?).ok()?;
    a.read(&b.write().ok()?).ok()?;
    Some(Box::new(b.finish().ok()?))
}

fn records(data: &[u8], step: usize, mut session: Option<Box<Session>>) {
    let (mut rx, mut pool) = (Receiver::new(session.is_some()), StagePool::default());
    let (mut at, mut left) = (0, 0);
    let memory = Pool::new(Default::default());
    let Ok(mut spare) = memory.landing(64 << 10).map(Some) else { return };
    loop {
        if left > 0 {
            let Ok(body) = rx.body(session.as_deref_mut(), &mut pool) else { return };
            let n = body.len().min(left);
            rx.consume(n);
            left -= n;
            if n > 0 {
                continue;
            }
        } else {
            // As a port does: the short way now and then, which must leave alone what it does not deliver.
            if session.is_none() && at % 2 == 0 && rx.next_bare().is_some() {
                continue;
            }
            match rx.next(session.as_deref_mut(), &mut pool) {
                Ok(Item::Frame { body_len, .. }) => {
                    left = body_len;
                    if let Some((s, came)) = rx.take_ahead() {
                        left -= came;
                        spare = Some(s);
                    }
                    rx.lands(spare.as_ref());
                    continue;
                }
                Ok(Item::Nothing) => {}
                Ok(Item::Goodbye) | Err(_) => return,
            }
        }
        rx.release(&mut pool);
        if at == data.len() {
            return;
        }
        if left > 0 && session.is_none() {
            // Straight to the landing.
            let n = left.min(step).min(data.len() - at);
            (at, left) = (at + n, left - n);
            continue;
        }
        let expected = if left == 0 { rx.expected() } else { 0 };
        if let Some(mut s) = spare.take_if(|_| expected > 0) {
            let n = (HEAD_MAX + expected).min(step).min(data.len() - at);
            let (head, body) = data[at..at + n].split_at(n.min(HEAD_MAX));
            rx.head(&mut pool)[..head.len()].copy_from_slice(head);
            s.copy_from(0, body);
            spare = rx.received_ahead(n, s, &mut pool);
            at += n;
            continue;
        }
        let space = rx.space(left > 0, &mut pool);
        assert!(!space.is_empty(), "a receiver that wants bytes has room for them");
        let n = space.len().min(step).min(data.len() - at);
        space[..n].copy_from_slice(&data[at..at + n]);
        rx.received(n);
        at += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;
    use kfab_core::spi::Inline;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..600)) {
            fuzz_stream(&data);
        }

        #[test]
        fn bytes_that_start_well_and_go_bad_are_survived(
            how in 0u8..16, step: u8, keyed in any::<bool>(), body in 0usize..300, flip in 0usize..400, bit in 0u8..8,
        ) {
            let key = keyed.then(|| FabricKey::from_bytes([7; 32]));
            let terms = Terms { dialect: &DIALECT, key, seal: how & 4 != 0 };
            let mut data = vec![how, step];
            if how & 8 == 0 {
                Greeter::connector(&terms, &mut data).unwrap();
            }
            for _ in 0..3 {
                let (head, n) = wire::frame_head(&[1; 16], &Inline::new(b"inline").unwrap(), body);
                data.extend_from_slice(&head[..n]);
                data.resize(data.len() + body, 0);
            }
            data.extend_from_slice(&wire::goodbye());
            if let Some(b) = data.get_mut(flip) {
                *b ^= 1 << bit;
            }
            fuzz_stream(&data);
        }
    }
}
