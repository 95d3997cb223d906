//! The hash of a NAR modulo its own hash part, which names a content-addressed path that refers to
//! itself.

use super::{HashPart, Rewriter};
use crate::nix::hash::{Hash, HashAlgo, Hasher};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Hashes a NAR with every occurrence of one hash part replaced by NULs.
pub struct HashModulo {
    rewriter: Rewriter<HashSink>,
    has_failed: bool,
}

/// Both digests that Nix releases give the same self-referring NAR; equal when it does not refer
/// to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfHashes {
    /// Nix up to 2.16 and from 2.35: followed by `|<offset>` for every occurrence.
    pub with_offsets: Hash,
    /// Nix 2.17 to 2.34.
    pub without_offsets: Hash,
    /// How often the NAR refers to itself.
    pub occurrences: usize,
}

struct HashSink(Hasher);

impl HashModulo {
    pub fn new(algo: HashAlgo, own: HashPart) -> Self {
        let nothing = [0; super::HASH_PART_LEN];
        let rewrites = BTreeMap::from([(own, nothing)]);
        HashModulo { rewriter: Rewriter::new(HashSink(Hasher::new(algo)), rewrites), has_failed: false }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.has_failed = self.has_failed || self.rewriter.write_all(bytes).is_err();
    }

    /// `None` for a NAR that refers to itself more often than a [`Rewriter`] takes.
    pub fn finish(self) -> Option<SelfHashes> {
        if self.has_failed {
            return None;
        }
        let (HashSink(mut hasher), pending, offsets) = self.rewriter.into_parts();
        hasher.update(&pending);
        let mut suffixed = hasher.clone();
        for offset in &offsets {
            suffixed.update(format!("|{offset}").as_bytes());
        }
        let (with_offsets, without_offsets) = (suffixed.finish(), hasher.finish());
        Some(SelfHashes { with_offsets, without_offsets, occurrences: offsets.len() })
    }
}

impl Write for HashSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
