//! The nodes that builds may be placed on, as the schedule is told of them, and what is on this node's mind meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shoal_grid::can_run::{Machine, can_run};
use shoal_grid::catalogue::claims::CLAIM_MS;
use shoal_grid::membership::member::Standing;
use shoal_grid::placement::{Executor, FreeMemory, Placement, describe};
use shoal_mesh::handle::Mesh;
use shoal_mesh::roster::{Peer, Roster};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::certificate::Roles;
use shoal_wire::mesh::node_record::Presence;
use shoal_wire::nix::store_path::StorePath;

use super::Grid;
use crate::build::graph::Task;
use crate::build::service::{BuildService, HERE, Place, State};

/// The newest version of builds between nodes.
pub const VERSION: u8 = 4;
/// How often jobs that wait are looked at: what a refusal holds up is held up no longer than that.
const TICK: Duration = Duration::from_millis(100);
/// How often claims of what runs are renewed.
const RENEWAL: Duration = Duration::from_millis(CLAIM_MS / 3);
/// So long after a node came or went it may be that claims were lost with it.
const SETTLES_AFTER_MS: u64 = 20_000;
/// Outputs whose places are remembered: those of a whole distribution.
const WHEREABOUTS_MAX: usize = 500_000;

/// Tells the schedule who is there, looks at what waits, and renews claims, for as long as it is polled.
pub async fn keep_in_step(builds: Arc<BuildService>, mesh: Mesh) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut renewed = Instant::now();
    let (mut seen, mut quiet) = (Roster::default(), Vec::new());
    let mut rosters = mesh.rosters();
    let standings = |roster: &Roster| -> Vec<(NodeKey, Standing)> {
        roster.peers.iter().map(|peer| (peer.record.node, peer.standing)).collect()
    };
    loop {
        tokio::select! {
            _ = ticks.tick() => builds.tick(),
            changed = rosters.changed() => if changed.is_err() {
                // The node stops.
                return;
            }
        }
        let roster = mesh.roster();
        let now_quiet: Vec<NodeKey> =
            roster.peers.iter().map(|peer| peer.record.node).filter(|node| builds.is_quiet(node)).collect();
        let has_moved = standings(&roster) != standings(&seen);
        if has_moved {
            builds.unsettle();
        }
        if has_moved
            || now_quiet != quiet
            || roster.peers.iter().map(|peer| peer.record.version).ne(seen.peers.iter().map(|peer| peer.record.version))
        {
            builds.set_members(&roster, mesh.me());
            (seen, quiet) = (Roster::clone(&roster), now_quiet);
        }
        // Who knew of them may be another node now.
        if has_moved || renewed.elapsed() >= RENEWAL {
            renewed = Instant::now();
            builds.renew_claims();
        }
    }
}

/// What a node can be asked for. `is_quiet`, `is_distrusted`: as this node has found it.
fn executor(peer: &Peer, is_quiet: bool, is_distrusted: bool) -> Executor {
    let record = &peer.record;
    Executor {
        machine: Machine { systems: record.systems.clone(), features: record.features.clone() },
        slots: record.capacity.slots,
        running: record.load.running,
        free_memory: match record.load.free_memory_mib {
            0 => FreeMemory::Unknown,
            free_mib => FreeMemory::Told(free_mib),
        },
        memory_max_mib: (record.capacity.memory_mib > 0).then_some(record.capacity.memory_mib),
        pressure: record.load.pressure,
        active: record.presence == Presence::Active,
        silent: is_quiet,
        distrusted: is_distrusted,
    }
}

/// Whether it may be asked for builds.
pub(super) fn builds(peer: &&Peer) -> bool {
    peer.is_live() && peer.record.term.roles.contain(Roles::BUILD) && speaks_of_builds(peer)
}

fn speaks_of_builds(peer: &Peer) -> bool {
    let spoken = peer.record.protocols.builds;
    spoken.oldest <= VERSION && VERSION <= spoken.newest
}

