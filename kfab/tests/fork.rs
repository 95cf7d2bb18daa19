//! A fork beside open endpoints: the child can drop what it inherited, is told what it may not do, and opens an endpoint of its
//! own; the parent's connections go on as if nothing had been.

mod common;

use common::node::ask;
use common::sys::fork::{fork, leave};
use common::*;
use kfab::{Endpoint, FabricEvent, Kind, Op, Peer, Rights, Window};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::time::{Duration, Instant};

/// What a parent has when it forks.
struct Inherited {
    client: Endpoint,
    server: Endpoint,
    peer: Peer,
    window: Window,
    waits: Op<kfab::Message>,
}

impl Inherited {
    /// In the child: what is refused, and then everything is dropped.
    fn drop_all(self) {
        let address = self.server.address().to_string();
        let refused = [
            self.client.peer(&address).map(drop).unwrap_err(),
            self.client.window(4096, Rights::READ).map(drop).unwrap_err(),
            self.client.window_of(vec![1; 100].into()).map(drop).unwrap_err(),
        ];
        for e in refused {
            assert_eq!(e.kind(), Kind::Closed, "{e}");
            assert!(e.to_string().contains("fork"), "{e}");
        }
        let Inherited { client, server, peer, window, waits } = self;
        drop((waits, window, client, server, peer));
    }

    /// In the parent: everything is as it was.
    fn goes_on(self) {
        let Inherited { client, server, peer, window, waits } = self;
        // It was posted before the fork, and is the first.
        peer.send(b"for the one that waits").wait().unwrap();
        assert_eq!(&waits.wait().unwrap()[..], b"for the one that waits");
        peer.write(window.key(), 10, b"still open").wait().unwrap();
        let mut bytes = [0; 10];
        window.read_at(10, &mut bytes);
        assert_eq!(&bytes, b"still open");
        exchange(&client, &server, &peer);
        for e in [&client, &server] {
            let (events, _) = e.events();
            let broke =
                |e: &FabricEvent| !matches!(e, FabricEvent::PeerUp { .. } | FabricEvent::RailUp { .. });
            assert!(!events.iter().any(broke), "{events:?}");
            assert_eq!(e.stats().lane.conns, 1, "{:?}", e.stats());
        }
    }
}

/// Messages of all sizes to and fro.
fn exchange(client: &Endpoint, server: &Endpoint, peer: &Peer) {
    for len in [8, 3_000, 300_000] {
        let answer = std::thread::scope(|s| {
            s.spawn(|| {
                let m = server.recv().wait().unwrap();
                m.from().send(&m).wait().unwrap();
            });
            ask(client, peer, &pattern(len, 1))
        });
        answer.unwrap();
    }
}

/// Waits until the child has ended well.
fn ended(child: Pid) {
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some((_, status)) = waitpid(Some(child), WaitOptions::NOHANG).unwrap() {
            assert_eq!(status.exit_status(), Some(0), "{status:?}");
            return;
        }
        if Instant::now() > limit {
            let _ = kill_process(child, Signal::KILL);
            panic!("the child hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Two endpoints that have talked, forked.
fn forked(scheme: &str, child: impl FnOnce(Inherited)) {
    let (client, server, peer) = pair(scheme);
    exchange(&client, &server, &peer);
    let (window, waits) = (server.window(4096, Rights::WRITE).unwrap(), server.recv());
    let all = Inherited { client, server, peer, window, waits };
    let Some(pid) = fork() else {
        let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| child(all)));
        leave(i32::from(r.is_err()))
    };
    ended(pid);
    all.goes_on();
}

#[test]
fn a_forked_child_drops_what_it_inherited_and_the_parents_connections_go_on() {
    on_all("a child that drops", |scheme| forked(scheme, Inherited::drop_all));
}

#[test]
fn a_forked_child_opens_an_endpoint_of_its_own() {
    on_all("a child of its own", |scheme| {
        let scheme = scheme.to_owned();
        forked(&scheme.clone(), move |inherited| {
            let there = inherited.server.address().to_string();
            inherited.drop_all();
            let (client, server, peer) = pair(&scheme);
            assert!(client.address().to_string() != there && server.address().to_string() != there);
            exchange(&client, &server, &peer);
        });
    });
}
