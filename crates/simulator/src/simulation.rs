//! The event loop: ticks and packets in the order of their times.

use crate::archive::Archive;
use crate::host::Host;
use crate::meter::Meter;
use crate::network::{HostId, Network};
use shoal_grid::catalogue::members::Members;
use shoal_grid::catalogue::{self, Catalogue};
use shoal_grid::membership::conduct::Offence;
use shoal_grid::membership::limits::TICK_MS;
use shoal_grid::membership::{Action, Change};
use shoal_grid::random::Random;
use shoal_grid::ring::Key;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::{HolderMessage, Holding};
use shoal_wire::mesh::format::{decode, encode};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick {
        host: HostId,
        life: u64,
    },
    Packet {
        from: NodeKey,
        to: HostId,
        frame: Rc<[u8]>,
    },
    /// On a stream, which loses nothing while both ends are there.
    Message {
        from: NodeKey,
        to: HostId,
        message: Rc<[u8]>,
    },
    /// A lookup waits for a shorter time than a tick.
    Wake {
        host: HostId,
    },
    Fetched {
        host: HostId,
        life: u64,
        holding: Holding,
        from: Vec<NodeKey>,
    },
}

/// Something that a host saw or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Change(Change),
    Cut {
        peer: NodeKey,
        offence: Offence,
    },
    /// Of the catalogue; what it only asks of its transport is not here.
    Catalogue(catalogue::Action),
}

/// A fetch takes up to this long.
const FETCH_MS: u64 = 500;

