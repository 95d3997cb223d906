//! Builds that the operator asks for: to wait for, or to be run while nobody waits.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shoal_wire::mesh::builds::Errand;
use shoal_wire::nix::derived_path::{DerivedPath, OutputsSpec, Separator, SingleDerivedPath};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::BuildResult;
use shoal_wire::nix::worker::ops::BuildMode;

use super::server::OnItem;
use crate::build::feed::{BuildEvent, JobId};
use crate::build::remote::stand_in::{self, SeeTo};
use crate::build::request::BuildOptions;
use crate::door::Hangup;
use crate::session::builds::Audience;
use crate::session::fault::Fault;
use crate::session::substitution::FetchEvent;
use crate::session::{Client, Services};

/// Requests that run while nobody waits for them.
const DETACHED_MAX: usize = 64;
/// Those that have ended and are still shown.
const ENDED_MAX: usize = 64;

/// What is to be built, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Derivations, with or without the outputs that are wanted (`/nix/store/….drv^out,dev`), and store paths.
    pub wanted: Vec<String>,
    pub keep_going: bool,
    /// Builds again what is built, and compares.
    pub check: bool,
    /// Nodes that must agree, where the node does not ask for more.
    #[serde(default)]
    pub quorum: Option<u32>,
}

/// Requests that nobody waits for.
pub struct BuildControl {
    services: Arc<Services>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    next: u64,
    running: BTreeMap<u64, Detached>,
    ended: VecDeque<Value>,
}

struct Detached {
    wanted: Vec<String>,
    since: Instant,
    hangup: Hangup,
    /// The lost node whose client wanted it.
    instead_of: Option<String>,
}

