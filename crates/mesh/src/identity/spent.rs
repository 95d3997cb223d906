//! Single-use grants that were used here.

use super::{IdentityError, damaged};
use crate::files::{self, PUBLIC};
use serde::{Deserialize, Serialize};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::format::{Format, FormatError, decode, encode};
use shoal_wire::mesh::ticket::Grant;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Most grants that are remembered: as many nodes as a mesh has members. Those that expired make room.
const SPENT_MAX: usize = 16_384;
/// Grants are remembered for so long after they expired, lest a clock that was set back brings them back: a day.
const REMEMBERED_S: u64 = 24 * 3_600;

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Grants(BTreeMap<[u8; 16], Use>);

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Use {
    by: NodeKey,
    expires_s: u64,
}

impl Format for Grants {
    const WHAT: &'static str = "list of spent grants";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = 16 + SPENT_MAX * (16 + 32 + 10);

    fn check(&self) -> Result<(), FormatError> {
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Spent {
    path: PathBuf,
    grants: Grants,
}

/// Whether a grant may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spending {
    /// It is written down now, or the same node used it before: its answer may have been lost.
    Done,
    UsedByAnother,
    Full,
}

impl Spent {
    /// A damaged list is an error: it would let grants be used again.
    pub fn read(path: &Path) -> Result<Self, IdentityError> {
        let bytes = files::read(path, Grants::LEN_MAX);
        let bytes = bytes.map_err(|error| IdentityError::File { path: path.to_owned(), error })?;
        let grants = match bytes {
            Some(bytes) => decode(&bytes).map_err(|error| damaged(path, error))?,
            None => Grants::default(),
        };
        Ok(Self { path: path.to_owned(), grants })
    }

    /// Durably notes that `by` uses `grant`.
    pub fn spend(&mut self, grant: &Grant, by: NodeKey, wall_s: u64) -> Result<Spending, IdentityError> {
        if let Some(earlier) = self.grants.0.get(&grant.id) {
            return Ok(if earlier.by == by { Spending::Done } else { Spending::UsedByAnother });
        }
        let mut grants = self.grants.clone();
        grants.0.retain(|_, earlier| earlier.expires_s.saturating_add(REMEMBERED_S) > wall_s);
        if grants.0.len() >= SPENT_MAX {
            return Ok(Spending::Full);
        }
        grants.0.insert(grant.id, Use { by, expires_s: grant.expires_s });
        files::replace(&self.path, PUBLIC, &encode(&grants))
            .map_err(|error| IdentityError::File { path: self.path.clone(), error })?;
        self.grants = grants;
        Ok(Spending::Done)
    }
}
