//! The builds of this node: who wants what, what runs, who is told.
//!
//! The schedule decides; this file carries its actions out. One lock guards the schedule and the tables beside it. It is
//! never held while something is built, read from disk or sent to a client.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use shoal_grid::can_run::{Machine, can_run};
use shoal_grid::ring::NodeId;
use shoal_grid::schedule::{Action, End, Node, Priority, RequestId, Schedule, Terms};
use shoal_store::{GcAction, GcError, GcReport, GcRequest, Store};
use shoal_wire::mesh::NodeKey;
use shoal_wire::nix::derivation::BasicDerivation;
use shoal_wire::nix::signature::SecretKey;
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::ops::BuildMode;
use shoal_wire::nix::worker::{BuildResult, BuildStatus};
use tokio::sync::Notify;

use super::audience::{Client, Counts};
use super::derivations::Derivations;
use super::execute::{self, Ended, KillSwitch};
use super::failure::{Failure, Texts};
use super::feed::{BuildEvent, Feed, JobId};
use super::graph::{self, Graph, Missing, Task, What};
use super::history::History;
use super::past::Past;
use super::recent::Recent;
use super::remote::guests::Guests;
use super::remote::seconds::Second;
use super::remote::stand_in::SeeTo;
use super::remote::{self, Brought, Grid};
use super::request::{BuildHandle, BuildOptions, BuildRequest, Goal, Wanted};
use super::scratches::Scratches;
use super::story::{How, Story};
use super::traces::Traces;
use crate::inputs::Inputs;

/// Stack of a build thread; it reads, hashes and waits, and nothing on it recurses.
const BUILD_THREAD_STACK_BYTES: usize = 2 << 20;

/// This node among the executors of its schedule.
pub(super) const HERE: NodeId = [0; 32];

/// When a job that was to be built here is looked at again, where others' builds have all places.
const FULL_RETRY_MS: u64 = 250;

/// What the builds of a node may use.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub machine: Machine,
    /// Derivations built at once.
    pub max_jobs: usize,
    /// Where clients send no settings.
    pub defaults: Defaults,
    /// A static shell of the host, shown to builders as /bin/sh.
    pub sandbox_shell: Option<PathBuf>,
    pub cgroups: shoal_sandbox::Cgroups,
    /// All that the machine has.
    pub memory_mib: u64,
    /// Nodes that must agree on each output whose contents its derivation does not name.
    pub quorum: u32,
    /// Sign what is built here.
    pub signing_keys: Vec<Arc<SecretKey>>,
}

/// Without any: no limits, and all cores.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    pub keep_going: bool,
    pub keep_failed: bool,
    pub timeout: Option<Duration>,
    pub max_silent: Option<Duration>,
    pub max_log_bytes: Option<u64>,
    /// NIX_BUILD_CORES; 0 means all of the machine's.
    pub cores: u64,
}

/// Where a job runs that the schedule has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// To be built here as soon as this node has the claim.
    Claiming,
    Here,
    At(NodeKey),
    /// Another node has the claim, and sees to it.
    Following(NodeKey),
}

pub(super) struct Job {
    pub task: Arc<Task>,
    pub options: BuildOptions,
    pub running: Option<Running>,
    /// A second copy of it, beside the run that clients hear of.
    pub second: Option<Second>,
    pub story: Story,
}

pub(super) struct Running {
    pub id: JobId,
    pub kill: Arc<KillSwitch>,
    pub since: Instant,
    pub past: Past,
    /// Of those who look on.
    pub watchers: Vec<Feed>,
    pub place: Place,
    /// This node has its claim in the mesh.
    pub claimed: bool,
}

impl Job {
    pub fn place(&self) -> Option<Place> {
        self.running.as_ref().map(|running| running.place)
    }

    fn kill_at(&self, at: NodeId) -> Option<&KillSwitch> {
        let second = self.second.as_ref().filter(|second| second.at == at).map(|second| &*second.kill);
        second.or_else(|| self.running.as_ref().map(|running| &*running.kill))
    }
}

pub(super) struct State {
    pub schedule: Schedule<StorePath>,
    pub jobs: HashMap<StorePath, Job>,
    pub clients: HashMap<RequestId, Client>,
    pub recent: Recent,
    pub traces: Traces,
    pub draining: bool,
    /// It drains because the mesh's operator asks for it, and nobody else does.
    pub drains_as_ordered: bool,
    pub guests: Guests,
    /// Nodes that have outputs which are not here.
    pub whereabouts: HashMap<StorePath, NodeKey>,
}

