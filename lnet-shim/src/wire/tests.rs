//! Tests of `wire`.

use super::*;
use crate::nid::{PID_LNET, ProcessId};
use acceptor::Request;
use hello::{ConnType, Hello, Version};
use ksock::{Kind, KsockHeader};
use lnet::{Body, HeaderForm, LnetHeader, WireHandle};
use lst::*;
use ping::*;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|c| c[0] << 4 | c[1]).collect()
}

fn nid(text: &str) -> Nid {
    text.parse().unwrap()
}

const A: &str = "10.77.0.11@tcp";
const B: &str = "10.77.0.12@tcp";

#[test]
fn golden_acceptor() {
    let v1 = hex("00 71 ce ac 01 00 00 00 0c 00 4d 0a 00 00 02 00");
    let request = Request { order: ByteOrder::Little, target: nid(B) };
    assert_eq!(request.encode(), v1);
    assert_eq!(Request::decode(&v1), Ok((request, 16)));
    let mut v2 = hex("00 71 ce ac 02 00 00 00 0c 02 00 00 fd 77");
    v2.resize(27, 0);
    v2.push(0x12);
    let request = Request { order: ByteOrder::Little, target: nid("fd77::12") };
    assert_eq!(request.encode(), v2);
    assert_eq!(Request::decode(&v2), Ok((request, 28)));
    assert_eq!(
        acceptor::version_answer(ByteOrder::Little),
        hex("00 71 ce ac 01 00 00 00 00 00 00 00 00 00 00 00")
    );
    let v9 = hex("00 71 ce ac 09 00 00 00 0c 00 4d 0a 00 00 02 00");
    assert_eq!(Request::decode(&v9), Err(WireError::Version(9)));
}

