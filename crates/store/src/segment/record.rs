//! What precedes each frame in a segment.
//!
//! ```text
//! 0x184D2A5E u32 | 40 u32 | BLAKE3 of the chunk, 32 | frame length u24 | flags u8 | check u32     little-endian
//! ```
//! This is a skippable frame of zstd: a segment, and any run of records in it, is a valid .zst file
//! that decompresses to the chunks, so stored bytes can be served as they lie. A header holds nothing
//! about its place; a record may be moved. `flags` is 1 for what was
//! stored in haste, else 0. `check` is the CRC-32 of hash, length, flags and the whole
//! frame: the index has it too, so a frame can be told to be right without decompressing it. A CRC
//! finds every flip of one or two bits and every burst of up to 32, not only nearly every one.

use crate::error::Defect;

/// Bytes of a header.
pub const HEADER_LEN: usize = 48;

const MAGIC: [u8; 4] = 0x184d_2a5e_u32.to_le_bytes();
const SKIPPED: [u8; 4] = (HEADER_LEN as u32 - 8).to_le_bytes();
const CHECKED_FROM: usize = 8;
const CHECK_AT: usize = HEADER_LEN - 4;

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub hash: [u8; 32],
    /// Bytes of the frame that follows, below 16 MiB.
    pub frame_len: u32,
    /// See [`crate::place::Place::hasty`].
    pub hasty: bool,
    pub check: u32,
}

impl Header {
    /// The header of `frame`, which holds the chunk `hash`.
    pub fn of(hash: [u8; 32], hasty: bool, frame: &[u8]) -> Header {
        // Frames of a chunk stay far below 16 MiB.
        let mut header = Header { hash, frame_len: frame.len() as u32, hasty, check: 0 };
        header.check = header.check_of(frame);
        header
    }

    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&SKIPPED);
        out[8..40].copy_from_slice(&self.hash);
        out[40..44].copy_from_slice(&pack(self.frame_len, self.hasty));
        out[CHECK_AT..].copy_from_slice(&self.check.to_le_bytes());
        out
    }

    /// `None` if the bytes are no header. A damaged one is found with its frame, by [`Header::is_of`].
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Header> {
        if bytes[..4] != MAGIC || bytes[4..8] != SKIPPED || bytes[43] > 1 {
            return None;
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[8..40]);
        let (frame_len, hasty) = unpack([bytes[40], bytes[41], bytes[42], bytes[43]]);
        let check = u32::from_le_bytes([bytes[44], bytes[45], bytes[46], bytes[47]]);
        Some(Header { hash, frame_len, hasty, check })
    }

    /// Whether `frame` is what was stored with this header.
    pub fn is_of(&self, frame: &[u8]) -> bool {
        frame.len() == self.frame_len as usize && self.check_of(frame) == self.check
    }

    /// What is wrong with a record of this header, if anything is.
    pub fn examine(&self, record: &[u8]) -> Result<(), Defect> {
        match record.split_first_chunk::<HEADER_LEN>() {
            Some((header, _)) if *header != self.encode() => Err(Defect::Header),
            Some((_, frame)) if self.is_of(frame) => Ok(()),
            _ => Err(Defect::Checksum),
        }
    }

    fn check_of(&self, frame: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.encode()[CHECKED_FROM..CHECK_AT]);
        crc.update(frame);
        crc.finalize()
    }
}

/// A length below 16 MiB and the flags, in four bytes.
pub fn pack(len: u32, hasty: bool) -> [u8; 4] {
    let [a, b, c, _] = len.to_le_bytes();
    [a, b, c, u8::from(hasty)]
}

/// The inverse of [`pack`].
pub fn unpack(bytes: [u8; 4]) -> (u32, bool) {
    let [a, b, c, flags] = bytes;
    (u32::from_le_bytes([a, b, c, 0]), flags & 1 == 1)
}
