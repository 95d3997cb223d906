//! As an executor: what other nodes ask, answered.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use shoal_mesh::builds::{Answer, Gone};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame, Mode, Offer, Outcome, Reason};
use shoal_wire::mesh::path_record::REFERENCES_MAX;
use shoal_wire::nix::aterm;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::{BuildResult, BuildStatus};

use super::guests::{Admission, By, Interest};
use super::translate::{self, Batch};
use super::{Grid, bring, stand_in};
use crate::build::execute::{self, Ended};
use crate::build::failure::Failure;
use crate::build::feed::{BuildEvent, Feed};
use crate::build::graph::Task;
use crate::build::memory::Used;
use crate::build::request::Progress;
use crate::build::service::{BuildService, HERE, Work};
use crate::build::story::Stage;

/// A thread here parses, fetches, hashes and waits, and nothing on it recurses.
const STACK_BYTES: usize = 2 << 20;
/// When who was refused for want of a slot may ask again: builds that are worth another node take longer than this.
const FULL_RETRY_MS: u32 = 500;
/// The same for reasons that do not pass soon.
const LATER_MS: u32 = 10_000;
/// How long a build goes on whose asker was lost, so that the next one joins it. Longer than members need to agree that a
/// node is dead.
const GRACE: Duration = Duration::from_secs(60);
/// How often its claim is asked for meanwhile, which the lost node may still have.
const CLAIM_PERIOD: Duration = Duration::from_secs(1);
/// Nothing is looked for; whoever has something to say wakes the reader.
const IDLE: Duration = Duration::from_secs(3600);
/// Bytes left on the disk with which no more builds are taken.
const DISK_MIN_BYTES: u64 = 64 << 20;

/// How long outputs are not collected that another node was just told of: it looks whether they are here, at most twice,
/// which takes it some ten seconds where owners are silent.
pub(super) const HELD: Duration = Duration::from_secs(30);

/// Answers on a thread of its own.
pub(super) fn asked(service: Arc<BuildService>, peer: NodeKey, ask: BuildAsk, answer: Answer) {
    let run = move || {
        let served = catch_unwind(AssertUnwindSafe(|| serve(&service, peer, ask, &answer)));
        if served.is_err() {
            tracing::error!("a bug ended what another node had built here");
        }
    };
    // Without a thread the answer is broken off, and asked elsewhere.
    if let Err(error) = thread::Builder::new().name("guest".into()).stack_size(STACK_BYTES).spawn(run) {
        tracing::warn!(%error, "cannot start a thread for another node's build");
    }
}

fn serve(service: &Arc<BuildService>, peer: NodeKey, ask: BuildAsk, answer: &Answer) {
    let Some(grid) = service.grid() else { return };
    let unknown = || (Reason::Unknown, "it runs no such build".to_owned());
    let mut lingers = true;
    let (drv_path, keep, taken) = match ask {
        BuildAsk::StandIn(errand) => return stand_in::stand_in(service, grid, peer, &errand, answer),
        BuildAsk::Estimates(digest) => {
            answer.say(service.history.answer(&digest));
            return;
        }
        BuildAsk::Follow { drv_path, quorum } => {
            let joined = service.join(&drv_path, peer, quorum).ok_or_else(unknown);
            (drv_path, true, joined)
        }
        BuildAsk::Adopt(drv_path) => {
            let joined = service.join_here(&drv_path).ok_or_else(unknown);
            (drv_path, true, joined)
        }
        BuildAsk::Build(offer) => {
            // Nobody but the asker knows what else it is compared with.
            lingers = offer.mode != Mode::Check;
            (offer.drv_path.clone(), offer.keep, take(service, grid, *offer, By::Peer))
        }
    };
    let interest = match taken {
        Ok(interest) => interest,
        Err((reason, text)) => return refuse(answer, reason, text),
    };
    answer.watch(interest.waker());
    if !answer.say(BuildFrame::Accepted) {
        return;
    }
    if let Some(interest) = relay(service, grid, interest, answer, keep)
        && lingers
    {
        linger(grid, interest, &drv_path);
    }
}

