//! Chunks that `shoal push` brings, and the paths that are made of them.
//!
//! An upload names itself, and what it asked about or brought is held for it until its commit, or for [`HOLD_TIME`]
//! after it was last heard of: who is cut off and comes back brings only the rest, whatever was collected meanwhile.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_store::{ChunkError, ChunkHold, Store};
use shoal_wire::mesh::transfer::{ChunkBatch, ChunkQuery, Commit, Entry, Lacking, PathQuery, TransferError};

use super::{Deposits, Outcome, Refusal};
use crate::build::derivations::PendingDerivations;
use crate::door::Grant;
use crate::session::Client;

/// How long what an upload brought is kept after it was last heard of: enough to come back after a cut.
pub const HOLD_TIME: Duration = Duration::from_secs(60 * 60);
/// Uploads that are not committed.
const UPLOADS_MAX: usize = 256;
/// Those of one token's name, so that it does not keep everybody else out: `shoal push` has two at a time.
const UPLOADS_EACH_MAX: usize = 64;
/// Chunks held for all of them, at some 200 bytes of memory each: those of 128 GiB.
const HELD_CHUNKS_MAX: usize = 2 << 20;
/// Of one token's name: those of a path of 96 GiB, and a quarter is left for the others.
const HELD_CHUNKS_EACH_MAX: usize = 3 << 19;
/// What the client may do.
const LATER: &str = "commit them or try again later";
/// Longest name of an upload; a hash has 64 digits.
const NAME_LEN_MAX: usize = 64;

/// Who uploads, and what he calls it.
type Name = (String, String);

/// All uploads that are not committed.
#[derive(Default)]
pub struct Uploads(Mutex<HashMap<Name, Kept>>);

struct Kept {
    hold: Arc<Mutex<ChunkHold>>,
    /// Of the hold, when it was last let go of.
    chunks: usize,
    heard_of: Instant,
    /// The hold is at its commit, which takes long: nobody waits for it.
    commits: bool,
}

/// An upload's commit, until dropped.
struct Committing<'a> {
    uploads: &'a Uploads,
    name: &'a Name,
    hold: Arc<Mutex<ChunkHold>>,
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        if let Some(kept) = self.uploads.all().get_mut(self.name).filter(|kept| Arc::ptr_eq(&kept.hold, &self.hold)) {
            kept.commits = false;
        }
    }
}

