//! What a store knows about a valid path. Source: `libstore/path-info.cc`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::base32;
use super::content_address::ContentAddress;
use super::make_path::{CaReferences, MakePathError};
use super::signature::{SecretKey, Signature, TrustedKeys};
use super::store_path::{StoreDir, StorePath};

/// Metadata of a valid store path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathInfo {
    pub path: StorePath,
    /// The derivation it was built from; it need not exist any more.
    pub deriver: Option<StorePath>,
    /// SHA-256 of the NAR.
    pub nar_hash: [u8; 32],
    /// Bytes of the NAR; 0 when unknown.
    pub nar_size: u64,
    /// May include the path itself.
    pub references: BTreeSet<StorePath>,
    /// Unix seconds; 0 when unknown.
    pub registration_time: u64,
    /// Built here, by us: trusted without a signature.
    pub ultimate: bool,
    pub signatures: BTreeSet<Signature>,
    pub ca: Option<ContentAddress>,
}

/// The path's size is not known, so it has no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("cannot calculate fingerprint of path '{0}' because its size is not known")]
pub struct FingerprintError(pub String);

impl PathInfo {
    /// Info with a path, its NAR's SHA-256 and size, and nothing else.
    pub fn new(path: StorePath, nar_hash: [u8; 32], nar_size: u64) -> Self {
        Self {
            path,
            deriver: None,
            nar_hash,
            nar_size,
            references: BTreeSet::new(),
            registration_time: 0,
            ultimate: false,
            signatures: BTreeSet::new(),
            ca: None,
        }
    }

    /// What signatures are over: `1;<path>;sha256:<nix32>;<size>;<full reference>,…`.
    pub fn fingerprint(&self, dir: &StoreDir) -> Result<String, FingerprintError> {
        if self.nar_size == 0 {
            return Err(FingerprintError(dir.print(&self.path)));
        }
        let references: Vec<String> = self.references.iter().map(|path| dir.print(path)).collect();
        Ok(format!(
            "1;{dir}/{};sha256:{};{};{}",
            self.path,
            base32::encode(&self.nar_hash),
            self.nar_size,
            references.join(",")
        ))
    }

    /// Adds the key's signature.
    pub fn sign(&mut self, dir: &StoreDir, key: &SecretKey) -> Result<(), FingerprintError> {
        let fingerprint = self.fingerprint(dir)?;
        self.signatures.insert(key.sign(fingerprint.as_bytes()));
        Ok(())
    }

    /// Whether a trusted key signed this. Never when the size is unknown.
    pub fn is_signed(&self, dir: &StoreDir, keys: &TrustedKeys) -> bool {
        self.fingerprint(dir).is_ok_and(|fingerprint| keys.any_valid(fingerprint.as_bytes(), &self.signatures))
    }

    /// How many signatures are good ones by trusted keys. 0 when the size is unknown.
    pub fn count_valid_signatures(&self, dir: &StoreDir, keys: &TrustedKeys) -> usize {
        match self.fingerprint(dir) {
            Ok(fingerprint) => keys.count_valid(fingerprint.as_bytes(), &self.signatures),
            Err(_) => 0,
        }
    }

    /// Whether the path follows from its content address and references, so that it needs no signature.
    /// The content address itself must still be compared with the contents.
    pub fn is_content_addressed(&self, dir: &StoreDir) -> bool {
        matches!(self.content_addressed_path(dir), Some(Ok(path)) if path == self.path)
    }

    /// The path that content address, references and name lead to; `None` without content address.
    pub fn content_addressed_path(&self, dir: &StoreDir) -> Option<Result<StorePath, MakePathError>> {
        let references = CaReferences::of(&self.path, &self.references);
        self.ca.map(|ca| dir.make_ca_path(&ca, &references, self.path.name()))
    }
}
