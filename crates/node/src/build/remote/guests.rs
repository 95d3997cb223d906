//! Builds that run here for other nodes.
//!
//! Invariants:
//! - guests and this node's own builds together run at most `max_jobs` builders, as far as both begin one after the other;
//! - a guest runs for as long as one asker has its handle, and each asker hears of it from its beginning;
//! - a derivation that is built here already is joined, not built beside, and clients of this node join it without a place.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_store::TempRoots;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::Reason;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::ops::BuildMode;

use super::serve::HELD;
use crate::build::execute::{Ended, KillSwitch};
use crate::build::feed::{BuildEvent, Feed, JobId, Next};
use crate::build::graph::{Graph, Task, What};
use crate::build::past::Past;
use crate::build::request::{BuildHandle, BuildOptions, Goal, Progress, Wanted};
use crate::build::service::{BuildService, HERE, Job, Place, State};
use crate::build::story::Story;

/// Ended builds whose outputs are held at once; of more the first are held no longer.
const HELD_MAX: usize = 4096;

pub(in crate::build) struct Guest {
    pub drv_path: StorePath,
    mode: BuildMode,
    kill: Arc<KillSwitch>,
    since: Instant,
    past: Past,
    /// What it is taken to need.
    memory_mib: u64,
    pub story: Story,
    askers: Vec<Asker>,
}

struct Asker {
    number: u64,
    feed: Feed,
    roots: Arc<TempRoots>,
}

/// The builds that run here for others.
#[derive(Default)]
pub(in crate::build) struct Guests {
    runs: HashMap<JobId, Guest>,
    askers: u64,
    /// Of builds that others were told the end of, and when.
    told: VecDeque<(Instant, TempRoots)>,
}

impl Guests {
    /// Keeps outputs from being collected for [`HELD`].
    pub(super) fn hold(&mut self, roots: TempRoots, now: Instant) {
        if self.told.len() >= HELD_MAX {
            self.told.pop_front();
        }
        self.told.push_back((now, roots));
    }

    /// Lets go of what was held for long enough.
    pub(super) fn let_go(&mut self, now: Instant) {
        while self.told.front().is_some_and(|(since, _)| now.duration_since(*since) >= HELD) {
            self.told.pop_front();
        }
    }

    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// What runs, and since when.
    pub fn running(&self) -> impl Iterator<Item = (&StorePath, Instant)> {
        self.runs.values().map(|guest| (&guest.drv_path, guest.since))
    }

    /// Those that the mesh knows by a claim: a voter or a check is its asker's alone.
    pub fn claimable(&self) -> impl Iterator<Item = &StorePath> {
        self.runs.values().filter(|guest| guest.mode == BuildMode::Normal).map(|guest| &guest.drv_path)
    }

    /// What they are taken to need together.
    pub fn memory_mib(&self) -> u64 {
        self.runs.values().fold(0, |sum, guest| sum.saturating_add(guest.memory_mib))
    }

    /// What the build of a derivation has come to that runs here for others.
    pub fn story(&self, drv_path: &StorePath) -> Option<&Story> {
        self.runs.values().find(|guest| guest.drv_path == *drv_path).map(|guest| &guest.story)
    }

    /// Tells the askers of a guest. False where it is none.
    pub fn tell(&mut self, id: JobId, event: &BuildEvent) -> bool {
        let Some(guest) = self.runs.get_mut(&id) else { return false };
        guest.past.note(event);
        guest.askers.iter().for_each(|asker| asker.feed.push(event.clone()));
        true
    }

    /// Stops the build of a derivation, for everybody who wants it. Whether it ran.
    pub fn stop(&self, drv_path: &StorePath) -> bool {
        let of_it = self.runs.values().filter(|guest| guest.drv_path == *drv_path);
        of_it.map(|guest| guest.kill.kill()).count() > 0
    }

    fn find(&self, drv_path: &StorePath, mode: BuildMode) -> Option<JobId> {
        self.runs.iter().find(|(_, guest)| guest.drv_path == *drv_path && guest.mode == mode).map(|(id, _)| *id)
    }
}

/// An asker's interest in a build of this node.
pub(super) enum Interest {
    Guest(GuestHandle),
    /// In one of this node's own, wherever that runs.
    Own(BuildHandle),
}

impl Interest {
    pub fn next(&mut self, wait: Duration) -> Progress {
        match self {
            Interest::Own(handle) => handle.next(wait),
            Interest::Guest(handle) => match handle.feed.next(wait) {
                Next::Event(event) => Progress::Event(event),
                Next::Idle => Progress::Idle,
                Next::Woken => Progress::Woken,
                Next::Done(results) => Progress::Done(results.into_values().collect()),
            },
        }
    }

    /// What is heard of it.
    pub fn feed(&self) -> Feed {
        match self {
            Interest::Own(handle) => handle.feed(),
            Interest::Guest(handle) => handle.feed.clone(),
        }
    }

