//! Which store path an output came out as.
//!
//! Input-addressed and fixed outputs say so themselves; for the rest there are realisations.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use shoal_wire::nix::derivation::{BasicDerivation, Derivation, DerivationKind};
use shoal_wire::nix::derived_path::SingleDerivedPath;
use shoal_wire::nix::placeholder::{self, Rewrites};
use shoal_wire::nix::realisation::{DrvOutput, Realisation};
use shoal_wire::nix::resolve::{self, must_resolve};
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::ops::BuildMode;

use super::derivations::OutputHashes;
use super::graph::{OutputPaths, Task, What};
use super::prepare::{Prepared, Resolved};
use super::service::BuildService;

/// As results carry it.
pub(super) type BuiltOutputs = BTreeMap<String, Realisation>;

impl BuildService {
    /// The path of each output, as far as it is known now. It need not be valid.
    pub fn output_paths(&self, derivation: &Derivation) -> Result<OutputPaths> {
        let known = |output: &String| derivation.output_path(&self.dir, output);
        if derivation.kind()?.has_known_paths() {
            return Ok(derivation.outputs.keys().map(|output| (output.clone(), known(output))).collect());
        }
        let hashes = self.derivations.output_hashes(derivation)?;
        derivation.outputs.keys().map(|output| Ok((output.clone(), self.realised(&hashes, output)?))).collect()
    }

    pub(super) fn realised(&self, hashes: &OutputHashes, output: &str) -> Result<Option<StorePath>> {
        let Some(drv_hash) = hashes.get(output) else { return Ok(None) };
        let id = DrvOutput { drv_hash: *drv_hash, output: output.to_string() };
        Ok(self.store.realisation(&id)?.map(|realisation| realisation.out_path))
    }

    /// The outputs of a job, if all of them are known before it is built.
    pub(super) fn known_paths(&self, task: &Task) -> Result<Option<BTreeMap<String, StorePath>>> {
        if task.mode != BuildMode::Normal {
            return Ok(None);
        }
        let Some(paths) = self.paths_of(&task.what)? else { return Ok(None) };
        Ok(paths.into_iter().map(|(output, path)| Some((output, path?))).collect())
    }

    /// The path of each output, as far as it is known now; `None` where each build makes others.
    pub(super) fn paths_of(&self, what: &What) -> Result<Option<OutputPaths>> {
        Ok(Some(match what {
            What::Stored(derivation) if derivation.kind()? == DerivationKind::Impure => return Ok(None),
            What::Given(derivation) if derivation.kind()? == DerivationKind::Impure => return Ok(None),
            What::Adopted(_) => return Ok(None),
            What::Stored(derivation) => self.output_paths(derivation)?,
            What::Given(derivation) => {
                let hashes = self.derivations.output_hashes_of_basic(derivation)?;
                let path = |output: &String| match derivation.output_path(&self.dir, output) {
                    Some(path) => Ok(Some(path)),
                    None => self.realised(&hashes, output),
                };
                let paths = derivation.outputs.keys().map(|output| Ok((output.clone(), path(output)?)));
                paths.collect::<Result<OutputPaths>>()?
            }
        }))
    }

    /// What a result says of outputs that are all valid.
    pub(super) fn built_outputs(&self, derivation: &Derivation) -> Result<BuiltOutputs> {
        let hashes = self.derivations.output_hashes(derivation)?;
        let paths = self.output_paths(derivation)?;
        Ok(paths.into_iter().filter_map(|(output, path)| entry(&hashes, output, path?)).collect())
    }

