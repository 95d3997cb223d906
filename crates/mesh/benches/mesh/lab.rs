//! Nodes on loopback that serve a store, and one that fetches.

use iroh::endpoint::{Connection, presets};
use iroh::{Endpoint, EndpointAddr, RelayMode};
use shoal_mesh::chunk_server::{ChunkServer, ServerLimits};
use shoal_mesh::dial::{BoxFuture, Dial, DialError, ServeChunks};
use shoal_mesh::fetcher::{Fetched, Fetcher, Urgency, Want};
use shoal_mesh::protocol::CHUNKS;
use shoal_store::Store;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::path_record::PathRecord;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::SecretKey;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

static KEYS: AtomicU8 = AtomicU8::new(1);

pub async fn endpoint(seed: u8) -> Endpoint {
    Endpoint::builder(presets::Minimal)
        .secret_key(iroh::SecretKey::from_bytes(&[seed; 32]))
        .relay_mode(RelayMode::Disabled)
        .alpns(vec![CHUNKS.to_vec()])
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")
        .expect("an address")
        .bind()
        .await
        .expect("a socket")
}

pub fn key() -> u8 {
    KEYS.fetch_add(1, Ordering::Relaxed)
}

/// Serves a store on a runtime of its own; dropped, it is gone at once.
pub struct Host {
    pub key: NodeKey,
    address: EndpointAddr,
    runtime: Option<Runtime>,
}

impl Host {
    pub fn new(store: &Store, upload_bytes_per_s: Option<u64>) -> Host {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (mut host, serving) = Host::make(runtime.handle(), store, upload_bytes_per_s);
        runtime.spawn(serving);
        host.runtime = Some(runtime);
        host
    }

    /// Serves on a runtime that others use too.
    pub fn on(runtime: &Runtime, store: &Store) -> Host {
        let (host, serving) = Host::make(runtime.handle(), store, None);
        runtime.spawn(serving);
        host
    }

    fn make(
        runtime: &Handle,
        store: &Store,
        upload_bytes_per_s: Option<u64>,
    ) -> (Host, impl Future<Output = ()> + use<>) {
        let seed = key();
        let secret = Arc::new(SecretKey::from_seed("bench", [seed; 32]).expect("a key"));
        let server = ChunkServer::new(store.clone(), secret, ServerLimits { upload_bytes_per_s });
        let endpoint = runtime.block_on(endpoint(seed));
        let (key, address) = (*endpoint.id().as_bytes(), endpoint.addr());
        let serving = async move {
            let mut connections = JoinSet::new();
            while let Some(incoming) = endpoint.accept().await {
                let server = server.clone();
                connections.spawn(async move {
                    if let Ok(connection) = incoming.await {
                        server.serve(*connection.remote_id().as_bytes(), connection).await;
                    }
                });
            }
        };
        (Host { key, address, runtime: None }, serving)
    }

    /// Does nothing from now on, as a machine that froze.
    pub fn freeze(&self, time: Duration) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move { std::thread::sleep(time) });
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Book {
    endpoint: Endpoint,
    addresses: HashMap<NodeKey, EndpointAddr>,
    connections: Mutex<HashMap<NodeKey, Connection>>,
}

impl Dial for Book {
    fn chunks(&self, node: NodeKey) -> BoxFuture<'_, Result<Connection, DialError>> {
        Box::pin(async move {
            let mut connections = self.connections.lock().await;
            if let Some(open) = connections.get(&node).filter(|open| open.close_reason().is_none()) {
                return Ok(open.clone());
            }
            let address = self.addresses.get(&node).cloned().ok_or(DialError::NoAddress)?;
            let connected = self.endpoint.connect(address, CHUNKS).await;
            let connection = connected.map_err(|error| DialError::Silent(error.to_string()))?;
            connections.insert(node, connection.clone());
            Ok(connection)
        })
    }
}

/// A fetcher into `store` that knows these hosts and is connected to them.
pub async fn fetcher(store: &Store, hosts: &[&Host]) -> Fetcher {
    let addresses = hosts.iter().map(|host| (host.key, host.address.clone())).collect();
    let book = Book { endpoint: endpoint(key()).await, addresses, connections: Mutex::default() };
    for host in hosts {
        book.chunks(host.key).await.expect("a connection");
    }
    Fetcher::new(store.clone(), Arc::new(book))
}

pub fn want(record: &PathRecord, hosts: &[&Host]) -> Want {
    let holders = hosts.iter().map(|host| host.key).collect();
    Want { record: record.clone(), holders, urgency: Urgency::Client, checks_nar: false }
}

/// Fetches all paths and makes them valid; bytes of frames that moved.
pub async fn fetch_all(store: &Store, hosts: &[&Host], records: &[PathRecord]) -> u64 {
    let fetcher = fetcher(store, hosts).await;
    let fetching: Vec<_> = records.iter().map(|record| (record, fetcher.begin(want(record, hosts)))).collect();
    let mut moved = 0;
    for (record, fetching) in fetching {
        let fetched = fetching.wait().await.expect("a path");
        moved += fetched.moved_bytes;
        commit(store, record, fetched).await;
    }
    moved
}

pub async fn commit(store: &Store, record: &PathRecord, fetched: Fetched) {
    let info = PathInfo::new(record.path.clone(), record.nar_hash, record.nar_size);
    let store = store.clone();
    let committed = tokio::task::spawn_blocking(move || store.commit(vec![(info, fetched.ingested)])).await;
    committed.expect("a thread").expect("commit");
}
