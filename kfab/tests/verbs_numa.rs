//! Cards on two NUMA nodes: what uses a card lies and runs on the card's node.
//!
//! Needs a rail on each of two nodes, as `cargo xtask lab --numa 2 --cards 4 --card-nodes 0,0,1,1` makes them; elsewhere the test says
//! what is missing and does nothing. `KFAB_LAB_RDMA=1` demands them.

mod common;

use common::watched_for;
use kfab::topo::{Partition, PartitionPolicy, Partitions, Topology};
use kfab::{Endpoint, EndpointConfig, Fabric, PoolConfig, Provider, Rights};
use kfab_verbs::Verbs;

/// The node of a card's interface as the kernel tells it.
fn node_in_sysfs(interface: &str) -> u32 {
    let device = format!("/sys/class/net/{interface}/device");
    let files = [format!("{device}/numa_node"), format!("{device}/../numa_node")];
    let text = files.iter().find_map(|f| std::fs::read_to_string(f).ok()).expect("a node");
    text.trim().parse().expect("a number")
}

/// Whether both rails are here, on different nodes; if not, the reason is printed.
fn rails_are_here() -> bool {
    let why = match Verbs.probe() {
        Err(why) => why.reason,
        Ok(all) => {
            let node = |name: &str| all.iter().find(|d| d.name == name).and_then(|d| d.caps.node);
            let nodes = ["rxe_a0", "rxe_b0", "rxe_a1", "rxe_b1"].map(node);
            match nodes {
                [Some(a), Some(b), Some(c), Some(d)] if a == b && c == d && a != c => return true,
                _ => format!("a rail on each of two nodes is needed; the cards' nodes are {nodes:?}"),
            }
        }
    };
    assert!(std::env::var_os("KFAB_LAB_RDMA").is_none(), "KFAB_LAB_RDMA demands cards: {why}");
    println!("skipped: {why}");
    false
}

/// Pages of this process that are bound to a node, by node asked for and node they lie on.
fn bound_pages() -> [[u64; 2]; 2] {
    let mut pages = [[0; 2]; 2];
    for line in std::fs::read_to_string("/proc/self/numa_maps").unwrap().lines() {
        let mut words = line.split_whitespace().skip(1);
        let asked = words.next().and_then(|policy| policy.strip_prefix("prefer")?.rsplit(':').next());
        let Some(asked) = asked.and_then(|n| n.parse::<usize>().ok()) else { continue };
        for word in words {
            if let Some((node, n)) = word.strip_prefix('N').and_then(|w| w.split_once('='))
                && let (Ok(node), Ok(n)) = (node.parse::<usize>(), n.parse::<u64>())
            {
                pages[asked][node] += n;
            }
        }
    }
    pages
}

fn at_card(card: &str, partition: &Partition) -> Endpoint {
    let c = EndpointConfig {
        providers: vec!["verbs".into()],
        devices: vec![format!("verbs:{card}")],
        partition: Some(partition.clone()),
        pool: PoolConfig { region_bytes: 8 << 20, ..Default::default() },
        ..Default::default()
    };
    Fabric::new((Verbs,)).open(c).unwrap()
}

#[test]
fn memory_and_threads_are_beside_their_card() {
    if !rails_are_here() {
        return;
    }
    watched_for("two nodes", 200, || {
        let devices = Verbs.probe().unwrap();
        for interface in ["a0", "b0", "a1", "b1"] {
            let card = devices.iter().find(|d| d.name == format!("rxe_{interface}")).unwrap();
            assert_eq!(card.caps.node, Some(node_in_sysfs(interface)), "{interface}");
        }
        let plan = Partitions::plan(&Topology::discover(), &PartitionPolicy::PerNode).unwrap();
        let mut open = Vec::new();
        for rail in 0..2 {
            let node = node_in_sysfs(&format!("a{rail}"));
            let partition =
                plan.iter().find(|p| p.memory_node == Some(node)).expect("a partition of the node");
            let before = bound_pages();
            let (a, b) =
                (at_card(&format!("rxe_a{rail}"), partition), at_card(&format!("rxe_b{rail}"), partition));
            talk(&a, &b);
            let after = bound_pages();
            let (here, there) = (node as usize, 1 - node as usize);
            let grown = |asked: usize, lies: usize| after[asked][lies] - before[asked][lies];
            println!("rail {rail} on node {node}: {} pages there", grown(here, here));
            // Receives, slots to send from, the slabs of both ends and a window of 4 MiB.
            assert!(grown(here, here) > 1500, "{before:?} {after:?}");
            assert_eq!((grown(here, there), grown(there, there)), (0, 0), "{before:?} {after:?}");
            for e in [&a, &b] {
                let placed = e.placement();
                assert!(!placed.is_empty() && placed.iter().all(|p| p.is_met()), "{placed:?}");
            }
            open.push((a, b));
        }
    });
}

/// Messages of several sizes, a write and a read.
fn talk(a: &Endpoint, b: &Endpoint) {
    let to = a.peer(&b.address().to_string()).unwrap();
    for len in [8, 1000, 10_000, 1 << 20] {
        let receive = b.recv();
        let mut m = a.buffer(len).unwrap();
        m.get_mut().unwrap().fill(len as u8 + 1);
        to.send(m).wait().unwrap();
        assert_eq!(&receive.wait().unwrap()[..], vec![len as u8 + 1; len]);
    }
    let window = b.window(4 << 20, Rights::READ | Rights::WRITE).unwrap();
    let mut m = a.buffer(4 << 20).unwrap();
    m.get_mut().unwrap().fill(7);
    to.write(window.key(), 0, m).wait().unwrap();
    let back = to.read(window.key(), 0, a.buffer(4 << 20).unwrap()).wait().unwrap();
    assert_eq!(&back[..], vec![7; 4 << 20]);
}

#[test]
fn the_cards_beside_an_endpoint_carry_more() {
    if !rails_are_here() {
        return;
    }
    watched_for("near and far", 200, || {
        let plan = Partitions::plan(&Topology::discover(), &PartitionPolicy::PerNode).unwrap();
        let near = node_in_sysfs("a0");
        let partition = plan.iter().find(|p| p.memory_node == Some(near)).expect("a partition of the node");
        let open = || {
            let partition = Some(partition.clone());
            Fabric::new((Verbs,)).open(EndpointConfig { partition, ..Default::default() }).unwrap()
        };
        let (a, b) = (open(), open());
        let to = a.peer(&b.address().to_string()).unwrap();
        for _ in 0..16 {
            let receives: Vec<_> = (0..4).map(|_| b.recv()).collect();
            let sends: Vec<_> = (0..4).map(|_| to.send(&vec![7; 1 << 20][..])).collect();
            sends.into_iter().for_each(|s| s.wait().unwrap());
            receives.into_iter().for_each(|r| assert_eq!(r.wait().unwrap()[..], vec![7; 1 << 20]));
        }
        // Rail 0 (10.8.0.x) is on the near node.
        let ways = b.address().ways();
        assert_eq!(ways.len(), 4);
        let (mut here, mut there) = (0, 0);
        for r in b.stats().peers.into_iter().flat_map(|p| p.info.rails) {
            let sum = if ways[r.port].rest.starts_with("10.8.0.") { &mut here } else { &mut there };
            *sum += r.rx_bytes;
        }
        println!("near {here} bytes, far {there}");
        assert!(here > there + there / 4, "near {here} bytes, far {there}");
    });
}
