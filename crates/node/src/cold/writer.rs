//! Writes to the bucket what this node has and the bucket has not, on a thread of its own.
//!
//! One path after the other: its new chunks go into the open pack, and its record is written once all packs that it names
//! are. Memory: one pack, and the places of chunks of what waits for it. Of several nodes that have a path the one that
//! claims it writes it; the others look later whether it did.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use shoal_grid::cold::{Backoff, Filling, Next};
use shoal_store::{Lore, Place, Run, Store, StoredFrames};
use shoal_wire::mesh::cold::{CHUNKS_MAX, ColdRecord, PACK_LEN_MAX, PackName, PackedChunk, pack_object, record_object};
use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::{SecretKey, Signature};
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use super::claims::Claims;
use super::lengths::NAMED_MS;
use super::notes::Packed;
use super::{Cold, Item, follow, lore};
use crate::neighbours::Neighbours;
use crate::upstream::Refusal;
use there::Wanted;

mod there;

/// When it is looked whether another node wrote what it said it would, or whether what could not be read can be.
const LATER_MS: u64 = 600_000;
/// Bytes of a segment that are read at once.
const RUN_BYTES: u64 = 1 << 20;
/// Paths of which it is asked at once whether they were written.
const LOOKED_AT_ONCE: usize = 4096;
/// A writer that waits looks at least so often whether anything is due.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How soon a pause ends when the node stops.
const POLL: Duration = Duration::from_millis(50);

pub type Believes = Box<dyn Fn(&PathInfo) -> Result<(), String> + Send>;

/// What writing takes.
pub struct Means {
    pub cold: Arc<Cold>,
    pub store: Store,
    pub dir: StoreDir,
    pub neighbours: Neighbours,
    /// Sign what is written, so that other nodes believe it.
    pub keys: Vec<SecretKey>,
    /// Whether what is said of a path is believed. Error: why not, for people.
    pub believes: Believes,
    /// Bytes a second.
    pub rate: Option<u64>,
}

/// Writes until it is dropped.
pub struct Writer {
    cold: Arc<Cold>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub fn start(means: Means) -> Result<Writer> {
        let cold = means.cold.clone();
        follow(&cold, &means.store);
        let backoff = Backoff::default();
        let spread = means.keys.first().map_or(0, |key| key.public().bytes()[0]);
        let claims = Claims::new(means.neighbours.clone(), cold.bucket.runtime());
        let work = move || Work { means, claims, open: Open::default(), backoff, spread }.run();
        let thread = thread::Builder::new().name("cold".into()).spawn(work).context("cannot start a thread")?;
        Ok(Writer { cold, thread: Some(thread) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.cold.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a bug ended the writing to the bucket");
        }
    }
}

/// Where a chunk's frame lies; `None`: in the open pack.
#[derive(Clone, Copy)]
struct Placed {
    chunk: ChunkRef,
    pack: Option<PackName>,
    offset: u32,
    frame_len: u32,
}

/// A path whose record waits for the open pack.
struct Waiting {
    info: PathInfo,
    chunks: Vec<Placed>,
    is_doubted: bool,
}

/// The pack that is being filled.
#[derive(Default)]
struct Open {
    bytes: Vec<u8>,
    chunks: HashMap<[u8; 32], (u32, u32)>,
    filling: Filling,
    waiting: Vec<Waiting>,
}

struct Work {
    means: Means,
    claims: Claims<Neighbours>,
    open: Open,
    backoff: Backoff,
    spread: u8,
}

/// Why a path is not written now.
#[derive(Clone)]
enum Skipped {
    /// Its record would be outside of the limits: for people.
    Unfit(String),
    /// It cannot be read, or no note of it can be taken: for people. It may be healed by and by, or the disk be made room on.
    NotNow(String),
    /// The bucket took something not, however often it was tried. What waits for it comes up again.
    Refused,
    /// The node stops: what is in hand comes up when it starts again.
    Stopped,
}

impl Work {
    fn run(mut self) {
        let cold = self.means.cold.clone();
        while !cold.bucket.is_stopping() {
            let now_ms = cold.now_ms();
            let is_idle = cold.backlog().is_idle();
            if self.open.filling.is_due(now_ms, is_idle) {
                // What came of it is in the log, and what waits comes up again.
                let _ = self.flush(&mut Vec::new());
                self.count_hand(0);
                continue;
            }
            let next = cold.backlog().next(now_ms);
            match next {
                Next::Path(item) => {
                    self.count_hand(1);
                    match item {
                        Item::Path(path) => self.take(&path),
                        Item::Lore(lore) => self.write_lore(lore),
                    }
                    self.count_hand(0);
                }
                Next::Look => {
                    cold.backlog().looking();
                    if let Err(error) = self.look() {
                        tracing::warn!("cannot look through what is stored for what the bucket lacks: {error:#}");
                        cold.backlog().look_again();
                        self.pause_after(&error.to_string());
                    }
                }
                Next::Wait { until_ms } => self.wait(until_ms),
            }
        }
    }

