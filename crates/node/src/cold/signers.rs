//! Whom every node with the same keys believes, whatever else it trusts: what another one is to read must be signed so.

use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::{SecretKey, TrustedKeys};
use shoal_wire::nix::store_path::StoreDir;

/// What this node signs with now: of a mesh the same on all nodes.
pub struct Signers {
    dir: StoreDir,
    pub keys: TrustedKeys,
}

impl Signers {
    pub fn new(dir: StoreDir, keys: &[SecretKey]) -> Signers {
        let mut trusted = TrustedKeys::default();
        keys.iter().for_each(|key| trusted.insert(key.public()));
        Signers { dir, keys: trusted }
    }

    /// Whether they vouch for it. A content address proves itself.
    pub fn vouch_for(&self, info: &PathInfo) -> bool {
        info.is_content_addressed(&self.dir) || info.is_signed(&self.dir, &self.keys)
    }
}
