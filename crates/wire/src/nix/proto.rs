//! What Nix's worker and serve protocols share: integers, strings, lists, and the values made of them.
//!
//! Every integer is a u64, little endian; a string is its length, its bytes and zero padding to 8. A
//! [`Reader`] bounds everything it decodes: each value by a constant here, all values of one message together
//! by [`MESSAGE_LEN_MAX`], and it allocates as bytes arrive, never by an announced length. What streams (NARs,
//! logs, framed uploads) is not decoded and has no bound. Format: `libutil/serialise.cc`,
//! `libstore/common-protocol.cc` of NixOS/nix.

mod calls;
mod derivation;
mod framed;
mod reader;
mod realisation;
mod values;
mod writer;

pub(crate) use calls::{call_struct, calls, codec_struct, number_enum};
pub(crate) use derivation::{read_derivation, write_derivation};
pub use framed::{FramedReader, FramedWriter};
pub use reader::Reader;
pub use values::{Done, Signatures};
pub(crate) use values::{inexpressible, write_signatures};
pub use writer::Writer;

use crate::nix::store_path::StoreDir;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use thiserror::Error;

/// All decoded values of one request, reply or log message: a query for a million paths, or a derivation
/// with an environment of 100 MB.
pub const MESSAGE_LEN_MAX: u64 = 256 << 20;
/// One string without a narrower meaning: environment variables and texts can be megabytes.
pub const STRING_LEN_MAX: u64 = 64 << 20;
/// A string that is parsed at once: a store path, a hash, a signature, a list of output names.
pub const TOKEN_LEN_MAX: u64 = 64 << 10;
/// Elements of one list, set or map; each takes at least 8 bytes of the message.
pub const COUNT_MAX: u64 = 1 << 22;
/// One frame of an upload. Nix sends 32 KiB, and writes lengths of 32 bits at most.
pub const FRAME_LEN_MAX: u64 = u32::MAX as u64;

/// Why a peer's bytes were not understood. After any of these the stream has no known position: close it.
#[derive(Debug, Error)]
pub enum ProtoError {
    #[error("connection lost: {0}")]
    Io(io::Error),
    #[error("connection closed in the middle of a message")]
    Truncated,
    #[error("{what} of {len} exceeds the limit of {limit}")]
    TooLong { what: &'static str, len: u64, limit: u64 },
    #[error("non-zero padding")]
    Padding,
    #[error("{value} is no {what}")]
    Range { what: &'static str, value: u64 },
    #[error("{what} is not UTF-8")]
    NotUtf8 { what: &'static str },
    #[error("invalid {what}: {why}")]
    Invalid { what: &'static str, why: String },
    #[error("invalid operation {0}")]
    UnknownOp(u64),
}

impl ProtoError {
    pub(crate) fn invalid(what: &'static str, why: impl ToString) -> Self {
        ProtoError::Invalid { what, why: why.to_string() }
    }

    /// Whether the peer is gone, rather than wrong.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, ProtoError::Io(_) | ProtoError::Truncated)
    }
}

impl From<io::Error> for ProtoError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<ProtoError>() {
            Ok(error) => error,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => ProtoError::Truncated,
            Err(error) => ProtoError::Io(error),
        }
    }
}

impl From<ProtoError> for io::Error {
    fn from(error: ProtoError) -> Self {
        match error {
            ProtoError::Io(error) => error,
            ProtoError::Truncated => io::Error::new(io::ErrorKind::UnexpectedEof, error),
            error => io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// Features that both peers can agree on, from protocol 1.38 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Realisations are keyed by derivation path, not by hash modulo.
    RealisationWithPath,
    /// Garbage collection takes paths and whether to delete their referrers.
    DeleteDeadSpecificReferrers,
}

impl Feature {
    pub const ALL: [Feature; 2] = [Feature::RealisationWithPath, Feature::DeleteDeadSpecificReferrers];

    pub fn name(self) -> &'static str {
        match self {
            Feature::RealisationWithPath => "realisation-with-path-not-hash",
            Feature::DeleteDeadSpecificReferrers => "delete-dead-specific-referrers",
        }
    }

    pub fn from_name(name: &str) -> Option<Feature> {
        Feature::ALL.into_iter().find(|feature| feature.name() == name)
    }
}

/// What a connection's peers agreed on; it decides the layout of some values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    pub store_dir: StoreDir,
    /// The lower of both peers' minor versions: of 1.x in the worker protocol, of 2.x in the serve protocol.
    pub minor: u8,
    pub features: BTreeSet<Feature>,
}

impl Dialect {
    pub fn new(store_dir: StoreDir, minor: u8) -> Self {
        Dialect { store_dir, minor, features: BTreeSet::new() }
    }

    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }
}

/// A value with one layout for each dialect.
pub trait Codec: Sized {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError>;
    /// An error of kind `InvalidInput` if the dialect cannot express the value; nothing useful was written.
    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()>;
}

/// A request, and the type of its reply.
pub trait Call: Codec {
    type Reply: Codec;
    /// The opcode that stands before the request.
    const NUMBER: u64;
}
