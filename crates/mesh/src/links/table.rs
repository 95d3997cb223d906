//! What is known of each peer: where it is, which connections there are, what waits for it.
//!
//! Invariants:
//! - a peer has at most one open connection of each protocol, the one that was registered last;
//! - what waits for a peer waits for an open connection or for one that is being opened, and for nothing else;
//! - messages are given out in their order, to the connection that is open, and lost all together when it ends.

use super::bucket::Bucket;
use super::limits::*;
use super::sweep::Activity;
use crate::dial::DialError;
use bytes::Bytes;
use iroh::endpoint::Connection;
use shoal_grid::random::Random;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::certificate::Roles;
use shoal_wire::mesh::node_record::ADDRESSES_MAX;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, oneshot, watch};

/// What a connection between members is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Sync,
    Chunks,
    Builds,
}

impl Protocol {
    pub fn name(self) -> &'static [u8] {
        match self {
            Protocol::Sync => crate::protocol::SYNC,
            Protocol::Chunks => crate::protocol::CHUNKS,
            Protocol::Builds => crate::protocol::BUILDS,
        }
    }

    /// What both ends must have in their certificates.
    pub fn roles(self) -> Roles {
        match self {
            Protocol::Sync | Protocol::Chunks => Roles::default(),
            Protocol::Builds => Roles::BUILD,
        }
    }
}

/// An open connection whose ends know each other.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub connection: Connection,
    pub serial: u64,
    pub opened: Instant,
    pub since: SystemTime,
    /// This node dialled it.
    pub is_dialled: bool,
    /// A connection from the other end was refused because there is this one.
    took_precedence: bool,
    pub activity: Activity,
}

impl Link {
    fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

fn dead() -> DialError {
    DialError::Silent("members agree that it is dead".to_owned())
}

pub(super) type Waiter = oneshot::Sender<Result<Connection, DialError>>;

/// A connection that is being opened.
#[derive(Debug, Default)]
pub(super) struct Dialling {
    pub waiters: Vec<Waiter>,
    /// Its turn has come.
    has_started: bool,
    /// Dropped when it has ended.
    ended: watch::Sender<()>,
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    pub link: Option<Link>,
    pub dialling: Option<Dialling>,
}

#[derive(Debug)]
pub(super) struct Peer {
    addresses: Vec<SocketAddr>,
    /// Where somebody who may be wrong says that it is.
    suggested: Vec<SocketAddr>,
    /// Where it was when a connection was open last.
    seen: Option<SocketAddr>,
    pub sync: Lane,
    pub chunks: Lane,
    pub builds: Lane,
    /// The newest connection of all when the peer was suspected: what it opened since is of another life.
    suspected: Option<u64>,
    /// Members agree that it is dead, and it has not been heard of since.
    is_dead: bool,
    failures: u32,
    not_before: Option<(Instant, DialError)>,
    /// It was cut off, and rests until then.
    rests: Option<(Instant, String)>,
    pub waiting_frames: Vec<Bytes>,
    pub frame_streams: usize,
    messages: VecDeque<Bytes>,
    message_bytes: usize,
    pub ready: Arc<Notify>,
    sent_messages: Bucket,
    sent_message_bytes: Bucket,
    frames: Bucket,
    frame_bytes: Bucket,
    received_messages: Bucket,
    received_message_bytes: Bucket,
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            addresses: Vec::new(),
            suggested: Vec::new(),
            seen: None,
            sync: Lane::default(),
            chunks: Lane::default(),
            builds: Lane::default(),
            suspected: None,
            is_dead: false,
            failures: 0,
            not_before: None,
            rests: None,
            waiting_frames: Vec::new(),
            frame_streams: 0,
            messages: VecDeque::new(),
            message_bytes: 0,
            ready: Arc::default(),
            sent_messages: Bucket::full(MESSAGES_A_S, MESSAGES_BURST, now),
            sent_message_bytes: Bucket::full(MESSAGE_BYTES_A_S, MESSAGE_BYTES_BURST, now),
            frames: Bucket::full(FRAMES_A_S, FRAMES_BURST, now),
            frame_bytes: Bucket::full(FRAME_BYTES_A_S, FRAME_BYTES_BURST, now),
            received_messages: Bucket::full(MESSAGES_A_S * LENIENCE, MESSAGES_BURST * LENIENCE, now),
            received_message_bytes: Bucket::full(MESSAGE_BYTES_A_S * LENIENCE, MESSAGE_BYTES_BURST * LENIENCE, now),
        }
    }

    pub fn lane(&mut self, protocol: Protocol) -> &mut Lane {
        match protocol {
            Protocol::Sync => &mut self.sync,
            Protocol::Chunks => &mut self.chunks,
            Protocol::Builds => &mut self.builds,
        }
    }

    pub fn lanes(&self) -> [&Lane; 3] {
        [&self.sync, &self.chunks, &self.builds]
    }

    pub fn open(&mut self, protocol: Protocol) -> Option<&Link> {
        self.lane(protocol).link.as_ref().filter(|link| link.is_open())
    }

    fn is_idle(&self) -> bool {
        self.lanes().iter().all(|lane| lane.link.is_none() && lane.dialling.is_none())
    }

    /// Whether messages wait to be sent to it.
    pub fn has_messages(&self) -> bool {
        !self.messages.is_empty()
    }

    /// Where it may be.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut all = self.addresses.clone();
        for other in self.seen.iter().chain(&self.suggested) {
            if !all.contains(other) {
                all.push(*other);
            }
        }
        all
    }

    /// Why it is not spoken to now.
    pub fn rest(&self, now: Instant) -> Option<&str> {
        self.rests.as_ref().filter(|(until, _)| now < *until).map(|(_, reason)| &reason[..])
    }

    /// Whether a frame of `len` bytes may come in.
    pub fn takes_frame(&mut self, len: usize, now: Instant) -> bool {
        self.frames.take(1, now) && self.frame_bytes.take(len as u64, now)
    }

    /// Whether a message of `len` bytes may come in.
    pub fn takes_message(&mut self, len: usize, now: Instant) -> bool {
        self.received_messages.take(1, now) && self.received_message_bytes.take(len as u64, now)
    }
}

