//! What is offered of a job, and what comes back of it, in the terms of this node.

use std::collections::BTreeMap;

use shoal_grid::schedule::End;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{DERIVATION_LEN_MAX, NEAR_MAX, Offer, Outcome};
use shoal_wire::nix::aterm;
use shoal_wire::nix::derivation::{BasicDerivation, DerivationKind};
use shoal_wire::nix::realisation::DrvOutput;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::ops::BuildMode;
use shoal_wire::nix::worker::{BuildResult, BuildStatus};

use super::proof::{Offence, Proof, Teller};
use super::{Grid, translate};
use crate::build::execute::Ended;
use crate::build::failure::Failure;
use crate::build::graph::Task;
use crate::build::memory::Used;
use crate::build::prepare::Resolved;
use crate::build::request::BuildOptions;
use crate::build::service::{BuildService, HERE};

/// Why one whose text is longer than [`DERIVATION_LEN_MAX`] is built where it is.
pub(super) const TOO_LONG: &str = "the derivation is too long to be sent to another node";

/// Where outputs of a job are found that was not built.
pub(super) struct Elsewhere {
    pub outputs: BTreeMap<String, StorePath>,
    /// `None`: here.
    pub at: Option<NodeKey>,
    pub bytes: u64,
}

impl BuildService {
    /// `None` where the derivation is too long to be sent to `at`; nothing is sent to this node itself.
    pub(super) fn offer(
        &self,
        grid: &Grid,
        task: &Task,
        resolved: &Resolved,
        options: &BuildOptions,
        at: NodeKey,
    ) -> anyhow::Result<Option<Offer>> {
        let derivation = aterm::print(&self.dir, &resolved.derivation.clone().into_derivation());
        if at != HERE && derivation.len() > DERIVATION_LEN_MAX {
            return Ok(None);
        }
        Ok(Some(Offer {
            drv_path: task.drv_path.clone(),
            name: resolved.derivation.name.clone(),
            derivation,
            mode: translate::mode(task.mode),
            settings: translate::settings(options),
            near: self.near(grid, resolved)?,
            // What a check came to is needed by nobody but who compares it.
            keep: task.mode != BuildMode::Check,
            memory_mib: self.lock().schedule.memory_of(&task.drv_path),
            agreed: task.agreed.clone(),
        }))
    }

    /// Nodes that have inputs, those with the most first.
    pub(super) fn near(&self, grid: &Grid, resolved: &Resolved) -> anyhow::Result<Vec<NodeKey>> {
        let inputs = &resolved.derivation.input_srcs;
        let valid = self.store.valid_of(inputs)?.len();
        let mut counts: BTreeMap<NodeKey, usize> = BTreeMap::new();
        for node in inputs.iter().filter_map(|path| self.whereabouts(path)) {
            *counts.entry(node).or_default() += 1;
        }
        if valid > 0 {
            *counts.entry(grid.me()).or_default() += valid;
        }
        let mut nodes: Vec<(NodeKey, usize)> = counts.into_iter().collect();
        nodes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Ok(nodes.into_iter().take(NEAR_MAX).map(|(node, _)| node).collect())
    }

    /// The outputs of a job if all of them are known and valid, here or at other nodes.
    pub(super) fn found(&self, grid: &Grid, task: &Task, resolved: &Resolved) -> anyhow::Result<Option<Elsewhere>> {
        let known = match self.known_paths(task)? {
            None if task.mode == BuildMode::Normal => self.known_by_inputs(grid, &resolved.derivation)?,
            known => known,
        };
        let Some(outputs) = known else { return Ok(None) };
        let mut found = Elsewhere { outputs, at: None, bytes: 0 };
        let mut elsewhere = Vec::new();
        for path in found.outputs.values() {
            match self.store.path_info(path)? {
                Some(info) => found.bytes += info.nar_size,
                None => elsewhere.push(path.hash_part()),
            }
        }
        if elsewhere.is_empty() {
            return Ok(Some(found));
        }
        let is_good = |node: &NodeKey, path: &StorePath| {
            !grid.neighbours.is_quiet(node) && !grid.neighbours.is_disbelieved(node, path)
        };
        for held in grid.neighbours.find(&elsewhere) {
            // What only a node has that may be dead is built again rather than waited for.
            let holder =
                held.as_ref().and_then(|held| held.holders.iter().find(|node| is_good(node, &held.record.path)));
            let (Some(held), Some(holder)) = (&held, holder) else { return Ok(None) };
            found.bytes += held.record.info().nar_size;
            found.at = Some(*holder);
        }
        Ok(Some(found))
    }

