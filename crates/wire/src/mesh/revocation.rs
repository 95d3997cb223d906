//! The mesh key takes back what it certified: the node key is out for good. A machine comes back with a new key.

use super::format::{Format, FormatError};
use super::sealed::Signable;
use super::{MeshId, NodeKey};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    pub mesh: MeshId,
    pub node: NodeKey,
    /// Unix seconds from which every certificate of the node has expired by itself, so that this may be forgotten.
    pub until_s: u64,
}

impl Format for Revocation {
    const WHAT: &'static str = "revocation";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = 80;

    fn check(&self) -> Result<(), FormatError> {
        Ok(())
    }
}

impl Signable for Revocation {
    fn author(&self) -> &[u8; 32] {
        &self.mesh
    }
}