pub(super) fn refuse(answer: &Answer, reason: Reason, text: String) {
    answer.say(BuildFrame::Refused { reason, text, retry_after_ms: retry_after_ms(reason) });
}

/// When who was refused may ask again.
pub(super) fn retry_after_ms(reason: Reason) -> u32 {
    match reason {
        Reason::Full | Reason::Unknown => FULL_RETRY_MS,
        _ => LATER_MS,
    }
}

/// Takes an offer, and begins with it where it does not run here already.
pub(super) fn take(
    service: &Arc<BuildService>,
    grid: &Grid,
    offer: Offer,
    by: By,
) -> Result<Interest, (Reason, String)> {
    let unusable = |error: &dyn std::fmt::Display| (Reason::Unusable, format!("it cannot be read: {error}"));
    let derivation = aterm::parse(service.store_dir(), &offer.derivation, &offer.name).map_err(|e| unusable(&e))?;
    if !derivation.input_drvs.is_empty() {
        return Err(unusable(&"it has input derivations"));
    }
    let mode = translate::build_mode(offer.mode);
    let task = Task { agreed: offer.agreed, ..Task::given(offer.drv_path, derivation.to_basic(), mode) };
    service.can_take(&task)?;
    match service.admit(&task, offer.memory_mib, by) {
        Admission::Refused(reason, text) => Err((reason, text)),
        Admission::Joined(interest) => Ok(interest),
        Admission::Admitted { interest, id, kill, story } => {
            let (guest, grid) = (service.clone(), grid.clone());
            let options = translate::options(&offer.settings);
            let work = Work { task: Arc::new(task), id, options, kill, at: HERE, story };
            let run = move || {
                let run = || run(&guest, &grid, &work, &offer.near);
                let ended = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| execute::panicked(&guest));
                guest.guest_ended(id, &ended);
            };
            if let Err(error) = thread::Builder::new().name("guest".into()).stack_size(STACK_BYTES).spawn(run) {
                let failure = Failure::infrastructure(&error.into());
                service.guest_ended(id, &Ended::unbuilt(service, failure));
            }
            Ok(interest)
        }
    }
}

fn run(service: &Arc<BuildService>, grid: &Grid, work: &Work, near: &[NodeKey]) -> Ended {
    let roots = service.store.temp_roots();
    work.story.stage(work.id, Stage::Inputs, service.now_ms());
    let agreed: BTreeSet<StorePath> = work.task.agreed.values().cloned().collect();
    let brought = match work.task.inputs() {
        Some(inputs) if !agreed.is_empty() => {
            let paths = inputs.union(&agreed).cloned().collect();
            bring::bring(service, grid, &paths, near, &roots, || work.kill.is_killed()).map(|()| None)
        }
        Some(inputs) => bring::begin(service, grid, inputs, near, &roots, || work.kill.is_killed()),
        None => Ok(None),
    };
    match brought {
        Ok(coming) => execute::run(service, work, coming.as_ref()),
        Err(error) => Ended::unbuilt(service, Failure::infrastructure(&error)),
    }
}

impl BuildService {
    /// Whether this machine could run it with its disk as it is.
    fn can_take(&self, task: &Task) -> Result<(), (Reason, String)> {
        if let Err(refusal) = shoal_grid::can_run::can_run(&self.config.machine, &task.requirement) {
            return Err((Reason::CannotRun, format!("{}: {refusal}", refusal.reason())));
        }
        let disk = rustix::fs::statvfs(&self.config.data_dir).ok();
        match disk.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)) {
            Some(left) if left < DISK_MIN_BYTES => Err((Reason::NoSpace, "its disk is full".into())),
            _ => Ok(()),
        }
    }
}

