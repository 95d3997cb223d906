//! Memory of builds: what this node has for them, what they are promised, what they used.

use shoal_grid::placement::{FreeMemory, lacks_memory};
use shoal_wire::nix::store_path::StorePath;

use super::execute::Ended;
use super::service::{BuildService, HERE, State};
use crate::mesh::load;

pub(super) const MIB: u64 = 1 << 20;

/// What a builder used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// 0 where it was not measured. Of one that ran out and was limited, the limit.
    pub peak_mib: u64,
    /// It failed, and the kernel had ended a process of it for want of memory.
    pub ran_out: bool,
}

impl BuildService {
    /// The most that one build can have here, whatever else runs.
    pub fn memory_max_mib(&self) -> u64 {
        self.memory_limit_mib().map_or(self.config.memory_mib, |limit| limit.min(self.config.memory_mib))
    }

    /// The limit that each build has by the configuration.
    pub(super) fn memory_limit_mib(&self) -> Option<u64> {
        self.config.cgroups.memory_max().map(|bytes| bytes.div_ceil(MIB))
    }

    /// What who waits for a derivation is told when it is tried again.
    pub(super) fn starved(&self, drv_path: &StorePath, ended: &Ended) -> String {
        let drv = self.store_dir().print(drv_path);
        format!("'{drv}' ran out of memory with {} MiB; it is built again where it gets more\n", ended.used.peak_mib)
    }

    /// What this node's own builds have between them.
    pub(super) fn shared_memory(&self, state: &State) -> FreeMemory {
        FreeMemory::Shared(self.config.memory_mib.saturating_sub(state.guests.memory_mib()))
    }

    /// What other nodes may count on: what is free, less what running builds may still take. Never 0, which would say
    /// that nothing is known.
    pub fn free_memory_mib(&self) -> u64 {
        self.free_mib(&self.lock())
    }

    fn free_mib(&self, state: &State) -> u64 {
        let promised_mib = state.guests.memory_mib().saturating_add(state.schedule.memory_at(&HERE));
        let (_, available_mib) = load::memory_mib();
        self.config.memory_mib.saturating_sub(promised_mib).min(available_mib).max(1)
    }

    /// Why a build that needs so much is not taken in beside what runs here.
    pub(super) fn refuses_memory(&self, state: &State, needed_mib: u64) -> Option<String> {
        let busy = u32::try_from(state.busy_here()).unwrap_or(u32::MAX);
        lacks_memory(busy, needed_mib, self.free_mib(state)).map(|reason| reason.to_string())
    }
}
