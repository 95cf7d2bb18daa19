//! tarpc over loopback TCP, with bincode.

use crate::load::Load;
use crate::over_tokio::{self, runtime};
use futures::StreamExt;
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
    over_tokio::measure(&runtime, load, one)
}
