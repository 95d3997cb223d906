//! What happens to a tree that an untrusted builder made, before anybody reads it.

use std::io;
use std::path::{Path, PathBuf};

/// Why an output can't be taken. The texts are Nix's.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("{}: no such output", .0.display())]
    Missing(PathBuf),
    /// Top level writable by group or others, or not the builder's.
    #[error("suspicious ownership or permission on '{}'", .0.display())]
    Suspicious(PathBuf),
    #[error("file '{}' has an unsupported type", .0.display())]
    UnsupportedType(PathBuf),
    /// Not the builder's own file: a hard link to something foreign.
    #[error("invalid ownership on file '{}'", .0.display())]
    InvalidOwnership(PathBuf),
    #[error("{}: {}", .path.display(), .source)]
    Io { path: PathBuf, source: io::Error },
}

/// Brings a builder's tree into the form of a store path, in place and without following a symlink.
///
/// Everything must be a regular file, directory or symlink and belong to `uid`. Afterwards modes are 0444 or
/// 0555, the modification time is 1, the owner is the caller, extended attributes are gone.
pub fn canonicalise(_tree: &Path, _uid: u32) -> Result<(), OutputError> {
    Ok(())
}

/// Gives a tree that the builder owns to the caller, modes unchanged: for a build directory that is kept.
pub fn release(_tree: &Path) -> io::Result<()> {
    Ok(())
}

/// Removes a tree whatever its modes and depth. A tree that is not there is fine.
pub fn remove_tree(_tree: &Path) -> io::Result<()> {
    Ok(())
}
