//! What links are and have done, for people and metrics.

use super::Links;
use iroh::TransportAddr;
use iroh::endpoint::Connection;
use shoal_wire::mesh::NodeKey;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// A peer that is linked now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerLink {
    pub node: NodeKey,
    pub address: Option<SocketAddr>,
    pub rtt: Option<Duration>,
    /// Bytes of UDP payload, over the connections that are open.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// When the oldest of them was opened.
    pub since: SystemTime,
    /// Whether frames and messages, and chunks, have a connection.
    pub sync: bool,
    pub chunks: bool,
}

/// Totals since the links were opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub frames_received: u64,
    /// Frames that could not be sent at once.
    pub frames_dropped: u64,
    pub messages_received: u64,
    /// Messages that found no room or no link, or whose link ended before they were handed to it.
    pub messages_lost: u64,
    /// Connections that came in and were refused.
    pub refused: u64,
    /// First packets that were left unanswered, since there were too many.
    pub ignored: u64,
    /// Peers that were cut off.
    pub cut_off: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    frames_received: AtomicU64,
    frames_dropped: AtomicU64,
    messages_received: AtomicU64,
    messages_lost: AtomicU64,
    refused: AtomicU64,
    ignored: AtomicU64,
    cut_off: AtomicU64,
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Counters {
    pub fn frame_came(&self) {
        add(&self.frames_received, 1);
    }

    pub fn frames_dropped(&self, count: usize) {
        add(&self.frames_dropped, count);
    }

    pub fn message_came(&self) {
        add(&self.messages_received, 1);
    }

    pub fn messages_lost(&self, count: usize) {
        add(&self.messages_lost, count);
    }

    pub fn refused(&self) {
        add(&self.refused, 1);
    }

    pub fn ignored(&self) {
        add(&self.ignored, 1);
    }

    pub fn cut_off(&self) {
        add(&self.cut_off, 1);
    }
}

/// Address and round-trip time of the path that a connection uses.
pub(super) fn path(connection: &Connection) -> Option<(SocketAddr, Duration)> {
    let paths = connection.paths();
    let path = paths.iter().find(|path| path.is_selected()).or_else(|| paths.iter().next())?;
    match path.remote_addr() {
        TransportAddr::Ip(address) => Some((*address, path.rtt())),
        _ => None,
    }
}

impl Links {
    /// The peers that are linked now, by their keys.
    pub fn peers(&self) -> Vec<PeerLink> {
        let table = self.inner.table();
        let mut peers: Vec<PeerLink> = Vec::new();
        for (node, peer) in &table.peers {
            let links: Vec<_> = peer.lanes().iter().filter_map(|lane| lane.link.as_ref()).collect();
            let Some(since) = links.iter().map(|link| link.since).min() else { continue };
            let stats: Vec<_> = links.iter().map(|link| link.connection.stats()).collect();
            let path = links.iter().find_map(|link| path(&link.connection));
            peers.push(PeerLink {
                node: *node,
                address: path.map(|(address, _)| address),
                rtt: path.map(|(_, rtt)| rtt),
                sent_bytes: stats.iter().map(|stats| stats.udp_tx.bytes).sum(),
                received_bytes: stats.iter().map(|stats| stats.udp_rx.bytes).sum(),
                since,
                sync: peer.sync.link.is_some(),
                chunks: peer.chunks.link.is_some(),
            });
        }
        peers.sort_by_key(|peer| peer.node);
        peers
    }

    pub fn counts(&self) -> Counts {
        let counters = &self.inner.counters;
        let lost = self.inner.table().lost;
        let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            frames_received: total(&counters.frames_received),
            frames_dropped: total(&counters.frames_dropped) + lost.frames,
            messages_received: total(&counters.messages_received),
            messages_lost: total(&counters.messages_lost) + lost.messages,
            refused: total(&counters.refused),
            ignored: total(&counters.ignored),
            cut_off: total(&counters.cut_off),
        }
    }

    /// Messages that wait for a peer, and their bytes.
    pub fn queued(&self, node: &NodeKey) -> (usize, usize) {
        self.inner.table().queued(node)
    }
}
