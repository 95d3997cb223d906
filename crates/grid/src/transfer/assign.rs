//! Gives peers that have room something to do.

use super::{Action, Chunk, Failure, FetchId, Hash, Request, Time, Transfer};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::{CHUNKS_MAX as REQUEST_CHUNKS_MAX, Urgency};
use shoal_wire::mesh::manifest::ChunkRef;
use std::collections::VecDeque;

/// Requests to one peer at a time: the next are on their way while one is answered, and each is a stream of its own.
const REQUESTS_MAX: usize = 4;
/// Of these, those that only make another copy: who waits finds room at once.
const REPLICATION_REQUESTS_MAX: usize = 2;
/// Chunks of a fetch that are looked at for one that a peer may have.
const LOOK_MAX: usize = 512;
/// Least bytes of a request near the end of a fetch, where each gets a part of what is left.
const SHARE_MIN: u64 = 256 << 10;
/// How much longer than twice as long as here a chunk must take where it was asked for, to be asked for again; than as
/// long, if a reader waits for it.
const AGAIN_MS: Time = 100;
/// Chunks before a reader that are looked at: some 8 MiB, which clients take in a moment.
const READ_AHEAD: usize = 128;
/// Peers that one chunk is asked of at a time.
const ASKED_MAX: usize = 2;

impl Transfer {
    pub(super) fn fill(&mut self, now: Time, actions: &mut Vec<Action>) {
        let keys: Vec<NodeKey> = self.peers.keys().copied().collect();
        let mut open = keys;
        // Round after round, so that each gets its first before anybody gets a second.
        while !open.is_empty() {
            open.retain(|key| self.ask_more(now, key, actions));
        }
        self.fail_stuck(now, actions);
        self.forget_idle_peers();
    }

    /// Whether the peer got something to do.
    fn ask_more(&mut self, now: Time, key: &NodeKey, actions: &mut Vec<Action>) -> bool {
        let Some(peer) = self.peers.get(key) else { return false };
        if !peer.has_room(now, REQUESTS_MAX) {
            return false;
        }
        let may_replicate = peer.has_room(now, REPLICATION_REQUESTS_MAX);
        let bytes_max = peer.request_bytes(now);
        let allowed = |urgency| urgency < Urgency::Replication || may_replicate;
        let mut fetches: Vec<(Urgency, Time, FetchId)> = self
            .fetches
            .iter()
            .filter(|(_, fetch)| fetch.holders.contains(key) && allowed(fetch.urgency))
            .map(|(id, fetch)| (fetch.urgency, fetch.due, *id))
            .collect();
        fetches.sort_unstable();
        for (urgency, _, fetch) in fetches {
            let mut chunks = self.leading(now, fetch, key, bytes_max);
            if chunks.is_empty() {
                chunks = self.next_of(fetch, key, bytes_max);
            }
            if chunks.is_empty() {
                chunks = self.again(now, fetch, key, bytes_max);
            }
            if !chunks.is_empty() {
                self.ask(now, fetch, key, urgency, chunks, actions);
                return true;
            }
        }
        false
    }

    fn ask(
        &mut self,
        now: Time,
        fetch: FetchId,
        key: &NodeKey,
        urgency: Urgency,
        chunks: Vec<ChunkRef>,
        actions: &mut Vec<Action>,
    ) {
        self.requests_begun += 1;
        let request = self.requests_begun;
        for chunk in &chunks {
            if let Some(chunk) = self.chunks.get_mut(&chunk.hash) {
                chunk.asked.push(request);
            }
        }
        let left_bytes = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
        if let Some(peer) = self.peers.get_mut(key) {
            peer.asked(now, request, left_bytes);
        }
        let left: VecDeque<ChunkRef> = chunks.iter().copied().collect();
        self.requests.insert(request, Request { peer: *key, fetch, needed: left.len(), left, left_bytes });
        actions.push(Action::Ask { request, fetch, peer: *key, urgency, chunks });
    }

    /// The next chunks of a fetch that nobody was asked for and that this peer may have.
    fn next_of(&mut self, id: FetchId, key: &NodeKey, bytes_max: u64) -> Vec<ChunkRef> {
        let Some(fetch) = self.fetches.get_mut(&id) else { return Vec::new() };
        let share = match fetch.holders.len() as u64 {
            0 | 1 => u64::MAX,
            holders => fetch.open_bytes / (2 * holders),
        };
        let mut batch = Batch::new(bytes_max.min(share.max(SHARE_MIN)));
        let mut passed = Vec::new();
        for _ in 0..LOOK_MAX {
            let Some(hash) = fetch.queue.pop_front() else { break };
            match self.chunks.get(&hash) {
                // It came, or comes already.
                None => {}
                Some(chunk) if !chunk.asked.is_empty() => {}
                Some(chunk) if chunk.absent_at.contains(key) => passed.push(hash),
                Some(chunk) if batch.take(hash, chunk) => {}
                Some(_) => {
                    fetch.queue.push_front(hash);
                    break;
                }
            }
        }
        for hash in passed.into_iter().rev() {
            fetch.queue.push_front(hash);
        }
        batch.chunks
    }

