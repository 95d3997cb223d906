//! Closures over the references of valid paths.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use shoal_store::Store;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

/// All paths reachable from `roots`, themselves included. Every one must be valid.
pub fn closure<'a>(store: &Store, roots: impl IntoIterator<Item = &'a StorePath>) -> Result<BTreeSet<StorePath>> {
    closure_with(store, |_| None, roots)
}

/// The same, of paths of which each is valid or known to `elsewhere`.
pub fn closure_with<'a>(
    store: &Store,
    elsewhere: impl Fn(&StorePath) -> Option<PathInfo>,
    roots: impl IntoIterator<Item = &'a StorePath>,
) -> Result<BTreeSet<StorePath>> {
    let mut seen: BTreeSet<StorePath> = roots.into_iter().cloned().collect();
    let mut open: Vec<StorePath> = seen.iter().cloned().collect();
    while let Some(path) = open.pop() {
        let info = store
            .path_info(&path)?
            .or_else(|| elsewhere(&path))
            .with_context(|| format!("path '{}' is not valid", path.base_name()))?;
        for reference in info.references {
            if seen.insert(reference.clone()) {
                open.push(reference);
            }
        }
    }
    Ok(seen)
}
