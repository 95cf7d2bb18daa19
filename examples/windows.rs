//! One-sided access: a server opens memory to whoever has its key, a client reads and writes it without asking further; closing the
//! window ends that at once. Messages say when.

use kfab::{Endpoint, Fabric, Kind, Rights, WindowKey};

const SIZE: usize = 1 << 20;

/// The owner of the memory.
fn serve(endpoint: &Endpoint) -> kfab::Result<()> {
    let hello = endpoint.recv().wait()?;
    let window = endpoint.window(SIZE, Rights::READ | Rights::WRITE)?;
    window.write_at(0, b"written by the owner");
    hello.from().send(&window.key().to_bytes()[..]).wait()?;

    endpoint.recv().wait()?;
    let mut end = [0; 5];
    window.read_at(SIZE - end.len(), &mut end);
    println!("owner: the client wrote {:?} at the end", String::from_utf8_lossy(&end));
    assert_eq!(&end, b"there");

    drop(window);
    hello.from().send("closed").wait()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fabric = Fabric::new((kfab_shm::Shm, kfab_sockets::Sockets));
    let (server, client) = (fabric.endpoint()?, fabric.endpoint()?);
    let peer = client.peer(&server.address().to_string())?;
    let serving = std::thread::spawn(move || serve(&server).map(|()| server));

    peer.send("may I?").wait()?;
    let key = WindowKey::from_bytes(&client.recv().wait()?)?;
    println!("client: the window has {} bytes, rights {:?}", key.len(), key.rights());

    let bytes = peer.read(&key, 0, client.buffer(20)?).wait()?;
    println!("client: read {:?}", String::from_utf8_lossy(&bytes));
    assert_eq!(&bytes[..], b"written by the owner");
    peer.write(&key, SIZE as u64 - 5, b"there").wait()?;

    let outside = peer.write(&key, SIZE as u64 - 2, b"there").wait();
    println!("client: past the end: {}", outside.err().ok_or("a write past the end was accepted")?);

    peer.send("written").wait()?;
    client.recv().wait()?;
    let closed = peer.read(&key, 0, client.buffer(20)?).wait();
    assert_eq!(closed.map(drop).map_err(|e| e.kind()), Err(Kind::AccessDenied));
    println!("client: after the window was closed nothing can be read");
    drop(serving.join().map_err(|_| "the server panicked")??);
    Ok(())
}
