//! One job of this node's clients, from its start to its end: claimed, followed, found, built here or offered. What
//! several nodes must agree on, or check, is [`ballot`](super::ballot)'s.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use shoal_grid::ring::NodeId;
use shoal_grid::schedule::End;
use shoal_mesh::builds::{Building, ask};
use shoal_mesh::fetcher::AskError;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame, Outcome, Reason};
use shoal_wire::nix::worker::BuildStatus;
use shoal_wire::nix::worker::ops::BuildMode;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::members::{builds, speaks};
use super::offer::TOO_LONG;
use super::proof::{Offence, Teller};
use super::{Brought, Grid, bring, translate};
use crate::build::execute::{self, Ended};
use crate::build::failure::Failure;
use crate::build::feed::BuildEvent;
use crate::build::graph::What;
use crate::build::prepare::{Resolved, resolved};
use crate::build::service::{BuildService, HERE, Place, Work};
use crate::build::story::Stage;

/// It resolves, asks and waits; nothing on it recurses.
const STACK_BYTES: usize = 1 << 20;
/// A claim whose holder runs nothing, or cannot be reached, is asked for again after this.
const CLAIM_PAUSE: Duration = Duration::from_millis(200);
/// An answer to a claim that took longer is none: this node goes on by itself.
const CLAIM_ANSWERED: Duration = Duration::from_millis(shoal_grid::catalogue::claims::ANSWER_MS * 9 / 10);
/// Who is asked for a build, or of one, says at once whether it takes it. One that only says that it lives is done without
/// after this.
const ANSWERED: Duration = Duration::from_secs(10);
/// How long all nodes together are asked for a build to be adopted.
const ADOPT_PATIENCE: Duration = Duration::from_secs(1);
/// So long after anything was heard of the build that has the claim this node goes on by itself: longer than members need
/// to agree that a node is dead. Double work, never a stall.
const CLAIM_PATIENCE: Duration = Duration::from_secs(15);

/// Owners hear of a fresh output some moments after it is there.
const HEARD_AFTER: Duration = Duration::from_secs(1);

/// Nodes that are asked for a build whose coordinator is lost; in a larger mesh it may be started anew.
const ADOPTED_FROM_MAX: usize = shoal_grid::catalogue::SMALL_MESH;

/// How the asking of one node came out.
pub(super) enum Heard {
    Outcome(Box<Outcome>),
    Refused(Reason, String, u32),
    /// Why it says nothing more.
    Lost(String),
    /// Nobody wants it any more, or it runs elsewhere by now.
    Over,
}

/// Whether an executor refuses everything for now, and not this derivation.
pub(super) fn is_full(reason: Reason) -> bool {
    matches!(reason, Reason::Full | Reason::Draining | Reason::NoSpace)
}

/// Whether what became of another node's build is what becomes of this one's job.
fn is_final(outcome: &Outcome) -> bool {
    outcome.status != BuildStatus::TransientFailure as u8 || outcome.given_up
}

/// Sees a started job to its end, on a thread of its own.
pub(in crate::build) fn conduct(service: &Arc<BuildService>, work: Work, at: NodeId) {
    let (own, task, id) = (service.clone(), work.task.clone(), work.id);
    let run = move || {
        let Some(grid) = own.grid().cloned() else { return };
        let (announced, follows) = (Cell::new(false), Cell::new(false));
        let run = || Conduct { service: &own, grid: &grid, work: &work, at, announced, follows, is_mute: false }.run();
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Turn::Ended(ended)) => own.job_ended(&work, ended.0, ended.1),
            Ok(Turn::Here(brought)) => own.run_here(work, brought),
            Err(_) => own.job_ended(&work, execute::panicked(&own), End::Failed),
        }
    };
    // The lock of the service is held by who calls this: what failed is told from another thread, which there is none of.
    if let Err(error) = thread::Builder::new().name("conduct".into()).stack_size(STACK_BYTES).spawn(run) {
        tracing::error!(derivation = %task.drv_path, id, %error, "cannot start a thread for a build, which waits for ever");
    }
}

