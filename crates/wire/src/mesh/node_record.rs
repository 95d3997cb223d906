//! What a node says about itself. Everybody keeps the newest record of everybody.
//!
//! Versions: within one incarnation the sequence counts; an incarnation begins when a node starts, or when it has to
//! contradict that it is dead. Fields that later versions add travel as [`NodeRecord::extensions`], which old programs
//! keep and pass on unread; only what they must not ignore takes a new format version.

use super::certificate::{Certificate, Term};
use super::format::{Format, FormatError, decode, encode, within};
use super::sealed::{RawSignature, Sealed, Signable};
use super::{MeshId, NodeKey};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Longest name: a host name's label.
pub const NAME_LEN_MAX: usize = 63;
/// Most addresses: a machine with several networks has a few in each family.
pub const ADDRESSES_MAX: usize = 8;
/// Most systems and features, and the longest of them.
pub const SYSTEMS_MAX: usize = 16;
pub const FEATURES_MAX: usize = 64;
pub const WORD_LEN_MAX: usize = 64;
/// Most fields of newer versions, and the longest of them.
pub const EXTENSIONS_MAX: usize = 16;
pub const EXTENSION_LEN_MAX: usize = 256;

/// Which of two records of a node is newer: the greater.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordVersion {
    pub incarnation: u64,
    pub sequence: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    #[default]
    Active,
    /// Takes no new builds and no new copies.
    Draining,
    /// Has handed everything over and is gone.
    Left,
}

/// What a node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    pub slots: u32,
    pub cores: u32,
    pub memory_mib: u64,
    pub store_mib: u64,
    /// Shares of the ring, 1 to 16.
    pub weight: u8,
}

/// What of it is in use, and what is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    pub running: u32,
    pub queued: u32,
    pub free_memory_mib: u64,
    pub free_store_mib: u64,
    /// Share of time in which something waited for CPU, memory or disk, in percent.
    pub pressure: u8,
    /// Slot time that could run now and waits here; [`super::demand::Demand`] tells it apart.
    pub demand_cpu_s: u64,
    /// Largest memory that something waiting asks for.
    pub demand_memory_mib: u64,
}

/// Oldest and newest version that a node speaks of one protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    pub oldest: u8,
    pub newest: u8,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocols {
    pub sync: Versions,
    pub chunks: Versions,
    pub builds: Versions,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub mesh: MeshId,
    pub node: NodeKey,
    pub term: Term,
    /// The mesh key's, of the certificate that mesh, node and term make.
    pub certified: RawSignature,
    pub version: RecordVersion,
    pub presence: Presence,
    pub name: String,
    pub addresses: Vec<SocketAddr>,
    pub systems: BTreeSet<String>,
    pub features: BTreeSet<String>,
    pub capacity: Capacity,
    pub load: Load,
    pub protocols: Protocols,
    pub extensions: BTreeMap<u16, Vec<u8>>,
}

/// A field that a later version added. Its number is never used for anything else.
pub trait Extension: Format {
    const NUMBER: u16;
}

impl NodeRecord {
    /// A record of the first incarnation that says nothing but who it is.
    pub fn new(certificate: &Certificate, name: &str) -> Self {
        Self {
            mesh: certificate.mesh,
            node: certificate.node,
            term: certificate.term,
            certified: certificate.signature,
            version: RecordVersion { incarnation: 1, sequence: 0 },
            presence: Presence::Active,
            name: name.to_owned(),
            addresses: Vec::new(),
            systems: BTreeSet::new(),
            features: BTreeSet::new(),
            capacity: Capacity { weight: 1, ..Capacity::default() },
            load: Load::default(),
            protocols: Protocols::default(),
            extensions: BTreeMap::new(),
        }
    }

    pub fn certificate(&self) -> Certificate {
        Certificate { mesh: self.mesh, node: self.node, term: self.term, signature: self.certified }
    }

    /// A field of a later version; `None` where it is absent or does not decode.
    pub fn extension<T: Extension>(&self) -> Option<T> {
        self.extensions.get(&T::NUMBER).and_then(|bytes| decode(bytes).ok())
    }

    pub fn set_extension<T: Extension>(&mut self, value: Option<&T>) {
        match value {
            Some(value) => drop(self.extensions.insert(T::NUMBER, encode(value))),
            None => drop(self.extensions.remove(&T::NUMBER)),
        }
    }

    /// Decodes a sealed record and verifies the node's signature and the mesh's.
    pub fn open(bytes: &[u8]) -> Result<Sealed<NodeRecord>, FormatError> {
        let record = Sealed::<NodeRecord>::open(bytes)?;
        match record.certificate().is_signed() {
            true => Ok(record),
            false => Err(FormatError::Forged(Certificate::WHAT)),
        }
    }
}

/// People read names and words in lists and terminals.
pub(super) fn is_word(text: &str, len_max: usize) -> bool {
    !text.is_empty() && text.len() <= len_max && text.chars().all(|c| c.is_alphanumeric() || "-_.+:".contains(c))
}

impl Format for NodeRecord {
    const WHAT: &'static str = "node record";
    const VERSION: u8 = 1;
    /// Far more than real ones have (about 350): one fits into a frame with others.
    const LEN_MAX: usize = 2048;

    fn check(&self) -> Result<(), FormatError> {
        let words =
            |set: &BTreeSet<String>, max| set.len() <= max && set.iter().all(|word| is_word(word, WORD_LEN_MAX));
        within::<Self>("the time in which it holds", self.term.not_before_s < self.term.expires_s)?;
        within::<Self>("name", is_word(&self.name, NAME_LEN_MAX))?;
        within::<Self>("addresses", self.addresses.len() <= ADDRESSES_MAX)?;
        within::<Self>("systems", words(&self.systems, SYSTEMS_MAX))?;
        within::<Self>("features", words(&self.features, FEATURES_MAX))?;
        within::<Self>("weight", (1..=16).contains(&self.capacity.weight))?;
        within::<Self>("pressure", self.load.pressure <= 100)?;
        // The last incarnation and sequence cannot be followed by another.
        within::<Self>("incarnation", (1..u64::MAX).contains(&self.version.incarnation))?;
        within::<Self>("sequence", self.version.sequence < u64::MAX)?;
        let short = self.extensions.values().all(|value| value.len() <= EXTENSION_LEN_MAX);
        within::<Self>("extensions", self.extensions.len() <= EXTENSIONS_MAX && short)
    }
}

impl Signable for NodeRecord {
    fn author(&self) -> &[u8; 32] {
        &self.node
    }
}
