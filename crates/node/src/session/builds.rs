//! Builds that a client asks for: who may, and the wait for them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shoal_wire::nix::aterm;
use shoal_wire::nix::derivation::{BasicDerivation, Derivation, DerivationKind};
use shoal_wire::nix::derived_path::{DerivedPath, SingleDerivedPath};
use shoal_wire::nix::hash::sha256;
use shoal_wire::nix::store_path::{DRV_EXTENSION, StoreDir, StorePath};
use shoal_wire::nix::worker::ops::{BuildDerivation, BuildMode, Missing};
use shoal_wire::nix::worker::{BuildResult, BuildStatus};

use super::Client;
use super::fault::Fault;
use super::substitution::FetchEvent;
use crate::build::feed::BuildEvent;
use crate::build::request::{BuildHandle, BuildOptions, BuildRequest, Progress};
use crate::door::Role;

/// Silence after which the client is shown that the node is alive. Some networks forget connections after a minute.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How late a client may hear that builds start and end: too little for an eye, and enough that a chain of short builds
/// does not wake it several times for each.
const LAG_MAX: Duration = Duration::from_millis(20);

/// Times that a request is planned: again when inputs were lost with a node, which several nodes may do one after the other.
const PLANS_MAX: u32 = 4;

/// Who hears of a build while it runs.
pub trait Audience {
    /// May be kept back until the next flush.
    fn tell(&mut self, event: BuildEvent) -> Result<(), Fault>;

    /// Nothing has happened for a while.
    fn still_alive(&mut self) -> Result<(), Fault>;

    /// Something about a path that is being fetched from upstream.
    fn fetching(&mut self, _event: FetchEvent<'_>) -> Result<(), Fault> {
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fault>;
}

impl Client {
    /// Makes all of `wanted` valid; one result for each, in order.
    pub(super) fn build(
        &self,
        wanted: &[DerivedPath],
        mode: BuildMode,
        options: BuildOptions,
        audience: &mut impl Audience,
    ) -> Result<Vec<BuildResult>, Fault> {
        self.refuse_repair(mode)?;
        wanted.iter().for_each(|wanted| self.keep(wanted));
        if mode == BuildMode::Normal {
            self.substitute(wanted, audience)?;
        }
        // Other modes run builders for what is there, too.
        let runs_anyway =
            mode != BuildMode::Normal && wanted.iter().any(|one| matches!(one, DerivedPath::Built { .. }));
        if runs_anyway || !self.services.builds.missing(wanted)?.will_build.is_empty() {
            self.require(Role::Build, "build on this node")?;
        }
        let request = BuildRequest { wanted: wanted.to_vec(), mode, options };
        let mut results = Vec::new();
        for _ in 0..PLANS_MAX {
            let handle = self.services.builds.submit(request.clone())?;
            let feed = handle.feed();
            results = self.follow(handle, audience)?;
            // What was lost with a node is planned anew.
            if !feed.has_lacked() || results.iter().all(|result| result.status.is_success()) {
                break;
            }
        }
        self.keep_outputs(&results);
        self.acknowledge_outputs(&results)?;
        Ok(results)
    }

    /// Builds exactly the derivation that was sent.
    pub(super) fn build_derivation(
        &self,
        request: BuildDerivation,
        options: BuildOptions,
        audience: &mut impl Audience,
    ) -> Result<BuildResult, Fault> {
        let BuildDerivation { mut path, drv, mode } = request;
        self.refuse_repair(mode)?;
        self.require(Role::Build, "build on this node")?;
        if !self.is_trusted() {
            // An input-addressed path would hold whatever this derivation makes of it.
            let kind = drv.kind().map_err(|error| Fault::refused(format!("derivation '{}' {error}", drv.name)))?;
            if !matches!(kind, DerivationKind::Fixed | DerivationKind::Floating | DerivationKind::Impure) {
                return Err(Fault::refused("you are not privileged to build input-addressed derivations"));
            }
            path = own_path(self.dir(), &drv)?;
        }
        self.temp_roots.add(&path);
        for (name, output) in &drv.outputs {
            if let Ok(Some(path)) = output.path(self.dir(), &drv.name, name) {
                self.temp_roots.add(&path);
            }
        }
        if mode == BuildMode::Normal {
            self.substitute_around(&drv, audience)?;
        }
        let handle = self.services.builds.build_derivation(path, drv, mode, options);
        let mut results = self.follow(handle, audience)?;
        self.keep_outputs(&results);
        self.acknowledge_outputs(&results)?;
        let none = || BuildResult::new(BuildStatus::MiscFailure, "the build ended without a result");
        Ok(results.pop().unwrap_or_else(none))
    }

