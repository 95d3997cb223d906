//! What happens to a packet on its way.

use shoal_grid::random::Random;

/// Index of a host in its simulation.
pub type HostId = usize;

/// Conditions that hold for all links, but for those that a partition cuts.
#[derive(Clone, Debug)]
pub struct Network {
    pub delay_ms_min: u64,
    pub delay_ms_max: u64,
    /// Packets lost, delivered twice, and kept back for up to [`LATE_MS`], in percent. Those kept back, and delays that
    /// differ, put packets in another order.
    pub loss: u64,
    pub duplicated: u64,
    pub late: u64,
    /// Hosts with different numbers do not reach each other.
    pub side: Vec<u8>,
    /// Links cut in one direction.
    pub cut: Vec<(HostId, HostId)>,
}

pub const LATE_MS: u64 = 2_000;

impl Network {
    /// A local network: 1 to 5 ms, nothing lost.
    pub fn local(hosts: usize) -> Self {
        Network { delay_ms_min: 1, delay_ms_max: 5, loss: 0, duplicated: 0, late: 0, side: vec![0; hosts], cut: vec![] }
    }

    pub fn reaches(&self, from: HostId, to: HostId) -> bool {
        self.side[from] == self.side[to] && !self.cut.contains(&(from, to))
    }

    /// After how many milliseconds each copy of a packet arrives.
    pub fn delays(&self, from: HostId, to: HostId, random: &mut Random) -> Vec<u64> {
        let copies = 1 + u64::from(random.chance(self.duplicated));
        let mut delays = Vec::new();
        for _ in 0..copies {
            let spread = self.delay_ms_max.saturating_sub(self.delay_ms_min) + 1;
            let late = if random.chance(self.late) { random.below(LATE_MS) } else { 0 };
            let delay = self.delay_ms_min + random.below(spread) + late;
            if self.reaches(from, to) && !random.chance(self.loss) {
                delays.push(delay);
            }
        }
        delays
    }
}