    /// What a derivation came out as that was another before its inputs were put in, or at another node: inputs that are
    /// built anew and come out as before need not have what needs them built.
    fn known_by_inputs(
        &self,
        grid: &Grid,
        derivation: &BasicDerivation,
    ) -> anyhow::Result<Option<BTreeMap<String, StorePath>>> {
        if derivation.kind()? == DerivationKind::Impure {
            return Ok(None);
        }
        let hashes = self.derivations.output_hashes_of_basic(derivation)?;
        let mut known = BTreeMap::new();
        for output in derivation.outputs.keys() {
            let path = match derivation.output_path(&self.dir, output) {
                Some(path) => Some(path),
                None => match self.realised(&hashes, output)? {
                    Some(path) => Some(path),
                    None => hashes.get(output).and_then(|drv_hash| {
                        let id = DrvOutput { drv_hash: *drv_hash, output: output.clone() };
                        grid.neighbours.realisation(&id).map(|realisation| realisation.out_path)
                    }),
                },
            };
            let Some(path) = path else { return Ok(None) };
            known.insert(output.clone(), path);
        }
        Ok(Some(known))
    }

    /// What is told of outputs that were found.
    pub(super) fn found_result(&self, resolved: &Resolved, found: &Elsewhere) -> anyhow::Result<Ended> {
        let mut result = BuildResult::new(BuildStatus::AlreadyValid, "");
        result.built_outputs = self.record_resolved(resolved, &found.outputs)?;
        Ok(Ended::without_builder(self, result))
    }

    /// What an outcome means here. `from` is the node that said so. Asks others where the outputs are not here.
    pub(super) fn conclude(
        &self,
        resolved: &Resolved,
        outcome: &Outcome,
        from: NodeKey,
        teller: Teller,
        announced: bool,
    ) -> Result<(Ended, End), Offence> {
        let Some(mut result) = translate::result(outcome) else {
            return Err(Offence::CannotBe(format!("it ends a build with status {}", outcome.status)));
        };
        let mut end = match result.status {
            BuildStatus::TransientFailure if outcome.out_of_memory => End::OutOfMemory { used_mib: outcome.memory_mib },
            BuildStatus::TransientFailure => End::Lost,
            status if status.is_success() => {
                let bytes = outcome.outputs.values().map(|output| output.nar_size);
                End::Success { output_bytes: bytes.fold(0, u64::saturating_add) }
            }
            _ => End::Failed,
        };
        if result.status.is_success() {
            let paths: BTreeMap<String, StorePath> =
                outcome.outputs.iter().map(|(name, output)| (name.clone(), output.path.clone())).collect();
            let derivation = &resolved.derivation;
            let is_right = derivation.outputs.keys().eq(paths.keys())
                && paths
                    .iter()
                    .all(|(name, path)| derivation.output_path(&self.dir, name).is_none_or(|known| known == *path));
            if !is_right {
                return Err(Offence::CannotBe("it built other outputs than those of the derivation".into()));
            }
            let proof = self.grid().map_or(Ok(Proof::There), |grid| self.prove(grid, outcome, from, teller))?;
            let recorded = match proof {
                Proof::There => self.record_resolved(resolved, &paths).map_err(|error| Failure::infrastructure(&error)),
                Proof::Nowhere(why) => Err(Failure::new(BuildStatus::TransientFailure, why)),
            };
            match recorded {
                Ok(built) => {
                    self.learn_whereabouts(paths.values(), outcome.at.unwrap_or(from));
                    result.built_outputs = built;
                }
                Err(failure) => (result, end) = (BuildResult::new(failure.status, failure.message), End::Lost),
            }
        }
        let mut ended = Ended::without_builder(self, result);
        ended.announced = announced;
        ended.used = Used { peak_mib: outcome.memory_mib, ran_out: outcome.out_of_memory };
        ended.cancelled = end == End::Lost;
        Ok((ended, end))
    }
}

#[cfg(test)]
#[path = "offer_tests.rs"]
mod tests;
