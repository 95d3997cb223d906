//! How many nodes a pool should have, by what waits for slots.
//!
//! Nodes of a pool are numbered from 0 and only the last ones can go (as a StatefulSet has it), each only when it has
//! drained. They take a while to start and are paid for from the moment on that they are asked for.
//!
//! Invariants:
//! - what is ready and will find no slot within the start-up time gets nodes at once; what will find one gets none, since a
//!   new node would come too late for it;
//! - nodes that are not needed drain after they were not needed for the quiet time, and each goes when it and all after it
//!   have drained;
//! - a node that drains and is needed again is taken back before a new one is started;
//! - the size stays within the bounds, which count from the moment on that they are told: a lower maximum drains as well.

use std::collections::VecDeque;

use shoal_wire::mesh::demand::Amount;

/// How long after new nodes have come what is short may still wait for one of its like.
const GRACE_S: u64 = 5;
/// Of the work that slots are estimated to get done before a new node is there, what is counted on, in quarters:
/// estimates are of the kind that some are much too low.
const TRUSTED_QUARTERS: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub min: u32,
    pub max: u32,
    /// Builds that one node runs at once, at least 1.
    pub slots: u32,
    pub startup_s: u64,
    pub quiet_s: u64,
}

/// A pool as it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Nodes that it is to have, those that start and drain among them.
    pub replicas: u32,
    /// Nodes that are there and take builds.
    pub active: u32,
    /// Builds that run on those.
    pub busy: u32,
    /// How many of the last nodes drain, and how many of the very last ones have drained.
    pub draining: u32,
    pub drained: u32,
    pub amount: Amount,
}

/// Why the size is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// What there is does.
    Enough,
    /// Work waits that finds no slot in time.
    Grow,
    /// It would grow if the maximum were greater.
    AtMax,
    /// Too large, but not for the quiet time yet.
    Quieting,
    /// Nodes that are not needed drain.
    Draining,
    /// Nodes that have drained go.
    Shrink,
    /// It has the fewest nodes that it may have, and needs no more.
    AtMin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// To be set, where it is not what it is.
    pub replicas: u32,
    /// How many of the last of the present nodes are to drain.
    pub drain: u32,
    pub reason: Reason,
}

/// Remembers what was needed within the quiet time.
#[derive(Clone, Debug, Default)]
pub struct Sizer {
    /// When what was needed; falling from the front on, so that the front is the most of the time that it covers.
    needed: VecDeque<(u64, u32)>,
    /// Since when it looks.
    since_s: Option<u64>,
}

impl Sizer {
    /// To be asked again when anything changes, and at least each few seconds.
    pub fn decide(&mut self, terms: &Terms, pool: &Pool, now_s: u64) -> Verdict {
        let since_s = *self.since_s.get_or_insert(now_s);
        let short = short_of(terms, pool).div_ceil(u64::from(terms.slots.max(1)));
        let wanted = pool.active.saturating_add(u32::try_from(short).unwrap_or(u32::MAX));
        let within = |nodes: u32| nodes.min(terms.max).max(terms.min.min(terms.max));
        let needed = within(kept(terms, pool).max(if short > 0 { wanted } else { 0 }));
        let most = self.most(needed, now_s, terms.quiet_s);
        if short > 0 || pool.replicas < terms.min.min(terms.max) {
            // Those that drain are nearer than new ones.
            let drain = pool.replicas.saturating_sub(within(wanted)).min(pool.draining);
            let surplus = pool.replicas.saturating_sub(terms.max);
            let reason = if wanted > terms.max { Reason::AtMax } else { Reason::Grow };
            return Verdict { replicas: within(wanted).max(pool.replicas), drain: drain.max(surplus), reason };
        }
        let surplus = pool.replicas.saturating_sub(most);
        let is_quiet = now_s.saturating_sub(since_s) >= terms.quiet_s || pool.replicas > terms.max;
        let drain = if is_quiet { surplus } else { 0 };
        let gone = pool.drained.min(drain);
        let reason = match () {
            () if gone > 0 => Reason::Shrink,
            () if drain > 0 => Reason::Draining,
            () if pool.replicas > needed => Reason::Quieting,
            () if pool.replicas <= terms.min => Reason::AtMin,
            () => Reason::Enough,
        };
        Verdict { replicas: pool.replicas - gone, drain: drain - gone, reason }
    }

    /// The most that was needed within the quiet time.
    fn most(&mut self, needed: u32, now_s: u64, quiet_s: u64) -> u32 {
        while self.needed.back().is_some_and(|(_, other)| *other <= needed) {
            self.needed.pop_back();
        }
        self.needed.push_back((now_s, needed));
        while self.needed.len() > 1 && self.needed[0].0.saturating_add(quiet_s) <= now_s {
            self.needed.pop_front();
        }
        self.needed[0].1
    }
}

/// Slots that have to be added so that all that is ready starts within the start-up time, and what is short soon after.
fn short_of(terms: &Terms, pool: &Pool) -> u64 {
    let ready = pool.amount.ready;
    let jobs = u64::from(ready.jobs);
    if jobs == 0 {
        return 0;
    }
    let each_s = (ready.slot_s / jobs).max(1);
    let slots = u64::from(pool.active) * u64::from(terms.slots);
    let free = slots.saturating_sub(u64::from(pool.busy));
    let ending = u64::from(pool.amount.ending.min(pool.busy));
    // A slot that is free starts one job after the other; one that will be, from the middle of the time on.
    let by_ending = ending * (1 + terms.startup_s / 2 / each_s) * TRUSTED_QUARTERS / 4;
    let left = jobs.saturating_sub(free * (1 + terms.startup_s / each_s) + by_ending);
    left.div_ceil(1 + GRACE_S / each_s)
}

/// Nodes that have work now, or will have soon.
fn kept(terms: &Terms, pool: &Pool) -> u32 {
    let Amount { ready, coming, .. } = pool.amount;
    let slots = u64::from(pool.busy) + u64::from(ready.jobs) + u64::from(coming.jobs);
    u32::try_from(slots.div_ceil(u64::from(terms.slots.max(1)))).unwrap_or(u32::MAX).min(pool.replicas)
}

#[cfg(test)]
#[path = "sizing_tests.rs"]
mod tests;
