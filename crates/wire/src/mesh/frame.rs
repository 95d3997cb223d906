//! What membership says: probes, facts that are pushed, and anti-entropy.
//!
//! Anti-entropy is a pull in up to four frames. The asker sends a hash for each bucket of members; the asked answers
//! with the digests of the buckets that differ, and with facts of buckets that are empty at the asker; the asker sends
//! the facts that are newer at its side and asks for those that are newer at the other.
//!
//! Facts are opaque here: sealed values that membership opens, so that a bad one spoils no frame, and so that they are
//! passed on byte by byte.

use super::format::{Format, FormatError, within};
use super::node_record::{NodeRecord, RecordVersion};
use super::revocation::Revocation;
use super::sealed::{Sealed, SealedBytes};
use super::suspicion::Suspicion;
use serde::{Deserialize, Serialize};

/// Longest frame. Longer ones than a datagram carries go over a stream.
pub const FRAME_LEN_MAX: usize = 16 << 10;
/// Most buckets: of 1,000 members one has four.
pub const BUCKETS_MAX: usize = 256;
/// Most digests in one frame.
pub const DIGESTS_MAX: usize = 1024;
/// Most facts in one frame.
pub const FACTS_MAX: usize = 256;

/// A sealed value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fact {
    Record(SealedBytes),
    Suspicion(SealedBytes),
    Revocation(SealedBytes),
}

impl Fact {
    /// Bytes of the fact in a frame.
    pub fn frame_len(&self) -> usize {
        let len = self.bytes().len();
        // The kind, and the length as postcard writes it.
        1 + if len < 128 { 1 } else { 2 } + len
    }

    pub fn bytes(&self) -> &SealedBytes {
        let (Self::Record(bytes) | Self::Suspicion(bytes) | Self::Revocation(bytes)) = self;
        bytes
    }

    fn is_short(&self) -> bool {
        let max = match self {
            Self::Record(_) => Sealed::<NodeRecord>::LEN_MAX,
            Self::Suspicion(_) => Sealed::<Suspicion>::LEN_MAX,
            Self::Revocation(_) => Sealed::<Revocation>::LEN_MAX,
        };
        self.bytes().len() <= max
    }
}

/// What one knows of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// First eight bytes of the node key, little-endian.
    pub member: u64,
    pub version: RecordVersion,
    /// Suspicions against this incarnation: 0 for none, the greatest number for as many as make a death, and between
    /// them a hash of the author.
    pub suspicions: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// Are you there? `suspected` tells the asked that this incarnation of it is suspected.
    Probe {
        nonce: u64,
        suspected: Option<u64>,
    },
    Ack {
        nonce: u64,
        version: RecordVersion,
    },
    /// Facts that are pushed, and are pushed on by who did not know them, or ones that were missing at the other side.
    Facts {
        pushed: bool,
        facts: Vec<Fact>,
    },
    SyncRequest {
        /// Differs with each request: what two buckets hide from each other once, they do not hide twice.
        salt: u64,
        /// One a bucket, a power of two of them; 0 for an empty one.
        hashes: Vec<u32>,
        /// Hash of the revocations that are known.
        revocations: u32,
    },
    SyncDigests {
        /// How many buckets the request had.
        buckets: u16,
        /// The buckets that differ and are told here, with what is in them.
        differing: Vec<u16>,
        digests: Vec<Digest>,
        facts: Vec<Fact>,
        /// There was more to tell than fits.
        more: bool,
    },
    /// Members whose facts are newer at the other side.
    Wants(Vec<u64>),
}

impl Format for Frame {
    const WHAT: &'static str = "membership frame";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = FRAME_LEN_MAX;

    fn check(&self) -> Result<(), FormatError> {
        let facts =
            |facts: &[Fact]| within::<Self>("facts", facts.len() <= FACTS_MAX && facts.iter().all(Fact::is_short));
        let buckets = |count: usize| within::<Self>("buckets", count.is_power_of_two() && count <= BUCKETS_MAX);
        match self {
            Self::Probe { .. } | Self::Ack { .. } => Ok(()),
            Self::Facts { facts: list, .. } => facts(list),
            Self::SyncRequest { hashes, .. } => buckets(hashes.len()),
            Self::SyncDigests { buckets: count, differing, digests, facts: list, .. } => {
                buckets(usize::from(*count))?;
                let ascending = differing.windows(2).all(|pair| pair[0] < pair[1]);
                within::<Self>("differing", ascending && differing.last().is_none_or(|last| last < count))?;
                within::<Self>("digests", digests.len() <= DIGESTS_MAX)?;
                facts(list)
            }
            Self::Wants(members) => within::<Self>("members", members.len() <= DIGESTS_MAX),
        }
    }
}
