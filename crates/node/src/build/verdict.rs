//! What a check or a ballot came to: the same outputs, or which differ, on which nodes, and where.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::ops::Range;

use anyhow::Result;
use shoal_store::Export;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::BuiltOutput;
use shoal_wire::nix::hash::Hash;
use shoal_wire::nix::nar::compare::differences;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::ops::BuildMode;
use shoal_wire::nix::worker::{BuildResult, BuildStatus};

use super::execute::Ended;
use super::failure::{Failure, Texts};
use super::graph::Task;
use super::prepare::resolved;
use super::remote::bring;
use super::request::BuildOptions;
use super::service::{BuildService, Work};

/// Differences that are named before it is only said that there are more.
const NAMED_MAX: usize = 8;
/// Largest outputs of which is looked where they differ; who has larger ones compares what is kept.
const COMPARED_BYTES_MAX: u64 = 1 << 30;
const READ_BYTES: usize = 64 << 10;

/// One output as it came out somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// For people.
    pub who: String,
    /// Another node that has it, where one is known.
    pub at: Option<NodeKey>,
    pub path: StorePath,
    pub nar_hash: [u8; 32],
    pub nar_size: u64,
}

/// All outputs of one run, by name.
pub(super) type Versions = BTreeMap<String, Version>;

impl Version {
    pub fn of(who: &str, at: Option<NodeKey>, output: &BuiltOutput) -> Version {
        let BuiltOutput { path, nar_size, nar_hash } = output;
        Version { who: who.to_owned(), at, path: path.clone(), nar_hash: *nar_hash, nar_size: *nar_size }
    }
}

impl BuildService {
    /// The outputs of a derivation that are valid, here or at other nodes.
    pub(super) fn registered(&self, task: &Task) -> Result<Versions> {
        let mut found = Versions::new();
        for (output, path) in self.paths_of(&task.what)?.unwrap_or_default() {
            let Some(path) = path else { continue };
            let held = || {
                let grid = self.grid()?;
                let held = grid.neighbours.find(&[path.hash_part()]).pop().flatten()?;
                Some((held.record.info().clone(), held.holders.first().copied()))
            };
            let known = self.store.path_info(&path)?.map(|info| (info, None));
            if let Some((info, at)) = known.or_else(held) {
                let (nar_hash, nar_size) = (info.nar_hash, info.nar_size);
                found.insert(output, Version { who: "what is valid".into(), at, path, nar_hash, nar_size });
            }
        }
        Ok(found)
    }

    /// What comes of a check that this node ran by itself.
    pub(super) fn judge_here(&self, work: &Work, ended: Ended) -> Ended {
        if work.task.mode != BuildMode::Check || !ended.is_success() {
            return ended;
        }
        let mut built = Versions::new();
        for (output, realisation) in &ended.result.built_outputs {
            let Ok(Some(info)) = self.store.path_info(&realisation.out_path) else { continue };
            let (path, nar_hash, nar_size) = (info.path, info.nar_hash, info.nar_size);
            built.insert(output.clone(), Version { who: "this node".into(), at: None, path, nar_hash, nar_size });
        }
        let judged = self.judge(work, &[built]);
        Ended { result: of_run(&ended.result, judged.unwrap_or_else(failed)), ..ended }
    }

    /// Compares what a check built, once or on several nodes, with what is valid.
    pub(super) fn judge(&self, work: &Work, built: &[Versions]) -> Result<BuildResult, Failure> {
        let infrastructure = |error: anyhow::Error| Failure::infrastructure(&error);
        let registered = self.registered(&work.task).map_err(infrastructure)?;
        if registered.is_empty() {
            let drv = self.dir.print(&work.task.drv_path);
            let text = format!("some outputs of '{drv}' are not valid, so checking is not possible");
            return Err(Failure::new(BuildStatus::MiscFailure, text));
        }
        let runs: Vec<Versions> = std::iter::once(registered.clone()).chain(built.iter().cloned()).collect();
        if let Some(failure) = self.differing(work, &runs) {
            return Err(failure);
        }
        let mut result = BuildResult::new(BuildStatus::Built, "");
        let paths = registered.into_iter().map(|(output, version)| (output, version.path)).collect();
        let resolved = resolved(self, &work.task).map_err(infrastructure)?;
        result.built_outputs = self.record_resolved(&resolved, &paths).map_err(infrastructure)?;
        Ok(result)
    }

