//! How many connections may be on their way in.

use super::limits::{HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX, HANDSHAKES_UNPROVEN_MAX};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the log names an address that knocks too often.
const NAMED_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Handshakes>);

#[derive(Debug, Default)]
struct Handshakes {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
    /// When the log last named one that was turned away.
    named: Option<Instant>,
}

/// A place among those who are on their way in, until it is dropped.
#[derive(Debug)]
pub(super) struct Entrant {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Gate {
    fn handshakes(&self) -> MutexGuard<'_, Handshakes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether source addresses should prove themselves now.
    pub fn is_crowded(&self) -> bool {
        self.handshakes().total >= HANDSHAKES_UNPROVEN_MAX
    }

    /// `None` where there are too many.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Entrant> {
        let mut handshakes = self.handshakes();
        let of_address = handshakes.by_address.get(&address).copied().unwrap_or_default();
        if handshakes.total >= HANDSHAKES_MAX || of_address >= HANDSHAKES_PER_ADDRESS_MAX {
            return None;
        }
        handshakes.total += 1;
        handshakes.by_address.insert(address, of_address + 1);
        drop(handshakes);
        Some(Entrant { gate: self.clone(), address })
    }

    /// Whether the log should name who is turned away at `now`: of a flood one line in [`NAMED_EVERY`] is enough.
    pub fn is_news(&self, now: Instant) -> bool {
        let mut handshakes = self.handshakes();
        let is_news = handshakes.named.is_none_or(|named| now.saturating_duration_since(named) >= NAMED_EVERY);
        if is_news {
            handshakes.named = Some(now);
        }
        is_news
    }
}

impl Drop for Entrant {
    fn drop(&mut self) {
        let mut handshakes = self.gate.handshakes();
        handshakes.total -= 1;
        if let Some(count) = handshakes.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                handshakes.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_fill_the_gate_and_the_gate_has_an_end() {
        let gate = Arc::new(Gate::default());
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        let of_one: Vec<_> = std::iter::from_fn(|| gate.enter(address(1))).collect();
        assert_eq!(of_one.len(), HANDSHAKES_PER_ADDRESS_MAX);
        let of_others: Vec<_> = (2..=255).filter_map(|n| gate.enter(address(n))).collect();
        assert_eq!(of_one.len() + of_others.len(), HANDSHAKES_MAX);
        assert!(gate.is_crowded());
        drop((of_one, of_others));
        assert!(gate.enter(address(1)).is_some() && !gate.is_crowded());
        assert!(gate.handshakes().by_address.is_empty());
    }

    #[test]
    fn of_a_flood_one_line_a_minute_is_news() {
        let (gate, start) = (Gate::default(), Instant::now());
        let told = (0..180).filter(|second| gate.is_news(start + Duration::from_secs(*second))).count();
        assert_eq!(told, 3);
    }
}
