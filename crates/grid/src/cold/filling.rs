//! When a pack that is being filled is written.
//!
//! Large packs cost fewer requests, and what waits for one is not safe in the bucket yet. So a pack is written when it is
//! full, when nothing more is to come for a moment, or when what waits for it has waited long.

/// Where nothing more comes, what is there is written after this time: outputs of one build come in a row.
pub const LINGER_MS: u64 = 3_000;
/// Nothing waits longer for a pack to be full.
pub const HOLD_MS: u64 = 60_000;
/// Paths that wait for one pack.
pub const WAITING_MAX: usize = 512;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filling {
    len: u64,
    waiting: usize,
    since_ms: Option<u64>,
    last_ms: u64,
}

impl Filling {
    /// Whether a frame finds room below `max`.
    pub fn fits(&self, frame_len: u64, max: u64) -> bool {
        self.len + frame_len <= max
    }

    /// A frame was put in.
    pub fn add(&mut self, frame_len: u64, now_ms: u64) {
        self.len += frame_len;
        self.since_ms.get_or_insert(now_ms);
        self.last_ms = now_ms;
    }

    /// A path waits for it.
    pub fn wait(&mut self, now_ms: u64) {
        self.waiting += 1;
        self.last_ms = now_ms;
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// When it is to be written, as far as can be said now. `is_idle`: nothing more is to come.
    pub fn due_ms(&self, is_idle: bool) -> Option<u64> {
        let since_ms = self.since_ms?;
        if self.waiting >= WAITING_MAX {
            return Some(since_ms);
        }
        let held_ms = since_ms.saturating_add(HOLD_MS);
        Some(if is_idle { held_ms.min(self.last_ms.saturating_add(LINGER_MS)) } else { held_ms })
    }

    pub fn is_due(&self, now_ms: u64, is_idle: bool) -> bool {
        self.due_ms(is_idle).is_some_and(|due_ms| due_ms <= now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pack_is_never_due() {
        assert!(!Filling::default().is_due(u64::MAX, true));
    }

    #[test]
    fn a_pack_is_written_soon_after_the_last_that_comes_and_in_any_case_after_a_while() {
        let mut filling = Filling::default();
        filling.add(10, 0);
        filling.add(10, 2_000);
        filling.wait(2_000);
        assert_eq!(filling.due_ms(true), Some(2_000 + LINGER_MS));
        assert_eq!(filling.due_ms(false), Some(HOLD_MS));
        filling.add(10, HOLD_MS - 1);
        assert!(!filling.is_due(HOLD_MS - 1, true) && filling.is_due(HOLD_MS, false));
    }

    #[test]
    fn a_pack_that_many_wait_for_is_written_at_once() {
        let mut filling = Filling::default();
        filling.add(10, 5);
        (0..WAITING_MAX).for_each(|_| filling.wait(5));
        assert!(filling.is_due(5, false));
    }

    #[test]
    fn frames_fit_up_to_the_last_byte() {
        let mut filling = Filling::default();
        filling.add(60, 0);
        assert!(filling.fits(40, 100) && !filling.fits(41, 100));
    }
}