/// Whether a node, as far as it is known, understands what it is asked about builds: another would break off all links.
pub(super) fn speaks(grid: &Grid, node: &NodeKey) -> bool {
    let roster = grid.neighbours.mesh().map(Mesh::roster);
    roster.is_none_or(|roster| roster.get(node).is_none_or(speaks_of_builds))
}

impl State {
    /// Builders that run here, or are about to.
    pub(in crate::build) fn busy_here(&self) -> usize {
        let own = self.jobs.values().filter(|job| job.place() == Some(Place::Here)).count();
        own + self.guests.len()
    }

    /// The job of this node's clients with this derivation, and where it runs.
    pub(super) fn own(&self, drv_path: &StorePath) -> Option<(Task, Option<Place>)> {
        let job = self.jobs.get(drv_path)?;
        Some((Task::clone(&job.task), job.place()))
    }

    /// The same if it runs here.
    pub(super) fn own_here(&self, drv_path: &StorePath) -> Option<Task> {
        self.own(drv_path).filter(|(_, place)| *place == Some(Place::Here)).map(|(task, _)| task)
    }
}

impl BuildService {
    fn set_members(self: &Arc<Self>, roster: &Roster, me: NodeKey) {
        let others = roster.peers.iter().filter(builds).filter(|peer| peer.record.node != me);
        let others = others.map(|peer| {
            let node = peer.record.node;
            (node, executor(peer, self.is_quiet(&node), self.is_distrusted(&node)))
        });
        let mut members: BTreeMap<NodeKey, Executor> = others.collect();
        // Who may not ask is asked by nobody.
        let may_ask = roster.get(&me).is_some_and(|own| own.record.term.roles.contain(Roles::BUILD));
        if !may_ask {
            members.clear();
        }
        let mut state = self.lock();
        members.insert(HERE, self.here(&state));
        let actions = state.schedule.set_executors(members, self.now_ms());
        self.carry_out(&mut state, actions, None);
    }

    /// Nodes that could build something as soon as they are heard of again.
    pub(super) fn silent(&self, grid: &Grid, task: &Task) -> Vec<NodeKey> {
        let Some(mesh) = grid.neighbours.mesh() else { return Vec::new() };
        let roster = mesh.roster();
        let me = mesh.me();
        let others = roster.peers.iter().filter(builds).filter(|peer| peer.record.node != me);
        let is_silent = |node| self.is_quiet(node) && !self.is_distrusted(node);
        let silent = others.filter(|peer| peer.record.presence == Presence::Active && is_silent(&peer.record.node));
        let fit = silent.filter(|peer| can_run(&executor(peer, true, false).machine, &task.requirement).is_ok());
        fit.map(|peer| peer.record.node).collect()
    }

    fn is_quiet(&self, node: &NodeKey) -> bool {
        self.grid().is_some_and(|grid| grid.neighbours.is_quiet(node))
    }

    fn is_distrusted(&self, node: &NodeKey) -> bool {
        self.grid().is_some_and(|grid| grid.neighbours.is_distrusted(node))
    }

    /// A node did not answer: nothing is placed there for a while.
    pub(super) fn was_quiet(self: &Arc<Self>, grid: &Grid, node: NodeKey) {
        grid.neighbours.was_quiet(node);
        self.look_at_members(grid);
    }

    /// A node was caught in a lie: nothing is placed there for longer.
    pub(super) fn distrust(self: &Arc<Self>, grid: &Grid, node: NodeKey) {
        grid.neighbours.distrust(node);
        self.look_at_members(grid);
    }

    fn look_at_members(self: &Arc<Self>, grid: &Grid) {
        if let Some(mesh) = grid.neighbours.mesh() {
            self.set_members(&mesh.roster(), mesh.me());
        }
    }

    /// This node among the executors of its schedule. It keeps a slot whatever its guests have: a node without one would
    /// be taken for one that never builds.
    pub(in crate::build) fn here(&self, state: &State) -> Executor {
        let free = self.config.max_jobs.saturating_sub(state.guests.len());
        Executor {
            machine: self.config.machine.clone(),
            slots: u32::try_from(free.max(1).min(self.config.max_jobs)).unwrap_or(u32::MAX),
            free_memory: self.shared_memory(state),
            memory_max_mib: Some(self.memory_max_mib()),
            active: true,
            ..Executor::default()
        }
    }

