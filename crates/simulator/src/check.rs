//! What must hold, whatever happened.

use crate::host::Host;
use crate::network::HostId;
use crate::simulation::{Seen, Simulation};
use shoal_grid::catalogue::Action;
use shoal_grid::membership::Change;
use shoal_grid::ring::Key;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::Holding;
use shoal_wire::mesh::node_record::RecordVersion;
use shoal_wire::mesh::path_record::ContentTag;
use std::collections::{BTreeMap, BTreeSet};

/// What one life of a host has seen: versions must not go back.
#[derive(Default)]
pub struct Watcher(BTreeMap<(HostId, u64, NodeKey), RecordVersion>);

impl Watcher {
    /// No record regresses in any view.
    pub fn watch(&mut self, simulation: &Simulation) -> Result<(), String> {
        for (id, host) in simulation.hosts.iter().enumerate() {
            let Some(membership) = &host.membership else { continue };
            for (node, member) in membership.view().members() {
                let seen = self.0.entry((id, host.life, *node)).or_default();
                if member.version < *seen {
                    return Err(format!("{id} went back from {seen:?} to {:?}", member.version));
                }
                *seen = member.version;
            }
        }
        Ok(())
    }
}

/// Hosts that run, by their nodes.
pub fn running(simulation: &Simulation) -> BTreeSet<NodeKey> {
    let running = simulation.hosts.iter().filter(|host| host.runs(simulation.now_ms()));
    running.map(|host| host.node).collect()
}

/// Every node that runs sees all that run, in one version, and no other.
pub fn agreement(simulation: &Simulation) -> Result<(), String> {
    let expected = running(simulation);
    let mut versions: BTreeMap<NodeKey, RecordVersion> = BTreeMap::new();
    for (id, host) in simulation.hosts.iter().enumerate() {
        let Some(membership) = host.membership.as_ref().filter(|_| host.runs(simulation.now_ms())) else { continue };
        let view = membership.view();
        let live: BTreeSet<NodeKey> = view.live().iter().copied().collect();
        if live != expected {
            let name = |node: &NodeKey| simulation.hosts.iter().position(|host| host.node == *node);
            let missing: Vec<_> = expected.difference(&live).map(name).collect();
            let surplus: Vec<_> = live.difference(&expected).map(name).collect();
            return Err(format!("{id} takes {missing:?} for dead and {surplus:?} for live"));
        }
        for node in &live {
            let version = view.get(node).map(|member| member.version).unwrap_or_default();
            let first = *versions.entry(*node).or_insert(version);
            if first != version {
                return Err(format!("{id} has {version:?} where another has {first:?}"));
            }
        }
    }
    Ok(())
}

/// Hosts that run and have these contents on their disks.
pub fn copies(simulation: &Simulation, holding: &Holding) -> usize {
    let has =
        |host: &&Host| host.runs(simulation.now_ms()) && host.disk.held.get(&holding.key) == Some(&holding.content);
    simulation.hosts.iter().filter(has).count()
}

/// What was acknowledged, by time and host.
pub fn acknowledged(simulation: &Simulation, stored: &BTreeMap<(HostId, Key), ContentTag>) -> BTreeSet<Holding> {
    let holding = |(_, host, seen): &(u64, HostId, Seen)| match seen {
        Seen::Catalogue(Action::Acknowledged { key }) => {
            let content = *stored.get(&(*host, *key))?;
            Some(Holding { key: *key, content })
        }
        _ => None,
    };
    simulation.seen.iter().filter_map(holding).collect()
}

/// Paths of which a conflict was reported.
pub fn conflicts(simulation: &Simulation) -> BTreeSet<Key> {
    let key = |(_, _, seen): &(u64, HostId, Seen)| match seen {
        Seen::Catalogue(Action::Conflict(conflict)) => Some(conflict.key),
        _ => None,
    };
    simulation.seen.iter().filter_map(key).collect()
}

/// Every host that runs finds each of `keys`, at nodes that have it.
pub fn everything_is_found(simulation: &mut Simulation, keys: &BTreeSet<Key>) -> Result<(), String> {
    for host in 0..simulation.hosts.len() {
        if !simulation.hosts[host].runs(simulation.now_ms()) {
            continue;
        }
        simulation.seen.clear();
        for key in keys {
            simulation.look_up(host, *key);
        }
        simulation.run_for(3_000);
        let mut found = BTreeSet::new();
        for (_, _, seen) in simulation.seen.iter().filter(|(_, by, _)| *by == host) {
            let Seen::Catalogue(Action::Found { key, answer, .. }) = seen else { continue };
            let has = |node: &NodeKey| {
                simulation.hosts.iter().any(|host| host.node == *node && host.disk.held.contains_key(key))
            };
            if answer.holders.iter().all(has) {
                found.insert(*key);
            }
        }
        if let Some(key) = keys.difference(&found).next() {
            return Err(format!("{host} does not find {:02x?}", &key[..4]));
        }
    }
    Ok(())
}

/// How many bytes hosts sent above their budget, the worst of them.
pub fn excess(simulation: &Simulation) -> u64 {
    simulation.meters.iter().map(|meter| meter.excess()).max().unwrap_or(0)
}

/// Deaths that were seen of nodes which ran and could be reached, for `settled_ms` before.
pub fn false_deaths(simulation: &Simulation, settled_ms: u64) -> Vec<(u64, HostId, HostId)> {
    let mut wrong = Vec::new();
    for (at, by, seen) in &simulation.seen {
        let Seen::Change(Change::Died(node)) = seen else { continue };
        let Some(of) = simulation.hosts.iter().position(|host| host.node == *node) else { continue };
        let host = &simulation.hosts[of];
        if host.runs(*at) && host.settled_ms + settled_ms < *at {
            wrong.push((*at, *by, of));
        }
    }
    wrong
}
