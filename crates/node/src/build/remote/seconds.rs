//! Second copies of jobs that take much longer than they should: `shoal_grid::schedule` says of which, and where.
//!
//! Clients hear of the first run, of the second only that there is one. Whichever succeeds first is the job's end.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use shoal_grid::estimates::Estimate;
use shoal_grid::ring::NodeId;
use shoal_grid::schedule::End;
use shoal_wire::nix::derivation::DerivationKind;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::BuildStatus;
use shoal_wire::nix::worker::ops::BuildMode;

use super::Grid;
use super::conduct::{Conduct, Heard};
use super::offer::TOO_LONG;
use super::proof::Teller;
use crate::build::execute::{Ended, KillSwitch};
use crate::build::failure::Failure;
use crate::build::feed::{BuildEvent, JobId};
use crate::build::graph::{Task, What};
use crate::build::past::Past;
use crate::build::prepare::resolved;
use crate::build::request::BuildOptions;
use crate::build::service::{BuildService, HERE, Job, Place, State, Work};
use crate::build::story::How;

/// It resolves, asks and waits; nothing on it recurses.
const STACK_BYTES: usize = 1 << 20;

pub(in crate::build) struct Second {
    pub id: JobId,
    pub kill: Arc<KillSwitch>,
    pub at: NodeId,
}

impl BuildService {
    /// Whether a job may have a second copy beside the first: its outputs are the same wherever it is built, and it is
    /// known how long that takes.
    pub(in crate::build) fn may_run_twice(&self, task: &Task, options: &BuildOptions, estimate: &Estimate) -> bool {
        let kind = match &task.what {
            What::Stored(derivation) => derivation.kind(),
            What::Given(derivation) => derivation.kind(),
            What::Adopted(_) => return false,
        };
        // What nodes must agree on is built by several as it is.
        let is_once = task.mode == BuildMode::Normal && self.quorum(options) == 1;
        is_once && estimate.built_s > 0 && matches!(kind, Ok(kind) if kind != DerivationKind::Impure)
    }

    pub(in crate::build) fn start_second(self: &Arc<Self>, state: &mut State, key: &StorePath, at: NodeId) {
        let id = self.next_job();
        let name = self.node_name(&at, "the node that was asked");
        // More votes may be wanted by now than when it was given to the schedule.
        let may_start = |job: &&mut Job| job.running.is_some() && self.quorum(&job.options) == 1;
        let started = self.grid().cloned().zip(state.jobs.get_mut(key).filter(may_start));
        let is_started = started.is_some_and(|(grid, job)| {
            let kill = Arc::new(KillSwitch::default());
            job.second = Some(Second { id, kill: kill.clone(), at });
            let (task, options, story) = (job.task.clone(), job.options.clone(), job.story.clone());
            let own = self.clone();
            let work = Work { task, id, options, kill, at, story };
            let run = move || {
                let ended = catch_unwind(AssertUnwindSafe(|| conduct(&own, &grid, &work)));
                let (ended, end) = ended.unwrap_or_else(|_| unsuccessful(&own, "a bug ended it"));
                own.job_ended(&work, ended, end);
            };
            thread::Builder::new().name("second".into()).stack_size(STACK_BYTES).spawn(run).is_ok()
        });
        if !is_started {
            if let Some(job) = state.jobs.get_mut(key) {
                job.second = None;
            }
            let actions = state.schedule.ended(key, &at, End::Lost, self.now_ms());
            return self.carry_out(state, actions, None);
        }
        let drv = self.dir.print(key);
        let text = format!("'{drv}' takes much longer than it did before; it is built on '{name}' as well\n");
        self.tell_all(state, key, &BuildEvent::Message(text));
    }

    /// What the end of one of two runs means to the other. True: there is nothing else to do.
    pub(in crate::build) fn is_settled_by_second(
        self: &Arc<Self>,
        state: &mut State,
        work: &Work,
        ended: &Ended,
        end: &End,
    ) -> bool {
        let (key, now_ms) = (&work.task.drv_path, self.now_ms());
        let Some(job) = state.jobs.get_mut(key) else { return false };
        let is_second = job.second.take_if(|second| second.id == work.id).is_some();
        let first = job.running.as_mut().map(|first| (first.id, !first.past.events(first.id).is_empty()));
        if is_second && ended.is_success() {
            if let Some((id, was_told)) = first {
                work.story.end(id, How::Built, now_ms);
                if was_told {
                    self.tell_stopped(state, key, id);
                }
            }
            return false;
        }
        let is_first = first.is_some_and(|(id, _)| id == work.id);
        let heir = if is_first && *end == End::Lost { job.second.take() } else { None };
        if !is_second && heir.is_none() {
            // The schedule takes a success at the place of a second copy for that copy's.
            if let Some(second) = job.second.as_ref().filter(|second| ended.is_success() && second.at == work.at) {
                second.kill.kill();
            }
            return false;
        }
        if let (Some(heir), Some(running)) = (heir, &mut job.running) {
            running.id = heir.id;
            running.kill = heir.kill;
            running.past = Past::default();
            running.place = if heir.at == HERE { Place::Claiming } else { Place::At(heir.at) };
            if let Some((id, true)) = first {
                self.tell_stopped(state, key, id);
            }
        }
        let actions = state.schedule.ended(key, &work.at, end.clone(), now_ms);
        self.carry_out(state, actions, None);
        true
    }
}

fn conduct(service: &Arc<BuildService>, grid: &Grid, work: &Work) -> (Ended, End) {
    let resolved = match resolved(service, &work.task) {
        Ok(resolved) => resolved,
        Err(error) => return unsuccessful(service, &format!("{error:#}")),
    };
    let (announced, follows) = (Cell::new(false), Cell::new(false));
    let conduct = Conduct { service, grid, work, at: work.at, announced, follows, is_mute: true };
    let offer = match service.offer(grid, &work.task, &resolved, &work.options, work.at) {
        Ok(Some(offer)) => offer,
        Ok(None) => return unsuccessful(service, TOO_LONG),
        Err(error) => return unsuccessful(service, &format!("{error:#}")),
    };
    match conduct.hear_offer(offer) {
        // One vote, of which more are wanted by now, makes no end.
        Heard::Outcome(_) if work.kill.is_killed() => unsuccessful(service, "it is not needed any more"),
        Heard::Outcome(outcome)
            if BuildStatus::from_number(outcome.status.into()).is_some_and(|status| status.is_success()) =>
        {
            let (from, teller) = match work.at == HERE {
                true => (grid.me(), Teller::Other),
                false => (work.at, Teller::Executor),
            };
            conduct.concluded(&resolved, &outcome, from, teller)
        }
        Heard::Outcome(outcome) => unsuccessful(service, &String::from_utf8_lossy(&outcome.error)),
        Heard::Refused(_, why, _) | Heard::Lost(why) => unsuccessful(service, &why),
        Heard::Over => unsuccessful(service, "it is not needed any more"),
    }
}

/// It says nothing of the derivation, whatever it is.
fn unsuccessful(service: &BuildService, why: &str) -> (Ended, End) {
    let failure = Failure::new(BuildStatus::TransientFailure, why.to_owned());
    let mut ended = Ended::unbuilt(service, failure);
    ended.cancelled = true;
    (ended, End::Lost)
}
