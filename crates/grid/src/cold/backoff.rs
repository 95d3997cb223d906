//! How long nothing is written after something failed.

/// A server that starts again takes some seconds.
const PAUSE_MS_MIN: u64 = 1_000;
/// One that was down for long is noticed soon enough: nobody waits.
const PAUSE_MS_MAX: u64 = 300_000;
/// Times that one object is tried before what it is of has to come up again, behind others: it may be the object.
pub const TRIES_MAX: u32 = 5;

/// Pauses that double with each failure in a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backoff {
    pause_ms: u64,
    tries: u32,
}

impl Backoff {
    /// How long to wait now; `spread` of 256ths of up to a quarter more, so that nodes do not all come back at once.
    pub fn failed(&mut self, spread: u8) -> u64 {
        self.tries += 1;
        self.pause_ms = (self.pause_ms * 2).clamp(PAUSE_MS_MIN, PAUSE_MS_MAX);
        self.pause_ms + self.pause_ms / 4 * u64::from(spread) / 256
    }

    pub fn succeeded(&mut self) {
        *self = Backoff::default();
    }

    /// Whether the object in hand was tried often enough. Pauses go on from where they were.
    pub fn gives_up(&mut self) -> bool {
        let is_enough = self.tries >= TRIES_MAX;
        if is_enough {
            self.tries = 0;
        }
        is_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..11).map(|_| backoff.failed(0)).collect();
        assert_eq!(pauses[..4], [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(pauses[9..], [PAUSE_MS_MAX, PAUSE_MS_MAX]);
        backoff.succeeded();
        assert_eq!(backoff.failed(128), 1_125);
    }

    #[test]
    fn an_object_is_given_up_after_some_tries_and_the_pause_stays() {
        let mut backoff = Backoff::default();
        for tries in 1..=TRIES_MAX {
            backoff.failed(0);
            assert_eq!(backoff.gives_up(), tries == TRIES_MAX);
        }
        assert_eq!(backoff.failed(0), 32_000);
        assert!(!backoff.gives_up());
    }
}
