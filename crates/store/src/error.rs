//! What can go wrong, by operation.

use crate::frame::FrameError;
use crate::place::Place;
use shoal_wire::mesh::manifest::ManifestError;
use shoal_wire::nix::nar::NarError;
use shoal_wire::nix::store_path::StorePath;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the store could not do what any operation may need: read, write, or keep its index.
#[derive(Debug, Clone, Error)]
pub enum Error {
    #[error("cannot {action} {}: {source}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error("the store's index failed: {0}")]
    Index(Arc<redb::Error>),
    #[error(transparent)]
    Damaged(Arc<Damage>),
    #[error(
        "the store's file system is full: {available} bytes are free and {reserve} are kept for the index; free space or collect garbage"
    )]
    Full { available: u64, reserve: u64 },
    #[error(
        "an earlier write to the store could not be made durable ({0}), so nothing more is written; check the disk, then restart"
    )]
    Stopped(Arc<str>),
    #[error("{0} is no regular file")]
    NoSuchFile(String),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source: Arc::new(source) }
    }

    /// Whether the disk had no room.
    pub fn is_full(&self) -> bool {
        let no_room = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
            )
        };
        match self {
            Error::Full { .. } => true,
            Error::Io { source, .. } => no_room(source),
            Error::Index(error) => matches!(&**error, redb::Error::Io(source) if no_room(source)),
            _ => false,
        }
    }
}

impl From<Damage> for Error {
    fn from(damage: Damage) -> Self {
        Error::Damaged(Arc::new(damage))
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Error::Index(Arc::new(error.into()))
            }
        }
    )*};
}

from_redb!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError, redb::DatabaseError);

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io { source, .. } => source.kind(),
            Error::Damaged(_) => io::ErrorKind::InvalidData,
            Error::Full { .. } => io::ErrorKind::StorageFull,
            Error::NoSuchFile(_) => io::ErrorKind::NotFound,
            Error::Index(_) | Error::Stopped(_) => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// Stored bytes that are not what they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The store path that was being read, where one was.
    pub path: Option<StorePath>,
    pub object: Object,
    /// Where the object's record lies, where that is known.
    pub place: Option<Place>,
    pub defect: Defect,
}

/// What is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// By its BLAKE3.
    Chunk([u8; 32]),
    /// By its content root.
    Manifest([u8; 32]),
    /// An index record, by its key.
    Record(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Defect {
    #[error("the index does not know it")]
    Unknown,
    #[error("its segment file is missing")]
    NoSegment,
    #[error("its segment file is too short")]
    Truncated,
    #[error("its header is damaged")]
    Header,
    #[error("its bytes do not have their checksum")]
    Checksum,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it was found damaged before and is not served until it is stored again")]
    Quarantined,
    #[error("its bytes do not have its hash")]
    Hash,
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("it does not decode: {0}")]
    Record(String),
}

impl Damage {
    pub(crate) fn chunk(hash: [u8; 32], place: Option<Place>, defect: Defect) -> Damage {
        Damage { path: None, object: Object::Chunk(hash), place, defect }
    }

    pub(crate) fn manifest(root: [u8; 32], defect: Defect) -> Damage {
        Damage { path: None, object: Object::Manifest(root), place: None, defect }
    }

    pub(crate) fn record(key: impl Into<String>, why: impl fmt::Display) -> Damage {
        let object = Object::Record(key.into());
        Damage { path: None, object, place: None, defect: Defect::Record(why.to_string()) }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the store is damaged: ")?;
        match &self.object {
            Object::Chunk(hash) => write!(f, "chunk {}", blake3::Hash::from_bytes(*hash).to_hex())?,
            Object::Manifest(root) => write!(f, "manifest {}", blake3::Hash::from_bytes(*root).to_hex())?,
            Object::Record(key) => write!(f, "index record {key}")?,
        }
        if let Some(path) = &self.path {
            write!(f, " of {path}")?;
        }
        if let Some(place) = &self.place {
            let name = crate::segment::file_name(place.segment);
            write!(f, " (segment {name}, offset {})", place.offset)?;
        }
        write!(f, ": {}", self.defect)
    }
}

impl std::error::Error for Damage {}

/// Names the store path in an error that did not know it.
pub(crate) fn in_path(path: &StorePath) -> impl FnOnce(Error) -> Error + '_ {
    move |error| match error {
        Error::Damaged(damage) if damage.path.is_none() => {
            let mut damage = Arc::unwrap_or_clone(damage);
            damage.path = Some(path.clone());
            damage.into()
        }
        other => other,
    }
}

/// Why a directory could not be opened as a store.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("another process has the store {} open; stop it first, or choose another directory", .0.display())]
    Locked(PathBuf),
    #[error("{} is not a store and not empty; choose another directory", .0.display())]
    NotAStore(PathBuf),
    #[error("the store {} has format {found:?}, this program knows {known:?}; use the version of shoal that wrote it", .dir.display())]
    Format { dir: PathBuf, found: String, known: &'static str },
    #[error(transparent)]
    Store(#[from] Error),
}

/// Why bytes were not taken in.
#[derive(Debug, Clone, Error)]
pub enum IngestError {
    #[error(transparent)]
    Nar(#[from] NarError),
    #[error("{0} bytes follow the end of the NAR")]
    Trailing(u64),
    #[error("the ingest failed before and cannot go on")]
    Failed,
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<IngestError> for io::Error {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::Nar(error) => error.into(),
            IngestError::Store(error) => error.into(),
            error => io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// Why paths did not become valid. Nothing of the batch was stored.
#[derive(Debug, Clone, Error)]
pub enum CommitError {
    #[error("{path} refers to {reference}, which is not valid")]
    Reference { path: StorePath, reference: StorePath },
    #[error("{path} was not stored: a part of it that was stored before was found damaged meanwhile; bring it again")]
    Damaged { path: StorePath },
    #[error("{path} has other contents than announced: NAR hash or size differ")]
    Contents { path: StorePath },
    #[error(transparent)]
    Store(#[from] Error),
}

/// Why paths were not collected.
#[derive(Debug, Clone, Error)]
pub enum GcError {
    #[error("{0} is still alive")]
    Alive(StorePath),
    #[error("{0} is not valid")]
    NotValid(StorePath),
    #[error(transparent)]
    Store(#[from] Error),
}
