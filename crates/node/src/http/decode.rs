//! The contents of checked frames.

use std::cell::RefCell;
use std::io;

use bytes::Bytes;
use zstd::bulk::Decompressor;

use super::buffers::Buffer;

const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// Single segment, a content size of 4 bytes, nothing else: what the store writes before raw blocks.
const RAW_DESCRIPTOR: u8 = 0b1010_0000;
const RAW_HEADER_LEN: usize = 9;
const BLOCK_HEADER_LEN: usize = 3;

thread_local! {
    /// Its work space is a hundred kilobytes; threads are few.
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Contents of frames, one after the other in few buffers.
#[derive(Default)]
pub struct Contents {
    open: Option<Buffer>,
}

impl Contents {
    /// Adds the `len` bytes of a frame's contents; pieces that are full go to `made`.
    pub fn add(&mut self, frame: &Bytes, len: usize, made: &mut Vec<Bytes>) -> io::Result<()> {
        if let Some(blocks) = raw_blocks(frame, len) {
            self.finish(made);
            made.extend(blocks);
            return Ok(());
        }
        if self.open.as_mut().is_some_and(|open| open.room() < len) {
            self.finish(made);
        }
        let out = self.open.get_or_insert_with(Buffer::take);
        out.append(len, |room| decompress(frame, room))
    }

    /// Hands on what is left.
    pub fn finish(&mut self, made: &mut Vec<Bytes>) {
        made.extend(self.open.take().map(Buffer::into_bytes));
    }
}

/// Fills `room` with exactly the contents of a frame.
fn decompress(frame: &[u8], room: &mut [u8]) -> io::Result<()> {
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(Decompressor::new()?),
        };
        let n = decompressor.decompress_to_buffer(frame, room)?;
        match n == room.len() {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "a frame holds fewer bytes than its chunk")),
        }
    })
}

/// The contents of a frame that is not compressed, without a copy. Source of the format: RFC 8878, section 3.1.1.
fn raw_blocks(frame: &Bytes, len: usize) -> Option<Vec<Bytes>> {
    if frame.get(..4)? != MAGIC || *frame.get(4)? != RAW_DESCRIPTOR {
        return None;
    }
    let mut blocks = Vec::new();
    let (mut at, mut total) = (RAW_HEADER_LEN, 0);
    loop {
        let header = frame.get(at..at + BLOCK_HEADER_LEN)?;
        let header = u32::from_le_bytes([header[0], header[1], header[2], 0]);
        let (is_last, kind, block_len) = (header & 1 == 1, header >> 1 & 3, (header >> 3) as usize);
        at += BLOCK_HEADER_LEN;
        if kind != 0 || at + block_len > frame.len() {
            return None;
        }
        blocks.push(frame.slice(at..at + block_len));
        at += block_len;
        total += block_len;
        if is_last {
            return (total == len && at == frame.len()).then_some(blocks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw_frame(chunk: &[u8], block_len: usize) -> Vec<u8> {
        let mut frame = [&MAGIC[..], &[RAW_DESCRIPTOR], &(chunk.len() as u32).to_le_bytes()].concat();
        let blocks = chunk.chunks(block_len).count();
        for (number, block) in chunk.chunks(block_len).enumerate() {
            let header = (block.len() as u32) << 3 | u32::from(number + 1 == blocks);
            frame.extend_from_slice(&header.to_le_bytes()[..3]);
            frame.extend_from_slice(block);
        }
        frame
    }

    fn contents(frames: &[(Vec<u8>, usize)]) -> io::Result<Vec<u8>> {
        let (mut contents, mut made) = (Contents::default(), Vec::new());
        for (frame, len) in frames {
            contents.add(&Bytes::from(frame.clone()), *len, &mut made)?;
        }
        contents.finish(&mut made);
        Ok(made.concat())
    }

    proptest! {
        #[test]
        fn contents_are_those_of_all_frames(chunks in prop::collection::vec((1..200_000usize, any::<bool>()), 1..6)) {
            let mut expected = Vec::new();
            let mut frames = Vec::new();
            for (seed, (len, is_raw)) in chunks.into_iter().enumerate() {
                let chunk: Vec<u8> = (0..len).map(|i| (i * (seed + 3) % 251) as u8).collect();
                let frame = match is_raw {
                    true => raw_frame(&chunk, 128 << 10),
                    false => zstd::bulk::compress(&chunk, 1).unwrap(),
                };
                frames.push((frame, len));
                expected.extend(chunk);
            }
            prop_assert_eq!(contents(&frames).unwrap(), expected);
        }
    }

    #[test]
    fn a_frame_of_another_length_is_an_error() {
        let frame = zstd::bulk::compress(&[7; 1000], 1).unwrap();
        for wrong in [999, 1001] {
            assert!(contents(&[(frame.clone(), wrong)]).is_err(), "{wrong}");
        }
        assert!(contents(&[(raw_frame(&[7; 1000], 400), 999)]).is_err());
    }
}
