//! tonic over loopback TCP: a unary method of bytes, the codec written by hand so that no protoc is needed.

use crate::load::Load;
use crate::over_tokio::{self, runtime};
use anyhow::Context as _;
use bytes::{Buf, BufMut, Bytes};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

/// Bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The service.
#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Answer<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner())) })
    }
}

impl tonic::codegen::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move { Ok(Grpc::new(Raw).unary(Echo, request).await) })
    }
}

pub fn serve() -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        Server::builder().add_service(Echo).serve_with_incoming(incoming).await.context("serving")
    })
}

async fn one(channel: Channel, data: Bytes) -> anyhow::Result<()> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let len = data.len();
    let path = http::uri::PathAndQuery::from_static("/bench.Echo/echo");
    let back: Response<Bytes> = grpc.unary(Request::new(data), path, Raw).await?;
    anyhow::ensure!(back.into_inner().len() == len);
    Ok(())
}

pub fn measure(address: &str, load: &Load) -> anyhow::Result<f64> {
    let runtime = runtime()?;
    let endpoint = Channel::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    let channel = runtime.block_on(endpoint.connect())?;
    let data = Bytes::from(vec![7u8; load.size]);
    over_tokio::measure(&runtime, load, || one(channel.clone(), data.clone()))
}
