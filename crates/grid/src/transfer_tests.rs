//! Peers of all kinds in virtual time, from seeds.

use super::*;
use crate::random::Random;
use proptest::prelude::*;
use std::collections::HashSet;

const MIB: u64 = 1 << 20;

/// A peer that answers one chunk after the other.
#[derive(Clone)]
struct Host {
    /// Bytes a second.
    rate: u64,
    latency_us: u64,
    lacks: HashSet<Hash>,
    /// Sends nothing from then on.
    stalls_us: u64,
    /// The number of the chunk that it lies about.
    lies_at: usize,
    /// Says that it is busy until then.
    busy_us: u64,
    queue: VecDeque<(RequestId, ChunkRef)>,
    is_sending: bool,
    sent: usize,
    asked: usize,
    asked_bytes: u64,
}

impl Host {
    fn of(rate: u64) -> Host {
        Host {
            rate,
            latency_us: 1000,
            lacks: HashSet::new(),
            stalls_us: u64::MAX,
            lies_at: usize::MAX,
            busy_us: 0,
            queue: VecDeque::new(),
            is_sending: false,
            sent: 0,
            asked: 0,
            asked_bytes: 0,
        }
    }
}

#[derive(Default)]
struct Simulation {
    transfer: Transfer,
    now_us: u64,
    hosts: BTreeMap<NodeKey, Host>,
    /// When which host has sent its next chunk.
    events: BTreeSet<(u64, NodeKey)>,
    cancelled: HashSet<RequestId>,
    ended: BTreeMap<FetchId, (u64, Option<Failure>)>,
    dropped: Vec<(NodeKey, Fault)>,
    /// Most bytes that one host was asked for at a time, in milliseconds of its speed.
    work_ms_max: u64,
}

fn key(n: usize) -> NodeKey {
    [n as u8 + 1; 32]
}

/// Chunks as an ingest cuts them, named by a seed.
fn chunks(seed: u64, bytes: u64) -> Vec<ChunkRef> {
    let mut random = Random::new(seed);
    let mut chunks = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let len = (16_384 + random.below(98_304)).min(left);
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&seed.to_le_bytes());
        hash[8..16].copy_from_slice(&(chunks.len() as u64).to_le_bytes());
        chunks.push(ChunkRef { hash, len: len as u32 });
        left -= len;
    }
    chunks
}

impl Simulation {
    fn new(hosts: impl IntoIterator<Item = Host>) -> Simulation {
        Simulation {
            hosts: hosts.into_iter().enumerate().map(|(n, host)| (key(n), host)).collect(),
            ..Default::default()
        }
    }

    fn now(&self) -> Time {
        self.now_us / 1000
    }

    fn wanted(&self, chunks: Vec<ChunkRef>, urgency: Urgency) -> Wanted {
        Wanted { chunks, holders: self.hosts.keys().copied().collect(), urgency, is_read: false }
    }

