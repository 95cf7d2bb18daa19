//! An endpoint in an event loop of one's own: `AsFd` to sleep on, `progress` to work, `arm` before sleeping. The loop here is
//! poll(2); epoll, mio or a GUI's loop go the same way.

use kfab::{Endpoint, EndpointConfig, Fabric, Message, Op, Progress};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;

/// Sleeps until the endpoint may have work. Timers want a look now and then, so never for ever.
fn sleep(endpoint: &Endpoint) -> std::io::Result<()> {
    if endpoint.arm() {
        let limit = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        poll(&mut [PollFd::new(&endpoint.as_fd(), PollFlags::IN)], Some(&limit))?;
    }
    while endpoint.progress() {}
    Ok(())
}

/// Runs the loop until the operation has ended.
fn run(endpoint: &Endpoint, mut op: Op<Message>) -> Result<Message, Box<dyn std::error::Error>> {
    loop {
        match op.try_take() {
            Ok(ended) => return Ok(ended?),
            Err(under_way) => op = under_way,
        }
        sleep(endpoint)?;
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fabric = Fabric::new((kfab_shm::Shm, kfab_sockets::Sockets));
    // `Inline`: no helper thread; this loop is the only one that polls.
    let endpoint = fabric.open(EndpointConfig { progress: Progress::Inline, ..Default::default() })?;
    let address = endpoint.address().to_string();
    let other = fabric.endpoint()?;
    let client = std::thread::spawn(move || -> kfab::Result<Vec<u8>> {
        let peer = other.peer(&address)?;
        for n in 1..=3u8 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            peer.send(&[n; 4]).wait()?;
        }
        Ok(other.recv().wait()?.to_vec())
    });
    let mut sum = 0;
    let mut last = None;
    for _ in 0..3 {
        let message = run(&endpoint, endpoint.recv())?;
        sum += message.iter().map(|b| u32::from(*b)).sum::<u32>();
        println!("loop: {:?}", &*message);
        last = Some(message);
    }
    if let Some(message) = last {
        let mut answer = message.from().send(sum.to_string().as_str());
        while !answer.is_done() {
            sleep(&endpoint)?;
        }
        answer.wait()?;
    }
    while !client.is_finished() {
        sleep(&endpoint)?;
    }
    let answer = client.join().map_err(|_| "the client panicked")??;
    assert_eq!(answer, b"24");
    println!("client: the sum is {}", String::from_utf8_lossy(&answer));
    Ok(())
}
