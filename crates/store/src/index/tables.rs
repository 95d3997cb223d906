//! The tables. Integers are little-endian; "hash part" is the 20 bytes that a store path's first 32
//! digits encode.

use crate::error::Result;
use crate::place::PLACE_LEN;
use redb::{ReadTransaction, TableDefinition, TableHandle, WriteTransaction};

/// BLAKE3 of a chunk -> [`crate::place::Place`].
pub const CHUNKS: TableDefinition<&[u8; 32], &[u8; PLACE_LEN]> = TableDefinition::new("chunks");
/// Content root -> one zstd frame of the manifest's encoding.
pub const MANIFESTS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("manifests");
/// Base name of a valid path -> [`super::path_record`].
pub const PATHS: TableDefinition<&str, &[u8]> = TableDefinition::new("paths");
/// Hash part of a referenced path, hash part of the path that refers to it.
pub const REFERRERS: TableDefinition<&[u8; 40], ()> = TableDefinition::new("referrers");
/// Hash part of an output, hash part of a derivation that has it.
pub const DERIVERS: TableDefinition<&[u8; 40], ()> = TableDefinition::new("derivers");
/// Name of a permanent root -> base name.
pub const ROOTS: TableDefinition<&str, &str> = TableDefinition::new("roots");
/// Name of a pin -> see [`crate::kept`].
pub const KEPT: TableDefinition<&str, &[u8]> = TableDefinition::new("kept");
/// Absolute path of a symlink that roots what it points at.
pub const LINKS: TableDefinition<&[u8], ()> = TableDefinition::new("links");
/// Key (see [`crate::realisations`]) -> JSON as Nix writes it.
pub const REALISATIONS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("realisations");
/// Hash part of a realisation's path, followed by the realisation's key.
pub const REALISED: TableDefinition<&[u8], ()> = TableDefinition::new("realised");
/// Segment -> committed length, live record bytes, live records, live bytes stored in haste; each u64.
pub const SEGMENTS: TableDefinition<u32, &[u8; 32]> = TableDefinition::new("segments");

/// BLAKE3 of a chunk or content root whose stored bytes are not its own -> see [`crate::damage`].
pub const DAMAGED: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("damaged");
/// Hash part of a valid path -> when it was last used, in seconds since 1970.
pub const USES: TableDefinition<&[u8; 20], u64> = TableDefinition::new("uses");

macro_rules! each_table {
    ($txn:expr, $($table:ident),*) => {{ $( $txn.open_table($table)?; )* }};
}

/// Creates what is not there.
pub fn create_all(txn: &WriteTransaction) -> Result<()> {
    each_table!(
        txn,
        CHUNKS,
        MANIFESTS,
        PATHS,
        REFERRERS,
        DERIVERS,
        ROOTS,
        LINKS,
        REALISATIONS,
        REALISED,
        SEGMENTS,
        USES,
        DAMAGED,
        KEPT
    );
    Ok(())
}

/// Whether [`create_all`] has not run on this database.
pub fn missing_any(txn: &ReadTransaction) -> Result<bool> {
    let names: Vec<String> = txn.list_tables()?.map(|table| table.name().to_owned()).collect();
    let all = [
        CHUNKS.name(),
        MANIFESTS.name(),
        PATHS.name(),
        REFERRERS.name(),
        DERIVERS.name(),
        ROOTS.name(),
        LINKS.name(),
        REALISATIONS.name(),
        REALISED.name(),
        SEGMENTS.name(),
        USES.name(),
        DAMAGED.name(),
        KEPT.name(),
    ];
    Ok(all.iter().any(|name| !names.iter().any(|n| n == name)))
}

/// A row of [`SEGMENTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SegmentRow {
    /// Bytes that a crash cannot take back.
    pub committed: u64,
    /// Header and frame bytes of records that the index points at.
    pub live_bytes: u64,
    pub live_records: u64,
    /// Of `live_bytes`, those of records that are [`crate::place::Place::hasty`]: what compressing them
    /// anew may shrink.
    pub hasty_bytes: u64,
}

impl SegmentRow {
    pub fn encode(&self) -> [u8; 32] {
        let mut out = [0; 32];
        let fields = [self.committed, self.live_bytes, self.live_records, self.hasty_bytes];
        for (to, field) in out.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8; 32]) -> Self {
        let [committed, live_bytes, live_records, hasty_bytes] = [0, 8, 16, 24].map(|at| {
            let mut field = [0; 8];
            field.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(field)
        });
        SegmentRow { committed, live_bytes, live_records, hasty_bytes }
    }
}
