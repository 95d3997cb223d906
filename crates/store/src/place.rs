//! Where a chunk's record lies.

use crate::segment::record::HEADER_LEN;

/// In the word of `chunk_len` as it lies in the index: [`Place::hasty`]. Chunks are far shorter.
const HASTY: u32 = 1 << 31;

/// Number of a segment file; never used twice.
pub type SegmentId = u32;

/// A record: header and frame of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub segment: SegmentId,
    /// Of the header, from the start of the segment.
    pub offset: u32,
    pub frame_len: u32,
    /// Bytes of the chunk itself.
    pub chunk_len: u32,
    /// Stored without trying to compress it, because whoever brought it would have had to wait.
    pub hasty: bool,
}

impl Place {
    /// As it lies in the index: four little-endian numbers, the last with [`HASTY`].
    pub fn encode(&self) -> [u8; 16] {
        let mut out = [0; 16];
        let chunk_len = self.chunk_len | if self.hasty { HASTY } else { 0 };
        let fields = [self.segment, self.offset, self.frame_len, chunk_len];
        for (to, field) in out.chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8; 16]) -> Place {
        let field = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let chunk_len = field(12) & !HASTY;
        let hasty = field(12) & HASTY != 0;
        Place { segment: field(0), offset: field(4), frame_len: field(8), chunk_len, hasty }
    }

    /// Bytes of header and frame.
    pub fn record_len(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.frame_len)
    }

    /// Of the frame, from the start of the segment.
    pub fn frame_offset(&self) -> u64 {
        u64::from(self.offset) + HEADER_LEN as u64
    }

    /// Of the byte after the record.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + self.record_len()
    }
}
