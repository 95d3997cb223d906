//! Computes the content address of a NAR while it streams by.

use shoal_wire::nix::content_address::{CaMethod, CaMethodAlgo};
use shoal_wire::nix::hash::{Hash, HashAlgo, Hasher};
use shoal_wire::nix::nar::parse::NarParser;
use shoal_wire::nix::nar::{NarError, NarLimits, NarSink};
use shoal_wire::nix::references::HashModulo;
use shoal_wire::nix::store_path::StorePath;

use super::git_hash::GitHash;

/// Sees a NAR's bytes and then knows its content address by one method.
pub enum CaHasher {
    /// SHA-256 of the NAR: whoever takes it in computes that anyway.
    NarHash,
    Nar(Hasher),
    /// The NAR with its own hash part blanked.
    Itself(Box<HashModulo>),
    File(Box<Parsed<FileHash>>),
    Git(Box<Parsed<GitHash>>),
}

/// A parser and what listens to it.
pub struct Parsed<S> {
    parser: NarParser,
    sink: S,
    failed: bool,
}

impl<S: NarSink<Error = NarError>> Parsed<S> {
    fn new(sink: S) -> Self {
        Parsed { parser: NarParser::new(NarLimits::ANY_RELEASE), sink, failed: false }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.failed |= self.failed || self.parser.feed(bytes, &mut self.sink).is_err();
    }
}

/// Hashes of a NAR, of which a content address may have any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaHashes {
    One(Hash),
    /// Of a path that refers to itself: releases of Nix differ.
    Eras {
        with_offsets: Hash,
        without_offsets: Hash,
    },
}

impl CaHashes {
    pub fn contains(&self, hash: &Hash) -> bool {
        match self {
            CaHashes::One(one) => one == hash,
            CaHashes::Eras { with_offsets, without_offsets } => with_offsets == hash || without_offsets == hash,
        }
    }

    /// The hash to name in a message, and of a path that does not refer to itself.
    pub fn first(&self) -> Hash {
        match self {
            CaHashes::One(one) => *one,
            CaHashes::Eras { with_offsets, .. } => *with_offsets,
        }
    }
}

impl CaHasher {
    /// `itself` is the path that the NAR refers to as its own, if it does.
    pub fn new(method: CaMethodAlgo, itself: Option<&StorePath>) -> Self {
        let CaMethodAlgo { method, algo } = method;
        match (method, itself.and_then(own_hash_part)) {
            (CaMethod::Nar, Some(own)) => CaHasher::Itself(Box::new(HashModulo::new(algo, own))),
            (CaMethod::Nar, None) if algo == HashAlgo::Sha256 => CaHasher::NarHash,
            (CaMethod::Nar, None) => CaHasher::Nar(Hasher::new(algo)),
            (CaMethod::Text | CaMethod::Flat, _) => CaHasher::File(Box::new(Parsed::new(FileHash::new(algo)))),
            (CaMethod::Git, _) => CaHasher::Git(Box::new(Parsed::new(GitHash::new(algo)))),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            CaHasher::NarHash => {}
            CaHasher::Nar(hasher) => hasher.update(bytes),
            CaHasher::Itself(modulo) => modulo.update(bytes),
            CaHasher::File(parsed) => parsed.update(bytes),
            CaHasher::Git(parsed) => parsed.update(bytes),
        }
    }

    /// `None` where the tree has no such address: a directory has no flat hash, and nothing refers to itself millions of
    /// times.
    pub fn finish(self, nar_hash: [u8; 32]) -> Option<CaHashes> {
        match self {
            CaHasher::NarHash => Some(CaHashes::One(Hash::sha256(nar_hash))),
            CaHasher::Nar(hasher) => Some(CaHashes::One(hasher.finish())),
            CaHasher::Itself(modulo) => {
                let hashes = modulo.finish()?;
                let (with_offsets, without_offsets) = (hashes.with_offsets, hashes.without_offsets);
                Some(CaHashes::Eras { with_offsets, without_offsets })
            }
            CaHasher::File(parsed) if !parsed.failed => parsed.sink.done.map(CaHashes::One),
            CaHasher::Git(parsed) if !parsed.failed => parsed.sink.hash().map(CaHashes::One),
            CaHasher::File(_) | CaHasher::Git(_) => None,
        }
    }
}

fn own_hash_part(path: &StorePath) -> Option<[u8; 32]> {
    path.hash_part().as_bytes().try_into().ok()
}

/// Hashes the contents of a NAR that is one regular file, not executable.
pub struct FileHash {
    algo: HashAlgo,
    hasher: Option<Hasher>,
    done: Option<Hash>,
}

impl FileHash {
    fn new(algo: HashAlgo) -> Self {
        FileHash { algo, hasher: None, done: None }
    }
}

impl NarSink for FileHash {
    type Error = NarError;

    fn regular(&mut self, name: &[u8], executable: bool, _size: u64, _offset: u64) -> Result<(), NarError> {
        self.hasher = (name.is_empty() && !executable).then(|| Hasher::new(self.algo));
        Ok(())
    }

    fn contents(&mut self, bytes: &[u8], _offset: u64) -> Result<(), NarError> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        Ok(())
    }

    fn end_regular(&mut self, _offset: u64) -> Result<(), NarError> {
        self.done = self.hasher.take().map(Hasher::finish);
        Ok(())
    }
}

/// Keeps the contents of a NAR that is one regular file, up to a limit.
#[derive(Default)]
pub struct FileContents {
    limit: usize,
    contents: Vec<u8>,
    whole: bool,
}

/// Sees a NAR's bytes and then has the file in it.
pub struct FileReader(Parsed<FileContents>);

impl FileReader {
    pub fn new(limit: usize) -> Self {
        FileReader(Parsed::new(FileContents { limit, contents: Vec::new(), whole: false }))
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// `None` if the NAR is no single file of at most the limit's length.
    pub fn finish(self) -> Option<Vec<u8>> {
        let FileContents { contents, whole, .. } = self.0.sink;
        (whole && !self.0.failed).then_some(contents)
    }
}

impl NarSink for FileContents {
    type Error = NarError;

    fn regular(&mut self, name: &[u8], executable: bool, size: u64, _offset: u64) -> Result<(), NarError> {
        self.whole = name.is_empty() && !executable && size <= self.limit as u64;
        Ok(())
    }

    fn contents(&mut self, bytes: &[u8], _offset: u64) -> Result<(), NarError> {
        if self.whole {
            self.contents.extend_from_slice(bytes);
        }
        Ok(())
    }
}
