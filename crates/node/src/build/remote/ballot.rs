//! One derivation that several nodes must agree on, or that is checked on another node than the one that built it.
//!
//! `shoal_grid::ballot` says who builds it and what their outputs come to; this carries it out, a thread a voter. Voters
//! build in check mode, this node among them as its own guest, so nothing is valid before all agree. Then one of them
//! makes what it has kept the outputs, and signs them. Clients hear of the first voter's run.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::thread::{self, Scope};
use std::time::Duration;

use shoal_grid::ballot::{Ballot, Step, VOTES_MAX, Word};
use shoal_grid::can_run::Requirement;
use shoal_grid::ring::NodeId;
use shoal_grid::schedule::End;
use shoal_mesh::builds::ask;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuiltOutput, DERIVATION_LEN_MAX, NEAR_MAX, Offer, Outcome, Reason};
use shoal_wire::nix::derivation::{BasicDerivation, DerivationKind};
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::ops::BuildMode;
use shoal_wire::nix::worker::{BuildResult, BuildStatus};

use super::conduct::{Conduct, Heard, is_full};
use super::guests::{By, Interest};
use super::members::speaks;
use super::offer::TOO_LONG;
use super::proof::Teller;
use super::serve;
use crate::build::execute::{Ended, KillSwitch};
use crate::build::failure::{Failure, Texts};
use crate::build::feed::BuildEvent;
use crate::build::graph::{Task, What};
use crate::build::prepare::Resolved;
use crate::build::request::{BuildOptions, Progress};
use crate::build::service::{BuildService, HERE, Job, Place, State, Work};
use crate::build::story::Stage;
use crate::build::verdict::{self, Version, Versions};

/// How often it is looked whether anybody wants the build still.
const LOOK: Duration = Duration::from_millis(200);
/// Times that each of those who agreed is asked to publish.
const PUBLISH_TRIES: u32 = 3;
/// A voter asks, reads and waits.
const STACK_BYTES: usize = 1 << 20;

/// What a vote is for: the variant of each output, and the hash of its NAR. What is published is made of the path, so the
/// hash alone would leave open what that has.
type Vote = BTreeMap<String, (StorePath, [u8; 32])>;

/// What a word is to the ballot, and the run that it is of, if that is a vote.
type Spoken = (Word<Vote>, Option<Run>);

/// How a vote came out.
enum Polled {
    /// All needed votes are there.
    Agreed,
    Differ,
    /// Without them.
    Ended(Box<(Ended, End)>),
}

/// Who could vote, the best first.
type Order<'a> = dyn Fn(&Ballot<NodeId, Vote>) -> Vec<NodeId> + 'a;

/// What one voter came to, and whether clients were told that its builder runs.
struct Told {
    node: NodeId,
    heard: Heard,
    announced: bool,
}

/// One voter's build.
#[derive(Clone)]
struct Run {
    node: NodeId,
    outcome: Outcome,
}

impl BuildService {
    /// Nodes that must agree, by the settings of this node and of the client.
    pub(in crate::build) fn quorum(&self, options: &BuildOptions) -> u32 {
        self.config.quorum.max(options.quorum.unwrap_or(1)).max(1)
    }

    /// Nodes that must agree on a derivation: of one that names its outputs' contents, or whose outputs are named by
    /// them, one.
    pub(super) fn voters_needed(&self, options: &BuildOptions, derivation: &BasicDerivation) -> usize {
        match derivation.kind() {
            Ok(DerivationKind::InputAddressed) => self.quorum(options) as usize,
            _ => 1,
        }
    }

    /// The same of a job, by all who want it now.
    fn quorum_now(&self, drv_path: &StorePath) -> usize {
        let state = self.lock();
        state.jobs.get(drv_path).map_or(1, |job| self.quorum(&job.options)) as usize
    }

    /// Whoever wants most votes for a job gets them. One that needed none and is being built ends with what that comes to.
    pub(in crate::build) fn raise_quorum(&self, job: &mut Job, options: &BuildOptions) {
        if job.options.quorum >= options.quorum {
            return;
        }
        job.options.quorum = options.quorum;
        // It would end the job with one vote.
        if let Some(second) = job.second.as_ref().filter(|_| self.quorum(&job.options) > 1) {
            second.kill.kill();
        }
        self.tell_quorum(job);
    }

