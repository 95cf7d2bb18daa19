//! Room for what arrives: one buffer, or several that are filled one after the other as if they were one.

use super::buffer::Buffer;
use crate::{Error, Kind, Result};

/// Where a message or read goes.
#[derive(Debug)]
pub enum Room {
    /// To the beginning of a buffer.
    One(Buffer),
    /// Into buffers, one after the other, each to its end.
    Many(Vec<Buffer>),
}

impl Room {
    /// The buffers, in order.
    pub fn buffers(&self) -> &[Buffer] {
        match self {
            Room::One(b) => std::slice::from_ref(b),
            Room::Many(v) => v,
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.buffers().iter().fold(0, |sum, b| sum.saturating_add(b.len()))
    }

    /// `true` for no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `true` if no part of it has another owner.
    pub fn is_only(&mut self) -> bool {
        match self {
            Room::One(b) => b.get_mut().is_some(),
            Room::Many(v) => v.iter_mut().all(|b| b.get_mut().is_some()),
        }
    }
}

impl From<Buffer> for Room {
    fn from(b: Buffer) -> Room {
        Room::One(b)
    }
}

impl From<Vec<Buffer>> for Room {
    fn from(v: Vec<Buffer>) -> Room {
        Room::Many(v)
    }
}

/// Copies bytes into buffers, one after the other, each to its end; `op` is for the error. What is not needed stays as it is.
///
/// # Errors
/// `Truncated` if they hold less than the bytes, `InvalidArgument` if one that is needed has another owner. Nothing is copied then.
pub fn scatter(bytes: &[u8], into: &mut [Buffer], op: &'static str) -> Result<()> {
    let room = into.iter().fold(0usize, |sum, b| sum.saturating_add(b.len()));
    if room < bytes.len() {
        let why = format!("{} bytes for buffers of {room} in all", bytes.len());
        return Err(Error::new(Kind::Truncated, op, why));
    }
    let mut before = 0;
    let needed = into.iter_mut().take_while(|b| {
        before += b.len();
        before - b.len() < bytes.len()
    });
    let parts: Option<Vec<&mut [u8]>> = needed.map(Buffer::get_mut).collect();
    let parts = parts.ok_or_else(|| Error::new(Kind::InvalidArgument, op, "a buffer has another owner"))?;
    let mut rest = bytes;
    for part in parts {
        let (now, later) = rest.split_at(rest.len().min(part.len()));
        part[..now.len()].copy_from_slice(now);
        rest = later;
    }
    Ok(())
}
