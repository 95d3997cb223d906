//! What upstream caches spare a request: outputs that need not be built, and what those refer to.
//!
//! As in Nix, the walk goes from the wanted derivations down: where an upstream has all outputs that are wanted of one,
//! nothing below it is looked at. One round of questions a level, so that a deep graph costs its depth in round trips.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Result;
use shoal_wire::nix::derivation::Derivation;
use shoal_wire::nix::derived_path::{DerivedPath, OutputsSpec, SingleDerivedPath};
use shoal_wire::nix::options::DerivationOptions;
use shoal_wire::nix::realisation::{DrvOutput, Realisation};
use shoal_wire::nix::store_path::StorePath;

use super::graph::GRAPH_NODES_MAX;
use super::service::BuildService;
use crate::upstream::{BUILD_BUDGET, Closure, Upstreams};

/// What a request comes to with the help of upstreams.
#[derive(Debug, Default)]
pub struct Obtainable {
    /// To be fetched.
    pub closure: Closure,
    /// Where outputs come out whose derivations do not say so; true once the path is valid.
    pub realisations: Vec<Realisation>,
    /// Derivations that have to be built all the same.
    pub will_build: BTreeSet<StorePath>,
    /// Neither here nor upstream.
    pub unknown: BTreeSet<StorePath>,
}

/// A derivation of the level, with what is wanted of it.
struct Open {
    drv_path: StorePath,
    derivation: Arc<Derivation>,
    /// Where the outputs that are not valid come out. `None`: that is not known, or they may not be fetched.
    missing: Option<BTreeSet<StorePath>>,
}

struct Walk<'a> {
    service: &'a BuildService,
    upstreams: &'a Upstreams,
    found: Obtainable,
    /// Outputs that were looked at, by derivation.
    seen: BTreeMap<StorePath, BTreeSet<String>>,
}

impl BuildService {
    /// Reads derivations that are here and asks upstreams; changes nothing.
    pub fn obtainable(&self, upstreams: &Upstreams, wanted: &[DerivedPath]) -> Result<Obtainable> {
        let mut walk = Walk { service: self, upstreams, found: Obtainable::default(), seen: BTreeMap::new() };
        let mut level = walk.wanted(wanted)?;
        while !level.is_empty() {
            anyhow::ensure!(
                walk.seen.len() < GRAPH_NODES_MAX,
                "more than {GRAPH_NODES_MAX} derivations in one request"
            );
            level = walk.descend(level)?;
        }
        Ok(walk.found)
    }
}

impl Walk<'_> {
    fn wanted(&mut self, wanted: &[DerivedPath]) -> Result<Vec<(StorePath, BTreeSet<String>)>> {
        let (mut opaque, mut level) = (BTreeSet::new(), Vec::new());
        for wanted in wanted {
            match wanted {
                DerivedPath::Opaque(path) => drop(opaque.insert(path.clone())),
                DerivedPath::Built { drv, outputs } => {
                    let SingleDerivedPath::Opaque(drv_path) = &**drv else { continue };
                    let Ok(derivation) = self.service.derivations.get(drv_path) else {
                        self.found.unknown.insert(drv_path.clone());
                        continue;
                    };
                    let names = match outputs {
                        OutputsSpec::All => derivation.outputs.keys().cloned().collect(),
                        OutputsSpec::Names(names) => names.iter().cloned().collect(),
                    };
                    level.push((drv_path.clone(), names));
                }
            }
        }
        let valid: BTreeSet<StorePath> = self.service.store.valid_of(&opaque)?.into_iter().collect();
        opaque.retain(|path| !valid.contains(path));
        let closure = self.upstreams.closure(&opaque, BUILD_BUDGET)?;
        self.found.unknown.extend(opaque.into_iter().filter(|path| !closure.contains(path)));
        self.found.closure.offers.extend(closure.offers);
        Ok(level)
    }

    /// Settles one level and returns the next: the inputs of what has to be built.
    fn descend(&mut self, level: Vec<(StorePath, BTreeSet<String>)>) -> Result<Vec<(StorePath, BTreeSet<String>)>> {
        let mut open = Vec::new();
        for (drv_path, outputs) in level {
            let seen = self.seen.entry(drv_path.clone()).or_default();
            let new: BTreeSet<String> = outputs.difference(seen).cloned().collect();
            if new.is_empty() {
                continue;
            }
            seen.extend(new.iter().cloned());
            open.extend(self.open(drv_path, &new)?);
        }
        let roots: BTreeSet<StorePath> = open.iter().filter_map(|open| open.missing.clone()).flatten().collect();
        let closure = self.upstreams.closure(&roots, BUILD_BUDGET)?;
        let mut next = Vec::new();
        for Open { drv_path, derivation, missing } in open {
            match missing {
                Some(missing) if missing.iter().all(|path| closure.contains(path)) => {
                    // Only what is of use: another derivation of the level may have half of its outputs upstream.
                    self.found.closure.take(&closure, &missing);
                }
                _ => {
                    self.found.will_build.insert(drv_path);
                    let inputs = derivation.input_drvs.iter();
                    next.extend(
                        inputs.map(|(input, wanted)| (input.clone(), wanted.outputs.iter().cloned().collect())),
                    );
                }
            }
        }
        Ok(next)
    }

    /// `None` where all of these outputs are valid.
    fn open(&mut self, drv_path: StorePath, outputs: &BTreeSet<String>) -> Result<Option<Open>> {
        let derivation = self.service.derivations.get(&drv_path)?;
        let paths = self.service.output_paths(&derivation)?;
        let mut missing = Some(BTreeSet::new());
        for output in outputs {
            let known = match paths.get(output).cloned().flatten() {
                Some(path) => Some(path),
                None => self.realised(&derivation, output)?,
            };
            match known {
                Some(path) if self.service.store.is_valid(&path)? => {}
                Some(path) => drop(missing.as_mut().map(|missing| missing.insert(path))),
                None => missing = None,
            }
        }
        if missing.as_ref().is_some_and(BTreeSet::is_empty) {
            return Ok(None);
        }
        let allowed =
            DerivationOptions::of(&self.service.dir, &derivation).is_ok_and(|options| options.allow_substitutes);
        Ok(Some(Open { drv_path, derivation, missing: missing.filter(|_| allowed) }))
    }

    fn realised(&mut self, derivation: &Derivation, output: &str) -> Result<Option<StorePath>> {
        let hashes = self.service.derivations.output_hashes(derivation)?;
        let Some(drv_hash) = hashes.get(output) else { return Ok(None) };
        let id = DrvOutput { drv_hash: *drv_hash, output: output.to_string() };
        let Some(realisation) = self.upstreams.realisation(&id, BUILD_BUDGET) else { return Ok(None) };
        let path = realisation.out_path.clone();
        self.found.realisations.push(Arc::unwrap_or_clone(realisation));
        Ok(Some(path))
    }
}
