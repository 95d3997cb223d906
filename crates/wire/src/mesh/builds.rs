//! What members ask each other to build, and what an executor says while it does.
//!
//! A request is one stream: the asker sends a [`BuildAsk`] and keeps its side open; the answer is [`BuildFrame`]s until one
//! that ends it. Each is preceded by its length, u32 and little-endian. Who asked and does not want the build any more
//! resets the stream.
//!
//! An offer carries the derivation with all its inputs as store paths, so that the executor needs nothing of the graph
//! that it came from. It decides itself whether it takes one.
//!
//! A node that sees to a client's request asks another to stand in for it with an [`Errand`]: to see to the request should
//! the asker be lost. The answer is [`BuildFrame::Accepted`] and then signs of life; the asker resets the stream when the
//! request has ended.
//!
//! What nodes know of how long builds take they ask each other for with a digest of what they know already.

use super::NodeKey;
use super::format::{Format, FormatError, within};
use super::path_record::PathKey;
use crate::nix::store_path::StorePath;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest derivation that is offered, as ATerm: real ones reach a few hundred KiB. Longer ones are built where they are.
pub const DERIVATION_LEN_MAX: usize = 4 << 20;
/// Nodes that an offer names as having inputs: an executor asks each of them what it has.
pub const NEAR_MAX: usize = 16;
/// Bytes of one line, or of a text for people.
pub const TEXT_LEN_MAX: usize = 256 << 10;
/// Lines of one frame, and bytes of them where there are several: what a packet or two carries well.
pub const LINES_MAX: usize = 1_024;
pub const LINES_LEN_MAX: usize = 64 << 10;
/// Paths of an errand, and bytes of all their names: a distribution's packages in one request. Larger ones have no stand-in.
pub const WANTED_MAX: usize = 16_384;
pub const WANTED_LEN_MAX: usize = 2 << 20;
/// Outputs of one derivation; the most that real ones have is about twenty.
pub const OUTPUTS_MAX: usize = 1_024;
/// Longest name of an output or a derivation: that of a store path.
pub const NAME_LEN_MAX: usize = 211;

/// Words of a digest of estimates.
pub const DIGEST_LEN_MAX: usize = 4_096;
/// Estimates of one answer.
pub const ESTIMATES_MAX: usize = 1_024;

/// The key of the claim of a build, which is that of no path: its owner on the ring says who sees to the derivation.
pub fn claim_key(drv_path: &StorePath) -> PathKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"shoal build").update(drv_path.hash_part().as_bytes());
    *hasher.finalize().as_bytes()
}

/// As Nix's modes of building. What a check builds is kept under the name of its contents, beside what is valid, and the
/// asker compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    Normal,
    Repair,
    Check,
}

/// Settings of the client; what it leaves out is the executor's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub keep_failed: Option<bool>,
    pub timeout_s: Option<u64>,
    pub max_silent_s: Option<u64>,
    pub max_log_bytes: Option<u64>,
    /// 0 means all of the machine's.
    pub cores: Option<u64>,
}

/// One derivation that an executor is asked to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub drv_path: StorePath,
    /// The derivation's own name, which need not be that of its path.
    pub name: String,
    /// ATerm without input derivations.
    pub derivation: Vec<u8>,
    pub mode: Mode,
    pub settings: Settings,
    /// Nodes that have inputs, those with the most first.
    pub near: Vec<NodeKey>,
    /// Somebody waits for the outputs themselves: the end is told when they are on as many nodes as paths should be.
    pub keep: bool,
    /// Estimated peak; 0 where nothing is known.
    pub memory_mib: u64,
    /// Outputs as several nodes built them, by name: where checks of the derivation keep them. They are made the outputs,
    /// and no builder runs. Empty: it is built.
    pub agreed: BTreeMap<String, StorePath>,
}

/// A client's request that another node sees to should the asking one be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errand {
    /// Derived paths, printed as in the worker protocol with the store directory.
    pub wanted: Vec<String>,
    pub keep_going: Option<bool>,
    pub substitute: Option<bool>,
    /// Nodes that must agree on what is built; what the node in whose stead it is seen to would have asked for.
    pub quorum: u8,
    pub settings: Settings,
    /// Seconds after which it is given up where nobody has asked for it by then; `None`: nobody waits for it, and it is
    /// seen to its end.
    pub grace_s: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildAsk {
    Build(Box<Offer>),
    /// To hear of the build of this derivation that the asked node runs, or has run elsewhere; from its beginning.
    Follow {
        drv_path: StorePath,
        /// Nodes that must agree on it, for who follows.
        quorum: u8,
    },
    /// The same if its builder runs at the asked node itself: whoever has the claim is lost.
    Adopt(StorePath),
    /// To stand in for the asking node.
    StandIn(Box<Errand>),
    /// For what builds took, where that is not what this digest is of. The answer is [`BuildFrame::Estimates`].
    Estimates(Vec<u32>),
}

/// What builds of a name took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// A derivation's, without its version.
    pub name: String,
    pub system: String,
    /// When one was last built, in Unix seconds.
    pub built_s: u64,
    pub duration_ms: u64,
    /// Its peak; 0 where it was not measured.
    pub memory_mib: u64,
}

/// Why an executor does not take an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// All its slots are taken.
    Full,
    /// It stops, or is to leave.
    Draining,
    /// Of another system, or without a feature.
    CannotRun,
    /// Its disk is full.
    NoSpace,
    /// It runs no build of what was to be followed.
    Unknown,
    /// What was offered cannot be read.
    Unusable,
    /// It does not fit beside what runs there.
    NoMemory,
}

