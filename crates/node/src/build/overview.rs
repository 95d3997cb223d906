//! What a node's builds are doing, for people, and the wait for their end.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use shoal_grid::schedule::Wanted;
use shoal_wire::nix::store_path::StorePath;

use super::recent::EndedBuild;
use super::service::{BuildService, Place};

/// What is to be ready within it is told as demand that comes: machines that are started for it take about that long.
pub const DEMAND_HORIZON_MS: u64 = 60_000;

/// One running build, for people.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RunningBuild {
    pub drv_path: StorePath,
    pub seconds: u64,
    /// The node that it runs on, if that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct Overview {
    pub running: Vec<RunningBuild>,
    /// The latest first. Of this node only.
    pub recent: Vec<EndedBuild>,
    pub waiting: usize,
    pub max_jobs: usize,
    pub draining: bool,
    /// Builders that run here, for whomever.
    #[serde(skip)]
    pub running_here: usize,
}

impl BuildService {
    pub fn overview(&self) -> Overview {
        let state = self.lock();
        let name = |place| {
            let (Place::At(node) | Place::Following(node)) = place else { return None };
            self.grid().map(|grid| grid.neighbours.name(&node))
        };
        let own = state.jobs.iter().filter_map(|(key, job)| {
            let running = job.running.as_ref()?;
            let (seconds, at) = (running.since.elapsed().as_secs(), name(running.place));
            Some(RunningBuild { drv_path: key.clone(), seconds, at })
        });
        let guests = state.guests.running().map(|(drv_path, since)| RunningBuild {
            drv_path: drv_path.clone(),
            seconds: since.elapsed().as_secs(),
            at: None,
        });
        Overview {
            running: own.chain(guests).collect(),
            recent: state.recent.list(),
            waiting: state.schedule.waiting(),
            max_jobs: self.config.max_jobs,
            draining: state.draining,
            running_here: state.busy_here(),
        }
    }

    /// What waits here for slots, and will within [`DEMAND_HORIZON_MS`].
    pub fn wanted(&self) -> Wanted {
        self.lock().schedule.wanted(DEMAND_HORIZON_MS, self.now_ms())
    }

    /// Builds that run here or that clients of this node wait for.
    pub fn open_builds(&self) -> u32 {
        let state = self.lock();
        let count = state.schedule.running() + state.schedule.waiting() + state.guests.len();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Takes no new builds until [`Self::resume_as_ordered`]. Whether that is new.
    pub fn drain_as_ordered(&self) -> bool {
        let mut state = self.lock();
        if state.draining {
            return false;
        }
        (state.draining, state.drains_as_ordered) = (true, true);
        true
    }

    /// Takes builds again, unless somebody else has it drain by now. Whether that is new.
    pub fn resume_as_ordered(&self) -> bool {
        let mut state = self.lock();
        if !state.drains_as_ordered {
            return false;
        }
        (state.draining, state.drains_as_ordered) = (false, false);
        true
    }

    /// Takes no new builds and waits at most `patience` for those that run. True when none runs any more.
    pub fn drain(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        (state.draining, state.drains_as_ordered) = (true, false);
        while state.schedule.running() > 0 || state.guests.len() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let all_ended = state.schedule.running() == 0 && state.guests.len() == 0;
        drop(state);
        self.history.keep();
        all_ended
    }
}
