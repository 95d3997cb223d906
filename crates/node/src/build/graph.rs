//! From what a client wants to the derivations that must be built for it.
//!
//! The walk goes down from the wanted derivations through input derivations and stops where the outputs that are needed
//! are valid already. O(derivations + edges); each derivation is read once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use anyhow::Result;
use shoal_grid::can_run::Requirement;
use shoal_grid::critical_path;
use shoal_wire::nix::derivation::{BasicDerivation, Derivation};
use shoal_wire::nix::derived_path::{DerivedPath, OutputsSpec, SingleDerivedPath};
use shoal_wire::nix::options::required_system_features;
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::ops::BuildMode;
use shoal_wire::nix::worker::{BuildResult, BuildStatus};

use super::request::{Goal, Wanted};
use super::service::BuildService;
use super::story::Story;
use super::traces::Step;

/// Derivations in one request. A whole distribution has a few hundred thousand.
pub(super) const GRAPH_NODES_MAX: usize = 2_000_000;

/// What is known of one derivation to be built.
#[derive(Clone, Debug)]
pub struct Task {
    pub drv_path: StorePath,
    pub what: What,
    pub mode: BuildMode,
    pub requirement: Requirement,
    /// Derivations of the same graph whose outputs this one needs.
    pub waits_for: Vec<StorePath>,
    /// What other nodes built and agreed on, by output: nothing is built, this is published. Empty otherwise.
    pub agreed: BTreeMap<String, StorePath>,
}

#[derive(Clone, Debug)]
pub enum What {
    /// A `.drv` of the store, with its input derivations.
    Stored(Arc<Derivation>),
    /// Sent by the client, its inputs already resolved.
    Given(Arc<BasicDerivation>),
    /// A build of an earlier run of this node that went on without it.
    Adopted(Arc<super::adopt::Adopted>),
}

impl Task {
    fn new(drv_path: StorePath, what: What, mode: BuildMode) -> Task {
        let (system, env) = match &what {
            What::Stored(derivation) => (&derivation.system, &derivation.env),
            What::Given(derivation) => (&derivation.system, &derivation.env),
            What::Adopted(adopted) => (&adopted.derivation.system, &adopted.derivation.env),
        };
        let requirement = Requirement { system: system.clone(), features: required_system_features(env) };
        Task { drv_path, what, mode, requirement, waits_for: Vec::new(), agreed: BTreeMap::new() }
    }

    pub fn given(drv_path: StorePath, derivation: BasicDerivation, mode: BuildMode) -> Task {
        Task::new(drv_path, What::Given(Arc::new(derivation)), mode)
    }

    pub fn adopted(adopted: super::adopt::Adopted) -> Task {
        Task::new(adopted.drv_path.clone(), What::Adopted(Arc::new(adopted)), BuildMode::Normal)
    }

    /// The inputs of one whose inputs are all paths.
    pub fn inputs(&self) -> Option<&BTreeSet<StorePath>> {
        match &self.what {
            What::Given(derivation) => Some(&derivation.input_srcs),
            What::Stored(_) | What::Adopted(_) => None,
        }
    }

    /// Derivations whose outputs it needs, whether those are valid or must be built.
    fn input_derivations(&self) -> impl Iterator<Item = &StorePath> {
        let stored = match &self.what {
            What::Stored(derivation) => Some(&derivation.input_drvs),
            What::Given(_) | What::Adopted(_) => None,
        };
        stored.into_iter().flatten().map(|(input, _)| input)
    }

    /// The output paths that are known before the build.
    pub fn known_outputs(&self, dir: &StoreDir) -> Vec<StorePath> {
        let (name, outputs) = match &self.what {
            What::Stored(derivation) => (&derivation.name, &derivation.outputs),
            What::Given(derivation) => (&derivation.name, &derivation.outputs),
            What::Adopted(adopted) => (&adopted.derivation.name, &adopted.derivation.outputs),
        };
        outputs.iter().filter_map(|(id, output)| output.path(dir, name, id).ok().flatten()).collect()
    }
}

#[derive(Debug, Default)]
pub struct Graph {
    pub tasks: Vec<Task>,
}

impl Graph {
    pub fn single(task: Task) -> Graph {
        Graph { tasks: vec![task] }
    }

    /// What each task needs, in their order: the tasks that it waits for, and derivations whose outputs are valid, of which
    /// the schedule may remember where they lie.
    pub fn needs(&self) -> Vec<Vec<StorePath>> {
        let inside: HashSet<&StorePath> = self.tasks.iter().map(|task| &task.drv_path).collect();
        let needs = |task: &Task| {
            let valid = task.input_derivations().filter(|input| !inside.contains(input));
            task.waits_for.iter().chain(valid).cloned().collect()
        };
        self.tasks.iter().map(needs).collect()
    }