/// Passes on what happens until the end of it. Gives back the interest in a build whose asker was lost.
fn relay(
    service: &Arc<BuildService>,
    grid: &Grid,
    mut interest: Interest,
    answer: &Answer,
    keep: bool,
) -> Option<Interest> {
    let mut batch = Batch::default();
    loop {
        let mut progress = interest.next(Duration::ZERO);
        if matches!(progress, Progress::Idle) {
            // Lines that come together travel together.
            batch.take().map(|frame| answer.say(frame));
            progress = interest.next(IDLE);
        }
        match progress {
            Progress::Event(BuildEvent::Line { line, .. }) => drop(batch.push(line).map(|frame| answer.say(frame))),
            Progress::Event(event) => {
                let frames = batch.take().into_iter().chain(translate::frame(event));
                frames.for_each(|frame| _ = answer.say(frame));
            }
            Progress::Done(results) => {
                batch.take().map(|frame| answer.say(frame));
                end(service, grid, results, &interest.feed(), answer, keep);
                return None;
            }
            Progress::Idle | Progress::Woken => {}
        }
        match answer.gone() {
            Some(Gone::Cancelled) => return None,
            Some(Gone::Lost) => return Some(interest),
            None => {}
        }
    }
}

/// The one result of a build, and what is told of it.
pub(super) fn outcome(service: &BuildService, mut results: Vec<BuildResult>, used: Used) -> (BuildResult, Outcome) {
    let none = || BuildResult::new(BuildStatus::TransientFailure, "the build ended without a result");
    let result = results.pop().unwrap_or_else(none);
    let mut outcome = translate::outcome(&service.store, &result);
    (outcome.memory_mib, outcome.out_of_memory) = (used.peak_mib, used.ran_out);
    (result, outcome)
}

/// Tells the end of it, when the outputs are where they should be.
fn end(service: &BuildService, grid: &Grid, results: Vec<BuildResult>, feed: &Feed, answer: &Answer, keep: bool) {
    let (result, mut outcome) = outcome(service, results, feed.used());
    outcome.given_up = feed.has_given_up();
    let infos: Vec<PathInfo> = result
        .built_outputs
        .values()
        .filter_map(|built| service.store.path_info(&built.out_path).ok().flatten())
        .collect();
    // That this node itself was said to have them is no promise yet.
    let elsewhere = |at: &NodeKey| *at != grid.me();
    outcome.at = result.built_outputs.values().find_map(|built| service.whereabouts(&built.out_path).filter(elsewhere));
    let is_whole = infos.len() == result.built_outputs.len();
    // Of what has more no record can be made: it seems not to be here.
    let is_told = infos.iter().all(|info| info.references.len() <= REFERENCES_MAX);
    if result.status == BuildStatus::Built && is_whole && is_told {
        // It promises that they are found here, and is held to that.
        outcome.at = outcome.at.or(Some(grid.me()));
    }
    let roots = service.store.temp_roots();
    result.built_outputs.values().for_each(|built| roots.add(&built.out_path));
    let keeps = keep && result.status.is_success();
    if keeps && !infos.is_empty() {
        answer.say(BuildFrame::Built);
    }
    if keeps && let Err(error) = grid.neighbours.keep(&infos) {
        // They are here; who wants them elsewhere too says so again.
        tracing::warn!(error, "outputs of another node's build have too few copies");
    }
    service.lock().guests.hold(roots, Instant::now());
    answer.say(BuildFrame::Ended(Box::new(outcome)));
}

/// Goes on for a while with a build whose asker was lost, and claims it, so that the next who wants it finds it.
fn linger(grid: &Grid, mut interest: Interest, drv_path: &StorePath) {
    tracing::info!(derivation = %drv_path, "a build goes on for a while without the node that asked for it");
    let until = Instant::now() + GRACE;
    while Instant::now() < until {
        let next = Instant::now() + CLAIM_PERIOD;
        grid.neighbours.claim_build(drv_path);
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            if let Progress::Done(_) = interest.next(left) {
                grid.neighbours.unclaim_build(drv_path);
                return;
            }
        }
    }
    drop(interest);
    grid.neighbours.unclaim_build(drv_path);
}