#[derive(Debug)]
pub(super) struct Table {
    pub peers: HashMap<NodeKey, Peer>,
    pub barred: BTreeSet<NodeKey>,
    pub is_closing: bool,
    pub lost: Lost,
    open: usize,
    serial: u64,
    queued_bytes: usize,
    random: Random,
}

/// What a new link takes over.
#[derive(Debug, Default)]
pub(super) struct Registered {
    pub serial: u64,
    pub replaced: Option<Connection>,
    pub waiters: Vec<Waiter>,
    pub frames: Vec<Bytes>,
}

/// How much waited for links that ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lost {
    pub messages: u64,
    pub frames: u64,
}

impl Default for Table {
    fn default() -> Self {
        let seed = RandomState::new().build_hasher().finish();
        Self {
            peers: HashMap::new(),
            barred: BTreeSet::new(),
            is_closing: false,
            lost: Lost::default(),
            open: 0,
            serial: 0,
            queued_bytes: 0,
            random: Random::new(seed),
        }
    }
}

fn usable(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let usable = addresses.iter().filter(|address| !address.ip().is_unspecified() && address.port() != 0);
    usable.take(ADDRESSES_MAX).copied().collect()
}

impl Table {
    /// The peer, made if it is not known; `None` where there are too many.
    pub fn peer(&mut self, node: NodeKey, now: Instant) -> Option<&mut Peer> {
        if !self.peers.contains_key(&node) && self.peers.len() >= PEERS_MAX {
            self.peers.retain(|_, peer| !peer.is_idle());
            if self.peers.len() >= PEERS_MAX {
                return None;
            }
        }
        Some(self.peers.entry(node).or_insert_with(|| Peer::new(now)))
    }

    pub fn learn(&mut self, node: NodeKey, addresses: &[SocketAddr], now: Instant) {
        let Some(peer) = self.peer(node, now) else { return };
        let addresses = usable(addresses);
        if addresses.iter().any(|address| !peer.addresses.contains(address)) {
            (peer.failures, peer.not_before) = (0, None);
        }
        peer.addresses = addresses;
        peer.is_dead = false;
    }

