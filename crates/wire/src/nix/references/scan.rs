//! Which of a set of store paths a stream of bytes refers to.

use super::find::Finder;
use super::{HASH_PART_LEN, HashPart};
use crate::nix::store_path::StorePath;
use std::collections::BTreeSet;

/// Bytes of the previous piece that may begin an occurrence.
const TAIL_LEN: usize = HASH_PART_LEN - 1;

/// Looks for candidates' hash parts in everything it is given.
#[derive(Debug, Clone)]
pub struct Scanner {
    candidates: BTreeSet<StorePath>,
    finder: Finder,
    found: Vec<bool>,
    /// Parts not found yet.
    missing: usize,
    /// The last bytes seen, at most [`TAIL_LEN`].
    tail: Vec<u8>,
}

impl Scanner {
    pub fn new(candidates: impl IntoIterator<Item = StorePath>) -> Self {
        let candidates: BTreeSet<StorePath> = candidates.into_iter().collect();
        let finder = Finder::new(candidates.iter().filter_map(hash_part));
        let missing = finder.parts().len();
        Scanner { candidates, found: vec![false; missing], missing, finder, tail: Vec::with_capacity(2 * TAIL_LEN) }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        if self.missing == 0 {
            return;
        }
        // What starts in the tail and ends in `bytes`.
        let head = &bytes[..bytes.len().min(TAIL_LEN)];
        let mut seam = std::mem::take(&mut self.tail);
        seam.extend_from_slice(head);
        self.scan(&seam);
        self.scan(bytes);
        if bytes.len() >= TAIL_LEN {
            seam.clear();
            seam.extend_from_slice(&bytes[bytes.len() - TAIL_LEN..]);
        } else {
            seam.drain(..seam.len().saturating_sub(TAIL_LEN));
        }
        self.tail = seam;
    }

    /// The candidates whose hash part occurred.
    pub fn finish(self) -> BTreeSet<StorePath> {
        let found = |path: &StorePath| {
            hash_part(path)
                .and_then(|part| self.finder.parts().binary_search(&part).ok())
                .is_some_and(|part| self.found[part])
        };
        self.candidates.iter().filter(|path| found(path)).cloned().collect()
    }

    fn scan(&mut self, bytes: &[u8]) {
        let mut from = 0;
        while let Some((at, part)) = self.finder.find(bytes, from) {
            if !std::mem::replace(&mut self.found[part], true) {
                self.missing -= 1;
            }
            from = at + 1;
        }
    }
}

fn hash_part(path: &StorePath) -> Option<HashPart> {
    path.hash_part().as_bytes().try_into().ok()
}
