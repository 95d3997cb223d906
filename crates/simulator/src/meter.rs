//! What a host sends, counted by the simulator and not by the host.

use shoal_grid::membership::limits::{BUDGET_BURST, BUDGET_BYTES_A_S, PACKET_OVERHEAD};

#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Thousandths of bytes above the rate.
    above: u64,
    above_max: u64,
    at_ms: u64,
}

impl Meter {
    pub fn sent(&mut self, len: usize, now_ms: u64) {
        let bytes = (len + PACKET_OVERHEAD) as u64;
        self.sent_bytes += bytes;
        let drained = (now_ms - self.at_ms) * BUDGET_BYTES_A_S;
        (self.above, self.at_ms) = (self.above.saturating_sub(drained) + bytes * 1_000, now_ms);
        self.above_max = self.above_max.max(self.above);
    }

    pub fn received(&mut self, len: usize) {
        self.received_bytes += (len + PACKET_OVERHEAD) as u64;
    }

    /// Bytes by which it ever was above rate x time + burst, over any time that ended.
    pub fn excess(&self) -> u64 {
        (self.above_max / 1_000).saturating_sub(BUDGET_BURST)
    }
}
