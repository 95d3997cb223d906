//! What a bucket holds of a mesh: packs of chunks, and of each path a record that says in which packs its chunks are.
//!
//! A pack is frames of chunks end to end, as stores have them, under the name of its BLAKE3. A record is a [`Format`] with
//! the BLAKE3 of its encoding behind it, which tells what was damaged from what was written wrong. Nobody is believed for
//! having written either: a record is as good as its Nix signatures or its content address, chunks are compared with
//! their names, and the NAR with its SHA-256.

use super::format::{Format, FormatError, decode, encode, within};
use super::manifest::{CHUNK_LEN_MAX, ChunkRef};
use super::path_record::{REFERENCES_MAX, SIGNATURES_MAX};
use super::transfer::FRAME_LEN_MAX;
use crate::nix::base64::encode_hex;
use crate::nix::content_address::ContentAddress;
use crate::nix::path_info::PathInfo;
use crate::nix::realisation::{BuildTraceKey, DrvOutput};
use crate::nix::signature::Signature;
use crate::nix::store_path::StorePath;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// BLAKE3 of a pack.
pub type PackName = [u8; 32];

/// Longest pack: objects that one request moves in seconds, and few enough of them.
pub const PACK_LEN_MAX: usize = 16 << 20;
/// Most chunks of one path, some 64 GiB of NAR: what is larger stays with the nodes.
pub const CHUNKS_MAX: usize = 1 << 20;
/// Most packs of one path. One whose chunks came from others may be in many.
pub const PACKS_MAX: usize = 1 << 18;

/// Longest object of a log, which is a zstd stream: a longer log stays with the nodes.
pub const LOG_OBJECT_LEN_MAX: usize = (16 << 20) + SUM_LEN;

const SUM_LEN: usize = 32;

/// Where a chunk's frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedChunk {
    pub chunk: ChunkRef,
    /// Which of the record's packs.
    pub pack: u32,
    pub offset: u32,
    pub frame_len: u32,
}

impl PackedChunk {
    /// Of the byte after the frame.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.frame_len)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColdRecord {
    pub path: StorePath,
    /// SHA-256.
    pub nar_hash: [u8; 32],
    pub nar_size: u64,
    pub references: BTreeSet<StorePath>,
    pub deriver: Option<StorePath>,
    pub ca: Option<ContentAddress>,
    pub signatures: BTreeSet<Signature>,
    pub packs: Vec<PackName>,
    /// In the order of the NAR; one that is in it twice is here twice.
    pub chunks: Vec<PackedChunk>,
}

/// Why an object is no record.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ColdError {
    #[error("it is cut off")]
    Truncated,
    #[error("it is not what was written: its checksum is another")]
    Checksum,
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// The name of a pack's object, behind the bucket's prefix.
pub fn pack_object(name: &PackName) -> String {
    format!("packs/{}", encode_hex(name))
}

/// The name of a record's object, behind the bucket's prefix.
pub fn record_object(hash_part: &str) -> String {
    format!("paths/{hash_part}")
}

/// The name of a log's object: by the hash part, as paths go.
pub fn log_object(derivation: &StorePath) -> String {
    format!("logs/{}", derivation.hash_part())
}

/// The name of a realisation's object: ids have characters that servers write in different ways.
pub fn realisation_object(id: &DrvOutput) -> String {
    format!("realisations/{}", blake3::hash(id.to_string().as_bytes()).to_hex())
}

/// The same in the form from Nix 2.35 on.
pub fn trace_object(key: &BuildTraceKey) -> String {
    let id = format!("{}!{}", key.drv_path.base_name(), key.output);
    format!("realisations/{}", blake3::hash(id.as_bytes()).to_hex())
}

/// What is not believed by a signature, with its BLAKE3 behind it.
pub fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

/// What was sealed so.
pub fn unseal(object: &[u8]) -> Result<&[u8], ColdError> {
    let (bytes, sum) = object.split_last_chunk::<SUM_LEN>().ok_or(ColdError::Truncated)?;
    if blake3::hash(bytes).as_bytes() == sum { Ok(bytes) } else { Err(ColdError::Checksum) }
}

impl ColdRecord {
    /// Longest object.
    pub const OBJECT_LEN_MAX: usize = Self::LEN_MAX + SUM_LEN;

    pub fn new(info: PathInfo, packs: Vec<PackName>, chunks: Vec<PackedChunk>) -> Self {
        let PathInfo { path, deriver, nar_hash, nar_size, references, signatures, ca, .. } = info;
        ColdRecord { path, nar_hash, nar_size, references, deriver, ca, signatures, packs, chunks }
    }

    /// The path as another store may know it, registered at no time yet.
    pub fn info(&self) -> PathInfo {
        PathInfo {
            deriver: self.deriver.clone(),
            references: self.references.clone(),
            signatures: self.signatures.clone(),
            ca: self.ca,
            ..PathInfo::new(self.path.clone(), self.nar_hash, self.nar_size)
        }
    }

    /// Whether its NAR is these chunks.
    pub fn has_chunks(&self, chunks: &[ChunkRef]) -> bool {
        self.chunks.iter().map(|packed| &packed.chunk).eq(chunks)
    }

    /// How long each of its packs must be.
    pub fn pack_lens(&self) -> BTreeMap<PackName, u64> {
        let mut lens = BTreeMap::new();
        for packed in &self.chunks {
            if let Some(pack) = self.packs.get(packed.pack as usize) {
                let len: &mut u64 = lens.entry(*pack).or_default();
                *len = packed.end().max(*len);
            }
        }
        lens
    }

