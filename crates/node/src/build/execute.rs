//! Runs one derivation: from its inputs to valid outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use shoal_sandbox::{End, Event, Killer, Outcome, Running, Scratch};
use shoal_store::TempRoots;
use shoal_wire::nix::log::{BuilderMessage, Verbosity, parse_builder_line};
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::ops::BuildMode;
use shoal_wire::nix::worker::{BuildResult, BuildStatus};
use tokio::sync::Notify;

use super::adopt;
use super::failure::{BadEnd, Failure, Texts};
use super::feed::{BuildEvent, JobId};
use super::graph::{Task, What};
use super::log::{Lines, Tail};
use super::memory::{MIB, Used};
use super::outputs::{self, Rejected};
use super::prepare::Prepared;
use super::remote::Coming;
use super::request::BuildOptions;
use super::service::{BuildService, Work};
use super::story::{Stage, Story};
use super::{environment, sandbox_spec};
use crate::inputs::{Given, Reader};
use crate::trees::remove_in_background;

/// With less than this left (bytes or inodes) a failed builder may have failed for want of space (Nix's figure).
const DISK_NEARLY_FULL: u64 = 8 << 20;

/// How a job came out.
pub(super) struct Ended {
    pub result: BuildResult,
    /// Clients were told that it started.
    pub announced: bool,
    /// Keeps inputs and outputs until everybody was told.
    pub _roots: TempRoots,
    /// Stopped because nobody wanted it any more: says nothing about the derivation.
    pub cancelled: bool,
    /// What it needs was lost with the node that had it.
    pub lacks: bool,
    /// It failed for reasons of nodes, after as many tries as there are: who follows it need not try it too.
    pub gives_up: bool,
    pub used: Used,
}

impl Ended {
    /// Of a job whose builder was never seen.
    pub fn unbuilt(service: &BuildService, failure: Failure) -> Ended {
        Ended::without_builder(service, BuildResult::new(failure.status, failure.message))
    }

    /// Of a job that no builder of this node ran.
    pub fn without_builder(service: &BuildService, result: BuildResult) -> Ended {
        Ended {
            result,
            announced: false,
            _roots: service.store.temp_roots(),
            cancelled: false,
            lacks: false,
            gives_up: false,
            used: Used::default(),
        }
    }

    pub fn is_success(&self) -> bool {
        self.result.status.is_success()
    }
}

/// Stops a job from another thread, before or while its builder runs.
#[derive(Default)]
pub(super) struct KillSwitch {
    state: Mutex<(bool, Option<Killer>)>,
    killed: Notify,
}

impl KillSwitch {
    pub fn kill(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = true;
        self.killed.notify_waiters();
        if let Some(killer) = &state.1
            && let Err(error) = killer.kill()
        {
            tracing::warn!(%error, "cannot stop a build");
        }
    }

    pub fn is_killed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until it is killed.
    pub async fn killed(&self) {
        loop {
            let killed = self.killed.notified();
            if self.is_killed() {
                return;
            }
            killed.await;
        }
    }

    /// From now on `kill` stops this process; at once, if it was called before.
    fn arm(&self, killer: Killer) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 {
            let _ = killer.kill();
        }
        state.1 = Some(killer);
    }
}

/// `coming`: inputs that are not valid yet.
pub(super) fn run(service: &BuildService, work: &Work, coming: Option<&Coming>) -> Ended {
    let Work { task, id, options, kill, story, .. } = work;
    let roots = service.store.temp_roots();
    let since = Instant::now();
    let mut job = Job {
        service,
        task,
        id: *id,
        options,
        kill,
        story,
        coming,
        roots: &roots,
        since,
        announced: false,
        used: Used::default(),
    };
    let result = job.run().unwrap_or_else(|failure| {
        if failure.status == BuildStatus::TransientFailure {
            tracing::warn!(derivation = %task.drv_path, error = failure.message, "a build failed for a reason of this node");
        }
        BuildResult::new(failure.status, failure.message)
    });
    let (announced, used) = (job.announced, job.used);
    Ended { result, announced, _roots: roots, cancelled: kill.is_killed(), lacks: false, gives_up: false, used }
}

