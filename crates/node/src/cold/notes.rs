//! What this node knows of the bucket, in `<data-dir>/cold.redb`: which paths need not be written, and in which packs chunks
//! lie that it wrote.
//!
//! All of it saves work only. Without the file every path is asked for once, and chunks that the bucket has are written
//! again where a path needs them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use shoal_wire::mesh::cold::PackName;
use shoal_wire::nix::store_path::StorePath;

/// Base names of paths that the bucket has.
const DONE: TableDefinition<'static, &str, ()> = TableDefinition::new("done");
/// Base names of paths that no record can describe.
const UNFIT: TableDefinition<'static, &str, ()> = TableDefinition::new("unfit");
/// Names of objects of logs and realisations, and the BLAKE3 of what was written as such.
const LORE: TableDefinition<'static, &str, &[u8; 32]> = TableDefinition::new("lore");
/// The bucket that all of it is about, under its only key.
const BUCKET: TableDefinition<'static, &str, &str> = TableDefinition::new("bucket");
const BUCKET_NAME: &str = "name";
/// Packs by the number that chunks name them by.
const PACKS: TableDefinition<'static, u64, &[u8; 32]> = TableDefinition::new("packs");
const NUMBERS: TableDefinition<'static, &[u8; 32], u64> = TableDefinition::new("numbers");
/// Of chunks the pack's number, and offset and length of the frame.
const CHUNKS: TableDefinition<'static, &[u8; 32], (u64, u32, u32)> = TableDefinition::new("chunks");

/// The number of the next pack, under its only key: numbers are given once.
const NEXT: TableDefinition<'static, &str, u64> = TableDefinition::new("next");
const NEXT_PACK: &str = "pack";
/// Packs that were found wrong, until they are found right.
const WRONG: TableDefinition<'static, &[u8; 32], ()> = TableDefinition::new("wrong");

/// Chunks that are remembered: a TiB of NARs, in somewhat more than a GiB. Beyond it all are forgotten, and sharing begins
/// anew.
const CHUNKS_MAX: u64 = 1 << 24;

/// Where a chunk's frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    pub pack: PackName,
    pub offset: u32,
    pub frame_len: u32,
}

pub struct Notes {
    path: PathBuf,
    database: Database,
    chunks_max: u64,
}

impl Notes {
    /// What lies at `path`, of this bucket; one that cannot be read is begun anew.
    pub fn open(path: &Path, bucket: &str) -> Result<Notes> {
        Self::open_with(path, bucket, CHUNKS_MAX)
    }