    /// The failure of runs that did not come to the same, if they did not.
    pub(super) fn differing(&self, work: &Work, runs: &[Versions]) -> Option<Failure> {
        let (first, rest) = runs.split_first()?;
        let differs = |(output, version): &(&String, &Version)| {
            let others = rest.iter().filter_map(|run| run.get(*output));
            others.clone().any(|other| other.nar_hash != version.nar_hash)
        };
        let (output, version) = first.iter().find(differs)?;
        let versions: Vec<&Version> = runs.iter().filter_map(|run| run.get(output)).collect();
        let other = versions.iter().find(|other| other.nar_hash != version.nar_hash)?;
        let own = self.paths_of(&work.task.what).ok().flatten();
        let own = own.and_then(|mut paths| paths.remove(output)?).unwrap_or_else(|| version.path.clone());
        let kept = self.keeps_failed(&work.options).then_some(&other.path);
        let texts = Texts { dir: &self.dir, drv_path: &work.task.drv_path };
        let mut failure = texts.not_deterministic(&own, kept);
        for version in &versions {
            let hash = Hash::sha256(version.nar_hash).to_sri();
            failure.message += &format!("\n  {}: {hash}, '{}'", version.who, self.dir.print(&version.path));
        }
        let pair = [version, *other];
        match self.places(work, pair) {
            Ok((lines, is_cut)) => {
                failure.message += "\nThey differ in:";
                lines.iter().for_each(|line| failure.message += &format!("\n  {line}"));
                if is_cut {
                    failure.message += "\n  and more";
                }
            }
            Err(error) => failure.message += &format!("\nWhere they differ cannot be said: {error:#}"),
        }
        Some(failure)
    }

    fn keeps_failed(&self, options: &BuildOptions) -> bool {
        options.keep_failed.unwrap_or(self.config.defaults.keep_failed)
    }

    /// In which files two versions differ, one line each, and whether there are more.
    fn places(&self, work: &Work, pair: [&Version; 2]) -> Result<(Vec<String>, bool)> {
        if let Some(large) = pair.iter().map(|version| version.nar_size).find(|size| *size > COMPARED_BYTES_MAX) {
            anyhow::bail!("{} MiB are too many to be compared here", large >> 20);
        }
        let roots = self.store.temp_roots();
        let paths: BTreeSet<StorePath> = pair.iter().map(|version| version.path.clone()).collect();
        if let Some(grid) = self.grid() {
            let near: Vec<NodeKey> = pair.iter().filter_map(|version| version.at).collect();
            bring::bring(self, grid, &paths, &near, &roots, || work.kill.is_killed())?;
        }
        let export = |version: &Version| {
            let nar = self.store.export(&version.path)?;
            nar.ok_or_else(|| anyhow::anyhow!("'{}' is not here", self.dir.print(&version.path)))
        };
        let (mut first, mut second) = (export(pair[0])?, export(pair[1])?);
        let (one, other) = (first.manifest().clone(), second.manifest().clone());
        let differ_at = |at: Range<u64>, other_at: Range<u64>| {
            first.seek(at.start, at.end - at.start);
            second.seek(other_at.start, other_at.end - other_at.start);
            differ_at(&mut first, &mut second)
        };
        let (found, is_cut) = differences(&one.index, &other.index, NAMED_MAX, differ_at)?;
        let [first, second] = pair.map(|version| version.who.as_str());
        Ok((found.iter().map(|difference| difference.describe(first, second)).collect(), is_cut))
    }
}

/// What clients are told of a failure.
pub(super) fn failed(failure: Failure) -> BuildResult {
    let mut result = BuildResult::new(failure.status, failure.message);
    result.is_non_deterministic = failure.status == BuildStatus::NotDeterministic;
    result
}

/// A judgement with what is known of the run that it is about.
pub(super) fn of_run(run: &BuildResult, judged: BuildResult) -> BuildResult {
    BuildResult {
        times_built: run.times_built,
        start_time: run.start_time,
        stop_time: run.stop_time,
        cpu_user: run.cpu_user,
        cpu_system: run.cpu_system,
        ..judged
    }
}

/// The first byte in which two readers differ.
fn differ_at(first: &mut Export, second: &mut Export) -> io::Result<Option<u64>> {
    let (mut one, mut other) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    let mut at = 0;
    loop {
        let (got, other_got) = (fill(first, &mut one)?, fill(second, &mut other)?);
        let same = one[..got].iter().zip(&other[..other_got]).take_while(|(one, other)| one == other).count();
        if same < got || same < other_got {
            return Ok(Some(at + same as u64));
        }
        if got == 0 {
            return Ok(None);
        }
        at += got as u64;
    }
}

/// As much as there is, or fits.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..])? {
            0 => break,
            got => filled += got,
        }
    }
    Ok(filled)
}
