//! Entry points for fuzzers. Not part of the API.
//!
//! [`fuzz_session`] plays a hostile peer against everything that reads a socket: acceptor, HELLO, messages, and the node
//! above, with memory attached that a PUT or GET may reach. It panics only where the code has a defect.

use std::net::SocketAddr;
use std::time::Duration;

use crate::core::*;
use crate::kfi::Frame;
use crate::network::{Tx, TxId, Upcall};
use crate::nid::{Net, Nid, NidList, ProcessId};
use crate::node::{Effect, Engine, NiConfig, NodeParams, Sink};
use crate::tcp::{Accept, Action, ConnId, Machine, TcpParams};
use crate::wire::lnet::{Body, HeaderForm, LnetHeader, WireHandle};
use crate::wire::lst::LstMessage;
use crate::wire::ping::PingInfo;

/// The node's own address in the play: 10.77.0.12, as in the captures.
const ME: u32 = 0x0a4d_000c;
const PEER: u32 = 0x0a4d_000b;

struct Play {
    now: Duration,
    machine: Machine,
    engine: Engine,
    me: Nid,
    transmitted: usize,
    ended: usize,
}

impl Play {
    fn new(first: u8) -> Self {
        let accept = if first & 1 == 0 { Accept::Trusted } else { Accept::All };
        let params =
            TcpParams { accept, zero_copy_min: (first & 4 != 0).then_some(0), ..TcpParams::default() };
        let me = Nid::small(Net::TCP, ME);
        let mut engine = Engine::new(NodeParams { max_peers: 64, ..NodeParams::default() }, 7);
        let now = Duration::from_secs(1);
        let _ = engine.add_ni(now, NiConfig::new(me));
        let options = TargetOptions { manage_remote: true, ..TargetOptions::new(Access::PutGet) };
        let entry = MeParams { ignore_bits: u64::MAX, unlink: Unlink::Retain, ..MeParams::new(1, 0) };
        let sink = EventSink::callback(1 << 20, |_| {});
        let memory = SharedBytes::zeroed(4096).memory();
        let _ = engine.attach(now, entry, memory, options, Sink::User(sink));
        let _ = engine.core().set_lazy(2, true);
        let machine = Machine::new(params, ProcessId::lnet(me), 1);
        Self { now, machine, engine, me, transmitted: 0, ended: 0 }
    }

    /// Does what machine and engine want until they rest; the peer reads everything and refuses to be dialled.
    fn settle(&mut self) {
        loop {
            if let Some(effect) = self.engine.poll() {
                if let Effect::Command(_, command) = effect {
                    self.transmitted += usize::from(matches!(command, crate::network::Command::Transmit(_)));
                    self.machine.command(self.now, command);
                }
                continue;
            }
            match self.machine.poll() {
                Some(Action::Up(upcall)) => {
                    self.ended += usize::from(matches!(upcall, Upcall::Sent(..)));
                    self.engine.upcall(self.now, self.me, upcall);
                }
                Some(Action::Flush { conn }) => self.flush(conn),
                Some(Action::Dial { conn, .. }) => {
                    self.machine.connected(self.now, conn, Err(crate::tcp::DialError::Remote));
                }
                Some(_) => {}
                None => return,
            }
        }
    }

