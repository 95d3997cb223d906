//! Which last copies of paths the nodes need not keep, since the bucket has them: asked anew before each is deleted.
//!
//! Invariants:
//! - nothing is let go of that was not found in the bucket just now: a record that every node with the same signing keys
//!   believes, of the very chunks and with the signatures that are here, and each pack that it names, as long as it must be;
//! - whatever cannot be learned keeps the copy;
//! - a bucket that does not answer holds no collection up: it is left alone for a while then.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use shoal_mesh::handle::Vault;
use shoal_store::Store;
use shoal_wire::mesh::cold::{ColdRecord, PackName, record_object};
use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

use super::{Cold, Pending, Signers};
use crate::session::admission::SIGNATURES_MAX;
use crate::upstream::Refusal;

/// Records that are asked for at once: with their packs' names they are in memory.
const RECORDS_AT_ONCE: usize = 8;
/// A pack that was there within this time counts as there: the paths of one collection share packs.
const PACK_MS: u64 = 60_000;
/// How long nothing is asked of a bucket that did not answer.
const REST_MS: u64 = 10_000;
/// How long a path counts as not in the bucket that another node is to write: a store that is full is collected each 30 s.
const ABSENT_MS: u64 = 60_000;
/// Such paths that are remembered, some 5 MiB.
const ABSENT_MAX: usize = 65_536;
/// Questions about the paths of one collection end after this time, and the others stay: collections wait for each other.
const PATIENCE: Duration = Duration::from_secs(120);
/// What is asked sooner than this after the last answer belongs to the same collection.
const BETWEEN_COLLECTIONS_MS: u64 = 10_000;
/// A record's object is no longer than this for each chunk, with the name of a pack for each of them, and for all else.
const CHUNK_LEN_MAX: usize = 96;
const REFERENCE_LEN_MAX: usize = 256;
const REST_LEN_MAX: usize = 1 << 20;

/// Lets go of what the bucket has.
pub struct LastCopies {
    cold: Arc<Cold>,
    store: Store,
    signers: Signers,
    rest_until_ms: AtomicU64,
    spent: Mutex<Spent>,
    absent: Mutex<HashMap<StorePath, u64>>,
}

/// How long one collection has waited for answers.
#[derive(Default)]
struct Spent {
    waited_ms: u64,
    last_ms: u64,
}

impl Spent {
    /// When the questions of a batch that begins now end.
    fn deadline_ms(&mut self, now_ms: u64) -> u64 {
        if now_ms.saturating_sub(self.last_ms) >= BETWEEN_COLLECTIONS_MS {
            self.waited_ms = 0;
        }
        now_ms + (PATIENCE.as_millis() as u64).saturating_sub(self.waited_ms)
    }

    fn end(&mut self, since_ms: u64, now_ms: u64) {
        self.waited_ms += now_ms.saturating_sub(since_ms);
        self.last_ms = now_ms;
    }
}

/// What came of it, since the node started.
#[derive(Default)]
pub struct Tally {
    pub freed: AtomicU64,
    pub kept: AtomicU64,
    why: Mutex<Option<String>>,
}

impl Tally {
    pub fn why(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why a copy stays.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stays {
    Unwritten,
    Wrong(&'static str),
    /// The bucket or this store does not say.
    Unknown(String),
}

impl std::fmt::Display for Stays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stays::Unwritten => f.write_str("the bucket does not have them yet"),
            Stays::Wrong(why) => f.write_str(why),
            Stays::Unknown(why) => write!(f, "it cannot be learned whether the bucket has them: {why}"),
        }
    }
}

/// A path as it is here.
struct Here {
    info: PathInfo,
    chunks: Vec<ChunkRef>,
}

