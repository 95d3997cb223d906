//! Which upstream cache is asked next, and which is left alone.
//!
//! Order: lower priority number first, then lower measured latency; one that was never measured comes first among its
//! equals, so that it is. One whose [`Breaker`] is open is not asked.

mod breaker;
mod lookup;
mod remembered;

pub use breaker::{Breaker, Phase};
pub use lookup::{Answer, Lookup, Step};
pub use remembered::Remembered;

/// Names an upstream: its place in the configuration.
pub type UpstreamId = usize;

/// A new measurement counts for one part in this many.
const LATENCY_WEIGHT: u64 = 8;

/// What is known of one upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub priority: u32,
    /// From question to answer, averaged; `None` before the first.
    pub latency_us: Option<u64>,
    pub breaker: Breaker,
    pub found: u64,
    pub missing: u64,
    pub failed: u64,
}

/// All upstreams of a node.
#[derive(Clone, Debug, Default)]
pub struct Upstreams(Vec<Health>);

impl Upstreams {
    pub fn new(priorities: impl IntoIterator<Item = u32>) -> Upstreams {
        Upstreams(priorities.into_iter().map(|priority| Health { priority, ..Health::default() }).collect())
    }

    pub fn health(&self) -> &[Health] {
        &self.0
    }

    /// The upstream said itself how it wants to be ranked.
    pub fn set_priority(&mut self, id: UpstreamId, priority: u32) {
        if let Some(health) = self.0.get_mut(id) {
            health.priority = priority;
        }
    }

    /// Those that may be asked, the best first.
    pub fn order(&self, now_ms: u64) -> Vec<UpstreamId> {
        let mut order: Vec<UpstreamId> =
            (0..self.0.len()).filter(|&id| self.0[id].breaker.phase(now_ms) != Phase::Open).collect();
        order.sort_by_key(|&id| (self.0[id].priority, self.0[id].latency_us.unwrap_or(0), id));
        order
    }

    /// Whether `id` may be asked now. Every `true` must be followed by one of the three answers, or by
    /// [`Upstreams::abandoned`].
    pub fn begin(&mut self, id: UpstreamId, now_ms: u64) -> bool {
        self.0.get_mut(id).is_some_and(|health| health.breaker.begin(now_ms))
    }

    /// It was not asked after all what it might be asked at `began_ms`.
    pub fn abandoned(&mut self, id: UpstreamId, began_ms: u64) {
        if let Some(health) = self.0.get_mut(id) {
            health.breaker.abandoned(began_ms);
        }
    }

    /// It gave what it was asked for, or said that it does not have it.
    pub fn answered(&mut self, id: UpstreamId, has_it: bool, took_us: u64) {
        let Some(health) = self.0.get_mut(id) else { return };
        health.breaker.succeeded();
        health.latency_us = Some(match health.latency_us {
            Some(old) => (old.saturating_mul(LATENCY_WEIGHT - 1).saturating_add(took_us)) / LATENCY_WEIGHT,
            None => took_us,
        });
        *(if has_it { &mut health.found } else { &mut health.missing }) += 1;
    }

    /// It did not answer, or what it said made no sense.
    pub fn failed(&mut self, id: UpstreamId, now_ms: u64) {
        if let Some(health) = self.0.get_mut(id) {
            health.breaker.failed(now_ms);
            health.failed += 1;
        }
    }
}

#[cfg(test)]
#[path = "upstreams_tests.rs"]
mod tests;