impl Uploads {
    /// Lets go of what was not heard of for too long.
    pub fn tidy(&self, now: Instant) {
        let silence = |kept: &Kept| now.saturating_duration_since(kept.heard_of);
        // One that is at work is not silent.
        let is_wanted = |kept: &Kept| Arc::strong_count(&kept.hold) > 1 || silence(kept) < HOLD_TIME;
        self.all().retain(|_, kept| is_wanted(kept));
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Name, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `act`, which takes some moments, on the hold of an upload, which begins with it. `new`: how many more chunks
    /// it may hold afterwards.
    fn with<T>(
        &self,
        name: Name,
        store: &Store,
        new: impl FnOnce(&ChunkHold) -> usize,
        act: impl FnOnce(&mut ChunkHold) -> T,
    ) -> Outcome<T> {
        let hold = self.hold(&name, store, false)?;
        self.act(&name, hold, new, act)
    }

    /// The same with what is the end of an upload, and may take long. Who comes back to it meanwhile is told so, instead
    /// of waiting with a turn that others could use.
    fn commit<T>(
        &self,
        name: Name,
        store: &Store,
        new: impl FnOnce(&ChunkHold) -> usize,
        act: impl FnOnce(&mut ChunkHold) -> Outcome<T>,
    ) -> Outcome<T> {
        let hold = self.hold(&name, store, true)?;
        let _committing = Committing { uploads: self, name: &name, hold: hold.clone() };
        let done = self.act(&name, hold, new, act)??;
        // While nobody else is let in.
        self.all().remove(&name);
        Ok(done)
    }

    fn act<T>(
        &self,
        name: &Name,
        hold: Arc<Mutex<ChunkHold>>,
        new: impl FnOnce(&ChunkHold) -> usize,
        act: impl FnOnce(&mut ChunkHold) -> T,
    ) -> Outcome<T> {
        let mut held = hold.lock().unwrap_or_else(PoisonError::into_inner);
        self.reserve(name, held.len() + new(&held))?;
        let done = act(&mut held);
        let chunks = held.len();
        drop(held);
        if let Some(kept) = self.all().get_mut(name).filter(|kept| Arc::ptr_eq(&kept.hold, &hold)) {
            (kept.chunks, kept.heard_of) = (chunks, Instant::now());
        }
        Ok(done)
    }

    fn hold(&self, name: &Name, store: &Store, commits: bool) -> Outcome<Arc<Mutex<ChunkHold>>> {
        let mut all = self.all();
        if let Some(kept) = all.get_mut(name) {
            if kept.commits {
                return Err(Refusal::busy("this upload is being committed; try again later"));
            }
            kept.commits = commits;
            return Ok(kept.hold.clone());
        }
        let own = all.keys().filter(|(who, _)| *who == name.0).count();
        if own >= UPLOADS_EACH_MAX {
            return Err(Refusal::busy(format!("'{}' has {own} uploads that it did not commit; {LATER}", name.0)));
        }
        if all.len() >= UPLOADS_MAX {
            return Err(Refusal::busy(format!("there are {UPLOADS_MAX} uploads that nobody committed; {LATER}")));
        }
        let hold = Arc::new(Mutex::new(store.hold_chunks()));
        all.insert(name.clone(), Kept { hold: hold.clone(), chunks: 0, heard_of: Instant::now(), commits });
        Ok(hold)
    }

    /// Makes room for an upload to hold `chunks`. What it takes less of is given back when it is known.
    fn reserve(&self, name: &Name, chunks: usize) -> Outcome {
        let mut all = self.all();
        let others = all.iter().filter(|(other, _)| *other != name);
        let (own, held) = others.fold((0, 0), |(own, held), ((who, _), kept)| {
            (own + if *who == name.0 { kept.chunks } else { 0 }, held + kept.chunks)
        });
        if own + chunks > HELD_CHUNKS_EACH_MAX {
            return Err(Refusal::busy(format!("'{}' uploaded too much that no path is made of yet; {LATER}", name.0)));
        }
        if held + chunks > HELD_CHUNKS_MAX {
            return Err(Refusal::busy(format!("too much was uploaded that no path is made of yet; {LATER}")));
        }
        if let Some(kept) = all.get_mut(name) {
            kept.chunks = chunks;
        }
        Ok(())
    }
}

impl From<TransferError> for Refusal {
    fn from(error: TransferError) -> Self {
        Refusal::bad(error.to_string())
    }
}

impl From<ChunkError> for Refusal {
    fn from(error: ChunkError) -> Self {
        match error {
            ChunkError::Store(error) => error.into(),
            error => Refusal::bad(error.to_string()),
        }
    }
}

fn name(client: &Client, upload: &str) -> Outcome<Name> {
    let fits = upload.len() <= NAME_LEN_MAX && upload.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match fits && !upload.is_empty() {
        true => Ok((client.peer.grant.who.clone(), upload.to_owned())),
        false => Err(Refusal::bad(format!("an upload's name has 1 to {NAME_LEN_MAX} letters and digits"))),
    }
}

impl Deposits {
    /// Which of the paths are not valid here.
    pub fn lacking_paths(&self, grant: Grant, query: &PathQuery) -> Outcome<Lacking> {
        let client = self.uploader(grant)?;
        let valid: HashSet<_> = client.store().valid_of(&query.0)?.into_iter().collect();
        Ok(Lacking(query.0.iter().map(|path| !valid.contains(path)).collect()))
    }

    /// Which of the chunks have to be brought. The others are held for this upload from now on.
    pub fn lacking_chunks(&self, grant: Grant, upload: &str, query: &ChunkQuery) -> Outcome<Lacking> {
        let client = self.uploader(grant)?;
        let name = name(&client, upload)?;
        let new = |hold: &ChunkHold| hold.count_new(&query.0);
        Ok(Lacking(self.uploads.with(name, client.store(), new, |hold| hold.lacks(&query.0))??))
    }

    /// Takes in a batch of chunks and holds them.
    pub fn put_chunks(&self, grant: Grant, upload: &str, batch: &[u8]) -> Outcome {
        let client = self.uploader(grant)?;
        let name = name(&client, upload)?;
        let chunks = ChunkBatch::decode(batch)?;
        let hashes: Vec<[u8; 32]> = chunks.iter().map(|(chunk, _)| chunk.hash).collect();
        let new = |hold: &ChunkHold| hold.count_new(&hashes);
        Ok(self.uploads.with(name, client.store(), new, |hold| hold.bring(chunks))??)
    }