    pub fn suggest(&mut self, node: NodeKey, addresses: &[SocketAddr], now: Instant) {
        if let Some(peer) = self.peer(node, now) {
            peer.suggested = usable(addresses);
        }
    }

    /// Begins to open a connection where none is open: where to. An error where it is not to be tried now.
    pub fn begin(&mut self, node: NodeKey, protocol: Protocol, now: Instant) -> Result<Vec<SocketAddr>, DialError> {
        if self.is_closing {
            return Err(DialError::Barred("this node stops".to_owned()));
        }
        if self.barred.contains(&node) {
            return Err(DialError::Barred("it was thrown out".to_owned()));
        }
        // What waited for a connection that has ended is lost with it, and not what waits for this one.
        let ended = self.peers.get_mut(&node).and_then(|peer| Some(peer.lane(protocol).link.as_ref()?.serial));
        if let Some(serial) = ended {
            self.retire(&node, protocol, serial);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return Err(DialError::NoAddress) };
        if let Some(reason) = peer.rest(now) {
            return Err(DialError::Barred(format!("it was cut off: {reason}")));
        }
        if let Some((_, error)) = peer.not_before.as_ref().filter(|(at, _)| now < *at) {
            return Err(error.clone());
        }
        let addresses = peer.addresses();
        if addresses.is_empty() {
            return Err(DialError::NoAddress);
        }
        peer.lane(protocol).dialling = Some(Dialling::default());
        Ok(addresses)
    }

    /// The turn of a dial has come. Whether it is still of use: a connection may have come in meanwhile.
    pub fn start(&mut self, node: &NodeKey, protocol: Protocol) -> bool {
        let Some(peer) = self.peers.get_mut(node) else { return false };
        if peer.open(protocol).is_some() {
            peer.lane(protocol).dialling = None;
            return false;
        }
        let dialling = peer.lane(protocol).dialling.as_mut();
        dialling.is_some_and(|dialling| !std::mem::replace(&mut dialling.has_started, true))
    }

    /// A dial came to nothing, and what waited for it is lost, unless a connection came in meanwhile. Who is to be told.
    pub fn failed(
        &mut self,
        node: &NodeKey,
        protocol: Protocol,
        error: &DialError,
        is_lasting: bool,
        now: Instant,
    ) -> Vec<Waiter> {
        let Some(peer) = self.peers.get_mut(node) else { return Vec::new() };
        let waiters = peer.lane(protocol).dialling.take().map(|dialling| dialling.waiters).unwrap_or_default();
        if peer.open(protocol).is_none() {
            self.defer(node, error, is_lasting, now);
            self.drop_waiting(node, protocol);
        }
        waiters
    }

    /// A peer is not dialled for a while, longer each time.
    pub fn defer(&mut self, node: &NodeKey, error: &DialError, is_lasting: bool, now: Instant) {
        // Two nodes that dial each other in step get out of it.
        let jitter = 500 + self.random.below(1_000) as u32;
        let Some(peer) = self.peers.get_mut(node) else { return };
        let wait = match is_lasting {
            true => BACKOFF_MAX,
            false => (BACKOFF_MIN * 2u32.pow(peer.failures.min(8))).min(BACKOFF_MAX),
        };
        peer.failures = peer.failures.saturating_add(1);
        peer.not_before = Some((now + (wait * jitter / 1_000).min(BACKOFF_MAX), error.clone()));
    }

