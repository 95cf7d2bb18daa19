//! Tests of `nid`.

use super::*;
use proptest::prelude::*;

fn nid(text: &str) -> Nid {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn eight_byte_form_is_the_captured_one() {
    let n = nid("10.77.0.12@tcp");
    assert_eq!(n.to_nid4().unwrap(), 0x0002_0000_0a4d_000c);
    assert_eq!(n.to_nid4().unwrap().to_le_bytes(), [0x0c, 0, 0x4d, 0x0a, 0, 0, 2, 0]);
    assert_eq!(Nid::LO.to_nid4(), Some(0x0009_0000_0000_0000));
    assert_eq!(Nid::ANY.to_nid4(), Some(u64::MAX));
    assert_eq!(Nid::from_nid4(0x0100_0000_0000_0000), None);
}

#[test]
fn twenty_byte_form_is_the_captured_one() {
    let n = nid("fd77::12@tcp");
    let mut want = [0; 20];
    want[..6].copy_from_slice(&[0x0c, 2, 0, 0, 0xfd, 0x77]);
    want[19] = 0x12;
    assert_eq!(n.to_bytes(), want);
    assert_eq!(n.to_nid4(), None);
    let mut odd_any = [0; 20];
    odd_any[1] = 0xff;
    assert_eq!(Nid::from_bytes(odd_any), Some(Nid::ANY));
    want[0] = 5;
    assert_eq!(Nid::from_bytes(want), None);
}

#[test]
fn texts() {
    assert_eq!(nid("10.0.0.1"), nid("10.0.0.1@tcp0"));
    assert_eq!(nid("10.0.0.1@tcp1").to_string(), "10.0.0.1@tcp1");
    assert_eq!(nid("10.0.0.1@o2ib2").net(), Net::new(Lnd::O2IB, 2));
    assert_eq!(nid("57@kfi").to_string(), "57@kfi");
    assert_eq!(nid("<?>"), Nid::ANY);
    assert_eq!(nid("200@<0:19722>").to_string(), "200@<0:19722>");
    assert_eq!(nid("0@lo"), Nid::LO);
    let id: ProcessId = "12345-10.0.0.1@tcp".parse().unwrap();
    assert_eq!(id, ProcessId::lnet(nid("10.0.0.1@tcp")));
    let user: ProcessId = "U40001-10.0.0.1@tcp".parse().unwrap();
    assert_eq!(user.pid, 0x8000_9c41);
    assert!(user.is_userspace());
}

#[test]
fn errors_name_the_character() {
    let at = |t: &str| t.parse::<Nid>().unwrap_err().character();
    assert_eq!(at("10.0.x.1@tcp"), 6);
    assert_eq!(at("10.0.0.256@tcp"), 8);
    assert_eq!(at("10.0.0.1@foo"), 10);
    assert_eq!(at("10.0.0.1@tcp99999"), 13);
    assert_eq!(at("10.0.0@tcp"), 7);
    assert_eq!(at("10.0.0.1.2@tcp"), 9);
    assert_eq!(at("5x@kfi"), 2);
    assert_eq!(at("@tcp"), 1);
    assert_eq!(at("é.0.0.1@tcpé"), 12);
    assert_eq!(at("fd00::1@o2ib"), 1);
    assert_eq!(at("fd00::zz@tcp"), 7);
    let list = "10.0.0.1@tcp 10.0.[5-1].*@tcp".parse::<NidList>().unwrap_err();
    assert_eq!(list.character(), 22);
    assert_eq!(list.reason(), "range ends before it starts");
    assert_eq!("123-10.0.0.y@tcp".parse::<ProcessId>().unwrap_err().character(), 12);
    assert_eq!(at(&"1".repeat(70)), 65);
}

#[test]
fn lists_hold_what_they_say() {
    let list: NidList =
        "10.0.[0-3].*@tcp, [1-9/2,20]@kfi fd00::/64@tcp *@o2ib1 10.9.0.0/16@tcp".parse().unwrap();
    for yes in ["10.0.3.255@tcp", "3@kfi", "20@kfi", "fd00::77@tcp", "1.2.3.4@o2ib1", "10.9.200.1@tcp"] {
        assert!(list.contains(nid(yes)), "{yes}");
    }
    for no in ["10.0.4.1@tcp", "10.0.0.1@tcp1", "2@kfi", "fd00:0:0:1::1@tcp", "1.2.3.4@o2ib", "10.8.0.1@tcp"]
    {
        assert!(!list.contains(nid(no)), "{no}");
    }
    assert!(!list.contains(Nid::ANY));
    assert_eq!(list.to_string().parse::<NidList>().unwrap(), list);
    assert!(NidList::one(nid("1.2.3.4")).contains(nid("1.2.3.4")));
    assert!(!NidList::one(nid("1.2.3.4")).contains(nid("1.2.3.5")));
    assert!("".parse::<NidList>().is_err());
}

#[test]
fn lists_take_no_ipv6_where_the_network_has_none() {
    for text in ["::@gip", "fd00::/8@o2ib", "::1@kfi"] {
        assert!(text.parse::<NidList>().is_err() && text.parse::<Nid>().is_err(), "{text}");
    }
    // What came by the wire all the same is written in words, and read so.
    let odd = Nid::large(Net::new(Lnd(14), 0), [7; 16]);
    assert_eq!(odd.to_string(), "7070707:7070707:7070707:7070707@<14:0>");
    assert!(odd.to_string().parse::<NidList>().unwrap().contains(odd));
}

#[test]
fn a_list_has_one_form() {
    let same = [
        ("a4d000c@<2:0>", "10.77.0.12@tcp"),
        ("ff@<16:1>", "255@kfi1"),
        ("[1/12].0.10.1", "1.0.10.1@tcp"),
        ("[7-7/2,9]@kfi", "[7,9]@kfi"),
    ];
    for (text, usual) in same {
        let list: NidList = text.parse().unwrap();
        assert_eq!((&list, list.to_string()), (&usual.parse().unwrap(), usual.to_owned()));
    }
}

fn any_nid() -> impl Strategy<Value = Nid> {
    let small = (0u8..=0xfe, any::<u16>(), any::<u32>())
        .prop_map(|(lnd, number, a)| Nid::small(Net { lnd: Lnd(lnd), number }, a));
    let v6 =
        (prop_oneof![Just(2u8), Just(18), Just(99), Just(14), Just(16)], any::<u16>(), any::<[u8; 16]>())
            .prop_map(|(lnd, number, a)| Nid::large(Net { lnd: Lnd(lnd), number }, a));
    prop_oneof![small, v6, Just(Nid::ANY)]
}

proptest! {
    #[test]
    fn nid_text_round_trips(n in any_nid()) {
        prop_assert_eq!(n.to_string().parse::<Nid>().unwrap(), n);
    }

    #[test]
    fn nid_bytes_round_trip(n in any_nid()) {
        prop_assert_eq!(Nid::from_bytes(n.to_bytes()), Some(n));
        if let Some(v) = n.to_nid4() {
            prop_assert_eq!(Nid::from_nid4(v), Some(n));
        }
    }

    #[test]
    fn process_text_round_trips(n in any_nid(), pid in any::<u32>()) {
        let id = ProcessId { nid: n, pid };
        prop_assert_eq!(id.to_string().parse::<ProcessId>().unwrap(), id);
    }

    #[test]
    fn list_text_round_trips(octets in proptest::collection::vec((0u32..=255, 0u32..=255, 1u32..4), 4), n in any_nid()) {
        let quad: Vec<String> = octets.iter().map(|(a, b, s)| format!("[{}-{}/{s}]", a.min(b), a.max(b))).collect();
        let list: NidList = format!("{}@tcp3", quad.join(".")).parse().unwrap();
        let again: NidList = list.to_string().parse().unwrap();
        prop_assert_eq!(again.contains(n), list.contains(n));
        let member = octets.iter().fold(0u32, |acc, (a, b, _)| acc << 8 | a.min(b));
        prop_assert!(again.contains(Nid::small(Net::new(Lnd::TCP, 3), member)));
    }

    #[test]
    fn parsers_never_panic(text in "\\PC{0,40}") {
        let _ = text.parse::<Nid>();
        let _ = text.parse::<NidList>();
        let _ = text.parse::<ProcessId>();
        let _ = text.parse::<Net>();
    }

    #[test]
    fn near_misses_never_panic(text in "[0-9.:@\\[\\]*/<>,U-]{0,24}(tcp|kfi|o2ib|lo)?[0-9]{0,6}") {
        let _ = text.parse::<Nid>();
        let _ = text.parse::<NidList>().map(|l| l.to_string());
        let _ = text.parse::<ProcessId>();
    }
}
