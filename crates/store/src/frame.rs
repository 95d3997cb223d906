//! One chunk as one zstd frame that states its content size.
//!
//! What does not compress is laid into raw blocks, so that every stored frame is a valid zstd
//! frame whatever the chunk holds and reading it back costs a copy. What comes faster than it can be
//! compressed is laid into raw blocks too, marked as stored in haste. Format: RFC 8878.

use crate::chunker;
use std::io;
use thiserror::Error;

/// Longest frame of one chunk: what zstd may make of incompressible input, and our raw blocks
/// stay below it.
pub const FRAME_LEN_MAX: usize = chunker::MAX + (chunker::MAX >> 7) + 512;

/// A frame is kept compressed if it is smaller than its chunk by at least one part in this many.
/// Below that, reading raw blocks is worth more than the bytes.
const GAIN_MIN: usize = 32;

const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// Single segment, a content size of 4 bytes, no dictionary, no checksum.
const DESCRIPTOR: u8 = 0b1010_0000;
/// The longest block that the format allows.
const BLOCK_LEN_MAX: usize = 128 << 10;
/// The kind of a block whose bytes are its contents.
const RAW_BLOCK: u32 = 0;

/// Why bytes are not the frame of one chunk.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("the frame states no content size")]
    NoContentSize,
    #[error("the frame holds {actual} bytes instead of {expected}")]
    Length { expected: usize, actual: u64 },
    #[error("the frame does not decompress: {0}")]
    Codec(String),
    #[error("what is sent is not one plain frame that any reader of .zst files takes")]
    Unusual,
}

/// How much time a chunk is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// The encoder's level.
    Level,
    /// None: raw blocks. Even zstd's fastest levels take four times as long as all else that is done
    /// to a chunk.
    Haste,
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    pub frame_len: usize,
    /// Whether [`Effort::Level`] may make less of it.
    pub hasty: bool,
}

/// Compresses chunks at one level; keeps its work space between them.
pub struct Encoder {
    zstd: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
}

impl Encoder {
    pub fn new(level: i32) -> io::Result<Self> {
        let zstd = zstd::bulk::Compressor::new(level)?;
        Ok(Encoder { zstd, scratch: Vec::new() })
    }

    /// One frame of anything, compressed whether it helps or not.
    pub fn encode_whole(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.zstd.compress(bytes)
    }

    /// Appends the frame of `chunk` (at most [`chunker::MAX`] bytes) to `out`.
    pub fn encode(&mut self, chunk: &[u8], effort: Effort, out: &mut Vec<u8>) -> io::Result<Encoded> {
        let start = out.len();
        let random = looks_random(chunk);
        match effort {
            Effort::Level if !random => self.compress(chunk, out)?,
            _ => push_raw(chunk, out),
        }
        Ok(Encoded { frame_len: out.len() - start, hasty: effort == Effort::Haste && !random })
    }

    fn compress(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        self.scratch.clear();
        self.scratch.reserve(FRAME_LEN_MAX);
        let len = self.zstd.compress_to_buffer(chunk, &mut self.scratch)?;
        match len + chunk.len() / GAIN_MIN < chunk.len() {
            true => out.extend_from_slice(&self.scratch),
            false => push_raw(chunk, out),
        }
        Ok(())
    }
}

/// Decompresses chunks; keeps its work space between them.
pub struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    pub fn new() -> io::Result<Self> {
        let zstd = zstd::bulk::Decompressor::new()?;
        Ok(Decoder { zstd })
    }

    /// Replaces `out` by the `len` bytes of the chunk in `frame`.
    pub fn decode(&mut self, frame: &[u8], len: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
        match content_size(frame)? {
            size if size == len as u64 => {}
            actual => return Err(FrameError::Length { expected: len, actual }),
        }
        out.clear();
        out.reserve(len);
        let actual =
            self.zstd.decompress_to_buffer(frame, out).map_err(|error| FrameError::Codec(error.to_string()))?;
        match actual == len {
            true => Ok(()),
            false => Err(FrameError::Length { expected: len, actual: actual as u64 }),
        }
    }
}