pub struct Simulation {
    pub seed: u64,
    pub hosts: Vec<Host>,
    pub network: Network,
    pub meters: Vec<Meter>,
    /// Bytes of announcements that each host sent.
    pub announced_bytes: Vec<u64>,
    pub random: Random,
    pub archive: Archive,
    /// What hosts saw since it was last taken, with the time and the host.
    pub seen: Vec<(u64, HostId, Seen)>,
    now_ms: u64,
    count: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    by_key: BTreeMap<NodeKey, HostId>,
    /// When the last message of each stream arrives: they keep their order.
    streams: BTreeMap<(HostId, HostId), u64>,
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
            announced_bytes: Vec::new(),
            archive: Archive::default(),
            seen: Vec::new(),
            now_ms: 0,
            count: 0,
            events: BinaryHeap::new(),
            by_key: BTreeMap::new(),
            streams: BTreeMap::new(),
            random: Random::new(random.word()),
        };
        (0..hosts).for_each(|_| {
            simulation.add();
        });
        simulation
    }

    /// Machines whose nodes store paths as well.
    pub fn with_stores(hosts: usize, seed: u64) -> Self {
        let mut simulation = Simulation::new(hosts, seed);
        simulation.hosts.iter_mut().for_each(|host| host.has_catalogue = true);
        simulation
    }

    /// Another machine, which does not run yet.
    pub fn add(&mut self) -> HostId {
        let id = self.hosts.len();
        let mut host = Host::new(id as u64);
        host.uptime_ms = self.random.below(1 << 40);
        host.has_catalogue = self.hosts.first().is_some_and(|first| first.has_catalogue);
        self.by_key.insert(host.node, id);
        self.hosts.push(host);
        self.meters.push(Meter::default());
        self.announced_bytes.push(0);
        self.network.side.push(0);
        id
    }

    /// The disk is lost with the node's key: the machine comes back as another node.
    pub fn replace(&mut self, host: HostId) {
        let (uptime_ms, has_catalogue) = (self.hosts[host].uptime_ms, self.hosts[host].has_catalogue);
        self.crash(host);
        let identity = self.by_key.len() as u64;
        self.hosts[host] = Host { uptime_ms, has_catalogue, ..Host::new(identity) };
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
        self.tell_members(host);
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
            self.tell_members(host);
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
        if actions.iter().any(|action| matches!(action, Action::Changed(_))) {
            self.tell_members(host);
        }
        for action in actions {
            match action {
                Action::Send { to, frame } => self.send(host, to, frame),
                Action::Changed(change) => self.seen.push((self.now_ms, host, Seen::Change(change))),
                Action::Cut { peer, offence } => self.seen.push((self.now_ms, host, Seen::Cut { peer, offence })),
                Action::Incarnation(incarnation) => self.hosts[host].disk.incarnation = incarnation,
                Action::LivedBefore => {
                    let lived = |catalogue: &mut Catalogue, now_ms| ((), catalogue.lived_before(now_ms));
                    // It may have none.
                    let _ = self.with_catalogue(host, lived);
                }
            }
        }
    }

    /// Tells a host's catalogue who its membership says is there.
    pub fn tell_members(&mut self, id: HostId) {
        let host = &mut self.hosts[id];
        let now_ms = host.now(self.now_ms).ms;
        let (Some(membership), Some(catalogue)) = (&host.membership, &mut host.catalogue) else { return };
        let actions = catalogue.set_members(Members::of(membership.view()), now_ms);
        self.act_catalogue(id, actions);
    }

    /// Lets a host's catalogue do something, and carries out what it decided.
    pub fn with_catalogue<T>(
        &mut self,
        id: HostId,
        call: impl FnOnce(&mut Catalogue, u64) -> (T, Vec<catalogue::Action>),
    ) -> Option<T> {
        let now_ms = self.hosts[id].now(self.now_ms).ms;
        let (result, actions) = call(self.hosts[id].catalogue.as_mut()?, now_ms);
        self.act_catalogue(id, actions);
        self.wake(id);
        Some(result)
    }

    /// A client's upload: the path is durable at `host`. Whether it could be stored under its name.
    pub fn store(&mut self, host: HostId, holding: Holding) -> bool {
        let is_stored = self.with_catalogue(host, |catalogue, now_ms| catalogue.stored(holding, now_ms)) == Some(true);
        if is_stored {
            self.hosts[host].disk.held.insert(holding.key, holding.content);
        }
        is_stored
    }

    /// Begins a lookup, whose end will be [`Seen::Catalogue`].
    pub fn look_up(&mut self, host: HostId, key: Key) -> Option<u64> {
        self.with_catalogue(host, |catalogue, now_ms| catalogue.look_up(key, now_ms))
    }

    fn wake(&mut self, id: HostId) {
        let host = &mut self.hosts[id];
        let now_ms = host.now(self.now_ms).ms;
        let Some(next_ms) = host.catalogue.as_ref().and_then(|catalogue| catalogue.next_ms()) else { return };
        let at = self.now_ms + next_ms.saturating_sub(now_ms).max(1);
        if host.wake_ms.is_none_or(|wake_ms| wake_ms <= self.now_ms || at < wake_ms) {
            host.wake_ms = Some(at);
            self.schedule(at, Event::Wake { host: id });
        }
    }

    pub fn act_catalogue(&mut self, id: HostId, actions: Vec<catalogue::Action>) {
        for action in actions {
            match action {
                catalogue::Action::Send { to, message } => self.send_message(id, to, &message),
                catalogue::Action::Fetch { holding, from } => {
                    let at = self.now_ms + 1 + self.random.below(FETCH_MS);
                    let life = self.hosts[id].life;
                    self.schedule(at, Event::Fetched { host: id, life, holding, from });
                }
                catalogue::Action::SendRecords { .. } => {}
                catalogue::Action::MayDelete { ref keys, .. } => {
                    for key in keys.clone() {
                        self.hosts[id].disk.held.remove(&key);
                        self.with_catalogue(id, |catalogue, now_ms| ((), catalogue.deleted(key, now_ms)));
                    }
                    self.seen.push((self.now_ms, id, Seen::Catalogue(action)));
                }
                action => self.seen.push((self.now_ms, id, Seen::Catalogue(action))),
            }
        }
    }

    fn send_message(&mut self, from: HostId, to: NodeKey, message: &HolderMessage) {
        let bytes: Rc<[u8]> = encode(message).into();
        if matches!(message, HolderMessage::Holds(_)) {
            self.announced_bytes[from] += bytes.len() as u64;
        }
        let Some(&target) = self.by_key.get(&to) else { return };
        if self.network.reaches(from, target) && self.hosts[target].node == to {
            let spread = self.network.delay_ms_max.saturating_sub(self.network.delay_ms_min) + 1;
            let at = self.now_ms + self.network.delay_ms_min + self.random.below(spread);
            let last = self.streams.entry((from, target)).or_default();
            let at = at.max(*last);
            *last = at;
            let from = self.hosts[from].node;
            self.schedule(at, Event::Message { from, to: target, message: bytes });
        }
    }

    fn fetched(&mut self, id: HostId, life: u64, holding: Holding, from: &[NodeKey]) {
        if self.hosts[id].life != life || !self.hosts[id].runs(self.now_ms) {
            return;
        }
        let has = |source: &HostId| {
            let host = &self.hosts[*source];
            host.runs(self.now_ms) && host.disk.held.get(&holding.key) == Some(&holding.content)
        };
        let sources = from.iter().filter_map(|node| self.by_key.get(node));
        if !sources.filter(|source| self.network.reaches(**source, id)).any(has) {
            self.with_catalogue(id, |catalogue, now_ms| ((), catalogue.fetch_failed(&holding.key, now_ms)));
            return;
        }
        self.hosts[id].disk.held.entry(holding.key).or_insert(holding.content);
        self.with_catalogue(id, |catalogue, now_ms| ((), catalogue.fetched(holding, now_ms)));
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
                Event::Message { from, to, message } => self.deliver_message(from, to, &message),
                Event::Wake { host } if self.hosts[host].runs(at) => {
                    self.with_catalogue(host, |catalogue, now_ms| ((), catalogue.hurry(now_ms)));
                }
                Event::Wake { .. } => {}
                Event::Fetched { host, life, holding, from } => self.fetched(host, life, holding, &from),
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
        if self.hosts[id].runs(now_ms) {
            self.with_catalogue(id, |catalogue, now_ms| ((), catalogue.tick(now_ms)));
        }
        self.schedule(next, Event::Tick { host: id, life });
    }

    fn deliver_message(&mut self, from: NodeKey, to: HostId, message: &[u8]) {
        let is_there = self.by_key.get(&from).is_some_and(|from| self.hosts[*from].runs(self.now_ms));
        let Ok(message) = decode::<HolderMessage>(message) else { return };
        if self.hosts[to].runs(self.now_ms) && is_there {
            self.with_catalogue(to, |catalogue, now_ms| ((), catalogue.receive(from, message, now_ms)));
        }
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