    fn count_hand(&self, more: usize) {
        self.means.cold.written.in_hand.store(self.open.waiting.len() + more, Ordering::Relaxed);
    }

    /// Until something comes, or something may be due.
    fn wait(&self, until_ms: Option<u64>) {
        let cold = &self.means.cold;
        let due_ms = self.open.filling.due_ms(true).unwrap_or(u64::MAX).min(until_ms.unwrap_or(u64::MAX));
        let patience = Duration::from_millis(due_ms.saturating_sub(cold.now_ms())).min(LOOK_AGAIN);
        let backlog = cold.backlog();
        if backlog.is_idle() && !cold.bucket.is_stopping() {
            // Whatever woke it, all is looked at again.
            drop(cold.news.wait_timeout(backlog, patience));
        }
    }

    /// Adds what is stored and not known to be in the bucket, as far as there is room.
    fn look(&mut self) -> Result<()> {
        let cold = &self.means.cold;
        let paths = self.means.store.paths()?;
        cold.notes.keep_only(&paths)?;
        for some in paths.chunks(LOOKED_AT_ONCE) {
            for path in cold.notes.undone(some.to_vec())? {
                if !cold.backlog().add(Item::Path(path)) {
                    return Ok(());
                }
            }
        }
        let mut lore: BTreeMap<String, Lore> =
            self.means.store.lore()?.into_iter().map(|lore| (lore::object(&lore), lore)).collect();
        let objects: Vec<String> = lore.keys().cloned().collect();
        for object in cold.notes.keep_lore(&objects)? {
            if let Some(lore) = lore.remove(&object)
                && !cold.backlog().add(Item::Lore(lore))
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Writes a log or a realisation, unless the same was written.
    fn write_lore(&mut self, lore: Lore) {
        let cold = self.means.cold.clone();
        let object = lore::object(&lore);
        let bytes = match lore::bytes(&lore, &self.means.store, &self.means.keys) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(object, "cannot read what is to be written to the bucket: {error:#}");
                return cold.backlog().postpone(Item::Lore(lore), cold.now_ms() + LATER_MS);
            }
        };
        let hash = *blake3::hash(&bytes).as_bytes();
        if cold.notes.lore(&object).is_ok_and(|known| known == Some(hash)) {
            return;
        }
        if self.put(&object, bytes.into()).is_err() {
            // A node that stops finds it again when it starts.
            cold.backlog().add(Item::Lore(lore));
            return;
        }
        let written = &cold.written;
        let counter = if let Lore::Log(_) = lore { &written.logs } else { &written.realisations };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = cold.notes.lore_written(&object, &hash) {
            tracing::warn!("{error:#}");
        }
    }

    fn take(&mut self, path: &StorePath) {
        let cold = self.means.cold.clone();
        let is_doubted = cold.doubted().remove(path.hash_part());
        let wanted = match self.wanted(path, is_doubted) {
            Ok(wanted) => wanted,
            Err(why) => {
                if is_doubted {
                    cold.doubt(path.hash_part());
                }
                cold.backlog().add(Item::Path(path.clone()));
                return self.pause_after(&why);
            }
        };
        let taken = match wanted {
            Wanted::Nothing => Ok(()),
            Wanted::Signatures(record) => self.sign(*record),
            Wanted::All(signatures) => self.pack(path, is_doubted, signatures),
        };
        if let Err(skipped) = taken {
            self.skip(path, is_doubted, skipped);
        }
    }

    /// Whatever kept a path from being written, it comes up again, unless it never can be.
    fn skip(&self, path: &StorePath, is_doubted: bool, skipped: Skipped) {
        let cold = &self.means.cold;
        self.claims.end(path);
        if is_doubted {
            cold.doubt(path.hash_part());
        }
        match skipped {
            Skipped::Unfit(why) => {
                tracing::warn!(path = path.base_name(), why, "a path is not written to the bucket");
                if let Err(error) = cold.notes.unfit(path) {
                    tracing::warn!("{error:#}");
                }
            }
            Skipped::NotNow(why) => {
                tracing::warn!(path = path.base_name(), why, "a path is not written to the bucket now");
                cold.backlog().postpone(Item::Path(path.clone()), cold.now_ms() + LATER_MS);
            }
            Skipped::Refused => _ = cold.backlog().add(Item::Path(path.clone())),
            Skipped::Stopped => {}
        }
    }

