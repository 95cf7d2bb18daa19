//! One connection: what it is for, what it has yet to read and write, and since when.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::Time;
use super::decode::{Decoder, header_form, message_checksum};
use crate::network::{Tx, TxId};
use crate::nid::ProcessId;
use crate::wire::ByteOrder;
use crate::wire::hello::{ConnType, Version};
use crate::wire::ksock::{self, Kind, KsockHeader};

/// Fill the output up to here before writing, bytes.
const BATCH: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Accepted; the acceptor request is expected.
    AwaitRequest,
    /// Accepted; HELLO is expected.
    AwaitHello,
    /// Being dialled.
    Connecting,
    /// Dialled; the answer to our HELLO is expected.
    AwaitAnswer,
    /// In use.
    Open,
    /// To be closed once everything is written.
    Closing,
}

/// Something to be written.
#[derive(Debug)]
pub(super) enum Queued {
    Noop { cookie: u64 },
    Message { tx: Tx, cookie: u64 },
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) state: State,
    /// As we see it.
    pub(super) kind: ConnType,
    pub(super) peer: Option<ProcessId>,
    pub(super) remote: SocketAddr,
    pub(super) version: Version,
    pub(super) decoder: Decoder,
    queue: VecDeque<Queued>,
    /// Acknowledgements among them.
    pub(super) owed: usize,
    pub(super) queued_bytes: usize,
    out: Vec<u8>,
    written: usize,
    /// End of each message in `out`, with its id unless a zero-copy acknowledgement will end it.
    marks: VecDeque<(usize, Option<TxId>)>,
    /// By when something must be read (handshake, rest of an item).
    pub(super) rx_deadline: Option<Time>,
    /// By when something must be written.
    pub(super) tx_deadline: Option<Time>,
    /// Bytes that wait at lazy portals.
    pub(super) held: i64,
    pub(super) served: u64,
}

impl Conn {
    pub(super) fn new(
        state: State,
        kind: ConnType,
        remote: SocketAddr,
        decoder: Decoder,
        deadline: Time,
    ) -> Self {
        Self {
            state,
            kind,
            peer: None,
            remote,
            version: Version::V3,
            decoder,
            queue: VecDeque::new(),
            owed: 0,
            queued_bytes: 0,
            out: Vec::new(),
            written: 0,
            marks: VecDeque::new(),
            rx_deadline: Some(deadline),
            tx_deadline: None,
            held: 0,
            served: 0,
        }
    }

    /// Puts handshake bytes in the output.
    pub(super) fn write_raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.queued_bytes += bytes.len();
    }

    pub(super) fn enqueue(&mut self, item: Queued) {
        self.queued_bytes += match &item {
            Queued::Noop { .. } => ksock::LEN,
            Queued::Message { tx, .. } => tx_len(tx, self.version),
        };
        // Acknowledgements go first: the other end waits for them with its buffers held.
        match item {
            Queued::Noop { .. } => {
                self.owed += 1;
                self.queue.push_front(item);
            }
            Queued::Message { .. } => self.queue.push_back(item),
        }
    }

    /// Whether bytes wait to be written.
    pub(super) fn owes(&self) -> bool {
        self.written < self.out.len() || !self.queue.is_empty()
    }

    /// The next bytes to write; empty if none.
    pub(super) fn outgoing(&mut self, checksum: bool) -> &[u8] {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            while self.out.len() < BATCH {
                let Some(item) = self.queue.pop_front() else { break };
                self.encode(item, checksum);
            }
        }
        &self.out[self.written..]
    }

    fn encode(&mut self, item: Queued, checksum: bool) {
        let start = self.out.len();
        let id = match item {
            Queued::Noop { cookie } => {
                self.owed -= 1;
                self.out
                    .extend_from_slice(&KsockHeader::new(Kind::Noop, 0, cookie).encode(ByteOrder::Little));
                None
            }
            Queued::Message { tx, cookie } => {
                self.out
                    .extend_from_slice(&KsockHeader::new(Kind::Lnet, cookie, 0).encode(ByteOrder::Little));
                self.out.extend_from_slice(&tx.header.encode(header_form(self.version)));
                tx.payload.append_to(&mut self.out);
                (cookie == 0).then_some(tx.id)
            }
        };
        if self.version == Version::V2 && checksum {
            let (head, rest) = self.out[start..].split_at(ksock::LEN);
            let sum = message_checksum(head, rest);
            self.out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
        }
        self.marks.push_back((self.out.len(), id));
    }

    /// `n` bytes have been written; gives the messages that have left.
    pub(super) fn wrote(&mut self, n: usize) -> Vec<TxId> {
        self.written += n;
        self.queued_bytes = self.queued_bytes.saturating_sub(n);
        let mut gone = Vec::new();
        while self.marks.front().is_some_and(|(end, _)| *end <= self.written) {
            gone.extend(self.marks.pop_front().and_then(|(_, id)| id));
        }
        gone
    }

    /// Messages that have not left, when the connection ends.
    pub(super) fn unsent(&mut self) -> Vec<TxId> {
        let marked = std::mem::take(&mut self.marks).into_iter().filter_map(|(_, id)| id);
        let queued = std::mem::take(&mut self.queue).into_iter().filter_map(|item| match item {
            Queued::Message { tx, cookie: 0 } => Some(tx.id),
            _ => None,
        });
        marked.chain(queued).collect()
    }
}

/// Bytes of a message on the wire.
pub(super) fn tx_len(tx: &Tx, version: Version) -> usize {
    ksock::LEN + header_form(version).header_len() + tx.payload.len() as usize
}
