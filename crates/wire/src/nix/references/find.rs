//! Searches for a set of hash parts, skipping like Boyer-Moore over the base-32 alphabet.

use super::{HASH_PART_LEN, HashPart};

const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

const IN_ALPHABET: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < ALPHABET.len() {
        table[ALPHABET[i] as usize] = true;
        i += 1;
    }
    table
};

/// log2 of the bits of the filter: a closure of 1,000 paths fills 2 % of it, and it stays in L1.
const FILTER_BITS: u32 = 16;

/// A set of hash parts to look for.
///
/// A window is checked from its last byte: a byte outside the alphabet at position j rules out
/// every window that holds it, so the search moves on by j + 1. Inside a run of base-32 characters
/// each byte is looked at once. Windows that pass meet a filter on 8 bytes, then the sorted set.
#[derive(Debug, Clone)]
pub(super) struct Finder {
    parts: Vec<HashPart>,
    filter: Vec<u64>,
}

impl Finder {
    /// Parts with characters outside the alphabet are never found.
    pub(super) fn new(parts: impl IntoIterator<Item = HashPart>) -> Self {
        let mut parts: Vec<HashPart> = parts.into_iter().collect();
        parts.sort_unstable();
        parts.dedup();
        let mut filter = vec![0; 1 << (FILTER_BITS - 6)];
        for part in &parts {
            let bit = filter_bit(part);
            filter[bit / 64] |= 1 << (bit % 64);
        }
        Finder { parts, filter }
    }

    /// The parts in ascending order; [`Finder::find`] names them by their position here.
    pub(super) fn parts(&self) -> &[HashPart] {
        &self.parts
    }

    /// The first occurrence that starts at or after `from`: where, and which part.
    pub(super) fn find(&self, haystack: &[u8], from: usize) -> Option<(usize, usize)> {
        let mut start = from;
        // Everything in `start..checked` is in the alphabet.
        let mut checked = from;
        'window: while let Some(window) = haystack.get(start..start + HASH_PART_LEN) {
            for at in (checked - start..HASH_PART_LEN).rev() {
                if !IN_ALPHABET[usize::from(window[at])] {
                    start += at + 1;
                    checked = start;
                    continue 'window;
                }
            }
            checked = start + HASH_PART_LEN;
            if let Some(part) = self.position(window) {
                return Some((start, part));
            }
            start += 1;
        }
        None
    }

    fn position(&self, window: &[u8]) -> Option<usize> {
        let window: &HashPart = window.try_into().ok()?;
        let bit = filter_bit(window);
        if self.filter[bit / 64] & (1 << (bit % 64)) == 0 {
            return None;
        }
        self.parts.binary_search(window).ok()
    }
}

fn filter_bit(part: &HashPart) -> usize {
    let [a, b, c, d, e, f, g, h, ..] = *part;
    let word = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    // Fibonacci hashing: the high bits of the product depend on all bytes.
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - FILTER_BITS)) as usize
}