    /// For who remembers what became of its tasks, in their order.
    pub fn steps(&self) -> Vec<Step> {
        let numbers: HashMap<&StorePath, u32> = self.tasks.iter().map(|task| &task.drv_path).zip(0..).collect();
        let step = |task: &Task| Step {
            drv_path: task.drv_path.clone(),
            deps: task.waits_for.iter().filter_map(|dep| numbers.get(dep).copied()).collect(),
            story: Story::default(),
        };
        self.tasks.iter().map(step).collect()
    }

    /// One of those that would wait for themselves. Paths of derivations follow from what they refer to, so there are none
    /// unless a disk or a hash is broken; they would wait for ever.
    fn in_circle(&self) -> Option<&StorePath> {
        let numbers: HashMap<&StorePath, usize> = self.tasks.iter().map(|task| &task.drv_path).zip(0..).collect();
        let deps =
            |task: &Task| -> Vec<usize> { task.waits_for.iter().filter_map(|dep| numbers.get(dep).copied()).collect() };
        let deps: Vec<Vec<usize>> = self.tasks.iter().map(deps).collect();
        critical_path::in_circle(&deps).map(|number| &self.tasks[number].drv_path)
    }
}

pub(super) struct Plan {
    pub graph: Graph,
    pub goals: Vec<Goal>,
}

/// What a build would have to make.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing {
    pub will_build: BTreeSet<StorePath>,
    pub unknown: BTreeSet<StorePath>,
}

/// Plans a request. An element that cannot be built becomes a goal that is settled with the reason.
pub(super) fn plan(service: &BuildService, wanted: &[DerivedPath], mode: BuildMode) -> Result<Plan> {
    let mut walk = Walk::new(service, mode);
    let goals = wanted.iter().map(|wanted| walk.goal(wanted)).collect::<Result<_>>()?;
    let graph = walk.into_graph();
    if let Some(drv_path) = graph.in_circle() {
        anyhow::bail!("derivation '{}' needs itself, by way of others", service.dir.print(drv_path));
    }
    Ok(Plan { graph, goals })
}

pub(super) fn missing(service: &BuildService, wanted: &[DerivedPath]) -> Result<Missing> {
    let mut walk = Walk::new(service, BuildMode::Normal);
    let mut unknown = BTreeSet::new();
    for wanted in wanted {
        if let Goal::Settled(result) = walk.goal(wanted)?
            && !result.status.is_success()
        {
            unknown.insert(wanted.base_path().clone());
        }
    }
    let will_build = walk.into_graph().tasks.into_iter().map(|task| task.drv_path).collect();
    Ok(Missing { will_build, unknown })
}

struct Walk<'a> {
    service: &'a BuildService,
    mode: BuildMode,
    tasks: HashMap<StorePath, Task>,
    /// Derivations that are tasks or about to become some.
    needed: HashSet<StorePath>,
    /// Derivations whose outputs, as far as asked, are valid.
    satisfied: HashMap<StorePath, BTreeSet<String>>,
}

