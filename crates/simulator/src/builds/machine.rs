//! An executor: takes offers or refuses them, builds, dies, falls silent.

use shoal_grid::can_run::Machine;
use shoal_grid::placement::{Executor, FreeMemory};
use std::collections::BTreeMap;

/// Index of a machine.
pub type MachineId = u32;
/// Names one offer, so that what comes of an earlier one is not taken for it.
pub type OfferId = u64;

/// One build on a machine.
#[derive(Clone, Debug)]
pub struct Running {
    pub offer: OfferId,
    /// When it will be done.
    pub until_ms: u64,
}

#[derive(Clone, Debug)]
pub struct Builder {
    pub systems: Vec<&'static str>,
    pub slots: u32,
    pub memory_mib: u64,
    pub is_up: bool,
    /// Its messages wait until then.
    pub silent_until_ms: u64,
    /// Slots that others' builds take.
    pub foreign: u32,
    /// What it says of its load instead of the truth.
    pub lie: Option<u32>,
    /// How many times as long it takes for everything.
    pub slowness: u64,
    /// Counts starts: what an earlier life began does not end.
    pub life: u64,
    pub running: BTreeMap<u32, Running>,
}

impl Builder {
    pub fn new(slots: u32) -> Self {
        Builder {
            systems: vec!["x86_64-linux", "i686-linux"],
            slots,
            memory_mib: 64 << 10,
            is_up: true,
            silent_until_ms: 0,
            foreign: 0,
            lie: None,
            slowness: 1,
            life: 0,
            running: BTreeMap::new(),
        }
    }

    pub fn is_full(&self) -> bool {
        self.running.len() as u32 + self.foreign >= self.slots
    }

    /// What it tells others of itself.
    pub fn record(&self) -> Executor {
        let systems = self.systems.iter().map(|system| system.to_string()).collect();
        let running = self.running.len() as u32 + self.foreign;
        Executor {
            machine: Machine { systems, ..Machine::default() },
            slots: self.slots,
            running: self.lie.unwrap_or(running),
            free_memory: FreeMemory::Told(self.memory_mib.saturating_sub(u64::from(running) * 1_000)),
            memory_max_mib: Some(self.memory_mib),
            pressure: 0,
            active: true,
            ..Executor::default()
        }
    }
}
