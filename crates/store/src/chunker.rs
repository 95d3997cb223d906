//! Cuts a byte stream into chunks where its content says so (FastCDC, normalised).
//!
//! A gear hash of the last 64 bytes rolls over the stream; a chunk ends where the hash is below a
//! limit, which is stricter before [`AVERAGE`] than after it. Bytes before [`MIN`] are skipped but
//! for the hash's own window, so a boundary depends on the 64 bytes before it and on nothing else.
//! The caller may force cuts at known offsets; the hash starts afresh there. Boundaries do not
//! depend on how the stream is split into calls. Cost: one table lookup, one addition a byte, four of
//! them side by side.
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

/// Places that are searched at the same time, each with a hash of its own: a step of the hash waits for
/// the step before it, and a processor core has room for four such chains.
const LANES: usize = 4;
/// Bytes of a lane: long beside its window, which is hashed twice, and short beside a chunk.
const LANE_LEN: usize = 1024;

/// Rolls `hash` over `data` up to and including the first byte after which it is below `limit`.
///
/// The hash forgets what lies further back than its window, so that it is the same wherever it began:
/// `data` is searched in [`LANES`] places at once.
fn search(hash: &mut u64, data: &[u8], limit: u64) -> Option<usize> {
    let mut at = 0;
    while let Some(block) = data[at..].first_chunk::<{ LANES * LANE_LEN }>() {
        if let Some(found) = search_block(hash, block, limit) {
            return Some(at + found);
        }
        at += block.len();
    }
    search_serially(hash, &data[at..], limit).map(|found| at + found)
}

fn search_block(hash: &mut u64, block: &[u8; LANES * LANE_LEN], limit: u64) -> Option<usize> {
    let (mut hashes, step) = search_lanes(*hash, block, limit);
    let Some(step) = step else {
        *hash = hashes[LANES - 1];
        return None;
    };
    let found = hashes.iter().position(|&hash| hash < limit)?;
    // The rest of the lanes before comes first.
    let before = (0..found).find_map(|lane| {
        let from = lane * LANE_LEN + step + 1;
        let rest = &block[from..(lane + 1) * LANE_LEN];
        search_serially(&mut hashes[lane], rest, limit).map(|n| from + n)
    });
    before.or(Some(found * LANE_LEN + step + 1))
}

/// Rolls over all lanes at once, until any hash is below `limit`: then also after which byte of its lane.
fn search_lanes(hash: u64, block: &[u8; LANES * LANE_LEN], limit: u64) -> ([u64; LANES], Option<usize>) {
    let mut hashes = [hash, 0, 0, 0];
    for i in 0..WINDOW {
        for lane in 1..LANES {
            hashes[lane] = roll(hashes[lane], block[lane * LANE_LEN - WINDOW + i]);
        }
    }
    for i in 0..LANE_LEN {
        // One branch for all of them, which is hardly ever taken.
        let mut any = false;
        for lane in 0..LANES {
            hashes[lane] = roll(hashes[lane], block[lane * LANE_LEN + i]);
            any |= hashes[lane] < limit;
        }
        if any {
            return (hashes, Some(i));
        }
    }
    (hashes, None)
}

/// What [`search`] finds, one byte after the other.
fn search_serially(hash: &mut u64, data: &[u8], limit: u64) -> Option<usize> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// With limits at which boundaries are anything from frequent to rare.
        #[test]
        fn lanes_find_what_one_byte_after_the_other_finds(
            seed in any::<u64>(), len in 0..5 * LANES * LANE_LEN, bits in 4..20u32, alphabet in 1..=256u64,
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                ((state >> 33) % alphabet) as u8
            };
            let window: Vec<u8> = (0..WINDOW).map(|_| next()).collect();
            let data: Vec<u8> = (0..len).map(|_| next()).collect();
            let mut fast = window.iter().fold(0, |hash, &byte| roll(hash, byte));
            let mut slow = fast;
            let limit = 1 << (64 - bits);
            let found = search(&mut fast, &data, limit);
            prop_assert_eq!(found, search_serially(&mut slow, &data, limit));
            prop_assert!(found.is_some() || fast == slow);
        }
    }
}
