//! The providers below the protocol, both ends in one thread: a frame posted, polled, its body taken. Over `shm` this is the ring
//! (push, peek, take, publish); over `tcp` two system calls and the wire format, plain and encrypted.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kfab_core::auth::FabricKey;
use kfab_core::mem::{Landing, Pool};
use kfab_core::spi::{Body, Conn, Event, Frame, Inline, Port, PortConfig, Provider};

/// Two ports of a provider, connected.
struct Ends {
    a: Box<dyn Port>,
    b: Box<dyn Port>,
    conn: Conn,
    pool: Pool,
    now: u64,
    events: Vec<Event>,
}

impl Ends {
    fn new(provider: &dyn Provider, config: &PortConfig) -> Ends {
        let (mut a, b) = (provider.open(config).unwrap(), provider.open(config).unwrap());
        let conn = a.connect(&b.ways()[0]).unwrap();
        let mut ends = Ends { a, b, conn, pool: Pool::new(Default::default()), now: 1, events: Vec::new() };
        loop {
            ends.now += 1000;
            ends.a.poll(ends.now, &mut ends.events);
            if ends.events.drain(..).any(|e| matches!(e, Event::Up { .. })) {
                return ends;
            }
            ends.b.poll(ends.now, &mut ends.events);
            ends.events.clear();
        }
    }

    /// One frame from `a` to `b`.
    fn frame(&mut self, body: &[u8]) {
        let inline = Inline::new(b"12345678").unwrap();
        let body = if body.is_empty() { Body::Empty } else { Body::Borrowed(body) };
        let frame = Frame { header: [1; 16], inline, body, more: false };
        assert_eq!(self.a.post(self.conn, &[frame]), 1);
        loop {
            self.now += 1000;
            self.a.poll(self.now, &mut self.events);
            self.b.poll(self.now, &mut self.events);
            for e in self.events.drain(..) {
                match e {
                    Event::Frame { body_len: 0, .. } | Event::Taken { .. } => return,
                    Event::Frame { conn, body_len, .. } => {
                        let l = Landing::whole(self.pool.alloc(body_len).unwrap()).unwrap();
                        if self.b.take(conn, Some(l)).is_some() {
                            return;
                        }
                    }
                    Event::Incoming { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

fn frames(c: &mut Criterion) {
    let key = Some(FabricKey::from_bytes([1; 32]));
    let plain = PortConfig::default();
    let keyed = PortConfig { key, ..PortConfig::default() };
    let (shm, tcp) = (kfab_shm::Shm, kfab_sockets::Sockets);
    let all: [(&str, &dyn Provider, &PortConfig); 3] =
        [("shm", &shm, &plain), ("tcp", &tcp, &plain), ("tcp encrypted", &tcp, &keyed)];
    let mut g = c.benchmark_group("ports/frame");
    for (name, provider, config) in all {
        for len in [0usize, 1024, 32 << 10] {
            let mut ends = Ends::new(provider, config);
            let body = vec![7; len];
            g.throughput(Throughput::Bytes(len as u64 + 8));
            g.bench_function(BenchmarkId::new(name, len), |b| b.iter(|| ends.frame(&body)));
        }
    }
    g.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
