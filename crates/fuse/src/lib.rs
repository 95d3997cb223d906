//! A lazy, read-only store as a file system.
//!
//! A [`Mount`] shows store paths of a [`Source`]: their file trees are in memory, their contents are fetched when they
//! are read, chunk by chunk, each compared with its name. What the kernel was told once it never asks again, so what is
//! warm is as fast as a local disk.
//!
//! Nothing here knows of Nix's protocols, of the chunk store or of other nodes.

mod ahead;
mod beneath;
mod cache;
mod counts;
mod errands;
mod fetches;
mod file_system;
mod greeting;
mod late;
mod listing;
mod loads;
mod mount;
mod mountinfo;
mod numbers;
mod options;
mod overlay;
mod place;
mod profile;
mod recovery;
mod refusal;
mod resumed;
mod source;
mod table;
mod tree;
mod view_mount;
mod views;

#[cfg(test)]
#[path = "../tests/fuse/paths.rs"]
mod testing;

pub use counts::Stats;
pub use mount::{Handle, Kept, Mount, MountError, SOURCE_NAME, absolute};
pub use mountinfo::MountLine;
pub use options::{CACHE_BYTES_MAX, FAILURE_MEMORY, LOOKUP_DEADLINE, Options, READ_DEADLINE};
pub use profile::{FILES_MAX, FileRead, Profile};
pub use recovery::{Health, health, remove};
pub use source::{Deliver, Source, SourceError};
pub use view_mount::{View, ViewError, ViewMount};

/// The mounts of this process that are shoal's.
pub fn mounts() -> std::io::Result<Vec<MountLine>> {
    Ok(mountinfo::read()?.into_iter().filter(mountinfo::is_ours).collect())
}