/// One output that is valid at the executor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltOutput {
    pub path: StorePath,
    pub nar_size: u64,
    /// SHA-256 of the NAR.
    pub nar_hash: [u8; 32],
}

/// How the build ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// As the number of [`crate::nix::worker::BuildStatus`].
    pub status: u8,
    pub error: Vec<u8>,
    pub times_built: u64,
    pub is_non_deterministic: bool,
    /// Unix seconds, or 0.
    pub start_time: u64,
    pub stop_time: u64,
    /// Microseconds.
    pub cpu_user: Option<i64>,
    pub cpu_system: Option<i64>,
    /// By name. The derivation says which realisations they make.
    pub outputs: BTreeMap<String, BuiltOutput>,
    /// Which node has the outputs; `None`: the one that says so. The one that says so where it built them itself, and keeps
    /// them at least until others had time to look for them.
    pub at: Option<NodeKey>,
    /// Its peak; 0 where it was not measured.
    pub memory_mib: u64,
    /// It died for want of memory, of which it had [`Outcome::memory_mib`].
    pub out_of_memory: bool,
    /// Of a build that was followed: it was tried as often as anything is, so who followed does not try it by itself.
    pub given_up: bool,
}

/// What an executor says of one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildFrame {
    /// Ends the answer.
    Refused {
        reason: Reason,
        /// For people.
        text: String,
        /// When it may be asked again.
        retry_after_ms: u32,
    },
    /// It is taken; the inputs are brought first.
    Accepted,
    /// The builder runs, here or at the node with this name.
    Started {
        at: Option<String>,
    },
    Phase(String),
    /// Lines of the builder's output, without their ends.
    Lines(Vec<Vec<u8>>),
    /// What the builder says to people.
    Said(String),
    /// What the executor says to people.
    Message(String),
    /// Nothing happened.
    Alive,
    /// Ends the answer.
    Ended(Box<Outcome>),
    /// The outputs are valid there, and copied to as many nodes as they should be on.
    Built,
    /// Ends the answer.
    Estimates {
        /// How many it knows.
        known: u32,
        /// Some of those that the digest is not of.
        rows: Vec<Took>,
    },
}

impl BuildFrame {
    /// Whether nothing follows.
    pub fn is_last(&self) -> bool {
        matches!(self, BuildFrame::Refused { .. } | BuildFrame::Ended(_) | BuildFrame::Estimates { .. })
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len())
}

impl Format for BuildAsk {
    const WHAT: &'static str = "request for a build";
    const VERSION: u8 = 4;
    /// A derivation and what was agreed on, of the longest names.
    const LEN_MAX: usize = DERIVATION_LEN_MAX + (1 << 20);

    fn check(&self) -> Result<(), FormatError> {
        let of_derivation = |path: &StorePath| within::<Self>("derivation path", path.name().ends_with(".drv"));
        match self {
            BuildAsk::Follow { drv_path, .. } | BuildAsk::Adopt(drv_path) => of_derivation(drv_path),
            BuildAsk::Build(offer) => {
                of_derivation(&offer.drv_path)?;
                within::<Self>("name", is_name(&offer.name))?;
                within::<Self>("derivation", offer.derivation.len() <= DERIVATION_LEN_MAX)?;
                within::<Self>("nodes", offer.near.len() <= NEAR_MAX)?;
                within::<Self>("agreed outputs", offer.agreed.len() <= OUTPUTS_MAX)?;
                within::<Self>("agreed output", offer.agreed.keys().all(|name| is_name(name)))
            }
            BuildAsk::StandIn(errand) => {
                within::<Self>("wanted paths", (1..=WANTED_MAX).contains(&errand.wanted.len()))?;
                let len: usize = errand.wanted.iter().map(String::len).sum();
                within::<Self>("names of wanted paths", len <= WANTED_LEN_MAX)
            }
            BuildAsk::Estimates(digest) => within::<Self>("digest", (1..=DIGEST_LEN_MAX).contains(&digest.len())),
        }
    }
}

impl Format for BuildFrame {
    const WHAT: &'static str = "word of a build";
    const VERSION: u8 = 4;
    /// An end with all its outputs is the longest, or many estimates.
    const LEN_MAX: usize = 1 << 20;

    fn check(&self) -> Result<(), FormatError> {
        let text = |len: usize| within::<Self>("text", len <= TEXT_LEN_MAX);
        match self {
            BuildFrame::Refused { text: said, .. } => text(said.len()),
            BuildFrame::Phase(said) | BuildFrame::Said(said) | BuildFrame::Message(said) => text(said.len()),
            BuildFrame::Started { at } => within::<Self>("node", at.as_deref().is_none_or(is_name)),
            BuildFrame::Lines(lines) => {
                let len: usize = lines.iter().map(Vec::len).sum();
                let fits = match lines.len() {
                    1 => len <= TEXT_LEN_MAX,
                    count => (2..=LINES_MAX).contains(&count) && len <= LINES_LEN_MAX,
                };
                within::<Self>("lines", fits)
            }
            BuildFrame::Ended(outcome) => {
                text(outcome.error.len())?;
                within::<Self>("outputs", outcome.outputs.len() <= OUTPUTS_MAX)?;
                within::<Self>("output", outcome.outputs.keys().all(|name| is_name(name)))
            }
            BuildFrame::Estimates { rows, .. } => {
                within::<Self>("estimates", rows.len() <= ESTIMATES_MAX)?;
                within::<Self>("name", rows.iter().all(|row| is_name(&row.name) && is_name(&row.system)))
            }
            BuildFrame::Accepted | BuildFrame::Alive | BuildFrame::Built => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "builds_tests.rs"]
mod tests;
