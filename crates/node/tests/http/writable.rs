//! A node that takes uploads, and a client that pushes and pulls by hand.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use shoal_node::door::Role;
use shoal_node::http::connection::Limits;
use shoal_node::http::put::Writer;
use shoal_node::http::{Cache, HttpOptions, HttpServer};
use shoal_node::tokens::{self, Tokens};
use shoal_node::upstream::Upstreams;
use shoal_store::{Effort, Encoder, IngestError, NarCutter, Store};
use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::mesh::transfer::{ChunkBatch, ChunkQuery, Commit, Entry, Lacking, Message};
use shoal_wire::nix::hash::sha256;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::{SecretKey, TrustedKeys};
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use crate::lab::{Answer, answer, connect, deposits};

pub struct Writable {
    pub store: Store,
    /// Trusted by the node.
    pub key: SecretKey,
    server: HttpServer,
    _runtime: tokio::runtime::Runtime,
    pub dir: tempfile::TempDir,
}

impl Writable {
    pub fn new() -> Writable {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let key = SecretKey::from_seed("lab-1", [7; 32]).unwrap();
        let mut cache = Cache::new(store.clone(), StoreDir::default());
        let tokens = Arc::new(Tokens::open(tokens::file(dir.path())));
        let trusted = TrustedKeys::from_iter([key.public()]);
        cache.writer = Some(Writer::new(deposits(&store, dir.path(), trusted, Upstreams::default()), tokens));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let options =
            HttpOptions { listen: "127.0.0.1:0".parse().unwrap(), identity: None, http3: false, limits: Limits::USUAL };
        let server = runtime.block_on(async { HttpServer::open(&options, Arc::new(cache)) }).unwrap();
        Writable { store, key, server, _runtime: runtime, dir }
    }

    pub fn token(&self, role: Role) -> String {
        tokens::create(&tokens::file(self.dir.path()), &format!("{role}"), role, None).unwrap()
    }

    pub fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// POST of `body`, or of its first `cut` bytes before the connection is cut; `None` where nothing is answered.
    pub fn post(&self, token: &str, path: &str, body: &[u8], cut: Option<usize>) -> Option<Answer> {
        let mut stream = connect(self.address());
        let head = format!(
            "POST /api/v1/{path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // The server may have hung up already.
        let _ = stream.write_all(&body[..cut.unwrap_or(body.len())]);
        if cut.is_some() {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        answer(stream, false)
    }

    pub fn status(&self, token: &str, path: &str, body: &[u8]) -> u16 {
        self.post(token, path, body, None).unwrap().status
    }

    /// Which of the chunks must be brought.
    pub fn lacking(&self, token: &str, upload: &str, chunks: &[Cut]) -> Vec<bool> {
        let query = ChunkQuery(chunks.iter().map(|cut| cut.chunk.hash).collect()).encode();
        let answer = self.post(token, &format!("push/{upload}/lacking"), &query, None).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        Lacking::decode(&answer.body).unwrap().0
    }

    pub fn commit(&self, token: &str, upload: &str, entries: Vec<Entry>) -> u16 {
        self.status(token, &format!("push/{upload}/commit"), &Commit(entries).encode())
    }
}

/// A chunk and its frame.
#[derive(Clone)]
pub struct Cut {
    pub chunk: ChunkRef,
    pub frame: Vec<u8>,
}

pub fn cut(nar: &[u8]) -> Vec<Cut> {
    let mut encoder = Encoder::new(1).unwrap();
    let mut chunks = Vec::new();
    let mut emit = |bytes: &[u8]| {
        let mut frame = Vec::new();
        encoder.encode(bytes, Effort::Level, &mut frame).unwrap();
        chunks.push(Cut { chunk: ChunkRef::of(bytes), frame });
        Ok::<_, IngestError>(())
    };
    let mut cutter = NarCutter::default();
    cutter.feed(nar, &mut emit).unwrap();
    cutter.finish(&mut emit).unwrap();
    chunks
}

pub fn batch(chunks: &[Cut]) -> Vec<u8> {
    let mut batch = ChunkBatch::default();
    chunks.iter().for_each(|cut| batch.push(&cut.chunk, &cut.frame));
    batch.encode()
}

pub fn path(name: &str) -> StorePath {
    StorePath::from_parts(&sha256(name.as_bytes())[..20].try_into().unwrap(), name).unwrap()
}

/// What a path of this NAR is committed with.
pub fn entry(name: &str, nar: &[u8], chunks: &[Cut]) -> Entry {
    let info = PathInfo::new(path(name), sha256(nar), nar.len() as u64);
    Entry { info, chunks: chunks.iter().map(|cut| cut.chunk).collect() }
}
