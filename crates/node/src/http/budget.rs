//! Memory for answers, shared by all clients: for those that are whole before they are sent, and for what others hold
//! while they are.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Body;

/// All such answers of a node together, from before they are made until their last byte has gone: 32 batches of chunks.
pub const ANSWER_BYTES_MAX: usize = 256 << 20;
/// What all NARs of a node that are being sent hold together: over a thousand large ones at once.
pub const BEGUN_BYTES_MAX: usize = 1 << 30;
/// How long one more waits for room.
const ROOM_PATIENCE: Duration = Duration::from_secs(10);

/// What all clients share.
pub struct Budget {
    bytes: usize,
    free: Arc<Semaphore>,
    patience: Duration,
}

/// A part of it, given back when dropped.
pub struct Room(OwnedSemaphorePermit);

/// An answer and its room.
struct Held {
    bytes: Vec<u8>,
    _room: Room,
}

impl Budget {
    /// `bytes`: below 4 GiB.
    pub fn of(bytes: usize) -> Budget {
        Budget { bytes, free: Arc::new(Semaphore::new(bytes)), patience: ROOM_PATIENCE }
    }

    /// One for which nobody waits longer than this.
    pub fn waiting(self, patience: Duration) -> Budget {
        Budget { patience, ..self }
    }

    /// Room for an answer of up to `len` bytes; `None` where too many others are not taken by their clients.
    pub async fn room(&self, len: usize) -> Option<Room> {
        let room = self.free.clone().acquire_many_owned(self.permits(len));
        timeout(self.patience, room).await.ok()?.ok().map(Room)
    }

    /// An answer that is made already, of a length that nobody knew before. It does not wait, so that those that do not
    /// fit are not many.
    pub fn body(&self, bytes: Vec<u8>) -> Option<Body> {
        let room = self.free.clone().try_acquire_many_owned(self.permits(bytes.len())).ok()?;
        Some(Room(room).body(bytes))
    }

    /// One that is longer than all there is takes all.
    fn permits(&self, len: usize) -> u32 {
        u32::try_from(len.min(self.bytes)).unwrap_or(u32::MAX)
    }
}

impl Room {
    /// The answer, of which the room is kept until it has gone.
    pub fn body(mut self, mut bytes: Vec<u8>) -> Body {
        bytes.shrink_to_fit();
        drop(self.0.split(self.0.num_permits().saturating_sub(bytes.len())));
        Body::whole(Bytes::from_owner(Held { bytes, _room: self }))
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_has_its_room_until_it_has_gone() {
        let budget = Budget::of(100);
        let room = budget.room(80).await.unwrap();
        assert!(budget.body(vec![1; 40]).is_none(), "there is no room for it");
        let first = room.body(vec![0; 60]);
        let second = budget.body(vec![1; 40]).expect("what the first does not need is free");
        assert!(budget.body(vec![2]).is_none());
        assert_eq!((first.len(), second.len()), (60, 40));
        drop(first);
        assert!(budget.body(vec![2; 60]).is_some());
    }
}
