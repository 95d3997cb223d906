//! What a client asks to be built, and what it holds while that happens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_grid::schedule::RequestId;
use shoal_store::TempRoots;
use shoal_wire::nix::derived_path::DerivedPath;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::BuildResult;
use shoal_wire::nix::worker::ops::BuildMode;

use super::feed::{BuildEvent, Feed, Next};
use super::remote::stand_in::StandIn;
use super::service::BuildService;

/// Settings that a client may send; what it leaves out is the node's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    pub keep_going: Option<bool>,
    pub keep_failed: Option<bool>,
    pub timeout: Option<Duration>,
    pub max_silent: Option<Duration>,
    pub max_log_bytes: Option<u64>,
    /// NIX_BUILD_CORES; 0 means all of the machine's.
    pub cores: Option<u64>,
    /// Whether upstream caches may be asked instead of building.
    pub substitute: Option<bool>,
    /// Nodes that must agree on each output whose contents its derivation does not name; never less than the node's own.
    pub quorum: Option<u32>,
    /// Nobody waits for it.
    pub is_detached: bool,
}

#[derive(Clone, Debug)]
pub struct BuildRequest {
    pub wanted: Vec<DerivedPath>,
    pub mode: BuildMode,
    pub options: BuildOptions,
}

/// What one element of a request comes to.
pub(super) enum Goal {
    /// Known at once.
    Settled(BuildResult),
    /// Waits for this derivation; of its outputs only the wanted ones are told.
    Derivation { drv_path: StorePath, wanted: Wanted },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    Named(Vec<String>),
}

impl Wanted {
    pub(super) fn contains(&self, output: &str) -> bool {
        match self {
            Wanted::All => true,
            Wanted::Named(names) => names.iter().any(|name| name == output),
        }
    }
}

/// A client's interest in its builds. Dropping it withdraws the interest: what nobody else wants is stopped.
pub struct BuildHandle {
    pub(super) service: Arc<BuildService>,
    pub(super) request: Option<RequestId>,
    pub(super) feed: Feed,
    pub(super) goals: Vec<Goal>,
    /// What was built is kept until this handle goes.
    pub(super) _roots: Arc<TempRoots>,
    /// Who sees to it if this node is lost.
    pub(super) _stand_in: Option<StandIn>,
}

/// What [`BuildHandle::next`] found.
pub enum Progress {
    Event(BuildEvent),
    /// All is settled: one result for each element of the request, in its order.
    Done(Vec<BuildResult>),
    Idle,
    Woken,
}

impl BuildHandle {
    /// The next thing that happened, waiting at most `wait`.
    pub fn next(&mut self, wait: Duration) -> Progress {
        match self.feed.next(wait) {
            Next::Event(event) => Progress::Event(event),
            Next::Idle => Progress::Idle,
            Next::Woken => Progress::Woken,
            Next::Done(results) => {
                self.request = None;
                Progress::Done(self.goals.drain(..).map(|goal| settle(goal, &results)).collect())
            }
        }
    }

    /// Tells, also when all is settled, whether the same request is worth making again: see [`Feed::lacks`].
    pub fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// Something to make `next` return from another thread.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let feed = self.feed.clone();
        move || feed.wake()
    }
}

fn settle(goal: Goal, results: &HashMap<StorePath, BuildResult>) -> BuildResult {
    match goal {
        Goal::Settled(result) => result,
        Goal::Derivation { drv_path, wanted } => {
            let mut result = results.get(&drv_path).cloned().unwrap_or_else(|| {
                BuildResult::new(super::failure::Failure::cancelled().status, "the build was not run")
            });
            result.built_outputs.retain(|output, _| wanted.contains(output));
            result
        }
    }
}

impl Drop for BuildHandle {
    fn drop(&mut self) {
        if let Some(request) = self.request {
            self.service.cancel(request);
        }
    }
}
