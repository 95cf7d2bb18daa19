//! The same operations under tokio: a server task, many client tasks on one endpoint, deadlines, late answers, and a receive that is
//! dropped.
//!
//! kfab brings no runtime and needs none: an `Op` is a future in any.

use kfab::{Endpoint, Fabric, Kind};
use std::sync::Arc;
use std::time::Duration;

/// How long the server takes for a question with more to think about.
const SLOW: Duration = Duration::from_millis(100);

/// Answers every question with its length.
async fn serve(endpoint: Arc<Endpoint>, questions: usize) -> kfab::Result<()> {
    for _ in 0..questions {
        let question = endpoint.recv_tagged(0, u64::MAX).await?;
        let tag = question.tag().unwrap_or_default();
        if &question[..] == b"slow" {
            tokio::time::sleep(SLOW).await;
        }
        let answer = format!("{} bytes", question.len());
        question.from().send_tagged(tag, answer.as_str()).await?;
    }
    Ok(())
}

/// Takes the answers that came after their deadline; how many. They wait for a receive, and each keeps some of the server's credit: if
/// nobody took them the server could send nothing more in the end. Here each receive is posted before its question leaves, so an
/// answer that waits is one that nobody waits for.
async fn take_late(client: &Endpoint) -> kfab::Result<usize> {
    let mut n = 0;
    while client.peek(Some((0, u64::MAX))).is_some() {
        client.recv_tagged(0, u64::MAX).await?;
        n += 1;
    }
    Ok(n)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    const CLIENTS: u64 = 10;
    let fabric = Fabric::new((kfab_shm::Shm, kfab_sockets::Sockets));
    let (server, client) = (Arc::new(fabric.endpoint()?), Arc::new(fabric.endpoint()?));
    let peer = client.peer(&server.address().to_string())?;
    let serving = tokio::spawn(serve(server.clone(), CLIENTS as usize + 1));

    let tasks: Vec<_> = (0..CLIENTS)
        .map(|tag| {
            let (client, peer) = (client.clone(), peer.clone());
            tokio::spawn(async move {
                let answer = client.recv_tagged(tag, 0);
                peer.send_tagged(tag, &vec![b'x'; 100 * tag as usize][..]).await?;
                let answer = answer.within(Duration::from_secs(10)).await?;
                Ok::<_, kfab::Error>(String::from_utf8_lossy(&answer).into_owned())
            })
        })
        .collect();
    for (tag, task) in tasks.into_iter().enumerate() {
        let answer = task.await??;
        assert_eq!(answer, format!("{} bytes", 100 * tag));
        println!("client {tag}: {answer}");
    }

    // An answer that comes too late is still an answer.
    let answer = client.recv_tagged(CLIENTS, 0);
    peer.send_tagged(CLIENTS, "slow").await?;
    let answer = answer.within(SLOW / 5).await;
    assert_eq!(answer.map(drop).map_err(|e| e.kind()), Err(Kind::TimedOut));
    serving.await??;
    while take_late(&client).await? == 0 {
        tokio::task::yield_now().await;
    }
    println!("one answer came late");

    // A receive that nobody answers ends at its deadline, whoever else waits; one that is dropped is withdrawn.
    let late = client.recv().within(Duration::from_millis(20)).await;
    assert_eq!(late.map(drop).map_err(|e| e.kind()), Err(Kind::TimedOut));
    tokio::select! {
        m = client.recv() => println!("unexpected: {m:?}"),
        () = tokio::time::sleep(Duration::from_millis(20)) => println!("nothing came; the receive was withdrawn"),
    }
    Ok(())
}