    /// What a build of `wanted` would take.
    pub(super) fn missing(&self, wanted: &[DerivedPath]) -> Result<Missing, Fault> {
        if self.substitutes() {
            return self.missing_with_upstreams(wanted);
        }
        let missing = self.services.builds.missing(wanted)?;
        Ok(Missing {
            will_build: missing.will_build,
            will_substitute: Default::default(),
            unknown: missing.unknown,
            download_size: 0,
            nar_size: 0,
        })
    }

    /// Output names and paths of a derivation in the store; paths that are not known before the build only if it has
    /// been built.
    pub(super) fn output_map(&self, drv: &StorePath) -> Result<BTreeMap<String, Option<StorePath>>, Fault> {
        self.path_info_here(drv)?;
        let derivation = self.services.admission.derivations().get(drv)?;
        Ok(self.services.builds.output_paths(&derivation)?)
    }

    /// Waits for the end and passes on what happens. Withdraws from the build when the client goes.
    fn follow(&self, mut handle: BuildHandle, audience: &mut impl Audience) -> Result<Vec<BuildResult>, Fault> {
        let _watch = self.hangup.watch(handle.waker());
        // Lines that come together travel together.
        let mut flush_at = Some(Instant::now() + LAG_MAX);
        loop {
            let wait = flush_at.map_or(SILENCE_MAX, |at| at.saturating_duration_since(Instant::now()));
            match handle.next(wait) {
                Progress::Event(event) => {
                    let lag = if event.is_text() { Duration::ZERO } else { LAG_MAX };
                    let at = Instant::now() + lag;
                    flush_at = Some(flush_at.map_or(at, |before| before.min(at)));
                    audience.tell(event)?;
                }
                Progress::Done(results) => {
                    audience.flush()?;
                    return Ok(results);
                }
                Progress::Idle if flush_at.take().is_some() => audience.flush()?,
                Progress::Idle => {
                    audience.still_alive()?;
                    audience.flush()?;
                }
                Progress::Woken if self.hangup.is_gone() => {
                    if self.hangup.is_lost() {
                        self.services.builds.keep_on(handle);
                    }
                    return Err(Fault::Gone);
                }
                Progress::Woken => {}
            }
        }
    }

    fn refuse_repair(&self, mode: BuildMode) -> Result<(), Fault> {
        if mode == BuildMode::Repair && !self.is_trusted() {
            return Err(Fault::fatal("repairing is not allowed because you are not in 'trusted-users'"));
        }
        Ok(())
    }

    /// Keeps what is wanted, and the outputs that it is known to lead to.
    fn keep(&self, wanted: &DerivedPath) {
        self.temp_roots.add(wanted.base_path());
        if let DerivedPath::Built { drv, .. } = wanted
            && let SingleDerivedPath::Opaque(drv) = &**drv
            && let Ok(derivation) = self.services.admission.derivations().get(drv)
        {
            let outputs = derivation.outputs.keys().filter_map(|name| derivation.output_path(self.dir(), name));
            outputs.for_each(|path| self.temp_roots.add(&path));
        }
    }

    fn keep_outputs(&self, results: &[BuildResult]) {
        let outputs = results.iter().flat_map(|result| result.built_outputs.values());
        outputs.for_each(|realisation| self.temp_roots.add(&realisation.out_path));
    }
}

/// Where a derivation without input derivations lies in the store.
fn own_path(dir: &StoreDir, drv: &BasicDerivation) -> Result<StorePath, Fault> {
    let BasicDerivation { name, outputs, input_srcs, system, builder, args, env } = drv.clone();
    let input_drvs = BTreeMap::new();
    let whole = Derivation { name, outputs, input_drvs, input_srcs, system, builder, args, env };
    let file_name = format!("{}{DRV_EXTENSION}", whole.name);
    dir.make_text_path(&file_name, &sha256(&aterm::print(dir, &whole)), &whole.input_srcs)
        .map_err(|error| Fault::refused(format!("derivation '{}': {error}", whole.name)))
}

/// Why a request of several failed, as one text, and the texts to be shown before it. `None` where all is well.
/// Source: `Store::buildPaths` in `libstore/build/entry-points.cc`.
pub fn failure(dir: &StoreDir, wanted: &[DerivedPath], results: &[BuildResult]) -> Option<(Vec<String>, String)> {
    let failed = wanted.iter().zip(results).filter(|(_, result)| !result.status.is_success());
    let (names, mut texts): (Vec<String>, Vec<String>) = failed
        .map(|(wanted, result)| (wanted.print(dir), String::from_utf8_lossy(&result.error_msg).into_owned()))
        .unzip();
    match names.len() {
        0 => None,
        1 => texts.pop().map(|text| (Vec::new(), text)),
        _ => {
            let names: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
            Some((texts, format!("build of {} failed", names.join(", "))))
        }
    }
}
