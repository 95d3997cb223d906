//! The builds of this node: who wants what, what runs, who is told.
//!
//! The schedule decides; this file carries its actions out. One lock guards the schedule and the tables beside it. It is
//! never held while something is built, read from disk or sent to a client.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shoal_grid::can_run::{Machine, can_run};
use shoal_grid::placement::Executor;
use shoal_grid::ring::NodeId;
use shoal_grid::schedule::{Action, Answer, End, Node, Priority, RequestId, Schedule, Terms};
use shoal_store::{GcAction, GcError, GcReport, GcRequest, Store, TempRoots};
use shoal_wire::nix::derivation::BasicDerivation;
use shoal_wire::nix::signature::SecretKey;
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::BuildResult;
use shoal_wire::nix::worker::ops::BuildMode;

use super::derivations::Derivations;
use super::execute::{self, Ended, KillSwitch};
use super::failure::{Failure, Texts, error_text};
use super::feed::{BuildEvent, Feed, JobId};
use super::graph::{self, Graph, Missing, Task};
use super::history::History;
use super::past::Past;
use super::recent::{EndedBuild, Recent};
use super::request::{BuildHandle, BuildOptions, BuildRequest, Goal, Wanted};
use super::scratches::Scratches;
use crate::trees::Trees;

/// Stack of a build thread; it reads, hashes and waits, and nothing on it recurses.
const BUILD_THREAD_STACK_BYTES: usize = 2 << 20;

/// This node among the executors of its schedule, of which it is the only one.
const HERE: NodeId = [0; 32];

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
    /// Sign what is built here.
    pub signing_keys: Vec<Arc<SecretKey>>,
}

#[derive(Clone, Debug)]
pub struct Defaults {
    pub keep_going: bool,
    pub keep_failed: bool,
    pub timeout: Option<Duration>,
    pub max_silent: Option<Duration>,
    pub max_log_bytes: Option<u64>,
    /// NIX_BUILD_CORES; 0 means all of the machine's.
    pub cores: u64,
}

pub(super) struct Job {
    task: Arc<Task>,
    options: BuildOptions,
    pub running: Option<Running>,
}

pub(super) struct Running {
    pub id: JobId,
    pub kill: Arc<KillSwitch>,
    since: Instant,
    pub past: Past,
    /// Of those who look on.
    pub watchers: Vec<Feed>,
}

/// Counts over the derivations of one request.
#[derive(Clone, Copy, Default)]
struct Counts {
    done: u64,
    expected: u64,
    running: u64,
    failed: u64,
}

struct Client {
    feed: Feed,
    /// Keeps what was built for it, until the session has made it its own.
    roots: Arc<TempRoots>,
    counts: Counts,
    goals: BTreeSet<StorePath>,
}