    /// A connection whose other end is known is the one from now on.
    pub fn register(
        &mut self,
        node: NodeKey,
        protocol: Protocol,
        connection: &Connection,
        is_dialled: bool,
        seen: Option<SocketAddr>,
    ) -> Result<Registered, super::Refusal> {
        let now = Instant::now();
        self.may_enter(&node, now)?;
        if self.open >= CONNECTIONS_MAX {
            return Err(super::Refusal::busy());
        }
        let serial = self.serial + 1;
        let Some(peer) = self.peer(node, now) else { return Err(super::Refusal::busy()) };
        (peer.failures, peer.not_before, peer.is_dead) = (0, None, false);
        peer.seen = seen.or(peer.seen);
        let ready = peer.ready.clone();
        let lane = peer.lane(protocol);
        let waiters = match is_dialled {
            true => lane.dialling.take().map(|dialling| dialling.waiters).unwrap_or_default(),
            // The dial goes on, and finds that it is not needed.
            false => lane.dialling.as_mut().map(|dialling| std::mem::take(&mut dialling.waiters)).unwrap_or_default(),
        };
        let link = Link {
            connection: connection.clone(),
            serial,
            opened: now,
            since: SystemTime::now(),
            is_dialled,
            took_precedence: false,
            activity: Activity::new(now),
        };
        let replaced = lane.link.replace(link).map(|old| old.connection);
        let frames = match protocol {
            Protocol::Sync => std::mem::take(&mut peer.waiting_frames),
            Protocol::Chunks | Protocol::Builds => Vec::new(),
        };
        self.serial = serial;
        match replaced.is_some() {
            true => self.drop_waiting(&node, protocol),
            false => self.open += 1,
        }
        ready.notify_one();
        Ok(Registered { serial, replaced, waiters, frames })
    }

    /// A link has ended; if it was the one, what waited for it is lost. Whether there is another.
    pub fn retire(&mut self, node: &NodeKey, protocol: Protocol, serial: u64) -> bool {
        let Some(peer) = self.peers.get_mut(node) else { return false };
        if peer.lane(protocol).link.take_if(|link| link.serial == serial).is_some() {
            self.open -= 1;
            self.drop_waiting(node, protocol);
            return false;
        }
        peer.open(protocol).is_some()
    }

    pub fn has_open(&mut self, node: &NodeKey, protocol: Protocol) -> bool {
        self.peers.get_mut(node).is_some_and(|peer| peer.open(protocol).is_some())
    }

    /// Whether a node is spoken to at all.
    pub fn may_enter(&self, node: &NodeKey, now: Instant) -> Result<(), super::Refusal> {
        if self.is_closing {
            return Err(super::Refusal::stopping());
        }
        if self.barred.contains(node) {
            return Err(super::Refusal::barred());
        }
        match self.peers.get(node).and_then(|peer| peer.rest(now)) {
            Some(reason) => Err(super::Refusal::resting(reason)),
            None => Ok(()),
        }
    }

    /// Whether a connection to `node` that takes precedence is there, or is being opened: then what its end is told by.
    /// One does so once: who dials again has not got it, because it was started again since.
    pub fn crossing(&mut self, node: &NodeKey, protocol: Protocol, now: Instant) -> Crossing {
        let Some(lane) = self.peers.get_mut(node).map(|peer| peer.lane(protocol)) else { return Crossing::No };
        let young = |link: &&mut Link| link.is_dialled && now.saturating_duration_since(link.opened) < CROSSING;
        if let Some(link) = lane.link.as_mut().filter(|link| link.is_open()).filter(young) {
            return match std::mem::replace(&mut link.took_precedence, true) {
                true => Crossing::No,
                false => Crossing::Open,
            };
        }
        match &lane.dialling {
            Some(dialling) if dialling.has_started => Crossing::Opening(dialling.ended.subscribe()),
            _ => Crossing::No,
        }
    }

    /// The peer's connections, which are to be closed; it rests for a while.
    pub fn cut(&mut self, node: &NodeKey, reason: &str, now: Instant) -> Vec<Connection> {
        let Some(peer) = self.peers.get_mut(node) else { return Vec::new() };
        peer.rests = Some((now + REST_AFTER_CUT, reason.to_owned()));
        peer.lanes().iter().filter_map(|lane| Some(lane.link.as_ref()?.connection.clone())).collect()
    }

    /// Why a peer need not be dialled: a dial takes seconds to find that nobody answers, and a build may wait for it.
    pub fn death_of(&self, node: &NodeKey) -> Option<DialError> {
        let is_dead = self.peers.get(node).is_some_and(|peer| peer.is_dead);
        is_dead.then(dead)
    }

