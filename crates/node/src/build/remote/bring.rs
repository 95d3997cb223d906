//! Inputs of a build that are at other nodes, brought to where it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use shoal_store::TempRoots;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::path_record::path_key;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::BuildStatus;

use super::Grid;
use crate::build::execute::Ended;
use crate::build::graph::What;
use crate::build::prepare::resolved;
use crate::build::service::{BuildService, Work};
use crate::upstream::{BUILD_BUDGET, Closure, Fetch, Upstreams};

/// How often it is looked whether a build whose inputs are fetched is still wanted.
const LOOK: Duration = Duration::from_millis(200);
/// Paths named in a message before the rest is only counted.
const NAMED_MAX: usize = 3;

/// Inputs on their way to a build that runs already, or is about to. What is not fetched when it is dropped is given up.
pub struct Coming {
    closure: Closure,
    upstreams: Upstreams,
    _fetch: Option<Fetch>,
}

/// With what a build of this node's own begins.
#[derive(Default)]
pub struct Brought {
    /// Inputs that are not valid yet.
    pub coming: Option<Coming>,
    /// Keeps them until the build keeps them itself.
    pub _roots: Option<TempRoots>,
}

impl Brought {
    /// Whether a build that began before its inputs were here failed because they never came: no try does better before
    /// they are built again.
    pub(in crate::build) fn are_lost(&self, service: &BuildService, work: &Work, ended: &Ended) -> bool {
        if self.coming.is_none() || ended.cancelled || ended.result.status != BuildStatus::TransientFailure {
            return false;
        }
        let inputs = resolved(service, &work.task).map(|resolved| resolved.derivation.input_srcs);
        let is_lacking = |inputs| missing(service, &inputs).is_ok_and(|missing| !missing.is_empty());
        matches!(work.task.what, What::Stored(_)) && inputs.is_ok_and(is_lacking)
    }
}

impl Coming {
    /// What is known of a path that is on its way, or has come.
    pub fn info(&self, path: &StorePath) -> Option<&PathInfo> {
        self.closure.offers.get(path).map(|offer| &offer.info)
    }

    /// Waits until those of `paths` that are on their way are valid here, with all they refer to.
    pub fn wait_for(
        &self,
        service: &BuildService,
        paths: &BTreeSet<StorePath>,
        is_over: impl Fn() -> bool,
    ) -> Result<()> {
        let paths = paths.iter().filter(|path| self.closure.contains(path)).cloned().collect();
        let missing = missing(service, &paths)?;
        let mut closure = Closure::default();
        closure.take(&self.closure, &missing);
        fetch(service, &self.upstreams, &closure, &missing, is_over)
    }
}

/// Looks where `paths` are that are not valid here, with all they refer to, asking the nodes in `near` first: what was
/// built a moment ago is not known to its owners yet.
pub fn seek(
    service: &BuildService,
    grid: &Grid,
    paths: &BTreeSet<StorePath>,
    near: &[NodeKey],
    roots: &TempRoots,
) -> Result<Closure> {
    paths.iter().for_each(|path| roots.add(path));
    let missing = missing(service, paths)?;
    if missing.is_empty() {
        return Ok(Closure::default());
    }
    let closure = find(grid, &missing, near)?;
    closure.offers.keys().for_each(|path| roots.add(path));
    Ok(closure)
}

/// Makes `paths` valid here with all they refer to. An error is for people; where nobody waits any more it says nothing.
pub fn bring(
    service: &BuildService,
    grid: &Grid,
    paths: &BTreeSet<StorePath>,
    near: &[NodeKey],
    roots: &TempRoots,
    is_over: impl Fn() -> bool,
) -> Result<()> {
    let closure = seek(service, grid, paths, near, roots)?;
    fetch(service, &grid.upstreams, &closure, paths, is_over)
}

/// As [`bring`], but a build that may read what is not here yet need not wait: it gets what is on its way.
pub fn begin(
    service: &BuildService,
    grid: &Grid,
    paths: &BTreeSet<StorePath>,
    near: &[NodeKey],
    roots: &TempRoots,
    is_over: impl Fn() -> bool,
) -> Result<Option<Coming>> {
    let closure = seek(service, grid, paths, near, roots)?;
    let missing = missing(service, paths)?;
    let is_whole = missing.iter().all(|path| closure.contains(path));
    let (_, bytes) = closure.sizes();
    let held: Option<Vec<_>> = closure.offers.iter().map(|(path, offer)| Some((path, offer.held()?))).collect();
    match held.filter(|held| is_whole && !held.is_empty() && service.inputs.may_come_later(bytes)) {
        Some(held) => {
            service.inputs.are_coming(held);
            let fetch = grid.upstreams.begin_behind(&closure);
            Ok(Some(Coming { closure, upstreams: grid.upstreams.clone(), _fetch: fetch }))
        }
        None => fetch(service, &grid.upstreams, &closure, paths, is_over).map(|()| None),
    }
}

/// Fetches a closure, with which `paths` are to be valid.
fn fetch(
    service: &BuildService,
    upstreams: &Upstreams,
    closure: &Closure,
    paths: &BTreeSet<StorePath>,
    is_over: impl Fn() -> bool,
) -> Result<()> {
    if let Some(fetch) = upstreams.begin(closure) {
        while !fetch.wait(LOOK) {
            if is_over() {
                return Ok(());
            }
        }
    }
    let missing = missing(service, paths)?;
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
