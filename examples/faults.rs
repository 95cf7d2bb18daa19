//! Faults on purpose: what a bad network does to a program can be tried at one's desk, and the same seed does it again. Here a rule
//! delays and doubles frames, then one stalls the peer until an operation's deadline ends it.

use kfab::{EndpointConfig, Fabric, FaultAction, FaultRule, Kind};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fabric = Fabric::new((kfab_sockets::Sockets,));
    let (server, client) = (fabric.open(EndpointConfig::default())?, fabric.open(EndpointConfig::default())?);
    let peer = client.peer(&server.address().to_string())?;
    peer.send("before").wait()?;
    server.recv().wait()?;

    let rule =
        FaultRule { peer: Some(peer.id()), port: None, action: FaultAction::Duplicate, chance: 0.5, seed: 7 };
    let twice = client.add_fault(rule)?;
    let late =
        client.add_fault(FaultRule { action: FaultAction::Delay { ns: 2_000_000 }, chance: 0.3, ..rule })?;
    let mut seen = Vec::new();
    for n in 0..100u8 {
        peer.send(&[n]).wait()?;
        seen.push(server.recv().wait_timeout(Duration::from_secs(10))?[0]);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..100).collect::<Vec<u8>>(), "every message exactly once");
    let (twice, late) = (client.remove_fault(twice), client.remove_fault(late));
    println!("100 messages arrived exactly once; {twice:?} frames were doubled, {late:?} delayed");

    let stall = client.add_fault(FaultRule { action: FaultAction::Stall, chance: 1.0, ..rule })?;
    let op =
        peer.send_with("nobody hears this yet", kfab::SendOptions { delivered: true, ..Default::default() });
    let e = op.wait_timeout(Duration::from_millis(100)).err().ok_or("a stalled peer answered")?;
    println!("stalled: {e} (fate {:?})", e.fate());
    assert_eq!(e.kind(), Kind::TimedOut);
    client.remove_fault(stall);
    peer.send("after").wait()?;
    while &*server.recv().wait_timeout(Duration::from_secs(10))? != b"after" {}
    println!("after the stall traffic goes on");
    Ok(())
}