    /// Puts a path's new chunks into the open pack, and has its record wait for it.
    fn pack(&mut self, path: &StorePath, is_doubted: bool, signatures: BTreeSet<Signature>) -> Result<(), Skipped> {
        let not_now = |error: shoal_store::Error| Skipped::NotNow(error.to_string());
        let store = self.means.store.clone();
        let info = store.path_info(path).map_err(not_now)?;
        let nar_size = info.as_ref().map_or(0, |info| info.nar_size);
        let frames = store.stored_frames(path, 0..nar_size).map_err(not_now)?;
        let (Some(mut info), Some(frames)) = (info, frames) else {
            self.claims.end(path);
            return Ok(());
        };
        if frames.frames().len() > CHUNKS_MAX {
            return Err(Skipped::Unfit(format!("it has more than {CHUNKS_MAX} chunks")));
        }
        self.vouch(&mut info, signatures);
        let parts: Vec<(ChunkRef, Place)> = frames.frames().map(|(chunk, place)| (*chunk, *place)).collect();
        let (mut chunks, mut bytes) = (Vec::with_capacity(parts.len()), Vec::new());
        for run in frames.runs(RUN_BYTES) {
            self.pack_run(&frames, &run, &parts[run.frames.clone()], &mut bytes, &mut chunks)?;
        }
        let waiting = Waiting { info, chunks, is_doubted };
        if waiting.chunks.iter().all(|placed| placed.pack.is_some()) {
            return self.write_record(&waiting);
        }
        self.open.filling.wait(self.means.cold.now_ms());
        self.open.waiting.push(waiting);
        Ok(())
    }

    /// The chunks of one run; its bytes are read only if one of them is new.
    fn pack_run(
        &mut self,
        frames: &StoredFrames,
        run: &Run,
        parts: &[(ChunkRef, Place)],
        bytes: &mut Vec<u8>,
        chunks: &mut Vec<Placed>,
    ) -> Result<(), Skipped> {
        let cold = self.means.cold.clone();
        let known = cold.notes.locate(parts.iter().map(|(chunk, _)| &chunk.hash)).map_err(noteless)?;
        let known = self.still_there(known)?;
        let mut is_read = false;
        for ((chunk, place), known) in parts.iter().zip(known) {
            let frame_len = place.frame_len;
            if let Some(known) = known {
                cold.written.shared_chunks.fetch_add(1, Ordering::Relaxed);
                let (pack, offset, frame_len) = (Some(known.pack), known.offset, known.frame_len);
                chunks.push(Placed { chunk: *chunk, pack, offset, frame_len });
                continue;
            }
            if let Some(&(offset, frame_len)) = self.open.chunks.get(&chunk.hash) {
                chunks.push(Placed { chunk: *chunk, pack: None, offset, frame_len });
                continue;
            }
            if !std::mem::replace(&mut is_read, true) {
                frames.read(run, bytes).map_err(|error| Skipped::NotNow(error.to_string()))?;
            }
            if !self.open.filling.fits(u64::from(frame_len), PACK_LEN_MAX as u64) {
                self.flush(chunks)?;
            }
            let at = (place.frame_offset() - run.offset) as usize;
            let frame = bytes.get(at..at + frame_len as usize).unwrap_or_default();
            let offset = self.open.bytes.len() as u32;
            self.open.bytes.extend_from_slice(frame);
            self.open.filling.add(u64::from(frame_len), cold.now_ms());
            self.open.chunks.insert(chunk.hash, (offset, frame_len));
            chunks.push(Placed { chunk: *chunk, pack: None, offset, frame_len });
        }
        Ok(())
    }

    /// Those of chunks that were written earlier whose packs are there: a pack may have been deleted behind our back.
    fn still_there(&mut self, known: Vec<Option<Packed>>) -> Result<Vec<Option<Packed>>, Skipped> {
        let cold = self.means.cold.clone();
        let packs: BTreeSet<PackName> = known.iter().flatten().map(|known| known.pack).collect();
        let packs: Vec<PackName> = packs.into_iter().collect();
        let lens = match cold.pack_lens(&packs, NAMED_MS, u64::MAX) {
            Ok(lens) => lens,
            Err(why) => {
                self.pause_after(&why);
                return Err(if cold.bucket.is_stopping() { Skipped::Stopped } else { Skipped::Refused });
            }
        };
        let lens: HashMap<PackName, u64> = packs.into_iter().zip(lens).collect();
        let mut gone = BTreeSet::new();
        let there = known.into_iter().map(|known| {
            known.filter(|known| {
                let end = u64::from(known.offset) + u64::from(known.frame_len);
                let is_there = lens.get(&known.pack).is_some_and(|len| *len >= end);
                if !is_there {
                    gone.insert(known.pack);
                }
                is_there
            })
        });
        let there: Vec<Option<Packed>> = there.collect();
        gone.iter().for_each(|pack| cold.lose_pack(pack));
        Ok(there)
    }

