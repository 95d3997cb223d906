//! What the mesh says of the pools: how many nodes of each are there, and what waits for them.
//!
//! Invariants:
//! - a pod's node is the one live member of the pod's name; of two nothing is believed;
//! - a node has drained when it says so itself: it drains, runs nothing, nobody waits for it, and others have acknowledged
//!   all that it holds. Of a pod whose node was known and is not live, that cannot be said, so it stays; nor of one that
//!   nobody knows while the API server calls more pods ready than there are live nodes;
//! - each kind of work counts for one pool.

use std::collections::BTreeMap;

use shoal_grid::can_run::{Machine, Requirement, can_run};
use shoal_grid::sizing::{Pool, Terms};
use shoal_mesh::roster::{Peer, Roster};
use shoal_wire::mesh::demand::{Amount, Demand, Kind};
use shoal_wire::mesh::departure::Remaining;
use shoal_wire::mesh::node_record::Presence;

use crate::pools::Spec;

/// What a pool's nodes are, where neither annotations nor nodes have said it yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub slots: u32,
    pub machine: Option<Machine>,
}

/// One pool as the mesh shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub pool: Pool,
    /// Of its pods, how many have a live node in the mesh.
    pub live: u32,
    /// Names that two live nodes have.
    pub doubled: Vec<String>,
    /// Pods whose nodes were members and are not live.
    pub lost: Vec<String>,
}

/// A pod's node.
enum Node<'a> {
    /// No member was ever called so.
    Unknown,
    Live(&'a Peer),
    Lost,
    Doubled,
}

fn node<'a>(roster: &'a Roster, name: &str) -> Node<'a> {
    let mut live = roster.live().filter(|peer| peer.record.name == name);
    match (live.next(), live.next()) {
        (Some(_), Some(_)) => Node::Doubled,
        (Some(peer), None) => Node::Live(peer),
        (None, _) if roster.peers.iter().any(|peer| peer.record.name == name) => Node::Lost,
        (None, _) => Node::Unknown,
    }
}

fn has_drained(peer: &Peer) -> bool {
    let record = &peer.record;
    record.presence == Presence::Draining
        && record.load.running == 0
        && record.load.queued == 0
        && record.extension::<Remaining>().is_some_and(|left| left.is_none())
}

/// The pool of `spec`, without what waits for it. `known` learns what its nodes are.
pub fn look(spec: &Spec, roster: &Roster, known: &mut Known) -> Seen {
    let mut seen = Seen { pool: Pool { replicas: spec.replicas, ..Pool::default() }, ..Seen::default() };
    let pool = &mut seen.pool;
    let name = |ordinal: u32| format!("{}-{}", spec.name, spec.first.saturating_add(ordinal));
    let live = (0..spec.replicas).filter(|ordinal| matches!(node(roster, &name(*ordinal)), Node::Live(_))).count();
    seen.live = u32::try_from(live).unwrap_or(u32::MAX);
    // Else one that nobody knows may be one that is there.
    let knows_all = spec.ready <= seen.live;
    let (mut last_drain, mut last_drained) = (true, true);
    for ordinal in (0..spec.replicas).rev() {
        let name = name(ordinal);
        let (drains, drained) = match node(roster, &name) {
            Node::Live(peer) => {
                let record = &peer.record;
                known.slots = record.capacity.slots.max(1);
                let machine = Machine { systems: record.systems.clone(), features: record.features.clone() };
                known.machine = Some(machine);
                if record.presence == Presence::Active {
                    pool.active += 1;
                    pool.busy = pool.busy.saturating_add(record.load.running);
                }
                (record.presence != Presence::Active, has_drained(peer))
            }
            // It has not been started, or is not there yet: it has nothing.
            Node::Unknown => (knows_all, knows_all),
            Node::Lost => {
                seen.lost.push(name);
                (false, false)
            }
            Node::Doubled => {
                seen.doubled.push(name);
                (false, false)
            }
        };
        (last_drain, last_drained) = (last_drain && drains, last_drained && drained);
        pool.draining += u32::from(last_drain);
        pool.drained += u32::from(last_drained);
    }
    if let Some(slots) = spec.slots {
        known.slots = slots;
    }
    if let Some(machine) = &spec.machine {
        known.machine = Some(machine.clone());
    }
    seen
}

pub fn terms(spec: &Spec, known: &Known) -> Terms {
    Terms {
        min: spec.min,
        max: spec.max,
        slots: known.slots.max(1),
        startup_s: u64::from(spec.startup_s),
        quiet_s: u64::from(spec.quiet_s),
    }
}

/// What waits in the mesh, by pool, and what no pool can run.
pub fn share(roster: &Roster, pools: &BTreeMap<String, Known>) -> (BTreeMap<String, Amount>, Amount) {
    let mut shares: BTreeMap<String, Amount> = BTreeMap::new();
    let mut unserved = Amount::default();
    let features = |known: &Known| known.machine.as_ref().map_or(0, |machine| machine.features.len());
    // What is not told apart is likely odd: it goes to the pool that can do the most.
    let ablest = pools.iter().max_by_key(|(_, known)| features(known)).map(|(name, _)| name);
    for demand in roster.live().filter_map(|peer| peer.record.extension::<Demand>()) {
        for kind in &demand.kinds {
            match pool_for(kind, pools) {
                Some(pool) => *shares.entry(pool.clone()).or_default() += kind.amount,
                None => unserved += kind.amount,
            }
        }
        match ablest {
            Some(pool) => *shares.entry(pool.clone()).or_default() += demand.rest,
            None => unserved += demand.rest,
        }
    }
    (shares, unserved)
}

