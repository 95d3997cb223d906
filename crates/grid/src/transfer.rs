//! Which chunks are asked of whom, and when somebody else is asked instead: all fetches of one node together.
//!
//! Invariants:
//! - a chunk that several fetches want is asked for once, and again only from a second peer, when the first would take
//!   much longer;
//! - a peer is asked for no more than it sends in about half a second at the speed it showed;
//! - who waits more urgently is served first, and of those who wait alike the one that is due first: a small path soon, a
//!   big one later, so that small ones do not wait behind it and it does not starve; another copy never takes more than half
//!   of a peer's requests;
//! - a peer that lies, is silent or cannot be reached is asked nothing more for the fetches of that time, and what it was
//!   asked for is asked of others at once;
//! - every fetch ends once: by [`Action::Done`], by [`Action::Failed`], or because it was withdrawn.
//!
//! Lengths are those of chunks, not of their frames, which nobody knows before; speeds are in the same measure.

mod assign;
mod peer;

use peer::Peer;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::Urgency;
use shoal_wire::mesh::manifest::ChunkRef;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

pub type FetchId = u64;
pub type RequestId = u64;
/// Milliseconds of one clock that never goes back.
pub type Time = u64;
type Hash = [u8; 32];

/// Chunks of all fetches that are in progress: some 150 bytes each, and 64 GiB of NAR at the average. Fetches beyond it
/// wait; one that is alone may have more.
pub const CHUNKS_MAX: usize = 1 << 20;
/// How long a peer may be silent while there are others: longer than a busy disk or a lost packet takes.
pub const SILENCE_MAX_MS: Time = 2_000;
/// How long the only holder may be.
pub const LONE_SILENCE_MAX_MS: Time = 10_000;
/// How long a peer may say that it is busy before it counts as one that does not answer.
pub const BUSY_MAX_MS: Time = 60_000;
/// How often a peer's streams may break in a row. Once is a restart.
const BREAKS_MAX: u32 = 2;
/// Bytes a second at which a path is due: a GiB after a hundred seconds, before all small paths that are wanted then.
const DUE_RATE: u64 = 10 << 20;
/// Rest after a broken stream.
const BREAK_REST_MS: Time = 250;
/// How often time alone is looked at.
const TICK_MS: Time = 50;
/// Peers whose speed is remembered.
const PEERS_KEPT_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask `peer` for these, in this order. [`Transfer::settle`] and [`Transfer::ended`] must follow.
    Ask {
        request: RequestId,
        fetch: FetchId,
        peer: NodeKey,
        urgency: Urgency,
        chunks: Vec<ChunkRef>,
    },
    /// The rest of its answer is not wanted any more; nothing needs to be told of it.
    Cancel {
        request: RequestId,
    },
    /// The peer is not asked any more for this fetch.
    Dropped {
        fetch: FetchId,
        peer: NodeKey,
        fault: Fault,
    },
    /// Everything is here.
    Done {
        fetch: FetchId,
    },
    Failed {
        fetch: FetchId,
        why: Failure,
    },
}

/// Why a peer is asked nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Unreachable,
    /// It sent nothing, or nothing but that it is busy, for too long.
    Silent,
    /// Its streams broke again and again.
    Broke,
    /// It sent bytes that are not what they were sent as.
    Lied,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody is left to be asked.
    NoHolder,
    /// None of those that are left has it.
    Absent(Hash),
}

/// What a peer answered for one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is verified and stored.
    Here,
    Absent,
    Busy,
}

/// What a fetch is about.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Those that are missing, in the order of the NAR; each once.
    pub chunks: Vec<ChunkRef>,
    pub holders: Vec<NodeKey>,
    pub urgency: Urgency,
    /// Somebody reads the NAR while it comes in.
    pub is_read: bool,
}

#[derive(Debug, Default)]
pub struct Transfer {
    fetches: BTreeMap<FetchId, Fetch>,
    waiting: BTreeMap<(Urgency, FetchId), Wanted>,
    chunks: HashMap<Hash, Chunk>,
    peers: BTreeMap<NodeKey, Peer>,
    requests: BTreeMap<RequestId, Request>,
    /// The first has number 1.
    requests_begun: RequestId,
}