impl State {
    /// A success makes no other job unwanted, so this is all there is to look at then: graphs are large.
    fn forget_if_unwanted(&mut self, key: &StorePath) {
        if self.jobs.get(key).is_some_and(|job| job.running.is_none()) && !self.schedule.wants(key) {
            self.jobs.remove(key);
        }
    }

    fn forget_unwanted(&mut self) {
        let State { schedule, jobs, .. } = self;
        jobs.retain(|key, job| job.running.is_some() || schedule.wants(key));
    }
}

/// A job that the schedule has started, or a guest's.
pub(super) struct Work {
    pub task: Arc<Task>,
    pub id: JobId,
    pub options: BuildOptions,
    pub kill: Arc<KillSwitch>,
    /// Where the schedule believes it to be; of a guest this node.
    pub at: NodeId,
    pub story: Story,
}

pub struct BuildService {
    pub(super) store: Store,
    pub(super) dir: StoreDir,
    pub(super) inputs: Arc<Inputs>,
    pub(super) derivations: Arc<Derivations>,
    pub(super) config: Config,
    pub(super) history: History,
    pub(super) scratches: Arc<Scratches>,
    next_job: AtomicU64,
    /// Requests that go on although their clients' links broke.
    pub(super) kept: AtomicUsize,
    /// Requests that another node stands in for.
    pub(super) stand_ins: AtomicUsize,
    began: Instant,
    /// The same since 1970.
    pub(super) began_unix_ms: u64,
    /// To the build threads; never holds more than `max_jobs`.
    work: mpsc::Sender<(Work, Brought)>,
    state: Mutex<State>,
    pub(super) ended: Condvar,
    grid: OnceLock<Grid>,
    /// For requests of nodes that are lost.
    see_to: OnceLock<Weak<dyn SeeTo>>,
    load_changed: Notify,
    /// Until when members came or went a moment ago.
    pub(super) settles_ms: AtomicU64,
}