    /// Why none may join jobs with these options: they would need more votes than there are nodes, and fail for all who
    /// want them.
    pub(in crate::build) fn cannot_raise(
        &self,
        state: &State,
        tasks: &[Task],
        options: &BuildOptions,
    ) -> Option<Failure> {
        let needed = (self.quorum(options) as usize).min(VOTES_MAX);
        let mut voters: BTreeMap<&Requirement, usize> = BTreeMap::new();
        let raised = tasks.iter().filter(|task| {
            let job = state.jobs.get(&task.drv_path).filter(|job| (self.quorum(&job.options) as usize) < needed);
            job.is_some() && is_voted_on(&task.what) && task.mode == BuildMode::Normal
        });
        for task in raised {
            let able = *voters.entry(&task.requirement).or_insert_with(|| self.able(state, task));
            if able < needed {
                let texts = Texts { dir: &self.dir, drv_path: &task.drv_path };
                return Some(texts.too_few_votes(needed, able, &[]));
            }
        }
        None
    }

    /// Nodes that could vote on a job, now or when they are heard of again.
    fn able(&self, state: &State, task: &Task) -> usize {
        let able = state.schedule.able(&task.drv_path, self.now_ms());
        let silent = self.grid().map(|grid| self.silent(grid, task)).unwrap_or_default();
        able.into_iter().chain(silent).collect::<BTreeSet<_>>().len()
    }

    /// More votes are wanted for a job: where it follows another node's, that node is told.
    fn tell_quorum(&self, job: &Job) {
        let (Some(Place::Following(by)), Some(grid)) = (job.place(), self.grid()) else { return };
        if !speaks(grid, &by) {
            return;
        }
        let Some(links) = grid.neighbours.mesh().map(|mesh| mesh.links().clone()) else { return };
        let quorum = u8::try_from(self.quorum(&job.options)).unwrap_or(u8::MAX);
        let question = BuildAsk::Follow { drv_path: job.task.drv_path.clone(), quorum };
        grid.runtime.spawn(async move {
            // It is heard already; who does not answer is done without.
            if let Ok(mut building) = ask(&links, by, &question).await {
                let _ = building.next().await;
            }
        });
    }

    /// Why a job that is built here, without asking others, must not be: nodes would have to agree on it.
    pub(in crate::build) fn lacks_voters(&self, work: &Work) -> Option<Failure> {
        // More may be wanted than when it was started.
        let needed = self.quorum_now(&work.task.drv_path).max(self.quorum(&work.options) as usize);
        if needed == 1 || !is_voted_on(&work.task.what) {
            return None;
        }
        let texts = Texts { dir: &self.dir, drv_path: &work.task.drv_path };
        match work.task.mode {
            BuildMode::Check => None,
            // What was agreed on is repaired by whoever has it damaged, and nothing else is.
            BuildMode::Repair => match self.is_registered(&work.task) {
                Ok(true) => None,
                Ok(false) => Some(texts.unrepairable(needed)),
                Err(error) => Some(Failure::infrastructure(&error)),
            },
            // Others may have come since it was placed, and they are asked when it is placed again.
            BuildMode::Normal if self.grid().is_some_and(|grid| !grid.neighbours.is_alone()) => {
                Some(Failure::new(BuildStatus::TransientFailure, texts.too_few_votes(needed, 1, &[]).message))
            }
            BuildMode::Normal => Some(texts.too_few_votes(needed, 1, &[])),
        }
    }

    /// Whether all outputs of a derivation are valid, here or at other nodes.
    fn is_registered(&self, task: &Task) -> anyhow::Result<bool> {
        let registered = self.registered(task)?;
        Ok(self.paths_of(&task.what)?.is_some_and(|paths| paths.keys().eq(registered.keys())))
    }

    fn versions(&self, run: &Run) -> Versions {
        let own = self.grid().map(|grid| grid.neighbours.name(&grid.me()));
        let who = self.node_name(&run.node, own.as_deref().unwrap_or("this node"));
        let at = (run.node != HERE).then_some(run.node);
        let outputs = run.outcome.outputs.iter();
        outputs.map(|(name, output)| (name.clone(), Version::of(&who, at, output))).collect()
    }
}

