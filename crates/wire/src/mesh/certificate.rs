//! Membership: the mesh key says that a node belongs to it, in which roles, and until when.

use super::format::{Format, FormatError, encode, within};
use super::sealed::RawSignature;
use super::{MeshId, NodeKey};
use crate::nix::signature::SecretKey;
use serde::{Deserialize, Serialize};

/// How far the clocks of two nodes may be apart before one of them sees a valid certificate as none.
pub const CLOCK_SKEW_MAX_S: u64 = 300;

/// What a node may do in the mesh. Bits that this program does not know are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Roles(pub u16);

impl Roles {
    /// Keeps records and replicas.
    pub const STORE: Roles = Roles(1);
    /// Runs builds.
    pub const BUILD: Roles = Roles(2);
    /// Lets nodes in: holds the mesh key.
    pub const ADMIT: Roles = Roles(4);
    /// Asks nodes to drain.
    pub const OPERATE: Roles = Roles(8);

    pub fn with(self, other: Roles) -> Roles {
        Roles(self.0 | other.0)
    }

    /// Whether all of `other` are among these.
    pub fn contain(self, other: Roles) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Roles and the time in which they hold, Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    pub roles: Roles,
    pub not_before_s: u64,
    pub expires_s: u64,
}

impl Term {
    /// Whether it holds at `wall_s`, by a clock that may be [`CLOCK_SKEW_MAX_S`] wrong.
    pub fn holds(&self, wall_s: u64) -> bool {
        wall_s.saturating_add(CLOCK_SKEW_MAX_S) >= self.not_before_s
            && wall_s <= self.expires_s.saturating_add(CLOCK_SKEW_MAX_S)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    pub mesh: MeshId,
    pub node: NodeKey,
    pub term: Term,
    pub signature: RawSignature,
}

/// What the signature is over.
#[derive(Serialize, Deserialize)]
struct Signed {
    mesh: MeshId,
    node: NodeKey,
    term: Term,
}

impl Format for Signed {
    const WHAT: &'static str = "certificate";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = 96;

    fn check(&self) -> Result<(), FormatError> {
        Ok(())
    }
}

impl Format for Certificate {
    const WHAT: &'static str = Signed::WHAT;
    const VERSION: u8 = Signed::VERSION;
    const LEN_MAX: usize = 160;

    fn check(&self) -> Result<(), FormatError> {
        within::<Self>("the time in which it holds", self.term.not_before_s < self.term.expires_s)
    }
}

impl Certificate {
    pub fn issue(mesh: &SecretKey, node: NodeKey, term: Term) -> Self {
        let mesh_id = *mesh.public().bytes();
        let signed = encode(&Signed { mesh: mesh_id, node, term });
        Self { mesh: mesh_id, node, term, signature: RawSignature::make::<Signed>(mesh, &signed) }
    }

    /// Whether the mesh key signed it. Time and revocation are asked elsewhere.
    pub fn is_signed(&self) -> bool {
        let signed = encode(&Signed { mesh: self.mesh, node: self.node, term: self.term });
        self.signature.holds::<Signed>(&self.mesh, &signed)
    }
}