    pub fn suspected(&mut self, node: &NodeKey) {
        let serial = self.serial;
        if let Some(peer) = self.peers.get_mut(node) {
            peer.suspected = Some(serial);
        }
    }

    /// The connections of a peer that died when it was suspected last. From now on it is dialled for nothing but to learn
    /// whether it lives.
    pub fn of_the_dead(&mut self, node: &NodeKey) -> Vec<Connection> {
        let Some(peer) = self.peers.get_mut(node) else { return Vec::new() };
        let until = peer.suspected.take().unwrap_or(self.serial);
        peer.is_dead = peer.lanes().iter().all(|lane| lane.link.as_ref().is_none_or(|link| link.serial <= until));
        if peer.is_dead {
            for protocol in [Protocol::Chunks, Protocol::Builds] {
                let dialling = peer.lane(protocol).dialling.as_mut();
                let waiters = dialling.map(|dialling| std::mem::take(&mut dialling.waiters)).unwrap_or_default();
                // Who does not wait any more needs none.
                waiters.into_iter().for_each(|waiter| drop(waiter.send(Err(dead()))));
            }
        }
        let links = peer.lanes().into_iter().filter_map(|lane| lane.link.as_ref());
        links.filter(|link| link.serial <= until).map(|link| link.connection.clone()).collect()
    }

    /// The peer's connections that were opened before the one for messages.
    pub fn older_than_sync(&self, node: &NodeKey) -> Vec<Connection> {
        let Some(peer) = self.peers.get(node) else { return Vec::new() };
        let Some(sync) = &peer.sync.link else { return Vec::new() };
        let others = [&peer.chunks, &peer.builds].into_iter().filter_map(|lane| lane.link.as_ref());
        others.filter(|link| link.serial < sync.serial).map(|link| link.connection.clone()).collect()
    }

    /// Puts a message into the queue of a peer that has a link or will have one. Whether there was room.
    pub fn queue(&mut self, node: &NodeKey, message: Bytes) -> bool {
        let Some(peer) = self.peers.get_mut(node) else { return false };
        let is_full = peer.messages.len() >= MESSAGES_QUEUED_MAX
            || peer.message_bytes + message.len() > MESSAGE_BYTES_QUEUED_MAX
            || self.queued_bytes + message.len() > MESSAGE_BYTES_QUEUED_TOTAL_MAX;
        if is_full {
            return false;
        }
        peer.message_bytes += message.len();
        self.queued_bytes += message.len();
        peer.messages.push_back(message);
        peer.ready.notify_one();
        true
    }

    /// The next message for the link `serial`, and how long to wait before it is sent; `None` where there is none, or
    /// the link is not the one any more.
    pub fn next_message(&mut self, node: &NodeKey, serial: u64, now: Instant) -> Option<(Bytes, Duration)> {
        let peer = self.peers.get_mut(node)?;
        if peer.sync.link.as_ref().is_none_or(|link| link.serial != serial) {
            return None;
        }
        let message = peer.messages.pop_front()?;
        peer.message_bytes -= message.len();
        self.queued_bytes -= message.len();
        let wait = peer.sent_messages.owe(1, now).max(peer.sent_message_bytes.owe(message.len() as u64, now));
        Some((message, wait))
    }

    /// Messages that wait for a peer, and their bytes.
    pub fn queued(&self, node: &NodeKey) -> (usize, usize) {
        self.peers.get(node).map(|peer| (peer.messages.len(), peer.message_bytes)).unwrap_or_default()
    }

    fn drop_waiting(&mut self, node: &NodeKey, protocol: Protocol) {
        let Some(peer) = self.peers.get_mut(node).filter(|_| protocol == Protocol::Sync) else { return };
        self.lost.messages += std::mem::take(&mut peer.messages).len() as u64;
        self.lost.frames += std::mem::take(&mut peer.waiting_frames).len() as u64;
        self.queued_bytes -= std::mem::take(&mut peer.message_bytes);
    }
}

/// See [`Table::crossing`].
#[derive(Debug)]
pub(super) enum Crossing {
    No,
    Open,
    /// Changes, or fails to, when that has ended.
    Opening(watch::Receiver<()>),
}
