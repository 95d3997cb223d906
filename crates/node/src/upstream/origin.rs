//! Where paths come from that no node has: a binary cache, or the mesh's bucket. Both are asked the same questions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use shoal_grid::cold::{Frame, Span, spans};
use shoal_store::{Decoder, HeldChunks, Store};
use shoal_wire::mesh::cold::{ColdRecord, PackedChunk, pack_object, record_object};
use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::nix::narinfo::{Compression, NarInfo};
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation};
use shoal_wire::nix::store_path::StorePath;

use super::cache::{Cache, CacheInfo};
use super::offer::CacheFile;
use super::source::{self, Trouble};
use super::web::Refusal;
use crate::cold::{Cold, Pending};

/// The bucket is asked before caches: it is the mesh's own.
const BUCKET_PRIORITY: u32 = 10;
/// Requests for spans of one path on their way: the next ones while one is unpacked.
const SPANS_AHEAD: usize = 4;

/// What was fetched from an origin.
#[derive(Default)]
pub struct Fetched {
    pub paths: AtomicU64,
    pub bytes: AtomicU64,
    /// Files that did not come, or were not what was promised.
    pub failed: AtomicU64,
}

pub struct Origin {
    kind: Kind,
    pub fetched: Fetched,
}

enum Kind {
    Cache(Arc<Cache>),
    Bucket { cold: Arc<Cold>, store: Store },
}

impl Origin {
    pub fn cache(cache: Cache) -> Origin {
        Origin { kind: Kind::Cache(Arc::new(cache)), fetched: Fetched::default() }
    }

    /// `store`: has chunks that need not come.
    pub fn bucket(cold: Arc<Cold>, store: Store) -> Origin {
        Origin { kind: Kind::Bucket { cold, store }, fetched: Fetched::default() }
    }

    /// Its URL, without login.
    pub fn base(&self) -> &str {
        match &self.kind {
            Kind::Cache(cache) => &cache.location.base,
            Kind::Bucket { cold, .. } => cold.bucket.url(),
        }
    }

    /// Where the configuration says how it ranks, or nothing else does.
    pub fn priority(&self) -> Option<u32> {
        match &self.kind {
            Kind::Cache(cache) => cache.location.priority,
            Kind::Bucket { .. } => Some(BUCKET_PRIORITY),
        }
    }

    pub fn info(&self) -> Result<CacheInfo, Refusal> {
        match &self.kind {
            Kind::Cache(cache) => cache.info(),
            Kind::Bucket { .. } => Ok(CacheInfo { priority: BUCKET_PRIORITY }),
        }
    }

    pub fn narinfo(&self, hash_part: &str) -> Result<NarInfo, Refusal> {
        match &self.kind {
            Kind::Cache(cache) => cache.narinfo(hash_part),
            Kind::Bucket { cold, .. } => {
                let record = cold.record(hash_part)?;
                let file_size = record.chunks.iter().map(|packed| u64::from(packed.frame_len)).sum();
                let (url, compression) = (record_object(hash_part), Compression::None);
                Ok(NarInfo { info: record.info(), url, compression, file_hash: None, file_size: Some(file_size) })
            }
        }
    }

    pub fn realisation(&self, id: &DrvOutput) -> Result<Realisation, Refusal> {
        self.cache_only(|cache| cache.realisation(id))
    }

    pub fn build_trace(&self, key: &BuildTraceKey) -> Result<BuildTrace, Refusal> {
        self.cache_only(|cache| cache.build_trace(key))
    }

    pub fn log(&self, derivation: &StorePath) -> Result<Vec<u8>, Refusal> {
        self.cache_only(|cache| cache.log(derivation))
    }

    /// The bucket holds paths and nothing else.
    fn cache_only<T>(&self, ask: impl FnOnce(&Cache) -> Result<T, Refusal>) -> Result<T, Refusal> {
        match &self.kind {
            Kind::Cache(cache) => ask(cache),
            Kind::Bucket { .. } => Err(Refusal::Missing),
        }
    }

    /// The URL of a file that a narinfo names.
    pub fn file_url(&self, named: &str) -> String {
        match &self.kind {
            Kind::Cache(cache) => cache.file_url(named),
            Kind::Bucket { cold, .. } => format!("{}/{named}", cold.bucket.url()),
        }
    }

    /// Gives `take` the NAR of `nar_size` bytes of a path, piece by piece. What came is that NAR only if nothing failed,
    /// here or with the NAR's hash, which the caller checks.
    pub fn read(
        &self,
        path: &StorePath,
        file: &CacheFile,
        nar_size: u64,
        file_bytes: Arc<AtomicU64>,
        take: impl FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        match &self.kind {
            Kind::Cache(cache) => source::read(cache, file, nar_size, file_bytes, take),
            Kind::Bucket { cold, store } => {
                let record = cold.record(path.hash_part()).map_err(Trouble::Upstream)?;
                if record.path != *path || record.nar_size != nar_size {
                    return Err(Trouble::Upstream(Refusal::Failed("it has another path there by now".into())));
                }
                file_bytes.store(0, Ordering::Relaxed);
                Unpacking { cold, store, record: &record, file_bytes }.run(take)
            }
        }
    }

