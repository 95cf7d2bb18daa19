//! The bytes of a request or reply: in place if they are few, else owned or shared, never copied more often than needed.

use super::error::{Error, Kind, Result};
use kfab::{Buffer, Message};
use std::ops::Deref;

/// Bytes that are carried in the value itself.
pub const SMALL: usize = 64;

/// The bytes of a request or a reply. Dereferences to them.
#[derive(Clone)]
pub struct Body(Inner);

/// Aligned, so that what copies a value as a whole loads what was stored as a whole.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Bytes([u8; SMALL]);

#[derive(Clone)]
enum Inner {
    Small { len: u8, bytes: Bytes },
    Owned(Vec<u8>),
    Shared(Buffer),
}

impl Body {
    /// No bytes.
    pub const EMPTY: Body = Body(Inner::Small { len: 0, bytes: Bytes([0; SMALL]) });

    /// A copy of `bytes`; without an allocation up to [`SMALL`].
    #[inline]
    pub fn copy(bytes: &[u8]) -> Body {
        if bytes.len() <= SMALL {
            let mut b = Bytes([0; SMALL]);
            b.0[..bytes.len()].copy_from_slice(bytes);
            Body(Inner::Small { len: bytes.len() as u8, bytes: b })
        } else {
            Body(Inner::Owned(bytes.to_vec()))
        }
    }

    /// The message's bytes from `at` on: shared with it where they are many, else a copy.
    pub(crate) fn from_message(message: Message, at: usize) -> Result<Body> {
        let len = message.len();
        if len - at.min(len) <= SMALL {
            return Ok(Body::copy(&message[at.min(len)..]));
        }
        let buffer = message
            .into_buffer()
            .map_err(|e| Error::fabric(Kind::Busy, "no memory for a received message", e))?;
        Ok(Body(Inner::Shared(buffer.slice(at..len))))
    }

    /// As a buffer that can be sent or exposed without a copy. An owned body is adopted.
    pub fn into_buffer(self) -> Buffer {
        match self.0 {
            Inner::Small { len, bytes } => Buffer::adopt(bytes.0[..usize::from(len)].to_vec()),
            Inner::Owned(v) => Buffer::adopt(v),
            Inner::Shared(b) => b,
        }
    }
}

impl Deref for Body {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Inner::Small { len, bytes } => &bytes.0[..usize::from(*len)],
            Inner::Owned(v) => v,
            Inner::Shared(b) => b,
        }
    }
}

impl Default for Body {
    fn default() -> Body {
        Body::EMPTY
    }
}

impl From<&[u8]> for Body {
    fn from(bytes: &[u8]) -> Body {
        Body::copy(bytes)
    }
}

impl<const N: usize> From<&[u8; N]> for Body {
    fn from(bytes: &[u8; N]) -> Body {
        Body::copy(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(v: Vec<u8>) -> Body {
        if v.len() <= SMALL { Body::copy(&v) } else { Body(Inner::Owned(v)) }
    }
}

impl From<Buffer> for Body {
    fn from(b: Buffer) -> Body {
        Body(Inner::Shared(b))
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({} bytes)", self.len())
    }
}

/// Where postcard writes to: in place while it is little.
pub(crate) struct Writer {
    len: usize,
    bytes: [u8; SMALL],
    spill: Vec<u8>,
}

impl Writer {
    pub(crate) fn new() -> Writer {
        Writer { len: 0, bytes: [0; SMALL], spill: Vec::new() }
    }

    #[inline]
    fn extend(&mut self, data: &[u8]) {
        match self.bytes.get_mut(self.len..self.len + data.len()).filter(|_| self.spill.is_empty()) {
            Some(room) => {
                room.copy_from_slice(data);
                self.len += data.len();
            }
            None => {
                if self.spill.is_empty() {
                    self.spill.extend_from_slice(&self.bytes[..self.len]);
                }
                self.spill.extend_from_slice(data);
            }
        }
    }
}

impl postcard::ser_flavors::Flavor for Writer {
    type Output = Body;

    #[inline]
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.extend(&[data]);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.extend(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Body> {
        Ok(if self.spill.is_empty() {
            Body(Inner::Small { len: self.len as u8, bytes: Bytes(self.bytes) })
        } else {
            Body(Inner::Owned(self.spill))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_at_every_size() {
        for len in [0, 1, 63, 64, 65, 1000] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            assert_eq!(&*Body::copy(&bytes), &bytes[..]);
            assert_eq!(&*Body::from(bytes.clone()), &bytes[..]);
            assert_eq!(&Body::copy(&bytes).into_buffer()[..], &bytes[..]);
        }
    }

    #[test]
    fn typed_values_spill_when_they_are_long() {
        for len in [0usize, 5, 61, 62, 63, 64, 65, 300] {
            let value = (7u8, "x".repeat(len), 9u32);
            let body = postcard::serialize_with_flavor(&value, Writer::new()).unwrap();
            assert_eq!(&*body, &postcard::to_stdvec(&value).unwrap()[..], "{len}");
        }
    }
}
