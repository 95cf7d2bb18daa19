//! The fabric key and the handshake that proves possession of it: Noise `NNpsk0` (Noise specification, revision 34; crate
//! `snow`). One round trip; whoever lacks the key learns nothing and costs nothing but the first message. [`greeting`] is the talk
//! around it, for providers whose connections begin with a stream of bytes.

pub mod greeting;

use crate::{Error, Kind, Result};
use std::fmt;

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";

/// The longest handshake message, bytes.
pub const MAX_HANDSHAKE: usize = 256;
/// Bytes that encryption adds to a record.
pub const TAG_LEN: usize = 16;
/// The most plain bytes in one encrypted record.
pub const MAX_PLAIN: usize = 65_535 - TAG_LEN;

/// A secret that all members of a fabric share. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct FabricKey([u8; 32]);

impl FabricKey {
    /// From exactly 32 bytes.
    pub fn from_bytes(b: [u8; 32]) -> FabricKey {
        FabricKey(b)
    }

    /// From text: 64 hexadecimal digits, white space around them ignored (the form of a key file).
    pub fn from_hex(text: &str) -> Result<FabricKey> {
        let t = text.trim();
        let bad = |what: String| Error::new(Kind::InvalidArgument, "key", what);
        if t.len() != 64 || !t.is_ascii() {
            return Err(bad(format!("a fabric key is 64 hexadecimal digits, this has {}", t.len())));
        }
        let mut out = [0u8; 32];
        for (i, o) in out.iter_mut().enumerate() {
            *o = u8::from_str_radix(&t[2 * i..2 * i + 2], 16)
                .map_err(|_| bad(format!("not a hexadecimal digit near character {}", 2 * i + 1)))?;
        }
        Ok(FabricKey(out))
    }

    /// A new random key.
    pub fn generate() -> Result<FabricKey> {
        let mut b = [0u8; 32];
        fill_random(&mut b)?;
        Ok(FabricKey(b))
    }

    /// The 64 hexadecimal digits, for writing a key file.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Debug for FabricKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FabricKey(..)")
    }
}

/// Fills `b` from the system's random source.
pub fn fill_random(b: &mut [u8]) -> Result<()> {
    let mut got = 0;
    while got < b.len() {
        got += rustix::rand::getrandom(&mut b[got..], rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::os("random", "getrandom", e))?;
    }
    Ok(())
}

/// A random number that a peer cannot guess.
pub fn random_u64() -> Result<u64> {
    let mut b = [0; 8];
    fill_random(&mut b)?;
    Ok(u64::from_le_bytes(b))
}

/// One side of the handshake. The initiator calls [`Handshake::write`] then [`Handshake::read`]; the responder the other way
/// round; then both call [`Handshake::finish`].
pub struct Handshake(snow::HandshakeState);

fn failed(e: snow::Error) -> Error {
    Error::new(Kind::AuthFailed, "handshake", format!("the peer does not have this fabric's key ({e})"))
}

impl Handshake {
    /// The side that connects.
    pub fn initiator(key: &FabricKey) -> Result<Handshake> {
        Self::builder(key)?.build_initiator().map(Handshake).map_err(failed)
    }

    /// The side that accepts.
    pub fn responder(key: &FabricKey) -> Result<Handshake> {
        Self::builder(key)?.build_responder().map(Handshake).map_err(failed)
    }

    fn builder(key: &FabricKey) -> Result<snow::Builder<'_>> {
        let params = PATTERN.parse().expect("a pattern snow knows");
        snow::Builder::new(params).psk(0, &key.0).map_err(failed)
    }

    /// The next message to send.
    pub fn write(&mut self) -> Result<Vec<u8>> {
        let mut out = vec![0; MAX_HANDSHAKE];
        let n = self.0.write_message(&[], &mut out).map_err(failed)?;
        out.truncate(n);
        Ok(out)
    }

    /// Takes the peer's message; `Kind::AuthFailed` if the peer has another key.
    pub fn read(&mut self, message: &[u8]) -> Result<()> {
        self.0.read_message(message, &mut [0; MAX_HANDSHAKE]).map(drop).map_err(failed)
    }

    /// The ciphers of the session, after both messages.
    pub fn finish(self) -> Result<Session> {
        self.0.into_transport_mode().map(Session).map_err(failed)
    }
}

/// An authenticated session: seals and opens records in order. Nonces count up; a lost or doubled record fails.
pub struct Session(snow::TransportState);

impl Session {
    /// Encrypts `plain` (at most [`MAX_PLAIN`] bytes) into `out` (at least [`TAG_LEN`] longer); the length of the record.
    pub fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize> {
        self.0.write_message(plain, out).map_err(failed)
    }

    /// Decrypts a record into `out`; the length of the plain bytes. `Kind::AuthFailed` if it was tampered with.
    pub fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<usize> {
        self.0.read_message(record, out).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shake(a: &FabricKey, b: &FabricKey) -> Result<(Session, Session)> {
        let (mut i, mut r) = (Handshake::initiator(a)?, Handshake::responder(b)?);
        r.read(&i.write()?)?;
        i.read(&r.write()?)?;
        Ok((i.finish()?, r.finish()?))
    }

    #[test]
    fn the_same_key_makes_a_session_and_another_does_not() {
        let (k, other) = (FabricKey::generate().unwrap(), FabricKey::generate().unwrap());
        let (mut a, mut b) = shake(&k, &k).unwrap();
        let (mut sealed, mut plain) = ([0; 64], [0; 64]);
        let n = a.seal(b"payload", &mut sealed).unwrap();
        assert_ne!(&sealed[..7], b"payload");
        let m = b.open(&sealed[..n], &mut plain).unwrap();
        assert_eq!(&plain[..m], b"payload");
        assert!(b.open(&sealed[..n], &mut plain).is_err(), "a replayed record opens");
        assert_eq!(shake(&k, &other).map(drop).unwrap_err().kind(), Kind::AuthFailed);
    }

    #[test]
    fn keys_as_text() {
        let k = FabricKey::generate().unwrap();
        assert_eq!(FabricKey::from_hex(&format!(" {}\n", k.to_hex())).unwrap(), k);
        assert!(FabricKey::from_hex("12").unwrap_err().to_string().contains("64 hex"));
        assert!(FabricKey::from_hex(&"zz".repeat(32)).unwrap_err().to_string().contains("character 1"));
        assert_eq!(format!("{k:?}"), "FabricKey(..)");
    }
}