    pub fn waker(&self) -> Box<dyn Fn() + Send + Sync> {
        match self {
            Interest::Own(handle) => Box::new(handle.waker()),
            Interest::Guest(handle) => {
                let feed = handle.feed.clone();
                Box::new(move || feed.wake())
            }
        }
    }
}

pub(super) struct GuestHandle {
    service: Arc<BuildService>,
    id: JobId,
    number: u64,
    feed: Feed,
    _roots: Arc<TempRoots>,
}

impl Drop for GuestHandle {
    fn drop(&mut self) {
        self.service.guest_left(self.id, self.number);
    }
}

/// Who offers a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Peer,
    /// This node, which votes on a job of its own: what it has begun it ends, also while it drains.
    Own,
}

/// What came of an offer.
pub(super) enum Admission {
    /// It runs here already.
    Joined(Interest),
    /// It is to be run as the guest of this number.
    Admitted {
        interest: Interest,
        id: JobId,
        kill: Arc<KillSwitch>,
        story: Story,
    },
    Refused(Reason, String),
}

impl BuildService {
    /// Takes a build that is offered, or says why not.
    pub(super) fn admit(self: &Arc<Self>, task: &Task, memory_mib: u64, by: By) -> Admission {
        let (drv_path, mode) = (&task.drv_path, task.mode);
        let mut state = self.lock();
        if let Some(id) = state.guests.find(drv_path, mode) {
            return match self.join_guest(&mut state, id, drv_path) {
                Some(interest) => Admission::Joined(interest),
                None => Admission::Refused(Reason::Full, "it ends just now".into()),
            };
        }
        if let Some(task) = state.own_here(drv_path).filter(|task| task.mode == mode) {
            drop(state);
            return Admission::Joined(self.join_own(task, None));
        }
        let slots = self.config.max_jobs;
        // What is only published waits for no builder: those who agreed on it wait for it.
        let has_builder = task.agreed.is_empty();
        if state.draining && by == By::Peer && has_builder {
            return Admission::Refused(Reason::Draining, "this node is stopping and takes no new builds".into());
        }
        if has_builder && state.busy_here() >= slots {
            return Admission::Refused(Reason::Full, format!("all {slots} slots are taken"));
        }
        if let Some(text) = self.refuses_memory(&state, memory_mib).filter(|_| has_builder) {
            return Admission::Refused(Reason::NoMemory, text);
        }
        let (id, kill) = (self.next_job(), Arc::new(KillSwitch::default()));
        let (drv_path, since, story) = (drv_path.clone(), Instant::now(), Story::default());
        story.begin(id, HERE, Vec::new(), self.now_ms());
        let guest = Guest {
            drv_path: drv_path.clone(),
            mode,
            kill: kill.clone(),
            since,
            past: Past::default(),
            memory_mib,
            story: story.clone(),
            askers: Vec::new(),
        };
        state.guests.runs.insert(id, guest);
        self.slots_changed(&mut state);
        match self.join_guest(&mut state, id, &drv_path) {
            Some(interest) => Admission::Admitted { interest, id, kill, story },
            None => Admission::Refused(Reason::Full, "it ends just now".into()),
        }
    }

    /// Joins the build of a derivation whose builder runs here.
    pub(super) fn join_here(self: &Arc<Self>, drv_path: &StorePath) -> Option<Interest> {
        let mut state = self.lock();
        if let Some(id) = state.guests.find(drv_path, BuildMode::Normal) {
            return self.join_guest(&mut state, id, drv_path);
        }
        let task = state.own_here(drv_path)?;
        drop(state);
        Some(self.join_own(task, None))
    }

    /// Joins the build of a derivation that runs here for others.
    pub(super) fn join_guest_of(self: &Arc<Self>, drv_path: &StorePath) -> Option<Interest> {
        let mut state = self.lock();
        let id = state.guests.find(drv_path, BuildMode::Normal)?;
        self.join_guest(&mut state, id, drv_path)
    }

    /// Whether a job of this node's clients is what runs here for others, which it can follow without a place of its own.
    pub(in crate::build) fn joins_guest(&self, state: &State, drv_path: &StorePath) -> bool {
        let is_same = |job: &Job| job.task.mode == BuildMode::Normal && !matches!(job.task.what, What::Adopted(_));
        let runs = state.guests.find(drv_path, BuildMode::Normal).is_some();
        runs && !self.is_alone() && state.jobs.get(drv_path).is_some_and(is_same)
    }

