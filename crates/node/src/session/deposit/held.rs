//! NARs that came in and wait for the narinfo that says what path they are.
//!
//! Clients send either each NAR with its narinfo after it, or all NARs of a closure and then all narinfos. Several
//! narinfos may name one NAR, so one that was used stays for a moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_store::Ingested;

/// Paths of a large closure, whose narinfos all come last.
const NARS_MAX: usize = 16 << 10;
/// Bytes of NAR that may wait together; the disk itself ends an upload before that on most machines.
const BYTES_MAX: u64 = 256 << 30;
/// What an upload may take from a NAR to its narinfo: all other NARs of its closure come between.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);
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
    bytes: u64,
}

struct Entry {
    nar: Arc<HeldNar>,
    since: Instant,
    used: bool,
}

/// There is no room for another NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl HeldNars {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a NAR under the name of its file, in place of one that had the name.
    pub fn hold(&self, file: String, nar: HeldNar, now: Instant) -> Result<(), Full> {
        let mut state = self.lock();
        state.drop_if(|entry| entry.is_stale(now));
        if !state.has_room(nar.ingested.nar_size) {
            state.drop_if(|entry| entry.used);
        }
        state.remove(&file);
        if !state.has_room(nar.ingested.nar_size) {
            return Err(Full);
        }
        state.bytes += nar.ingested.nar_size;
        state.nars.insert(file, Entry { nar: Arc::new(nar), since: now, used: false });
        Ok(())
    }

    pub fn get(&self, file: &str, now: Instant) -> Option<Arc<HeldNar>> {
        let mut state = self.lock();
        let entry = state.nars.get_mut(file).filter(|entry| !entry.is_stale(now))?;
        // Who asks is about to name it.
        entry.since = now;
        Some(entry.nar.clone())
    }

    /// NARs, and their bytes.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.nars.len() as u64, state.bytes)
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
        self.lock().drop_if(|entry| entry.used);
    }

    pub fn tidy(&self, now: Instant) {
        self.lock().drop_if(|entry| entry.is_stale(now));
    }
}

impl Entry {
    fn is_stale(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) > if self.used { USED_WAIT_MAX } else { WAIT_MAX }
    }
}

impl State {
    fn has_room(&self, bytes: u64) -> bool {
        self.nars.len() < NARS_MAX && self.bytes.saturating_add(bytes) <= BYTES_MAX
    }

    fn remove(&mut self, file: &str) {
        if let Some(entry) = self.nars.remove(file) {
            self.bytes -= entry.nar.ingested.nar_size;
        }
    }

    fn drop_if(&mut self, gone: impl Fn(&Entry) -> bool) {
        let State { nars, bytes } = self;
        nars.retain(|_, entry| {
            let goes = gone(entry);
            if goes {
                *bytes -= entry.nar.ingested.nar_size;
            }
            !goes
        });
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
        held.hold("a.nar".into(), nar(&store, &[1; 50_000]), start).unwrap();
        held.hold("b.nar".into(), nar(&store, &[2; 50_000]), start).unwrap();
        let kept = |file: &str| Arc::downgrade(&held.get(file, start).unwrap());
        let (first, second) = (kept("a.nar"), kept("b.nar"));
        let almost = start + WAIT_MAX - Duration::from_secs(1);
        held.tidy(almost);
        // Who asks for it is about to name it.
        assert!(held.get("a.nar", almost).is_some() && second.strong_count() == 1);
        let later = start + WAIT_MAX + Duration::from_secs(1);
        assert!(held.get("b.nar", later).is_none(), "it is over even before anybody tidies");
        held.tidy(later);
        assert_eq!((first.strong_count(), second.strong_count()), (1, 0));
        held.used("a.nar", later);
        held.tidy(later + USED_WAIT_MAX);
        assert_eq!(first.strong_count(), 1);
        held.let_go_of_used();
        assert_eq!((first.strong_count(), held.lock().bytes), (0, 0));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let (held, now, one) = (HeldNars::default(), Instant::now(), nar(&store, b"x"));
        let hold = |name: String| {
            let ingested = one.ingested.clone();
            held.hold(name, HeldNar { ingested, file_hash: [0; 32], file_size: 0 }, now)
        };
        (0..NARS_MAX).for_each(|n| hold(format!("{n}.nar")).unwrap());
        assert_eq!(hold("one more.nar".into()), Err(Full));
        hold("0.nar".into()).unwrap();
        // What was used makes room.
        held.used("1.nar", now);
        hold("one more.nar".into()).unwrap();
    }
}