    fn begin(&mut self, fetch: FetchId, chunks: Vec<ChunkRef>, urgency: Urgency) {
        let wanted = self.wanted(chunks, urgency);
        let actions = self.transfer.begin(self.now(), fetch, wanted);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ask { request, peer, chunks, .. } => {
                    let host = self.hosts.get_mut(&peer).unwrap();
                    host.asked += chunks.len();
                    host.asked_bytes += chunks.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>();
                    host.queue.extend(chunks.into_iter().map(|chunk| (request, chunk)));
                    if !host.is_sending {
                        host.is_sending = true;
                        self.events.insert((self.now_us + host.latency_us, peer));
                    }
                }
                Action::Cancel { request } => _ = self.cancelled.insert(request),
                Action::Dropped { peer, fault, .. } => self.dropped.push((peer, fault)),
                Action::Done { fetch } => self.end(fetch, None),
                Action::Failed { fetch, why } => self.end(fetch, Some(why)),
            }
        }
        for peer in self.transfer.peers.values() {
            let work = peer.outstanding * 1000 / peer.rate(self.now());
            self.work_ms_max = self.work_ms_max.max(work);
        }
    }

    fn end(&mut self, fetch: FetchId, failure: Option<Failure>) {
        assert!(self.ended.insert(fetch, (self.now_us, failure)).is_none(), "ended twice");
    }

    /// The next chunk of a host's queue has been sent, or nothing was left to send.
    fn send(&mut self, peer: NodeKey) {
        let now_us = self.now_us;
        let host = self.hosts.get_mut(&peer).unwrap();
        host.is_sending = false;
        let Some((request, chunk)) = host.queue.pop_front() else { return };
        if now_us >= host.stalls_us {
            host.queue.push_front((request, chunk));
            return;
        }
        let is_cancelled = self.cancelled.contains(&request);
        host.sent += usize::from(!is_cancelled);
        let outcome = match () {
            () if now_us < host.busy_us => Outcome::Busy,
            () if host.lacks.contains(&chunk.hash) => Outcome::Absent,
            () => Outcome::Here,
        };
        let lies = outcome == Outcome::Here && host.sent >= host.lies_at;
        let next_us = host
            .queue
            .iter()
            .find(|(request, _)| !self.cancelled.contains(request))
            .map_or(0, |(_, next)| u64::from(next.len) * 1_000_000 / host.rate);
        host.is_sending = true;
        self.events.insert((now_us + next_us.max(1), peer));
        let actions = match () {
            () if is_cancelled => return,
            () if lies => self.transfer.ended(self.now(), request, Some(Fault::Lied)),
            () => self.transfer.settle(self.now(), request, &[outcome]),
        };
        self.carry_out(actions);
    }

    /// Runs until all of `fetches` have ended, at most an hour.
    fn run(&mut self, fetches: usize) {
        let mut tick_us = self.now_us;
        while self.ended.len() < fetches {
            assert!(self.now_us < 3_600_000_000, "it does not end");
            match self.events.first().copied() {
                Some((at, peer)) if at <= tick_us => {
                    self.events.pop_first();
                    self.now_us = at;
                    self.send(peer);
                }
                _ => {
                    self.now_us = tick_us;
                    let actions = self.transfer.tick(self.now());
                    self.carry_out(actions);
                    tick_us += TICK_MS * 1000;
                }
            }
        }
    }

    /// Milliseconds that a fetch of so many bytes takes.
    fn time(hosts: Vec<Host>, bytes: u64) -> u64 {
        let mut simulation = Simulation::new(hosts);
        simulation.begin(1, chunks(1, bytes), Urgency::Client);
        simulation.run(1);
        assert_eq!(simulation.ended[&1].1, None);
        simulation.ended[&1].0 / 1000
    }
}

fn fast(count: usize) -> Vec<Host> {
    vec![Host::of(20 * MIB); count]
}

#[test]
fn four_peers_are_nearly_four_times_as_fast_as_one() {
    let (one, four) = (Simulation::time(fast(1), 200 * MIB), Simulation::time(fast(4), 200 * MIB));
    assert!(one * 10 >= four * 38, "{one} ms and {four} ms");
}

#[test]
fn one_that_stalls_costs_little_more_than_if_it_were_not_there() {
    let three = Simulation::time(fast(3), 400 * MIB);
    for stalls_us in [0, 1_000, 500_000, 3_000_000, 4_900_000] {
        let mut hosts = fast(4);
        hosts[1].stalls_us = stalls_us;
        let time = Simulation::time(hosts, 400 * MIB);
        assert!(time * 100 <= three * 115, "{time} ms, {three} ms without it");
    }
}

#[test]
fn a_slow_peer_does_not_hold_up_the_end() {
    let three = Simulation::time(fast(3), 100 * MIB);
    let mut hosts = fast(3);
    hosts.push(Host::of(MIB / 4));
    let time = Simulation::time(hosts, 100 * MIB);
    assert!(time * 100 <= three * 115, "{time} ms, {three} ms without it");
}

