//! What a node does about members that lie, replay, flood, were revoked, or lost their memory.

use shoal_grid::membership::Change;
use shoal_grid::membership::conduct::Offence;
use shoal_grid::membership::limits::{FLOOD_BYTES, GRACE_MS};
use shoal_grid::membership::member::Standing;
use shoal_simulator::Simulation;
use shoal_simulator::check::{agreement, running};
use shoal_simulator::host::{EPOCH_S, mesh_id, mesh_key, secret};
use shoal_simulator::simulation::Seen;
use shoal_wire::mesh::certificate::{CLOCK_SKEW_MAX_S, Certificate, Term};
use shoal_wire::mesh::format::encode;
use shoal_wire::mesh::frame::{Fact, Frame};
use shoal_wire::mesh::node_record::{NodeRecord, RecordVersion};
use shoal_wire::mesh::revocation::Revocation;
use shoal_wire::mesh::sealed::{Sealed, SealedBytes};
use shoal_wire::mesh::suspicion::Suspicion;

fn acquainted(hosts: usize) -> Simulation {
    let mut simulation = Simulation::new(hosts, 3);
    simulation.start_acquainted(0..hosts);
    simulation.run_for(3_000);
    simulation.seen.clear();
    simulation
}

fn tell(simulation: &mut Simulation, from: usize, to: usize, facts: Vec<Fact>) {
    let to = simulation.hosts[to].node;
    simulation.send(from, to, encode(&Frame::Facts { pushed: true, facts }));
    simulation.run_for(50);
}

/// The record of `of` in the view of `at`.
fn known(simulation: &Simulation, at: usize, of: usize) -> Option<(RecordVersion, Standing)> {
    let membership = simulation.hosts[at].membership.as_ref()?;
    membership.view().get(&simulation.hosts[of].node).map(|member| (member.version, member.standing))
}

fn record_of(simulation: &Simulation, host: usize) -> NodeRecord {
    let membership = simulation.hosts[host].membership.as_ref().unwrap();
    (**membership.view().get(&simulation.hosts[host].node).unwrap().record).clone()
}

fn sealed(record: NodeRecord, key: u64) -> Fact {
    Fact::Record(Sealed::seal(record, &secret(2, key)).unwrap().bytes().clone())
}

fn cuts(simulation: &Simulation, by: usize) -> Vec<Offence> {
    let cut = |(_, host, seen): &(u64, usize, Seen)| match seen {
        Seen::Cut { offence, .. } if *host == by => Some(*offence),
        _ => None,
    };
    simulation.seen.iter().filter_map(cut).collect()
}

#[test]
fn who_passes_on_forged_facts_is_cut_off() {
    let mut simulation = acquainted(4);
    let before = known(&simulation, 1, 2);
    let mut record = record_of(&simulation, 2);
    record.version.incarnation += 5;
    let Fact::Record(bytes) = sealed(record, 2) else { panic!() };
    let mut forged = bytes.to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    tell(&mut simulation, 0, 1, vec![Fact::Record(SealedBytes(forged.into()))]);
    assert_eq!(cuts(&simulation, 1), [Offence::Forged]);
    assert_eq!(known(&simulation, 1, 2), before);

    // Node 0 signs by itself what only node 2 may say.
    let suspicion = Suspicion { mesh: mesh_id(), author: simulation.hosts[0].node, subject: [9; 32], incarnation: 1 };
    let sealed = Sealed::seal(suspicion, &secret(2, 0)).unwrap();
    let mut bytes = sealed.bytes().to_vec();
    bytes[33..65].copy_from_slice(&simulation.hosts[2].node);
    tell(&mut simulation, 0, 1, vec![Fact::Suspicion(SealedBytes(bytes.into()))]);
    assert_eq!(cuts(&simulation, 1), [Offence::Forged; 2]);
    let conduct = simulation.hosts[1].membership.as_ref().unwrap().conduct(&simulation.hosts[0].node);
    assert_eq!(conduct.offences, 2);
}

