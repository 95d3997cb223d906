//! From a manifest and chunks that are held to a NAR that can be committed, without its bytes passing through again.
//!
//! What makes this right is the record that names the content root, which a member answers for: it ties path, NAR hash,
//! size and references to the content root; the manifest was compared with the content root, every chunk with its name in
//! the manifest, and their lengths add up to the size. So the bytes are those that the author's store had when it computed
//! the NAR hash itself, and computing it again would only check the author, at the price of most of the transfer's CPU time.
//! Who does not want to rely on the author computes it: [`Store::nar_hash`].

use crate::chunk_hold::ChunkHold;
use crate::error::{Defect, Error, Result};
use crate::frame::Decoder;
use crate::hashing::NarHasher;
use crate::ingest::Ingested;
use crate::manifests;
use crate::pins::PinSet;
use crate::store::Store;
use shoal_wire::mesh::manifest::{ENCODED_LEN_MAX, Manifest};
use std::io::BufRead;
use std::sync::Arc;
use thiserror::Error as ThisError;

/// What an encoding has beside one byte of it for each byte of NAR: a chunk takes 37 bytes of encoding and an entry of
/// the index less than it takes in the NAR, but for very small NARs.
const ENCODING_EXTRA: usize = 4 << 10;

/// Why bytes are not the manifest that was asked for.
#[derive(Debug, Clone, ThisError)]
pub enum ManifestRefused {
    #[error("the manifest is refused: {0}")]
    Defect(Defect),
    #[error("the manifest is of a NAR of {found} bytes, the record of one of {expected}")]
    Size { expected: u64, found: u64 },
    #[error(transparent)]
    Store(#[from] Error),
}

/// Why no NAR came of a manifest.
#[derive(Debug, Clone, ThisError)]
pub enum AssembleError {
    /// Some may have been found damaged since they were here.
    #[error("{} chunks are not here", .0.len())]
    Lacks(Vec<[u8; 32]>),
    #[error(transparent)]
    Store(#[from] Error),
}

/// A manifest from another store, compared with its name.
#[derive(Debug)]
pub struct ReceivedManifest {
    root: [u8; 32],
    packed: Vec<u8>,
    manifest: Manifest,
}

impl ReceivedManifest {
    /// Opens one zstd frame of the encoding that `root` names; `nar_size` is what the path's record says.
    pub fn open(store: &Store, root: [u8; 32], nar_size: u64, packed: Vec<u8>) -> Result<Self, ManifestRefused> {
        let len_max = usize::try_from(nar_size).unwrap_or(usize::MAX).saturating_add(ENCODING_EXTRA);
        let mut decoder = store.decoders.take(Decoder::new)?;
        let encoded = manifests::encoding(&root, &packed, len_max.min(ENCODED_LEN_MAX), &mut decoder);
        store.decoders.put(decoder);
        let manifest = Manifest::decode(&encoded.map_err(ManifestRefused::Defect)?);
        let manifest = manifest.map_err(|error| ManifestRefused::Defect(error.into()))?;
        match manifest.index.nar_size() {
            found if found == nar_size => Ok(ReceivedManifest { root, packed, manifest }),
            found => Err(ManifestRefused::Size { expected: nar_size, found }),
        }
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl Store {
    /// The manifest with this content root that is here already, in the same form.
    pub fn kept_manifest(&self, root: [u8; 32], nar_size: u64) -> Result<Option<ReceivedManifest>> {
        let packed = self.packed_manifest(&root)?;
        // One that is here and of another NAR is none of the record's; whoever has the record's will say so.
        Ok(packed.and_then(|(packed, _)| ReceivedManifest::open(self, root, nar_size, packed).ok()))
    }

    /// The SHA-256 of a NAR that was assembled, read and computed.
    pub fn nar_hash(&self, ingested: &Ingested) -> Result<[u8; 32]> {
        let mut source = self.uncommitted_nar(ingested)?;
        let mut hasher = NarHasher::new(self.hashing.clone());
        loop {
            let bytes = source.fill_buf().map_err(Error::io("read chunks of", self.dir()))?;
            if bytes.is_empty() {
                return Ok(hasher.finish());
            }
            hasher.update(bytes);
            let len = bytes.len();
            source.consume(len);
        }
    }
}

impl ChunkHold {
    /// The NAR of a manifest, all of whose chunks this holds and are here. `nar_hash` is what the path's record says.
    pub fn assemble(&self, received: &ReceivedManifest, nar_hash: [u8; 32]) -> Result<Ingested, AssembleError> {
        let mut pins = PinSet::new(self.store.pins.clone());
        let mut lacking = Vec::new();
        for chunk in &received.manifest.chunks {
            // What this does not hold nobody has looked up, so it counts as not here.
            let is_lacking = pins.claim(&chunk.hash, || Ok(false))?;
            if is_lacking || !self.pins.contains(&chunk.hash) {
                lacking.push(chunk.hash);
            }
        }
        if !lacking.is_empty() {
            return Err(AssembleError::Lacks(lacking));
        }
        pins.hold(&received.root);
        Ok(Ingested {
            nar_hash,
            nar_size: received.manifest.index.nar_size(),
            content_root: received.root,
            index: Arc::new(received.manifest.index.clone()),
            packed_manifest: received.packed.clone(),
            pins,
        })
    }
}
