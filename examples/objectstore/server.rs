//! The server: handlers that move data and leave the disk to other threads, so that a slow disk delays nobody else.

use crate::protocol::*;
use crate::store::Store;
use blocking::unblock;
use kfab::{EndpointConfig, Fabric};
use lnet_shim::rpc::{Error, Request, Server, ServerConfig, Service};
use std::path::PathBuf;
use std::sync::Arc;

/// Serves the objects in `dir`, listening as told (`tcp:127.0.0.1:0`, `shm:name`), on one lane.
pub fn start(
    fabric: &Fabric,
    dir: PathBuf,
    listen: Vec<String>,
) -> Result<Server, Box<dyn std::error::Error>> {
    let store = Arc::new(Store::open(dir)?);
    let lane = EndpointConfig { listen, ..Default::default() };
    let config = ServerConfig { lanes: vec![lane], ..Default::default() };
    Ok(Server::start(fabric, config, vec![service(store)])?)
}

fn service(store: Arc<Store>) -> Service {
    let (put_store, get_store, list_store) = (store.clone(), store.clone(), store.clone());
    let (delete_store, stat_store, version_store) = (store.clone(), store.clone(), store);
    Service::new("objects", PORTAL)
        .on(PUT, move |request, put| self::put(put_store.clone(), request, put))
        .on(GET, move |request, get| self::get(get_store.clone(), request, get))
        .on(LIST, move |_, list| {
            let store = list_store.clone();
            unblock(move || store.list(&list))
        })
        .on(DELETE, move |_, delete: Delete| {
            let store = delete_store.clone();
            unblock(move || store.delete(&delete.name, delete.version))
        })
        .on(VERSION, move |_, name: String| {
            let store = version_store.clone();
            unblock(move || store.version(&name))
        })
        .on(STAT, move |_, name: String| {
            let store = stat_store.clone();
            unblock(move || store.stat(&name))
        })
        .on(PING, |_, ()| async { Ok(()) })
}

async fn put(store: Arc<Store>, request: Request, put: Put) -> lnet_shim::rpc::Result<()> {
    check_name(&put.name)?;
    let bulk = request.bulk()?;
    let len = bulk.readable();
    if len > OBJECT_MAX {
        return Err(Error::failed(EFBIG, format!("{len} bytes; an object has at most {OBJECT_MAX}")));
    }
    let parts = bulk.get(0, len as usize).await?;
    unblock(move || store.put(&put.name, put.version, &parts, put.sync)).await
}

async fn get(store: Arc<Store>, request: Request, get: Get) -> lnet_shim::rpc::Result<Got> {
    let bulk = request.bulk()?;
    let room = bulk.writable().min(OBJECT_MAX) as usize;
    let mut buffer = bulk.buffer(room)?;
    let (buffer, got) = unblock(move || {
        let got = match buffer.get_mut() {
            Some(into) => store.get(&get.name, get.offset, into),
            None => Err(Error::failed(EIO, "the buffer is in use")),
        };
        (buffer, got)
    })
    .await;
    let (have, len) = got?;
    bulk.put(0, &[buffer.slice(0..have)]).await?;
    Ok(Got { have: have as u64, len })
}
