//! Between holders of paths, the owners of their records, and who looks for them.
//!
//! The sender of a message is known from its connection and is not named in it. These go over streams.

use super::NodeKey;
use super::format::{Format, FormatError, within};
use super::path_record::{ContentTag, PathKey};
use serde::{Deserialize, Serialize};

/// Most keys in one message: 48 KiB of holdings.
pub const KEYS_MAX: usize = 1024;
/// Most holders in one answer: as many as one fetches from at once.
pub const HOLDERS_MAX: usize = 16;
/// Most path records in one message, beside its length.
pub const RECORDS_MAX: usize = 256;

/// Most nodes to fetch one path from that are named with it.
pub const SOURCES_MAX: usize = 8;

/// Newest version of what members tell each other, as node records name it. Since 2: [`HolderMessage::Keep`].
pub const SYNC_VERSION: u8 = 2;
/// From which version on a member takes [`HolderMessage::Keep`].
pub const KEEP_SINCE: u8 = 2;
/// Longest sealed record and NAR, together, of a path that goes along with the request to keep it: nearly every
/// derivation. A hundred a second of them leave room for what else is told.
pub const ENCLOSED_LEN_MAX: usize = 16 << 10;

/// The sender has this path, with these contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holding {
    pub key: PathKey,
    pub content: ContentTag,
}

/// A path that the receiver is asked to keep a copy of, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub holding: Holding,
    pub from: Vec<NodeKey>,
}

/// All of a small path: to fetch it takes three questions, and each wakes some threads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enclosed {
    /// Sealed path record.
    pub record: Vec<u8>,
    pub nar: Vec<u8>,
}

/// What an owner knows of one key. No holders: nobody has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub key: PathKey,
    pub holders: Vec<NodeKey>,
    /// Sealed path record, of the contents that count; empty where the owner has none yet.
    pub record: Vec<u8>,
}

impl Enclosed {
    pub fn len(&self) -> usize {
        self.record.len().saturating_add(self.nar.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HolderMessage {
    /// To every other that keeps records: the sender was started, and as an owner it knows nothing. `holds_nothing`:
    /// its store is empty, whatever it held before. Answered by [`HolderMessage::Lacks`].
    Begins {
        life: u64,
        holds_nothing: bool,
    },
    /// To an owner: the sender holds these.
    Holds(Vec<Holding>),
    /// To an owner: it holds these no more. Answered by [`HolderMessage::Lacks`].
    Drops(Vec<PathKey>),
    /// From an owner, on [`HolderMessage::Holds`] or [`HolderMessage::Drops`], which it has taken in: it lacks records of
    /// these contents. It may say so later, and once more, of records that it did not ask for then. `life` is another
    /// each time the owner is started.
    Lacks {
        life: u64,
        keys: Vec<PathKey>,
    },
    /// Sealed path records, on [`HolderMessage::Lacks`].
    Records(Vec<Vec<u8>>),
    Lookup {
        id: u64,
        keys: Vec<PathKey>,
    },
    /// One for each key of the lookup, in its order, but for those of which the owner cannot say: it was started lately.
    Answer {
        id: u64,
        found: Vec<Found>,
    },
    /// Fetch these and keep them.
    Copy(Vec<Wanted>),
    /// On [`HolderMessage::Copy`]: these are durable at the sender.
    Stored(Vec<PathKey>),
    /// On [`HolderMessage::Copy`]: these the sender could not get.
    Declined(Vec<PathKey>),
    /// To every owner: may the sender delete these?
    MayDrop {
        id: u64,
        keys: Vec<PathKey>,
    },
    /// On [`HolderMessage::MayDrop`]: these it may, as far as this owner knows, which counts them as gone.
    Dropped {
        id: u64,
        keys: Vec<PathKey>,
    },
    /// To the leading owner: the sender would bring this path in from outside of the mesh.
    Claim {
        id: u64,
        key: PathKey,
    },
    /// On [`HolderMessage::Claim`]: who brings it in, or has it already.
    Claimed {
        id: u64,
        by: NodeKey,
    },
    /// The sender does not bring it in any more.
    Unclaim(PathKey),
    /// On [`HolderMessage::Copy`]: under these names the sender holds other contents.
    Differs(Vec<PathKey>),
    /// As [`HolderMessage::Copy`] of one path that the sender has, with the path itself; answered alike.
    Keep {
        holding: Holding,
        enclosed: Enclosed,
    },
}

impl Format for HolderMessage {
    const WHAT: &'static str = "holder message";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = 8 << 20;

    fn check(&self) -> Result<(), FormatError> {
        let few = |count: usize| within::<Self>("keys", (1..=KEYS_MAX).contains(&count));
        match self {
            Self::Begins { .. } | Self::Claim { .. } | Self::Claimed { .. } | Self::Unclaim(_) => Ok(()),
            Self::Holds(holdings) => few(holdings.len()),
            Self::Drops(keys)
            | Self::Lookup { keys, .. }
            | Self::Stored(keys)
            | Self::Declined(keys)
            | Self::Differs(keys) => few(keys.len()),
            Self::MayDrop { keys, .. } => few(keys.len()),
            // None is an answer too.
            Self::Lacks { keys, .. } | Self::Dropped { keys, .. } => within::<Self>("keys", keys.len() <= KEYS_MAX),
            Self::Copy(wanted) => {
                few(wanted.len())?;
                within::<Self>("sources", wanted.iter().all(|wanted| wanted.from.len() <= SOURCES_MAX))
            }
            Self::Keep { enclosed, .. } => within::<Self>("enclosed path", enclosed.len() <= ENCLOSED_LEN_MAX),
            Self::Records(records) => within::<Self>("records", (1..=RECORDS_MAX).contains(&records.len())),
            Self::Answer { found, .. } => {
                within::<Self>("keys", found.len() <= KEYS_MAX)?;
                within::<Self>("holders", found.iter().all(|found| found.holders.len() <= HOLDERS_MAX))
            }
        }
    }
}