    /// A guest came or went.
    pub(super) fn slots_changed(self: &Arc<Self>, state: &mut State) {
        let here = self.here(state);
        let actions = state.schedule.set_executor(HERE, Some(here), self.now_ms());
        self.carry_out(state, actions, None);
        self.load_changed();
    }

    fn tick(self: &Arc<Self>) {
        let mut state = self.lock();
        state.guests.let_go(Instant::now());
        if state.schedule.waiting() > 0 {
            self.follow_guests(&mut state);
            let actions = state.schedule.tick(self.now_ms());
            self.carry_out(&mut state, actions, None);
        }
        let actions = state.schedule.second_late(self.now_ms());
        self.carry_out(&mut state, actions, None);
    }

    fn renew_claims(&self) {
        let Some(grid) = self.grid() else { return };
        let state = self.lock();
        let claimed = state.jobs.iter().filter(|(_, job)| job.running.as_ref().is_some_and(|running| running.claimed));
        // Guests are claimed by who asked for them, and by nobody where that node is lost. Who votes or checks has no claim.
        let guests = state.guests.claimable();
        let claimed: Vec<StorePath> = claimed.map(|(key, _)| key).chain(guests).cloned().collect();
        drop(state);
        claimed.iter().for_each(|drv_path| grid.neighbours.renew_build_claim(drv_path));
    }

    /// Members came or went.
    fn unsettle(&self) {
        self.settles_ms.store(self.now_ms() + SETTLES_AFTER_MS, Ordering::Relaxed);
    }

    /// Whether it is known for sure by now who has which claim.
    pub(super) fn is_unsettled(&self) -> bool {
        self.now_ms() < self.settles_ms.load(Ordering::Relaxed)
    }

    /// Why no member will ever build a job, as far as other nodes are concerned.
    pub(in crate::build) fn why_nowhere(&self, state: &State, key: &StorePath) -> Option<String> {
        let (Placement::Nowhere(reasons) | Placement::Waits(reasons)) = state.schedule.placement(key, self.now_ms())?
        else {
            return None;
        };
        let name = |node: &NodeKey| self.node_name(node, "this node");
        Some(format!("No node of the mesh can build it:\n{}", describe(&reasons, name)))
    }

    /// Where an output lies that is not here, as far as is known.
    pub(super) fn whereabouts(&self, path: &StorePath) -> Option<NodeKey> {
        self.lock().whereabouts.get(path).copied()
    }

    pub(super) fn learn_whereabouts<'a>(&self, paths: impl Iterator<Item = &'a StorePath>, at: NodeKey) {
        let mut state = self.lock();
        if state.whereabouts.len() > WHEREABOUTS_MAX {
            state.whereabouts = HashMap::new();
        }
        state.whereabouts.extend(paths.map(|path| (path.clone(), at)));
    }

    pub(super) fn set_place(&self, key: &StorePath, id: crate::build::feed::JobId, place: Place) {
        let mut state = self.lock();
        let running = state.jobs.get_mut(key).and_then(|job| job.running.as_mut());
        if let Some(running) = running.filter(|running| running.id == id) {
            running.place = place;
        }
    }

    /// This node has the claim of a job from now on.
    pub(super) fn claimed(&self, key: &StorePath, id: crate::build::feed::JobId, place: Place) {
        self.set_place(key, id, place);
        let mut state = self.lock();
        if let Some(running) = state.jobs.get_mut(key).and_then(|job| job.running.as_mut()) {
            running.claimed |= running.id == id;
        }
    }

    /// Whether a run of a job is one that counts, or its second copy.
    pub(super) fn is_current(&self, key: &StorePath, id: crate::build::feed::JobId) -> bool {
        let state = self.lock();
        let Some(job) = state.jobs.get(key) else { return false };
        let running = job.running.as_ref().map(|running| running.id);
        running == Some(id) || job.second.as_ref().is_some_and(|second| second.id == id)
    }
}
