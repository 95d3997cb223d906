//! Leaves an upstream alone that keeps failing, and tries it again with one request at a time.
//!
//! - Closed until [`FAILURES_MAX`] failures in a row; then open.
//! - Open for a time that doubles with each failed probe, from [`OPEN_MS_MIN`] to [`OPEN_MS_MAX`]; then half open.
//! - Half open: one request at a time passes. Any success closes; a failure opens.

/// Failures in a row that are taken for an outage and not for bad luck.
const FAILURES_MAX: u32 = 3;
/// First pause: a restart of the upstream takes a few seconds.
const OPEN_MS_MIN: u64 = 5_000;
/// Longest pause. Nix leaves a failing cache alone for as long.
const OPEN_MS_MAX: u64 = 60_000;
/// A probe whose answer never came is given up after this time.
const PROBE_MS_MAX: u64 = 30_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Closed,
    HalfOpen,
    Open,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    failures: u32,
    /// Set while not closed.
    tripped: Option<Tripped>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tripped {
    pause_ms: u64,
    until_ms: u64,
    probe_since_ms: Option<u64>,
}

impl Breaker {
    /// `Open` also while a probe is out.
    pub fn phase(&self, now_ms: u64) -> Phase {
        match &self.tripped {
            None => Phase::Closed,
            Some(tripped) if now_ms < tripped.until_ms => Phase::Open,
            Some(tripped) => match tripped.probe_since_ms {
                Some(since) if now_ms < since.saturating_add(PROBE_MS_MAX) => Phase::Open,
                _ => Phase::HalfOpen,
            },
        }
    }

    /// Whether a request may go now; in half open it is the probe.
    pub fn begin(&mut self, now_ms: u64) -> bool {
        match self.phase(now_ms) {
            Phase::Open => false,
            Phase::Closed => true,
            Phase::HalfOpen => {
                if let Some(tripped) = &mut self.tripped {
                    tripped.probe_since_ms = Some(now_ms);
                }
                true
            }
        }
    }

    pub fn succeeded(&mut self) {
        *self = Breaker::default();
    }

    /// A request that was let through at `began_ms` was never sent: if it was the probe, the next one may be.
    pub fn abandoned(&mut self, began_ms: u64) {
        if let Some(tripped) = &mut self.tripped {
            tripped.probe_since_ms = tripped.probe_since_ms.filter(|since| *since != began_ms);
        }
    }

    /// A failure of a request that began before the breaker opened changes nothing.
    pub fn failed(&mut self, now_ms: u64) {
        match &mut self.tripped {
            None => {
                self.failures += 1;
                if self.failures >= FAILURES_MAX {
                    let until_ms = now_ms.saturating_add(OPEN_MS_MIN);
                    self.tripped = Some(Tripped { pause_ms: OPEN_MS_MIN, until_ms, probe_since_ms: None });
                }
            }
            Some(tripped) if tripped.probe_since_ms.is_some() => {
                let pause_ms = tripped.pause_ms.saturating_mul(2).min(OPEN_MS_MAX);
                *tripped = Tripped { pause_ms, until_ms: now_ms.saturating_add(pause_ms), probe_since_ms: None };
            }
            Some(_) => {}
        }
    }
}