    fn flush(&mut self, conn: ConnId) {
        loop {
            let n = self.machine.outgoing(conn).len();
            if n == 0 {
                return;
            }
            self.machine.wrote(self.now, conn, n);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.machine.handle_timeout(self.now);
        self.engine.handle_timeout(self.now);
        self.settle();
    }
}

/// A hostile peer dials us (or, by the first byte, is dialled) and says `data`, in pieces the first bytes choose.
pub fn fuzz_session(data: &[u8]) {
    let [first, second, rest @ ..] = data else { return };
    let mut play = Play::new(*first);
    let Some(conn) = (if first & 2 == 0 { accepted(&mut play) } else { dialled(&mut play) }) else { return };
    play.settle();
    for piece in rest.chunks(usize::from(*second) + 1) {
        play.machine.received(play.now, conn, piece);
        play.settle();
        if first & 8 != 0 {
            play.pass(Duration::from_millis(300));
        }
    }
    play.machine.closed(play.now, conn);
    play.settle();
    for _ in 0..40 {
        play.pass(Duration::from_secs(10));
    }
    assert_eq!(play.transmitted, play.ended, "a message did not end, or ended twice");
}

fn accepted(play: &mut Play) -> Option<ConnId> {
    let remote = SocketAddr::new(Nid::small(Net::TCP, PEER).ip()?, 1023);
    play.machine.accepted(play.now, remote)
}

fn dialled(play: &mut Play) -> Option<ConnId> {
    let (src, dest) = (ProcessId::lnet(play.me), ProcessId::lnet(Nid::small(Net::TCP, PEER)));
    let body = Body::Put { handle: WireHandle::NONE, match_bits: 0, hdr_data: 0, portal: 1, offset: 0 };
    let header = LnetHeader { dest, src, payload_len: 0, body };
    play.transmitted += 1;
    play.machine.transmit(play.now, Tx { id: TxId(u64::MAX), peer: dest, header, payload: Payload::EMPTY });
    match play.machine.poll() {
        Some(Action::Dial { conn, .. }) => {
            play.machine.connected(play.now, conn, Ok(()));
            Some(conn)
        }
        _ => None,
    }
}

/// All decoders and text parsers on the same bytes.
pub fn fuzz_decoders(data: &[u8]) {
    if let Ok(info) = PingInfo::decode(data) {
        let _ = info.entries();
        assert_eq!(
            PingInfo::decode(&info.encode(crate::wire::ByteOrder::Big)).map(|i| i.small),
            Ok(info.small)
        );
    }
    if let Ok(message) = LstMessage::decode(data) {
        assert_eq!(LstMessage::decode(&message.encode()), Ok(message));
    }
    if let Ok(frame) = Frame::decode(data) {
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }
    for form in [HeaderForm::Small, HeaderForm::Large] {
        if let Ok(header) = LnetHeader::decode(data, form) {
            assert_eq!(LnetHeader::decode(&header.encode(form), form), Ok(header));
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(nid) = text.parse::<Nid>() {
            assert_eq!(nid.to_string().parse(), Ok(nid));
        }
        if let Ok(list) = text.parse::<NidList>() {
            assert_eq!(list.to_string().parse(), Ok(list));
        }
        let _ = text.parse::<ProcessId>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ByteOrder;
    use crate::wire::acceptor::Request;
    use crate::wire::hello::{ConnType, Hello, Version};
    use crate::wire::ksock::{Kind, KsockHeader};
    use crate::wire::ping;
    use proptest::prelude::*;

    /// A peer that says everything right: introduces itself, pings, pushes, puts, gets, acknowledges.
    fn good_session(active: bool, version: Version) -> Vec<u8> {
        let (src, dest) =
            (ProcessId::lnet(Nid::small(Net::TCP, PEER)), ProcessId::lnet(Nid::small(Net::TCP, ME)));
        let hello = Hello {
            order: ByteOrder::Little,
            version,
            src_nid: src.nid,
            dst_nid: dest.nid,
            src_pid: src.pid,
            dst_pid: 0,
            src_incarnation: 3,
            dst_incarnation: 0,
            conn_type: ConnType::Control,
        };
        let mut out = Vec::new();
        if !active {
            out.extend(Request { order: ByteOrder::Little, target: dest.nid }.encode());
        }
        out.extend(hello.encode());
        let form = if version == Version::V4 { HeaderForm::Large } else { HeaderForm::Small };
        let handle = WireHandle::new(9, 9);
        let info = PingInfo {
            features: 0x1e,
            pid: 12345,
            sequence: 1,
            small: vec![ping::NiEntry { nid: src.nid, status: ping::STATUS_UP }],
            large: vec![],
            metadata: vec![],
        };
        let info = info.encode(ByteOrder::Little);
        let bits = ping::MATCH_BITS;
        let put = |portal, match_bits| Body::Put { handle, match_bits, hdr_data: 1, portal, offset: 5 };
        let bodies = [
            (Body::Get { handle, match_bits: bits, portal: 0, offset: 0, sink_len: 3960 }, vec![]),
            (put(0, bits), info),
            (put(1, 77), vec![8; 300]),
            (put(2, 1), vec![9; 30]),
            (Body::Get { handle, match_bits: 0, portal: 1, offset: 9, sink_len: 100 }, vec![]),
            (Body::Ack { handle: WireHandle::new(7, 5), match_bits: 0, mlength: 3 }, vec![]),
            (Body::Reply { handle: WireHandle::new(7, 9) }, vec![1; 9]),
        ];
        for (i, (body, payload)) in bodies.into_iter().enumerate() {
            let cookie = if i % 2 == 0 { 0 } else { i as u64 + 2 };
            out.extend(KsockHeader::new(Kind::Lnet, cookie, 0).encode(ByteOrder::Little));
            let header = LnetHeader { dest, src, payload_len: payload.len() as u32, body };
            out.extend(header.encode(form));
            out.extend(payload);
        }
        out.extend(KsockHeader::new(Kind::Noop, 0, 1).encode(ByteOrder::Little));
        out
    }

    fn play(first: u8, piece: u8, session: &[u8]) {
        fuzz_session(&[&[first, piece][..], session].concat());
    }

    #[test]
    fn sessions_cut_at_every_length() {
        for version in [Version::V2, Version::V3, Version::V4] {
            let session = good_session(false, version);
            for cut in (0..session.len()).step_by(if version == Version::V3 { 1 } else { 7 }) {
                play(0, 255, &session[..cut]);
            }
            play(0, 0, &session);
            play(2, 20, &good_session(true, version));
            play(9, 20, &session);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn damaged_sessions(first: u8, piece: u8, version in 0usize..3, hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)) {
            let version = [Version::V2, Version::V3, Version::V4][version];
            let mut session = good_session(first & 2 != 0, version);
            for (at, value) in hits {
                let at = at.index(session.len());
                session[at] = value;
            }
            play(first, piece, &session);
            fuzz_decoders(&session);
        }

        #[test]
        fn noise(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz_session(&data);
            fuzz_decoders(&data);
        }
    }
}