impl Vault for LastCopies {
    fn has(&self, paths: &[StorePath]) -> Vec<StorePath> {
        let since_ms = self.cold.now_ms();
        let until_ms = self.spent().deadline_ms(since_ms);
        let mut stay: BTreeMap<Stays, usize> = BTreeMap::new();
        let mut had = Vec::new();
        for some in paths.chunks(RECORDS_AT_ONCE) {
            let now_ms = self.cold.now_ms();
            let is_late = now_ms >= until_ms;
            if is_late || now_ms < self.rest_until_ms.load(Ordering::Relaxed) {
                let why = if is_late { "it is too slow for so many at once" } else { "it did not answer a moment ago" };
                let like = stay.keys().find(|known| matches!(known, Stays::Unknown(_))).cloned();
                *stay.entry(like.unwrap_or_else(|| Stays::Unknown(why.into()))).or_default() += some.len();
                continue;
            }
            for (path, found) in self.look(some, until_ms) {
                match found {
                    Ok(()) => had.push(path),
                    Err(why) => {
                        // Each says of its own object what came of it; the first will do.
                        let is_like = |known: &&Stays| matches!((known, &why), (Stays::Unknown(_), Stays::Unknown(_)));
                        let like = stay.keys().find(is_like).cloned();
                        *stay.entry(like.unwrap_or(why)).or_default() += 1;
                    }
                }
            }
        }
        self.spent().end(since_ms, self.cold.now_ms());
        self.tell(had.len(), &stay);
        // What a reader found wrong meanwhile.
        let doubted = self.cold.doubted();
        had.retain(|path| !doubted.contains(path.hash_part()));
        had
    }
}

impl LastCopies {
    pub fn new(cold: Arc<Cold>, store: Store, signers: Signers) -> LastCopies {
        let (rest_until_ms, spent, absent) = Default::default();
        LastCopies { cold, store, signers, rest_until_ms, spent, absent }
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, freed: usize, stay: &BTreeMap<Stays, usize>) {
        let tally = &self.cold.last_copies;
        tally.freed.fetch_add(freed as u64, Ordering::Relaxed);
        for (why, paths) in stay {
            tally.kept.fetch_add(*paths as u64, Ordering::Relaxed);
            let why = why.to_string();
            tracing::info!(bucket = self.cold.bucket.url(), paths, why, "last copies of paths stay on this node");
            *tally.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        }
    }

    /// Whether the bucket has these, few paths.
    fn look(&self, paths: &[StorePath], until_ms: u64) -> Vec<(StorePath, Result<(), Stays>)> {
        let asked: VecDeque<_> = paths.iter().map(|path| (path.clone(), self.ask(path))).collect();
        let mut judged = Vec::with_capacity(paths.len());
        for (path, asked) in asked {
            let needed = asked.and_then(|(here, pending)| self.judge(&path, &here, pending));
            let needed = needed.and_then(|needed| self.check_lore(&path, until_ms).map(|()| needed));
            judged.push((path, needed));
        }
        let all: BTreeSet<PackName> =
            judged.iter().filter_map(|(_, needed)| needed.as_ref().ok()).flat_map(BTreeMap::keys).copied().collect();
        let all: Vec<PackName> = all.into_iter().collect();
        let lens = self.cold.pack_lens(&all, PACK_MS, until_ms).map_err(|why| self.unanswered(why));
        let there: Result<HashMap<PackName, u64>, Stays> = lens.map(|lens| all.into_iter().zip(lens).collect());
        let check = |(path, needed): (StorePath, Result<BTreeMap<PackName, u64>, Stays>)| {
            let found =
                needed.and_then(|needed| self.check_packs(&path, &needed, there.as_ref().map_err(Clone::clone)?));
            (path, found)
        };
        judged.into_iter().map(check).collect()
    }

    fn ask(&self, path: &StorePath) -> Result<(Here, Pending<Bytes>), Stays> {
        let unknown = |error: &dyn std::fmt::Display| Stays::Unknown(format!("{error:#}"));
        if self.cold.doubted().contains(path.hash_part()) {
            return Err(Stays::Wrong("their objects are to be written again"));
        }
        let is_noted = self.cold.notes.is_kept(path).map_err(|error| unknown(&error))?;
        if !is_noted && self.is_absent(path) {
            return Err(Stays::Unwritten);
        }
        if self.cold.lore_to_ask(&self.store, path).map_err(|error| unknown(&error))?.is_none() {
            return Err(Stays::Unwritten);
        }
        let info = self.store.path_info(path).map_err(|error| unknown(&error))?;
        let manifest = self.store.manifest(path).map_err(|error| unknown(&error))?;
        let (Some(info), Some(manifest)) = (info, manifest) else {
            return Err(Stays::Unknown("it is not valid here any more".into()));
        };
        let here = Here { info, chunks: manifest.chunks };
        let len_max = REST_LEN_MAX + here.chunks.len() * CHUNK_LEN_MAX + here.info.references.len() * REFERENCE_LEN_MAX;
        let len_max = len_max.min(ColdRecord::OBJECT_LEN_MAX);
        let pending = self.cold.bucket.ask(&record_object(path.hash_part()), len_max);
        Ok((here, pending))
    }

