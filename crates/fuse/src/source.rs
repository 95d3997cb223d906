//! Where what is shown comes from.

use shoal_wire::mesh::manifest::{ChunkRef, ContentRoot, Manifest};
use thiserror::Error;

/// Why a source did not give something.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SourceError {
    /// Nobody has it, and asking again soon changes nothing.
    #[error("nobody has it")]
    Missing,
    /// It may come when it is asked for again.
    #[error("{0}")]
    Failed(String),
    /// It is here and cannot be read, and asking again soon changes nothing.
    #[error("{0}")]
    Broken(String),
}

/// Takes one chunk of a request: its place in the request, and its bytes.
pub type Deliver<'a> = &'a mut dyn FnMut(usize, Result<Vec<u8>, SourceError>);

/// Gives store paths. Every method may take its time, is called from several threads at once and never from one that
/// answers the kernel. What it gives is believed only as far as it can be checked: chunks against their names.
pub trait Source: Send + Sync + 'static {
    /// Base names of the store paths that are here, to be listed at the root. Others can be looked up all the same.
    fn names(&self) -> Result<Vec<String>, SourceError>;

    /// The chunks and file tree of the store path with this base name; `None` where there is no such path. What failed is
    /// asked for again for as long as somebody waits for it, so it tries once.
    fn manifest(&self, name: &str) -> Result<Option<Manifest>, SourceError>;

    /// The name of the manifest that such a path should have by what is known at once; `None` where nothing is.
    fn content_root(&self, _name: &str) -> Option<ContentRoot> {
        None
    }

    /// Delivers those of these chunks of that path that are here, in any order; each at most once. Asks nobody who may be
    /// slow. What is not delivered is fetched.
    fn fetch_here(&self, _name: &str, _chunks: &[ChunkRef], _deliver: Deliver<'_>) {}

    /// Brings chunks of that path, in any order; each at most once. What is not delivered counts as failed.
    fn fetch(&self, name: &str, chunks: &[ChunkRef], deliver: Deliver<'_>);

    /// These chunks of that path may be fetched soon: they should be brought near.
    fn prefetch(&self, name: &str, chunks: &[ChunkRef]);
}
