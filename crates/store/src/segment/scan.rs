//! What a crash left behind the committed end of a segment.

use super::PREAMBLE;
use super::record::{HEADER_LEN, Header};
use crate::chunker;
use crate::error::{Error, Result};
use crate::frame::{Decoder, FRAME_LEN_MAX};
use crate::place::{Place, SegmentId};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Whole records found, and where they end.
pub struct Tail {
    pub records: Vec<([u8; 32], Place)>,
    pub end: u64,
}

/// Reads records from `from` (0 for a segment that was never committed) up to the first that is
/// torn or damaged, looking at no more than `budget` bytes. Each was decompressed and hashed.
pub fn scan(path: &Path, segment: SegmentId, from: u64, budget: u64) -> Result<Tail> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut tail = Tail { records: Vec::new(), end: from };
    if from < PREAMBLE.len() as u64 {
        let mut preamble = [0; PREAMBLE.len()];
        if !read_exact(&file, &mut preamble, 0, path)? || preamble != PREAMBLE {
            return Ok(tail);
        }
        tail.end = PREAMBLE.len() as u64;
    }
    let mut decoder = Decoder::new().map_err(Error::io("decompress", path))?;
    let (mut frame, mut chunk) = (Vec::new(), Vec::new());
    while tail.end - from < budget {
        let mut header = [0; HEADER_LEN];
        if !read_exact(&file, &mut header, tail.end, path)? {
            break;
        }
        let Some(header) = Header::decode(&header) else {
            break;
        };
        if header.frame_len as usize > FRAME_LEN_MAX {
            break;
        }
        frame.resize(header.frame_len as usize, 0);
        if !read_exact(&file, &mut frame, tail.end + HEADER_LEN as u64, path)? {
            break;
        }
        let Some(chunk_len) = whole(&header, &frame, &mut decoder, &mut chunk) else {
            break;
        };
        let Ok(offset) = u32::try_from(tail.end) else {
            break;
        };
        let place = Place::of(&header, segment, offset, chunk_len);
        tail.records.push((header.hash, place));
        tail.end = place.end();
    }
    Ok(tail)
}

/// The chunk's length, if the frame is that of the chunk that the header names.
fn whole(header: &Header, frame: &[u8], decoder: &mut Decoder, chunk: &mut Vec<u8>) -> Option<u32> {
    if !header.is_of(frame) {
        return None;
    }
    let size = zstd::zstd_safe::get_frame_content_size(frame).ok()??;
    let len = usize::try_from(size).ok().filter(|&len| len <= chunker::MAX)?;
    decoder.decode(frame, len, chunk).ok()?;
    (*blake3::hash(chunk).as_bytes() == header.hash).then_some(len as u32)
}

/// `false` if the file ends before.
fn read_exact(file: &File, out: &mut [u8], at: u64, path: &Path) -> Result<bool> {
    match file.read_exact_at(out, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}
