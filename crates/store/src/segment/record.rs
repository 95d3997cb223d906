//! What precedes each frame in a segment.
//!
//! ```text
//! 0x184D2A5E u32 | 40 u32 | BLAKE3 of the chunk, 32 | frame length u32 | check u32      little-endian
//! ```
//! This is a skippable frame of zstd: a segment, and any run of records in it, is a valid .zst file
//! that decompresses to the chunks, so stored bytes can be served as they lie. A header holds nothing
//! about its place; a record may be moved. `check` is the start of the BLAKE3 of the bytes before it.

/// Bytes of a header.
pub const HEADER_LEN: usize = 48;

const MAGIC: [u8; 4] = 0x184d_2a5e_u32.to_le_bytes();
const SKIPPED: [u8; 4] = (HEADER_LEN as u32 - 8).to_le_bytes();
const CHECK_AT: usize = HEADER_LEN - 4;

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub hash: [u8; 32],
    /// Bytes of the frame that follows.
    pub frame_len: u32,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&SKIPPED);
        out[8..40].copy_from_slice(&self.hash);
        out[40..44].copy_from_slice(&self.frame_len.to_le_bytes());
        let check = check(&out);
        out[CHECK_AT..].copy_from_slice(&check);
        out
    }

    /// `None` if the bytes are no header, or a damaged one.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Header> {
        if bytes[..4] != MAGIC || bytes[4..8] != SKIPPED || bytes[CHECK_AT..] != check(bytes) {
            return None;
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[8..40]);
        let frame_len = u32::from_le_bytes([bytes[40], bytes[41], bytes[42], bytes[43]]);
        Some(Header { hash, frame_len })
    }
}

fn check(header: &[u8; HEADER_LEN]) -> [u8; 4] {
    let hash = blake3::hash(&header[..CHECK_AT]);
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}
