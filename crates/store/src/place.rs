//! Where a chunk's record lies.

use crate::segment::record::{HEADER_LEN, Header, pack, unpack};

/// Number of a segment file; never used twice.
pub type SegmentId = u32;

/// Bytes of a place in the index.
pub const PLACE_LEN: usize = 20;

/// A record: header and frame of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub segment: SegmentId,
    /// Of the header, from the start of the segment.
    pub offset: u32,
    pub frame_len: u32,
    /// Stored without trying to compress it, because whoever brought it would have had to wait.
    pub hasty: bool,
    /// Bytes of the chunk itself.
    pub chunk_len: u32,
    /// As in the record's header.
    pub check: u32,
}

impl Place {
    /// As it lies in the index: segment, offset, frame length u24 with a byte of flags, chunk length, check;
    /// little-endian.
    pub fn encode(&self) -> [u8; PLACE_LEN] {
        let mut out = [0; PLACE_LEN];
        let lens = u32::from_le_bytes(pack(self.frame_len, self.hasty));
        let fields = [self.segment, self.offset, lens, self.chunk_len, self.check];
        for (to, field) in out.chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8; PLACE_LEN]) -> Place {
        let bytes_at = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let field = |at| u32::from_le_bytes(bytes_at(at));
        let (frame_len, hasty) = unpack(bytes_at(8));
        Place { segment: field(0), offset: field(4), frame_len, hasty, chunk_len: field(12), check: field(16) }
    }

    /// The place of a record with this header.
    pub fn of(header: &Header, segment: SegmentId, offset: u32, chunk_len: u32) -> Place {
        let Header { frame_len, hasty, check, .. } = *header;
        Place { segment, offset, frame_len, hasty, chunk_len, check }
    }

    /// The header of the record of chunk `hash` that lies here.
    pub fn header(&self, hash: &[u8; 32]) -> Header {
        Header { hash: *hash, frame_len: self.frame_len, hasty: self.hasty, check: self.check }
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