#[test]
fn garbage_floods_and_other_meshes_are_cut_off() {
    let mut simulation = acquainted(4);
    let to = simulation.hosts[1].node;
    simulation.send(0, to, vec![1, 250, 3]);
    simulation.run_for(50);
    assert_eq!(cuts(&simulation, 1), [Offence::Garbage]);
    assert_eq!(known(&simulation, 1, 0).unwrap().1, Standing::Alive, "others judge for themselves");

    simulation.seen.clear();
    let other = secret(1, 99);
    let certificate = Certificate::issue(&other, simulation.hosts[0].node, record_of(&simulation, 0).term);
    tell(&mut simulation, 0, 1, vec![sealed(NodeRecord::new(&certificate, "stranger"), 0)]);
    assert_eq!(cuts(&simulation, 1), [Offence::OtherMesh]);

    simulation.seen.clear();
    let frame = encode(&Frame::Wants(vec![u64::MAX; 1_000]));
    for _ in 0..FLOOD_BYTES as usize / frame.len() + 1 {
        simulation.send(0, to, frame.clone());
    }
    simulation.run_for(50);
    assert!(cuts(&simulation, 1).contains(&Offence::Flood));
}

#[test]
fn old_records_change_nothing() {
    let mut simulation = acquainted(5);
    let old = sealed(record_of(&simulation, 2), 2);
    simulation.hosts[2].membership.as_mut().unwrap().update(|record| record.name = "renamed".into());
    simulation.run_for(5_000);
    let new = known(&simulation, 1, 2).unwrap();
    assert_eq!(new.0.sequence, 2);
    tell(&mut simulation, 0, 1, vec![old.clone()]);
    assert_eq!(known(&simulation, 1, 2), Some(new));
    let conduct = simulation.hosts[1].membership.as_ref().unwrap().conduct(&simulation.hosts[0].node);
    assert_eq!((conduct.offences, conduct.stale > 0), (0, true), "frames overtake each other: no offence");

    // Neither what a dead node said before, nor what it might have said later in the same life, revives it.
    let mut later = record_of(&simulation, 2);
    later.version.sequence += 7;
    simulation.crash(2);
    simulation.run_for(15_000);
    assert_eq!(known(&simulation, 1, 2).unwrap().1, Standing::Dead);
    tell(&mut simulation, 0, 1, vec![old, sealed(later, 2)]);
    assert_eq!(known(&simulation, 1, 2).unwrap().1, Standing::Dead);
}

/// Each stale record of its sender is answered with the newer one, until the budget is spent.
#[test]
fn replays_are_not_amplified() {
    let mut simulation = acquainted(4);
    let old = sealed(record_of(&simulation, 0), 0);
    simulation.hosts[0].membership.as_mut().unwrap().update(|record| record.name = "renamed".into());
    simulation.run_for(5_000);
    let before = simulation.meters[1].sent_bytes;
    let to = simulation.hosts[1].node;
    let frame = encode(&Frame::Facts { pushed: true, facts: vec![old; 40] });
    for _ in 0..30 {
        simulation.send(0, to, frame.clone());
    }
    simulation.run_for(1_000);
    assert!(simulation.hosts[1].membership.as_ref().unwrap().conduct(&simulation.hosts[0].node).stale >= 1_000);
    let sent = simulation.meters[1].sent_bytes - before;
    assert!((10_000..70_000).contains(&sent), "{sent}");
    assert_eq!(simulation.meters[1].excess(), 0);
}

#[test]
fn one_liar_kills_nobody() {
    let mut simulation = acquainted(8);
    let author = simulation.hosts[0].node;
    for round in 0..40 {
        for subject in 1..8 {
            let Some((version, _)) = known(&simulation, 0, subject) else { panic!() };
            let (node, incarnation) = (simulation.hosts[subject].node, version.incarnation);
            let suspicion = Suspicion { mesh: mesh_id(), author, subject: node, incarnation };
            let fact = Fact::Suspicion(Sealed::seal(suspicion, &secret(2, 0)).unwrap().bytes().clone());
            tell(&mut simulation, 0, 1 + (round + subject) % 7, vec![fact]);
        }
        simulation.run_for(1_000);
    }
    let died = |(_, _, seen): &&(u64, usize, Seen)| matches!(seen, Seen::Change(Change::Died(_)));
    assert_eq!(simulation.seen.iter().find(died), None);
    assert!(known(&simulation, 3, 5).unwrap().0.incarnation > 5, "they contradicted");
    assert_eq!(simulation.hosts[5].disk.incarnation, known(&simulation, 3, 5).unwrap().0.incarnation);
}