impl BuildService {
    pub fn start(store: Store, dir: StoreDir, inputs: Arc<Inputs>, config: Config) -> Result<Arc<BuildService>> {
        let builds = config.data_dir.join("builds");
        std::fs::create_dir_all(&builds).with_context(|| format!("cannot make {}", builds.display()))?;
        let (work, started) = mpsc::channel();
        let state = State {
            schedule: Schedule::new(),
            jobs: HashMap::new(),
            clients: HashMap::new(),
            recent: Recent::default(),
            traces: Traces::default(),
            draining: false,
            drains_as_ordered: false,
            guests: Guests::default(),
            whereabouts: HashMap::new(),
        };
        let service = Arc::new(BuildService {
            derivations: Arc::new(Derivations::new(store.clone(), dir.clone())),
            history: History::open(&config.data_dir),
            scratches: Scratches::new(builds),
            store,
            dir,
            inputs,
            config,
            next_job: AtomicU64::new(1),
            kept: AtomicUsize::new(0),
            stand_ins: AtomicUsize::new(0),
            began: Instant::now(),
            began_unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |at| at.as_millis() as u64),
            work,
            state: Mutex::new(state),
            ended: Condvar::new(),
            grid: OnceLock::new(),
            see_to: OnceLock::new(),
            load_changed: Notify::new(),
            settles_ms: AtomicU64::new(0),
        });
        let mut state = service.lock();
        let here = service.here(&state);
        state.schedule.set_executors(BTreeMap::from([(HERE, here)]), 0);
        drop(state);
        let started = Arc::new(Mutex::new(started));
        for _ in 0..service.config.max_jobs {
            let (service, started) = (Arc::downgrade(&service), started.clone());
            let thread = std::thread::Builder::new().name("build".into()).stack_size(BUILD_THREAD_STACK_BYTES);
            thread.spawn(move || work_on(&service, &started)).context("cannot start a thread for builds")?;
        }
        super::adopt::adopt_all(&service);
        Ok(service)
    }

    /// Derivations in the store, parsed.
    pub fn derivations(&self) -> Arc<Derivations> {
        self.derivations.clone()
    }

    /// How builds see their inputs.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    pub fn store_dir(&self) -> &StoreDir {
        &self.dir
    }

    /// From now on builds go to other nodes too, where there are any.
    pub fn join_grid(&self, grid: Grid) {
        // Of two, which nobody makes, the first counts.
        let _ = self.grid.set(grid);
    }

    pub(super) fn grid(&self) -> Option<&Grid> {
        self.grid.get()
    }

    /// From now on this node stands in for others.
    pub fn stand_in_with(&self, see_to: Weak<dyn SeeTo>) {
        // Of two, which nobody makes, the first counts.
        let _ = self.see_to.set(see_to);
    }

    pub(super) fn see_to(&self) -> Option<Arc<dyn SeeTo>> {
        self.see_to.get().and_then(Weak::upgrade)
    }

    /// Whether there is no other node to build on.
    pub(super) fn is_alone(&self) -> bool {
        self.grid().is_none_or(|grid| grid.neighbours.is_alone())
    }

    /// Waits until more or fewer builders run here.
    pub async fn until_load_changes(&self) {
        self.load_changed.notified().await;
    }

    pub(super) fn load_changed(&self) {
        self.load_changed.notify_one();
    }

    pub(super) fn next_job(&self) -> JobId {
        self.next_job.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The schedule's time.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Starts work on a request. Reads the derivation graph in the calling thread.
    pub fn submit(self: &Arc<Self>, request: BuildRequest) -> Result<BuildHandle> {
        let planned = graph::plan(self, &request.wanted, request.mode)?;
        let mut handle = self.enter(planned.graph, planned.goals, request.options.clone());
        if handle.request.is_some() {
            handle._stand_in = self.with_stand_in(&request);
        }
        Ok(handle)
    }

    /// Builds exactly this derivation; its inputs must be valid.
    pub fn build_derivation(
        self: &Arc<Self>,
        drv_path: StorePath,
        derivation: BasicDerivation,
        mode: BuildMode,
        options: BuildOptions,
    ) -> BuildHandle {
        let graph = Graph::single(Task::given(drv_path.clone(), derivation, mode));
        self.enter(graph, vec![Goal::Derivation { drv_path, wanted: Wanted::All }], options)
    }

    /// What a build of these would have to make.
    pub fn missing(&self, wanted: &[shoal_wire::nix::derived_path::DerivedPath]) -> Result<Missing> {
        graph::missing(self, wanted)
    }

    /// Gives the graph to the schedule. Goals that the graph does not hold must be settled already.
    pub(super) fn enter(self: &Arc<Self>, graph: Graph, goals: Vec<Goal>, options: BuildOptions) -> BuildHandle {
        let keep_going = options.keep_going.unwrap_or(self.config.defaults.keep_going);
        let keys: BTreeSet<StorePath> = goals
            .iter()
            .filter_map(|goal| match goal {
                Goal::Derivation { drv_path, .. } => Some(drv_path.clone()),
                Goal::Settled(_) => None,
            })
            .collect();
        let feed = Feed::new(keys.len());
        let roots = Arc::new(self.store.temp_roots());
        let mut state = self.lock();
        // Who joins what runs already keeps nobody from stopping.
        let is_joined = |task: &Task| state.jobs.get(&task.drv_path).is_some_and(|job| job.running.is_some());
        let failure = if state.draining && !graph.tasks.iter().all(is_joined) {
            let text = "this node is stopping and takes no new builds; try another node, or again later";
            Some(Failure::new(BuildStatus::TransientFailure, text))
        } else {
            self.cannot_raise(&state, &graph.tasks, &options)
        };
        if let Some(Failure { status, message }) = failure {
            drop(state);
            keys.into_iter().for_each(|key| feed.settle(key, BuildResult::new(status, message.clone())));
            return BuildHandle { service: self.clone(), request: None, feed, goals, _roots: roots, _stand_in: None };
        }
        let nodes: Vec<Node<StorePath>> = graph
            .tasks
            .iter()
            .zip(graph.needs())
            .map(|(task, deps)| {
                let estimate = self.history.estimate(task.drv_path.name(), &task.requirement.system);
                Node {
                    key: task.drv_path.clone(),
                    deps,
                    estimate_ms: estimate.duration_ms,
                    has_estimate: self.may_run_twice(task, &options, &estimate),
                    requirement: task.requirement.clone(),
                    memory_mib: estimate.memory_mib,
                }
            })
            .collect();
        let expected = nodes.len() as u64;
        let mut steps = graph.steps();
        for (task, step) in graph.tasks.into_iter().zip(&mut steps) {
            let job = state.jobs.entry(task.drv_path.clone()).or_insert_with(|| Job {
                task: Arc::new(task),
                options: options.clone(),
                running: None,
                second: None,
                story: step.story.clone(),
            });
            self.raise_quorum(job, &options);
            step.story = job.story.clone();
        }
        let priority = if options.is_detached { Priority::Detached } else { Priority::Interactive };
        let terms = Terms { keep_going, priority };
        let (request, actions) = state.schedule.submit(nodes, keys.clone(), terms, self.now_ms());
        if !keys.is_empty() {
            let counts = Counts { expected, ..Counts::default() };
            state.traces.begin(request, keys.iter().cloned().collect(), steps, self.now_ms());
            state.clients.insert(request, Client { feed: feed.clone(), roots: roots.clone(), counts, goals: keys });
            self.tell_what_runs(&mut state, request);
        }
        self.carry_out(&mut state, actions, None);
        state.forget_unwanted();
        drop(state);
        let request = (!feed.is_done()).then_some(request);
        BuildHandle { service: self.clone(), request, feed, goals, _roots: roots, _stand_in: None }
    }

    /// Carries out what the schedule decided. `ended` is the job whose end caused it.
    pub(super) fn carry_out(
        self: &Arc<Self>,
        state: &mut State,
        actions: Vec<Action<StorePath>>,
        ended: Option<&Ended>,
    ) {
        for action in actions {
            match action {
                Action::Start { key, at } => self.start_job(state, key, at),
                Action::Second { key, at } => self.start_second(state, &key, at),
                Action::Nowhere { key } => self.refuse_job(state, &key),
                Action::Stop { key, at } => {
                    if let Some(kill) = state.jobs.get(&key).and_then(|job| job.kill_at(at)) {
                        kill.kill();
                    }
                }
                Action::Answer { request, key, answer } => self.answer(state, request, key, answer, ended),
            }
        }
    }

    fn start_job(self: &Arc<Self>, state: &mut State, key: StorePath, at: NodeId) {
        let is_full = || state.guests.len() > 0 && state.busy_here() >= self.config.max_jobs;
        if at == HERE && !self.joins_guest(state, &key) && is_full() {
            let text = "builds of other nodes have its places".to_owned();
            let refused = End::Refused { text, full_until_ms: Some(self.now_ms() + FULL_RETRY_MS) };
            let actions = state.schedule.ended(&key, &HERE, refused, self.now_ms());
            return self.carry_out(state, actions, None);
        }
        let id = self.next_job();
        let why = state.schedule.why(&key);
        let Some(job) = state.jobs.get_mut(&key) else { return };
        job.story.begin(id, at, why, self.now_ms());
        // Damage is repaired where it is.
        let is_own = job.task.mode == BuildMode::Repair || matches!(job.task.what, What::Adopted(_));
        let place = match at {
            _ if self.is_alone() || is_own => Place::Here,
            HERE => Place::Claiming,
            node => Place::At(node),
        };
        let (kill, since, past) = (Arc::new(KillSwitch::default()), Instant::now(), Past::default());
        let running = Running { id, kill: kill.clone(), since, past, watchers: Vec::new(), place, claimed: false };
        let (task, options, story) = (job.task.clone(), job.options.clone(), job.story.clone());
        // Of one whose executor was given up.
        if let Some(old) = job.running.replace(running) {
            old.kill.kill();
            if !old.past.events(old.id).is_empty() {
                self.tell_stopped(state, &key, old.id);
                let text = format!("the node that built '{}' is gone; it is built again\n", self.dir.print(&key));
                self.tell_all(state, &key, &BuildEvent::Message(text));
            }
        }
        let work = Work { task, id, options, kill, at, story };
        match place {
            Place::Here => self.run_here(work, Brought::default()),
            _ => remote::conduct(self, work, at),
        }
        self.load_changed();
    }

    pub(super) fn run_here(&self, work: Work, brought: Brought) {
        // The workers go when the service goes, so somebody takes this.
        let _ = self.work.send((work, brought));
    }

    /// How the end of a builder of this node counts. What is wrong with this node is no reason to fail where there are
    /// others.
    fn end_of(&self, ended: &Ended) -> End {
        match ended.result.status {
            status if status.is_success() => {
                let outputs = ended.result.built_outputs.values();
                let size = |path| self.store.path_info(path).ok().flatten().map_or(0, |info| info.nar_size);
                End::Success { output_bytes: outputs.map(|built| size(&built.out_path)).sum() }
            }
            _ if ended.used.ran_out => End::OutOfMemory { used_mib: ended.used.peak_mib },
            BuildStatus::TransientFailure if !self.is_alone() => End::Lost,
            _ => End::Failed,
        }
    }

    pub(super) fn job_ended(self: &Arc<Self>, work: &Work, mut ended: Ended, end: End) {
        let Work { task, id, at, .. } = work;
        ended.cancelled |= end == End::Lost;
        work.story.end(*id, How::of(&end, &ended.result, work.kill.is_killed()), self.now_ms());
        let mut state = self.lock();
        let key = &task.drv_path;
        if self.is_settled_by_second(&mut state, work, &ended, &end) {
            return;
        }
        let is_starved = matches!(end, End::OutOfMemory { .. }) && state.schedule.is_tried_again(key, &end);
        ended.cancelled |= is_starved;
        let running = state.jobs.get_mut(key).and_then(|job| job.running.take_if(|running| running.id == *id));
        if running.is_none() && !ended.is_success() {
            // Of a run that was given up; the one that took its place counts.
            return;
        }
        if let (Some(running), true) = (&running, ended.announced) {
            let failure = (!ended.is_success()).then(|| String::from_utf8_lossy(&ended.result.error_msg).into_owned());
            if running.place == Place::Here {
                state.recent.push(key.clone(), running.since.elapsed(), failure);
            }
        }
        for watcher in running.iter().flat_map(|running| &running.watchers) {
            watcher.settle(key.clone(), ended.result.clone());
        }
        if let (Some(grid), true) = (self.grid(), running.as_ref().is_some_and(|running| running.claimed)) {
            grid.neighbours.unclaim_build(key);
        }
        if is_starved {
            self.tell_all(&mut state, key, &BuildEvent::Message(self.starved(key, &ended)));
        }
        let told = running.map(|running| running.id);
        self.tell_ended(&mut state, key, told, &ended);
        let actions = state.schedule.ended(key, at, end, self.now_ms());
        let any_refused = actions.iter().any(|action| matches!(action, Action::Nowhere { .. }));
        self.carry_out(&mut state, actions, Some(&ended));
        if ended.is_success() && !any_refused {
            state.forget_if_unwanted(key);
        } else {
            state.forget_unwanted();
        }
        drop(state);
        self.load_changed();
        self.ended.notify_all();
    }

    /// No executor can run it.
    fn refuse_job(self: &Arc<Self>, state: &mut State, key: &StorePath) {
        let refusal = state.jobs.get(key).and_then(|job| self.refusal(&job.task));
        let tells_others = refusal.is_none() || !self.is_alone();
        let others = tells_others.then(|| self.why_nowhere(state, key)).flatten();
        let Some(mut refusal) = refusal.or_else(|| {
            let failure = |text: &String| Failure::new(BuildStatus::PermanentFailure, text.clone());
            others.as_ref().map(failure)
        }) else {
            return;
        };
        if let Some(others) = others.filter(|others| *others != refusal.message) {
            refusal.message += &format!("\n{others}");
        }
        if let Some(job) = state.jobs.get(key) {
            job.story.fail_unplaced(&refusal.message, self.now_ms());
        }
        let ended = Ended::unbuilt(self, refusal);
        self.tell_ended(state, key, None, &ended);
        let actions = state.schedule.give_up(key, self.now_ms());
        self.carry_out(state, actions, Some(&ended));
    }

    pub(super) fn cancel(self: &Arc<Self>, request: RequestId) {
        let mut state = self.lock();
        state.clients.remove(&request);
        state.traces.end(request, true, self.now_ms());
        let actions = state.schedule.cancel(request, self.now_ms());
        self.carry_out(&mut state, actions, None);
        state.forget_unwanted();
    }

    pub fn refusal(&self, task: &Task) -> Option<Failure> {
        let refusal = can_run(&self.config.machine, &task.requirement).err()?;
        let texts = Texts { dir: &self.dir, drv_path: &task.drv_path };
        Some(texts.refused(&refusal, &self.config.machine))
    }

    /// Collects garbage; what is built on and what clients hold stays.
    pub fn collect(&self, request: &GcRequest) -> Result<GcReport, GcError> {
        let report = self.store.collect(request)?;
        if matches!(request.action, GcAction::DeleteDead | GcAction::DeleteSpecific) {
            self.inputs.trees().forget(&report.paths);
        }
        Ok(report)
    }
}

/// One build thread: runs one job after the other until the service is gone.
fn work_on(service: &Weak<BuildService>, started: &Mutex<mpsc::Receiver<(Work, Brought)>>) {
    loop {
        let next = started.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let (Ok((work, brought)), Some(service)) = (next, service.upgrade()) else { return };
        let run = || match service.lacks_voters(&work) {
            Some(failure) => Ended::unbuilt(&service, failure),
            None => service.judge_here(&work, execute::run(&service, &work, brought.coming.as_ref())),
        };
        // Its clients would wait for ever, and the place of the job would be lost.
        let mut ended = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| execute::panicked(&service));
        let end = service.end_of(&ended);
        ended.lacks = end == End::Failed && brought.are_lost(&service, &work, &ended);
        service.job_ended(&work, ended, end);
    }
}
