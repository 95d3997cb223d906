//! Nodes on loopback, for tests.

use crate::clock::wall_s;
use crate::dial::{BoxFuture, Offence, ServeBuilds, ServeChunks};
use crate::identity::{Identity, MEMBERSHIP_S};
use crate::links::{Incoming, Links, LinksOptions};
use iroh::endpoint::Connection;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::HolderMessage;
use shoal_wire::mesh::certificate::{Certificate, Roles, Term};
use shoal_wire::mesh::format::encode;
use shoal_wire::nix::signature::SecretKey;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Longer than anything here may take, on a machine that does other things.
pub const PATIENCE: Duration = Duration::from_secs(20);
const EVENTS: usize = 64;

pub fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed("test", [seed; 32]).unwrap()
}

pub fn public(seed: u8) -> NodeKey {
    *key(seed).public().bytes()
}

/// The seed of the mesh key that nodes share unless a test says otherwise.
pub const MESH: u8 = 200;

pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

/// Polls until `holds`.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

/// Gives back what is sent on each stream.
pub struct Echo;

impl ServeChunks for Echo {
    fn serve(&self, _peer: NodeKey, connection: Connection) -> BoxFuture<'static, Option<Offence>> {
        Box::pin(async move {
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                if let Ok(bytes) = recv.read_to_end(1 << 20).await {
                    let _ = send.write_all(&bytes).await;
                    let _ = send.finish();
                }
            }
            None
        })
    }
}

impl ServeBuilds for Echo {
    fn serve(&self, peer: NodeKey, connection: Connection) -> BoxFuture<'static, Option<Offence>> {
        ServeChunks::serve(self, peer, connection)
    }
}

pub async fn echo(connection: &Connection, bytes: &[u8]) -> Vec<u8> {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    recv.read_to_end(1 << 20).await.unwrap()
}

pub struct Node {
    pub dir: TempDir,
    pub identity: Arc<Identity>,
    pub links: Links,
    pub events: mpsc::Receiver<Incoming>,
}

impl Node {
    pub async fn new(seed: u8) -> Node {
        Node::of_mesh(seed, MESH).await
    }

    pub async fn at(seed: u8, bind: SocketAddr) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::with_secret(dir.path(), key(seed), key(MESH), wall_s()).unwrap();
        Node::of(dir, identity, bind).await
    }

    pub async fn of_mesh(seed: u8, mesh: u8) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::with_secret(dir.path(), key(seed), key(mesh), wall_s()).unwrap();
        Node::of(dir, identity, loopback()).await
    }

    /// A node whose tasks and socket end with its runtime, without a word.
    pub async fn mortal(seed: u8) -> (Node, Runtime) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        (runtime.spawn(Node::new(seed)).await.unwrap(), runtime)
    }

    pub async fn killed_and_started_again(self, runtime: Runtime, seed: u8) -> Node {
        let Node { dir, links, .. } = self;
        let address = links.local_addr();
        drop(links);
        runtime.shutdown_background();
        let identity = Identity::with_secret(dir.path(), key(seed), key(MESH), wall_s()).unwrap();
        within(Node::again(dir, identity, address)).await
    }

    /// A member that holds no mesh key, with a certificate of its own making.
    pub async fn with_certificate(seed: u8, certificate: &Certificate) -> Node {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("certificate"), encode(certificate)).unwrap();
        let identity = Identity::open(dir.path(), key(seed)).unwrap().unwrap();
        Node::of(dir, identity, loopback()).await
    }

    /// On the address that an earlier run had, as soon as that is free.
    pub async fn again(dir: TempDir, identity: Identity, bind: SocketAddr) -> Node {
        while std::net::UdpSocket::bind(bind).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Node::of(dir, identity, bind).await
    }

    pub async fn of(dir: TempDir, identity: Identity, bind: SocketAddr) -> Node {
        Node::open(dir, identity, bind, Arc::new(Echo)).await
    }

    /// A member that answers requests for chunks so.
    pub async fn serving(seed: u8, chunks: Arc<dyn ServeChunks>) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::with_secret(dir.path(), key(seed), key(MESH), wall_s()).unwrap();
        Node::open(dir, identity, loopback(), chunks).await
    }

    async fn open(dir: TempDir, identity: Identity, bind: SocketAddr, chunks: Arc<dyn ServeChunks>) -> Node {
        let identity = Arc::new(identity);
        let (sender, events) = mpsc::channel(EVENTS);
        let options = LinksOptions { identity: identity.clone(), bind };
        let links = Links::open(options, sender, chunks, Arc::new(Echo)).await.unwrap();
        Node { dir, identity, links, events }
    }

    pub fn key(&self) -> NodeKey {
        self.identity.node()
    }

    pub fn knows(&self, other: &Node) {
        self.links.learn_addresses(other.key(), &other.links.addresses());
    }

    pub fn is_linked(&self, other: &Node) -> bool {
        self.links.peers().iter().any(|peer| peer.node == other.key() && peer.sync)
    }

    pub async fn event(&mut self) -> Incoming {
        within(self.events.recv()).await.expect("links are open")
    }

    pub async fn frame(&mut self) -> (NodeKey, Vec<u8>) {
        match self.event().await {
            Incoming::Frame { from, frame } => (from, frame),
            other => panic!("a frame was expected, not {other:?}"),
        }
    }

    pub async fn message(&mut self) -> (NodeKey, HolderMessage) {
        match self.event().await {
            Incoming::Message { from, message } => (from, *message),
            other => panic!("a message was expected, not {other:?}"),
        }
    }
}

/// Each knows where the other one is.
pub fn acquaint(a: &Node, b: &Node) {
    a.knows(b);
    b.knows(a);
}

pub fn certificate(mesh: u8, node: u8, not_before_s: u64, expires_s: u64) -> Certificate {
    let term = Term { roles: Roles::STORE, not_before_s, expires_s };
    Certificate::issue(&key(mesh), public(node), term)
}

/// One that holds now.
pub fn good_certificate(mesh: u8, node: u8) -> Certificate {
    certificate(mesh, node, wall_s(), wall_s() + MEMBERSHIP_S)
}

/// A message that says which it is.
pub fn numbered(id: u64) -> HolderMessage {
    HolderMessage::Lookup { id, keys: vec![[7; 32]] }
}

pub fn number(message: &HolderMessage) -> u64 {
    match message {
        HolderMessage::Lookup { id, .. } => *id,
        other => panic!("not numbered: {other:?}"),
    }
}
