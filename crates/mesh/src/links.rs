//! Connections between members: who is let in, how frames and messages travel, and what they may cost.
//!
//! Invariants:
//! - on a connection whose other end is not known to be a member, one hello is read and nothing else, within a time;
//! - nothing here waits for a peer while others wait for it: what cannot be sent is dropped and counted;
//! - messages to a peer arrive in the order in which they were sent, each once; when a link ends, all that it did not
//!   deliver is lost;
//! - two nodes that dial each other at once end with one connection, the one that the smaller key dialled, whose node
//!   alone decides so, and only once for each connection: a node that was started again has lost it and dials again;
//! - who sends more than it may is cut off, and what others send is not slowed by it: all peers take turns at the
//!   channel to who decides.

pub(crate) mod bucket;
mod dialler;
mod door;
pub(crate) mod endpoint;
mod gate;
mod greeting;
pub mod limits;
mod peers;
mod refusal;
mod sweep;
mod sync;
mod table;
mod welcome;

pub(crate) use dialler::locate;
pub use endpoint::OpenError;
pub use peers::{Counts, PeerLink};
pub(crate) use refusal::Refusal;

use crate::dial::{BoxFuture, Dial, DialBuilds, DialError, ServeBuilds, ServeChunks};
use crate::identity::Identity;
use crate::protocol::{BUILDS, CHUNKS, Close, JOIN, SYNC};
use bytes::Bytes;
use gate::Gate;
use iroh::endpoint::{Connection, Endpoint};
use peers::Counters;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::HolderMessage;
use shoal_wire::mesh::format::encode;
use shoal_wire::mesh::frame::FRAME_LEN_MAX;
use shoal_wire::nix::base64::encode_hex;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use table::{Protocol, Table};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

/// What came from a member whose certificate was verified.
#[derive(Debug)]
pub enum Incoming {
    /// A frame of membership, not yet decoded.
    Frame {
        from: NodeKey,
        frame: Vec<u8>,
    },
    Message {
        from: NodeKey,
        message: Box<HolderMessage>,
    },
}

#[derive(Debug)]
pub struct LinksOptions {
    pub identity: Arc<Identity>,
    /// UDP. A wildcard of IPv6 means both families. Port 0 takes a free one.
    pub bind: SocketAddr,
}

/// A node's connections to the other members. Clones are the same. Nothing but `async` functions needs a runtime around it.
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Arc<Identity>,
    endpoint: Endpoint,
    local: SocketAddr,
    events: mpsc::Sender<Incoming>,
    chunks: Arc<dyn ServeChunks>,
    builds: Arc<dyn ServeBuilds>,
    gate: Arc<Gate>,
    dials: Semaphore,
    table: Mutex<Table>,
    counters: Counters,
    tasks: Mutex<JoinSet<()>>,
    runtime: Handle,
}

impl Links {
    /// Listens, and lets members in. What they send comes out of `events`, in turn: a channel of some 64 is enough, and
    /// who is slow to read from it slows all peers alike. Requests for chunks go to `chunks`, those for builds to `builds`.
    pub async fn open(
        options: LinksOptions,
        events: mpsc::Sender<Incoming>,
        chunks: Arc<dyn ServeChunks>,
        builds: Arc<dyn ServeBuilds>,
    ) -> Result<Self, OpenError> {
        let LinksOptions { identity, bind } = options;
        let endpoint = endpoint::bind(identity.node_key(), bind, &[SYNC, CHUNKS, BUILDS, JOIN]).await?;
        let inner = Arc::new(Inner {
            local: endpoint::local_address(&endpoint, bind),
            identity,
            endpoint,
            events,
            chunks,
            builds,
            gate: Arc::default(),
            dials: Semaphore::new(limits::DIALS_BEGINNING_MAX),
            table: Mutex::default(),
            counters: Counters::default(),
            tasks: Mutex::default(),
            runtime: Handle::current(),
        });
        inner.spawn(door::accept(inner.clone()));
        inner.spawn(sweep::run(inner.clone()));
        Ok(Self { inner })
    }

