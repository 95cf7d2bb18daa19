//! Hello, both sides: without an argument the server, which starts the client (itself, with the address as argument).
use kfab::Fabric;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = Fabric::new((kfab_shm::Shm, kfab_sockets::Sockets)).endpoint()?;
    if let Some(address) = std::env::args().nth(1) {
        let server = endpoint.peer(&address)?;
        server.send("hello").wait()?;
        let answer = endpoint.recv().wait()?;
        println!("client: {}", std::str::from_utf8(&answer)?);
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let mut client = std::process::Command::new(program).arg(endpoint.address().to_string()).spawn()?;
    let message = endpoint.recv().wait()?;
    println!("server: {}", std::str::from_utf8(&message)?);
    message.from().send("hello yourself").wait()?;
    client.wait()?;
    Ok(())
}
