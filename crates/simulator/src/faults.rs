//! Random scenarios: some nodes, a bad network, and one fault after the other; then everything heals.

use crate::check::{self, Watcher};
use crate::network::HostId;
use crate::simulation::Simulation;
use shoal_grid::random::Random;

/// Time after healing in which views must agree: nodes that stopped last are to be suspected by who still watches them,
/// alone where the other monitors are gone too.
pub const QUIET_MS: u64 = 60_000;

/// Runs the scenario of a seed. The error says what did not hold, and begins with the seed.
pub fn run(seed: u64) -> Result<(), String> {
    scenario(seed).map_err(|what| format!("SHOAL_SEED={seed}: {what}"))
}

fn scenario(seed: u64) -> Result<(), String> {
    let mut random = Random::new(!seed);
    let hosts = match random.below(10) {
        0 => 16 + random.below(24),
        _ => 3 + random.below(9),
    } as usize;
    let mut simulation = Simulation::new(hosts, seed);
    simulation.network.loss = [0, 2, 5, 10][random.below(4) as usize];
    simulation.network.duplicated = [0, 5][random.below(2) as usize];
    simulation.network.late = [0, 3][random.below(2) as usize];
    simulation.network.delay_ms_max = [2, 50, 200][random.below(3) as usize];
    for host in &mut simulation.hosts {
        host.skew_s = random.below(280) as i64 - 140;
    }
    for host in 0..hosts {
        // Some come later.
        let contacts: Vec<HostId> = (0..host.min(2)).collect();
        simulation.start(host, &contacts);
        simulation.run_for(random.below(500));
    }
    let mut watcher = Watcher::default();
    for _ in 0..3 + random.below(8) {
        fault(&mut simulation, &mut random);
        for _ in 0..1 + random.below(15) {
            simulation.run_for(1_000);
            watcher.watch(&simulation)?;
        }
    }
    heal(&mut simulation);
    for _ in 0..QUIET_MS / 1_000 {
        simulation.run_for(1_000);
        watcher.watch(&simulation)?;
    }
    check::agreement(&simulation)?;
    match check::excess(&simulation) {
        0 => Ok(()),
        bytes => Err(format!("a node sent {bytes} bytes above its budget")),
    }
}

fn fault(simulation: &mut Simulation, random: &mut Random) {
    let hosts = simulation.hosts.len();
    let host = random.below(hosts as u64) as HostId;
    let contacts: Vec<HostId> = (0..hosts).filter(|other| *other != host).take(3).collect();
    match random.below(8) {
        0 => simulation.crash(host),
        1 => simulation.pause(host, random.below(20_000)),
        2 => {
            let sides = 2 + random.below(2);
            simulation.network.side = (0..hosts).map(|_| random.below(sides) as u8).collect();
        }
        3 => simulation.network.side = vec![0; hosts],
        4 => simulation.network.cut.push((host, random.below(hosts as u64) as HostId)),
        5 => {
            // With its disk, and without: then it has its key from elsewhere.
            simulation.crash(host);
            if random.chance(50) {
                simulation.hosts[host].disk = Default::default();
            }
            simulation.start(host, &contacts);
        }
        6 => {
            simulation.replace(host);
            simulation.start(host, &contacts);
        }
        _ => {
            for down in 0..hosts {
                if simulation.hosts[down].membership.is_none() {
                    simulation.start(down, &contacts);
                }
            }
        }
    }
}

/// The network is whole again, and who runs finds the first two, which run. Others that are down stay down.
fn heal(simulation: &mut Simulation) {
    let hosts = simulation.hosts.len();
    simulation.network.side = vec![0; hosts];
    simulation.network.cut.clear();
    for host in 0..hosts.min(2) {
        if simulation.hosts[host].membership.is_none() {
            simulation.start(host, &[0, 1]);
        }
    }
    let first: Vec<_> = simulation.hosts.iter().take(2).map(|host| host.node).collect();
    for membership in simulation.hosts.iter_mut().filter_map(|host| host.membership.as_mut()) {
        membership.meet(first.iter().copied());
    }
}
