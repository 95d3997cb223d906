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
    let unpacked = encoding(root, packed, ENCODED_LEN_MAX, decoder).and_then(|encoded| Ok(Manifest::decode(&encoded)?));
    unpacked.map_err(|defect| Damage::manifest(*root, defect).into())
}

/// The encoding in a stored form, of at most `len_max` bytes, compared with its name.
pub fn encoding(root: &[u8; 32], packed: &[u8], len_max: usize, decoder: &mut Decoder) -> Result<Vec<u8>, Defect> {
    let size = frame::content_size(packed)?;
    // A length that no manifest has is not asked of the allocator.
    let len = usize::try_from(size).ok().filter(|&len| len <= len_max);
    let len = len.ok_or(FrameError::Length { expected: len_max, actual: size })?;
    let mut encoded = Vec::new();
    decoder.decode(packed, len, &mut encoded)?;
    match content_root(&encoded) == *root {
        true => Ok(encoded),
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

    /// The manifest with this content root as it lies, one zstd frame of its encoding, and the length of the encoding.
    pub fn packed_manifest(&self, root: &[u8; 32]) -> Result<Option<(Vec<u8>, usize)>> {
        let Some(packed) =
            self.index.read(|txn| Ok(txn.open_table(MANIFESTS)?.get(root)?.map(|row| row.value().to_owned())))?
        else {
            return Ok(None);
        };
        let mut decoder = self.decoders.take(Decoder::new)?;
        let encoded = encoding(root, &packed, ENCODED_LEN_MAX, &mut decoder);
        self.decoders.put(decoder);
        match encoded {
            Ok(encoded) => Ok(Some((packed, encoded.len()))),
            Err(defect) => Err(self.noting(Damage::manifest(*root, defect).into())),
        }
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
