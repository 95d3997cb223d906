//! Cuts a byte stream into chunks where its content says so (FastCDC, normalised).
//!
//! A gear hash of the last 64 bytes rolls over the stream; a chunk ends where the hash is below a
//! limit, which is stricter before [`AVERAGE`] than after it. Bytes before [`MIN`] are skipped but
//! for the hash's own window, so a boundary depends on the 64 bytes before it and on nothing else.
//! The caller may force cuts at known offsets; the hash starts afresh there. Boundaries do not
//! depend on how the stream is split into calls. Cost: one table lookup, one addition a byte.
//!
//! Everything here that moves a boundary is part of the format: change it and nothing is shared
//! with what was stored before.

use std::collections::VecDeque;

/// Smallest chunk but for those that a forced cut or the end of the stream ends.
pub const MIN: usize = 16 << 10;
/// Size around which chunks gather.
pub const AVERAGE: usize = 64 << 10;
/// Largest chunk.
pub const MAX: usize = 256 << 10;

/// Bytes that the 64-bit gear hash remembers.
const WINDOW: usize = 64;
/// One boundary in 256 KiB before `AVERAGE`, one in 16 KiB after it (normalisation level 2).
const STRICT: u64 = 1 << (64 - 18);
const EASY: u64 = 1 << (64 - 14);

static GEAR: [u64; 256] = gear();

/// 256 values of SplitMix64, seeded with the digits of pi.
const fn gear() -> [u64; 256] {
    let mut table = [0; 256];
    let mut state: u64 = 0x3141_5926_5358_9793;
    let mut i = 0;
    while i < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[i] = z ^ (z >> 31);
        i += 1;
    }
    table
}

/// Finds the boundaries that content makes.
#[derive(Debug, Clone, Default)]
struct Cutter {
    /// Bytes since the last boundary.
    len: usize,
    hash: u64,
}

impl Cutter {
    /// Looks at `data`, which continues the stream. `Some(n)`: a chunk ends after `n` bytes of it,
    /// and the rest was not looked at. `None`: all of it belongs to the chunk that goes on.
    fn advance(&mut self, data: &[u8]) -> Option<usize> {
        let skipped = self.upto(MIN - WINDOW, data.len());
        let warm = self.upto(MIN, data.len() - skipped);
        let mut at = skipped + warm;
        for &byte in &data[skipped..at] {
            self.hash = roll(self.hash, byte);
        }
        for (end, limit) in [(AVERAGE, STRICT), (MAX, EASY)] {
            let n = self.upto(end, data.len() - at);
            if let Some(found) = search(&mut self.hash, &data[at..at + n], limit) {
                self.restart();
                return Some(at + found);
            }
            at += n;
        }
        if self.len < MAX {
            return None;
        }
        self.restart();
        Some(at)
    }

    fn restart(&mut self) {
        *self = Cutter::default();
    }

    /// Advances to `len`, or by `available` bytes if that is less; returns by how much.
    fn upto(&mut self, len: usize, available: usize) -> usize {
        let n = len.saturating_sub(self.len).min(available);
        self.len += n;
        n
    }
}

#[inline(always)]
fn roll(hash: u64, byte: u8) -> u64 {
    (hash << 1).wrapping_add(GEAR[usize::from(byte)])
}

/// Rolls `hash` over `data` up to and including the first byte after which it is below `limit`.
#[inline]
fn search(hash: &mut u64, data: &[u8], limit: u64) -> Option<usize> {
    let mut h = *hash;
    for (i, &byte) in data.iter().enumerate() {
        h = roll(h, byte);
        if h < limit {
            return Some(i + 1);
        }
    }
    *hash = h;
    None
}

/// Finds where the chunks of a stream end; keeps no byte of it.
#[derive(Debug, Default)]
pub struct Chunker {
    cutter: Cutter,
    /// Offsets of forced cuts that are still ahead, ascending.
    cuts: VecDeque<u64>,
    /// Bytes of the stream seen.
    offset: u64,
}

impl Chunker {
    /// Cuts at `offset` of the stream, which lies ahead of all bytes seen and of all cuts so far. At its
    /// beginning there is nothing to cut.
    pub fn cut_at(&mut self, offset: u64) {
        debug_assert!(offset > self.offset || offset == 0);
        debug_assert!(self.cuts.back().is_none_or(|&cut| cut <= offset));
        if offset > self.offset && self.cuts.back() != Some(&offset) {
            self.cuts.push_back(offset);
        }
    }

    /// Looks at `data`, which continues the stream. Returns how much of it, at least a byte, belongs to
    /// the current chunk, and whether the chunk ends there; the rest was not looked at.
    pub fn advance(&mut self, data: &[u8]) -> (usize, bool) {
        let ahead = self.cuts.front().map_or(u64::MAX, |cut| cut - self.offset);
        let part = usize::try_from(ahead).map_or(data, |ahead| &data[..ahead.min(data.len())]);
        let found = self.cutter.advance(part);
        let taken = found.unwrap_or(part.len());
        self.offset += taken as u64;
        let forced = taken as u64 == ahead;
        if forced {
            self.cuts.pop_front();
            self.cutter.restart();
        }
        (taken, found.is_some() || forced)
    }
}