/// What came of following what this node builds for others.
enum Joined {
    /// It builds no such thing.
    Nothing,
    /// The end of it is that of the job too.
    Ended(Box<(Ended, End)>),
    /// Its end says nothing of the derivation: the claim is asked for anew.
    InVain,
}

/// What becomes of a job.
enum Turn {
    Ended(Box<(Ended, End)>),
    /// A build thread runs it, with these inputs.
    Here(Brought),
}

/// The first frame that says more than that the other node lives.
async fn answer(building: &mut Building) -> Result<BuildFrame, AskError> {
    loop {
        match building.next().await? {
            BuildFrame::Alive => {}
            frame => return Ok(frame),
        }
    }
}

impl From<(Ended, End)> for Turn {
    fn from(ended: (Ended, End)) -> Turn {
        Turn::Ended(Box::new(ended))
    }
}

pub(super) struct Conduct<'a> {
    pub service: &'a Arc<BuildService>,
    pub grid: &'a Grid,
    pub work: &'a Work,
    pub at: NodeId,
    pub announced: Cell<bool>,
    /// What is heard is of another node's build.
    pub follows: Cell<bool>,
    /// Clients hear of another run of the same derivation.
    pub is_mute: bool,
}

impl Conduct<'_> {
    fn run(&self) -> Turn {
        let resolved = match resolved(self.service, &self.work.task) {
            Ok(resolved) => resolved,
            Err(error) => {
                let failure = Failure::new(BuildStatus::InputRejected, format!("{error:#}"));
                return (Ended::unbuilt(self.service, failure), End::Failed).into();
            }
        };
        if self.work.task.mode == BuildMode::Check {
            return self.check(&resolved).into();
        }
        if let Some(ended) = self.take_claim(&resolved) {
            return ended.into();
        }
        // More may be wanted than when it was started.
        let needed = usize::from(self.quorum(&resolved));
        if needed > 1 {
            return self.agree(&resolved, needed).into();
        }
        match self.at == HERE {
            true => self.here(&resolved),
            false => self.offer(&resolved).into(),
        }
    }

    /// Waits for this node's claim. What came of it where another node, which had the claim, saw to the job.
    fn take_claim(&self, resolved: &Resolved) -> Option<(Ended, End)> {
        let drv_path = &self.work.task.drv_path;
        let mut give_up = Instant::now() + CLAIM_PATIENCE;
        let mut has_asked_again = false;
        loop {
            if self.is_over() {
                return Some(self.over());
            }
            let asked = Instant::now();
            self.comes_to(Stage::Claim);
            let by = self.grid.neighbours.claim_build(drv_path);
            if by == self.grid.me() || Instant::now() >= give_up {
                let is_answered = asked.elapsed() < CLAIM_ANSWERED;
                match self.join_guest(resolved) {
                    Joined::Ended(ended) => return Some(*ended),
                    Joined::InVain => {
                        give_up = Instant::now() + CLAIM_PATIENCE;
                        continue;
                    }
                    Joined::Nothing => {}
                }
                // Who was busy for a moment answers by now, and another may have been given the claim meanwhile.
                if !is_answered && !std::mem::replace(&mut has_asked_again, true) && Instant::now() < give_up {
                    continue;
                }
                // What is known of claims may have been lost with a node.
                let is_sure = is_answered && !self.service.is_unsettled();
                let adopted = if is_sure { None } else { self.adopt(resolved) };
                if adopted.is_some() {
                    return adopted;
                }
                break;
            }
            let since = Instant::now();
            let heard = self.follow_claim(resolved, by);
            match heard {
                Heard::Outcome(outcome) if is_final(&outcome) => {
                    return Some(self.concluded(resolved, &outcome, by, Teller::Other));
                }
                Heard::Over => return Some(self.over()),
                Heard::Lost(_) => match self.join_guest(resolved) {
                    Joined::Ended(ended) => return Some(*ended),
                    Joined::InVain => {}
                    Joined::Nothing => match self.adopt(resolved) {
                        Some(ended) => return Some(ended),
                        // Whoever knows of the claim may learn only later that its holder is dead.
                        None => break,
                    },
                },
                // It may follow this node, where the build is another node's guest.
                Heard::Outcome(_) | Heard::Refused(..) => {
                    if let Joined::Ended(ended) = self.join_guest(resolved) {
                        return Some(*ended);
                    }
                }
            }
            if since.elapsed() > CLAIM_PAUSE {
                give_up = Instant::now() + CLAIM_PATIENCE;
            }
            if let Some(found) = self.found(resolved) {
                return Some(found);
            }
            thread::sleep(CLAIM_PAUSE);
        }
        self.follows.set(false);
        let place = if self.at == HERE { Place::Here } else { Place::At(self.at) };
        self.service.claimed(drv_path, self.work.id, place);
        self.found(resolved)
    }

    /// Hears of the build of the node that has the claim.
    fn follow_claim(&self, resolved: &Resolved, by: NodeKey) -> Heard {
        self.follow(by);
        if self.grid.neighbours.is_quiet(&by) || !speaks(self.grid, &by) {
            return Heard::Lost("it cannot be asked".into());
        }
        let drv_path = self.work.task.drv_path.clone();
        self.hear(by, &BuildAsk::Follow { drv_path, quorum: self.quorum(resolved) })
    }

    /// Nodes that must agree on it, for all who want it here.
    fn quorum(&self, resolved: &Resolved) -> u8 {
        let of_job = self.service.lock().jobs.get(&self.work.task.drv_path).map(|job| job.options.clone());
        let needed = self.service.voters_needed(of_job.as_ref().unwrap_or(&self.work.options), &resolved.derivation);
        u8::try_from(needed).unwrap_or(u8::MAX)
    }

    /// From now on what is heard is of that node's build.
    fn follow(&self, by: NodeKey) {
        self.follows.set(true);
        self.work.story.stage(self.work.id, Stage::Follow(by), self.service.now_ms());
        self.service.set_place(&self.work.task.drv_path, self.work.id, Place::Following(by));
    }

    pub(super) fn comes_to(&self, stage: Stage) {
        self.work.story.stage(self.work.id, stage, self.service.now_ms());
    }

    /// What this node builds for others by now is followed, and not built beside.
    fn join_guest(&self, resolved: &Resolved) -> Joined {
        // It is one vote at most.
        let is_enough = || self.quorum(resolved) <= 1;
        let interest = is_enough().then(|| self.service.join_guest_of(&self.work.task.drv_path)).flatten();
        let Some(interest) = interest else { return Joined::Nothing };
        let me = self.grid.me();
        self.follow(me);
        match self.hear_guest(interest) {
            Heard::Outcome(outcome) if is_final(&outcome) && is_enough() => {
                Joined::Ended(Box::new(self.concluded(resolved, &outcome, me, Teller::Other)))
            }
            Heard::Over => Joined::Ended(Box::new(self.over())),
            Heard::Outcome(_) | Heard::Refused(..) | Heard::Lost(_) => {
                // The claim is given back with it.
                thread::sleep(CLAIM_PAUSE);
                Joined::InVain
            }
        }
    }

    /// Looks for an executor that goes on with what a lost node had it build.
    fn adopt(&self, resolved: &Resolved) -> Option<(Ended, End)> {
        let mesh = self.grid.neighbours.mesh()?;
        let question = BuildAsk::Adopt(self.work.task.drv_path.clone());
        let roster = mesh.roster();
        let others = roster.peers.iter().filter(builds).map(|peer| peer.record.node);
        let nodes = others.filter(|node| *node != self.grid.me() && !self.grid.neighbours.is_quiet(node));
        let asked = nodes.take(ADOPTED_FROM_MAX).map(|node| (node, mesh.links().clone(), question.clone()));
        let ask_all = async {
            let mut answers = JoinSet::new();
            for (node, links, question) in asked {
                answers.spawn(async move {
                    let taken = async {
                        let mut building = ask(&links, node, &question).await?;
                        let is_taken = building.next().await? == BuildFrame::Accepted;
                        Ok::<_, AskError>(is_taken.then_some(building))
                    };
                    (node, timeout(ADOPT_PATIENCE, taken).await.unwrap_or(Err(AskError::Silent)))
                });
            }
            while let Some(answer) = answers.join_next().await {
                match answer {
                    Ok((node, Ok(Some(building)))) => return Some((node, building)),
                    Ok((node, Err(AskError::Silent))) => self.grid.neighbours.was_quiet(node),
                    _ => {}
                }
            }
            None
        };
        let (node, building) = self.grid.runtime.block_on(ask_all)?;
        self.follow(node);
        let name = self.grid.neighbours.name(&node);
        match self.hear_of(node, async { Ok(building) }, &name, true) {
            Heard::Outcome(outcome) if is_final(&outcome) => {
                Some(self.concluded(resolved, &outcome, node, Teller::Other))
            }
            Heard::Over => Some(self.over()),
            Heard::Outcome(_) | Heard::Refused(..) | Heard::Lost(_) => None,
        }
    }

    /// Whether the outputs are somewhere already.
    fn found(&self, resolved: &Resolved) -> Option<(Ended, End)> {
        let found = self.service.found(self.grid, &self.work.task, resolved).and_then(|found| {
            let Some(found) = found else { return Ok(None) };
            if let Some(at) = found.at {
                self.service.learn_whereabouts(found.outputs.values(), at);
            }
            let ended = self.service.found_result(resolved, &found)?;
            Ok(Some((ended, End::Success { output_bytes: found.bytes })))
        });
        found.unwrap_or_else(|error| {
            let drv_path = &self.work.task.drv_path;
            tracing::warn!(derivation = %drv_path, error = format!("{error:#}"), "cannot look for the outputs of a build");
            None
        })
    }

    fn here(&self, resolved: &Resolved) -> Turn {
        self.comes_to(Stage::Inputs);
        let roots = self.service.store.temp_roots();
        let brought = self.service.near(self.grid, resolved).and_then(|near| {
            let inputs = &resolved.derivation.input_srcs;
            bring::begin(self.service, self.grid, inputs, &near, &roots, || self.is_over())
        });
        match brought {
            Ok(coming) => Turn::Here(Brought { coming, _roots: Some(roots) }),
            Err(error) => self.lost_or_lacking(resolved, &format!("{error:#}")).into(),
        }
    }

    fn offer(&self, resolved: &Resolved) -> (Ended, End) {
        let refused = |text: String, full_until_ms| {
            let failure = Failure::new(BuildStatus::TransientFailure, text.clone());
            let mut ended = Ended::unbuilt(self.service, failure);
            ended.cancelled = true;
            (ended, End::Refused { text, full_until_ms })
        };
        self.comes_to(Stage::Offer);
        let offer = self.service.offer(self.grid, &self.work.task, resolved, &self.work.options, self.at);
        match offer {
            Ok(Some(offer)) => match self.hear(self.at, &BuildAsk::Build(Box::new(offer))) {
                Heard::Outcome(outcome) => self.concluded(resolved, &outcome, self.at, Teller::Executor),
                Heard::Over => self.over(),
                Heard::Lost(why) => self.lost(&why),
                Heard::Refused(reason, text, retry_ms) => {
                    let until = self.service.now_ms().saturating_add(u64::from(retry_ms));
                    refused(text, is_full(reason).then_some(until))
                }
            },
            Ok(None) => {
                // Nor would any other take it; where this node builds nothing, that is the end of it.
                self.service.lock().schedule.confine(&self.work.task.drv_path, &HERE, TOO_LONG);
                refused(TOO_LONG.into(), None)
            }
            Err(error) => self.lost(&format!("{error:#}")),
        }
    }

    /// Asks a node, and passes on what it says to the end of it.
    pub(super) fn hear(&self, node: NodeKey, question: &BuildAsk) -> Heard {
        let Some(mesh) = self.grid.neighbours.mesh() else { return Heard::Lost("this node is in no mesh".into()) };
        let name = self.grid.neighbours.name(&node);
        self.hear_of(node, ask(mesh.links(), node, question), &name, false)
    }

    /// `is_taken`: it has said already that it runs there.
    fn hear_of(
        &self,
        node: NodeKey,
        asked: impl Future<Output = Result<Building, AskError>>,
        name: &str,
        is_taken: bool,
    ) -> Heard {
        let listen = async {
            let mut building = asked.await?;
            match is_taken {
                true => self.listen(&mut building, name, None).await,
                false => {
                    let answer = timeout(ANSWERED, answer(&mut building)).await.unwrap_or(Err(AskError::Silent))?;
                    self.listen(&mut building, name, Some(answer)).await
                }
            }
        };
        let heard = self.grid.runtime.block_on(async {
            tokio::select! {
                heard = listen => heard,
                () = self.work.kill.killed() => Ok(Heard::Over),
            }
        });
        heard.unwrap_or_else(|error| {
            match error {
                AskError::Lied(_) => self.offended(node, &error.to_string()),
                AskError::Silent | AskError::Dial(_) => self.service.was_quiet(self.grid, node),
                _ => {}
            }
            Heard::Lost(format!("{name}: {error}"))
        })
    }

    /// `first`: what was heard already.
    async fn listen(
        &self,
        building: &mut Building,
        name: &str,
        mut first: Option<BuildFrame>,
    ) -> Result<Heard, AskError> {
        let (id, drv_path) = (self.work.id, &self.work.task.drv_path);
        loop {
            let frame = match first.take() {
                Some(frame) => frame,
                None => building.next().await?,
            };
            if !self.service.is_current(drv_path, id) {
                return Ok(Heard::Over);
            }
            match &frame {
                frame if self.is_mute && !frame.is_last() => continue,
                BuildFrame::Accepted if !self.follows.get() => self.comes_to(Stage::Inputs),
                BuildFrame::Started { .. } if !self.follows.get() => self.comes_to(Stage::Build),
                BuildFrame::Built if !self.follows.get() => self.comes_to(Stage::Copies),
                _ => {}
            }
            match frame {
                BuildFrame::Ended(outcome) => return Ok(Heard::Outcome(outcome)),
                BuildFrame::Refused { reason, text, retry_after_ms } => {
                    return Ok(Heard::Refused(reason, text, retry_after_ms));
                }
                BuildFrame::Started { at } => self.announce(Some(at.unwrap_or_else(|| name.to_owned()))),
                frame => {
                    translate::events(frame, id, name).iter().for_each(|event| self.service.tell(id, drv_path, event));
                }
            }
        }
    }

    /// Tells clients, once, that the builder runs; `machine`: on which other node.
    pub(super) fn announce(&self, machine: Option<String>) {
        let (id, drv_path) = (self.work.id, &self.work.task.drv_path);
        if !self.announced.replace(true) {
            self.service.tell(id, drv_path, &BuildEvent::Started { job: id, drv_path: drv_path.clone(), machine });
        }
    }

    /// `from`: who tells of it, and as what.
    pub(super) fn concluded(
        &self,
        resolved: &Resolved,
        outcome: &Outcome,
        from: NodeKey,
        teller: Teller,
    ) -> (Ended, End) {
        match self.service.conclude(resolved, outcome, from, teller, self.announced.get()) {
            // Who tried it tried as often as this node would.
            Ok((ended, End::Lost)) if outcome.given_up && self.follows.get() => {
                (Ended { cancelled: false, gives_up: true, ..ended }, End::Failed)
            }
            Ok((ended, End::Lost)) => self.lost_or_lacking(resolved, &String::from_utf8_lossy(&ended.result.error_msg)),
            Ok(concluded) => {
                self.learn(&concluded.0);
                concluded
            }
            Err(Offence::CannotBe(why)) => {
                self.offended(from, &why);
                self.lost(&why)
            }
            Err(Offence::Lie(why)) => {
                self.lied(from, &why);
                self.lost(&why)
            }
        }
    }

    /// What another node's builder took is what the next one of that name will take.
    fn learn(&self, ended: &Ended) {
        let Work { task, id, story, .. } = self.work;
        let took_ms = story.took_ms(*id, Stage::Build, self.service.now_ms());
        if let Some(took_ms) = took_ms.filter(|_| ended.result.status == BuildStatus::Built) {
            let (name, system) = (task.drv_path.name(), &task.requirement.system);
            self.service.history.record(name, system, Duration::from_millis(took_ms), ended.used.peak_mib);
        }
    }

    fn offended(&self, node: NodeKey, why: &str) {
        let name = self.grid.neighbours.name(&node);
        tracing::warn!(node = name, why, "a node says of a build what cannot be; its connections are closed");
        self.cut(node);
    }

    fn lied(&self, node: NodeKey, why: &str) {
        let name = self.grid.neighbours.name(&node);
        tracing::warn!(node = name, why, "a node lies about a build; it is distrusted, and its connections are closed");
        // First, so that whatever else it has a part in is judged with that in mind when it breaks off.
        self.service.distrust(self.grid, node);
        self.cut(node);
    }

    fn cut(&self, node: NodeKey) {
        if let Some(mesh) = self.grid.neighbours.mesh() {
            mesh.links().cut(node, "it said of a build what cannot be");
        }
    }

    /// It says nothing about the derivation, and is built elsewhere.
    pub(super) fn lost(&self, why: &str) -> (Ended, End) {
        let drv_path = &self.work.task.drv_path;
        let drv = self.service.store_dir().print(drv_path);
        let place = if self.at == HERE { "this node".into() } else { self.grid.neighbours.name(&self.at) };
        tracing::warn!(derivation = %drv_path, place, why, "a build was lost");
        if self.announced.get() {
            let text = format!("the build of '{drv}' on '{place}' was lost ({why}); it is built again\n");
            self.service.tell(self.work.id, drv_path, &BuildEvent::Message(text));
        }
        let failure = Failure::new(BuildStatus::TransientFailure, format!("the build of '{drv}' was lost: {why}"));
        let mut ended = Ended::unbuilt(self.service, failure);
        (ended.announced, ended.cancelled) = (self.announced.get(), true);
        (ended, End::Lost)
    }

    /// The same, unless no try could do better: an input was lost with the only node that had it.
    fn lost_or_lacking(&self, resolved: &Resolved, why: &str) -> (Ended, End) {
        if !matches!(self.work.task.what, What::Stored(_)) || !self.lacks(resolved) {
            return self.lost(why);
        }
        let drv = self.service.store_dir().print(&self.work.task.drv_path);
        tracing::warn!(derivation = %drv, why, "inputs of a build were lost with the node that had them");
        let text = format!("inputs of '{drv}' were lost with the node that had them; they are built again\n");
        self.service.tell(self.work.id, &self.work.task.drv_path, &BuildEvent::Message(text));
        let failure = Failure::new(BuildStatus::TransientFailure, format!("inputs of '{drv}' were lost: {why}"));
        let mut ended = Ended::unbuilt(self.service, failure);
        (ended.announced, ended.lacks) = (self.announced.get(), true);
        (ended, End::Failed)
    }

    /// Whether an input is nowhere, also after those that answer for it have had time to hear of it.
    fn lacks(&self, resolved: &Resolved) -> bool {
        let inputs = &resolved.derivation.input_srcs;
        let is_nowhere = || {
            let Ok(valid) = self.service.store.valid_of(inputs) else { return false };
            let valid: BTreeSet<_> = valid.into_iter().collect();
            let missing: Vec<&str> =
                inputs.iter().filter(|path| !valid.contains(*path)).map(|path| path.hash_part()).collect();
            let is_quiet = |node: &NodeKey| self.grid.neighbours.is_quiet(node);
            let found = self.grid.neighbours.find(&missing);
            found.iter().any(|held| held.as_ref().is_none_or(|held| held.holders.iter().all(is_quiet)))
        };
        is_nowhere() && {
            thread::sleep(HEARD_AFTER);
            is_nowhere()
        }
    }

    pub(super) fn over(&self) -> (Ended, End) {
        let mut ended = Ended::unbuilt(self.service, Failure::cancelled());
        (ended.announced, ended.cancelled) = (self.announced.get(), true);
        // Stopped while somebody wants it, it has failed; where nobody does, that is ignored.
        (ended, End::Failed)
    }

    pub(super) fn is_over(&self) -> bool {
        self.work.kill.is_killed() || !self.service.is_current(&self.work.task.drv_path, self.work.id)
    }
}
