//! Answers members that ask for records, manifests, chunks, realisations and logs, from the store.
//!
//! Chunks go out as their stored frames lie, compared with their checksums and never decompressed; what is damaged or
//! gone is said to be absent. Invariants:
//! - nothing waits without a bound: who cannot be served soon is told that this node is busy, and who does not read what
//!   it asked for is cut off;
//! - memory for what was read and not sent is bounded for all peers together, and for each;
//! - what is being sent stays on disk, whatever is collected meanwhile.

mod answer;
mod outbox;
mod turn;

use crate::dial::{BoxFuture, Offence, ServeChunks};
use crate::links::bucket::Bucket;
use crate::links::short;
use crate::protocol::Close;
use iroh::endpoint::{Connection, ReadToEndError, RecvStream, SendStream, VarInt};
use outbox::Peer;
use shoal_store::Store;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::{Ask, Part};
use shoal_wire::mesh::format::{Format, decode};
use shoal_wire::nix::signature::SecretKey;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use turn::Turns;

/// Streams that one peer may have open: those that are answered, and as many that are told that it is too much.
const STREAMS_MAX: u32 = 32;
/// Requests of one peer that are answered at a time: four fetchers' worth.
pub const REQUESTS_MAX: usize = 16;
/// Requests of one peer in a second: more than one machine's disk takes paths, each of which is asked for twice.
const REQUESTS_A_S: u64 = 10_000;
/// How many it may save up.
const REQUESTS_BURST: u64 = 20_000;
/// How long a peer may take to say what it wants.
const ASK_TIME: Duration = Duration::from_secs(10);
/// Bytes read from segments and not sent, of all peers, in pieces of [`answer::READ_LEN`].
const BUFFERED_MAX: usize = 64 << 20;

/// What it bears from a peer.
#[derive(Debug, Clone, Copy)]
struct Patience {
    unread_max: Duration,
    requests_a_s: u64,
    requests_burst: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { unread_max: outbox::UNREAD_MAX, requests_a_s: REQUESTS_A_S, requests_burst: REQUESTS_BURST }
    }
}

/// The code of a stream on which nothing was asked that can be answered.
const BAD_REQUEST: VarInt = VarInt::from_u32(1);

/// What it gives away.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServerLimits {
    /// Bytes a second to all peers together; `None`: as many as the link takes.
    pub upload_bytes_per_s: Option<u64>,
}

/// What it gave away since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served {
    pub requests: u64,
    pub chunks: u64,
    /// Of frames, records, manifests and logs.
    pub bytes: u64,
    /// Requests that were told, in whole or in part, that this node is busy.
    pub busy: u64,
    /// Connections cut because nothing was read from them.
    pub cut: u64,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct ChunkServer(Arc<Inner>);

struct Inner {
    store: Store,
    key: Arc<SecretKey>,
    turns: Option<Turns>,
    buffers: Arc<Semaphore>,
    patience: Patience,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    chunks: AtomicU64,
    bytes: AtomicU64,
    busy: AtomicU64,
    cut: AtomicU64,
}

impl ChunkServer {
    /// `key` is the node's: it signs the records of what this store has.
    pub fn new(store: Store, key: Arc<SecretKey>, limits: ServerLimits) -> ChunkServer {
        ChunkServer::with_patience(store, key, limits, Patience::default())
    }

    fn with_patience(store: Store, key: Arc<SecretKey>, limits: ServerLimits, patience: Patience) -> ChunkServer {
        ChunkServer(Arc::new(Inner {
            store,
            key,
            turns: limits.upload_bytes_per_s.map(Turns::new),
            buffers: Arc::new(Semaphore::new(BUFFERED_MAX / answer::READ_LEN)),
            patience,
            counts: Counts::default(),
        }))
    }

    pub fn served(&self) -> Served {
        let counts = &self.0.counts;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Served {
            requests: get(&counts.requests),
            chunks: get(&counts.chunks),
            bytes: get(&counts.bytes),
            busy: get(&counts.busy),
            cut: get(&counts.cut),
        }
    }
}

impl ServeChunks for ChunkServer {
    fn serve(&self, peer: NodeKey, connection: Connection) -> BoxFuture<'static, Option<Offence>> {
        let server = self.0.clone();
        Box::pin(async move { server.serve(peer, connection).await })
    }
}

impl Inner {
    /// The requests of one connection. Whoever drops this drops its answers.
    async fn serve(self: Arc<Self>, peer: NodeKey, connection: Connection) -> Option<Offence> {
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_MAX));
        let peer = Arc::new(Peer::new(peer, connection.clone(), REQUESTS_MAX, self.patience.unread_max));
        let mut requests = Bucket::full(self.patience.requests_a_s, self.patience.requests_burst, Instant::now());
        let mut answers = JoinSet::new();
        loop {
            tokio::select! {
                stream = connection.accept_bi() => match stream {
                    Ok(_) if !requests.take(1, Instant::now()) => return Some("asked more often than it may".into()),
                    Ok((send, receive)) => {
                        answers.spawn(self.clone().answer_one(peer.clone(), send, receive));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a connection for chunks has ended");
                        return None;
                    }
                },
                Some(answered) = answers.join_next() => {
                    if let Ok(Some(offence)) = answered {
                        return Some(offence);
                    }
                }
            }
        }
    }

    async fn answer_one(
        self: Arc<Self>,
        peer: Arc<Peer>,
        mut send: SendStream,
        mut receive: RecvStream,
    ) -> Option<Offence> {
        let read = timeout(ASK_TIME, receive.read_to_end(Ask::LEN_MAX)).await;
        let asked = match read {
            // Given up before anything was said.
            Ok(Ok(bytes)) if bytes.is_empty() => None,
            Ok(Ok(bytes)) => match decode::<Ask>(&bytes) {
                Ok(ask) => Some(ask),
                Err(error) => return Some(format!("sent a bad request: {error}")),
            },
            Ok(Err(ReadToEndError::TooLong)) => {
                return Some(format!("sent a request of more than {} bytes", Ask::LEN_MAX));
            }
            Ok(Err(ReadToEndError::Read(_))) | Err(_) => None,
        };
        let Some(ask) = asked else {
            // It may be gone already.
            let _ = send.reset(BAD_REQUEST);
            return None;
        };
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        let sent = match peer.requests.try_acquire() {
            Ok(_permit) => answer::answer(&self, &peer, &mut send, ask).await,
            Err(_) => {
                self.counts.busy.fetch_add(1, Ordering::Relaxed);
                peer.send(&mut send, Part::Busy.encode().repeat(ask.parts()).into()).await
            }
        };
        match sent {
            Ok(()) => _ = send.finish(),
            Err(outbox::SendError::NotRead) => {
                self.counts.cut.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(node = short(&peer.key), "a node does not read what it asked for; it is cut off");
                peer.connection.close(Close::NotRead.code(), b"what was asked for is not read");
            }
            Err(outbox::SendError::Gone) => {}
        }
        None
    }
}

#[cfg(test)]
#[path = "chunk_server_tests.rs"]
mod tests;
