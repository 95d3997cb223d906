//! The NAR of a path out of packs: some spans of them at once, chunk after chunk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use shoal_grid::cold::{Frame, Span, spans};
use shoal_store::{Decoder, HeldChunks, Store};
use shoal_wire::mesh::cold::{ColdRecord, PackedChunk, pack_object};
use shoal_wire::mesh::manifest::ChunkRef;

use super::{Cold, Pending};
use crate::upstream::Refusal;
use crate::upstream::source::Trouble;

/// Requests for spans of one path on their way: the next ones while one is unpacked.
const SPANS_AHEAD: usize = 4;

/// Chunks of one path on their way from packs.
pub struct Unpacking<'a> {
    pub cold: &'a Cold,
    /// Has chunks that need not come.
    pub store: Option<&'a Store>,
    pub record: &'a ColdRecord,
    /// What came so far.
    pub file_bytes: Arc<AtomicU64>,
}

/// A request for some frames, and what it brought once it was waited for.
struct Asked {
    span: Span,
    pending: Option<Pending<Bytes>>,
    bytes: Bytes,
}

impl Unpacking<'_> {
    /// Gives `take` the NAR, piece by piece; each chunk is what its name says, and whoever takes them compares the whole
    /// with the NAR's hash.
    pub fn run(&self, mut take: impl FnMut(&[u8]) -> Result<(), Trouble>) -> Result<(), Trouble> {
        let Some(store) = self.store else {
            return self.gather(&vec![true; self.record.chunks.len()], None, &mut take);
        };
        let hashes: Vec<[u8; 32]> = self.record.chunks.iter().map(|packed| packed.chunk.hash).collect();
        let mut hold = store.hold_chunks();
        let lacks = hold.lacks(&hashes).map_err(here)?;
        let mut local = hold.chunks().map_err(here)?;
        self.check_lengths(&local, &lacks)?;
        self.gather(&lacks, Some(&mut local), &mut take)
    }

    fn gather(
        &self,
        lacks: &[bool],
        mut local: Option<&mut HeldChunks>,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let chunks = &self.record.chunks;
        let mut decoder = Decoder::new().map_err(|error| Trouble::Here(error.to_string()))?;
        let lacking = chunks.iter().zip(lacks).filter(|(_, lacks)| **lacks).map(|(packed, _)| frame(packed));
        let mut plan = spans(lacking);
        let mut asked: VecDeque<Asked> = plan.by_ref().take(SPANS_AHEAD).map(|span| self.ask(span)).collect();
        let (mut number, mut contents) = (0, Vec::new());
        for (packed, is_lacking) in chunks.iter().zip(lacks) {
            if let Some(local) = local.as_deref_mut().filter(|_| !is_lacking) {
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

fn here(error: shoal_store::Error) -> Trouble {
    Trouble::Here(error.to_string())
}