fn hello_v3() -> (Hello, Vec<u8>) {
    let bytes = hex("63 69 72 45 03 00 00 00 0b 00 4d 0a 00 00 02 00 0c 00 4d 0a 00 00 02 00
         39 30 00 00 00 00 00 00 5e 40 5d f9 f6 05 ea 18 00 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00");
    let hello = Hello {
        order: ByteOrder::Little,
        version: Version::V3,
        src_nid: nid(A),
        dst_nid: nid(B),
        src_pid: PID_LNET,
        dst_pid: 0,
        src_incarnation: 0x18ea_05f6_f95d_405e,
        dst_incarnation: 0,
        conn_type: ConnType::Control,
    };
    (hello, bytes)
}

#[test]
fn golden_hello() {
    let (hello, bytes) = hello_v3();
    assert_eq!(hello.encode(), bytes);
    assert_eq!(Hello::decode(&bytes), Ok((hello, 56)));
    let v4 = Hello { version: Version::V4, src_nid: nid("fd77::11"), dst_nid: nid("fd77::12"), ..hello };
    let raw = v4.encode();
    assert_eq!(raw.len(), 80);
    assert_eq!(raw[..14], hex("63 69 72 45 04 00 00 00 0c 02 00 00 fd 77"));
    assert_eq!(raw[28..34], hex("0c 02 00 00 fd 77"));
    assert_eq!(raw[48..52], hex("39 30 00 00"));
    assert_eq!(Hello::decode(&raw), Ok((v4, 80)));
    let refusal = Hello { conn_type: ConnType::None, ..hello }.encode();
    assert_eq!(refusal[48..52], [0xff; 4]);
}

#[test]
fn hello_with_ips_is_read_over() {
    let (hello, mut bytes) = hello_v3();
    bytes[52] = 2;
    assert_eq!(Hello::decode(&bytes), Err(WireError::Truncated { need: 60 }));
    bytes.extend([1, 0, 0, 10, 2, 0, 0, 10]);
    assert_eq!(Hello::decode(&bytes), Ok((hello, 64)));
    bytes[56..60].fill(0);
    assert!(matches!(Hello::decode(&bytes), Err(WireError::Invalid(_))));
    bytes[52] = 17;
    assert!(matches!(Hello::decode(&bytes), Err(WireError::Invalid(_))));
}

#[test]
fn golden_ping_get_and_reply() {
    let ksock = KsockHeader::new(Kind::Lnet, 0, 0).encode(ByteOrder::Little);
    assert_eq!(ksock, [hex("c1 00 00 00"), vec![0; 20]].concat());
    let handle = WireHandle::new(0x18ea_05f6_f8e1_6a6d, 0x1c09);
    assert_eq!(handle.cookies(), (0x18ea_05f6_f8e1_6a6d, 0x1c09));
    let get = LnetHeader {
        dest: ProcessId::lnet(nid(B)),
        src: ProcessId::lnet(nid(A)),
        payload_len: 0,
        body: Body::Get { handle, match_bits: MATCH_BITS, portal: 0, offset: 0, sink_len: 3960 },
    };
    let bytes = hex("0c 00 4d 0a 00 00 02 00 0b 00 4d 0a 00 00 02 00 39 30 00 00 39 30 00 00
         02 00 00 00 00 00 00 00 6d 6a e1 f8 f6 05 ea 18 09 1c 00 00 00 00 00 00
         00 00 00 00 00 00 00 80 00 00 00 00 00 00 00 00 78 0f 00 00 00 00 00 00");
    assert_eq!(get.encode(HeaderForm::Small), bytes);
    assert_eq!(LnetHeader::decode(&bytes, HeaderForm::Small), Ok(get));
    let reply = LnetHeader { dest: get.src, src: get.dest, payload_len: 48, body: Body::Reply { handle } };
    let mut want = hex("0b 00 4d 0a 00 00 02 00 0c 00 4d 0a 00 00 02 00 39 30 00 00 39 30 00 00
         03 00 00 00 30 00 00 00 6d 6a e1 f8 f6 05 ea 18 09 1c 00 00 00 00 00 00");
    want.resize(72, 0);
    assert_eq!(reply.encode(HeaderForm::Small), want);
}

#[test]
fn golden_ack() {
    let handle = WireHandle::new(0x18ea_05f6_f8e1_6a6d, 0x1c15);
    let ack = LnetHeader {
        dest: ProcessId::lnet(nid(A)),
        src: ProcessId::lnet(nid(B)),
        payload_len: 0,
        body: Body::Ack { handle, match_bits: MATCH_BITS, mlength: 48 },
    };
    let raw = ack.encode(HeaderForm::Small);
    let tail = hex("00 00 00 00 00 00 00 00 6d 6a e1 f8 f6 05 ea 18 15 1c 00 00 00 00 00 00
         00 00 00 00 00 00 00 80 30 00 00 00");
    assert_eq!(raw[24..60], tail);
    assert_eq!(LnetHeader::decode(&raw, HeaderForm::Small), Ok(ack));
}

#[test]
fn golden_push_and_bulk_put() {
    // The push after a discovery.
    let handle = WireHandle::new(0x18ea_05f6_f8e1_6a6d, 0x1c15);
    let (dest, src) = (ProcessId::lnet(nid(B)), ProcessId::lnet(nid(A)));
    let body = Body::Put { handle, match_bits: MATCH_BITS, hdr_data: 0, portal: 0, offset: 0 };
    let push = LnetHeader { dest, src, payload_len: 48, body };
    let bytes = hex("0c 00 4d 0a 00 00 02 00 0b 00 4d 0a 00 00 02 00 39 30 00 00 39 30 00 00
         01 00 00 00 30 00 00 00 6d 6a e1 f8 f6 05 ea 18 15 1c 00 00 00 00 00 00
         00 00 00 00 00 00 00 80 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00");
    assert_eq!(push.encode(HeaderForm::Small), bytes);
    assert_eq!(LnetHeader::decode(&bytes, HeaderForm::Small), Ok(push));
    // The bulk of an lst read: nobody is to acknowledge it.
    let (handle, match_bits) = (WireHandle::NONE, 0x66c7_0000_0000_5216);
    let body = Body::Put { handle, match_bits, hdr_data: 0, portal: 52, offset: 0 };
    let bulk = LnetHeader { dest: src, src: dest, payload_len: 0x10_0000, body };
    let bytes = hex("0b 00 4d 0a 00 00 02 00 0c 00 4d 0a 00 00 02 00 39 30 00 00 39 30 00 00
         01 00 00 00 00 00 10 00 ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff
         16 52 00 00 00 00 c7 66 00 00 00 00 00 00 00 00 34 00 00 00 00 00 00 00");
    assert_eq!(bulk.encode(HeaderForm::Small), bytes);
    assert_eq!(LnetHeader::decode(&bytes, HeaderForm::Small), Ok(bulk));
}

#[test]
fn golden_large_get() {
    let handle = WireHandle::new(0x18ea_05f6_f8e1_6a6d, 0x1c09);
    let body = Body::Get { handle, match_bits: MATCH_BITS, portal: 0, offset: 0, sink_len: 3960 };
    let (dest, src) = (ProcessId::lnet(nid("fd77::12")), ProcessId::lnet(nid("fd77::11")));
    let get = LnetHeader { dest, src, payload_len: 0, body };
    let bytes = hex("0c 02 00 00 fd 77 00 00 00 00 00 00 00 00 00 00 00 00 00 12
         0c 02 00 00 fd 77 00 00 00 00 00 00 00 00 00 00 00 00 00 11 39 30 00 00 39 30 00 00
         02 00 00 00 00 00 00 00 6d 6a e1 f8 f6 05 ea 18 09 1c 00 00 00 00 00 00
         00 00 00 00 00 00 00 80 00 00 00 00 00 00 00 00 78 0f 00 00 00 00 00 00");
    assert_eq!(bytes.len(), 96);
    assert_eq!(get.encode(HeaderForm::Large), bytes);
    assert_eq!(LnetHeader::decode(&bytes, HeaderForm::Large), Ok(get));
}

#[test]
fn golden_ping_info() {
    let bytes = hex("67 6e 69 70 1e 00 00 00 39 30 00 00 02 00 00 00
         00 00 00 00 00 00 09 00 01 00 00 00 00 00 00 00 0c 00 4d 0a 00 00 02 00 de c0 aa 15 00 00 00 00");
    let info = PingInfo {
        features: 0x1e,
        pid: PID_LNET,
        sequence: 1,
        small: vec![NiEntry { nid: nid(B), status: STATUS_UP }],
        large: vec![],
        metadata: vec![],
    };
    assert_eq!(info.encode(ByteOrder::Little), bytes);
    assert_eq!(PingInfo::decode(&bytes), Ok(info.clone()));
    assert_eq!(PingInfo::decode(&bytes[..40]), Err(WireError::Truncated { need: 48 }));
    assert_eq!(info.primary(), Some(nid(B)));
}

#[test]
fn golden_large_ping_info() {
    let mut bytes = hex("67 6e 69 70 7e 00 00 00 39 30 00 00 01 00 00 00
         00 00 00 00 00 00 09 00 02 00 00 00 38 00 00 00 de c0 aa 15 0c 02 00 00 fd 77");
    bytes.resize(55, 0);
    bytes.push(0x12);
    let info = PingInfo {
        features: 0x7e,
        pid: PID_LNET,
        sequence: 2,
        small: vec![],
        large: vec![NiEntry { nid: nid("fd77::12"), status: STATUS_UP }],
        metadata: vec![],
    };
    assert_eq!(info.encode(ByteOrder::Little), bytes);
    assert_eq!(PingInfo::decode(&bytes), Ok(info.clone()));
    assert_eq!(info.primary(), Some(nid("fd77::12")));
}

#[test]
fn golden_keepalive_and_zero_copy() {
    let keepalive = KsockHeader::new(Kind::Noop, 0, 1).encode(ByteOrder::Little);
    assert_eq!(keepalive, hex("c0 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00"));
    let data = hex("c1 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00");
    let header = KsockHeader::decode(&data, ByteOrder::Little).unwrap();
    assert_eq!((header.kind, header.cookie0), (Kind::Lnet, 2));
    assert!(header.acked().is_empty());
    let ack = hex("c0 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00");
    assert_eq!(KsockHeader::decode(&ack, ByteOrder::Little).unwrap().acked(), [(2, 2)]);
    assert!(KsockHeader::decode(&keepalive, ByteOrder::Little).unwrap().acked().is_empty());
    assert_eq!(KsockHeader::new(Kind::Noop, 9, 4).acked(), [(9, 9), (4, 4)]);
    assert_eq!(KsockHeader::new(Kind::Noop, 4, 9).acked(), [(4, 9)]);
    assert_eq!(KsockHeader::new(Kind::Lnet, 4, 9).acked(), [(9, 9)]);
}

#[test]
fn golden_make_session() {
    let mut bytes = hex("0d f0 b0 ee 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 00 00 00
         02 00 00 00 00 00 c7 66 0b 00 4d 0a 00 00 02 00 eb cc 00 00 00 00 00 00 00 00 00 00 72 77");
    bytes.resize(LEN, 0);
    let mut name = [0; 32];
    name[..2].copy_from_slice(b"rw");
    let session = SessionId { nid4: nid(A).to_nid4().unwrap(), stamp: 0xcceb };
    let body = LstBody::MakeSession { reply_id: 0x66c7_0000_0000_0002, session, force: 0, name };
    assert_eq!(LstMessage::new(body).encode(), bytes);
    assert_eq!(LstMessage::decode(&bytes).unwrap().body, body);
    assert_eq!(Service::from_id(1), Some(Service::MakeSession));
    assert_eq!(Service::MakeSession.portal(), 0x33);
    // Its answer.
    let mut bytes = hex("0d f0 b0 ee 01 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00 01 00 00 00
         00 00 00 00 0b 00 4d 0a 00 00 02 00 eb cc 00 00 00 00 00 00 64 00 00 00 72 77");
    bytes.resize(LEN, 0);
    let body = LstBody::MakeSessionReply { status: 0, session, timeout: 100, name };
    assert_eq!(LstMessage::new(body).encode(), bytes);
    assert_eq!(LstMessage::decode(&bytes).unwrap().body, body);
}

#[test]
fn checksum_is_crc32_without_final_inversion() {
    assert_eq!(ksock::crc32(ksock::CRC_INIT, b"123456789") ^ u32::MAX, 0xcbf4_3926);
}

fn is_short<T>(result: &Result<T, WireError>, cut: usize) -> bool {
    matches!(result, Err(WireError::Truncated { need }) if *need > cut)
}

fn any_nid() -> impl Strategy<Value = Nid> {
    prop_oneof![
        any::<u32>().prop_map(|a| Nid::small(crate::nid::Net::TCP, a)),
        any::<[u8; 16]>().prop_map(|a| Nid::large(crate::nid::Net::TCP, a)),
    ]
}

fn orders() -> impl Strategy<Value = ByteOrder> {
    prop_oneof![Just(ByteOrder::Little), Just(ByteOrder::Big)]
}

fn bodies() -> impl Strategy<Value = Body> {
    (0u8..4, any::<[u8; 16]>(), any::<u64>(), any::<u64>(), any::<[u32; 3]>()).prop_map(|(k, h, m, d, w)| {
        let handle = WireHandle(h);
        match k {
            0 => Body::Ack { handle, match_bits: m, mlength: w[0] },
            1 => Body::Put { handle, match_bits: m, hdr_data: d, portal: w[0], offset: w[1] },
            2 => Body::Get { handle, match_bits: m, portal: w[0], offset: w[1], sink_len: w[2] },
            _ => Body::Reply { handle },
        }
    })
}

fn lst_bodies() -> impl Strategy<Value = LstBody> {
    (0u32..18, proptest::collection::vec(any::<u8>(), 136)).prop_filter_map(
        "ping magic",
        |(kind, mut raw)| {
            if kind == 14 {
                raw[8..12].copy_from_slice(&PING_MAGIC.to_le_bytes());
            }
            if kind == 15 {
                raw[4..8].copy_from_slice(&PING_MAGIC.to_le_bytes());
            }
            if kind == 8 {
                raw[52] &= 1;
                raw[53] &= 1;
            }
            let mut message = LstMessage::new(LstBody::BrwReply { status: 0 }).encode();
            message[8..12].copy_from_slice(&kind.to_le_bytes());
            message[24..].copy_from_slice(&raw);
            LstMessage::decode(&message).ok().map(|m| m.body)
        },
    )
}

proptest! {
    #[test]
    fn acceptor_round_trips(target in any_nid(), order in orders()) {
        let request = Request { order, target };
        let raw = request.encode();
        prop_assert_eq!(Request::decode(&raw), Ok((request, raw.len())));
        for cut in 0..raw.len() {
            prop_assert!(matches!(Request::decode(&raw[..cut]), Err(WireError::Truncated { need }) if need > cut && need <= raw.len()), "cut {}", cut);
        }
    }

    #[test]
    fn hello_round_trips(a in any_nid(), b in any_nid(), order in orders(), pids in any::<[u32; 2]>(), inc in any::<[u64; 2]>(), v in 2u32..5, t in 0usize..5) {
        let version = if a.is_large() || b.is_large() { Version::V4 } else { Version::from_number(v).unwrap() };
        let conn_type = [ConnType::None, ConnType::Any, ConnType::Control, ConnType::BulkIn, ConnType::BulkOut][t];
        let hello = Hello {
            order, version, src_nid: a, dst_nid: b, src_pid: pids[0], dst_pid: pids[1],
            src_incarnation: inc[0], dst_incarnation: inc[1], conn_type,
        };
        let raw = hello.encode();
        prop_assert_eq!(raw.len(), version.hello_len());
        prop_assert_eq!(Hello::decode(&raw), Ok((hello, raw.len())));
        for cut in 0..raw.len() {
            let short = Hello::decode(&raw[..cut]);
            prop_assert!(is_short(&short, cut), "cut {}", cut);
        }
        prop_assert_eq!(conn_type.inverted().inverted(), conn_type);
    }

    #[test]
    fn ksock_round_trips(order in orders(), noop: bool, checksum: u32, cookie0: u64, cookie1: u64) {
        let header = KsockHeader { kind: if noop { Kind::Noop } else { Kind::Lnet }, checksum, cookie0, cookie1 };
        let raw = header.encode(order);
        prop_assert_eq!(KsockHeader::decode(&raw, order), Ok(header));
        for cut in 0..raw.len() {
            let short = KsockHeader::decode(&raw[..cut], order);
            prop_assert!(matches!(short, Err(WireError::Truncated { .. })), "cut {}", cut);
        }
    }

    #[test]
    fn lnet_header_round_trips(a in any_nid(), b in any_nid(), pids in any::<[u32; 2]>(), body in bodies(), len in 0u32..=1 << 20) {
        let form = if a.is_large() || b.is_large() { HeaderForm::Large } else { HeaderForm::Small };
        let payload_len = if matches!(body, Body::Put { .. } | Body::Reply { .. }) { len } else { 0 };
        let header = LnetHeader {
            dest: ProcessId { nid: a, pid: pids[0] }, src: ProcessId { nid: b, pid: pids[1] }, payload_len, body,
        };
        let raw = header.encode(form);
        prop_assert_eq!(raw.len(), form.header_len());
        prop_assert_eq!(LnetHeader::decode(&raw, form), Ok(header));
        for cut in 0..raw.len() {
            prop_assert_eq!(LnetHeader::decode(&raw[..cut], form), Err(WireError::Truncated { need: form.header_len() }));
        }
    }

    #[test]
    fn ping_info_round_trips(order in orders(), small in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..6),
                             large in proptest::collection::vec((any::<[u8; 16]>(), any::<u32>()), 0..6),
                             meta in proptest::collection::vec((any::<u64>(), any::<[u8; 32]>()), 0..3), sequence: u32, pid: u32) {
        let net = crate::nid::Net::TCP;
        let mut features = FEAT_NI_STATUS | FEAT_MULTI_RAIL;
        if !large.is_empty() { features |= FEAT_LARGE_ADDR; }
        if !meta.is_empty() { features |= FEAT_METADATA; }
        let info = PingInfo {
            features, pid, sequence,
            small: small.into_iter().map(|(a, status)| NiEntry { nid: Nid::small(net, a), status }).collect(),
            large: large.into_iter().map(|(a, status)| NiEntry { nid: Nid::large(net, a), status }).collect(),
            metadata: meta.into_iter().map(|(nid4, data)| Metadata { nid4, data }).collect(),
        };
        let raw = info.encode(order);
        prop_assert_eq!(PingInfo::decode(&raw), Ok(info));
        for cut in 0..raw.len() {
            let short = PingInfo::decode(&raw[..cut]);
            prop_assert!(is_short(&short, cut), "cut {}", cut);
        }
    }

    #[test]
    fn lst_round_trips(body in lst_bodies(), order in orders()) {
        let message = LstMessage { order, features: 1, body };
        let raw = message.encode();
        prop_assert_eq!(raw.len(), LEN);
        prop_assert_eq!(LstMessage::decode(&raw), Ok(message));
        for cut in 0..raw.len() {
            prop_assert_eq!(LstMessage::decode(&raw[..cut]), Err(WireError::Truncated { need: LEN }));
        }
    }

    #[test]
    fn decoders_never_panic(mut raw in proptest::collection::vec(any::<u8>(), 0..400), pick in 0usize..6) {
        let magics = [acceptor::MAGIC, hello::MAGIC, ping::MAGIC, lst::MAGIC];
        if let (Some(m), Some(head)) = (magics.get(pick), raw.get_mut(..4)) {
            head.copy_from_slice(&m.to_le_bytes());
        }
        let _ = Request::decode(&raw);
        let _ = Hello::decode(&raw);
        let _ = PingInfo::decode(&raw);
        let _ = LstMessage::decode(&raw);
        let _ = LnetHeader::decode(&raw, HeaderForm::Large);
        let _ = LnetHeader::decode(&raw, HeaderForm::Small);
        let _ = KsockHeader::decode(&raw, ByteOrder::Big);
    }
}
