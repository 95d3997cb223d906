//! Parts of paths that other nodes have.

use shoal_mesh::fetcher::{FetchError, FetchFailure, Part, Urgency, Want};
use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use shoal_wire::mesh::path_record::PathRecord;

use super::{Inner, Neighbours};
use crate::upstream::Held;

/// Why parts of a path did not come.
pub struct NotBrought {
    /// For people.
    pub why: String,
    /// They are to be had, but there is no room for them here.
    pub is_full: bool,
}

impl Neighbours {
    /// The chunks and files of a path. Error: for people.
    pub fn manifest(&self, held: &Held) -> Result<Manifest, String> {
        let inner = self.within_mesh()?;
        let received = inner.runtime.block_on(inner.fetcher.manifest(want(held, Urgency::Build)));
        received.map(|received| received.manifest().clone()).map_err(|error| self.failed(inner, held, &error))
    }

    /// Brings those of these chunks of a path here that are not. `urgency`: who waits for them.
    pub fn bring(&self, held: &Held, chunks: Vec<ChunkRef>, urgency: Urgency) -> Result<Part, NotBrought> {
        let inner = self.within_mesh().map_err(|why| NotBrought { why, is_full: false })?;
        let part = inner.runtime.block_on(inner.fetcher.bring(want(held, urgency), chunks));
        part.map_err(|error| match &error.failure {
            FetchFailure::Store(full) if full.is_full() => NotBrought { why: error.to_string(), is_full: true },
            _ => NotBrought { why: self.failed(inner, held, &error), is_full: false },
        })
    }

    fn within_mesh(&self) -> Result<&Inner, String> {
        self.0.as_deref().ok_or_else(|| "this node is in no mesh".into())
    }

    fn failed(&self, inner: &Inner, held: &Held, error: &FetchError) -> String {
        self.cut_off(inner, &error.dropped);
        inner.runtime.block_on(inner.mesh.doubt(held.record.key()));
        error.to_string()
    }
}

fn want(held: &Held, urgency: Urgency) -> Want {
    Want { record: PathRecord::clone(&held.record), holders: held.holders.clone(), urgency, checks_nar: false }
}