    /// Jobs that wait for a place although they run here for others begin.
    pub(super) fn follow_guests(self: &Arc<Self>, state: &mut State) {
        let waits = |drv_path: &&StorePath| state.jobs.get(*drv_path).is_some_and(|job| job.running.is_none());
        let waiting: Vec<StorePath> = state.guests.claimable().filter(waits).cloned().collect();
        for drv_path in waiting {
            if self.joins_guest(state, &drv_path) {
                let actions = state.schedule.join(&drv_path, &HERE, self.now_ms());
                self.carry_out(state, actions, None);
            }
        }
    }

    fn join_own(self: &Arc<Self>, task: Task, quorum: Option<u32>) -> Interest {
        let goals = vec![Goal::Derivation { drv_path: task.drv_path.clone(), wanted: Wanted::All }];
        let handle = self.enter(Graph::single(task), goals, BuildOptions { quorum, ..BuildOptions::default() });
        // It is a build of the node that asks, which shows it.
        if let Some(request) = handle.request {
            self.lock().traces.forget(request);
        }
        Interest::Own(handle)
    }

    /// Joins the build of a derivation that runs or waits here, for `asker`, who wants so many nodes to agree on it.
    pub(super) fn join(self: &Arc<Self>, drv_path: &StorePath, asker: NodeKey, quorum: u8) -> Option<Interest> {
        let mut state = self.lock();
        if let Some(id) = state.guests.find(drv_path, BuildMode::Normal) {
            return self.join_guest(&mut state, id, drv_path);
        }
        let (task, place) = state.own(drv_path).filter(|(task, _)| task.mode == BuildMode::Normal)?;
        // Two that follow each other would wait for ever.
        if place == Some(Place::Following(asker)) {
            return None;
        }
        drop(state);
        Some(self.join_own(task, Some(quorum.into())))
    }

    fn join_guest(self: &Arc<Self>, state: &mut State, id: JobId, drv_path: &StorePath) -> Option<Interest> {
        state.guests.askers += 1;
        let number = state.guests.askers;
        let guest = state.guests.runs.get_mut(&id).filter(|guest| !guest.kill.is_killed())?;
        let (feed, roots) = (Feed::new(1), Arc::new(self.store.temp_roots()));
        debug_assert_eq!(guest.drv_path, *drv_path);
        guest.past.events(id).into_iter().for_each(|event| feed.push(event));
        guest.askers.push(Asker { number, feed: feed.clone(), roots: roots.clone() });
        Some(Interest::Guest(GuestHandle { service: self.clone(), id, number, feed, _roots: roots }))
    }

    /// Whoever leaves last stops it.
    fn guest_left(&self, id: JobId, number: u64) {
        let mut state = self.lock();
        let Some(guest) = state.guests.runs.get_mut(&id) else { return };
        guest.askers.retain(|asker| asker.number != number);
        let unwanted = guest.askers.is_empty().then(|| guest.kill.clone());
        drop(state);
        if let Some(kill) = unwanted {
            kill.kill();
        }
    }

    /// Tells all askers how it ended, and lets others have its place.
    pub(super) fn guest_ended(self: &Arc<Self>, id: JobId, ended: &Ended) {
        let mut state = self.lock();
        let Some(guest) = state.guests.runs.remove(&id) else { return };
        if ended.announced {
            let failure = (!ended.is_success()).then(|| String::from_utf8_lossy(&ended.result.error_msg).into_owned());
            state.recent.push(guest.drv_path.clone(), guest.since.elapsed(), failure);
        }
        for asker in guest.askers {
            ended.result.built_outputs.values().for_each(|built| asker.roots.add(&built.out_path));
            asker.feed.set_used(ended.used);
            asker.feed.settle(guest.drv_path.clone(), ended.result.clone());
        }
        self.slots_changed(&mut state);
        // The claim is a job's of this node while it has one, and none of a voter's or a check's.
        let own = state.jobs.get(&guest.drv_path).and_then(|job| job.running.as_ref());
        let is_claimed = own.is_some_and(|running| running.claimed);
        drop(state);
        // Only who has it gives it back.
        if let Some(grid) = self.grid()
            && guest.mode == BuildMode::Normal
            && !is_claimed
        {
            grid.neighbours.unclaim_build(&guest.drv_path);
        }
        self.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use shoal_store::Store;

    use super::*;

    #[test]
    fn what_others_were_told_of_is_held_for_a_while_and_not_without_bound() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), shoal_store::Options::default()).unwrap();
        let (mut guests, begun) = (Guests::default(), Instant::now());
        guests.hold(store.temp_roots(), begun);
        guests.hold(store.temp_roots(), begun + Duration::from_secs(1));
        guests.let_go(begun + HELD - Duration::from_millis(1));
        assert_eq!(guests.told.len(), 2);
        guests.let_go(begun + HELD);
        assert_eq!(guests.told.len(), 1);
        (0..2 * HELD_MAX).for_each(|_| guests.hold(store.temp_roots(), begun));
        assert_eq!(guests.told.len(), HELD_MAX);
    }
}