/// How a job came out whose thread panicked. Whether clients were told of its start is not known; that one activity
/// stays open is all that a wrong guess does.
pub(super) fn panicked(service: &BuildService) -> Ended {
    let text = "the node failed while it built this, which is a fault of shoal; its log says where";
    Ended::unbuilt(service, Failure::new(BuildStatus::TransientFailure, text))
}

struct Job<'a> {
    service: &'a BuildService,
    task: &'a Task,
    id: JobId,
    options: &'a BuildOptions,
    kill: &'a KillSwitch,
    story: &'a Story,
    coming: Option<&'a Coming>,
    roots: &'a TempRoots,
    since: Instant,
    announced: bool,
    used: Used,
}

impl Job<'_> {
    fn texts(&self) -> Texts<'_> {
        Texts { dir: &self.service.dir, drv_path: &self.task.drv_path }
    }

    fn drv_name(&self) -> &str {
        self.task.drv_path.derivation_name().unwrap_or(self.task.drv_path.name())
    }

    fn tell(&self, event: &BuildEvent) {
        self.service.tell(self.id, &self.task.drv_path, event);
    }

    fn comes_to(&self, stage: Stage) {
        self.story.stage(self.id, stage, self.service.now_ms());
    }

    fn run(&mut self) -> Result<BuildResult, Failure> {
        if let Some(refusal) = self.service.refusal(self.task) {
            return Err(refusal);
        }
        self.task.known_outputs(&self.service.dir).iter().for_each(|path| self.roots.add(path));
        let prepared = Prepared::new(self.service, self.task, self.coming)?;
        prepared.inputs.iter().chain(prepared.scratch_outputs.values()).for_each(|path| self.roots.add(path));
        if let Some(valid) = self.already_valid(&prepared)? {
            return Ok(valid);
        }
        // One that is adopted runs already, and is ended when it is attached to: until then it reads.
        let is_adopted = matches!(self.task.what, What::Adopted(_));
        let is_killed = || self.kill.is_killed();
        let is_over = || is_killed() && !is_adopted;
        if is_over() {
            return Err(Failure::cancelled());
        }
        let infrastructure = |error: anyhow::Error| Failure::infrastructure(&error);
        if !self.task.agreed.is_empty() {
            return self.publish(&prepared);
        }
        self.comes_to(Stage::Inputs);
        let reader = Reader { is_narrow: sandbox_spec::is_narrow(&prepared.derivation.system), is_over: &is_over };
        let given = self.give(&prepared, reader);
        if let Ok(given) = &given {
            self.service.inputs.expect(self.drv_name(), given, Reader { is_over: &is_killed, ..reader });
        }
        if is_over() {
            return Err(Failure::cancelled());
        }
        let given = given.map_err(infrastructure)?;
        let scratch = self.scratch().map_err(infrastructure)?;
        let running = self
            .start(&prepared, &scratch, &given)
            .inspect_err(|_| remove_in_background(scratch.path().to_path_buf()))?;
        self.announced = true;
        self.comes_to(Stage::Build);
        self.tell(&BuildEvent::Started { job: self.id, drv_path: self.task.drv_path.clone(), machine: None });
        let mut log = Log::new(self);
        let outcome = follow(running, &mut log);
        let last_lines = log.tail;
        if let Err(error) = self.keep_log(&scratch) {
            tracing::warn!(derivation = %self.task.drv_path, error = format!("{error:#}"), "cannot keep a build's log");
        }
        let result = match outcome {
            // However it ended: a builder may make something of an error that it is given.
            Ok(outcome) if given.has_failed() && outcome.end != End::Killed => Err(Failure::inputs_failed()),
            Ok(outcome) => {
                self.service.inputs.learn(self.drv_name(), &given, &outcome.end);
                self.used = used(&outcome, self.service.memory_limit_mib());
                self.conclude(&prepared, &scratch, &outcome, &last_lines)
            }
            Err(error) => Err(Failure::infrastructure(&anyhow::Error::new(error).context("lost sight of a build"))),
        };
        self.clear_away(&prepared, scratch, result.is_err());
        result
    }

    /// Answers at once when there is nothing to do.
    fn already_valid(&self, prepared: &Prepared) -> Result<Option<BuildResult>, Failure> {
        if prepared.mode != BuildMode::Normal || matches!(self.task.what, What::Adopted(_)) {
            return Ok(None);
        }
        let known = self.service.valid_outputs(prepared).map_err(|error| Failure::infrastructure(&error))?;
        let Some(paths) = known else { return Ok(None) };
        let mut result = BuildResult::new(BuildStatus::AlreadyValid, "");
        self.record(prepared, &paths, &mut result)?;
        Ok(Some(result))
    }

    /// What other nodes built is made the outputs.
    fn publish(&self, prepared: &Prepared) -> Result<BuildResult, Failure> {
        self.comes_to(Stage::Store);
        let paths = outputs::publish(self.service, prepared, &self.task.agreed, self.kill);
        let paths = paths.map_err(|rejected| self.rejected(rejected))?;
        let mut result = BuildResult::new(BuildStatus::Built, "");
        self.record(prepared, &paths, &mut result)?;
        Ok(result)
    }

    fn rejected(&self, rejected: Rejected) -> Failure {
        match rejected {
            Rejected::Failure(failure) => failure,
            Rejected::Infrastructure(_) if self.kill.is_killed() => Failure::cancelled(),
            Rejected::Infrastructure(error) => Failure::infrastructure(&error),
        }
    }

    /// What the builder reads. Waits for inputs that it cannot do without.
    fn give(&self, prepared: &Prepared, reader: Reader<'_>) -> anyhow::Result<Given> {
        let inputs = &self.service.inputs;
        if let Some(coming) = self.coming {
            // What is told of closures is told of valid paths.
            if prepared.options.export_references_graph.is_empty() && !reader.is_narrow {
                match inputs.view(&prepared.inputs, reader) {
                    Ok(view) => return Ok(view),
                    Err(error) if (reader.is_over)() => return Err(error),
                    Err(error) => tracing::info!(error = format!("{error:#}"), "a build waits for all of its inputs"),
                }
            }
            coming.wait_for(self.service, &prepared.inputs, || self.kill.is_killed())?;
        }
        inputs.give(&prepared.inputs, reader)
    }

    /// An empty directory for this build, or that of the build that is adopted.
    fn scratch(&self) -> anyhow::Result<Scratch> {
        match &self.task.what {
            What::Adopted(adopted) => Ok(Scratch::new(&adopted.scratch)),
            _ => self.service.scratches.take(),
        }
    }

    fn start(&self, prepared: &Prepared, scratch: &Scratch, given: &Given) -> Result<Running, Failure> {
        let running = match &self.task.what {
            What::Adopted(_) => shoal_sandbox::attach(scratch.path(), 0).map_err(cannot_start)?,
            _ => self.spawn(prepared, scratch, given)?,
        };
        self.kill.arm(running.killer().map_err(cannot_start)?);
        Ok(running)
    }

    fn spawn(&self, prepared: &Prepared, scratch: &Scratch, given: &Given) -> Result<Running, Failure> {
        let environment = environment::make(self.service, prepared, self.cores())?;
        let spec = sandbox_spec::make(self.service, prepared, scratch, given, environment, self.options)?;
        adopt::leave_note(scratch, prepared, given, &self.service.dir)
            .map_err(|error| Failure::infrastructure(&error))?;
        shoal_sandbox::spawn(&spec).map_err(cannot_start)
    }

    fn cores(&self) -> u64 {
        match self.options.cores.unwrap_or(self.service.config.defaults.cores) {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            cores => cores,
        }
    }

    fn keep_log(&self, scratch: &Scratch) -> anyhow::Result<()> {
        let log = fs::File::open(scratch.log()).context("no log was written")?;
        self.service.store.put_log(&self.task.drv_path, log)?;
        Ok(())
    }

    fn conclude(
        &self,
        prepared: &Prepared,
        scratch: &Scratch,
        outcome: &Outcome,
        last_lines: &Tail,
    ) -> Result<BuildResult, Failure> {
        self.check_end(prepared, outcome, last_lines)?;
        self.comes_to(Stage::Store);
        let arrive = |paths: &BTreeSet<StorePath>| match self.coming {
            Some(coming) => coming.wait_for(self.service, paths, || self.kill.is_killed()),
            None => Ok(()),
        };
        let paths = outputs::take(self.service, prepared, scratch, outcome.uid, self.kill, arrive);
        let paths = paths.map_err(|rejected| self.rejected(rejected))?;
        let mut result = BuildResult::new(BuildStatus::Built, "");
        result.times_built = 1;
        result.start_time = outcome.started_at;
        result.stop_time = outcome.stopped_at;
        result.cpu_user = i64::try_from(outcome.usage.cpu_user_us).ok();
        result.cpu_system = i64::try_from(outcome.usage.cpu_system_us).ok();
        self.record(prepared, &paths, &mut result)?;
        let (name, system) = (self.task.drv_path.name(), &self.task.requirement.system);
        self.service.history.record(name, system, self.since.elapsed(), self.used.peak_mib);
        Ok(result)
    }

    /// Whether the builder ended well.
    fn check_end(&self, prepared: &Prepared, outcome: &Outcome, last_lines: &Tail) -> Result<(), Failure> {
        let limits = sandbox_spec::limits(self.service, self.options);
        let bad = match &outcome.end {
            End::Exited(0) => return Ok(()),
            End::Exited(code) => BadEnd::ExitCode(*code),
            End::Signaled(signal) => BadEnd::Signal(*signal),
            End::TimedOut => return Err(Failure::timed_out(limits.timeout.unwrap_or_default())),
            End::Silent => return Err(Failure::silent(limits.max_silent.unwrap_or_default())),
            End::LogLimit => return Err(self.texts().log_limit(limits.max_log_bytes.unwrap_or_default())),
            End::Killed => return Err(Failure::cancelled()),
            End::SetupFailed(text) => {
                let text = format!("cannot set up the sandbox: {text}; 'shoal doctor' says what this machine lacks");
                return Err(Failure::new(BuildStatus::TransientFailure, text));
            }
            End::Lost => {
                let text = "the build's supervisor was killed, or the machine stopped, before the build ended";
                return Err(Failure::new(BuildStatus::TransientFailure, text));
            }
        };
        if self.used.ran_out {
            let peak_mib = outcome.usage.memory_peak_bytes.div_ceil(MIB);
            return Err(self.texts().out_of_memory(peak_mib, self.service.memory_limit_mib()));
        }
        let outputs: Vec<StorePath> = match prepared.is_floating() {
            true => Vec::new(),
            false => prepared.scratch_outputs.values().cloned().collect(),
        };
        let mut failure = self.texts().builder(bad, &outputs, last_lines.lines());
        if disk_nearly_full(&self.service.config.data_dir) {
            failure.status = BuildStatus::TransientFailure;
            failure.message += "\nnote: the disk of the build directory is nearly full";
        }
        Err(failure)
    }

    fn record(
        &self,
        prepared: &Prepared,
        paths: &BTreeMap<String, StorePath>,
        result: &mut BuildResult,
    ) -> Result<(), Failure> {
        paths.values().for_each(|path| self.roots.add(path));
        result.built_outputs =
            self.service.record_outputs(prepared, paths).map_err(|error| Failure::infrastructure(&error))?;
        Ok(())
    }

    fn clear_away(&self, prepared: &Prepared, scratch: Scratch, failed: bool) {
        let keep = self.options.keep_failed.unwrap_or(self.service.config.defaults.keep_failed);
        if failed && keep && !self.kill.is_killed() {
            match keep_build_dir(&self.service.config.data_dir, &scratch, &self.task.drv_path) {
                Ok(kept) => {
                    let text = format!("note: keeping build directory '{}'\n", kept.display());
                    self.tell(&BuildEvent::Message(text));
                }
                Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot keep a failed build's directory"),
            }
        }
        let was_isolated = !sandbox_spec::needs_network(prepared) && !matches!(self.task.what, What::Adopted(_));
        if was_isolated && !failed {
            self.service.scratches.give_back(scratch);
        } else {
            remove_in_background(scratch.path().to_path_buf());
        }
    }
}

