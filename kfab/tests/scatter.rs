//! One message, several buffers: gathered by the sender, cut or scattered by the receiver.

mod common;

use common::*;
use kfab::{Buffer, Kind};

#[test]
fn a_message_is_cut_where_it_lies() {
    on_all("parts", |s| {
        let (a, b, to_b) = pair(s);
        for len in [20, 5000, 700_000] {
            let want = pattern(len, 3);
            // Gathered from three, cut into three others; into memory of the provider's choice or of the receiver's.
            let part = |r: std::ops::Range<usize>| Buffer::adopt(want[r].to_vec());
            for own in [false, true] {
                let r = b.recv_with();
                let r = if own { r.into(b.buffer(len + 9).unwrap()) } else { r }.post();
                let sent = to_b.send(vec![part(0..1), part(1..len - 7), part(len - 7..len)]);
                let parts = r.wait().unwrap().into_parts(&[4, 0, len - 10]).unwrap();
                sent.wait().unwrap();
                assert_eq!(parts.iter().map(|p| p.len()).collect::<Vec<_>>(), [4, 0, len - 10, 6]);
                assert_eq!(parts.iter().flat_map(|p| p.iter().copied()).collect::<Vec<_>>(), want);
            }
        }
        to_b.send(b"short").wait().unwrap();
        let e = b.recv().wait().unwrap().into_parts(&[3, 3]).unwrap_err();
        assert_eq!(e.kind(), Kind::Truncated, "{e}");
        assert_eq!((a.stats().pool.in_use, b.stats().pool.in_use), (0, 0), "the parts are gone");
    });
}

#[test]
fn a_message_is_scattered_into_buffers() {
    on_all("scatter", |s| {
        let (_a, b, to_b) = pair(s);
        for len in [0, 10, 100_000] {
            let want = pattern(len, 5);
            let sent = to_b.send(&want[..]);
            let m = b.recv().wait().unwrap();
            sent.wait().unwrap();
            let mut into = [b.buffer(3).unwrap(), b.buffer(len.max(1)).unwrap(), b.buffer(50).unwrap()];
            into.iter_mut().for_each(|i| i.get_mut().unwrap().fill(0xEE));
            assert_eq!(m.scatter(&mut into).unwrap(), len);
            let got: Vec<u8> = into.iter().flat_map(|i| i.iter().copied()).collect();
            assert_eq!(got[..len], want[..]);
            assert!(got[len..].iter().all(|x| *x == 0xEE), "what is not needed stays as it is");
        }
        to_b.send(b"twelve bytes").wait().unwrap();
        let m = b.recv().wait().unwrap();
        let e = m.scatter(&mut [b.buffer(4).unwrap(), b.buffer(7).unwrap()]).unwrap_err();
        assert_eq!(e.kind(), Kind::Truncated, "{e}");
        let shared = b.buffer(20).unwrap();
        let other = shared.slice(0..20);
        let mut into = [b.buffer(4).unwrap(), shared];
        into[0].get_mut().unwrap().fill(0xEE);
        assert_eq!(m.scatter(&mut into).unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(into[0][..], [0xEE; 4], "nothing is copied");
        drop(other);
        assert_eq!(m.scatter(&mut into).unwrap(), 12);
        assert_eq!(&into[1][..8], b"ve bytes");
    });
}