#[test]
fn peers_of_different_speed_end_together() {
    let rates = [40 * MIB, 20 * MIB, 10 * MIB, 2 * MIB];
    let time = Simulation::time(rates.into_iter().map(Host::of).collect(), 360 * MIB);
    assert!(time <= 5_500, "{time} ms where five seconds are the least");
}

#[test]
fn a_lone_peer_is_asked_for_each_chunk_once_and_for_half_a_second_of_work() {
    for rate in [MIB, 20 * MIB, 200 * MIB] {
        let mut simulation = Simulation::new([Host::of(rate)]);
        let all = chunks(3, 30 * MIB);
        simulation.begin(1, all.clone(), Urgency::Client);
        simulation.run(1);
        assert_eq!(simulation.hosts[&key(0)].asked, all.len());
        assert!(simulation.work_ms_max <= 1_200, "{} ms of work at {rate}", simulation.work_ms_max);
    }
}

#[test]
fn what_two_fetches_want_is_asked_for_once() {
    let mut simulation = Simulation::new([Host::of(20 * MIB)]);
    let (first, second) = (chunks(1, 10 * MIB), chunks(2, 10 * MIB));
    let both: Vec<ChunkRef> = first.iter().chain(&second).copied().collect();
    simulation.begin(1, first.clone(), Urgency::Client);
    simulation.begin(2, both.clone(), Urgency::Build);
    simulation.begin(3, second, Urgency::Replication);
    simulation.run(3);
    assert_eq!(simulation.hosts[&key(0)].asked, both.len());
    assert!(simulation.ended.values().all(|(_, failure)| failure.is_none()));
}

#[test]
fn a_client_does_not_wait_for_other_copies() {
    let mut simulation = Simulation::new(fast(2));
    for n in 0..5 {
        simulation.begin(10 + n, chunks(10 + n, 200 * MIB), Urgency::Replication);
    }
    while simulation.now_us < 2_000_000 {
        let (at, peer) = simulation.events.pop_first().unwrap();
        simulation.now_us = at;
        simulation.send(peer);
    }
    simulation.begin(1, chunks(1, 40 * MIB), Urgency::Client);
    let began = simulation.now_us;
    simulation.run(1);
    // One second alone, and half a second of what was asked for before it.
    assert!(simulation.ended[&1].0 - began < 1_700_000, "{} us", simulation.ended[&1].0 - began);
}

#[test]
fn who_builds_is_served_before_who_reads() {
    let mut simulation = Simulation::new(fast(1));
    simulation.begin(1, chunks(1, 20 * MIB), Urgency::Client);
    simulation.begin(2, chunks(2, 20 * MIB), Urgency::Build);
    simulation.run(2);
    let at = |fetch| simulation.ended[&fetch].0 / 1000;
    assert!(at(2) < 1_600 && at(1) < 2_200, "{} ms and {} ms", at(1), at(2));
}

#[test]
fn a_small_path_does_not_wait_for_a_big_one_nor_a_big_one_for_ever() {
    let mut simulation = Simulation::new(fast(1));
    simulation.begin(1, chunks(1, 100 * MIB), Urgency::Client);
    let mut fetch = 1;
    // Small ones that take all there is, for ever.
    while !simulation.ended.contains_key(&1) {
        fetch += 1;
        let began = simulation.now_us;
        simulation.begin(fetch, chunks(fetch, 10 * MIB), Urgency::Client);
        while simulation.now_us < began + 500_000 {
            let (at, peer) = simulation.events.pop_first().unwrap();
            simulation.now_us = at;
            simulation.send(peer);
        }
        assert!(simulation.now_us < 40_000_000, "it starves");
    }
    assert!(simulation.ended[&2].0 < 1_200_000, "the first small one waited");
}

