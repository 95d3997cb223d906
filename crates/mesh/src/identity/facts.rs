//! What membership knew last, so that a node that comes back need not ask for all of it.

use super::{FACTS, Identity, IdentityError, damaged, read, write};
use crate::files::PUBLIC;
use serde::{Deserialize, Serialize};
use shoal_wire::mesh::format::{Format, FormatError, decode, encode};
use shoal_wire::mesh::frame::Fact;

const CHECK_LEN: usize = 32;

#[derive(Serialize, Deserialize)]
struct Snapshot(Vec<Fact>);

impl Format for Snapshot {
    const WHAT: &'static str = "snapshot of facts";
    const VERSION: u8 = 1;
    /// Records of as many members as membership keeps, at twice their usual length.
    const LEN_MAX: usize = 16 << 20;

    fn check(&self) -> Result<(), FormatError> {
        Ok(())
    }
}

impl Identity {
    /// What [`Self::keep_facts`] kept; nothing where that is lost or damaged.
    pub fn facts(&self) -> Vec<Fact> {
        self.read_facts().unwrap_or_else(|error| {
            tracing::warn!(%error, "what was known of the mesh is lost, and is asked for again");
            Vec::new()
        })
    }

    fn read_facts(&self) -> Result<Vec<Fact>, IdentityError> {
        let Some(bytes) = read(&self.dir, FACTS, Snapshot::LEN_MAX + CHECK_LEN)? else { return Ok(Vec::new()) };
        let path = self.dir.join(FACTS);
        let (encoded, check) = bytes.split_last_chunk::<CHECK_LEN>().ok_or_else(|| damaged(&path, "it is cut"))?;
        if blake3::hash(encoded) != *check {
            return Err(damaged(&path, "its checksum is another"));
        }
        let Snapshot(facts) = decode(encoded).map_err(|error| damaged(&path, error))?;
        Ok(facts)
    }

    /// Keeps what [`shoal_grid::membership::Membership::snapshot`] gives.
    pub fn keep_facts(&self, facts: Vec<Fact>) -> Result<(), IdentityError> {
        let mut bytes = encode(&Snapshot(facts));
        bytes.extend(blake3::hash(&bytes).as_bytes());
        write(&self.dir, FACTS, PUBLIC, &bytes)
    }
}