    /// What a reader waits for, if it comes from elsewhere and this peer would bring it much sooner.
    fn leading(&mut self, now: Time, id: FetchId, key: &NodeKey, bytes_max: u64) -> Vec<ChunkRef> {
        let Some(read) = self.fetches.get_mut(&id).and_then(|fetch| fetch.read.as_mut()) else { return Vec::new() };
        while read.front().is_some_and(|hash| !self.chunks.contains_key(hash)) {
            read.pop_front();
        }
        let ahead = read.iter().take(READ_AHEAD).filter_map(|hash| self.chunks.get(hash)?.asked.first());
        let mut requests: Vec<u64> = ahead.copied().collect();
        requests.dedup();
        for request in requests {
            if self.is_slower(now, request, key, 1) {
                let part = self.part_of(request, id, key, bytes_max, false);
                if !part.is_empty() {
                    return part;
                }
            }
        }
        Vec::new()
    }

    /// A part of what another was asked for and will bring much later than this peer would.
    fn again(&mut self, now: Time, id: FetchId, key: &NodeKey, bytes_max: u64) -> Vec<ChunkRef> {
        let slow = self.requests.keys().filter(|request| self.is_slower(now, **request, key, 2));
        let mut parts = slow.map(|request| self.part_of(*request, id, key, bytes_max, true));
        parts.find(|part| !part.is_empty()).unwrap_or_default()
    }

    /// Whether a request takes much longer than it would at this peer, with all else that was asked of it so many times.
    fn is_slower(&self, now: Time, request: u64, key: &NodeKey, times: u64) -> bool {
        let Some(request) = self.requests.get(&request).filter(|request| request.peer != *key) else { return false };
        let (Some(there), Some(here)) = (self.peers.get(&request.peer), self.peers.get(key)) else { return false };
        there.busy_ms(now, 0) > times * here.busy_ms(now, request.left_bytes) + AGAIN_MS
    }

    /// Up to half of what a request has not brought and this fetch wants: its last, or its first.
    fn part_of(&self, request: u64, fetch: FetchId, key: &NodeKey, bytes_max: u64, from_end: bool) -> Vec<ChunkRef> {
        let Some(request) = self.requests.get(&request) else { return Vec::new() };
        let mut batch = Batch::new(bytes_max.min(request.left_bytes / 2));
        let count = request.left.len();
        for n in 0..count {
            let at = if from_end { count - 1 - n } else { n };
            let Some(chunk) = request.left.get(at) else { break };
            let Some(known) = self.chunks.get(&chunk.hash) else { continue };
            let is_free = known.asked.len() < ASKED_MAX && !known.absent_at.contains(key);
            if !is_free || !known.wanted_by.contains(&fetch) {
                continue;
            }
            if !batch.take(chunk.hash, known) {
                break;
            }
        }
        if from_end {
            batch.chunks.reverse();
        }
        batch.chunks
    }

    /// Ends fetches whose next chunk nobody has who is left.
    fn fail_stuck(&mut self, now: Time, actions: &mut Vec<Action>) {
        let mut stuck = Vec::new();
        for (&id, fetch) in &mut self.fetches {
            let waits = |hash: &Hash| self.chunks.get(hash).is_some_and(|chunk| chunk.asked.is_empty());
            while fetch.queue.front().is_some_and(|hash| !waits(hash)) {
                fetch.queue.pop_front();
            }
            let Some(hash) = fetch.queue.front() else { continue };
            let is_absent = |key: &NodeKey| self.chunks.get(hash).is_some_and(|chunk| chunk.absent_at.contains(key));
            match fetch.holders.is_empty() {
                true => stuck.push((id, Failure::NoHolder)),
                false if fetch.holders.iter().all(is_absent) => stuck.push((id, Failure::Absent(*hash))),
                false => {}
            }
        }
        for (fetch, why) in stuck {
            self.leave(now, fetch, actions);
            actions.push(Action::Failed { fetch, why });
        }
    }
}

/// Chunks for one request.
struct Batch {
    chunks: Vec<ChunkRef>,
    bytes: u64,
    bytes_max: u64,
}

impl Batch {
    fn new(bytes_max: u64) -> Self {
        Batch { chunks: Vec::new(), bytes: 0, bytes_max }
    }

    /// Whether there was room. The first has always.
    fn take(&mut self, hash: Hash, chunk: &Chunk) -> bool {
        let bytes = self.bytes + u64::from(chunk.len);
        let fits = self.chunks.is_empty() || (bytes <= self.bytes_max && self.chunks.len() < REQUEST_CHUNKS_MAX);
        if fits {
            self.chunks.push(ChunkRef { hash, len: chunk.len });
            self.bytes = bytes;
        }
        fits
    }
}