#[test]
fn a_chunk_that_nobody_has_fails_its_fetch_and_no_other() {
    let all = chunks(1, 10 * MIB);
    let lost = all[all.len() / 2].hash;
    let mut hosts = fast(3);
    hosts.iter_mut().for_each(|host| _ = host.lacks.insert(lost));
    let mut simulation = Simulation::new(hosts);
    simulation.begin(1, all, Urgency::Client);
    simulation.begin(2, chunks(2, 10 * MIB), Urgency::Client);
    simulation.run(2);
    assert_eq!(simulation.ended[&1].1, Some(Failure::Absent(lost)));
    assert_eq!(simulation.ended[&2].1, None);
    assert_eq!((simulation.transfer.chunks_open(), simulation.transfer.requests_open()), (0, 0));
}

#[test]
fn a_fetch_without_anybody_to_ask_fails_at_once() {
    let mut simulation = Simulation::new([]);
    simulation.begin(1, chunks(1, MIB), Urgency::Client);
    assert_eq!(simulation.ended[&1], (0, Some(Failure::NoHolder)));
    simulation.begin(2, Vec::new(), Urgency::Client);
    assert_eq!(simulation.ended[&2], (0, None), "nothing was missing");
}

#[test]
fn the_only_holder_may_be_silent_for_longer() {
    let alone = |count| {
        let mut hosts = fast(count);
        hosts[0].stalls_us = 0;
        let mut simulation = Simulation::new(hosts);
        simulation.begin(1, chunks(1, 64 * MIB), Urgency::Client);
        simulation.run(1);
        let silent = simulation.dropped.iter().any(|dropped| *dropped == (key(0), Fault::Silent));
        (simulation.ended[&1], silent)
    };
    let ((time, failure), silent) = alone(1);
    assert!(silent && failure == Some(Failure::NoHolder) && time >= LONE_SILENCE_MAX_MS * 1000);
    let ((time, failure), _) = alone(2);
    assert!(failure.is_none() && time < 5_000_000, "{time}");
}

#[test]
fn what_a_reader_waits_for_is_taken_from_a_slow_peer() {
    let run = |is_read| {
        let mut hosts = vec![Host::of(MIB / 2)];
        hosts.extend(fast(2));
        let mut simulation = Simulation::new(hosts);
        let all = chunks(1, 200 * MIB);
        let lead: Vec<Hash> = all[..200].iter().map(|chunk| chunk.hash).collect();
        let wanted = Wanted { is_read, ..simulation.wanted(all, Urgency::Client) };
        let actions = simulation.transfer.begin(0, 1, wanted);
        simulation.carry_out(actions);
        let is_missing =
            |simulation: &Simulation| lead.iter().any(|hash| simulation.transfer.chunks.contains_key(hash));
        while is_missing(&simulation) {
            let (at, peer) = simulation.events.pop_first().unwrap();
            simulation.now_us = at;
            simulation.send(peer);
        }
        simulation.now()
    };
    let (read, unread) = (run(true), run(false));
    assert!(read < 1_500 && read * 2 < unread, "the first 12 MiB came after {read} ms, {unread} ms if nobody reads");
}

