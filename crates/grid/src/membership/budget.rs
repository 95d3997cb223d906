//! How many bytes may be sent now.
//!
//! What has to go out (probes and their answers) always goes, and is paid for afterwards by what can wait. So over any
//! time the node sends at most rate x time + burst, as long as probes alone stay under the rate, which they do.

use super::limits::{BUDGET_BURST, BUDGET_BYTES_A_S, PACKET_OVERHEAD};

/// How much can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Is sent whatever the budget says.
    Must,
    /// Deaths, contradictions, newcomers: as long as there is anything left.
    Soon,
    /// As long as a quarter of the burst stays for the others.
    Spare,
}

#[derive(Clone, Debug)]
pub struct Budget {
    /// Thousandths of bytes; less than 0 while in debt.
    tokens: i64,
    filled_ms: u64,
}

const FULL: i64 = (BUDGET_BURST * 1_000) as i64;

impl Budget {
    pub fn new(now_ms: u64) -> Self {
        Budget { tokens: FULL, filled_ms: now_ms }
    }

    /// Bytes that a packet of this urgency may have now, without its head.
    pub fn room(&mut self, now_ms: u64, urgency: Urgency) -> usize {
        let gained = now_ms.saturating_sub(self.filled_ms).min(10_000) * BUDGET_BYTES_A_S;
        self.tokens = self.tokens.saturating_add(gained as i64).min(FULL);
        self.filled_ms = self.filled_ms.max(now_ms);
        let kept = match urgency {
            Urgency::Must => return usize::MAX,
            Urgency::Soon => 0,
            Urgency::Spare => FULL / 4,
        };
        usize::try_from((self.tokens - kept) / 1_000).unwrap_or(0).saturating_sub(PACKET_OVERHEAD)
    }

    /// A packet of `len` bytes was sent.
    pub fn spend(&mut self, len: usize) {
        let cost = (len + PACKET_OVERHEAD).saturating_mul(1_000);
        self.tokens = self.tokens.saturating_sub(i64::try_from(cost).unwrap_or(i64::MAX)).max(-FULL);
    }
}
