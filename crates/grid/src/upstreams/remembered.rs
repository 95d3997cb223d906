//! What upstreams said, for a while.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Values that hold until some time after they were remembered. The oldest go first where there is no room.
#[derive(Debug)]
pub struct Remembered<K, V> {
    hold_ms: u64,
    entries_max: usize,
    entries: HashMap<K, (V, u64)>,
    oldest_first: VecDeque<(K, u64)>,
}

impl<K: Clone + Eq + Hash, V> Remembered<K, V> {
    pub fn new(hold_ms: u64, entries_max: usize) -> Self {
        Remembered { hold_ms, entries_max, entries: HashMap::new(), oldest_first: VecDeque::new() }
    }

    pub fn insert(&mut self, key: K, value: V, now_ms: u64) {
        let until_ms = now_ms.saturating_add(self.hold_ms);
        self.entries.insert(key.clone(), (value, until_ms));
        self.oldest_first.push_back((key, until_ms));
        while self.oldest_first.len() > self.entries_max
            || self.oldest_first.front().is_some_and(|(_, until_ms)| *until_ms <= now_ms)
        {
            let Some((key, until_ms)) = self.oldest_first.pop_front() else { return };
            if self.entries.get(&key).is_some_and(|(_, held)| *held == until_ms) {
                self.entries.remove(&key);
            }
        }
    }

    pub fn get(&self, key: &K, now_ms: u64) -> Option<&V> {
        self.entries.get(key).filter(|(_, until_ms)| now_ms < *until_ms).map(|(value, _)| value)
    }

    pub fn forget(&mut self, key: &K) {
        self.entries.remove(key);
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