/// The pool that offers least beyond what is asked for: what offers more is kept for what needs it.
fn pool_for<'a>(kind: &Kind, pools: &'a BTreeMap<String, Known>) -> Option<&'a String> {
    let asked = Requirement { system: kind.system.clone(), features: kind.features.clone() };
    let able = pools.iter().filter_map(|(name, known)| {
        let machine = known.machine.as_ref()?;
        can_run(machine, &asked).ok().map(|()| (machine.features.len(), name))
    });
    able.min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::{MAX, tests::set};
    use shoal_grid::membership::member::Standing;
    use shoal_wire::mesh::certificate::{Certificate, Roles, Term};
    use shoal_wire::mesh::demand::Work;
    use shoal_wire::mesh::node_record::NodeRecord;
    use shoal_wire::nix::signature::SecretKey;

    const TERM: Term = Term { roles: Roles(3), not_before_s: 1, expires_s: 2_000_000_000 };

    fn peer(name: &str, running: u32, left: Option<Remaining>) -> Peer {
        let key = SecretKey::from_seed("test", [1; 32]).unwrap();
        let mut record = NodeRecord::new(&Certificate::issue(&key, [7; 32], TERM), name);
        record.systems.insert("x86_64-linux".into());
        record.capacity.slots = 4;
        record.load.running = running;
        if left.is_some() {
            record.presence = Presence::Draining;
        }
        record.set_extension(left.as_ref());
        Peer { record, standing: Standing::Alive }
    }

    fn look_at(peers: Vec<Peer>, replicas: i32) -> (Seen, Known) {
        let mut known = Known::default();
        let spec = Spec::of(&set(&[(MAX, "9")], replicas)).unwrap();
        (look(&spec, &Roster { peers }, &mut known), known)
    }

    #[test]
    fn a_node_has_drained_when_nothing_is_left_and_nothing_runs() {
        let none = Some(Remaining::default());
        let (seen, known) = look_at(vec![peer("shoal-0", 3, None), peer("shoal-1", 0, none)], 2);
        assert_eq!((seen.pool.active, seen.pool.busy, seen.pool.draining, seen.pool.drained), (1, 3, 1, 1));
        assert_eq!(known.slots, 4);
        let some = Some(Remaining { builds: 0, paths: 1 });
        for not_drained in [peer("shoal-1", 1, none), peer("shoal-1", 0, some), peer("shoal-1", 0, None)] {
            assert_eq!(look_at(vec![peer("shoal-0", 3, None), not_drained], 2).0.pool.drained, 0);
        }
        // Not before those after it, though it has.
        assert_eq!(look_at(vec![peer("shoal-0", 0, none), peer("shoal-1", 0, None)], 2).0.pool.drained, 0);
    }

    #[test]
    fn what_was_there_and_is_lost_or_doubled_never_goes() {
        let dead = Peer { standing: Standing::Dead, ..peer("shoal-1", 0, Some(Remaining::default())) };
        let (seen, _) = look_at(vec![peer("shoal-0", 0, None), dead], 2);
        assert_eq!((seen.pool.drained, seen.lost), (0, vec!["shoal-1".to_owned()]));
        let twice = || peer("shoal-0", 0, Some(Remaining::default()));
        let (seen, _) = look_at(vec![twice(), twice()], 1);
        assert_eq!((seen.pool.drained, seen.live, seen.doubled.len()), (0, 0, 1));
        // One that never came has nothing, unless the API server knows better.
        assert_eq!(look_at(vec![peer("shoal-0", 0, None)], 3).0.pool.drained, 2);
        let spec = Spec { ready: 2, ..Spec::of(&set(&[(MAX, "9")], 3)).unwrap() };
        let seen = look(&spec, &Roster { peers: vec![peer("shoal-0", 0, None)] }, &mut Known::default());
        assert_eq!((seen.live, seen.pool.draining, seen.pool.drained), (1, 0, 0));
    }

    #[test]
    fn work_goes_to_the_pool_that_offers_least_beyond_it() {
        let known = |features: &[&str]| {
            let words = features.iter().map(|word| word.to_string()).collect();
            let machine = Machine { systems: ["x86_64-linux".to_owned()].into(), features: words };
            Known { slots: 1, machine: Some(machine) }
        };
        let pools =
            BTreeMap::from([("big".to_owned(), known(&["kvm", "big-parallel"])), ("plain".to_owned(), known(&[]))]);
        let kind = |system: &str, features: &[&str], jobs| Kind {
            system: system.to_owned(),
            features: features.iter().map(|word| word.to_string()).collect(),
            amount: Amount { ready: Work { jobs, slot_s: 10 }, ..Amount::default() },
        };
        let mut asking = peer("other", 0, None);
        let kinds =
            vec![kind("x86_64-linux", &[], 5), kind("x86_64-linux", &["kvm"], 3), kind("aarch64-linux", &[], 2)];
        asking.record.set_extension(Some(&Demand::new(kinds)));
        let (shares, unserved) = share(&Roster { peers: vec![asking] }, &pools);
        assert_eq!((shares["plain"].ready.jobs, shares["big"].ready.jobs, unserved.ready.jobs), (5, 3, 2));
    }
}