    /// Makes paths of chunks that are here, all or none, and lets go of what was held for the upload. Whether they are
    /// what they are said to be is found out as for any upload; who may name a chunk may also read it, see
    /// `docs/protocols.md`.
    pub fn commit_chunks(&self, grant: Grant, upload: &str, commit: Commit) -> Outcome {
        let client = self.uploader(grant)?;
        let name = name(&client, upload)?;
        let hashes: Vec<[u8; 32]> = commit.0.iter().flat_map(|entry| &entry.chunks).map(|chunk| chunk.hash).collect();
        let new = |hold: &ChunkHold| hold.count_new(&hashes);
        self.uploads.commit(name, client.store(), new, |hold| client.commit_entries(hold, commit))
    }
}

impl Client {
    fn commit_entries(&self, hold: &mut ChunkHold, commit: Commit) -> Outcome {
        let mut pending = PendingDerivations::new();
        let (mut batch, mut known_already) = (Vec::new(), Vec::new());
        self.bring_references(commit.0.iter().map(|entry| &entry.info));
        for Entry { mut info, chunks } in commit.0 {
            self.temp_roots.add(&info.path);
            if let Some(known) = self.store().path_info(&info.path)? {
                self.add_to_valid(&known, &info)?;
                known_already.push(known);
                continue;
            }
            self.judge_claim(&info)?;
            let path = self.dir().print(&info.path);
            let hashes: Vec<[u8; 32]> = chunks.iter().map(|chunk| chunk.hash).collect();
            let lacking = hold.lacks(&hashes)?.into_iter().filter(|&lacks| lacks).count();
            if lacking > 0 {
                return Err(Refusal::new(409, format!("'{path}' lacks {lacking} of its chunks; bring them first")));
            }
            let mut ingest = self.store().ingest();
            io::copy(&mut hold.contents(chunks)?, &mut ingest).map_err(|error| unlike(&path, &error))?;
            let ingested = ingest.finish()?;
            if let Some(derivation) = self.judge_contents(&mut info, &ingested, &pending)? {
                pending.insert(info.path.clone(), derivation);
            }
            batch.push((info, ingested));
        }
        self.commit(batch)?;
        self.acknowledge(&known_already).map_err(|fault| Refusal::of_fault(503, fault))
    }
}

/// Why the chunks of a path could not be put together.
fn unlike(path: &str, error: &io::Error) -> Refusal {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<shoal_store::Error>()) {
        // From now on it is known to be damaged, so that it is lacking when it is asked for again.
        Some(shoal_store::Error::Damaged(damage)) => {
            tracing::error!("{damage}");
            Refusal::new(409, format!("cannot put '{path}' together: a chunk of it is damaged here; bring it again"))
        }
        _ => Refusal::of_io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_store::Options;

    #[test]
    fn what_is_silent_is_forgotten_unless_it_is_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
        let uploads = Uploads::default();
        let now = Instant::now();
        let kept =
            || Kept { hold: Arc::new(Mutex::new(store.hold_chunks())), chunks: 1, heard_of: now, commits: false };
        let name = |upload: &str| ("who".to_owned(), upload.to_owned());
        uploads.all().insert(name("silent"), kept());
        let busy = kept();
        let _at_work = busy.hold.clone();
        uploads.all().insert(name("busy"), busy);
        uploads.tidy(now + HOLD_TIME / 2);
        assert_eq!(uploads.all().len(), 2);
        uploads.tidy(now + HOLD_TIME);
        assert_eq!(uploads.all().keys().collect::<Vec<_>>(), [&name("busy")]);
    }

    /// Repeats of a commit that takes long do not wait for it, and it can be begun again when it has failed.
    #[test]
    fn who_comes_back_during_a_commit_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
        let uploads = Uploads::default();
        let name = || ("who".to_owned(), "upload".to_owned());
        let none = |_: &ChunkHold| 0;
        let failed = uploads.commit(name(), &store, none, |_| {
            let again = uploads.commit(name(), &store, none, |_| Ok(()));
            assert_eq!(again.unwrap_err(), Refusal::busy("this upload is being committed; try again later"));
            assert_eq!(uploads.with(name(), &store, none, |_| ()).unwrap_err().status, 503);
            assert!(uploads.with(("who".into(), "other".into()), &store, none, |_| ()).is_ok());
            Err::<(), _>(Refusal::bad("a chunk is lacking"))
        });
        assert_eq!(failed.unwrap_err().status, 400);
        uploads.with(name(), &store, none, |_| ()).unwrap();
        uploads.commit(name(), &store, none, |_| Ok(())).unwrap();
        assert!(!uploads.all().contains_key(&name()));
    }

    /// Whoever names what does not exist keeps nobody but himself waiting, and what is held counts once.
    #[test]
    fn one_who_holds_too_much_leaves_room_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
        let uploads = Uploads::default();
        let hashes: Vec<[u8; 32]> = (0..20).map(|number| [number; 32]).collect();
        let ask = |who: &str, upload: &str| {
            let new = |hold: &ChunkHold| hold.count_new(&hashes);
            uploads.with((who.into(), upload.into()), &store, new, |hold| hold.lacks(&hashes).unwrap().len())
        };
        assert_eq!(ask("greedy", "a"), Ok(20));
        let held = |who: &str, chunks| {
            let hold = Arc::new(Mutex::new(store.hold_chunks()));
            uploads
                .all()
                .insert((who.into(), "held".into()), Kept { hold, chunks, heard_of: Instant::now(), commits: false });
        };
        held("greedy", HELD_CHUNKS_EACH_MAX - 20);
        assert_eq!(ask("greedy", "a"), Ok(20), "what is held already is new");
        assert_eq!(ask("greedy", "b").unwrap_err().status, 503);
        assert_eq!(ask("modest", "a"), Ok(20));
        held("another", HELD_CHUNKS_MAX - HELD_CHUNKS_EACH_MAX);
        assert_eq!(ask("modest", "b").unwrap_err().status, 503);
        for number in 0..UPLOADS_EACH_MAX {
            assert!(uploads.hold(&("many".into(), number.to_string()), &store, false).is_ok());
        }
        assert!(uploads.hold(&("many".into(), "more".into()), &store, false).is_err());
        assert!(uploads.hold(&("modest".into(), "c".into()), &store, false).is_ok());
    }
}