/// Where the suspect cannot contradict, it takes a second voice before the lone one has stood for long.
#[test]
fn one_voice_is_no_death_and_two_are() {
    let mut simulation = acquainted(8);
    let (host, suspect) = (0, 5);
    simulation.network.cut.extend((0..8).flat_map(|other| [(suspect, other), (other, suspect)]));
    let incarnation = known(&simulation, host, suspect).unwrap().0.incarnation;
    let suspected_by = |simulation: &Simulation, author: usize| {
        let (author_node, subject) = (simulation.hosts[author].node, simulation.hosts[suspect].node);
        let suspicion = Suspicion { mesh: mesh_id(), author: author_node, subject, incarnation };
        Fact::Suspicion(Sealed::seal(suspicion, &secret(2, author as u64)).unwrap().bytes().clone())
    };
    let (first, second) = (suspected_by(&simulation, 1), suspected_by(&simulation, 2));
    tell(&mut simulation, 1, host, vec![first]);
    // Its monitors have not given up on it by then.
    simulation.run_for(GRACE_MS + 1_500);
    assert_eq!(known(&simulation, host, suspect).unwrap().1, Standing::Suspected);
    tell(&mut simulation, 2, host, vec![second]);
    simulation.run_for(GRACE_MS + 1_500);
    assert_eq!(known(&simulation, host, suspect).unwrap().1, Standing::Dead);
}

/// One direction of one link is dead: its ends go on seeing each other alive by way of the others, and contradictions
/// become rare.
#[test]
fn a_broken_link_kills_nobody() {
    let mut simulation = acquainted(6);
    simulation.network.cut.push((1, 4));
    simulation.network.cut.push((4, 1));
    simulation.run_for(300_000);
    let died = |(_, _, seen): &&(u64, usize, Seen)| matches!(seen, Seen::Change(Change::Died(_)));
    assert_eq!(simulation.seen.iter().find(died), None);
    let incarnation =
        known(&simulation, 0, 4).unwrap().0.incarnation.max(known(&simulation, 0, 1).unwrap().0.incarnation);
    assert!((2..10).contains(&incarnation), "{incarnation}");
}

#[test]
fn a_revoked_node_is_out_for_good() {
    let mut simulation = acquainted(8);
    let node = simulation.hosts[3].node;
    let revocation = Revocation { mesh: mesh_id(), node, until_s: EPOCH_S + 365 * 86_400 };
    let sealed = Sealed::seal(revocation, &mesh_key()).unwrap();
    let now = simulation.hosts[0].now(simulation.now_ms());
    let actions = simulation.hosts[0].membership.as_mut().unwrap().revoke(sealed.bytes(), now).unwrap();
    simulation.act(0, actions);
    simulation.run_for(10_000);
    let is_out = |simulation: &Simulation| {
        (0..8).filter(|host| *host != 3).all(|host| {
            known(simulation, host, 3).is_none()
                && simulation.hosts[host].membership.as_ref().unwrap().view().live().len() == 7
        })
    };
    assert!(is_out(&simulation));
    let is_cut = |(_, _, seen): &(u64, usize, Seen)| *seen == Seen::Cut { peer: node, offence: Offence::Revoked };
    assert!(simulation.seen.iter().any(is_cut));
    // It comes back as if new, and one who forgot everything hears of the revocation first or second.
    simulation.crash(3);
    simulation.crash(5);
    simulation.hosts[5].disk.facts.clear();
    simulation.run_for(1_000);
    simulation.start(5, &[3, 0]);
    simulation.start(3, &[5]);
    simulation.run_for(20_000);
    assert!(is_out(&simulation));
    let mut forged = sealed.bytes().to_vec();
    forged[40] ^= 1;
    assert!(simulation.hosts[0].membership.as_mut().unwrap().revoke(&forged, now).is_err());
}