#[derive(Debug)]
struct Fetch {
    urgency: Urgency,
    holders: BTreeSet<NodeKey>,
    /// To be asked for, the next first. Some of these came meanwhile, or are asked for by another fetch.
    queue: VecDeque<Hash>,
    /// Chunks that are not here, and their bytes.
    open: usize,
    open_bytes: u64,
    /// What a reader waits for next is at its front, once what came is taken away.
    read: Option<VecDeque<Hash>>,
    /// Of equally urgent ones the one with the least is served first.
    due: Time,
}

#[derive(Debug)]
struct Chunk {
    len: u32,
    wanted_by: Vec<FetchId>,
    /// At most two.
    asked: Vec<RequestId>,
    absent_at: Vec<NodeKey>,
}

#[derive(Debug)]
struct Request {
    peer: NodeKey,
    fetch: FetchId,
    /// Not answered yet, in order.
    left: VecDeque<ChunkRef>,
    left_bytes: u64,
    /// How many of `left` somebody still wants from it.
    needed: usize,
}

impl Transfer {
    /// Begins a fetch under a number that was never used.
    pub fn begin(&mut self, now: Time, fetch: FetchId, wanted: Wanted) -> Vec<Action> {
        let mut actions = Vec::new();
        self.waiting.insert((wanted.urgency, fetch), wanted);
        self.admit(now, &mut actions);
        self.fill(now, &mut actions);
        actions
    }

    /// Begins what waits, as far as there is room.
    fn admit(&mut self, now: Time, actions: &mut Vec<Action>) {
        while let Some(next) = self.waiting.first_entry() {
            if !self.chunks.is_empty() && self.chunks.len() + next.get().chunks.len() > CHUNKS_MAX {
                return;
            }
            let ((_, fetch), wanted) = next.remove_entry();
            self.enter(now, fetch, wanted, actions);
        }
    }

    fn enter(&mut self, now: Time, id: FetchId, wanted: Wanted, actions: &mut Vec<Action>) {
        if wanted.chunks.is_empty() {
            return actions.push(Action::Done { fetch: id });
        }
        let bytes: u64 = wanted.chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
        let due = now + bytes * 1000 / DUE_RATE;
        let mut fetch = Fetch {
            urgency: wanted.urgency,
            holders: wanted.holders.into_iter().collect(),
            queue: VecDeque::with_capacity(wanted.chunks.len()),
            open: 0,
            open_bytes: 0,
            read: wanted.is_read.then(|| wanted.chunks.iter().map(|chunk| chunk.hash).collect()),
            due,
        };
        for chunk in wanted.chunks {
            let known = self.chunks.entry(chunk.hash).or_insert_with(|| Chunk {
                len: chunk.len,
                wanted_by: Vec::new(),
                asked: Vec::new(),
                absent_at: Vec::new(),
            });
            if !known.wanted_by.contains(&id) {
                known.wanted_by.push(id);
                fetch.queue.push_back(chunk.hash);
                fetch.open += 1;
                fetch.open_bytes += u64::from(known.len);
            }
        }
        for holder in &fetch.holders {
            self.peers.entry(*holder).or_default();
        }
        self.fetches.insert(id, fetch);
    }

