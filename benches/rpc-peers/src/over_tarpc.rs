//! tarpc over loopback TCP, with bincode.

use crate::load::{Job, Load, median, rate};
use anyhow::bail;
use futures::{StreamExt, stream::FuturesUnordered};
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tarpc::{client, context, serde_transport};

#[tarpc::service]
trait Echo {
    async fn echo(data: Vec<u8>) -> Vec<u8>;
}

#[derive(Clone)]
struct Server;

impl Echo for Server {
    async fn echo(self, _: context::Context, data: Vec<u8>) -> Vec<u8> {
        data
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

pub fn serve() -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let mut listener = serde_transport::tcp::listen("127.0.0.1:0", Bincode::default).await?;
        println!("{}", listener.local_addr());
        while let Some(transport) = listener.next().await {
            let requests = BaseChannel::with_defaults(transport?).execute(Server.serve());
            tokio::spawn(requests.for_each(|one| async {
                tokio::spawn(one);
            }));
        }
        Ok(())
    })
}

pub fn measure(address: &str, load: &Load) -> anyhow::Result<f64> {
    let runtime = runtime()?;
    let client = runtime.block_on(async {
        let transport = serde_transport::tcp::connect(address, Bincode::default).await?;
        anyhow::Ok(EchoClient::new(client::Config::default(), transport).spawn())
    })?;
    let data = vec![7u8; load.size];
    let one = || async {
        let back = client.echo(context::current(), data.clone()).await?;
        anyhow::ensure!(back.len() == data.len());
        anyhow::Ok(())
    };
    match load.job {
        Job::Latency => median(load.length, || runtime.block_on(one())),
        Job::Rate => rate(load.length, || {
            runtime.block_on(async {
                let mut calls: FuturesUnordered<_> = (0..load.flight).map(|_| one()).collect();
                for _ in load.flight..2000 {
                    calls.next().await.unwrap_or(Ok(()))?;
                    calls.push(one());
                }
                while let Some(ended) = calls.next().await {
                    ended?;
                }
                Ok(2000)
            })
        }),
        _ => bail!("not measured over tarpc"),
    }
}