    pub fn node(&self) -> NodeKey {
        self.inner.identity.node()
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.inner.identity
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    pub(crate) fn known_addresses(&self, node: &NodeKey) -> Vec<SocketAddr> {
        self.inner.table().peers.get(node).map(table::Peer::addresses).unwrap_or_default()
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local
    }

    /// Where others find this node: what it was bound to, or the machine's addresses; those of loopback only where there
    /// are no others. They change with the machine's network.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        endpoint::addresses(&self.inner.endpoint)
    }

    /// Where a node is. Replaces what was learned before; a new address makes a node worth another dial at once.
    pub fn learn_addresses(&self, node: NodeKey, addresses: &[SocketAddr]) {
        self.inner.table().learn(node, addresses, Instant::now());
    }

    /// Where somebody who may be wrong says that a node is. It is looked for there too, and replaces what was suggested
    /// before.
    pub fn suggest_addresses(&self, node: NodeKey, addresses: &[SocketAddr]) {
        self.inner.table().suggest(node, addresses, Instant::now());
    }

    /// Sends a frame, or drops it where it cannot be sent at once; a few wait for a link to be opened. Never waits.
    pub fn send_frame(&self, to: NodeKey, frame: Vec<u8>) {
        debug_assert!(frame.len() <= FRAME_LEN_MAX);
        self.inner.send_frame(to, frame.into());
    }

    /// Queues a message, or loses it where the queue is full or the node cannot be reached: then `false`. One that is
    /// queued is lost when the link ends before. Never waits.
    pub fn send_message(&self, to: NodeKey, message: &HolderMessage) -> bool {
        self.inner.send_message(to, encode(message).into())
    }

    /// Closes the peer's connections; it may come back when it has rested.
    pub fn cut(&self, peer: NodeKey, reason: &str) {
        self.inner.cut(peer, Close::Cut, reason);
    }

    /// The node was started again: of its connections those are of its life before that are older than the one by which it
    /// says so, and nobody would ever answer on them.
    pub fn outlived(&self, node: NodeKey) {
        for connection in self.inner.table().older_than_sync(&node) {
            connection.close(Close::Replaced.code(), b"the node was started again");
        }
    }

    /// The node may be dead. See [`Links::died`].
    pub fn suspected(&self, node: NodeKey) {
        self.inner.table().suspected(&node);
    }

    /// Members agree that the node is dead. When it is back nobody answers on the connections of its life before; those that
    /// were opened since it was suspected are not among them. Until it is heard of again nobody waits for a new one.
    pub fn died(&self, node: NodeKey) {
        for connection in self.inner.table().of_the_dead(&node) {
            connection.close(Close::Done.code(), b"the node is dead");
        }
    }

    /// Closes the node's connections, and refuses it from now on.
    pub fn bar(&self, node: NodeKey) {
        let refusal = Refusal::barred();
        let connections = {
            let mut table = self.inner.table();
            table.barred.insert(node);
            table.cut(&node, &refusal.to_string(), Instant::now())
        };
        if !connections.is_empty() {
            tracing::warn!(peer = short(&node), reason = %refusal, "a peer is cut off for good");
        }
        for connection in connections {
            refusal.clone().close(&connection);
        }
    }

    /// Says goodbye to all peers. Within [`limits::CLOSE_TIMEOUT`], which it takes where they do not hear it.
    pub async fn close(&self) {
        self.inner.close().await;
    }
}

impl Dial for Links {
    fn chunks(&self, node: NodeKey) -> BoxFuture<'_, Result<Connection, DialError>> {
        Box::pin(self.inner.connection(node, Protocol::Chunks))
    }
}