    /// More who may have what a fetch wants.
    pub fn add_holders(&mut self, now: Time, fetch: FetchId, holders: &[NodeKey]) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(fetch) = self.fetches.get_mut(&fetch) {
            fetch.holders.extend(holders);
            for holder in holders {
                self.peers.entry(*holder).or_default();
            }
        }
        for ((_, waiting), wanted) in &mut self.waiting {
            if *waiting == fetch {
                wanted.holders.extend(holders);
            }
        }
        self.fill(now, &mut actions);
        actions
    }

    /// Somebody begins to read a fetch from its beginning; `chunks` are all of its NAR, in order.
    pub fn read(&mut self, fetch: FetchId, chunks: impl Iterator<Item = Hash>) {
        if let Some(fetch) = self.fetches.get_mut(&fetch)
            && fetch.read.is_none()
        {
            let missing = chunks.filter(|hash| self.chunks.contains_key(hash));
            fetch.read = Some(missing.collect());
        }
    }

    /// It is wanted more urgently than it was begun.
    pub fn hurry(&mut self, now: Time, fetch: FetchId, urgency: Urgency) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(fetch) = self.fetches.get_mut(&fetch) {
            fetch.urgency = fetch.urgency.min(urgency);
        }
        let waiting = self.waiting.keys().find(|(before, waiting)| *waiting == fetch && urgency < *before).copied();
        if let Some(mut wanted) = waiting.and_then(|key| self.waiting.remove(&key)) {
            wanted.urgency = urgency;
            self.waiting.insert((urgency, fetch), wanted);
        }
        self.fill(now, &mut actions);
        actions
    }

    /// Nobody wants it any more.
    pub fn withdraw(&mut self, now: Time, fetch: FetchId) -> Vec<Action> {
        let mut actions = Vec::new();
        self.waiting.retain(|(_, waiting), _| *waiting != fetch);
        self.leave(now, fetch, &mut actions);
        self.fill(now, &mut actions);
        actions
    }

    /// Takes a fetch out with what only it wanted.
    fn leave(&mut self, now: Time, id: FetchId, actions: &mut Vec<Action>) {
        if self.fetches.remove(&id).is_none() {
            return;
        }
        let mut needless = Vec::new();
        self.chunks.retain(|_, chunk| {
            chunk.wanted_by.retain(|fetch| *fetch != id);
            if chunk.wanted_by.is_empty() {
                needless.append(&mut chunk.asked);
            }
            !chunk.wanted_by.is_empty()
        });
        for request in needless {
            self.need_less(request, actions);
        }
        self.admit(now, actions);
    }

    /// One chunk less is wanted from this request.
    fn need_less(&mut self, id: RequestId, actions: &mut Vec<Action>) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.needed = request.needed.saturating_sub(1);
            if request.needed == 0 {
                self.close(id);
                actions.push(Action::Cancel { request: id });
            }
        }
    }

    /// Forgets a request; gives what was not answered.
    fn close(&mut self, id: RequestId) -> VecDeque<ChunkRef> {
        let Some(request) = self.requests.remove(&id) else { return VecDeque::new() };
        if let Some(peer) = self.peers.get_mut(&request.peer) {
            peer.requests.remove(&id);
            peer.outstanding -= request.left_bytes;
        }
        request.left
    }

    /// Something came from the peer, or it is not the peer that is waited for.
    pub fn heard(&mut self, now: Time, request: RequestId) {
        if let Some(peer) = self.requests.get(&request).and_then(|request| self.peers.get_mut(&request.peer)) {
            peer.heard = now;
        }
    }

    /// What became of the next chunks of a request, in its order.
    pub fn settle(&mut self, now: Time, request: RequestId, outcomes: &[Outcome]) -> Vec<Action> {
        let mut actions = Vec::new();
        for outcome in outcomes {
            self.settle_one(now, request, *outcome, &mut actions);
        }
        match self.requests.get(&request) {
            Some(open) if open.left.is_empty() => _ = self.close(request),
            // The rest came from others.
            Some(open) if open.needed == 0 => {
                self.close(request);
                actions.push(Action::Cancel { request });
            }
            _ => {}
        }
        self.fill(now, &mut actions);
        actions
    }

    fn settle_one(&mut self, now: Time, id: RequestId, outcome: Outcome, actions: &mut Vec<Action>) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let Some(chunk) = request.left.pop_front() else { return };
        request.left_bytes -= u64::from(chunk.len);
        let from = request.peer;
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.answered(now, chunk.len, outcome);
        if outcome == Outcome::Here {
            return self.came(now, &chunk.hash, id, actions);
        }
        let Some(known) = self.chunks.get_mut(&chunk.hash) else { return };
        if outcome == Outcome::Absent && !known.absent_at.contains(&from) {
            known.absent_at.push(from);
        }
        if let Some(request) = self.requests.get_mut(&id) {
            request.needed = request.needed.saturating_sub(1);
        }
        self.put_back(&chunk.hash, id);
    }

    fn came(&mut self, now: Time, hash: &Hash, by: RequestId, actions: &mut Vec<Action>) {
        let Some(chunk) = self.chunks.remove(hash) else { return };
        if let Some(request) = self.requests.get_mut(&by) {
            request.needed = request.needed.saturating_sub(1);
        }
        for other in chunk.asked.into_iter().filter(|other| *other != by) {
            self.need_less(other, actions);
        }
        for id in chunk.wanted_by {
            let Some(fetch) = self.fetches.get_mut(&id) else { continue };
            fetch.open -= 1;
            fetch.open_bytes -= u64::from(chunk.len);
            if fetch.open == 0 {
                self.fetches.remove(&id);
                actions.push(Action::Done { fetch: id });
                self.admit(now, actions);
            }
        }
    }

    /// Chunks are here that came too late for their request, or from elsewhere.
    pub fn found(&mut self, now: Time, hashes: &[Hash]) -> Vec<Action> {
        let mut actions = Vec::new();
        for hash in hashes {
            self.came(now, hash, 0, &mut actions);
        }
        self.fill(now, &mut actions);
        actions
    }

    /// A chunk that this request does not bring: the next of all who want it, unless another brings it.
    fn put_back(&mut self, hash: &Hash, from: RequestId) {
        let Some(chunk) = self.chunks.get_mut(hash) else { return };
        chunk.asked.retain(|request| *request != from);
        if chunk.asked.is_empty() {
            for fetch in &chunk.wanted_by {
                if let Some(fetch) = self.fetches.get_mut(fetch) {
                    fetch.queue.push_front(*hash);
                }
            }
        }
    }

    /// A request has ended, with what was not settled unanswered.
    pub fn ended(&mut self, now: Time, request: RequestId, fault: Option<Fault>) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(from) = self.requests.get(&request).map(|request| request.peer) else { return actions };
        // Backwards, so that they are in order at the front.
        for chunk in self.close(request).iter().rev() {
            self.put_back(&chunk.hash, request);
        }
        match fault {
            None | Some(Fault::Broke) => {
                let broke = self.peers.get_mut(&from).is_some_and(|peer| peer.broke(now));
                if broke {
                    self.drop_peer(from, Fault::Broke, &mut actions);
                }
            }
            Some(fault) => self.drop_peer(from, fault, &mut actions),
        }
        self.fill(now, &mut actions);
        actions
    }

    /// A peer of a fetch lied outside of requests for chunks: in a manifest, for instance.
    pub fn accuse(&mut self, now: Time, peer: NodeKey, fault: Fault) -> Vec<Action> {
        let mut actions = Vec::new();
        self.drop_peer(peer, fault, &mut actions);
        self.fill(now, &mut actions);
        actions
    }

    fn drop_peer(&mut self, from: NodeKey, fault: Fault, actions: &mut Vec<Action>) {
        for (&id, fetch) in &mut self.fetches {
            if fetch.holders.remove(&from) {
                actions.push(Action::Dropped { fetch: id, peer: from, fault });
            }
        }
        for wanted in self.waiting.values_mut() {
            wanted.holders.retain(|holder| *holder != from);
        }
        let Some(peer) = self.peers.remove(&from) else { return };
        for request in peer.requests {
            let left = self.requests.remove(&request).map(|request| request.left).unwrap_or_default();
            for chunk in left.iter().rev() {
                self.put_back(&chunk.hash, request);
            }
            actions.push(Action::Cancel { request });
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        let silent: Vec<NodeKey> =
            self.peers.iter().filter(|(key, peer)| self.is_silent(now, key, peer)).map(|(key, _)| *key).collect();
        for peer in silent {
            self.drop_peer(peer, Fault::Silent, &mut actions);
        }
        self.fill(now, &mut actions);
        actions
    }

    fn is_silent(&self, now: Time, key: &NodeKey, peer: &Peer) -> bool {
        if peer.busy_since.is_some_and(|since| now.saturating_sub(since) > BUSY_MAX_MS) {
            return true;
        }
        let is_alone = || {
            let asked = peer.requests.iter().filter_map(|request| self.requests.get(request));
            let mut fetches = asked.filter_map(|request| self.fetches.get(&request.fetch));
            fetches.any(|fetch| fetch.holders.iter().all(|holder| holder == key))
        };
        match now.saturating_sub(peer.heard) {
            _ if peer.requests.is_empty() => false,
            silence if silence > LONE_SILENCE_MAX_MS => true,
            silence => silence > SILENCE_MAX_MS && !is_alone(),
        }
    }

    /// When [`Transfer::tick`] is due; `None` where nothing goes on.
    pub fn next_tick(&self, now: Time) -> Option<Time> {
        (!self.fetches.is_empty()).then_some(now + TICK_MS)
    }

    /// Chunks that are not here yet, of all fetches that were begun.
    pub fn chunks_open(&self) -> usize {
        self.chunks.len()
    }

    /// Requests that are not answered.
    pub fn requests_open(&self) -> usize {
        self.requests.len()
    }

    fn forget_idle_peers(&mut self) {
        if self.peers.len() > PEERS_KEPT_MAX {
            let fetches = &self.fetches;
            let is_named = |key: &NodeKey| fetches.values().any(|fetch| fetch.holders.contains(key));
            self.peers.retain(|key, _| is_named(key));
        }
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
