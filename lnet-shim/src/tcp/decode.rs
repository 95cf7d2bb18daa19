//! From a stream of bytes to requests, introductions and messages.
//!
//! Bytes go in as they come, in pieces of any size; items come out one at a time. At most one header and one payload (bounded
//! by 1 MiB, grown as bytes arrive) are held. Any error is final for the connection.

use crate::wire::acceptor::Request;
use crate::wire::hello::{Hello, Version};
use crate::wire::ksock::{self, Kind, KsockHeader};
use crate::wire::lnet::{HeaderForm, LnetHeader};
use crate::wire::{ByteOrder, WireError};

/// One whole thing off the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Acceptor request; a HELLO is expected next.
    Request(Request),
    /// HELLO; the caller says with [`Decoder::start_session`] what is expected next.
    Hello(Hello),
    /// NOOP: keepalive or zero-copy acknowledgements.
    Noop(KsockHeader),
    /// A message with its payload.
    Message(KsockHeader, LnetHeader, Vec<u8>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Request,
    Hello,
    Session { version: Version, order: ByteOrder },
}

/// The decoder of one connection.
#[derive(Debug)]
pub struct Decoder {
    stage: Stage,
    head: Vec<u8>,
    message: Option<(KsockHeader, LnetHeader, Vec<u8>)>,
}

impl Decoder {
    /// Of a connection that was accepted.
    pub fn passive() -> Self {
        Self { stage: Stage::Request, head: Vec::new(), message: None }
    }

    /// Of a connection that was dialled: a HELLO comes first.
    pub fn active() -> Self {
        Self { stage: Stage::Hello, ..Self::passive() }
    }

    /// Expects messages from now on.
    pub fn start_session(&mut self, version: Version, order: ByteOrder) {
        self.stage = Stage::Session { version, order };
    }

    /// Whether a thing has begun and not ended.
    pub fn is_mid_item(&self) -> bool {
        !self.head.is_empty() || self.message.is_some()
    }

    /// Takes bytes off the front of `input` up to the end of the next item. `None`: all taken, more needed.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Item>, WireError> {
        loop {
            if self.message.is_some() {
                return self.feed_payload(input);
            }
            match self.decode_head() {
                Err(WireError::Truncated { need }) if need > self.head.len() => {
                    let take = (need - self.head.len()).min(input.len());
                    if take == 0 {
                        return Ok(None);
                    }
                    let (now, later) = input.split_at(take);
                    self.head.extend_from_slice(now);
                    *input = later;
                }
                Err(other) => return Err(other),
                Ok(Some(item)) => {
                    self.head.clear();
                    return Ok(Some(item));
                }
                Ok(None) => {}
            }
        }
    }

    /// An item without payload, or `None` when a payload is to follow.
    fn decode_head(&mut self) -> Result<Option<Item>, WireError> {
        match self.stage {
            Stage::Request => {
                let (request, _) = Request::decode(&self.head)?;
                self.stage = Stage::Hello;
                Ok(Some(Item::Request(request)))
            }
            Stage::Hello => Ok(Some(Item::Hello(Hello::decode(&self.head)?.0))),
            Stage::Session { version, order } => self.decode_message(version, order),
        }
    }

    fn decode_message(&mut self, version: Version, order: ByteOrder) -> Result<Option<Item>, WireError> {
        if self.head.len() < ksock::LEN {
            return Err(WireError::Truncated { need: ksock::LEN });
        }
        let (first, rest) = self.head.split_at(ksock::LEN);
        let ksock = KsockHeader::decode(first, order)?;
        if ksock.kind == Kind::Noop {
            check_noop(&ksock, version, first)?;
            return Ok(Some(Item::Noop(ksock)));
        }
        let form = header_form(version);
        let header = LnetHeader::decode(rest, form).map_err(|e| match e {
            WireError::Truncated { need } => WireError::Truncated { need: need + ksock::LEN },
            other => other,
        })?;
        self.message = Some((ksock, header, Vec::new()));
        Ok(None)
    }

    fn feed_payload(&mut self, input: &mut &[u8]) -> Result<Option<Item>, WireError> {
        let Some((_, header, payload)) = &mut self.message else { return Ok(None) };
        let left = header.payload_len as usize - payload.len();
        if payload.capacity() == 0 && !input.is_empty() {
            // Once, at most 1 MiB; pages are touched only as bytes arrive.
            payload.reserve_exact(left);
        }
        let (now, later) = input.split_at(left.min(input.len()));
        payload.extend_from_slice(now);
        *input = later;
        if now.len() < left {
            return Ok(None);
        }
        self.check_sum()?;
        self.head.clear();
        Ok(self.message.take().map(|(k, h, p)| Item::Message(k, h, p)))
    }

    /// Only V2 connections verify, and only a checksum that is there.
    fn check_sum(&self) -> Result<(), WireError> {
        let (Some((ksock, _, payload)), Stage::Session { version: Version::V2, .. }) =
            (&self.message, self.stage)
        else {
            return Ok(());
        };
        if ksock.checksum != 0 && ksock.checksum != message_checksum(&self.head, payload) {
            return Err(WireError::Invalid("wrong checksum"));
        }
        Ok(())
    }
}

/// The form of LNet headers on a connection.
pub(super) fn header_form(version: Version) -> HeaderForm {
    if version == Version::V4 { HeaderForm::Large } else { HeaderForm::Small }
}

/// The checksum of a message whose two headers are `head`.
pub(super) fn message_checksum(head: &[u8], payload: &[u8]) -> u32 {
    let crc = ksock::crc32(ksock::CRC_INIT, &head[..4]);
    let crc = ksock::crc32(ksock::crc32(crc, &[0; 4]), &head[8..]);
    ksock::crc32(crc, payload)
}

fn check_noop(ksock: &KsockHeader, version: Version, raw: &[u8]) -> Result<(), WireError> {
    if ksock.checksum == 0 || version == Version::V2 && ksock.checksum == message_checksum(raw, &[]) {
        return Ok(());
    }
    Err(WireError::Invalid("wrong checksum"))
}
