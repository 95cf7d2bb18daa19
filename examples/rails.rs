//! Several rails: two TCP ports at each end are used together, and when one is cut the other carries on; nothing is lost or doubled.
//! With two network cards, name them: `devices: vec!["tcp:eth0".into(), "tcp:eth1".into()]`.

use kfab::{Endpoint, EndpointConfig, Fabric, FaultAction, FaultRule, Peer};

fn open(fabric: &Fabric) -> kfab::Result<Endpoint> {
    let listen = vec!["tcp:127.0.0.1:0".to_owned(), "tcp:127.0.0.1:0".to_owned()];
    fabric.open(EndpointConfig { listen, ..Default::default() })
}

/// Sends numbered messages of 64 KiB and checks that each arrives once.
fn send_all(server: &Endpoint, client: &Endpoint, peer: &Peer, count: usize) -> kfab::Result<()> {
    let mut seen = vec![0u32; count];
    let mut sent = Vec::new();
    for n in 0..count {
        let mut buffer = client.buffer(64 << 10)?;
        if let Some(bytes) = buffer.get_mut() {
            bytes.fill(n as u8);
            bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
        }
        sent.push(peer.send(buffer));
    }
    for _ in 0..count {
        let m = server.recv().wait_timeout(std::time::Duration::from_secs(20))?;
        let n = m.first_chunk().map_or(usize::MAX, |b| u64::from_le_bytes(*b) as usize);
        assert!(m.len() == 64 << 10 && m[8..].iter().all(|b| *b == n as u8), "message {n} is damaged");
        seen[n] += 1;
    }
    sent.into_iter().try_for_each(kfab::Op::wait)?;
    assert!(seen.iter().all(|n| *n == 1), "every message exactly once");
    Ok(())
}

fn shares(peer: &Peer) -> String {
    let rails = peer.info().map(|i| i.rails).unwrap_or_default();
    let one = |r: &kfab::RailInfo| format!("rail {} on port {}: {} KiB", r.rail, r.port, r.tx_bytes >> 10);
    rails.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fabric = Fabric::new((kfab_sockets::Sockets,));
    let (server, client) = (open(&fabric)?, open(&fabric)?);
    let peer = client.peer(&server.address().to_string())?;
    send_all(&server, &client, &peer, 200)?;
    println!("two rails: {}", shares(&peer));

    let cut = FaultRule { peer: None, port: Some(0), action: FaultAction::Cut, chance: 1.0, seed: 1 };
    let cut = client.add_fault(cut)?;
    send_all(&server, &client, &peer, 200)?;
    println!("port 0 cut: {}", shares(&peer));
    client.remove_fault(cut);
    send_all(&server, &client, &peer, 200)?;
    println!("port 0 back: {}", shares(&peer));
    Ok(())
}
