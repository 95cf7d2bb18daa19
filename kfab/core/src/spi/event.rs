//! What a port reports from [`Port::poll`](super::Port::poll).

use super::{HEADER_LEN, Inline};
use crate::Error;
use crate::mem::Landing;
use rustix::io::Errno;

/// A connection of one port, named by the port. Never used again after its [`Event::Down`] has been reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conn(pub u64);

/// The caller's name for a one-sided operation that did not end within the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmaToken(pub u64);

/// Why a connection went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownReason {
    /// One side closed it in good order; nothing accepted was lost.
    Closed,
    /// The path broke, or the peer has no room for another; frames accepted may be lost; the peer may well live.
    Broken,
    /// Nobody answers there.
    Refused,
    /// The handshake failed: key, user id, or protocol version.
    Denied,
    /// The peer process is dead.
    PeerDead,
    /// The peer wrote garbage.
    Hostile,
}

impl DownReason {
    /// Why a socket could not be connected, by what the kernel said: [`DownReason::Refused`] where nobody is there, [`DownReason::Broken`] where it was
    /// something of our own.
    ///
    /// ```
    /// # use kfab_core::spi::DownReason;
    /// let nobody = std::net::TcpStream::connect("127.0.0.1:1").unwrap_err();
    /// assert_eq!(DownReason::of_dial(&nobody), DownReason::Refused);
    /// assert_eq!(DownReason::of_dial(&std::io::ErrorKind::OutOfMemory.into()), DownReason::Broken);
    /// ```
    pub fn of_dial(e: &std::io::Error) -> DownReason {
        match Errno::from_io_error(e) {
            Some(
                Errno::CONNREFUSED
                | Errno::HOSTUNREACH
                | Errno::NETUNREACH
                | Errno::TIMEDOUT
                | Errno::CONNRESET,
            ) => DownReason::Refused,
            _ => DownReason::Broken,
        }
    }
}

/// One thing that happened at a port.
#[derive(Debug)]
pub enum Event {
    /// A connection asked for with `connect` is ready.
    Up {
        /// Which one.
        conn: Conn,
    },
    /// A peer connected to us; the connection is ready.
    Incoming {
        /// Its new name.
        conn: Conn,
    },
    /// The connection is gone. Every body not yet taken and every one-sided operation on it has been reported before.
    Down {
        /// Which one.
        conn: Conn,
        /// Why.
        reason: DownReason,
        /// For logs: what the port knows more.
        detail: String,
    },
    /// A frame arrived. If `body_len` is 0 it is whole. Else the body waits: the caller must call
    /// [`Port::take`](super::Port::take) exactly once for it, and the port reports no further frame of this connection before.
    Frame {
        /// From where.
        conn: Conn,
        /// The protocol's header, as posted.
        header: [u8; HEADER_LEN],
        /// The inline part, as posted.
        inline: Inline,
        /// Bytes of body that wait to be taken.
        body_len: usize,
    },
    /// A body that `take` could not deliver at once is complete (`Ok`) or its connection broke on the way (`Err`).
    Taken {
        /// Of which connection.
        conn: Conn,
        /// The memory, handed back; `None` where the body was discarded.
        landing: Option<Landing>,
        /// `false` if the connection broke before the body was whole.
        ok: bool,
    },
    /// A one-sided operation ended.
    RmaDone {
        /// Which one.
        token: RmaToken,
        /// The local memory of a read, handed back.
        landing: Option<Landing>,
        /// How it ended.
        result: Result<(), Error>,
    },
    /// A connection that refused frames (`post` accepted fewer than offered) has room again.
    Writable {
        /// Which one.
        conn: Conn,
    },
}
