//! Whether a path may come in, whoever sends it.
//!
//! An input-addressed path is a claim ("this derivation's output has these bytes"): it needs the signature of a trusted
//! key, or a client that is trusted to skip that check. A content-addressed path is its own proof. A `.drv` must be the
//! derivation that its path says, with the outputs that follow from it. Source: `LocalStore::addToStore`,
//! `registerValidPaths`, `pathInfoIsUntrusted` in `libstore/local-store.cc`.

use std::sync::Arc;

use shoal_store::Ingested;
use shoal_wire::nix::content_address::ContentAddress;
use shoal_wire::nix::derivation::Derivation;
use shoal_wire::nix::hash::Hash;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::{SecretKey, TrustedKeys};
use shoal_wire::nix::store_path::StoreDir;

use super::ca_check::CaHashes;
use super::fault::Fault;
use crate::build::derivations::{Derivations, PendingDerivations};

/// Signatures on one path: as many as its record in a mesh may have.
pub use shoal_wire::mesh::path_record::SIGNATURES_MAX;

pub struct Admission {
    dir: StoreDir,
    derivations: Arc<Derivations>,
    trusted_keys: TrustedKeys,
    require_sigs: bool,
    signing_keys: Vec<Arc<SecretKey>>,
}

impl Admission {
    pub fn new(derivations: Arc<Derivations>, dir: StoreDir, trusted_keys: TrustedKeys, require_sigs: bool) -> Self {
        Admission { derivations, dir, trusted_keys, require_sigs, signing_keys: Vec::new() }
    }

    pub(super) fn sign_with(&mut self, keys: Vec<Arc<SecretKey>>) {
        self.signing_keys = keys;
    }

    pub fn trusted_keys(&self) -> &TrustedKeys {
        &self.trusted_keys
    }

    /// Derivations in the store, parsed.
    pub fn derivations(&self) -> &Derivations {
        &self.derivations
    }

    /// What can be said before the contents are seen: that the path follows from its content address, or else that
    /// somebody trusted signed it; and that the claim is of a size that can be kept.
    pub fn check_claim(&self, info: &PathInfo, must_be_signed: bool) -> Result<(), Fault> {
        let full = || self.dir.print(&info.path);
        if info.signatures.len() > SIGNATURES_MAX {
            let text = format!("path '{}' cannot have more than {SIGNATURES_MAX} signatures", full());
            return Err(Fault::refused(text));
        }
        if info.ca.is_some() {
            return match info.is_content_addressed(&self.dir) {
                true => Ok(()),
                false => Err(Fault::refused(format!("path '{}' claims to be content-addressed but isn't", full()))),
            };
        }
        if must_be_signed && self.require_sigs && !info.is_signed(&self.dir, &self.trusted_keys) {
            let text = format!("cannot add path '{}' because it lacks a signature by a trusted key", full());
            return Err(Fault::refused(text));
        }
        Ok(())
    }

    /// What the contents turned out to be against what was said of them.
    pub fn check_contents(
        &self,
        info: &PathInfo,
        ingested: &Ingested,
        ca_hashes: Option<CaHashes>,
    ) -> Result<(), Fault> {
        let mismatch = |what: &str, specified: String, got: String| {
            let path = self.dir.print(&info.path);
            let text =
                format!("{what} mismatch importing path '{path}';\n  specified: {specified}\n  got:       {got}");
            Err(Fault::refused(text))
        };
        if info.nar_hash != ingested.nar_hash {
            let text = |hash| Hash::sha256(hash).to_string();
            return mismatch("hash", text(info.nar_hash), text(ingested.nar_hash));
        }
        if info.nar_size != 0 && info.nar_size != ingested.nar_size {
            return mismatch("size", info.nar_size.to_string(), ingested.nar_size.to_string());
        }
        match (&info.ca, ca_hashes) {
            (None, _) => Ok(()),
            (Some(ca), Some(hashes)) if hashes.contains(&ca.hash) => Ok(()),
            (Some(ca), Some(hashes)) => {
                let got = ContentAddress { method: ca.method, hash: hashes.first() };
                mismatch("ca hash", ca.to_string(), got.to_string())
            }
            (Some(ca), None) => mismatch("ca hash", ca.to_string(), "another kind of file".into()),
        }
    }

    /// Checks the text of the `.drv` at `info.path`. What it depends on is in the store or in `pending`.
    pub fn check_derivation(
        &self,
        info: &PathInfo,
        text: Option<Vec<u8>>,
        pending: &[&PendingDerivations],
    ) -> Result<Arc<Derivation>, Fault> {
        let full = self.dir.print(&info.path);
        let text = text.ok_or_else(|| Fault::refused(format!("'{full}' is not a derivation: it is no plain file")))?;
        let checked = self.derivations.check_added(info, &text, pending);
        checked.map_err(|error| Fault::refused(format!("{error}\nwhile adding '{full}'")))
    }

    /// Signs what a trusted client answers for. Content-addressed paths need no signature.
    pub fn vouch(&self, info: &mut PathInfo) {
        if info.ca.is_none() && !info.is_signed(&self.dir, &self.trusted_keys) {
            for key in &self.signing_keys {
                // Fails only for a path of unknown size, and this one was just measured.
                let _ = info.sign(&self.dir, key);
            }
        }
    }
}