impl Conduct<'_> {
    /// Builds again what is valid, where it was not built if that can be, and compares.
    pub(super) fn check(&self, resolved: &Resolved) -> (Ended, End) {
        let (service, work) = (self.service, self.work);
        if let Err(failure) = service.judge(work, &[]) {
            return (Ended::unbuilt(service, failure), End::Failed);
        }
        let holders = self.holders();
        // What is valid is one vote, and one more is needed in any case.
        let needed = service.voters_needed(&work.options, &resolved.derivation).saturating_sub(1).max(1);
        let order = |ballot: &Ballot<NodeId, Vote>| {
            let able = service.lock().schedule.able(&work.task.drv_path, service.now_ms());
            let (holding, others): (Vec<NodeId>, Vec<NodeId>) =
                able.into_iter().partition(|node| holders.contains(node));
            // Those that are full for a moment are waited for: a holder may have built it, and tells less.
            let hopeful = others.iter().filter(|node| ballot.has_hope(node)).count();
            if hopeful >= needed { others } else { [others, holding].concat() }
        };
        let (polled, runs) = self.poll(resolved, &|| needed, &order);
        if let Polled::Ended(ended) = polled {
            return *ended;
        }
        let versions: Vec<Versions> = runs.iter().map(|run| service.versions(run)).collect();
        let (result, end) = match service.judge(work, &versions) {
            Ok(result) => (result, End::Success { output_bytes: 0 }),
            Err(failure) => (verdict::failed(failure), End::Failed),
        };
        self.settled(result, &runs, end)
    }

    /// Has as many nodes build it as must agree; where they do, one of them publishes it.
    pub(super) fn agree(&self, resolved: &Resolved, needed: usize) -> (Ended, End) {
        let (service, work) = (self.service, self.work);
        let order = |_: &Ballot<NodeId, Vote>| {
            let mut able = service.lock().schedule.able(&work.task.drv_path, service.now_ms());
            // It was placed there with a view to its inputs, and dependants follow it.
            able.sort_by_key(|node| *node != self.at);
            able
        };
        // Nobody joins it here before it is agreed on: voters of this node are guests.
        let place = if self.at == HERE { Place::Claiming } else { Place::At(self.at) };
        service.set_place(&work.task.drv_path, work.id, place);
        let needed = || needed.max(service.quorum_now(&work.task.drv_path));
        let (polled, runs) = self.poll(resolved, &needed, &order);
        match polled {
            Polled::Ended(ended) => *ended,
            Polled::Agreed => {
                self.comes_to(Stage::Store);
                self.publish(resolved, &runs)
            }
            Polled::Differ => self.differ(&runs),
        }
    }

    /// Runs came to different outputs.
    fn differ(&self, runs: &[Run]) -> (Ended, End) {
        let versions: Vec<Versions> = runs.iter().map(|run| self.service.versions(run)).collect();
        let failure = self.service.differing(self.work, &versions);
        let odd = || Failure::new(BuildStatus::NotDeterministic, "nodes have different paths for the same outputs");
        self.settled(verdict::failed(failure.unwrap_or_else(odd)), runs, End::Failed)
    }

    /// Nodes that have outputs already, and may have built them.
    fn holders(&self) -> BTreeSet<NodeId> {
        let paths = self.service.paths_of(&self.work.task.what).ok().flatten().unwrap_or_default();
        let paths: Vec<StorePath> = paths.into_values().flatten().collect();
        let parts: Vec<&str> = paths.iter().map(StorePath::hash_part).collect();
        let held = self.grid.neighbours.find(&parts);
        let mut holders: BTreeSet<NodeId> = held.into_iter().flatten().flat_map(|held| held.holders).collect();
        if self.service.store.valid_of(&paths).is_ok_and(|valid| !valid.is_empty()) {
            holders.insert(HERE);
        }
        holders
    }

    /// A result with what is known of the first run.
    fn settled(&self, mut result: BuildResult, runs: &[Run], end: End) -> (Ended, End) {
        if let Some(Run { outcome, .. }) = runs.first() {
            (result.start_time, result.stop_time) = (outcome.start_time, outcome.stop_time);
            (result.cpu_user, result.cpu_system) = (outcome.cpu_user, outcome.cpu_system);
        }
        result.times_built = runs.len() as u64;
        let mut ended = Ended::without_builder(self.service, result);
        ended.announced = self.announced.get();
        (ended, end)
    }

    /// Has nodes build it until the vote is over. `needed` may grow; `order`: who could, the best first.
    fn poll(&self, resolved: &Resolved, needed: &dyn Fn() -> usize, order: &Order<'_>) -> (Polled, Vec<Run>) {
        let (mut runs, mut refusals) = (Vec::new(), BTreeMap::new());
        let (tell, told) = mpsc::channel();
        let mut voters: BTreeMap<NodeId, Arc<KillSwitch>> = BTreeMap::new();
        let mut ballot: Ballot<NodeId, Vote> = Ballot::new(needed());
        ballot.expect(&self.service.silent(self.grid, &self.work.task), self.service.now_ms());
        let mut lead = None;
        let polled = thread::scope(|scope| {
            let polled = loop {
                if self.is_over() {
                    break Polled::Ended(Box::new(self.over()));
                }
                ballot.need(needed());
                match ballot.step(&order(&ballot), self.service.now_ms()) {
                    Step::Ask(node) => {
                        let kill = Arc::new(KillSwitch::default());
                        let is_mute = lead.is_some_and(|lead| lead != node);
                        lead = lead.or(Some(node));
                        match self.ask(scope, resolved, (node, is_mute), kill.clone(), tell.clone()) {
                            Ok(()) => drop(voters.insert(node, kill)),
                            Err(_) => ballot.hear(&node, Word::Lost, self.service.now_ms()),
                        }
                    }
                    Step::Wait { until_ms } => {
                        let now_ms = self.service.now_ms();
                        let wait = until_ms.map_or(LOOK, |ms| Duration::from_millis(ms.saturating_sub(now_ms)));
                        let Ok(told) = told.recv_timeout(wait.clamp(Duration::from_millis(1), LOOK)) else { continue };
                        voters.remove(&told.node);
                        self.announced.set(self.announced.get() || told.announced);
                        let node = told.node;
                        if let Heard::Refused(_, text, _) = &told.heard {
                            refusals.insert(node, text.clone());
                        }
                        match self.word(resolved, told) {
                            Ok((word, run)) => {
                                // Whoever is asked next is heard instead.
                                lead = lead.filter(|lead| *lead != node || run.is_some());
                                runs.extend(run);
                                ballot.hear(&node, word, self.service.now_ms());
                            }
                            Err(ended) => break Polled::Ended(ended),
                        }
                    }
                    // Whoever wants more gets them until they are published.
                    Step::Agreed if needed() > ballot.needed() && ballot.needed() < VOTES_MAX => {}
                    Step::Agreed => break Polled::Agreed,
                    Step::Differ => break Polled::Differ,
                    Step::TooFew { able } => {
                        break Polled::Ended(Box::new(self.too_few(ballot.needed(), able, &refusals)));
                    }
                    Step::GivenUp { losses } => break Polled::Ended(Box::new(self.given_up(losses))),
                }
            };
            voters.values().for_each(|kill| kill.kill());
            polled
        });
        (polled, runs)
    }

    fn too_few(&self, needed: usize, able: usize, refusals: &BTreeMap<NodeId, String>) -> (Ended, End) {
        let texts = Texts { dir: self.service.store_dir(), drv_path: &self.work.task.drv_path };
        let said = refusals.iter().map(|(node, text)| format!("{}: {text}", self.service.node_name(node, "this node")));
        let said: Vec<String> = said.collect();
        self.voted_down(texts.too_few_votes(needed, able, &said))
    }

    /// A derivation that takes one node after the other with it is not tried on yet more.
    fn given_up(&self, losses: u32) -> (Ended, End) {
        let drv = self.service.store_dir().print(&self.work.task.drv_path);
        let text = format!("the build of '{drv}' was given up: nodes were lost {losses} times while they built it");
        let (ended, end) = self.voted_down(Failure::new(BuildStatus::TransientFailure, text));
        (Ended { gives_up: true, ..ended }, end)
    }

    fn voted_down(&self, failure: Failure) -> (Ended, End) {
        let mut ended = Ended::unbuilt(self.service, failure);
        ended.announced = self.announced.get();
        (ended, End::Failed)
    }

    /// Asks one voter, on a thread of its own.
    fn ask<'scope, 'env: 'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        resolved: &'env Resolved,
        (node, is_mute): (NodeId, bool),
        kill: Arc<KillSwitch>,
        tell: mpsc::Sender<Told>,
    ) -> std::io::Result<()> {
        let Work { task, id, options, story, .. } = self.work;
        let task = Arc::new(Task { mode: BuildMode::Check, ..Task::clone(task) });
        let work = Work { task, id: *id, options: options.clone(), kill, at: node, story: story.clone() };
        let (service, grid, announced) = (self.service, self.grid, self.announced.get());
        let vote = move || {
            let (announced, follows) = (Cell::new(announced), Cell::new(false));
            let voter = Conduct { service, grid, work: &work, at: node, announced, follows, is_mute };
            let heard = voter.vote(resolved);
            let announced = voter.announced.get();
            // Nobody listens any more where the vote is over.
            let _ = tell.send(Told { node, heard, announced });
        };
        thread::Builder::new().name("voter".into()).stack_size(STACK_BYTES).spawn_scoped(scope, vote).map(drop)
    }

    fn vote(&self, resolved: &Resolved) -> Heard {
        if !self.is_mute {
            self.comes_to(Stage::Offer);
        }
        match self.service.offer(self.grid, &self.work.task, resolved, &self.work.options, self.at) {
            Ok(Some(offer)) => self.hear_offer(offer),
            Ok(None) => Heard::Refused(Reason::Unusable, TOO_LONG.into(), 0),
            Err(error) => Heard::Lost(format!("{error:#}")),
        }
    }

    /// Offers it to a node, which may be this one, and hears it to its end.
    pub(super) fn hear_offer(&self, offer: Offer) -> Heard {
        match self.at == HERE {
            true => self.hear_own(offer),
            false => self.hear(self.at, &BuildAsk::Build(Box::new(offer))),
        }
    }

    /// Has this node run it as a guest of its own.
    fn hear_own(&self, offer: Offer) -> Heard {
        match serve::take(self.service, self.grid, offer, By::Own) {
            Ok(interest) => self.hear_guest(interest),
            Err((reason, text)) => Heard::Refused(reason, text, serve::retry_after_ms(reason)),
        }
    }

    /// Hears what runs here to its end.
    pub(super) fn hear_guest(&self, mut interest: Interest) -> Heard {
        loop {
            match interest.next(LOOK) {
                Progress::Event(event) if !self.is_mute => self.pass_on(event),
                Progress::Done(results) => {
                    let (_, outcome) = serve::outcome(self.service, results, interest.feed().used());
                    return Heard::Outcome(Box::new(outcome));
                }
                _ if self.is_over() => return Heard::Over,
                _ => {}
            }
        }
    }

    /// What happens to a guest of this node, as a build of its client.
    fn pass_on(&self, event: BuildEvent) {
        let job = self.work.id;
        let event = match event {
            BuildEvent::Started { .. } => {
                if !self.follows.get() {
                    self.comes_to(Stage::Build);
                }
                return self.announce(None);
            }
            BuildEvent::Phase { phase, .. } => BuildEvent::Phase { job, phase },
            BuildEvent::Line { line, .. } => BuildEvent::Line { job, line },
            BuildEvent::Said(_) | BuildEvent::Message(_) => event,
            BuildEvent::Finished { .. } | BuildEvent::Progress { .. } => return,
        };
        self.service.tell(job, &self.work.task.drv_path, &event);
    }

    /// What a voter's word means to the ballot. Error: it ends the job.
    fn word(&self, resolved: &Resolved, told: Told) -> Result<Spoken, Box<(Ended, End)>> {
        let Told { node, heard, .. } = told;
        let outcome = match heard {
            Heard::Outcome(outcome) => *outcome,
            Heard::Refused(reason, _, retry_ms) => {
                let passes = is_full(reason) || reason == Reason::NoMemory;
                let until_ms = passes.then(|| self.service.now_ms().saturating_add(u64::from(retry_ms)));
                return Ok((Word::Refused { until_ms }, None));
            }
            Heard::Lost(_) | Heard::Over => return Ok((Word::Lost, None)),
        };
        match BuildStatus::from_number(outcome.status.into()) {
            Some(status) if status.is_success() => {
                let is_whole = outcome.outputs.keys().eq(resolved.derivation.outputs.keys());
                let vote =
                    outcome.outputs.iter().map(|(name, output)| (name.clone(), (output.path.clone(), output.nar_hash)));
                let vote: Vote = vote.collect();
                let run = Run { node, outcome };
                Ok(if is_whole { (Word::Built(vote), Some(run)) } else { (Word::Refused { until_ms: None }, None) })
            }
            Some(BuildStatus::TransientFailure) if !outcome.out_of_memory => Ok((Word::Lost, None)),
            // A builder's own failure is final, wherever it was.
            _ => Err(Box::new(self.concluded(resolved, &outcome, node, Teller::Other))),
        }
    }

    /// Has one of those who agreed make what it built the outputs.
    fn publish(&self, resolved: &Resolved, runs: &[Run]) -> (Ended, End) {
        let Some(first) = runs.first() else { return self.lost("nobody built it") };
        let agreed = first.outcome.outputs.iter().map(|(name, output)| (name.clone(), output.path.clone())).collect();
        let task = Arc::new(Task { agreed, ..Task::clone(&self.work.task) });
        let offer = match self.service.offer(self.grid, &task, resolved, &self.work.options, HERE) {
            Ok(Some(offer)) => offer,
            Ok(None) => return self.lost("the derivation is too long"),
            Err(error) => return self.lost(&format!("{error:#}")),
        };
        let me = self.grid.me();
        let voters = runs.iter().map(|run| if run.node == HERE { me } else { run.node });
        let near: Vec<NodeKey> = voters.chain(offer.near.iter().copied()).take(NEAR_MAX).collect();
        let offer = Offer { near, ..offer };
        for node in (0..PUBLISH_TRIES).flat_map(|_| runs.iter().map(|run| run.node)) {
            if self.is_over() {
                return self.over();
            }
            if node != HERE && offer.derivation.len() > DERIVATION_LEN_MAX {
                continue;
            }
            let Work { id, options, kill, story, .. } = self.work;
            let (task, options) = (task.clone(), options.clone());
            let work = Work { task, id: *id, options, kill: kill.clone(), at: node, story: story.clone() };
            let (announced, follows) = (Cell::new(true), Cell::new(false));
            let (service, grid) = (self.service, self.grid);
            let publisher = Conduct { service, grid, work: &work, at: node, announced, follows, is_mute: true };
            match publisher.hear_offer(offer.clone()) {
                Heard::Outcome(outcome) if outcome.status != BuildStatus::TransientFailure as u8 => {
                    let from = if node == HERE { me } else { node };
                    // It may have had other outputs already, or had them built without votes meanwhile.
                    if !is_as_agreed(&first.outcome, &outcome) {
                        let made = Run { node, outcome: *outcome };
                        return self.differ(&[runs, &[made]].concat());
                    }
                    let (ended, end) = self.concluded(resolved, &outcome, from, Teller::Other);
                    // What this one says cannot be proved: the others agreed on it too.
                    if end == End::Lost {
                        continue;
                    }
                    let (settled, end) = self.settled(ended.result.clone(), runs, end);
                    return (Ended { result: settled.result, ..ended }, end);
                }
                Heard::Refused(..) => thread::sleep(LOOK),
                _ => {}
            }
        }
        self.lost("none of the nodes that agreed on it made it valid")
    }
}

/// Whether nodes may have to agree on it: its outputs are not named by their contents, or it is not known yet whether.
fn is_voted_on(what: &What) -> bool {
    let kind = match what {
        What::Stored(derivation) => derivation.kind(),
        What::Given(derivation) => derivation.kind(),
        What::Adopted(_) => return false,
    };
    matches!(kind, Ok(DerivationKind::InputAddressed | DerivationKind::Deferred))
}

/// Whether what was made valid is what was voted for. A failure made nothing valid.
fn is_as_agreed(agreed: &Outcome, made: &Outcome) -> bool {
    let is_success = BuildStatus::from_number(made.status.into()).is_some_and(|status| status.is_success());
    let is_same = |(name, output): (&String, &BuiltOutput)| {
        agreed.outputs.get(name).is_some_and(|agreed| agreed.nar_hash == output.nar_hash)
    };
    !is_success || made.outputs.iter().all(is_same)
}

#[cfg(test)]
#[path = "ballot_tests.rs"]
mod tests;
