//! NARs that came in and wait for the narinfo that says what path they are.
//!
//! Clients send either each NAR with its narinfo after it, or all NARs of a closure and then all narinfos. Several
//! narinfos may name one NAR, so one that was used stays for a moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_store::Ingested;

/// NARs that wait together: the build closures of some large systems.
const NARS_MAX: usize = 128 << 10;
/// Bytes of NAR that may wait together; the disk itself ends an upload before that on most machines.
const BYTES_MAX: u64 = 256 << 30;
/// Bytes of memory for what they are made of: that of 50,000 usual paths.
const MEMORY_MAX: usize = 1 << 30;
/// What those of one token's name take of each: three quarters, so that it does not keep everybody else out.
const EACH_PERCENT: u64 = 75;
/// How long a NAR waits for its narinfo after anything was heard of who brought it: he may bring all other NARs of a
/// closure before.
const SILENCE_MAX: Duration = Duration::from_secs(60 * 60);
/// How long it waits however much is heard: somebody who is never silent also gives up an upload now and then.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long one that became a path may still be named by another.
const USED_WAIT_MAX: Duration = Duration::from_secs(60);

/// A NAR without a path.
pub struct HeldNar {
    pub ingested: Ingested,
    /// SHA-256 of the file that was sent.
    pub file_hash: [u8; 32],
    /// Bytes of it.
    pub file_size: u64,
}

#[derive(Default)]
pub struct HeldNars(Mutex<State>);

#[derive(Default)]
struct State {
    nars: HashMap<String, Entry>,
    /// By the name of the token that brought them. Who has none is forgotten.
    owners: HashMap<Arc<str>, Owner>,
    all: Load,
}

struct Entry {
    nar: Arc<HeldNar>,
    owner: Arc<str>,
    since: Instant,
    used: bool,
}

struct Owner {
    load: Load,
    heard_of: Instant,
}

/// What NARs take together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Load {
    nars: usize,
    bytes: u64,
    memory: usize,
}

/// There is no room for another NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Of anybody.
    All,
    /// Of this token's name.
    Own,
}

impl Load {
    fn of(nar: &HeldNar) -> Load {
        Load { nars: 1, bytes: nar.ingested.nar_size, memory: nar.ingested.memory() }
    }