    /// The packs that the record names and how long they must be, where it says of the path what is known here.
    fn judge(&self, path: &StorePath, here: &Here, pending: Pending<Bytes>) -> Result<BTreeMap<PackName, u64>, Stays> {
        let record = match pending.wait(&self.cold.bucket) {
            Ok(object) => self.cold.read_record(path.hash_part(), &object),
            Err(Refusal::Missing) => return Err(self.missing(path)),
            Err(failed) => Err(failed),
        };
        let record = match record {
            Ok(record) => record,
            Err(Refusal::Missing) => return Err(self.wrong(path, "their records are damaged")),
            Err(Refusal::Failed(why)) => return Err(self.unanswered(why)),
        };
        let said = record.info();
        let (said_facts, facts) = (facts(&said), facts(&here.info));
        if said_facts != facts {
            return Err(Stays::Wrong("the bucket has other contents under their names"));
        }
        if !self.signers.vouch_for(&said) {
            self.cold.refuse_record(path.hash_part(), "none of this node's signing keys signed it");
            return Err(self.wrong(path, "their records are not signed with the mesh's key"));
        }
        let has_room = said.signatures.len() < SIGNATURES_MAX;
        if has_room && !here.info.signatures.is_subset(&said.signatures) {
            return Err(self.wrong(path, "their records lack signatures that are here"));
        }
        if !record.has_chunks(&here.chunks) {
            self.cold.refuse_record(path.hash_part(), "its chunks are not those of the path");
            return Err(self.wrong(path, "their records do not give their contents"));
        }
        Ok(record.pack_lens())
    }

    /// Whether the bucket has where outputs came out as this path.
    fn check_lore(&self, path: &StorePath, until_ms: u64) -> Result<(), Stays> {
        let lore = self.cold.lore_to_ask(&self.store, path).map_err(|error| Stays::Unknown(format!("{error:#}")))?;
        for lore in lore.ok_or(Stays::Unwritten)? {
            if self.cold.now_ms() >= until_ms {
                return Err(Stays::Unknown("it is too slow".into()));
            }
            match self.cold.has_lore(&lore, path, &self.signers.keys) {
                Ok(true) => {}
                Ok(false) | Err(Refusal::Missing) => return Err(Stays::Wrong("what outputs came out as is missing")),
                Err(Refusal::Failed(why)) => return Err(self.unanswered(why)),
            }
        }
        Ok(())
    }

    fn check_packs(
        &self,
        path: &StorePath,
        needed: &BTreeMap<PackName, u64>,
        there: &HashMap<PackName, u64>,
    ) -> Result<(), Stays> {
        let is_short = |(pack, len): &(&PackName, &u64)| there.get(*pack).is_none_or(|there| there < *len);
        match needed.iter().find(is_short) {
            None => Ok(()),
            Some((pack, _)) => {
                self.cold.refuse_pack(pack, path.hash_part(), "it is not there, or too short");
                Err(self.wrong(path, "their contents are missing"))
            }
        }
    }

    /// Has the path written again.
    fn wrong(&self, path: &StorePath, why: &'static str) -> Stays {
        self.cold.write_again(&self.store, path.hash_part());
        Stays::Wrong(why)
    }

    fn missing(&self, path: &StorePath) -> Stays {
        if self.cold.notes.is_kept(path).unwrap_or(false) {
            return self.wrong(path, "their records are missing");
        }
        let (mut absent, now_ms) = (self.absent.lock().unwrap_or_else(PoisonError::into_inner), self.cold.now_ms());
        if absent.len() >= ABSENT_MAX {
            absent.clear();
        }
        absent.insert(path.clone(), now_ms + ABSENT_MS);
        Stays::Unwritten
    }

    fn is_absent(&self, path: &StorePath) -> bool {
        let (mut absent, now_ms) = (self.absent.lock().unwrap_or_else(PoisonError::into_inner), self.cold.now_ms());
        let until_ms = absent.get(path).copied();
        if until_ms.is_some_and(|until_ms| until_ms <= now_ms) {
            absent.remove(path);
            return false;
        }
        until_ms.is_some()
    }

    fn unanswered(&self, why: String) -> Stays {
        self.rest_until_ms.store(self.cold.now_ms() + REST_MS, Ordering::Relaxed);
        Stays::Unknown(why)
    }
}

/// What a record must say of a path as it is here. Signatures may be others.
fn facts(info: &PathInfo) -> impl PartialEq {
    (info.path.clone(), info.nar_hash, info.nar_size, info.references.clone(), info.ca)
}
