//! How one becomes a member, and stays one: a node shows a grant, or the certificate that it has, and gets a certificate.
//!
//! The asking node's key is that of its connection and is not named here. One request and one answer a connection.

use super::certificate::{Certificate, Roles};
use super::format::{Format, FormatError, within};
use super::node_record::{ADDRESSES_MAX, EXTENSION_LEN_MAX, EXTENSIONS_MAX, NAME_LEN_MAX, is_word};
use super::sealed::Sealed;
use super::ticket::{CONTACTS_MAX, Contact, Grant};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Most keys that sign what the mesh builds: the one in use, and those before it.
pub const SIGNING_KEYS_MAX: usize = 4;
/// Longest secret key in Nix's form: a name, a colon, 88 letters.
pub const SIGNING_KEY_LEN_MAX: usize = 512;
/// Longest text that says why not.
pub const REASON_LEN_MAX: usize = 512;

/// What is shown for a certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Claim {
    /// Sealed [`Grant`] of a ticket: a secret.
    Grant(Vec<u8>),
    /// A certificate of the asking node that holds: another one of the same roles is asked for.
    Renewal(Certificate),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    pub claim: Claim,
    /// How people call the node.
    pub name: String,
    pub extensions: BTreeMap<u16, Vec<u8>>,
}

/// A member's all.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub certificate: Certificate,
    /// The seed of the mesh key: for those only whose certificate lets nodes in.
    pub mesh_key: Option<[u8; 32]>,
    /// Secret keys that sign what the mesh builds, in Nix's form.
    pub signing_keys: Vec<String>,
    /// Members to talk to first.
    pub contacts: Vec<Contact>,
}

/// Why there is no certificate, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// What was shown is not whole, or not signed by the key that it names.
    Forged,
    /// It is of another mesh.
    OtherMesh,
    /// The time in which it holds is over or has not begun.
    Expired,
    /// A single-use grant that another node has used.
    Spent,
    /// A single-use grant that another node than the asked one was made to take.
    OtherNode,
    /// A certificate of another node.
    OtherKey,
    /// The asking node was thrown out.
    Revoked,
    /// The asked node cannot let anybody in.
    NotAdmitting,
    /// The asked node cannot do it now.
    Unable,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    Welcome(Box<Welcome>),
    Refused {
        refusal: Refusal,
        /// For people.
        reason: String,
    },
}

impl JoinAnswer {
    /// A reason longer than [`REASON_LEN_MAX`] is cut.
    pub fn refused(refusal: Refusal, reason: &str) -> Self {
        let end = (0..=REASON_LEN_MAX.min(reason.len())).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or(0);
        Self::Refused { refusal, reason: reason[..end].to_owned() }
    }
}

impl Format for JoinRequest {
    const WHAT: &'static str = "request to join";
    const VERSION: u8 = 1;
    const LEN_MAX: usize =
        Sealed::<Grant>::LEN_MAX + Certificate::LEN_MAX + NAME_LEN_MAX + EXTENSIONS_MAX * (EXTENSION_LEN_MAX + 8);

    fn check(&self) -> Result<(), FormatError> {
        match &self.claim {
            Claim::Grant(grant) => within::<Self>("grant", grant.len() <= Sealed::<Grant>::LEN_MAX)?,
            Claim::Renewal(certificate) => certificate.check()?,
        }
        within::<Self>("name", is_word(&self.name, NAME_LEN_MAX))?;
        let short = self.extensions.values().all(|value| value.len() <= EXTENSION_LEN_MAX);
        within::<Self>("extensions", self.extensions.len() <= EXTENSIONS_MAX && short)
    }
}

impl Format for JoinAnswer {
    const WHAT: &'static str = "answer to who joins";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = 6 << 10;

    fn check(&self) -> Result<(), FormatError> {
        match self {
            Self::Welcome(welcome) => welcome.check(),
            Self::Refused { reason, .. } => within::<Self>("reason", reason.len() <= REASON_LEN_MAX),
        }
    }
}

impl Welcome {
    fn check(&self) -> Result<(), FormatError> {
        self.certificate.check()?;
        let admits = self.certificate.term.roles.contain(Roles::ADMIT);
        within::<JoinAnswer>("mesh key", self.mesh_key.is_none() || admits)?;
        let few = self.signing_keys.len() <= SIGNING_KEYS_MAX;
        let short = self.signing_keys.iter().all(|key| key.len() <= SIGNING_KEY_LEN_MAX);
        within::<JoinAnswer>("signing keys", few && short)?;
        let reachable = self.contacts.iter().all(|contact| contact.addresses.len() <= ADDRESSES_MAX);
        within::<JoinAnswer>("contacts", self.contacts.len() <= CONTACTS_MAX && reachable)
    }
}

/// Shows no secret.
impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grant(_) => f.write_str("Grant"),
            Self::Renewal(certificate) => f.debug_tuple("Renewal").field(certificate).finish(),
        }
    }
}

/// Shows no secret.
impl fmt::Debug for Welcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Welcome");
        shown.field("certificate", &self.certificate).field("contacts", &self.contacts).finish_non_exhaustive()
    }
}