    fn open_with(path: &Path, bucket: &str, chunks_max: u64) -> Result<Notes> {
        let database = match Self::database(path) {
            Ok(database) => database,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "what this node knows of its bucket cannot be read, and is found out anew");
                std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
                Self::database(path).with_context(|| format!("cannot make {}", path.display()))?
            }
        };
        let notes = Notes { path: path.to_path_buf(), database, chunks_max };
        notes.belong_to(bucket)?;
        Ok(notes)
    }

    fn database(path: &Path) -> Result<Database> {
        let database = Database::create(path)?;
        let txn = database.begin_write()?;
        txn.open_table(DONE)?;
        txn.open_table(UNFIT)?;
        txn.open_table(LORE)?;
        txn.open_table(BUCKET)?;
        txn.open_table(PACKS)?;
        txn.open_table(NUMBERS)?;
        txn.open_table(CHUNKS)?;
        txn.open_table(NEXT)?;
        txn.open_table(WRONG)?;
        txn.commit()?;
        Ok(database)
    }

    /// What is known of another bucket says nothing of this one.
    fn belong_to(&self, bucket: &str) -> Result<()> {
        self.write(|txn| {
            let mut names = txn.open_table(BUCKET)?;
            if names.get(BUCKET_NAME)?.is_some_and(|name| name.value() == bucket) {
                return Ok(());
            }
            names.insert(BUCKET_NAME, bucket)?;
            txn.delete_table(DONE)?;
            txn.delete_table(UNFIT)?;
            txn.delete_table(LORE)?;
            txn.delete_table(PACKS)?;
            txn.delete_table(NUMBERS)?;
            txn.delete_table(CHUNKS)?;
            txn.delete_table(WRONG)?;
            // As they are looked for.
            txn.open_table(DONE)?;
            txn.open_table(UNFIT)?;
            txn.open_table(LORE)?;
            txn.open_table(PACKS)?;
            txn.open_table(NUMBERS)?;
            txn.open_table(CHUNKS)?;
            txn.open_table(WRONG)?;
            Ok(())
        })
    }

    fn what(&self) -> String {
        format!("cannot use {}", self.path.display())
    }

    /// Those of `paths` for which something may be to be done.
    pub fn undone(&self, paths: Vec<StorePath>) -> Result<Vec<StorePath>> {
        let look = || -> Result<Vec<StorePath>> {
            let txn = self.database.begin_read()?;
            let (done, unfit) = (txn.open_table(DONE)?, txn.open_table(UNFIT)?);
            let mut undone = Vec::new();
            for path in paths {
                if done.get(path.base_name())?.is_none() && unfit.get(path.base_name())?.is_none() {
                    undone.push(path);
                }
            }
            Ok(undone)
        };
        look().with_context(|| self.what())
    }

    pub fn is_done(&self, path: &StorePath) -> Result<bool> {
        self.undone(vec![path.clone()]).map(|undone| undone.is_empty())
    }

    /// Whether the bucket has it.
    pub fn is_kept(&self, path: &StorePath) -> Result<bool> {
        let look =
            || -> Result<bool> { Ok(self.database.begin_read()?.open_table(DONE)?.get(path.base_name())?.is_some()) };
        look().with_context(|| self.what())
    }

    /// How many the bucket has.
    pub fn done_count(&self) -> Result<u64> {
        let count = || -> Result<u64> { Ok(self.database.begin_read()?.open_table(DONE)?.len()?) };
        count().with_context(|| self.what())
    }

    /// No record can describe this path.
    pub fn unfit(&self, path: &StorePath) -> Result<()> {
        self.write(|txn| {
            txn.open_table(UNFIT)?.insert(path.base_name(), ())?;
            Ok(())
        })
    }

    /// The bucket has this path.
    pub fn done(&self, path: &StorePath) -> Result<()> {
        self.write(|txn| {
            txn.open_table(DONE)?.insert(path.base_name(), ())?;
            Ok(())
        })
    }

    /// The bucket does not have the path with this hash part as it should.
    pub fn undo(&self, hash_part: &str) -> Result<()> {
        let find = || -> Result<Option<String>> {
            let done = self.database.begin_read()?.open_table(DONE)?;
            let first = done.range(hash_part..)?.next().transpose()?.map(|(name, _)| name.value().to_string());
            Ok(first.filter(|name| name.starts_with(hash_part)))
        };
        let Some(name) = find().with_context(|| self.what())? else { return Ok(()) };
        self.write(|txn| {
            txn.open_table(DONE)?.remove(name.as_str())?;
            Ok(())
        })
    }

    /// Packs that were found wrong and not right again.
    pub fn wrong_packs(&self) -> Result<BTreeSet<PackName>> {
        let look = || -> Result<BTreeSet<PackName>> {
            let rows = self.database.begin_read()?.open_table(WRONG)?;
            let packs = rows.iter()?.map(|row| row.map(|(pack, _)| *pack.value()));
            Ok(packs.collect::<Result<_, _>>()?)
        };
        look().with_context(|| self.what())
    }

    /// A pack is wrong, or is not any more. The caller keeps their number within a bound.
    pub fn set_wrong(&self, pack: &PackName, is_wrong: bool) -> Result<()> {
        self.write(|txn| {
            let mut wrong = txn.open_table(WRONG)?;
            match is_wrong {
                true => wrong.insert(pack, ())?,
                false => wrong.remove(pack)?,
            };
            Ok(())
        })
    }

    /// What is to be written under this name was not.
    pub fn forget_lore(&self, object: &str) -> Result<()> {
        self.write(|txn| {
            txn.open_table(LORE)?.remove(object)?;
            Ok(())
        })
    }

    /// The BLAKE3 of a log or realisation that was written under this name.
    pub fn lore(&self, object: &str) -> Result<Option<[u8; 32]>> {
        let look = || -> Result<Option<[u8; 32]>> {
            Ok(self.database.begin_read()?.open_table(LORE)?.get(object)?.map(|row| *row.value()))
        };
        look().with_context(|| self.what())
    }

    /// It was written.
    pub fn lore_written(&self, object: &str, hash: &[u8; 32]) -> Result<()> {
        self.write(|txn| {
            txn.open_table(LORE)?.insert(object, hash)?;
            Ok(())
        })
    }

    /// Those of `objects`, in order, that were never written. Notes of all others are dropped.
    pub fn keep_lore(&self, objects: &[String]) -> Result<Vec<String>> {
        self.write(|txn| {
            let mut table = txn.open_table(LORE)?;
            table.retain(|name, _| objects.binary_search_by(|object| object.as_str().cmp(name)).is_ok())?;
            let mut unwritten = Vec::new();
            for object in objects {
                if table.get(object.as_str())?.is_none() {
                    unwritten.push(object.clone());
                }
            }
            Ok(unwritten)
        })
    }

    /// Where chunks lie, in the order of `hashes`.
    pub fn locate<'a>(&self, hashes: impl Iterator<Item = &'a [u8; 32]>) -> Result<Vec<Option<Packed>>> {
        let look = || -> Result<Vec<Option<Packed>>> {
            let txn = self.database.begin_read()?;
            let (chunks, packs) = (txn.open_table(CHUNKS)?, txn.open_table(PACKS)?);
            let mut found = Vec::new();
            for hash in hashes {
                let Some((number, offset, frame_len)) = chunks.get(hash)?.map(|row| row.value()) else {
                    found.push(None);
                    continue;
                };
                let pack = packs.get(number)?.map(|row| *row.value());
                found.push(pack.map(|pack| Packed { pack, offset, frame_len }));
            }
            Ok(found)
        };
        look().with_context(|| self.what())
    }

    /// A pack was written, with these chunks: hash, offset, length of the frame.
    pub fn packed(&self, pack: &PackName, chunks: impl Iterator<Item = ([u8; 32], u32, u32)>) -> Result<()> {
        self.write(|txn| {
            if txn.open_table(CHUNKS)?.len()? >= self.chunks_max {
                tracing::info!("more chunks lie in the bucket than are remembered; those known so far are forgotten");
                txn.delete_table(CHUNKS)?;
                txn.delete_table(PACKS)?;
                txn.delete_table(NUMBERS)?;
            }
            let (mut table, mut packs, mut numbers) =
                (txn.open_table(CHUNKS)?, txn.open_table(PACKS)?, txn.open_table(NUMBERS)?);
            let mut next = txn.open_table(NEXT)?;
            let number = next.get(NEXT_PACK)?.map_or(0, |number| number.value());
            next.insert(NEXT_PACK, number + 1)?;
            packs.insert(number, pack)?;
            numbers.insert(pack, number)?;
            for (hash, offset, frame_len) in chunks {
                table.insert(&hash, (number, offset, frame_len))?;
            }
            Ok(())
        })
    }

    /// A pack is not there as it should be: its chunks count as not in the bucket.
    pub fn forget_pack(&self, pack: &PackName) -> Result<()> {
        self.write(|txn| {
            let number = txn.open_table(NUMBERS)?.remove(pack)?.map(|row| row.value());
            if let Some(number) = number {
                txn.open_table(PACKS)?.remove(number)?;
            }
            Ok(())
        })
    }

    /// Keeps only notes of `paths`, in order: there is to be no more of them than of paths.
    pub fn keep_only(&self, paths: &[StorePath]) -> Result<()> {
        self.write(|txn| {
            for table in [DONE, UNFIT] {
                let mut table = txn.open_table(table)?;
                table.retain(|name, ()| paths.binary_search_by(|path| path.base_name().cmp(name)).is_ok())?;
            }
            Ok(())
        })
    }

    fn write<T>(&self, change: impl FnOnce(&redb::WriteTransaction) -> Result<T>) -> Result<T> {
        let write = || -> Result<T> {
            let txn = self.database.begin_write()?;
            let done = change(&txn)?;
            txn.commit()?;
            Ok(done)
        };
        write().with_context(|| self.what())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(digit: u8) -> StorePath {
        StorePath::from_base_name(&format!("{}-x", digit.to_string().repeat(32))).unwrap()
    }

    #[test]
    fn notes_are_kept_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cold.redb");
        let notes = Notes::open(&file, "b").unwrap();
        notes.done(&path(1)).unwrap();
        notes.packed(&[9; 32], [([1; 32], 0, 5), ([2; 32], 5, 6)].into_iter()).unwrap();
        drop(notes);
        let notes = Notes::open(&file, "b").unwrap();
        assert_eq!(notes.undone(vec![path(1), path(2)]).unwrap(), [path(2)]);
        let second = Packed { pack: [9; 32], offset: 5, frame_len: 6 };
        assert_eq!(notes.locate([&[2; 32], &[3; 32]].into_iter()).unwrap(), [Some(second), None]);
    }

    #[test]
    fn what_was_found_wrong_is_known_after_a_restart_until_it_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cold.redb");
        let notes = Notes::open(&file, "b").unwrap();
        notes.done(&path(1)).unwrap();
        notes.done(&path(3)).unwrap();
        for absent in [0, 2, 4] {
            notes.undo(path(absent).hash_part()).unwrap();
        }
        assert_eq!(notes.done_count().unwrap(), 2);
        notes.undo(path(1).hash_part()).unwrap();
        notes.set_wrong(&[8; 32], true).unwrap();
        notes.set_wrong(&[9; 32], true).unwrap();
        notes.set_wrong(&[8; 32], false).unwrap();
        drop(notes);
        let notes = Notes::open(&file, "b").unwrap();
        assert_eq!(notes.undone(vec![path(1), path(3)]).unwrap(), [path(1)]);
        assert_eq!(notes.wrong_packs().unwrap(), BTreeSet::from([[9; 32]]));
    }

    #[test]
    fn what_was_written_beside_paths_is_remembered_for_as_long_as_it_is_here() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::open(&dir.path().join("cold.redb"), "b").unwrap();
        notes.lore_written("logs/a", &[1; 32]).unwrap();
        notes.lore_written("logs/c", &[2; 32]).unwrap();
        assert_eq!(notes.keep_lore(&["logs/a".into(), "logs/b".into()]).unwrap(), ["logs/b"]);
        assert_eq!((notes.lore("logs/a").unwrap(), notes.lore("logs/c").unwrap()), (Some([1; 32]), None));
    }

    #[test]
    fn what_was_found_damaged_counts_as_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::open(&dir.path().join("cold.redb"), "b").unwrap();
        notes.packed(&[8; 32], [([1; 32], 0, 5)].into_iter()).unwrap();
        notes.packed(&[9; 32], [([2; 32], 0, 5)].into_iter()).unwrap();
        notes.forget_pack(&[9; 32]).unwrap();
        let located = notes.locate([&[1; 32], &[2; 32]].into_iter()).unwrap();
        assert!(located[0].is_some() && located[1].is_none());
        // The next has a number that none of the forgotten pack's chunks names.
        notes.packed(&[7; 32], [([3; 32], 0, 5)].into_iter()).unwrap();
        let located = notes.locate([&[3; 32], &[2; 32]].into_iter()).unwrap();
        assert_eq!(
            located.iter().map(|packed| packed.map(|packed| packed.pack)).collect::<Vec<_>>(),
            [Some([7; 32]), None]
        );
    }

    #[test]
    fn there_are_no_more_notes_than_paths_and_no_more_chunks_than_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::open_with(&dir.path().join("cold.redb"), "b", 2).unwrap();
        for digit in 1..4 {
            notes.done(&path(digit)).unwrap();
            notes.packed(&[digit; 32], [([digit; 32], 0, 5)].into_iter()).unwrap();
        }
        notes.keep_only(&[path(2), path(3)]).unwrap();
        assert_eq!(notes.done_count().unwrap(), 2);
        let located = notes.locate([&[1; 32], &[3; 32]].into_iter()).unwrap();
        assert!(located[0].is_none() && located[1].is_some());
    }

    #[test]
    fn what_is_known_of_one_bucket_says_nothing_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cold.redb");
        let notes = Notes::open(&file, "b").unwrap();
        notes.done(&path(1)).unwrap();
        notes.unfit(&path(2)).unwrap();
        notes.lore_written("logs/a", &[1; 32]).unwrap();
        notes.packed(&[9; 32], [([1; 32], 0, 5)].into_iter()).unwrap();
        notes.set_wrong(&[8; 32], true).unwrap();
        drop(notes);
        let notes = Notes::open(&file, "c").unwrap();
        assert!(notes.wrong_packs().unwrap().is_empty());
        assert_eq!(notes.lore("logs/a").unwrap(), None);
        assert_eq!(notes.undone(vec![path(1), path(2)]).unwrap(), [path(1), path(2)]);
        assert_eq!(notes.locate([&[1; 32]].into_iter()).unwrap(), [None]);
    }

    #[test]
    fn what_no_record_can_describe_is_left_alone_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::open(&dir.path().join("cold.redb"), "b").unwrap();
        notes.unfit(&path(1)).unwrap();
        assert!(notes.is_done(&path(1)).unwrap());
        assert!(!notes.is_kept(&path(1)).unwrap());
        assert_eq!(notes.done_count().unwrap(), 0);
    }

    #[test]
    fn notes_that_cannot_be_read_are_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cold.redb");
        std::fs::write(&file, "no database").unwrap();
        assert!(!Notes::open(&file, "b").unwrap().is_done(&path(1)).unwrap());
    }
}
