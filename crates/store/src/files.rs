//! Single files inside paths.

use crate::error::{Error, Result};
use crate::export::Export;
use crate::store::Store;
use shoal_wire::nix::nar::index::Node;
use shoal_wire::nix::store_path::StorePath;

impl Store {
    /// The contents of a regular file of a valid path, as a reader. `inner` is its path below the
    /// store path, `/`-separated, empty for the root; symlinks are not followed. `None` if the path
    /// is not valid; [`Error::NoSuchFile`] if it has no such regular file.
    pub fn read_file(&self, path: &StorePath, inner: &str) -> Result<Option<Export>> {
        let Some(export) = self.export(path)? else {
            return Ok(None);
        };
        let names = inner.split('/').filter(|name| !name.is_empty()).map(str::as_bytes);
        match export.index().lookup(names).map(|entry| &entry.node) {
            Some(&Node::Regular { size, offset, .. }) => Ok(Some(export.range(offset, size))),
            _ => Err(Error::NoSuchFile(format!("{path}/{}", inner.trim_start_matches('/')))),
        }
    }
}
