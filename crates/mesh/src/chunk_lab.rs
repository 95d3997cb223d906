//! Nodes on loopback that serve chunks, honestly or not, for tests.

use crate::chunk_server::{ChunkServer, ServerLimits};
use crate::dial::{BoxFuture, Dial, DialError, Offence, ServeChunks};
use crate::fetcher::{Fetcher, Urgency, Want};
use crate::protocol::CHUNKS;
use iroh::endpoint::{Connection, SendStream, presets};
use iroh::{Endpoint, EndpointAddr, RelayMode};
use shoal_store::{Options, Store};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::{Ask, Part};
use shoal_wire::mesh::format::{Format, decode};
use shoal_wire::mesh::path_record::PathRecord;
use shoal_wire::nix::hash::sha256;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::SecretKey;
use shoal_wire::nix::store_path::StorePath;
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};

static KEYS: AtomicU8 = AtomicU8::new(1);

pub struct TestStore {
    pub store: Store,
    pub dir: TempDir,
}

pub fn store() -> TestStore {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 8 << 20, reserve_bytes: 1 << 20, ..Options::default() };
    TestStore { store: Store::open(dir.path(), options).unwrap(), dir }
}

/// Bytes without a pattern, other ones for each seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The NAR of a directory with these files.
pub fn nar<'a>(files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Vec<u8> {
    let files: BTreeMap<&str, Vec<u8>> = files.into_iter().collect();
    let mut writer = NarWriter::new(Vec::new());
    writer.directory(b"").unwrap();
    for (name, contents) in files {
        writer.regular(name.as_bytes(), false, contents.len() as u64).unwrap();
        writer.contents(&contents).unwrap();
    }
    writer.end_directory().unwrap();
    writer.finish().unwrap()
}

pub fn path(name: &str) -> StorePath {
    StorePath::from_parts(&sha256(name.as_bytes())[..20].try_into().unwrap(), name).unwrap()
}

/// Makes a path of the name valid in the store.
pub fn add(store: &Store, name: &str, nar: &[u8]) -> StorePath {
    let mut ingest = store.ingest();
    ingest.write_all(nar).unwrap();
    let ingested = ingest.finish().unwrap();
    let path = path(name);
    store.commit(vec![(PathInfo::new(path.clone(), ingested.nar_hash, ingested.nar_size), ingested)]).unwrap();
    path
}

pub fn export(store: &Store, path: &StorePath) -> Option<Vec<u8>> {
    let mut nar = Vec::new();
    store.export(path).unwrap()?.read_to_end(&mut nar).unwrap();
    Some(nar)
}

/// What somebody who has the path would say of it, unsigned.
pub fn record(store: &Store, path: &StorePath) -> PathRecord {
    let (info, content_root) = store.path_and_root(path).unwrap().unwrap();
    PathRecord {
        author: [7; 32],
        path: info.path,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references,
        content_root,
        deriver: None,
        ca: None,
        signatures: info.signatures,
    }
}

pub fn want(record: &PathRecord, holders: &[&Host]) -> Want {
    Want {
        record: record.clone(),
        holders: holders.iter().map(|host| host.key).collect(),
        urgency: Urgency::Client,
        checks_nar: false,
    }
}

async fn endpoint(seed: u8) -> Endpoint {
    Endpoint::builder(presets::Minimal)
        .secret_key(iroh::SecretKey::from_bytes(&[seed; 32]))
        .relay_mode(RelayMode::Disabled)
        .alpns(vec![CHUNKS.to_vec()])
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")
        .unwrap()
        .bind()
        .await
        .unwrap()
}

/// Serves until dropped.
pub struct Host {
    pub key: NodeKey,
    pub address: EndpointAddr,
    task: JoinHandle<()>,
}

impl Host {
    pub async fn new(serve: Arc<dyn ServeChunks>) -> Host {
        Host::with_seed(KEYS.fetch_add(1, Ordering::Relaxed), serve).await
    }