    /// The bytes of its object. An error where it is outside of its limits.
    pub fn to_object(&self) -> Result<Vec<u8>, ColdError> {
        self.check()?;
        let object = seal(encode(self));
        match object.len() <= Self::OBJECT_LEN_MAX {
            true => Ok(object),
            false => {
                Err(FormatError::TooLong { what: Self::WHAT, len: object.len() - SUM_LEN, max: Self::LEN_MAX }.into())
            }
        }
    }

    pub fn from_object(object: &[u8]) -> Result<Self, ColdError> {
        Ok(decode(unseal(object)?)?)
    }
}

impl Format for ColdRecord {
    const WHAT: &'static str = "record of a path in a bucket";
    const VERSION: u8 = 1;
    /// [`CHUNKS_MAX`] chunks of at most 48 bytes, and room for references and packs.
    const LEN_MAX: usize = 64 << 20;

    fn check(&self) -> Result<(), FormatError> {
        within::<Self>("references", self.references.len() <= REFERENCES_MAX)?;
        within::<Self>("signatures", self.signatures.len() <= SIGNATURES_MAX)?;
        within::<Self>("packs", self.packs.len() <= PACKS_MAX)?;
        within::<Self>("chunks", (1..=CHUNKS_MAX).contains(&self.chunks.len()))?;
        let is_right = |packed: &PackedChunk| {
            (1..=CHUNK_LEN_MAX).contains(&packed.chunk.len)
                && (1..=FRAME_LEN_MAX).contains(&(packed.frame_len as usize))
                && (packed.pack as usize) < self.packs.len()
                && packed.end() <= PACK_LEN_MAX as u64
        };
        within::<Self>("place of a chunk", self.chunks.iter().all(is_right))?;
        let size: u64 = self.chunks.iter().map(|packed| u64::from(packed.chunk.len)).sum();
        within::<Self>("NAR size", size == self.nar_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(lens: &[u32]) -> ColdRecord {
        let mut offset = 0;
        let packed = |(n, len): (usize, &u32)| {
            let frame_len = len / 2 + 1;
            let packed = PackedChunk {
                chunk: ChunkRef { hash: [n as u8; 32], len: *len },
                pack: n as u32 % 2,
                offset,
                frame_len,
            };
            offset += frame_len;
            packed
        };
        let chunks: Vec<PackedChunk> = lens.iter().enumerate().map(packed).collect();
        let path = StorePath::from_base_name("0c6kzph7l0dcbfmjap64f0czdafn3b7x-x").unwrap();
        let size = lens.iter().map(|len| u64::from(*len)).sum();
        let mut info = PathInfo::new(path.clone(), [7; 32], size);
        info.references.insert(path);
        ColdRecord::new(info, vec![[1; 32], [2; 32]], chunks)
    }

    proptest! {
        #[test]
        fn an_object_gives_its_record_back(lens in proptest::collection::vec(1..=CHUNK_LEN_MAX, 1..40)) {
            let record = record(&lens);
            prop_assert_eq!(ColdRecord::from_object(&record.to_object().unwrap()).unwrap(), record);
        }

        #[test]
        fn whatever_is_changed_in_an_object_is_found(at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut object = record(&[5, 6, 7]).to_object().unwrap();
            let at = at.index(object.len());
            object[at] ^= 1 << bit;
            prop_assert_eq!(ColdRecord::from_object(&object), Err(ColdError::Checksum));
            object[at] ^= 1 << bit;
            prop_assert!(ColdRecord::from_object(&object[..at]).is_err());
        }
    }

    #[test]
    fn what_is_outside_of_its_limits_is_neither_written_nor_read() {
        let wrong: [fn(&mut ColdRecord); 6] = [
            |record| record.nar_size += 1,
            |record| record.chunks[1].pack = 2,
            |record| record.chunks[1].offset = PACK_LEN_MAX as u32,
            |record| record.chunks[1].frame_len = 0,
            |record| record.chunks[1].frame_len = FRAME_LEN_MAX as u32 + 1,
            |record| record.chunks.clear(),
        ];
        for (n, change) in wrong.into_iter().enumerate() {
            let mut record = record(&[5, 6, 7]);
            change(&mut record);
            assert!(matches!(record.to_object(), Err(ColdError::Format(_))), "{n}");
            let mut object = encode(&record);
            object.extend_from_slice(blake3::hash(&object.clone()).as_bytes());
            assert!(matches!(ColdRecord::from_object(&object), Err(ColdError::Format(_))), "{n}");
        }
    }

    #[test]
    fn a_record_says_what_it_takes() {
        let record = record(&[5, 6, 7]);
        let end = |n: usize| record.chunks[n].end();
        assert_eq!(record.pack_lens(), BTreeMap::from([([1; 32], end(2)), ([2; 32], end(1))]));
        let mut chunks: Vec<ChunkRef> = record.chunks.iter().map(|packed| packed.chunk).collect();
        assert!(record.has_chunks(&chunks) && !record.has_chunks(&chunks[..2]));
        chunks.swap(0, 1);
        assert!(!record.has_chunks(&chunks));
    }

    #[test]
    fn the_form_of_a_record_does_not_change() {
        let object = record(&[300]).to_object().unwrap();
        assert_eq!(
            blake3::hash(&object).to_hex().as_str(),
            "a8edef6e90c6474112366bd4c429a55de2bc8f2d157f2e20449699cf894570cc"
        );
    }
}
