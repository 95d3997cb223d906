//! Manifests as they lie in the index: one zstd frame of the encoding that the content root names.

use crate::error::{Damage, Defect, Result};
use crate::frame::{self, Decoder, FrameError};
use crate::index::tables::MANIFESTS;
use crate::store::Store;
use shoal_wire::mesh::manifest::{ENCODED_LEN_MAX, Manifest, content_root};
use shoal_wire::nix::nar::index::NarIndex;
use shoal_wire::nix::store_path::StorePath;
use std::sync::Arc;

/// The manifest of a stored form, verified.
pub fn unpack(root: &[u8; 32], packed: &[u8], decoder: &mut Decoder) -> Result<Manifest> {
    try_unpack(root, packed, decoder).map_err(|defect| Damage::manifest(*root, defect).into())
}

fn try_unpack(root: &[u8; 32], packed: &[u8], decoder: &mut Decoder) -> Result<Manifest, Defect> {
    let size = frame::content_size(packed)?;
    // A length that no manifest has is not asked of the allocator.
    let len = usize::try_from(size).ok().filter(|&len| len <= ENCODED_LEN_MAX);
    let len = len.ok_or(FrameError::Length { expected: ENCODED_LEN_MAX, actual: size })?;
    let mut encoded = Vec::new();
    decoder.decode(packed, len, &mut encoded)?;
    match content_root(&encoded) == *root {
        true => Ok(Manifest::decode(&encoded)?),
        false => Err(Defect::Hash),
    }
}

impl Store {
    /// The manifest with this content root.
    pub fn manifest_by_root(&self, root: &[u8; 32]) -> Result<Option<Manifest>> {
        let mut decoder = self.decoders.take(Decoder::new)?;
        let manifest = self.index.read(|txn| match txn.open_table(MANIFESTS)?.get(root)? {
            Some(row) => Ok(Some(unpack(root, row.value(), &mut decoder)?)),
            None => Ok(None),
        });
        self.decoders.put(decoder);
        manifest.map_err(|error| self.noting(error))
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
            None => Err(crate::error::in_path(path)(self.noting(Damage::manifest(root, Defect::Unknown).into()))),
        }
    }

    /// The file tree of a valid path.
    pub fn index(&self, path: &StorePath) -> Result<Option<Arc<NarIndex>>> {
        Ok(self.manifest(path)?.map(|manifest| Arc::new(manifest.index)))
    }
}