impl BuildControl {
    pub fn new(services: Arc<Services>) -> BuildControl {
        BuildControl { services, state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn parse(&self, text: &str) -> Result<DerivedPath> {
        let dir = &self.services.dir;
        // A base name will do.
        let text = if text.contains('/') { text.to_string() } else { format!("{}/{text}", dir.as_str()) };
        let parsed = DerivedPath::parse_with(dir, &text, Separator::Cli);
        Ok(match parsed.with_context(|| format!("'{text}' is nothing that can be built"))? {
            DerivedPath::Opaque(path) if path.is_derivation() => {
                DerivedPath::Built { drv: Box::new(SingleDerivedPath::Opaque(path)), outputs: OutputsSpec::All }
            }
            wanted => wanted,
        })
    }

    /// Builds, and tells what happens. Given up when `hangup` fires.
    pub fn build(&self, order: &Order, hangup: Hangup, on_item: OnItem<'_>) -> Result<()> {
        let wanted = order.wanted.iter().map(|text| self.parse(text)).collect::<Result<Vec<_>>>()?;
        let mut audience = Items { on_item, dir: &self.services.dir, jobs: BTreeMap::new() };
        let results = run(&self.services, mode(order), options(order), &wanted, hangup, &mut audience)?;
        for (wanted, result) in wanted.iter().zip(&results) {
            (audience.on_item)(json!({ "result": result_item(&self.services.dir, wanted, result) }))?;
        }
        Ok(())
    }

    /// Begins, and gives the number by which it can be cancelled.
    pub fn detach(&self, order: &Order, on_item: OnItem<'_>) -> Result<()> {
        let wanted = order.wanted.iter().map(|text| self.parse(text)).collect::<Result<Vec<_>>>()?;
        let (id, hangup) = self.begin(order.wanted.clone(), None)?;
        let (services, state) = (self.services.clone(), self.state.clone());
        let (mode, options) = (mode(order), BuildOptions { is_detached: true, ..options(order) });
        let work = move || {
            let outcome = run(&services, mode, options, &wanted, hangup, &mut Nobody::for_ever());
            end(&state, id, &services.dir, &wanted, outcome);
        };
        if let Err(error) = thread::Builder::new().name("detached build".into()).spawn(work) {
            self.lock().running.remove(&id);
            return Err(error).context("cannot start a thread");
        }
        on_item(json!({ "id": id }))
    }

    /// Notes a request that nobody waits for, under a number of its own.
    fn begin(&self, wanted: Vec<String>, instead_of: Option<String>) -> Result<(u64, Hangup)> {
        let mut state = self.lock();
        if state.running.len() >= DETACHED_MAX {
            bail!("{DETACHED_MAX} requests run already that nobody waits for; 'shoal builds' lists them");
        }
        state.next += 1;
        let (id, hangup) = (state.next, Hangup::default());
        state.running.insert(id, Detached { wanted, since: Instant::now(), hangup: hangup.clone(), instead_of });
        Ok((id, hangup))
    }

    fn see_to_it(&self, errand: &Errand, of: &str) -> Result<()> {
        let wanted = errand.wanted.iter().map(|text| DerivedPath::parse(&self.services.dir, text));
        let wanted: Vec<DerivedPath> = wanted.collect::<Result<_, _>>().context("it cannot be read")?;
        let shown = wanted.iter().map(|wanted| wanted.print_with(&self.services.dir, Separator::Cli)).collect();
        let (id, hangup) = self.begin(shown, Some(of.to_owned()))?;
        let grace = errand.grace_s.map(|seconds| Duration::from_secs(seconds.into()));
        let mut nobody = Nobody { gives_up: grace.map(|grace| Instant::now() + grace) };
        let options = stand_in::options(errand);
        let outcome = run(&self.services, BuildMode::Normal, options, &wanted, hangup, &mut nobody);
        end(&self.state, id, &self.services.dir, &wanted, outcome);
        Ok(())
    }

    /// Those that run and those that ended last.
    pub fn list(&self, on_item: OnItem<'_>) -> Result<()> {
        let state = self.lock();
        let running = state.running.iter().map(|(id, detached)| {
            let seconds = detached.since.elapsed().as_secs();
            let (wanted, instead_of) = (&detached.wanted, &detached.instead_of);
            json!({ "state": "detached", "id": id, "seconds": seconds, "wanted": wanted, "instead_of": instead_of })
        });
        let items: Vec<Value> = running.chain(state.ended.iter().rev().cloned()).collect();
        drop(state);
        items.into_iter().try_for_each(on_item)
    }

    /// Gives up a request by its number, or stops a derivation that runs, for everybody who wants it.
    pub fn cancel(&self, what: &str) -> Result<()> {
        if let Ok(id) = what.parse::<u64>() {
            let hangup = self.lock().running.get(&id).map(|detached| detached.hangup.clone());
            hangup.with_context(|| format!("no request {id} runs; 'shoal builds' lists them"))?.fire();
            return Ok(());
        }
        let DerivedPath::Built { drv, .. } = self.parse(what)? else {
            bail!("'{what}' is neither the number of a request nor a derivation");
        };
        match self.services.builds.stop(drv.base_path()) {
            true => Ok(()),
            false => bail!("'{what}' is not being built here; 'shoal builds' lists what is"),
        }
    }

    /// The derivation by which a build is known: the first of those that a request of this number wants, or the one that is
    /// named, itself or by an output.
    pub fn derivation(&self, what: &str) -> Result<StorePath> {
        let Ok(id) = what.parse::<u64>() else { return self.deriver(what) };
        let state = self.lock();
        let running = state.running.get(&id).and_then(|detached| detached.wanted.first().cloned());
        let ended = || {
            let ended = state.ended.iter().find(|ended| ended["id"] == id)?;
            Some(ended["wanted"][0].as_str()?.to_owned())
        };
        let wanted = running.or_else(ended);
        drop(state);
        self.deriver(&wanted.with_context(|| format!("no request {id} is known; 'shoal builds' lists them"))?)
    }

    fn deriver(&self, what: &str) -> Result<StorePath> {
        match self.parse(what)? {
            DerivedPath::Built { drv, .. } => Ok(drv.base_path().clone()),
            DerivedPath::Opaque(path) => {
                let info = self.services.store.path_info(&path)?;
                let deriver = info.and_then(|info| info.deriver);
                deriver.with_context(|| format!("it is not known which derivation '{what}' is an output of"))
            }
        }
    }

    /// What a running build says, from as far back as is known; whether it runs at all.
    pub fn follow(
        &self,
        drv_path: &StorePath,
        hangup: &Hangup,
        mut on_line: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<bool> {
        let Some(watch) = self.services.builds.watch(drv_path) else { return Ok(false) };
        let _waker = hangup.watch(watch.waker());
        for event in watch {
            match event {
                BuildEvent::Line { line, .. } => on_line(&line)?,
                BuildEvent::Said(text) => on_line(text.trim_end_matches('\n').as_bytes())?,
                _ => {}
            }
        }
        Ok(true)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SeeTo for BuildControl {
    fn see_to(&self, errand: &Errand, of: &str) {
        if let Err(error) = self.see_to_it(errand, of) {
            tracing::warn!(node = of, error = format!("{error:#}"), "cannot see to a lost node's request");
        }
    }
}

fn mode(order: &Order) -> BuildMode {
    if order.check { BuildMode::Check } else { BuildMode::Normal }
}

fn options(order: &Order) -> BuildOptions {
    BuildOptions { keep_going: order.keep_going.then_some(true), quorum: order.quorum, ..BuildOptions::default() }
}

fn run(
    services: &Arc<Services>,
    mode: BuildMode,
    options: BuildOptions,
    wanted: &[DerivedPath],
    hangup: Hangup,
    audience: &mut impl Audience,
) -> Result<Vec<BuildResult>> {
    let client = Client::of_operator(services.clone(), hangup);
    client.build_for_operator(wanted, mode, options, audience).map_err(|fault| match fault {
        Fault::Refused(text) | Fault::Fatal(text) => anyhow!(text),
        Fault::Gone => anyhow!("cancelled"),
    })
}

/// Notes how a request ended that nobody waited for.
fn end(state: &Mutex<State>, id: u64, dir: &StoreDir, wanted: &[DerivedPath], outcome: Result<Vec<BuildResult>>) {
    let (results, failure) = match &outcome {
        Ok(results) => {
            let failed = results.iter().find(|result| !result.status.is_success());
            let items = wanted.iter().zip(results).map(|(wanted, result)| result_item(dir, wanted, result)).collect();
            (items, failed.map(|failed| String::from_utf8_lossy(&failed.error_msg).into_owned()))
        }
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    let mut state = lock(state);
    let Some(detached) = state.running.remove(&id) else { return };
    match &failure {
        None => tracing::info!(id, "a request that nobody waited for is built"),
        Some(why) => tracing::warn!(id, why, "a request that nobody waited for failed"),
    }
    let ended = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if state.ended.len() == ENDED_MAX {
        state.ended.pop_front();
    }
    state.ended.push_back(json!({
        "state": if failure.is_none() { "detached, built" } else { "detached, failed" },
        "id": id,
        "seconds": detached.since.elapsed().as_secs(),
        "wanted": detached.wanted,
        "instead_of": detached.instead_of,
        "ended": ended,
        "failure": failure,
        "results": results,
    }));
}

fn result_item(dir: &StoreDir, wanted: &DerivedPath, result: &BuildResult) -> Value {
    let outputs: BTreeMap<&String, String> =
        result.built_outputs.iter().map(|(name, built)| (name, dir.print(&built.out_path))).collect();
    let opaque = matches!(wanted, DerivedPath::Opaque(_)) && result.status.is_success();
    json!({
        "wanted": wanted.print_with(dir, Separator::Cli),
        "success": result.status.is_success(),
        "status": format!("{:?}", result.status),
        "outputs": if opaque { json!({ "out": dir.print(wanted.base_path()) }) } else { json!(outputs) },
        "error": (!result.status.is_success()).then(|| String::from_utf8_lossy(&result.error_msg)),
    })
}

/// Passes on what happens, one item for each event.
struct Items<'a, 'b> {
    on_item: OnItem<'a>,
    dir: &'b StoreDir,
    jobs: BTreeMap<JobId, String>,
}

impl Items<'_, '_> {
    fn say(&mut self, item: Value) -> Result<(), Fault> {
        (self.on_item)(item).map_err(|_| Fault::Gone)
    }

    fn drv(&self, job: JobId) -> Option<&String> {
        self.jobs.get(&job)
    }
}

impl Audience for Items<'_, '_> {
    fn tell(&mut self, event: BuildEvent) -> Result<(), Fault> {
        let item = match event {
            BuildEvent::Started { job, drv_path, machine } => {
                let drv = self.dir.print(&drv_path);
                self.jobs.insert(job, drv.clone());
                json!({ "started": drv, "at": machine })
            }
            BuildEvent::Phase { job, phase } => json!({ "phase": phase, "drv": self.drv(job) }),
            BuildEvent::Line { job, line } => json!({ "line": String::from_utf8_lossy(&line), "drv": self.drv(job) }),
            BuildEvent::Finished { job } => json!({ "finished": self.jobs.remove(&job) }),
            BuildEvent::Progress { done, expected, running, failed } => {
                json!({ "progress": { "done": done, "expected": expected, "running": running, "failed": failed } })
            }
            BuildEvent::Message(text) | BuildEvent::Said(text) => json!({ "message": text }),
        };
        self.say(item)
    }

    fn still_alive(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn fetching(&mut self, event: FetchEvent<'_>) -> Result<(), Fault> {
        match event {
            FetchEvent::Started { path, from, .. } => {
                let item = json!({ "fetching": self.dir.print(path), "from": from });
                self.say(item)
            }
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Fault> {
        Ok(())
    }
}

/// Nobody hears of it; logs are kept as always.
struct Nobody {
    /// When nobody wants it any more.
    gives_up: Option<Instant>,
}

impl Nobody {
    fn for_ever() -> Nobody {
        Nobody { gives_up: None }
    }
}

impl Audience for Nobody {
    fn tell(&mut self, _event: BuildEvent) -> Result<(), Fault> {
        self.still_alive()
    }

    fn still_alive(&mut self) -> Result<(), Fault> {
        match self.gives_up {
            Some(when) if Instant::now() >= when => Err(Fault::Gone),
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Fault> {
        Ok(())
    }
}
