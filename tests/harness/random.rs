//! Choices that a seed repeats.

use std::env;
use std::time::SystemTime;

/// splitmix64: small, and the same everywhere for one seed.
pub struct Random(u64);

impl Random {
    /// From `SHOAL_SEED`, or a new one; printed, so that a failure can be repeated.
    pub fn seeded() -> Random {
        let fresh = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let seed = env::var("SHOAL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(fresh);
        println!("SHOAL_SEED={seed}");
        Random(seed)
    }

    /// The same choices each time.
    pub fn of(seed: u64) -> Random {
        Random(seed)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    /// Choices of their own for another thread, which follow from the same seed.
    pub fn split(&mut self) -> Random {
        Random(self.below(u64::MAX))
    }

    /// Bytes that do not compress.
    pub fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.below(u64::MAX).to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}