fn used(outcome: &Outcome, limit_mib: Option<u64>) -> Used {
    let is_bad = matches!(outcome.end, End::Exited(1..) | End::Signaled(_));
    let ran_out = outcome.usage.out_of_memory && is_bad;
    let peak_mib = outcome.usage.memory_peak_bytes.div_ceil(MIB);
    // Whatever is refused at the limit is not counted.
    Used { peak_mib: limit_mib.filter(|_| ran_out).unwrap_or(peak_mib), ran_out }
}

/// Moves the build directory to where people find it.
fn keep_build_dir(data_dir: &Path, scratch: &Scratch, drv_path: &StorePath) -> anyhow::Result<PathBuf> {
    let kept = data_dir.join("kept");
    fs::create_dir_all(&kept)?;
    let name = scratch.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let target = kept.join(format!("{name}-{}", drv_path.name()));
    shoal_sandbox::release(&scratch.build_dir())?;
    fs::rename(scratch.build_dir(), &target).with_context(|| format!("cannot move to {}", target.display()))?;
    Ok(target)
}

fn disk_nearly_full(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|disk| {
        let no_inodes = disk.f_files > 0 && disk.f_favail < DISK_NEARLY_FULL / 4096;
        disk.f_bavail.saturating_mul(disk.f_frsize) < DISK_NEARLY_FULL || no_inodes
    })
}

