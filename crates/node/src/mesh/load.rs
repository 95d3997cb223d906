//! What of this node is in use, told to the others every few seconds.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shoal_mesh::handle::Mesh;
use shoal_wire::mesh::demand::Demand;
use shoal_wire::mesh::node_record::{Load, NodeRecord};

use crate::build::service::BuildService;

/// How often it is looked at. What changes is published when its turn comes, which is seldom in a large mesh.
const PERIOD: Duration = Duration::from_secs(5);
/// Builds that begin or end so soon after each other are told together.
const CHANGES_TOGETHER: Duration = Duration::from_millis(50);
const MIB: u64 = 1 << 20;

/// Tells for as long as it is polled.
pub async fn tell(mesh: Mesh, builds: Arc<BuildService>, data_dir: std::path::PathBuf) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Who places builds wants to know of this node's places at once; the rest is looked at beside it.
        tokio::select! {
            _ = ticks.tick() => {}
            () = builds.until_load_changes() => tokio::time::sleep(CHANGES_TOGETHER).await,
        }
        let (service, dir) = (builds.clone(), data_dir.clone());
        let Ok((load, demand)) = tokio::task::spawn_blocking(move || look(&service, &dir)).await else { return };
        let tell = move |own: &mut NodeRecord| {
            own.load = load;
            own.set_extension((!demand.is_none()).then_some(&demand));
        };
        mesh.update(tell).await;
    }
}

fn look(builds: &BuildService, data_dir: &Path) -> (Load, Demand) {
    let wanted = builds.wanted();
    let demand = wanted.demand();
    let overview = builds.overview();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let load = Load {
        running: count(overview.running_here),
        queued: count(overview.waiting),
        free_memory_mib: builds.free_memory_mib(),
        free_store_mib: disk_mib(data_dir).1,
        pressure: pressure(),
        demand_cpu_s: demand.total().ready.slot_s,
        demand_memory_mib: wanted.memory_mib,
    };
    (load, demand)
}

/// All memory of the machine and what of it is free to be used, in MiB; 0 where that cannot be read.
pub fn memory_mib() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) / 1024
    };
    (of("MemTotal"), of("MemAvailable"))
}

/// Size of the file system that the store is in and what of it is free, in MiB; 0 where that cannot be seen.
pub fn disk_mib(dir: &Path) -> (u64, u64) {
    match rustix::fs::statvfs(dir) {
        Ok(disk) => (disk.f_blocks * disk.f_frsize / MIB, disk.f_bavail * disk.f_frsize / MIB),
        Err(_) => (0, 0),
    }
}

/// The greatest share of the last ten seconds, in percent, in which something waited for CPU, memory or disk; 0 where the
/// kernel does not count it.
fn pressure() -> u8 {
    let of = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/pressure/{name}")).ok()?;
        let share = text.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
        share.parse::<f64>().ok()
    };
    let most = ["cpu", "memory", "io"].into_iter().filter_map(of).fold(0.0, f64::max);
    most.clamp(0.0, 100.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_memory_and_disk_of_which_some_is_free() {
        let (memory, free) = memory_mib();
        assert!(memory > 0 && free <= memory, "{free} of {memory}");
        let (disk, free) = disk_mib(Path::new("/"));
        assert!(disk > 0 && free <= disk, "{free} of {disk}");
        assert!(pressure() <= 100);
    }
}
