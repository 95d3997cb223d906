//! Connections for chunks and builds that nobody uses are closed: a node that once fetched from everybody would keep one to each,
//! with its memory and a packet every few seconds.

use super::limits::{CHUNKS_IDLE, SWEEP};
use super::table::Link;
use super::{Inner, short};
use crate::protocol::Close;
use std::sync::Arc;
use std::time::Instant;

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
    /// Whether nothing has passed on its streams for as long as it may be idle.
    fn is_unused(&mut self, now: Instant) -> bool {
        let stats = self.connection.stats();
        let frames = stats.frame_tx.stream + stats.frame_rx.stream;
        if frames != self.activity.frames {
            self.activity = Activity { frames, since: now };
        }
        now.saturating_duration_since(self.activity.since) >= CHUNKS_IDLE
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
            for link in [&mut peer.chunks, &mut peer.builds].into_iter().filter_map(|lane| lane.link.as_mut()) {
                if link.is_unused(now) {
                    tracing::debug!(peer = short(node), "a connection is not used");
                    link.connection.close(Close::Done.code(), b"it was not used");
                }
            }
        }
    }
}