pub(super) struct State {
    schedule: Schedule<StorePath>,
    pub jobs: HashMap<StorePath, Job>,
    clients: HashMap<RequestId, Client>,
    recent: Recent,
    draining: bool,
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

/// A job that the schedule has started.
struct Work {
    task: Arc<Task>,
    id: JobId,
    options: BuildOptions,
    kill: Arc<KillSwitch>,
}

/// One running build, for people.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RunningBuild {
    pub drv_path: StorePath,
    pub seconds: u64,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct Overview {
    pub running: Vec<RunningBuild>,
    /// The latest first.
    pub recent: Vec<EndedBuild>,
    pub waiting: usize,
    pub max_jobs: usize,
    pub draining: bool,
}

pub struct BuildService {
    pub(super) store: Store,
    pub(super) dir: StoreDir,
    pub(super) trees: Arc<Trees>,
    pub(super) derivations: Arc<Derivations>,
    pub(super) config: Config,
    pub(super) history: History,
    pub(super) scratches: Arc<Scratches>,
    next_job: AtomicU64,
    /// Requests that go on although their clients' links broke.
    pub(super) kept: AtomicUsize,
    began: Instant,
    /// To the build threads; never holds more than `max_jobs`.
    work: mpsc::Sender<Work>,
    state: Mutex<State>,
    ended: Condvar,
}

impl BuildService {
    pub fn start(store: Store, dir: StoreDir, trees: Arc<Trees>, config: Config) -> Result<Arc<BuildService>> {
        let builds = config.data_dir.join("builds");
        std::fs::create_dir_all(&builds).with_context(|| format!("cannot make {}", builds.display()))?;
        let (work, started) = mpsc::channel();
        let mut schedule = Schedule::new();
        let executor = Executor {
            machine: config.machine.clone(),
            slots: u32::try_from(config.max_jobs).unwrap_or(u32::MAX),
            active: true,
            ..Executor::default()
        };
        schedule.set_executors(BTreeMap::from([(HERE, executor)]), 0);
        let state = State {
            schedule,
            jobs: HashMap::new(),
            clients: HashMap::new(),
            recent: Recent::default(),
            draining: false,
        };
        let service = Arc::new(BuildService {
            derivations: Arc::new(Derivations::new(store.clone(), dir.clone())),
            history: History::open(&config.data_dir),
            scratches: Scratches::new(builds),
            store,
            dir,
            trees,
            config,
            next_job: AtomicU64::new(1),
            kept: AtomicUsize::new(0),
            began: Instant::now(),
            work,
            state: Mutex::new(state),
            ended: Condvar::new(),
        });
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

    pub fn store_dir(&self) -> &StoreDir {
        &self.dir
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The schedule's time.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Starts work on a request. Reads the derivation graph in the calling thread.
    pub fn submit(self: &Arc<Self>, request: BuildRequest) -> Result<BuildHandle> {
        let planned = graph::plan(self, &request.wanted, request.mode)?;
        Ok(self.enter(planned.graph, planned.goals, request.options))
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
        if state.draining {
            drop(state);
            for key in keys {
                let failure = Failure::new(
                    shoal_wire::nix::worker::BuildStatus::TransientFailure,
                    "this node is stopping and takes no new builds; try another node, or again later",
                );
                feed.settle(key, BuildResult::new(failure.status, failure.message));
            }
            return BuildHandle { service: self.clone(), request: None, feed, goals, _roots: roots };
        }
        let nodes: Vec<Node<StorePath>> = graph
            .tasks
            .iter()
            .map(|task| {
                let estimate = self.history.estimate(task.drv_path.name(), &task.requirement.system);
                Node {
                    key: task.drv_path.clone(),
                    deps: task.waits_for.clone(),
                    estimate_ms: estimate.duration_ms,
                    requirement: task.requirement.clone(),
                    memory_mib: estimate.memory_mib,
                }
            })
            .collect();
        let expected = nodes.len() as u64;
        for task in graph.tasks {
            let key = task.drv_path.clone();
            state.jobs.entry(key).or_insert_with(|| Job {
                task: Arc::new(task),
                options: options.clone(),
                running: None,
            });
        }
        let terms = Terms { keep_going, priority: Priority::Interactive };
        let (request, actions) = state.schedule.submit(nodes, keys.clone(), terms, self.now_ms());
        if !keys.is_empty() {
            let counts = Counts { expected, ..Counts::default() };
            state.clients.insert(request, Client { feed: feed.clone(), roots: roots.clone(), counts, goals: keys });
            self.tell_what_runs(&mut state, request);
        }
        self.carry_out(&mut state, actions, None);
        state.forget_unwanted();
        drop(state);
        let request = (!feed.is_done()).then_some(request);
        BuildHandle { service: self.clone(), request, feed, goals, _roots: roots }
    }

    /// A client that joins hears of the builds of its graph that already run, and what they said.
    fn tell_what_runs(&self, state: &mut State, request: RequestId) {
        let State { jobs, schedule, clients, .. } = state;
        let Some(client) = clients.get_mut(&request) else { return };
        for (key, job) in jobs.iter() {
            let Some(running) = &job.running else { continue };
            let past = running.past.events(running.id);
            if past.is_empty() || !schedule.wanted_by(key).any(|wanting| wanting == request) {
                continue;
            }
            client.counts.running += 1;
            past.into_iter().for_each(|event| client.feed.push(event));
        }
        client.tell_progress();
    }

    /// Carries out what the schedule decided. `ended` is the job whose end caused it.
    fn carry_out(self: &Arc<Self>, state: &mut State, actions: Vec<Action<StorePath>>, ended: Option<&Ended>) {
        for action in actions {
            match action {
                Action::Start { key, .. } => self.start_job(state, key),
                Action::Nowhere { key } => self.refuse_job(state, &key),
                Action::Stop { key, .. } => {
                    if let Some(running) = state.jobs.get(&key).and_then(|job| job.running.as_ref()) {
                        running.kill.kill();
                    }
                }
                Action::Answer { request, key, answer } => self.answer(state, request, key, answer, ended),
            }
        }
    }

    fn start_job(&self, state: &mut State, key: StorePath) {
        let Some(job) = state.jobs.get_mut(&key) else { return };
        let id = self.next_job.fetch_add(1, Ordering::Relaxed);
        let kill = Arc::new(KillSwitch::default());
        job.running = Some(Running {
            id,
            kill: kill.clone(),
            since: Instant::now(),
            past: Past::default(),
            watchers: Vec::new(),
        });
        let (task, options) = (job.task.clone(), job.options.clone());
        // The workers go when the service goes, so somebody takes this.
        let _ = self.work.send(Work { task, id, options, kill });
    }

    fn job_ended(self: &Arc<Self>, task: &Task, ended: Ended) {
        let mut state = self.lock();
        let key = &task.drv_path;
        let running = state.jobs.get_mut(key).and_then(|job| job.running.take());
        if let (Some(running), true) = (&running, ended.announced) {
            let failure = (!ended.is_success()).then(|| String::from_utf8_lossy(&ended.result.error_msg).into_owned());
            state.recent.push(key.clone(), running.since.elapsed(), failure);
        }
        for watcher in running.iter().flat_map(|running| &running.watchers) {
            watcher.settle(key.clone(), ended.result.clone());
        }
        let told = running.map(|running| running.id);
        self.tell_ended(&mut state, key, told, &ended);
        let end = if ended.is_success() { End::Success { output_bytes: 0 } } else { End::Failed };
        let actions = state.schedule.ended(key, &HERE, end, self.now_ms());
        let any_refused = actions.iter().any(|action| matches!(action, Action::Nowhere { .. }));
        self.carry_out(&mut state, actions, Some(&ended));
        if ended.is_success() && !any_refused {
            state.forget_if_unwanted(key);
        } else {
            state.forget_unwanted();
        }
        drop(state);
        self.ended.notify_all();
    }

    /// No executor can run it.
    fn refuse_job(self: &Arc<Self>, state: &mut State, key: &StorePath) {
        let Some(refusal) = state.jobs.get(key).and_then(|job| self.refusal(&job.task)) else { return };
        let ended = Ended::unbuilt(self, refusal);
        self.tell_ended(state, key, None, &ended);
        let actions = state.schedule.give_up(key, self.now_ms());
        self.carry_out(state, actions, Some(&ended));
    }

    /// Tells everybody who wants this job that it has ended. `told` is what it was announced as.
    fn tell_ended(&self, state: &mut State, key: &StorePath, told: Option<JobId>, ended: &Ended) {
        let wanting: Vec<RequestId> = state.schedule.wanted_by(key).collect();
        for request in wanting {
            let Some(client) = state.clients.get_mut(&request) else { continue };
            if let (Some(job), true) = (told, ended.announced) {
                client.counts.running = client.counts.running.saturating_sub(1);
                client.feed.push(BuildEvent::Finished { job });
            }
            // It begins anew for who still wants it.
            if ended.cancelled {
                client.tell_progress();
                continue;
            }
            let count = if ended.is_success() { &mut client.counts.done } else { &mut client.counts.failed };
            *count += 1;
            if !ended.is_success() && !client.goals.contains(key) {
                client.feed.push(BuildEvent::Message(error_text(&ended.result.error_msg)));
            }
            client.tell_progress();
        }
    }

    fn answer(
        &self,
        state: &mut State,
        request: RequestId,
        key: StorePath,
        answer: Answer<StorePath>,
        ended: Option<&Ended>,
    ) {
        let texts = Texts { dir: &self.dir, drv_path: &key };
        let failed = |failure: Failure| BuildResult::new(failure.status, failure.message);
        let result = match answer {
            Answer::Done | Answer::Failed | Answer::GivenUp { .. } => match ended {
                Some(ended) => ended.result.clone(),
                None => failed(Failure::cancelled()),
            },
            Answer::DependencyFailed { .. } => {
                let outputs = state.jobs.get(&key).map(|job| job.task.known_outputs(&self.dir)).unwrap_or_default();
                failed(texts.dependency_failed(&outputs))
            }
            Answer::Abandoned { failed: other } => failed(texts.abandoned(&other)),
        };
        if let Some(client) = state.clients.get_mut(&request) {
            result.built_outputs.values().for_each(|built| client.roots.add(&built.out_path));
            client.goals.remove(&key);
            client.feed.settle(key, result);
            if client.goals.is_empty() {
                state.clients.remove(&request);
            }
        }
    }

    /// Tells everybody who wants this job.
    pub(super) fn tell(&self, key: &StorePath, event: &BuildEvent) {
        let mut state = self.lock();
        if let Some(running) = state.jobs.get_mut(key).and_then(|job| job.running.as_mut()) {
            running.past.note(event);
            running.watchers.iter().for_each(|watcher| watcher.push(event.clone()));
        }
        let wanting: Vec<RequestId> = state.schedule.wanted_by(key).collect();
        for request in wanting {
            let Some(client) = state.clients.get_mut(&request) else { continue };
            client.feed.push(event.clone());
            if matches!(event, BuildEvent::Started { .. }) {
                client.counts.running += 1;
                client.tell_progress();
            }
        }
    }

    pub(super) fn cancel(self: &Arc<Self>, request: RequestId) {
        let mut state = self.lock();
        state.clients.remove(&request);
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
            self.trees.forget(&report.paths);
        }
        Ok(report)
    }

    pub fn overview(&self) -> Overview {
        let state = self.lock();
        let running = state.jobs.iter().filter_map(|(key, job)| {
            let running = job.running.as_ref()?;
            Some(RunningBuild { drv_path: key.clone(), seconds: running.since.elapsed().as_secs() })
        });
        Overview {
            running: running.collect(),
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
        while state.schedule.running() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// One build thread: runs one job after the other until the service is gone.
fn work_on(service: &Weak<BuildService>, started: &Mutex<mpsc::Receiver<Work>>) {
    loop {
        let next = started.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let (Ok(work), Some(service)) = (next, service.upgrade()) else { return };
        let run = || execute::run(&service, &work.task, work.id, &work.options, &work.kill);
        // Its clients would wait for ever, and the place of the job would be lost.
        let ended = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| execute::panicked(&service));
        service.job_ended(&work.task, ended);
    }
}

impl Client {
    fn tell_progress(&self) {
        let Counts { done, expected, running, failed } = self.counts;
        self.feed.push(BuildEvent::Progress { done, expected, running, failed });
    }
}
