//! Everything about the tcp network that can be chosen.

use std::time::Duration;

/// Whom the acceptor lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accept {
    /// Source ports up to 1023 only. LNet's default.
    #[default]
    Secure,
    /// Everyone; who comes from a port above 1023 is known by IP and port, not by the NID it claims, and cannot be dialled
    /// back. LNet's `accept=all`.
    All,
    /// Everyone, and claimed NIDs are believed. Not in LNet; for nodes of ours without privileges on a trusted network.
    Trusted,
    /// Nobody.
    None,
}

/// Which source ports we dial from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SourcePorts {
    /// 1023 down to 512. Needs CAP_NET_BIND_SERVICE. LNet's way; a peer with `accept=secure` wants it.
    #[default]
    Privileged,
    /// Whatever the system gives.
    Any,
}

/// Parameters of the tcp network; the defaults are those of Lustre 2.17.
#[derive(Debug, Clone)]
pub struct TcpParams {
    /// Port we listen on, and dial for CONTROL and untyped connections.
    pub port: u16,
    /// Port we listen on, too, and dial for bulk connections.
    pub bulk_port: u16,
    /// Whom we let in.
    pub accept: Accept,
    /// Where we dial from.
    pub source_ports: SourcePorts,
    /// CONTROL, BULK_IN, BULK_OUT; else untyped connections only.
    pub typed: bool,
    /// Connections of each bulk type (or untyped) with a peer.
    pub conns_per_peer: usize,
    /// Messages of at least this many bytes, headers included, go by BULK_OUT.
    pub min_bulk: usize,
    /// Payloads of at least this many bytes ask for a zero-copy acknowledgement; `None`: never, as we copy.
    pub zero_copy_min: Option<u32>,
    /// Send checksums on V2 connections.
    pub checksum: bool,
    /// A connection that owes bytes, or a message half read, for this long is dead; also for an unanswered HELLO.
    pub sock_timeout: Duration,
    /// How long a stranger may take to introduce itself.
    pub accept_timeout: Duration,
    /// A peer not heard of for this long is sent a keepalive.
    pub keepalive: Duration,
    /// Pause before dialling again, doubled after each failure.
    pub min_reconnect: Duration,
    /// The longest such pause.
    pub max_reconnect: Duration,
    /// Connections of all peers together, strangers included.
    pub max_connections: usize,
    /// Bytes of waiting messages (lazy portals) after which a connection is not read on.
    pub max_held: usize,
    /// Messages that wait for a peer's first connection.
    pub max_queue: usize,
}

impl Default for TcpParams {
    fn default() -> Self {
        Self {
            port: 988,
            bulk_port: 988,
            accept: Accept::Secure,
            source_ports: SourcePorts::Privileged,
            typed: true,
            conns_per_peer: 1,
            min_bulk: 1024,
            zero_copy_min: None,
            checksum: true,
            sock_timeout: Duration::from_secs(50),
            accept_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(30),
            min_reconnect: Duration::from_secs(1),
            max_reconnect: Duration::from_secs(60),
            max_connections: 4096,
            max_held: 4 << 20,
            max_queue: 4096,
        }
    }
}

impl TcpParams {
    /// For a node without privileges among nodes of ours: any port, claimed NIDs believed.
    pub fn unprivileged(port: u16) -> Self {
        let (accept, source_ports) = (Accept::Trusted, SourcePorts::Any);
        Self { port, bulk_port: port, accept, source_ports, ..Self::default() }
    }

    /// How often deadlines are looked at.
    pub(crate) fn scan_interval(&self) -> Duration {
        let shortest = [self.sock_timeout, self.accept_timeout, self.keepalive, self.min_reconnect];
        let shortest = shortest.into_iter().min().unwrap_or(Duration::from_secs(1));
        (shortest / 4).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}
