//! Parts of paths that other nodes have.

use shoal_mesh::fetcher::{FetchError, Part, Urgency, Want};
use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use shoal_wire::mesh::path_record::PathRecord;

use super::{Inner, Neighbours};
use crate::upstream::Held;

impl Neighbours {
    /// The chunks and files of a path. Error: for people.
    pub fn manifest(&self, held: &Held) -> Result<Manifest, String> {
        let inner = self.within_mesh()?;
        let received = inner.runtime.block_on(inner.fetcher.manifest(want(held, Urgency::Build)));
        received.map(|received| received.manifest().clone()).map_err(|error| self.failed(inner, held, &error))
    }

    /// Brings those of these chunks of a path here that are not. `urgency`: who waits for them. Error: for people.
    pub fn bring(&self, held: &Held, chunks: Vec<ChunkRef>, urgency: Urgency) -> Result<Part, String> {
        let inner = self.within_mesh()?;
        let part = inner.runtime.block_on(inner.fetcher.bring(want(held, urgency), chunks));
        part.map_err(|error| self.failed(inner, held, &error))
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
