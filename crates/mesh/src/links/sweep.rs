//! Connections that nobody uses are closed: a node that once fetched from everybody, or asked everybody, would keep one
//! to each, with its memory and a packet every few seconds.

use super::limits::{CHUNKS_IDLE, SWEEP, SYNC_IDLE};
use super::table::Link;
use super::{Inner, short};
use crate::protocol::Close;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What passed over a link until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activity {
    frames: u64,
    since: Instant,
}

impl Activity {
    pub fn new(now: Instant) -> Self {
        Self { frames: 0, since: now }
    }
}

impl Link {
    /// Whether nothing has passed on its streams, or as datagrams, for so long.
    fn is_unused(&mut self, idle: Duration, now: Instant) -> bool {
        let stats = self.connection.stats();
        let passed = [stats.frame_tx, stats.frame_rx].map(|frames| frames.stream + frames.datagram);
        let frames = passed.iter().sum();
        if frames != self.activity.frames {
            self.activity = Activity { frames, since: now };
        }
        now.saturating_duration_since(self.activity.since) >= idle
    }
}

pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        inner.sweep(Instant::now());
    }
}

impl Inner {
    /// Who wants it again opens it again.
    pub(super) fn sweep(&self, now: Instant) {
        let mut table = self.table();
        for (node, peer) in &mut table.peers {
            let has_messages = peer.has_messages();
            let lanes = [
                (&mut peer.chunks, CHUNKS_IDLE, false),
                (&mut peer.builds, CHUNKS_IDLE, false),
                (&mut peer.sync, SYNC_IDLE, has_messages),
            ];
            for (lane, idle, is_needed) in lanes {
                let Some(link) = &mut lane.link else { continue };
                if link.is_unused(idle, now) && !is_needed {
                    tracing::debug!(peer = short(node), "a connection is not used");
                    link.connection.close(Close::Done.code(), b"it was not used");
                }
            }
        }
    }
}