    pub async fn with_seed(seed: u8, serve: Arc<dyn ServeChunks>) -> Host {
        let endpoint = endpoint(seed).await;
        let (key, address) = (*endpoint.id().as_bytes(), endpoint.addr());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Some(incoming) = endpoint.accept().await {
                let serve = serve.clone();
                connections.spawn(async move {
                    if let Ok(connection) = incoming.await {
                        serve.serve(*connection.remote_id().as_bytes(), connection).await;
                    }
                });
            }
        });
        Host { key, address, task }
    }

    pub async fn honest(store: &Store, limits: ServerLimits) -> (Host, ChunkServer) {
        let seed = KEYS.fetch_add(1, Ordering::Relaxed);
        let key = Arc::new(SecretKey::from_seed("test", [seed; 32]).unwrap());
        let server = ChunkServer::new(store.clone(), key, limits);
        (Host::with_seed(seed, Arc::new(server.clone())).await, server)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Dials hosts by their addresses and keeps the connections.
pub struct Book {
    endpoint: Endpoint,
    addresses: Mutex<HashMap<NodeKey, EndpointAddr>>,
    connections: tokio::sync::Mutex<HashMap<NodeKey, Connection>>,
}

impl Book {
    pub async fn new(hosts: &[&Host]) -> Arc<Book> {
        let addresses = hosts.iter().map(|host| (host.key, host.address.clone())).collect();
        let endpoint = endpoint(KEYS.fetch_add(1, Ordering::Relaxed)).await;
        Arc::new(Book { endpoint, addresses: Mutex::new(addresses), connections: Default::default() })
    }

    /// The node that dials.
    pub fn key(&self) -> NodeKey {
        *self.endpoint.id().as_bytes()
    }

    pub fn add(&self, host: &Host) {
        self.addresses.lock().unwrap().insert(host.key, host.address.clone());
    }
}

impl Dial for Book {
    fn chunks(&self, node: NodeKey) -> BoxFuture<'_, Result<Connection, DialError>> {
        Box::pin(async move {
            let mut connections = self.connections.lock().await;
            if let Some(connection) = connections.get(&node).filter(|open| open.close_reason().is_none()) {
                return Ok(connection.clone());
            }
            let address = self.addresses.lock().unwrap().get(&node).cloned().ok_or(DialError::NoAddress)?;
            let connected = self.endpoint.connect(address, CHUNKS).await;
            let connection = connected.map_err(|error| DialError::Silent(error.to_string()))?;
            connections.insert(node, connection.clone());
            Ok(connection)
        })
    }
}

/// A fetcher into a new store that knows these hosts.
pub async fn fetcher(hosts: &[&Host]) -> (Fetcher, TestStore, Arc<Book>) {
    let (book, here) = (Book::new(hosts).await, store());
    (Fetcher::new(here.store.clone(), book.clone()), here, book)
}

/// What follows the bytes of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Finish,
    Hang,
}

type Reply = dyn Fn(Ask) -> (Vec<u8>, Then) + Send + Sync;

/// Answers as it is told.
struct Fake(Arc<Reply>);

impl ServeChunks for Fake {
    fn serve(&self, _: NodeKey, connection: Connection) -> BoxFuture<'static, Option<Offence>> {
        let fake = self.0.clone();
        Box::pin(async move {
            let mut streams = JoinSet::new();
            while let Ok((send, mut receive)) = connection.accept_bi().await {
                let fake = fake.clone();
                streams.spawn(async move {
                    let bytes = receive.read_to_end(Ask::LEN_MAX).await.unwrap_or_default();
                    if let Ok(ask) = decode::<Ask>(&bytes) {
                        reply(send, fake(ask)).await;
                    }
                });
            }
            None
        })
    }
}

async fn reply(mut send: SendStream, (bytes, then): (Vec<u8>, Then)) {
    if send.write_all(&bytes).await.is_err() {
        return;
    }
    match then {
        Then::Finish => _ = send.finish(),
        Then::Hang => std::future::pending().await,
    }
}

impl Host {
    pub async fn fake(reply: impl Fn(Ask) -> (Vec<u8>, Then) + Send + Sync + 'static) -> Host {
        Host::new(Arc::new(Fake(Arc::new(reply)))).await
    }
}

/// The parts of an honest answer.
pub fn honest(store: &Store, ask: &Ask) -> Vec<Vec<u8>> {
    let part = |head: Part, bytes: &[u8]| [&head.encode()[..], bytes].concat();
    match ask {
        Ask::Manifest(root) => vec![match store.packed_manifest(root).unwrap() {
            Some((packed, len)) => {
                part(Part::Here { len: len as u32, bytes: packed.len() as u32, hasty: false }, &packed)
            }
            None => part(Part::Absent, &[]),
        }],
        Ask::Chunks { hashes, .. } => {
            let frames = store.loose_frames(hashes.clone()).unwrap();
            let read = frames.read(0, usize::MAX >> 1).unwrap();
            let parts = read.frames.iter().enumerate().map(|(number, range)| match (range, frames.get(number)) {
                (Some(range), Some(place)) => part(
                    Part::Here { len: place.chunk_len, bytes: place.frame_len, hasty: place.hasty },
                    &read.bytes[range.clone()],
                ),
                _ => part(Part::Absent, &[]),
            });
            parts.collect()
        }
        other => vec![part(Part::Absent, &[]); other.parts()],
    }
}
