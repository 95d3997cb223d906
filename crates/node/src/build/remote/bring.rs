//! Inputs of a build that are at other nodes, brought to where it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use shoal_store::TempRoots;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::path_record::path_key;
use shoal_wire::nix::store_path::StorePath;

use super::Grid;
use crate::build::service::BuildService;
use crate::upstream::{BUILD_BUDGET, Closure};

/// How often it is looked whether a build whose inputs are fetched is still wanted.
const LOOK: Duration = Duration::from_millis(200);
/// Paths named in a message before the rest is only counted.
const NAMED_MAX: usize = 3;

/// Makes `paths` valid here with all they refer to, asking the nodes in `near` first: what was built a moment ago is not
/// known to its owners yet. An error is for people; where nobody waits any more it says nothing.
pub fn bring(
    service: &BuildService,
    grid: &Grid,
    paths: &BTreeSet<StorePath>,
    near: &[NodeKey],
    roots: &TempRoots,
    is_over: impl Fn() -> bool,
) -> Result<()> {
    paths.iter().for_each(|path| roots.add(path));
    let missing = missing(service, paths)?;
    if missing.is_empty() {
        return Ok(());
    }
    let closure = find(grid, &missing, near)?;
    closure.offers.keys().for_each(|path| roots.add(path));
    if let Some(fetch) = grid.upstreams.begin(&closure) {
        while !fetch.wait(LOOK) {
            if is_over() {
                return Ok(());
            }
        }
    }
    let missing = self::missing(service, paths)?;
    let named: Vec<String> = missing.iter().take(NAMED_MAX).map(|path| service.store_dir().print(path)).collect();
    anyhow::ensure!(
        missing.is_empty(),
        "{} inputs cannot be fetched from the nodes of the mesh, among them {}",
        missing.len(),
        named.join(", ")
    );
    Ok(())
}

fn missing(service: &BuildService, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
    let valid: BTreeSet<StorePath> = service.store.valid_of(paths)?.into_iter().collect();
    Ok(paths.difference(&valid).cloned().collect())
}

fn find(grid: &Grid, missing: &BTreeSet<StorePath>, near: &[NodeKey]) -> Result<Closure> {
    let mut closure = Closure::default();
    let mut rest = missing.clone();
    for node in near.iter().filter(|node| **node != grid.me() && !grid.neighbours.is_quiet(node)) {
        if rest.is_empty() {
            break;
        }
        let keys = rest.iter().filter_map(|path| path_key(path.hash_part()));
        closure.take(&grid.upstreams.closure_at(*node, keys)?, &rest);
        rest.retain(|path| !closure.contains(path));
    }
    if !rest.is_empty() {
        closure.take(&grid.upstreams.closure(&rest, BUILD_BUDGET)?, &rest);
    }
    Ok(closure)
}
