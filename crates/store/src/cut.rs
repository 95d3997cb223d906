//! Cuts a NAR into the chunks that an ingest would make of it, for who has no store.

use crate::chunker::Chunker;
use crate::error::IngestError;
use crate::ingest::Plan;
use shoal_wire::nix::nar::NarLimits;
use shoal_wire::nix::nar::parse::NarParser;

/// A NAR to chunks. Keeps at most one chunk, and the names of the NAR's files.
pub struct NarCutter {
    parser: NarParser,
    plan: Plan,
    chunker: Chunker,
    /// The chunk that is not whole yet.
    begun: Vec<u8>,
}

impl Default for NarCutter {
    fn default() -> Self {
        NarCutter {
            parser: NarParser::new(NarLimits::ANY_RELEASE),
            plan: Plan::default(),
            chunker: Chunker::default(),
            begun: Vec::new(),
        }
    }
}

impl NarCutter {
    /// Continues the NAR, all of whose bytes must belong to it, and hands each chunk to `emit` once it is whole.
    pub fn feed<E: From<IngestError>>(
        &mut self,
        bytes: &[u8],
        mut emit: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let used = self.parser.feed(bytes, &mut self.plan).map_err(IngestError::from)?;
        if used < bytes.len() {
            return Err(IngestError::Trailing((bytes.len() - used) as u64).into());
        }
        self.plan.place_cuts(&mut self.chunker);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (taken, ends) = self.chunker.advance(rest);
            let (part, after) = rest.split_at(taken);
            rest = after;
            match ends {
                true if self.begun.is_empty() => emit(part)?,
                true => {
                    self.begun.extend_from_slice(part);
                    emit(&self.begun)?;
                    self.begun.clear();
                }
                false => self.begun.extend_from_slice(part),
            }
        }
        Ok(())
    }

    /// Ends the NAR with its last chunk; returns its size.
    pub fn finish<E: From<IngestError>>(self, mut emit: impl FnMut(&[u8]) -> Result<(), E>) -> Result<u64, E> {
        self.parser.finish().map_err(IngestError::from)?;
        if !self.begun.is_empty() {
            emit(&self.begun)?;
        }
        Ok(self.parser.offset())
    }
}
