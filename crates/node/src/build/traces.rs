//! The builds of this node's clients, what they consist of, and what became of each derivation.
//!
//! A build is one request of a client. Bounded: what is kept of builds that ended goes, the oldest first, when there are
//! too many of them or when the derivations of all builds are too many.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_grid::schedule::RequestId;
use shoal_wire::nix::store_path::StorePath;

use super::story::Story;

/// Builds that have ended and are still shown.
const ENDED_MAX: usize = 64;
/// Derivations of all builds that are kept: a distribution, at some 500 bytes each. Of a build for which there is no room
/// beside those that run nothing is kept.
const DERIVATIONS_MAX: usize = 150_000;

/// One derivation of a build.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub drv_path: StorePath,
    /// Steps of the same build that had to succeed first.
    pub deps: Vec<u32>,
    pub story: Story,
}

#[derive(Clone, Debug)]
pub(super) struct Traced {
    pub number: RequestId,
    pub goals: Vec<StorePath>,
    pub began_ms: u64,
    pub ended_ms: Option<u64>,
    /// Its client went before it had ended.
    pub cancelled: bool,
    pub steps: Arc<Vec<Step>>,
}

impl Traced {
    pub fn story(&self, drv_path: &StorePath) -> Option<&Story> {
        self.steps.iter().find(|step| step.drv_path == *drv_path).map(|step| &step.story)
    }
}

#[derive(Debug, Default)]
pub(super) struct Traces {
    builds: BTreeMap<RequestId, Traced>,
    derivations: usize,
}

impl Traces {
    pub fn begin(&mut self, number: RequestId, goals: Vec<StorePath>, steps: Vec<Step>, now_ms: u64) {
        self.make_room(steps.len());
        if self.derivations + steps.len() > DERIVATIONS_MAX {
            return;
        }
        self.derivations += steps.len();
        let steps = Arc::new(steps);
        let traced = Traced { number, goals, began_ms: now_ms, ended_ms: None, cancelled: false, steps };
        self.builds.insert(number, traced);
    }

    pub fn end(&mut self, number: RequestId, cancelled: bool, now_ms: u64) {
        if let Some(traced) = self.builds.get_mut(&number).filter(|traced| traced.ended_ms.is_none()) {
            (traced.ended_ms, traced.cancelled) = (Some(now_ms), cancelled);
            self.make_room(0);
        }
    }

    pub fn forget(&mut self, number: RequestId) {
        if let Some(traced) = self.builds.remove(&number) {
            self.derivations -= traced.steps.len();
        }
    }

    fn make_room(&mut self, steps: usize) {
        let is_ended = |traced: &&Traced| traced.ended_ms.is_some();
        while self.builds.values().filter(is_ended).count() > ENDED_MAX || self.derivations + steps > DERIVATIONS_MAX {
            let oldest = self.builds.values().find(is_ended).map(|traced| traced.number);
            let Some(oldest) = oldest else { return };
            self.forget(oldest);
        }
    }

    /// The newest first.
    pub fn newest(&self) -> impl Iterator<Item = &Traced> {
        self.builds.values().rev()
    }

    /// The newest build of which the derivation is a goal, or else a part.
    pub fn find(&self, drv_path: &StorePath) -> Option<&Traced> {
        let wants = self.newest().find(|traced| traced.goals.contains(drv_path));
        wants.or_else(|| self.newest().find(|traced| traced.story(drv_path).is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drv(n: u64) -> StorePath {
        StorePath::from_base_name(&format!("{n:032}-x.drv")).unwrap()
    }

    fn steps(first: u64, count: usize) -> Vec<Step> {
        let step = |n| Step { drv_path: drv(n), deps: Vec::new(), story: Story::default() };
        (first..).take(count).map(step).collect()
    }

    #[test]
    fn the_oldest_builds_that_ended_are_forgotten_and_no_other() {
        let mut traces = Traces::default();
        traces.begin(0, vec![drv(0)], steps(0, 1), 0);
        for number in 1..=ENDED_MAX as u64 + 5 {
            traces.begin(number, vec![drv(number)], steps(number, 1), number);
            traces.end(number, false, number);
        }
        assert_eq!(traces.newest().count(), ENDED_MAX + 1);
        assert!(traces.find(&drv(0)).is_some_and(|traced| traced.ended_ms.is_none()), "it runs");
        assert!(traces.find(&drv(5)).is_none() && traces.find(&drv(6)).is_some());
    }

    #[test]
    fn large_builds_make_room_for_each_other_and_what_runs_stays() {
        let mut traces = Traces::default();
        traces.begin(1, vec![drv(0)], steps(0, DERIVATIONS_MAX - 1), 1);
        traces.begin(2, vec![drv(1)], steps(1, 2), 2);
        assert_eq!(traces.newest().map(|traced| traced.number).collect::<Vec<_>>(), [1], "no room beside what runs");
        traces.end(1, true, 3);
        traces.begin(3, vec![drv(1)], steps(1, 2), 3);
        assert_eq!(traces.newest().map(|traced| traced.number).collect::<Vec<_>>(), [3]);
        assert_eq!(traces.derivations, 2);
    }

    #[test]
    fn a_derivation_leads_to_the_build_that_wants_it_itself() {
        let mut traces = Traces::default();
        traces.begin(1, vec![drv(1)], steps(1, 1), 1);
        traces.begin(2, vec![drv(3)], steps(1, 3), 2);
        assert_eq!(traces.find(&drv(1)).map(|traced| traced.number), Some(1));
        assert_eq!(traces.find(&drv(2)).map(|traced| traced.number), Some(2));
    }
}
