//! The event loop: ticks and packets in the order of their times.

use crate::archive::Archive;
use crate::host::Host;
use crate::meter::Meter;
use crate::network::{HostId, Network};
use shoal_grid::membership::conduct::Offence;
use shoal_grid::membership::limits::TICK_MS;
use shoal_grid::membership::{Action, Change};
use shoal_grid::random::Random;
use shoal_wire::mesh::NodeKey;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick { host: HostId, life: u64 },
    Packet { from: NodeKey, to: HostId, frame: Rc<[u8]> },
}

/// Something that a host saw or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Change(Change),
    Cut { peer: NodeKey, offence: Offence },
}

pub struct Simulation {
    pub seed: u64,
    pub hosts: Vec<Host>,
    pub network: Network,
    pub meters: Vec<Meter>,
    pub random: Random,
    pub archive: Archive,
    /// What hosts saw since it was last taken, with the time and the host.
    pub seen: Vec<(u64, HostId, Seen)>,
    now_ms: u64,
    count: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    by_key: BTreeMap<NodeKey, HostId>,
}

impl Simulation {
    /// Machines of which none runs yet.
    pub fn new(hosts: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut simulation = Simulation {
            seed,
            hosts: Vec::new(),
            network: Network::local(0),
            meters: Vec::new(),
            archive: Archive::default(),
            seen: Vec::new(),
            now_ms: 0,
            count: 0,
            events: BinaryHeap::new(),
            by_key: BTreeMap::new(),
            random: Random::new(random.word()),
        };
        (0..hosts).for_each(|_| {
            simulation.add();
        });
        simulation
    }

    /// Another machine, which does not run yet.
    pub fn add(&mut self) -> HostId {
        let id = self.hosts.len();
        let mut host = Host::new(id as u64);
        host.uptime_ms = self.random.below(1 << 40);
        self.by_key.insert(host.node, id);
        self.hosts.push(host);
        self.meters.push(Meter::default());
        self.network.side.push(0);
        id
    }

    /// The disk is lost with the node's key: the machine comes back as another node.
    pub fn replace(&mut self, host: HostId) {
        let uptime_ms = self.hosts[host].uptime_ms;
        self.crash(host);
        let identity = self.by_key.len() as u64;
        self.hosts[host] = Host { uptime_ms, ..Host::new(identity) };
        self.hosts[host].life = self.count + 1;
        self.by_key.insert(self.hosts[host].node, host);
    }

    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub fn start(&mut self, host: HostId, contacts: &[HostId]) {
        let contacts = contacts.iter().map(|id| self.hosts[*id].node).collect();
        let seed = self.random.word();
        self.hosts[host].start(&self.archive, contacts, seed, self.now_ms);
        let life = self.hosts[host].life;
        let first = self.now_ms + self.random.below(TICK_MS);
        self.schedule(first, Event::Tick { host, life });
    }

    /// All of them run and know each other, as after a long quiet time.
    pub fn start_acquainted(&mut self, hosts: std::ops::Range<HostId>) {
        for host in hosts.clone() {
            self.start(host, &[]);
        }
        let membership = |host: &Host| host.membership.as_ref().map(|membership| membership.snapshot());
        let facts: Vec<_> = self.hosts[hosts.clone()].iter().filter_map(membership).flatten().collect();
        for host in hosts {
            let now = self.hosts[host].now(self.now_ms);
            if let Some(membership) = self.hosts[host].membership.as_mut() {
                membership.restore(&facts, now);
            }
        }
    }

    pub fn crash(&mut self, host: HostId) {
        self.hosts[host].crash(self.now_ms);
    }

    /// It stops, as a machine that is suspended; what is sent to it meanwhile is lost.
    pub fn pause(&mut self, host: HostId, for_ms: u64) {
        self.hosts[host].paused_until_ms = self.now_ms + for_ms;
        self.hosts[host].settled_ms = self.now_ms + for_ms;
    }

    pub fn send(&mut self, from: HostId, to: NodeKey, frame: Vec<u8>) {
        self.meters[from].sent(frame.len(), self.now_ms);
        let Some(&target) = self.by_key.get(&to) else { return };
        let frame: Rc<[u8]> = frame.into();
        let from_key = self.hosts[from].node;
        for delay in self.network.delays(from, target, &mut self.random) {
            let packet = Event::Packet { from: from_key, to: target, frame: frame.clone() };
            // The machine may be another node by now.
            if self.hosts[target].node == to {
                self.schedule(self.now_ms + delay, packet);
            }
        }
    }

    /// Carries out what a host decided.
    pub fn act(&mut self, host: HostId, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { to, frame } => self.send(host, to, frame),
                Action::Changed(change) => self.seen.push((self.now_ms, host, Seen::Change(change))),
                Action::Cut { peer, offence } => self.seen.push((self.now_ms, host, Seen::Cut { peer, offence })),
                Action::Incarnation(incarnation) => self.hosts[host].disk.incarnation = incarnation,
            }
        }
    }

    pub fn run_for(&mut self, ms: u64) {
        self.run_until(self.now_ms + ms);
    }

    pub fn run_until(&mut self, end_ms: u64) {
        while self.events.peek().is_some_and(|Reverse((at, _, _))| *at <= end_ms) {
            let Some(Reverse((at, _, event))) = self.events.pop() else { break };
            self.now_ms = at;
            match event {
                Event::Tick { host, life } => self.tick(host, life),
                Event::Packet { from, to, frame } => self.deliver(from, to, &frame),
            }
        }
        self.now_ms = end_ms;
    }

    fn tick(&mut self, id: HostId, life: u64) {
        let (host, now_ms) = (&mut self.hosts[id], self.now_ms);
        let now = host.now(now_ms);
        let Some(membership) = host.membership.as_mut().filter(|_| host.life == life) else { return };
        let next = (now_ms + TICK_MS).max(host.paused_until_ms);
        let actions = match now_ms >= host.paused_until_ms {
            true => membership.tick(now),
            false => Vec::new(),
        };
        self.act(id, actions);
        self.schedule(next, Event::Tick { host: id, life });
    }

    fn deliver(&mut self, from: NodeKey, to: HostId, frame: &[u8]) {
        let host = &mut self.hosts[to];
        if !host.runs(self.now_ms) {
            return;
        }
        self.meters[to].received(frame.len());
        let now = host.now(self.now_ms);
        let Some(membership) = host.membership.as_mut() else { return };
        let actions = membership.receive(from, frame, now);
        self.act(to, actions);
    }

    fn schedule(&mut self, at_ms: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at_ms, self.count, event)));
    }
}
