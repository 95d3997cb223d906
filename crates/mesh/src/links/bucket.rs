//! How much may pass in a time: a bucket of tokens that fills at a steady rate.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Bucket {
    a_second: f64,
    burst: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub fn full(a_second: u64, burst: u64, now: Instant) -> Self {
        Self { a_second: a_second as f64, burst: burst as f64, level: burst as f64, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed_s = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed_s * self.a_second).min(self.burst);
        self.at = now;
    }

    /// Takes `amount` if there is so much.
    pub fn take(&mut self, amount: u64, now: Instant) -> bool {
        self.fill(now);
        let has = self.level >= amount as f64;
        if has {
            self.level -= amount as f64;
        }
        has
    }

    /// Takes `amount` all the same, and says how long to wait for it. What is more than the burst is taken as the burst.
    pub fn owe(&mut self, amount: u64, now: Instant) -> Duration {
        self.fill(now);
        self.level -= (amount as f64).min(self.burst);
        Duration::from_secs_f64((-self.level).max(0.0) / self.a_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(10, 5, start);
        assert!((0..5).all(|_| bucket.take(1, start)));
        assert!(!bucket.take(1, start));
        let later = start + Duration::from_millis(250);
        assert!(bucket.take(2, later) && !bucket.take(1, later));
        let much_later = start + Duration::from_secs(100);
        assert!(bucket.take(5, much_later) && !bucket.take(1, much_later), "no more than the burst is saved");
    }

    #[test]
    fn who_owes_waits_for_as_much_as_is_missing() {
        let start = Instant::now();
        let mut bucket = Bucket::full(10, 5, start);
        assert_eq!(bucket.owe(5, start), Duration::ZERO);
        assert_eq!(bucket.owe(2, start), Duration::from_millis(200));
        assert_eq!(bucket.owe(1, start + Duration::from_millis(200)), Duration::from_millis(100));
    }
}
