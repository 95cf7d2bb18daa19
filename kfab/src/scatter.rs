//! A received message in several buffers: cut where it lies, or copied into buffers of the receiver's own.
//!
//! A message comes into one stretch of memory on every provider (what arrives late, in pieces or over several rails has one place to
//! go). So a vector on the receiving side costs nothing when the parts may lie side by side ([`Message::into_parts`]), and one copy
//! where each has a place of its own ([`Message::scatter`]).

use crate::endpoint::Message;
use kfab_core::mem::Buffer;
use kfab_core::{Error, Kind, Result};

impl Message {
    /// The memory that it came in, cut into parts of these lengths and a last one with the rest (which may be empty): a header and
    /// what follows it, say. Nothing is copied; the parts share the memory, which is free when the last of them is dropped.
    ///
    /// # Errors
    /// `Truncated` if the message is shorter than the lengths together.
    pub fn into_parts(self, lens: &[usize]) -> Result<Vec<Buffer>> {
        let len = self.len();
        let wanted = lens.iter().try_fold(0usize, |sum, n| sum.checked_add(*n)).filter(|sum| *sum <= len);
        if wanted.is_none() {
            let why = format!("{len} bytes cannot be cut into parts of {lens:?}");
            return Err(Error::new(Kind::Truncated, "into_parts", why));
        }
        let whole = self.into_buffer()?;
        let mut at = 0;
        let mut parts = Vec::with_capacity(lens.len() + 1);
        for n in lens {
            parts.push(whole.slice(at..at + n));
            at += n;
        }
        parts.push(whole.slice(at..len));
        Ok(parts)
    }

    /// Copies the message into these buffers, one after the other, each to its end; the number of bytes. What of the buffers is not
    /// needed stays as it is.
    ///
    /// # Errors
    /// `Truncated` if they hold less than the message, `InvalidArgument` if one that is needed has another owner. Nothing is copied
    /// then.
    pub fn scatter(&self, into: &mut [Buffer]) -> Result<usize> {
        let room = into.iter().fold(0usize, |sum, b| sum.saturating_add(b.len()));
        if room < self.len() {
            let why = format!("{} bytes for buffers of {room} in all", self.len());
            return Err(Error::new(Kind::Truncated, "scatter", why));
        }
        let mut before = 0;
        let needed = into.iter_mut().take_while(|b| {
            before += b.len();
            before - b.len() < self.len()
        });
        let parts: Option<Vec<&mut [u8]>> = needed.map(Buffer::get_mut).collect();
        let parts = parts
            .ok_or_else(|| Error::new(Kind::InvalidArgument, "scatter", "a buffer has another owner"))?;
        let mut rest: &[u8] = self;
        for part in parts {
            let (now, later) = rest.split_at(rest.len().min(part.len()));
            part[..now.len()].copy_from_slice(now);
            rest = later;
        }
        Ok(self.len())
    }
}
