//! Chunks in memory, the least recently used of which go first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

type Hash = [u8; 32];

/// At most so many bytes of chunks.
pub struct Cache {
    bytes_max: usize,
    bytes: usize,
    chunks: HashMap<Hash, Held>,
    /// By the time of their last use.
    uses: BTreeMap<u64, Hash>,
    clock: u64,
}

struct Held {
    contents: Arc<Vec<u8>>,
    used: u64,
}

impl Cache {
    pub fn new(bytes_max: usize) -> Cache {
        Cache { bytes_max, bytes: 0, chunks: HashMap::new(), uses: BTreeMap::new(), clock: 0 }
    }

    pub fn get(&mut self, hash: &Hash) -> Option<Arc<Vec<u8>>> {
        let held = self.chunks.get_mut(hash)?;
        self.clock += 1;
        self.uses.remove(&held.used);
        self.uses.insert(self.clock, *hash);
        held.used = self.clock;
        Some(held.contents.clone())
    }

    pub fn contains(&self, hash: &Hash) -> bool {
        self.chunks.contains_key(hash)
    }

    pub fn put(&mut self, hash: Hash, contents: Arc<Vec<u8>>) {
        self.clock += 1;
        let len = contents.len();
        if let Some(before) = self.chunks.insert(hash, Held { contents, used: self.clock }) {
            self.uses.remove(&before.used);
            self.bytes -= before.contents.len();
        }
        self.uses.insert(self.clock, hash);
        self.bytes += len;
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.uses.pop_first()
            && let Some(held) = self.chunks.remove(&oldest)
        {
            self.bytes -= held.contents.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays() {
        let mut cache = Cache::new(30);
        let chunk = |n: u8| ([n; 32], Arc::new(vec![n; 10]));
        for n in 1..=3 {
            let (hash, contents) = chunk(n);
            cache.put(hash, contents);
        }
        assert!(cache.get(&[1; 32]).is_some());
        let (hash, contents) = chunk(4);
        cache.put(hash, contents.clone());
        cache.put(hash, contents);
        assert!(!cache.contains(&[2; 32]));
        assert!([1, 3, 4].iter().all(|n| cache.contains(&[*n; 32])));
        assert_eq!(cache.bytes, 30);
        cache.put([9; 32], Arc::new(vec![0; 31]));
        assert_eq!((cache.bytes, cache.uses.len()), (0, 0), "what does not fit is not kept");
    }
}