impl<'a> Walk<'a> {
    fn new(service: &'a BuildService, mode: BuildMode) -> Walk<'a> {
        Walk { service, mode, tasks: HashMap::new(), needed: HashSet::new(), satisfied: HashMap::new() }
    }

    fn into_graph(self) -> Graph {
        Graph { tasks: self.tasks.into_values().collect() }
    }

    fn goal(&mut self, wanted: &DerivedPath) -> Result<Goal> {
        match wanted {
            DerivedPath::Opaque(path) => self.opaque(path),
            DerivedPath::Built { drv, outputs } => match &**drv {
                SingleDerivedPath::Opaque(drv_path) => self.derivation(drv_path, outputs),
                SingleDerivedPath::Built { .. } => Ok(refuse(
                    BuildStatus::InputRejected,
                    "derivations that are themselves built (dynamic derivations) are not supported by this node",
                )),
            },
        }
    }

    fn opaque(&self, path: &StorePath) -> Result<Goal> {
        if self.service.store.is_valid(path)? {
            return Ok(Goal::Settled(BuildResult::new(BuildStatus::AlreadyValid, "")));
        }
        let path = self.service.dir.print(path);
        let message = format!("path '{path}' is not in this store, and no substituter of this node has it");
        Ok(refuse(BuildStatus::NoSubstituters, &message))
    }

    fn derivation(&mut self, drv_path: &StorePath, outputs: &OutputsSpec) -> Result<Goal> {
        let service = self.service;
        let derivation = match service.derivations.get(drv_path) {
            Ok(derivation) => derivation,
            Err(error) => return Ok(refuse(BuildStatus::MiscFailure, &format!("{error:#}"))),
        };
        let (names, wanted) = match outputs {
            OutputsSpec::All => (derivation.outputs.keys().cloned().collect(), Wanted::All),
            OutputsSpec::Names(names) => (names.clone(), Wanted::Named(names.iter().cloned().collect())),
        };
        if let Some(unknown) = names.iter().find(|name| !derivation.outputs.contains_key(*name)) {
            let drv = service.dir.print(drv_path);
            let message = format!("derivation '{drv}' does not have an output named '{unknown}'");
            return Ok(refuse(BuildStatus::InputRejected, &message));
        }
        if self.mode == BuildMode::Normal && self.is_satisfied(drv_path, &derivation, &names)? {
            let mut result = BuildResult::new(BuildStatus::AlreadyValid, "");
            result.built_outputs = service.built_outputs(&derivation)?;
            result.built_outputs.retain(|output, _| wanted.contains(output));
            return Ok(Goal::Settled(result));
        }
        if let Err(error) = self.add(drv_path, derivation) {
            return Ok(refuse(BuildStatus::MiscFailure, &format!("{error:#}")));
        }
        Ok(Goal::Derivation { drv_path: drv_path.clone(), wanted })
    }

    /// Adds a derivation that must run, and all that must run before it.
    fn add(&mut self, drv_path: &StorePath, derivation: Arc<Derivation>) -> Result<()> {
        if !self.needed.insert(drv_path.clone()) {
            return Ok(());
        }
        let mut open = vec![self.make_task(drv_path.clone(), derivation, self.mode)];
        while let Some((mut task, derivation)) = open.pop() {
            anyhow::ensure!(
                self.needed.len() < GRAPH_NODES_MAX,
                "more than {GRAPH_NODES_MAX} derivations in one request"
            );
            for (input, wanted) in &derivation.input_drvs {
                if self.needed.contains(input) {
                    task.waits_for.push(input.clone());
                    continue;
                }
                let input_derivation = self.service.derivations.get(input)?;
                if !self.is_satisfied(input, &input_derivation, &wanted.outputs)? {
                    self.needed.insert(input.clone());
                    task.waits_for.push(input.clone());
                    open.push(self.make_task(input.clone(), input_derivation, BuildMode::Normal));
                }
            }
            self.tasks.insert(task.drv_path.clone(), task);
        }
        Ok(())
    }

    fn make_task(&self, drv_path: StorePath, derivation: Arc<Derivation>, mode: BuildMode) -> (Task, Arc<Derivation>) {
        (Task::new(drv_path, What::Stored(derivation.clone()), mode), derivation)
    }

    /// Whether these outputs are valid here.
    fn is_satisfied(
        &mut self,
        drv_path: &StorePath,
        derivation: &Derivation,
        outputs: &BTreeSet<String>,
    ) -> Result<bool> {
        if self.satisfied.get(drv_path).is_some_and(|known| outputs.is_subset(known)) {
            return Ok(true);
        }
        let paths = self.service.output_paths(derivation)?;
        for output in outputs {
            match paths.get(output) {
                Some(Some(path)) if self.service.store.is_valid(path)? => {}
                _ => return Ok(false),
            }
        }
        self.satisfied.entry(drv_path.clone()).or_default().extend(outputs.iter().cloned());
        Ok(true)
    }
}

fn refuse(status: BuildStatus, message: &str) -> Goal {
    Goal::Settled(BuildResult::new(status, message))
}

/// Output name to path, as far as it is known.
pub type OutputPaths = BTreeMap<String, Option<StorePath>>;

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_wire::nix::derivation::DerivedOutputs;

    fn path(n: usize) -> StorePath {
        StorePath::from_base_name(&format!("{}-{n}.drv", "a".repeat(32))).unwrap()
    }

    fn derivation() -> BasicDerivation {
        BasicDerivation {
            name: "a".into(),
            outputs: BTreeMap::new(),
            input_srcs: BTreeSet::new(),
            system: "x86_64-linux".into(),
            builder: "/bin/sh".into(),
            args: Vec::new(),
            env: BTreeMap::new(),
        }
    }

    #[test]
    fn the_schedule_hears_of_inputs_that_are_valid_too() {
        let inputs = [1, 2].map(|n| (path(n), DerivedOutputs::default())).into();
        let stored = Derivation { input_drvs: inputs, ..derivation().into_derivation() };
        let whole = Task::new(path(0), What::Stored(Arc::new(stored)), BuildMode::Normal);
        let tasks =
            vec![Task { waits_for: vec![path(2)], ..whole }, Task::given(path(2), derivation(), BuildMode::Normal)];
        assert_eq!(Graph { tasks }.needs(), [vec![path(2), path(1)], vec![]]);
    }

    #[test]
    fn what_would_wait_for_itself_is_found() {
        let derivation = derivation();
        let graph = |deps: &[&[usize]]| {
            let task = |(number, deps): (usize, &&[usize])| Task {
                waits_for: deps.iter().map(|dep| path(*dep)).collect(),
                ..Task::given(path(number), derivation.clone(), BuildMode::Normal)
            };
            Graph { tasks: deps.iter().enumerate().map(task).collect() }
        };
        assert_eq!(graph(&[&[1, 2], &[2], &[], &[7]]).in_circle(), None);
        assert_eq!(graph(&[&[], &[0, 3], &[1], &[2]]).in_circle().map(|found| *found != path(0)), Some(true));
    }
}