/// What a frame says it holds.
pub fn content_size(frame: &[u8]) -> Result<u64, FrameError> {
    zstd::zstd_safe::get_frame_content_size(frame).ok().flatten().ok_or(FrameError::NoContentSize)
}

/// Whether `frame` is exactly one frame without a dictionary, and asks no more of who decompresses it than one that
/// [`Encoder`] makes. Stored frames are served to anybody as they lie.
pub fn is_plain(frame: &[u8]) -> bool {
    let Some((&descriptor, rest)) = frame.strip_prefix(&ZSTD_MAGIC).and_then(<[u8]>::split_first) else {
        return false;
    };
    let has_dictionary = descriptor & 0b11 != 0;
    let is_single_segment = descriptor & 0b10_0000 != 0;
    let window = match (is_single_segment, rest.first()) {
        (true, _) => 0,
        (false, Some(&window)) => {
            let base = 1u64 << (10 + (window >> 3));
            base + base / 8 * u64::from(window & 7)
        }
        (false, None) => return false,
    };
    let is_one = zstd::zstd_safe::find_frame_compressed_size(frame) == Ok(frame.len());
    !has_dictionary && window <= chunker::MAX as u64 && is_one
}

/// The contents of a frame of `len` bytes that are raw blocks and nothing else, as [`Encoder`] lays them; `None` of any
/// other, and of what is no frame.
pub fn raw_blocks(frame: &[u8], len: usize) -> Option<Vec<&[u8]>> {
    let rest = frame.strip_prefix(&ZSTD_MAGIC)?.strip_prefix(&[DESCRIPTOR])?;
    let (size, mut rest) = rest.split_first_chunk()?;
    if u32::from_le_bytes(*size) as usize != len {
        return None;
    }
    let mut blocks = Vec::with_capacity(len.div_ceil(BLOCK_LEN_MAX));
    let mut left = len;
    loop {
        let (&[a, b, c], after) = rest.split_first_chunk()?;
        let header = u32::from_le_bytes([a, b, c, 0]);
        let (is_last, kind, block_len) = (header & 1 == 1, header >> 1 & 0b11, (header >> 3) as usize);
        if kind != RAW_BLOCK || block_len > BLOCK_LEN_MAX.min(left) {
            return None;
        }
        let (block, after) = after.split_at_checked(block_len)?;
        blocks.push(block);
        (left, rest) = (left - block_len, after);
        if is_last {
            return (left == 0 && rest.is_empty()).then_some(blocks);
        }
    }
}

/// A frame of raw blocks.
fn push_raw(chunk: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&ZSTD_MAGIC);
    out.push(DESCRIPTOR);
    out.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
    let last = chunk.len().saturating_sub(1) / BLOCK_LEN_MAX;
    for (i, block) in chunk.chunks(BLOCK_LEN_MAX).enumerate() {
        let header = (block.len() as u32) << 3 | u32::from(i == last);
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
}

/// Bytes looked at to tell whether a chunk is worth compressing, in this many places.
const SAMPLE_LEN: usize = 512;
const SAMPLES: usize = 8;

