//! Methods: one constant names a portal, an opcode, and the types of request and reply, for service and client alike.

use super::body::{Body, Writer};
use super::error::{Error, Kind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;

/// Portals, as LNet counts them.
pub const PORTALS: usize = 64;
/// Opcodes of a portal.
pub const OPCODES: u16 = 256;

/// A value as bytes, in postcard's form. `Invalid` for a type that postcard cannot write.
#[inline]
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Body> {
    postcard::serialize_with_flavor(value, Writer::new())
        .map_err(|e| Error::new(Kind::Invalid, format!("a value that cannot be encoded: {e}")))
}

/// A value from bytes of a peer; `Protocol` for bytes that are not of the type, or too many of them.
#[inline]
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(Error::new(Kind::Protocol, "bytes after the value expected")),
        Err(e) => Err(Error::new(Kind::Protocol, format!("not the type expected: {e}"))),
    }
}

/// A method: where it is served, and what goes in and comes out (anything that serde knows, and owns its data).
///
/// ```
/// use lnet_shim::rpc::Method;
/// const ADD: Method<(u32, u32), u32> = Method::new(6, 1);
/// assert_eq!((ADD.portal(), ADD.opcode()), (6, 1));
/// ```
pub struct Method<Q, R> {
    portal: u8,
    opcode: u16,
    types: PhantomData<fn(Q) -> R>,
}

impl<Q, R> Method<Q, R> {
    /// A method of `portal` (below [`PORTALS`]) with `opcode` (below [`OPCODES`]).
    ///
    /// # Panics
    /// At compile time, where a constant is out of range.
    pub const fn new(portal: u8, opcode: u16) -> Self {
        assert!((portal as usize) < PORTALS, "portals are below 64");
        assert!(opcode < OPCODES, "opcodes are below 256");
        Method { portal, opcode, types: PhantomData }
    }

    /// Its portal.
    pub const fn portal(&self) -> u8 {
        self.portal
    }

    /// Its opcode.
    pub const fn opcode(&self) -> u16 {
        self.opcode
    }
}

impl<Q, R> Clone for Method<Q, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Q, R> Copy for Method<Q, R> {}

impl<Q, R> std::fmt::Debug for Method<Q, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Method({}, {})", self.portal, self.opcode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_value_survives_and_rubbish_is_refused() {
        let value = ("name".to_owned(), 7u64);
        let body = encode(&value).unwrap();
        assert_eq!(decode::<(String, u64)>(&body).unwrap(), value);
        for cut in 0..body.len() {
            assert!(decode::<(String, u64)>(&body[..cut]).is_err(), "{cut}");
        }
        let longer = [&body[..], &[0]].concat();
        assert!(decode::<(String, u64)>(&longer).is_err());
    }
}