impl DialBuilds for Links {
    fn builds(&self, node: NodeKey) -> BoxFuture<'_, Result<Connection, DialError>> {
        Box::pin(self.inner.connection(node, Protocol::Builds))
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing in it is left half-changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task that ends when the links are closed, at the latest.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended are not kept.
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &self.runtime);
    }

    fn send_frame(self: &Arc<Self>, to: NodeKey, frame: Bytes) {
        let mut table = self.table();
        let Some(peer) = table.peers.get_mut(&to) else { return self.counters.frames_dropped(1) };
        if let Some(link) = peer.open(Protocol::Sync) {
            let connection = link.connection.clone();
            drop(table);
            return sync::send_frame(self, to, &connection, frame);
        }
        if peer.sync.dialling.is_none() && !self.dial(&mut table, to, Protocol::Sync) {
            return self.counters.frames_dropped(1);
        }
        match table.peers.get_mut(&to) {
            Some(peer) if peer.waiting_frames.len() < limits::FRAMES_WAITING_MAX => peer.waiting_frames.push(frame),
            _ => self.counters.frames_dropped(1),
        }
    }

    fn send_message(self: &Arc<Self>, to: NodeKey, message: Bytes) -> bool {
        let mut table = self.table();
        let Some(peer) = table.peers.get_mut(&to) else {
            self.counters.messages_lost(1);
            return false;
        };
        let is_on_its_way = peer.open(Protocol::Sync).is_some() || peer.sync.dialling.is_some();
        let taken = (is_on_its_way || self.dial(&mut table, to, Protocol::Sync)) && table.queue(&to, message);
        if !taken {
            self.counters.messages_lost(1);
        }
        taken
    }

    /// The connection that is open, or one that is opened now.
    async fn connection(self: &Arc<Self>, node: NodeKey, protocol: Protocol) -> Result<Connection, DialError> {
        let opened = {
            let mut table = self.table();
            if let Some(link) = table.peers.get_mut(&node).and_then(|peer| peer.open(protocol)) {
                return Ok(link.connection.clone());
            }
            // Messages may find it alive.
            if let Some(death) = table.death_of(&node).filter(|_| protocol != Protocol::Sync) {
                return Err(death);
            }
            let is_dialling = table.peers.get_mut(&node).is_some_and(|peer| peer.lane(protocol).dialling.is_some());
            if !is_dialling {
                self.try_dial(&mut table, node, protocol)?;
            }
            let (waiter, opened) = oneshot::channel();
            let waiting = table.peers.get_mut(&node).and_then(|peer| peer.lane(protocol).dialling.as_mut());
            match waiting {
                Some(dialling) if dialling.waiters.len() < limits::WAITERS_MAX => dialling.waiters.push(waiter),
                _ => return Err(DialError::Silent("too many wait for it".to_owned())),
            }
            opened
        };
        opened.await.unwrap_or_else(|_| Err(DialError::Barred("this node stops".to_owned())))
    }

    fn cut(&self, peer: NodeKey, close: Close, reason: &str) {
        let connections = self.table().cut(&peer, reason, Instant::now());
        if !connections.is_empty() {
            tracing::warn!(peer = short(&peer), reason, "a peer is cut off");
            self.counters.cut_off();
        }
        for connection in connections {
            connection.close(close.code(), reason.as_bytes());
        }
    }

    async fn close(&self) {
        let connections: Vec<Connection> = {
            let mut table = self.table();
            table.is_closing = true;
            let lanes = table.peers.values().flat_map(|peer| peer.lanes());
            lanes.filter_map(|lane| Some(lane.link.as_ref()?.connection.clone())).collect()
        };
        let refusal = Refusal::stopping();
        for connection in &connections {
            refusal.clone().close(connection);
        }
        let _ = tokio::time::timeout(limits::CLOSE_TIMEOUT, self.endpoint.close()).await;
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        self.table().peers.clear();
    }
}

/// A node's key as logs show it.
pub(crate) fn short(node: &NodeKey) -> String {
    encode_hex(&node[..8])
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("node", &short(&self.node())).field("local", &self.inner.local).finish()
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