/// Clocks are two minutes apart. A certificate that expires takes its node out everywhere, one that is renewed does not.
#[test]
fn certificates_expire() {
    let mut simulation = Simulation::new(5, 3);
    for (host, skew_s) in [0, 120, -120, 60, -60].into_iter().enumerate() {
        simulation.hosts[host].skew_s = skew_s;
    }
    let expires_s = EPOCH_S + 60;
    simulation.hosts[2].expires_s = expires_s;
    simulation.hosts[3].expires_s = expires_s;
    simulation.start_acquainted(0..5);
    simulation.run_for(5_000);
    assert_eq!(agreement(&simulation), Ok(()));
    let term = Term { expires_s: expires_s + 1_000_000, ..record_of(&simulation, 3).term };
    let renewed = Certificate::issue(&mesh_key(), simulation.hosts[3].node, term);
    simulation.hosts[3].membership.as_mut().unwrap().update(|record| {
        (record.term, record.certified) = (renewed.term, renewed.signature);
    });
    simulation.run_for((60 + CLOCK_SKEW_MAX_S + 120 + 20) * 1_000);
    for host in [0, 1, 4] {
        assert_eq!(known(&simulation, host, 2).unwrap().1, Standing::Expired, "{host}");
        assert_eq!(known(&simulation, host, 3).unwrap().1, Standing::Alive, "{host}");
    }
}

/// Without its disk a node begins again at its first incarnation, and the others tell it that it had more.
#[test]
fn who_lost_its_memory_is_told() {
    let mut simulation = acquainted(5);
    for _ in 0..3 {
        simulation.crash(2);
        simulation.run_for(15_000);
        assert_eq!(known(&simulation, 0, 2).unwrap().1, Standing::Dead);
        simulation.hosts[2].disk = Default::default();
        simulation.start(2, &[0]);
        simulation.run_for(6_000);
        assert_eq!(agreement(&simulation), Ok(()));
    }
    assert!(known(&simulation, 0, 2).unwrap().0.incarnation >= 4);
}

#[test]
fn who_leaves_is_not_searched_for() {
    let mut simulation = acquainted(9);
    let now = simulation.hosts[4].now(simulation.now_ms());
    let actions = simulation.hosts[4].membership.as_mut().unwrap().leave(now);
    simulation.act(4, actions);
    simulation.run_for(3_000);
    simulation.crash(4);
    simulation.run_for(1_000);
    assert_eq!(agreement(&simulation), Ok(()));
    let suspected = |(_, _, seen): &&(u64, usize, Seen)| matches!(seen, Seen::Change(Change::Suspected(_)));
    assert_eq!(simulation.seen.iter().find(suspected), None);
    simulation.start(4, &[0]);
    simulation.run_for(5_000);
    assert_eq!(agreement(&simulation), Ok(()));
}

/// A hundred nodes in two halves for a minute: each half takes the other for dead, and after healing both are one.
#[test]
fn halves_find_each_other_again() {
    let mut simulation = acquainted(100);
    simulation.network.loss = 2;
    simulation.network.side = (0..100).map(|host| u8::from(host % 2 == 0)).collect();
    simulation.run_for(60_000);
    let live =
        |simulation: &Simulation, host: usize| simulation.hosts[host].membership.as_ref().unwrap().view().live().len();
    assert!((0..100).all(|host| live(&simulation, host) == 50));
    simulation.network.side = vec![0; 100];
    let healed_ms = simulation.now_ms();
    while agreement(&simulation).is_err() && simulation.now_ms() < healed_ms + 60_000 {
        simulation.run_for(500);
    }
    println!("one again after {} ms", simulation.now_ms() - healed_ms);
    assert_eq!(agreement(&simulation), Ok(()));
    assert_eq!(running(&simulation).len(), 100);
}