    fn plus(self, other: Load) -> Load {
        Load {
            nars: self.nars + other.nars,
            bytes: self.bytes.saturating_add(other.bytes),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    fn minus(self, other: Load) -> Load {
        Load {
            nars: self.nars.saturating_sub(other.nars),
            bytes: self.bytes.saturating_sub(other.bytes),
            memory: self.memory.saturating_sub(other.memory),
        }
    }

    /// Whether it is at most this share of all there is.
    fn fits(self, percent: u64) -> bool {
        let fits = |load: u64, max: u64| load <= max / 100 * percent;
        fits(self.nars as u64, NARS_MAX as u64)
            && fits(self.bytes, BYTES_MAX)
            && fits(self.memory as u64, MEMORY_MAX as u64)
    }
}

impl HeldNars {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a NAR of `owner` under the name of its file, in place of one that had the name.
    pub fn hold(&self, owner: &str, file: String, nar: HeldNar, now: Instant) -> Result<(), Full> {
        let mut state = self.lock();
        let load = Load::of(&nar);
        if let Err(full) = state.room(owner, load) {
            state.drop_stale(now);
            state.drop_used(|of| full == Full::All || of == owner);
        }
        state.remove(&file);
        state.room(owner, load)?;
        state.insert(owner, file, nar, now);
        Ok(())
    }

    /// Something came from `owner`.
    pub fn hear(&self, owner: &str, now: Instant) {
        if let Some(owner) = self.lock().owners.get_mut(owner) {
            owner.heard_of = now;
        }
    }

    pub fn get(&self, file: &str, now: Instant) -> Option<Arc<HeldNar>> {
        let mut state = self.lock();
        let State { nars, owners, .. } = &mut *state;
        let entry = nars.get_mut(file).filter(|entry| !entry.is_stale(owners, now))?;
        // Who asks is about to name it.
        entry.since = now;
        Some(entry.nar.clone())
    }

    /// NARs, and their bytes.
    pub fn counts(&self) -> (u64, u64) {
        let all = self.lock().all;
        (all.nars as u64, all.bytes)
    }

    /// A path was made of it.
    pub fn used(&self, file: &str, now: Instant) {
        if let Some(entry) = self.lock().nars.get_mut(file) {
            entry.used = true;
            entry.since = now;
        }
    }

    pub fn let_go_of(&self, file: &str) {
        self.lock().remove(file);
    }

    /// Lets go of those of which a path was made: their chunks are then the path's alone, and go with it.
    pub fn let_go_of_used(&self) {
        self.lock().drop_used(|_| true);
    }

    pub fn tidy(&self, now: Instant) {
        self.lock().drop_stale(now);
    }
}

impl Entry {
    fn is_stale(&self, owners: &HashMap<Arc<str>, Owner>, now: Instant) -> bool {
        let age = |since: Instant| now.saturating_duration_since(since);
        if self.used {
            return age(self.since) > USED_WAIT_MAX;
        }
        let heard_of = owners.get(&self.owner).map_or(self.since, |owner| owner.heard_of.max(self.since));
        age(heard_of) > SILENCE_MAX || age(self.since) > WAIT_MAX
    }
}

impl State {
    /// Whether there is room for so much more of `owner`.
    fn room(&self, owner: &str, load: Load) -> Result<(), Full> {
        if !self.all.plus(load).fits(100) {
            return Err(Full::All);
        }
        let own = self.owners.get(owner).map_or(load, |owner| owner.load.plus(load));
        if own.fits(EACH_PERCENT) { Ok(()) } else { Err(Full::Own) }
    }

    fn insert(&mut self, owner: &str, file: String, nar: HeldNar, now: Instant) {
        let load = Load::of(&nar);
        self.all = self.all.plus(load);
        let name = self.owners.get_key_value(owner).map_or_else(|| owner.into(), |(name, _)| name.clone());
        let owner = self.owners.entry(name.clone()).or_insert(Owner { load: Load::default(), heard_of: now });
        owner.load = owner.load.plus(load);
        owner.heard_of = now;
        self.nars.insert(file, Entry { nar: Arc::new(nar), owner: name, since: now, used: false });
    }

    fn remove(&mut self, file: &str) {
        let Some(entry) = self.nars.remove(file) else { return };
        let load = Load::of(&entry.nar);
        self.all = self.all.minus(load);
        if let Some(owner) = self.owners.get_mut(&entry.owner) {
            owner.load = owner.load.minus(load);
            if owner.load.nars == 0 {
                self.owners.remove(&entry.owner);
            }
        }
    }

    fn drop_stale(&mut self, now: Instant) {
        let stale = self.nars.iter().filter(|(_, entry)| entry.is_stale(&self.owners, now));
        let stale: Vec<String> = stale.map(|(file, _)| file.clone()).collect();
        stale.iter().for_each(|file| self.remove(file));
    }

    fn drop_used(&mut self, of: impl Fn(&str) -> bool) {
        let used = self.nars.iter().filter(|(_, entry)| entry.used && of(&entry.owner));
        let used: Vec<String> = used.map(|(file, _)| file.clone()).collect();
        used.iter().for_each(|file| self.remove(file));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use shoal_store::Store;
    use shoal_wire::nix::nar::write::NarWriter;

    fn nar(store: &Store, contents: &[u8]) -> HeldNar {
        let mut writer = NarWriter::new(Vec::new());
        writer.regular(b"", false, contents.len() as u64).unwrap();
        writer.contents(contents).unwrap();
        let nar = writer.finish().unwrap();
        let mut ingest = store.ingest();
        ingest.write_all(&nar).unwrap();
        HeldNar { ingested: ingest.finish().unwrap(), file_hash: [0; 32], file_size: nar.len() as u64 }
    }

    /// A NAR whose narinfo does not come is let go, and with it what pins its chunks.
    #[test]
    fn what_nobody_names_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let (held, start) = (HeldNars::default(), Instant::now());
        held.hold("me", "a.nar".into(), nar(&store, &[1; 50_000]), start).unwrap();
        held.hold("me", "b.nar".into(), nar(&store, &[2; 50_000]), start).unwrap();
        let kept = |file: &str| Arc::downgrade(&held.get(file, start).unwrap());
        let (first, second) = (kept("a.nar"), kept("b.nar"));
        let almost = start + SILENCE_MAX - Duration::from_secs(1);
        held.tidy(almost);
        // Who asks for it is about to name it.
        assert!(held.get("a.nar", almost).is_some() && second.strong_count() == 1);
        let later = start + SILENCE_MAX + Duration::from_secs(1);
        assert!(held.get("b.nar", later).is_none(), "it is over even before anybody tidies");
        held.tidy(later);
        assert_eq!((first.strong_count(), second.strong_count()), (1, 0));
        held.used("a.nar", later);
        held.tidy(later + USED_WAIT_MAX);
        assert_eq!(first.strong_count(), 1);
        held.let_go_of_used();
        assert_eq!((first.strong_count(), held.lock().all), (0, Load::default()));
        assert!(held.lock().owners.is_empty());
    }

    /// All NARs of a closure come before its first narinfo, however long that takes.
    #[test]
    fn the_nars_of_somebody_who_brings_more_wait_for_him() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let (held, start) = (HeldNars::default(), Instant::now());
        let hour = |n: u32| start + n * SILENCE_MAX;
        held.hold("busy", "first.nar".into(), nar(&store, b"first"), start).unwrap();
        held.hold("silent", "other.nar".into(), nar(&store, b"other"), start).unwrap();
        held.hear("busy", hour(1));
        held.hold("busy", "second.nar".into(), nar(&store, b"second"), hour(2)).unwrap();
        held.tidy(hour(3));
        assert_eq!(held.counts().0, 2, "the first was heard of long ago, who brought it was not");
        assert!(held.get("other.nar", hour(3)).is_none());
        let end = (3..=30).map(hour).find(|now| {
            held.hear("busy", *now);
            held.tidy(*now);
            held.counts().0 == 0
        });
        assert!(end.is_some(), "what is given up stays for ever");
    }

    #[test]
    fn there_is_room_for_so_many_and_for_more_than_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let (held, now, one) = (HeldNars::default(), Instant::now(), nar(&store, b"x"));
        let hold = |owner: &str, name: String| {
            let ingested = one.ingested.clone();
            held.hold(owner, name, HeldNar { ingested, file_hash: [0; 32], file_size: 0 }, now)
        };
        let own = NARS_MAX / 100 * EACH_PERCENT as usize;
        (0..own).for_each(|n| hold("greedy", format!("{n}.nar")).unwrap());
        assert_eq!(hold("greedy", "one more.nar".into()), Err(Full::Own));
        hold("greedy", "0.nar".into()).unwrap();
        (own..NARS_MAX / 100 * 100).for_each(|n| hold("modest", format!("{n}.nar")).unwrap());
        assert_eq!(hold("modest", "one more.nar".into()), Err(Full::All));
        // What was used makes room.
        held.used("1.nar", now);
        hold("modest", "one more.nar".into()).unwrap();
    }
}
