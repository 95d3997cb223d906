//! One node says that it cannot reach another. Several such make a death, a newer incarnation undoes them.

use super::format::{Format, FormatError, within};
use super::sealed::Signable;
use super::{MeshId, NodeKey};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    pub mesh: MeshId,
    pub author: NodeKey,
    pub subject: NodeKey,
    /// Of the subject; records of later ones are not touched by it.
    pub incarnation: u64,
}

impl Format for Suspicion {
    const WHAT: &'static str = "suspicion";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = 112;

    fn check(&self) -> Result<(), FormatError> {
        within::<Self>("subject", self.subject != self.author)
    }
}

impl Signable for Suspicion {
    fn author(&self) -> &[u8; 32] {
        &self.author
    }
}