    /// The derivation with its input derivations replaced by what they came out as.
    pub(super) fn resolve(&self, derivation: &Derivation) -> Result<BasicDerivation> {
        let mut paths: BTreeMap<&StorePath, OutputPaths> = BTreeMap::new();
        for input in derivation.input_drvs.keys() {
            paths.insert(input, self.output_paths(&*self.derivations.get(input)?)?);
        }
        let mut lookup = |input: &SingleDerivedPath| match input {
            SingleDerivedPath::Built { drv, output } => match &**drv {
                SingleDerivedPath::Opaque(drv_path) => paths.get(drv_path)?.get(output)?.clone(),
                SingleDerivedPath::Built { .. } => None,
            },
            SingleDerivedPath::Opaque(path) => Some(path.clone()),
        };
        if must_resolve(derivation)? {
            return Ok(resolve::resolve(&self.dir, derivation, &mut lookup)?);
        }
        // Output paths are fixed already: inputs are put in, and nothing is computed again.
        let mut basic = derivation.to_basic();
        let mut rewrites = Rewrites::default();
        for input in resolve::derived_inputs(derivation) {
            let path = lookup(&input).with_context(|| format!("an input of '{}' is not built", derivation.name))?;
            if let Some(placeholder) = placeholder::derived(&input) {
                rewrites.insert(&placeholder, &self.dir.print(&path));
            }
            basic.input_srcs.insert(path);
        }
        resolve::rewrite(&mut basic, &rewrites);
        Ok(basic)
    }

    /// The outputs of a prepared derivation, if all are known and valid.
    pub(super) fn valid_outputs(&self, prepared: &Prepared) -> Result<Option<BTreeMap<String, StorePath>>> {
        let hashes = match prepared.is_floating() {
            true if prepared.kind == DerivationKind::Impure => return Ok(None),
            true => self.derivations.output_hashes_of_basic(&prepared.derivation)?,
            false => OutputHashes::new(),
        };
        let mut valid = BTreeMap::new();
        for (output, scratch_path) in &prepared.scratch_outputs {
            let path = match prepared.is_floating() {
                true => self.realised(&hashes, output)?,
                false => Some(scratch_path.clone()),
            };
            match path {
                Some(path) if self.store.is_valid(&path)? => valid.insert(output.clone(), path),
                _ => return Ok(None),
            };
        }
        Ok(Some(valid))
    }

    /// Records where outputs came out whose derivation does not say so, and makes what a result tells of them.
    pub(super) fn record_outputs(
        &self,
        prepared: &Prepared,
        paths: &BTreeMap<String, StorePath>,
    ) -> Result<BuiltOutputs> {
        // What a check came to is no output.
        let needs_realisations = prepared.needs_realisations && prepared.mode != BuildMode::Check;
        self.record_paths(&prepared.output_hashes, &prepared.derivation, needs_realisations, paths)
    }

    /// The same of what another node built.
    pub(super) fn record_resolved(
        &self,
        resolved: &Resolved,
        paths: &BTreeMap<String, StorePath>,
    ) -> Result<BuiltOutputs> {
        self.record_paths(&resolved.output_hashes, &resolved.derivation, resolved.needs_realisations, paths)
    }

    fn record_paths(
        &self,
        output_hashes: &OutputHashes,
        derivation: &BasicDerivation,
        needs_realisations: bool,
        paths: &BTreeMap<String, StorePath>,
    ) -> Result<BuiltOutputs> {
        let entries = |hashes: &OutputHashes| -> BuiltOutputs {
            paths.iter().filter_map(|(output, path)| entry(hashes, output.clone(), path.clone())).collect()
        };
        let mut told = entries(output_hashes);
        if needs_realisations {
            let resolved = entries(&self.derivations.output_hashes_of_basic(derivation)?);
            for realisation in told.values_mut() {
                self.config.signing_keys.iter().for_each(|key| realisation.sign(key));
            }
            for realisation in resolved.into_values().chain(told.values().cloned()) {
                self.store.add_realisation(&realisation)?;
            }
        }
        Ok(told)
    }
}

fn entry(hashes: &OutputHashes, output: String, path: StorePath) -> Option<(String, Realisation)> {
    let id = DrvOutput { drv_hash: *hashes.get(&output)?, output: output.clone() };
    Some((output, Realisation::new(id, path)))
}