    /// Writes the open pack, and the records that wait for it. `current`: chunks of a path that is being packed.
    fn flush(&mut self, current: &mut [Placed]) -> Result<(), Skipped> {
        let Open { bytes, chunks, waiting, .. } = std::mem::take(&mut self.open);
        if bytes.is_empty() {
            return Ok(());
        }
        let cold = self.means.cold.clone();
        let (name, len, bytes) = (*blake3::hash(&bytes).as_bytes(), bytes.len() as u64, Bytes::from(bytes));
        let put = self.put(&pack_object(&name), bytes);
        let noted = put.and_then(|()| {
            cold.written.packs.fetch_add(1, Ordering::Relaxed);
            cold.found_right(&name);
            cold.lengths.note(name, len, cold.now_ms());
            let rows = chunks.into_iter().map(|(hash, (offset, frame_len))| (hash, offset, frame_len));
            cold.notes.packed(&name, rows).map_err(noteless)
        });
        if let Err(skipped) = noted {
            for Waiting { info, is_doubted, .. } in waiting {
                self.skip(&info.path, is_doubted, skipped.clone());
            }
            return Err(skipped);
        }
        let resolve = |placed: &mut Placed| placed.pack = placed.pack.or(Some(name));
        current.iter_mut().for_each(resolve);
        for mut waiting in waiting {
            waiting.chunks.iter_mut().for_each(resolve);
            if let Err(skipped) = self.write_record(&waiting) {
                self.skip(&waiting.info.path, waiting.is_doubted, skipped);
            }
        }
        Ok(())
    }

    fn write_record(&mut self, waiting: &Waiting) -> Result<(), Skipped> {
        let path = &waiting.info.path;
        let object = record(waiting).to_object().map_err(|error| Skipped::Unfit(error.to_string()))?;
        let put = self.put(&record_object(path.hash_part()), object.into());
        self.claims.end(path);
        put?;
        self.means.cold.written.paths.fetch_add(1, Ordering::Relaxed);
        self.means.cold.notes.done(path).map_err(noteless)
    }

    /// Puts one object, again after a pause where that fails, up to a bound.
    fn put(&mut self, object: &str, bytes: Bytes) -> Result<(), Skipped> {
        let cold = self.means.cold.clone();
        loop {
            let since = Instant::now();
            match cold.bucket.put(object, bytes.clone()) {
                Ok(()) => {
                    self.backoff.succeeded();
                    cold.written.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    self.keep_to_rate(bytes.len(), since);
                    return Ok(());
                }
                Err(_) if cold.bucket.is_stopping() => return Err(Skipped::Stopped),
                Err(Refusal::Missing) => self.pause_after("there is no such bucket"),
                Err(Refusal::Failed(why)) => self.pause_after(&format!("cannot write '{object}': {why}")),
            }
            if cold.bucket.is_stopping() {
                return Err(Skipped::Stopped);
            }
            if self.backoff.gives_up() {
                return Err(Skipped::Refused);
            }
        }
    }

    fn keep_to_rate(&self, bytes: usize, since: Instant) {
        if let Some(rate) = self.means.rate {
            let time = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            self.sleep(time.saturating_sub(since.elapsed()));
        }
    }

    fn pause_after(&mut self, why: &str) {
        let cold = &self.means.cold;
        if cold.bucket.is_stopping() {
            return;
        }
        cold.written.failed(why);
        let pause_ms = self.backoff.failed(self.spread);
        tracing::warn!(bucket = cold.bucket.url(), why, pause_ms, "the bucket cannot be written to; it is tried again");
        self.sleep(Duration::from_millis(pause_ms));
    }

    fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.means.cold.bucket.is_stopping() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(POLL));
        }
    }
}

/// Its notes cannot be used, as on a disk that is full.
fn noteless(error: anyhow::Error) -> Skipped {
    Skipped::NotNow(format!("{error:#}"))
}

/// The record of a path all of whose packs are written.
fn record(waiting: &Waiting) -> ColdRecord {
    let (mut packs, mut numbers) = (Vec::new(), HashMap::new());
    let mut chunks = Vec::with_capacity(waiting.chunks.len());
    for Placed { chunk, pack, offset, frame_len } in &waiting.chunks {
        let Some(name) = pack else { continue };
        let pack = *numbers.entry(*name).or_insert_with(|| {
            packs.push(*name);
            packs.len() as u32 - 1
        });
        chunks.push(PackedChunk { chunk: *chunk, pack, offset: *offset, frame_len: *frame_len });
    }
    ColdRecord::new(waiting.info.clone(), packs, chunks)
}
