//! What lets a newcomer in: where the mesh is, and a grant that a node with the mesh key turns into a certificate.
//!
//! Text: `shoal1`, then Nix's base 32 of the encoding and 4 bytes of its BLAKE3. A ticket is a secret: who has it may
//! use it. The node that is asked proves by its key that it is one of the ticket's, before the grant is shown to it.

use super::certificate::Roles;
use super::format::{Format, FormatError, decode, encode, within};
use super::node_record::ADDRESSES_MAX;
use super::sealed::{Sealed, Signable};
use super::{MeshId, NodeKey};
use crate::nix::base32;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

const PREFIX: &str = "shoal1";
const CHECK_LEN: usize = 4;
/// Most nodes a ticket names: enough that one of them is up.
pub const CONTACTS_MAX: usize = 8;
/// Longest text, which people paste.
pub const TEXT_LEN_MAX: usize = PREFIX.len() + (Ticket::LEN_MAX + CHECK_LEN) * 8 / 5 + 1;

/// What a ticket is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub mesh: MeshId,
    /// Random; what a single-use grant is remembered by.
    pub id: [u8; 16],
    /// Good once, and only at this node, so that nodes need not agree on whether it was used. `None`: good at any
    /// node with the mesh key until it expires.
    pub once_at: Option<NodeKey>,
    pub roles: Roles,
    /// Unix seconds.
    pub expires_s: u64,
    /// How long the certificate lasts that is given for it.
    pub membership_s: u64,
}

impl Format for Grant {
    const WHAT: &'static str = "grant";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = 128;

    fn check(&self) -> Result<(), FormatError> {
        within::<Self>("membership", self.membership_s > 0)
    }
}

impl Signable for Grant {
    fn author(&self) -> &[u8; 32] {
        &self.mesh
    }
}

/// A node to ask, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Contact {
    pub node: NodeKey,
    pub addresses: BTreeSet<SocketAddr>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Sealed [`Grant`].
    pub grant: Vec<u8>,
    pub contacts: Vec<Contact>,
}

impl Ticket {
    /// The verified grant.
    pub fn grant(&self) -> Result<Sealed<Grant>, FormatError> {
        Sealed::open(&self.grant)
    }
}

impl Format for Ticket {
    const WHAT: &'static str = "ticket";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = 2048;

    fn check(&self) -> Result<(), FormatError> {
        within::<Self>("grant", self.grant.len() <= Sealed::<Grant>::LEN_MAX)?;
        let few = |contact: &Contact| contact.addresses.len() <= ADDRESSES_MAX;
        within::<Self>("contacts", self.contacts.len() <= CONTACTS_MAX && self.contacts.iter().all(few))
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = encode(self);
        let check = blake3::hash(&bytes);
        bytes.extend(&check.as_bytes()[..CHECK_LEN]);
        write!(f, "{PREFIX}{}", base32::encode(&bytes))
    }
}

/// Shows no secret.
impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("contacts", &self.contacts).finish_non_exhaustive()
    }
}

impl FromStr for Ticket {
    type Err = FormatError;

    /// White space around it is tolerated. Structure and signature of the grant are checked.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(FormatError::Ticket("it begins with 'shoal1'"))?;
        if digits.len() > TEXT_LEN_MAX {
            return Err(FormatError::Ticket("it is too long"));
        }
        let bytes = base32::decode(digits).map_err(|_| FormatError::Ticket("a letter in it is wrong"))?;
        let whole = FormatError::Ticket("its end is missing or a letter in it is wrong");
        let (encoded, check) = bytes.split_last_chunk::<CHECK_LEN>().ok_or(whole.clone())?;
        if blake3::hash(encoded).as_bytes()[..CHECK_LEN] != *check {
            return Err(whole);
        }
        let ticket: Ticket = decode(encoded)?;
        ticket.grant()?;
        Ok(ticket)
    }
}
