//! A source in memory that can be told to misbehave.

use crate::paths::{Chunks, Entry, path};
use shoal_fuse::{Deliver, Source, SourceError};
use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};

/// What a source does with those who ask it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Answers nothing until it feels otherwise.
    Hangs,
    Fails,
    /// Has none of what it is asked for.
    Lost,
    /// Answers with bytes that are not those.
    Lies,
}

pub struct Fake {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    paths: BTreeMap<String, (Manifest, Chunks)>,
    listed: Vec<String>,
    mood: Mood,
    lookups_hang: bool,
    /// Chunks that were asked for, in order.
    asked: Vec<[u8; 32]>,
    near: Vec<[u8; 32]>,
}

impl Default for Fake {
    fn default() -> Fake {
        let state = State {
            paths: BTreeMap::new(),
            listed: Vec::new(),
            mood: Mood::Well,
            lookups_hang: false,
            asked: Vec::new(),
            near: Vec::new(),
        };
        Fake { state: Mutex::new(state), changed: Condvar::new() }
    }
}

/// A store path's base name, by its last letters.
pub fn name_of(name: &str) -> String {
    format!("{}-{name}", "0".repeat(32))
}

impl Fake {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with it")
    }

    /// Has a path from now on, which can be looked up; its manifest.
    pub fn add<N: AsRef<str>>(&self, name: &str, entries: &[(N, Entry)]) -> Manifest {
        let (manifest, chunks) = path(entries);
        self.lock().paths.insert(name_of(name), (manifest.clone(), chunks));
        manifest
    }

    /// As [`Fake::add`], and lists it.
    pub fn add_listed<N: AsRef<str>>(&self, name: &str, entries: &[(N, Entry)]) -> Manifest {
        self.lock().listed.push(name_of(name));
        self.add(name, entries)
    }

    pub fn delete(&self, name: &str) {
        self.lock().paths.remove(&name_of(name));
    }

    pub fn feel(&self, mood: Mood) {
        self.lock().mood = mood;
        self.changed.notify_all();
    }

    pub fn let_lookups_hang(&self, hang: bool) {
        self.lock().lookups_hang = hang;
        self.changed.notify_all();
    }

    /// Chunks asked for so far, in order.
    pub fn asked(&self) -> Vec<[u8; 32]> {
        self.lock().asked.clone()
    }

    /// Chunks that were to be brought near, in order.
    pub fn near(&self) -> Vec<[u8; 32]> {
        self.lock().near.clone()
    }
}

impl Source for Fake {
    fn names(&self) -> Result<Vec<String>, SourceError> {
        Ok(self.lock().listed.clone())
    }

    fn manifest(&self, name: &str) -> Result<Option<Manifest>, SourceError> {
        let state = self.changed.wait_while(self.lock(), |state| state.lookups_hang).expect("no thread panics with it");
        Ok(state.paths.get(name).map(|(manifest, _)| manifest.clone()))
    }

    fn content_root(&self, name: &str) -> Option<[u8; 32]> {
        self.lock().paths.get(name).map(|(manifest, _)| manifest.content_root())
    }

    fn fetch(&self, name: &str, chunks: &[ChunkRef], deliver: Deliver<'_>) {
        for (place, chunk) in chunks.iter().enumerate() {
            let mut state = self.lock();
            state.asked.push(chunk.hash);
            let state = self.changed.wait_while(state, |state| state.mood == Mood::Hangs);
            let state = state.expect("no thread panics with it");
            let stored = state.paths.get(name).and_then(|(_, chunks)| chunks.get(&chunk.hash)).cloned();
            let mood = state.mood;
            drop(state);
            let result = match (mood, stored) {
                (Mood::Well, Some(bytes)) => Ok(bytes),
                (Mood::Lies, Some(bytes)) => Ok(bytes.iter().map(|byte| !byte).collect()),
                (Mood::Fails, _) => Err(SourceError::Failed("as it was told to".into())),
                (Mood::Lost | Mood::Hangs | Mood::Well | Mood::Lies, _) => Err(SourceError::Missing),
            };
            deliver(place, result);
        }
    }

    fn prefetch(&self, _: &str, chunks: &[ChunkRef]) {
        self.lock().near.extend(chunks.iter().map(|chunk| chunk.hash));
    }
}