#[test]
fn too_many_chunks_wait_for_room_and_the_urgent_go_first() {
    let mut simulation = Simulation::new(fast(1));
    let many = |seed: u64, count: usize| -> Vec<ChunkRef> {
        let name = |n: usize| {
            let mut hash = [seed as u8; 32];
            hash[..8].copy_from_slice(&(n as u64).to_le_bytes());
            ChunkRef { hash, len: 1 }
        };
        (0..count).map(name).collect()
    };
    simulation.begin(1, many(1, CHUNKS_MAX), Urgency::Client);
    simulation.begin(2, many(2, 10), Urgency::Replication);
    simulation.begin(3, many(3, CHUNKS_MAX), Urgency::Build);
    assert_eq!(simulation.transfer.chunks_open(), CHUNKS_MAX);
    let actions = simulation.transfer.withdraw(0, 1);
    simulation.carry_out(actions);
    assert_eq!(simulation.transfer.fetches.keys().collect::<Vec<_>>(), [&3]);
    for fetch in [2, 3] {
        let actions = simulation.transfer.withdraw(0, fetch);
        simulation.carry_out(actions);
    }
    assert_eq!((simulation.transfer.chunks_open(), simulation.transfer.requests_open()), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever the others do, one honest peer that has everything is enough, and nothing is left over at the end.
    #[test]
    fn one_good_peer_is_enough(seed: u64, count in 0..6usize, fetches in 1..5u64) {
        let mut random = Random::new(seed);
        let sizes: Vec<u64> = (0..fetches).map(|_| 1 + random.below(30 * MIB)).collect();
        let mut hosts = vec![Host::of(2 * MIB + random.below(50 * MIB))];
        for _ in 0..count {
            let mut host = Host::of(50_000 + random.below(100 * MIB));
            host.latency_us = random.below(200_000);
            for (fetch, size) in sizes.iter().enumerate() {
                let lacking = chunks(fetch as u64 + 1, *size).into_iter().filter(|_| random.chance(30));
                host.lacks.extend(lacking.map(|chunk| chunk.hash));
            }
            match random.below(4) {
                0 => host.stalls_us = random.below(5_000_000),
                1 => host.lies_at = random.below(100) as usize,
                2 => host.busy_us = random.below(5_000_000),
                _ => {}
            }
            hosts.push(host);
        }
        let mut simulation = Simulation::new(hosts);
        for (fetch, size) in sizes.iter().enumerate() {
            simulation.begin(fetch as u64 + 1, chunks(fetch as u64 + 1, *size), Urgency::Client);
        }
        simulation.run(sizes.len());
        prop_assert!(simulation.ended.values().all(|(_, failure)| failure.is_none()), "{:?}", simulation.ended);
        prop_assert!(!simulation.dropped.iter().any(|(peer, _)| *peer == key(0)), "{:?}", simulation.dropped);
        prop_assert_eq!((simulation.transfer.chunks_open(), simulation.transfer.requests_open()), (0, 0));
        prop_assert_eq!(simulation.transfer.next_tick(0), None);
        // Alone the good one would take this long.
        let alone_us = sizes.iter().sum::<u64>() * 1_000_000 / simulation.hosts[&key(0)].rate;
        let took_us = simulation.ended.values().map(|(at, _)| *at).max().unwrap_or(0);
        prop_assert!(took_us <= alone_us * 12 / 10 + 2_500_000, "{took_us} us, {alone_us} us alone");
    }

    /// Fetches that are given up at any time leave nothing behind, and none of the others is disturbed.
    #[test]
    fn fetches_may_be_given_up_at_any_time(seed: u64, count in 1..4usize) {
        let mut random = Random::new(seed);
        let mut simulation = Simulation::new(fast(count));
        let all = chunks(1, 20 * MIB);
        for fetch in 1..=4u64 {
            let from = random.below(all.len() as u64) as usize;
            simulation.begin(fetch, all[from..].to_vec(), Urgency::Client);
        }
        let given_up = 1 + random.below(3);
        for fetch in 1..=given_up {
            for _ in 0..random.below(60) {
                let Some((at, peer)) = simulation.events.pop_first() else { break };
                simulation.now_us = at;
                simulation.send(peer);
            }
            if !simulation.ended.contains_key(&fetch) {
                let actions = simulation.transfer.withdraw(simulation.now(), fetch);
                simulation.carry_out(actions);
                simulation.ended.insert(fetch, (0, None));
            }
        }
        simulation.run(4);
        prop_assert_eq!((simulation.transfer.chunks_open(), simulation.transfer.requests_open()), (0, 0));
        for peer in simulation.transfer.peers.values() {
            prop_assert_eq!(peer.outstanding, 0);
        }
    }
}
