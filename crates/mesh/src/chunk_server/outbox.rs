//! What is on its way to one peer.

use bytes::Bytes;
use iroh::endpoint::{Connection, SendStream};
use shoal_wire::mesh::NodeKey;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long a peer may read nothing of what it asked for, on any stream: its disk may be busy, but others wait for the
/// memory that it holds.
pub const UNREAD_MAX: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// The stream or the connection has ended, or the rest is not wanted.
    #[error("the stream has ended")]
    Gone,
    #[error("nothing is read")]
    NotRead,
}

/// One peer's connection.
pub struct Peer {
    pub key: NodeKey,
    pub connection: Connection,
    /// Requests that may be answered at a time.
    pub requests: Semaphore,
    /// Requests so far.
    pub asked: AtomicU32,
    /// When it took bytes last, on any stream.
    read: Mutex<Instant>,
    unread_max: Duration,
}

impl Peer {
    pub fn new(key: NodeKey, connection: Connection, requests_max: usize, unread_max: Duration) -> Self {
        Peer {
            key,
            connection,
            requests: Semaphore::new(requests_max),
            asked: AtomicU32::new(0),
            read: Mutex::new(Instant::now()),
            unread_max,
        }
    }

    pub async fn send(&self, stream: &mut SendStream, bytes: Bytes) -> Result<(), SendError> {
        self.send_all(stream, &mut [bytes]).await
    }

    /// Sends all of `pieces`, which are empty afterwards.
    pub async fn send_all(&self, stream: &mut SendStream, pieces: &mut [Bytes]) -> Result<(), SendError> {
        let began = Instant::now();
        let mut done = 0;
        loop {
            while pieces.get(done).is_some_and(Bytes::is_empty) {
                done += 1;
            }
            let mut rest = &mut pieces[done..];
            if rest.is_empty() {
                return Ok(());
            }
            match timeout(LOOK, stream.write_many_chunks(&mut rest)).await {
                Ok(Ok(_)) => *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now(),
                Ok(Err(_)) => return Err(SendError::Gone),
                Err(_) if self.unread(began) > self.unread_max => return Err(SendError::NotRead),
                Err(_) => {}
            }
        }
    }

    /// For how long it has taken nothing while something was there for it, which is since `began` or longer.
    fn unread(&self, began: Instant) -> Duration {
        let read = *self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.max(began).elapsed()
    }
}