/// Whether a sample of the chunk has the byte statistics of noise: then it is compressed or
/// encrypted already, and zstd would look at all of it only to give up.
fn looks_random(chunk: &[u8]) -> bool {
    if chunk.len() < SAMPLES * SAMPLE_LEN * 2 {
        return false;
    }
    let mut counts = [0u32; 256];
    let stride = (chunk.len() - SAMPLE_LEN) / (SAMPLES - 1);
    for sample in 0..SAMPLES {
        for &byte in &chunk[sample * stride..][..SAMPLE_LEN] {
            counts[usize::from(byte)] += 1;
        }
    }
    // For n uniform bytes the sum of squared counts is n + n(n-1)/256 on average, and its standard
    // deviation n * sqrt(2/256). Six of them above the mean is not noise.
    let n = (SAMPLES * SAMPLE_LEN) as f64;
    let squares: u64 = counts.iter().map(|&c| u64::from(c) * u64::from(c)).sum();
    let mean = n + n * (n - 1.0) / 256.0;
    (squares as f64) < mean + 6.0 * n * (2.0f64 / 256.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut reader = blake3::Hasher::new().finalize_xof();
        let mut bytes = vec![0; len];
        reader.fill(&mut bytes);
        bytes
    }

    fn encode(chunk: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let mut encoder = Encoder::new(1).expect("encoder");
        let encoded = encoder.encode(chunk, Effort::Level, &mut frame).expect("encode");
        assert_eq!(encoded, Encoded { frame_len: frame.len(), hasty: false });
        frame
    }

    proptest! {
        #[test]
        fn frames_are_zstd_with_their_size(len in 1..chunker::MAX, noisy in 0..4usize) {
            // A quarter, a half, … of it incompressible.
            let mut chunk = noise(len * noisy / 4);
            chunk.resize(len, b'x');
            let frame = encode(&chunk);
            prop_assert!(frame.len() <= FRAME_LEN_MAX);
            prop_assert_eq!(zstd::zstd_safe::get_frame_content_size(&frame).ok().flatten(), Some(len as u64));
            prop_assert_eq!(zstd::decode_all(&frame[..]).expect("zstd"), chunk.clone());
            let mut out = Vec::new();
            Decoder::new().expect("decoder").decode(&frame, len, &mut out).expect("decode");
            prop_assert_eq!(out, chunk);
        }
    }

    #[test]
    fn the_blocks_of_a_raw_frame_are_its_contents_and_other_frames_have_none() {
        for len in [1, 100, BLOCK_LEN_MAX, BLOCK_LEN_MAX + 1, chunker::MAX] {
            let chunk = noise(len);
            let mut frame = encode(&chunk);
            assert_eq!(raw_blocks(&frame, len).map(|blocks| blocks.concat()), Some(chunk.clone()));
            assert_eq!(raw_blocks(&frame, len + 1), None);
            for cut in 0..frame.len().min(20) {
                assert_eq!(raw_blocks(&frame[..frame.len() - 1 - cut], len), None);
            }
            frame.push(0);
            assert_eq!(raw_blocks(&frame, len), None);
        }
        assert_eq!(raw_blocks(&encode(&[b'x'; 5000]), 5000), None);
    }

    #[test]
    fn noise_is_stored_raw() {
        for len in [1, 100, BLOCK_LEN_MAX, BLOCK_LEN_MAX + 1, chunker::MAX] {
            let chunk = noise(len);
            let frame = encode(&chunk);
            assert!(frame.len() <= len + 9 + 2 * 3, "{len}");
            assert_eq!(zstd::decode_all(&frame[..]).expect("zstd"), chunk);
        }
    }

    #[test]
    fn haste_is_raw_and_known_as_such_unless_nothing_is_lost() {
        let mut encoder = Encoder::new(1).expect("encoder");
        for (chunk, hasty) in [(vec![b'x'; 200_000], true), (noise(200_000), false)] {
            let mut frame = Vec::new();
            let encoded = encoder.encode(&chunk, Effort::Haste, &mut frame).expect("encode");
            assert_eq!(encoded, Encoded { frame_len: frame.len(), hasty });
            assert!(frame.len() > chunk.len());
            assert_eq!(zstd::decode_all(&frame[..]).expect("zstd"), chunk);
        }
    }

    #[test]
    fn a_wrong_length_is_refused_before_anything_is_decompressed() {
        let frame = encode(&[b'x'; 5000]);
        let mut decoder = Decoder::new().expect("decoder");
        let mut out = Vec::new();
        let refused = decoder.decode(&frame, 4999, &mut out);
        assert_eq!(refused, Err(FrameError::Length { expected: 4999, actual: 5000 }));
        assert_eq!(decoder.decode(b"no frame", 8, &mut out), Err(FrameError::NoContentSize));
    }
}
