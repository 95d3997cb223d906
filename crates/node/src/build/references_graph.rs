//! `exportReferencesGraph`: the closures a build is told about.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

use super::closure::closure;
use super::prepare::Prepared;
use super::service::BuildService;

/// One closure, with what is known of each path in it.
pub(super) type ReferencesGraph = BTreeMap<StorePath, PathInfo>;

/// The closures that the derivation asks for, by file name or attribute.
pub(super) fn graphs(service: &BuildService, prepared: &Prepared) -> Result<BTreeMap<String, ReferencesGraph>> {
    let wanted = &prepared.options.export_references_graph;
    wanted.iter().map(|(name, roots)| Ok((name.clone(), graph(service, prepared, roots)?))).collect()
}

fn graph(service: &BuildService, prepared: &Prepared, roots: &BTreeSet<StorePath>) -> Result<ReferencesGraph> {
    for root in roots {
        let path = service.dir.print(root);
        anyhow::ensure!(
            prepared.inputs.contains(root),
            "cannot export references of path '{path}' because it is not in the input closure of the derivation"
        );
    }
    let mut paths = closure(&service.store, roots)?;
    // The closure of a derivation includes what it builds, as far as that is here.
    for drv_path in paths.clone().iter().filter(|path| path.is_derivation()) {
        let outputs = service.output_paths(&*service.derivations.get(drv_path)?)?;
        for output in outputs.into_values().flatten() {
            if service.store.is_valid(&output)? {
                paths.extend(closure(&service.store, [&output])?);
            }
        }
    }
    let info = |path: StorePath| Ok((path.clone(), service.store.path_info(&path)?.context("a path vanished")?));
    paths.into_iter().map(info).collect()
}