/// Turns output into lines and tells them.
struct Log<'a, 'b> {
    job: &'a Job<'b>,
    lines: Lines,
    tail: Tail,
}

impl<'a, 'b> Log<'a, 'b> {
    fn new(job: &'a Job<'b>) -> Self {
        Log { job, lines: Lines::default(), tail: Tail::default() }
    }

    fn output(&mut self, bytes: &[u8]) {
        let Log { job, lines, tail } = self;
        lines.feed(bytes, |line| tell_line(job, tail, line));
    }

    fn end(&mut self) {
        let Log { job, lines, tail } = self;
        lines.finish(|line| tell_line(job, tail, line));
    }
}

fn tell_line(job: &Job<'_>, tail: &mut Tail, line: &[u8]) {
    let event = match parse_builder_line(line) {
        Some(BuilderMessage::SetPhase(phase)) => BuildEvent::Phase { job: job.id, phase },
        Some(BuilderMessage::Message { level, text }) if level <= Verbosity::Info.number() => {
            BuildEvent::Said(text + "\n")
        }
        Some(_) => return,
        None => {
            tail.push(line);
            BuildEvent::Line { job: job.id, line: line.to_vec() }
        }
    };
    job.tell(&event);
}

fn cannot_start(error: std::io::Error) -> Failure {
    Failure::infrastructure(&anyhow::Error::new(error).context("cannot start a sandbox"))
}

/// Reads a build's output to its end.
fn follow(mut running: Running, log: &mut Log<'_, '_>) -> std::io::Result<Outcome> {
    loop {
        match running.next(None)? {
            Some(Event::Output(bytes)) => log.output(&bytes),
            Some(Event::Exited(outcome)) => {
                log.end();
                return Ok(outcome);
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
