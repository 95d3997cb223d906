//! What a node's builds are doing, for people, and the wait for their end.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use shoal_wire::nix::store_path::StorePath;

use super::recent::EndedBuild;
use super::service::{BuildService, Place};

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
}

impl Overview {
    /// Builders that run here, for whomever.
    pub fn running_here(&self) -> usize {
        self.running.iter().filter(|running| running.at.is_none()).count()
    }
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
        }
    }

    /// Takes no new builds and waits at most `patience` for those that run. True when none runs any more.
    pub fn drain(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        state.draining = true;
        while state.schedule.running() > 0 || state.guests.len() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