    pub fn count_fetched(&self, bytes: u64) {
        self.fetched.paths.fetch_add(1, Ordering::Relaxed);
        self.fetched.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Chunks of one path on their way from packs. Those that the store has come from there.
struct Unpacking<'a> {
    cold: &'a Cold,
    store: &'a Store,
    record: &'a ColdRecord,
    file_bytes: Arc<AtomicU64>,
}

/// A request for some frames, and what it brought once it was waited for.
struct Asked {
    span: Span,
    pending: Option<Pending<Bytes>>,
    bytes: Bytes,
}

impl Unpacking<'_> {
    fn run(&self, mut take: impl FnMut(&[u8]) -> Result<(), Trouble>) -> Result<(), Trouble> {
        let here = |error: shoal_store::Error| Trouble::Here(error.to_string());
        let chunks = &self.record.chunks;
        let hashes: Vec<[u8; 32]> = chunks.iter().map(|packed| packed.chunk.hash).collect();
        let mut hold = self.store.hold_chunks();
        let lacks = hold.lacks(&hashes).map_err(here)?;
        let mut local = hold.chunks().map_err(here)?;
        self.check_lengths(&local, &lacks)?;
        let mut decoder = Decoder::new().map_err(|error| Trouble::Here(error.to_string()))?;
        let lacking = chunks.iter().zip(&lacks).filter(|(_, lacks)| **lacks).map(|(packed, _)| frame(packed));
        let mut plan = spans(lacking);
        let mut asked: VecDeque<Asked> = plan.by_ref().take(SPANS_AHEAD).map(|span| self.ask(span)).collect();
        let (mut number, mut contents) = (0, Vec::new());
        for (packed, is_lacking) in chunks.iter().zip(&lacks) {
            if !is_lacking {
                if let Err(error) = local.examine(&packed.chunk, &mut contents) {
                    tracing::warn!(%error, "a chunk cannot be read here, and comes from the bucket");
                    let alone = spans(std::iter::once(frame(packed))).next();
                    let mut asked = alone.map(|span| self.ask(span)).ok_or_else(|| here(error))?;
                    self.unpack(packed, &mut asked, &mut decoder, &mut contents)?;
                }
                take(&contents)?;
                continue;
            }
            if asked.front().is_some_and(|asked| asked.span.frames.end <= number) {
                asked.pop_front();
                asked.extend(plan.next().map(|span| self.ask(span)));
            }
            if let Some(front) = asked.front_mut() {
                self.unpack(packed, front, &mut decoder, &mut contents)?;
            }
            number += 1;
            take(&contents)?;
        }
        Ok(())
    }

    /// Nobody vouches for a record's chunks: one that gives a chunk of this store another length is wrong, not the store.
    fn check_lengths(&self, local: &HeldChunks, lacks: &[bool]) -> Result<(), Trouble> {
        let here: Vec<&ChunkRef> = self
            .record
            .chunks
            .iter()
            .zip(lacks)
            .filter(|(_, lacks)| !**lacks)
            .map(|(packed, _)| &packed.chunk)
            .collect();
        let lens = local.lens(here.iter().map(|chunk| &chunk.hash));
        let lens = lens.map_err(|error| Trouble::Here(error.to_string()))?;
        match here.iter().zip(lens).all(|(chunk, len)| len.is_none_or(|len| len == chunk.len)) {
            true => Ok(()),
            false => {
                let why = "it gives a chunk another length than it has";
                Err(Trouble::Upstream(self.cold.refuse_record(self.record.path.hash_part(), why)))
            }
        }
    }

    fn ask(&self, span: Span) -> Asked {
        // A record names packs only that it has.
        let pack = self.record.packs.get(span.pack as usize).copied().unwrap_or_default();
        let pending = self.cold.bucket.get_range(&pack_object(&pack), span.range.clone());
        Asked { span, pending: Some(pending), bytes: Bytes::new() }
    }

    /// The bytes of a chunk, compared with its name.
    fn unpack(
        &self,
        packed: &PackedChunk,
        asked: &mut Asked,
        decoder: &mut Decoder,
        contents: &mut Vec<u8>,
    ) -> Result<(), Trouble> {
        let wrong = |why: &str| {
            let pack = self.record.packs.get(packed.pack as usize).copied().unwrap_or_default();
            Trouble::Upstream(self.cold.refuse_pack(&pack, self.record.path.hash_part(), why))
        };
        if let Some(pending) = asked.pending.take() {
            asked.bytes = match pending.wait(&self.cold.bucket) {
                Ok(bytes) => bytes,
                Err(Refusal::Missing) => return Err(wrong("it is not there, or too short")),
                Err(failed) => return Err(Trouble::Upstream(failed)),
            };
            self.file_bytes.fetch_add(asked.bytes.len() as u64, Ordering::Relaxed);
        }
        let at = (u64::from(packed.offset) - asked.span.range.start) as usize;
        let frame = asked.bytes.get(at..at + packed.frame_len as usize).unwrap_or_default();
        let decoded = decoder.decode(frame, packed.chunk.len as usize, contents);
        decoded.map_err(|error| wrong(&format!("a chunk in it does not unpack: {error}")))?;
        match *blake3::hash(contents).as_bytes() == packed.chunk.hash {
            true => Ok(()),
            false => Err(wrong("a chunk in it has other bytes than its name says")),
        }
    }
}

fn frame(packed: &PackedChunk) -> Frame {
    Frame { pack: packed.pack, offset: u64::from(packed.offset), len: u64::from(packed.frame_len) }
}
