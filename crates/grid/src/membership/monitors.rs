//! Probing: which members this node watches, and when their silence makes it suspect them.
//!
//! A member is watched by the first [`MONITORS`] live members after it in the order of keys, those left out against whom
//! there are suspicions. So everybody knows without a word who watches whom, and when the watchers die as well, others
//! take their place as soon as they are suspected.
//!
//! Any frame from a member is a sign of life. Silence counts from the first probe that was not answered.

use super::limits::{
    FORGIVEN_MS, FORGIVEN_MS_MAX, MONITORED_MAX, MONITORS, PROBE_MS, PROBE_RETRY_MS, SILENCE_MS, SILENCE_PROBES,
};
use shoal_wire::mesh::NodeKey;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug)]
struct Watch {
    next_ms: u64,
    /// When the first probe went out since the last sign of life.
    silent_ms: Option<u64>,
    unanswered: u32,
    /// The last time it contradicted this node, and how long it is believed.
    forgiven_until_ms: u64,
    forgiven_ms: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Monitors(BTreeMap<NodeKey, Watch>);

/// Whom `me` watches among `live`, which is in the order of keys.
pub fn watched(me: &NodeKey, live: &[NodeKey], suspected: &BTreeSet<NodeKey>) -> Vec<NodeKey> {
    let at = live.partition_point(|node| node < me);
    let before = live[..at].iter().rev().chain(live[at..].iter().rev());
    let mut between = 0;
    let mut watched = Vec::new();
    for node in before.filter(|node| *node != me) {
        if between >= MONITORS || watched.len() >= MONITORED_MAX {
            break;
        }
        watched.push(*node);
        between += usize::from(!suspected.contains(node));
    }
    watched
}

impl Monitors {
    /// Watches these from now on and nobody else. `stagger` spreads first probes over a round.
    pub fn assign(&mut self, nodes: Vec<NodeKey>, now_ms: u64, mut stagger: impl FnMut() -> u64) {
        let old = std::mem::take(&mut self.0);
        for node in nodes {
            let fresh = || Watch {
                next_ms: now_ms + stagger(),
                silent_ms: None,
                unanswered: 0,
                forgiven_until_ms: 0,
                forgiven_ms: FORGIVEN_MS,
            };
            let watch = old.get(&node).copied().unwrap_or_else(fresh);
            self.0.insert(node, watch);
        }
    }

    pub fn watches(&self, node: &NodeKey) -> bool {
        self.0.contains_key(node)
    }

    /// Those that are to be probed now.
    pub fn due(&mut self, now_ms: u64) -> Vec<NodeKey> {
        let mut due = Vec::new();
        for (node, watch) in self.0.iter_mut().filter(|(_, watch)| watch.next_ms <= now_ms) {
            watch.silent_ms.get_or_insert(now_ms);
            watch.unanswered += 1;
            watch.next_ms = now_ms + PROBE_RETRY_MS;
            due.push(*node);
        }
        due
    }

    pub fn heard(&mut self, node: &NodeKey, now_ms: u64) {
        if let Some(watch) = self.0.get_mut(node).filter(|watch| watch.silent_ms.is_some()) {
            watch.next_ms =
                watch.silent_ms.map_or(now_ms, |first| first.max(now_ms.saturating_sub(PROBE_MS)) + PROBE_MS);
            (watch.silent_ms, watch.unanswered) = (None, 0);
        }
    }

    /// Somebody else suspects it: look at once.
    pub fn hurry(&mut self, node: &NodeKey, now_ms: u64) {
        if let Some(watch) = self.0.get_mut(node) {
            watch.next_ms = watch.next_ms.min(now_ms);
        }
    }

    /// Those whose silence is long enough.
    pub fn silent(&self, now_ms: u64) -> Vec<NodeKey> {
        let is_silent = |watch: &Watch| {
            watch.silent_ms.is_some_and(|since| now_ms.saturating_sub(since) >= SILENCE_MS)
                && watch.unanswered >= SILENCE_PROBES
                && now_ms >= watch.forgiven_until_ms
        };
        self.0.iter().filter(|(_, watch)| is_silent(watch)).map(|(node, _)| *node).collect()
    }

    /// It contradicted a suspicion of this node: the link between the two is bad, not the member.
    pub fn contradicted(&mut self, node: &NodeKey, now_ms: u64) {
        if let Some(watch) = self.0.get_mut(node) {
            watch.forgiven_until_ms = now_ms + watch.forgiven_ms;
            watch.forgiven_ms = (watch.forgiven_ms * 2).min(FORGIVEN_MS_MAX);
            (watch.silent_ms, watch.unanswered) = (None, 0);
        }
    }

    /// This node was stopped: what was not answered could not be.
    pub fn forget_silence(&mut self) {
        for watch in self.0.values_mut() {
            (watch.silent_ms, watch.unanswered) = (None, 0);
        }
    }
}
