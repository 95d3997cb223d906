//! Manifests as they lie in the index: one zstd frame of the encoding that the content root names.

use crate::error::{Damage, Defect, Error, Result};
use crate::frame::FrameError;
use crate::index::tables::MANIFESTS;
use crate::store::Store;
use shoal_wire::mesh::manifest::{ENCODED_LEN_MAX, Manifest, content_root};
use shoal_wire::nix::nar::index::NarIndex;
use shoal_wire::nix::store_path::StorePath;
use std::sync::Arc;

/// Level for manifests: written once, and hashes in them do not compress anyway.
const LEVEL: i32 = 1;

/// The stored form of an encoded manifest.
pub fn pack(encoded: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(encoded, LEVEL).map_err(Error::io("compress", "a manifest".as_ref()))
}

/// The manifest of a stored form, verified.
pub fn unpack(root: &[u8; 32], packed: &[u8]) -> Result<Manifest> {
    let damaged = |defect| Error::from(Damage::manifest(*root, defect));
    let size = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten();
    let size = size.ok_or_else(|| damaged(FrameError::NoContentSize.into()))?;
    if size > ENCODED_LEN_MAX as u64 {
        return Err(damaged(FrameError::Length { expected: ENCODED_LEN_MAX, actual: size }.into()));
    }
    let encoded = zstd::bulk::decompress(packed, size as usize);
    let encoded = encoded.map_err(|error| damaged(FrameError::Codec(error.to_string()).into()))?;
    if content_root(&encoded) != *root {
        return Err(damaged(Defect::Hash));
    }
    Manifest::decode(&encoded).map_err(|error| damaged(error.into()))
}

impl Store {
    /// The manifest with this content root.
    pub fn manifest_by_root(&self, root: &[u8; 32]) -> Result<Option<Manifest>> {
        self.index.read(|txn| match txn.open_table(MANIFESTS)?.get(root)? {
            Some(row) => Ok(Some(unpack(root, row.value())?)),
            None => Ok(None),
        })
    }

    /// The manifest of a valid path.
    pub fn manifest(&self, path: &StorePath) -> Result<Option<Manifest>> {
        let Some(root) = self.content_root(path)? else {
            return Ok(None);
        };
        let manifest = self.manifest_by_root(&root).map_err(crate::error::in_path(path))?;
        match manifest {
            Some(manifest) => Ok(Some(manifest)),
            // The path may have been deleted between the two looks.
            None if !self.is_valid(path)? => Ok(None),
            None => Err(crate::error::in_path(path)(Damage::manifest(root, Defect::Unknown).into())),
        }
    }

    /// The file tree of a valid path.
    pub fn index(&self, path: &StorePath) -> Result<Option<Arc<NarIndex>>> {
        Ok(self.manifest(path)?.map(|manifest| Arc::new(manifest.index)))
    }
}
