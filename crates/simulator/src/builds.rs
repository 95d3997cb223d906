//! One coordinator's schedule in virtual time, against executors that refuse, lie, fall silent and die.
//!
//! The coordinator does with the schedule's actions what a node does: it offers jobs over ordered links, takes an executor
//! that was silent for [`SILENT_MS`] or whose link broke for gone, and ignores what comes of an offer that it has given up,
//! unless that is a success. [`watch`] judges every action.

pub mod graph;
pub mod machine;
pub mod mayhem;
pub mod traffic;
pub mod watch;

use graph::Graph;
use machine::{Builder, MachineId, OfferId, Running};
use shoal_grid::can_run::Requirement;
use shoal_grid::random::Random;
use shoal_grid::schedule::{Action, End, Node, RequestId, Schedule, Terms};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use traffic::Traffic;
use watch::Watch;

/// Silence after which an executor is taken for dead.
pub const SILENT_MS: u64 = 10_000;
/// How often executors are looked at, and how often they tell of their load.
const LOOK_MS: u64 = 1_000;
const GOSSIP_MS: u64 = 5_000;
/// How long an executor that is full says that it is.
const FULL_MS: u64 = 2_000;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Offer {
        to: MachineId,
        offer: OfferId,
        key: u32,
    },
    Cancel {
        to: MachineId,
        offer: OfferId,
        key: u32,
    },
    /// A builder is done.
    Built {
        at: MachineId,
        life: u64,
        key: u32,
    },
    Ended {
        from: MachineId,
        offer: OfferId,
        key: u32,
        how: How,
    },
    Broken {
        from: MachineId,
    },
    Told {
        from: MachineId,
        running: u32,
    },
    Look,
    Gossip,
    Tick,
}

/// [`End`], of which order means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    Success,
    Failed,
    Stopped,
    Lost,
    OutOfMemory,
    RefusedJob,
    Full { until_ms: u64 },
}

/// What goes wrong with single builds, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chances {
    pub refused: u64,
    pub lost: u64,
    pub out_of_memory: u64,
}

#[derive(Clone, Copy, Debug)]
struct Offer {
    at: MachineId,
    id: OfferId,
    since_ms: u64,
}

pub struct Builds {
    pub graph: Graph,
    pub machines: Vec<Builder>,
    pub watch: Watch,
    pub traffic: Traffic,
    pub chances: Chances,
    pub delay_ms_max: u64,
    /// Whether what is late is built a second time.
    pub seconds_late: bool,
    /// Time between an offer and the end of what became of it in vain, by job.
    pub lost_ms: BTreeMap<u32, u64>,
    /// Time in which slots of executors that were down were not there.
    pub down_ms: u64,
    schedule: Schedule<u32, MachineId>,
    now_ms: u64,
    random: Random,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next_event: u64,
    offers: BTreeMap<u32, Offer>,
    /// Of second copies.
    seconds: BTreeMap<u32, Offer>,
    next_offer: OfferId,
    members: BTreeSet<MachineId>,
    heard_ms: Vec<u64>,
    /// When the last message of each link arrives, to an executor and from it.
    arrivals: Vec<[u64; 2]>,
    tick_ms: Option<u64>,
}

impl Builds {
    pub fn new(graph: Graph, machines: Vec<Builder>, seed: u64) -> Result<Self, String> {
        let count = machines.len();
        let mut builds = Builds {
            graph,
            machines,
            watch: Watch::default(),
            traffic: Traffic::default(),
            chances: Chances::default(),
            delay_ms_max: 5,
            seconds_late: true,
            lost_ms: BTreeMap::new(),
            down_ms: 0,
            schedule: Schedule::new(),
            now_ms: 0,
            random: Random::new(seed),
            events: BinaryHeap::new(),
            next_event: 0,
            offers: BTreeMap::new(),
            seconds: BTreeMap::new(),
            next_offer: 1,
            members: (0..count as MachineId).collect(),
            heard_ms: vec![0; count],
            arrivals: vec![[0; 2]; count],
            tick_ms: None,
        };
        let records = (0..).zip(builds.machines.iter().map(Builder::record)).collect();
        let actions = builds.schedule.set_executors(records, 0);
        builds.carry_out(actions)?;
        builds.at(LOOK_MS, Event::Look);
        builds.at(GOSSIP_MS, Event::Gossip);
        Ok(builds)
    }

    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub fn is_done(&self) -> bool {
        self.watch.open.is_empty() && self.schedule.running() + self.schedule.waiting() == 0
    }

    /// A client asks for these. What has been built is not asked for again.
    pub fn submit(&mut self, goals: &BTreeSet<u32>, terms: Terms) -> Result<RequestId, String> {
        let missing = |key: &u32| !self.watch.succeeded.contains(key);
        let goals: BTreeSet<u32> = goals.iter().copied().filter(missing).collect();
        let node = |key: u32| {
            let task = &self.graph.tasks[key as usize];
            Node {
                key,
                deps: task.deps.clone(),
                estimate_ms: task.estimate_ms,
                has_estimate: true,
                requirement: Requirement { system: task.system.clone(), ..Requirement::default() },
                memory_mib: task.memory_mib,
            }
        };
        let nodes = self.graph.closure(&goals).into_iter().filter(missing).map(node).collect();
        let (request, actions) = self.schedule.submit(nodes, goals.clone(), terms, self.now_ms);
        if !goals.is_empty() {
            self.watch.open.insert(request, goals);
        }
        self.carry_out(actions)?;
        Ok(request)
    }

    /// Outputs that are there from an earlier run, and where: nobody builds them, and jobs go to where they lie.
    pub fn submit_warm(&mut self, is_warm: impl Fn(u32) -> bool, terms: Terms) -> Result<RequestId, String> {
        let all: BTreeSet<u32> = (0..self.graph.tasks.len() as u32).collect();
        self.watch.succeeded.extend(all.iter().copied().filter(|key| is_warm(*key)));
        for key in all.iter().copied().filter(|key| is_warm(*key)) {
            for holder in self.traffic.holders(key) {
                self.schedule.learn(&key, &holder, self.graph.tasks[key as usize].output_bytes);
            }
        }
        self.submit(&all, terms)
    }

    pub fn cancel(&mut self, request: RequestId) -> Result<(), String> {
        self.watch.open.remove(&request);
        let actions = self.schedule.cancel(request, self.now_ms);
        self.carry_out(actions)
    }

    /// The machine stops. `is_seen`: its link breaks at once; else it is only silent.
    pub fn crash(&mut self, machine: MachineId, is_seen: bool) {
        let known = &mut self.machines[machine as usize];
        if known.is_up {
            (known.is_up, known.life) = (false, known.life + 1);
            known.running.clear();
            if is_seen {
                self.from(machine, Event::Broken { from: machine });
            }
        }
    }

    /// It runs again, with nothing of what it did. Links to its earlier life break.
    pub fn restart(&mut self, machine: MachineId) {
        let known = &mut self.machines[machine as usize];
        if !known.is_up {
            known.is_up = true;
            self.from(machine, Event::Broken { from: machine });
        }
    }

    pub fn run_until(&mut self, ms: u64) -> Result<(), String> {
        while self.events.peek().is_some_and(|Reverse((at, _, _))| *at <= ms) {
            self.step()?;
        }
        self.now_ms = self.now_ms.max(ms);
        Ok(())
    }

    /// Until all is answered and nothing runs; an error where that takes longer than `limit_ms` from now.
    pub fn run_to_end(&mut self, limit_ms: u64) -> Result<(), String> {
        let until_ms = self.now_ms + limit_ms;
        while !self.is_done() {
            if self.now_ms > until_ms {
                let (open, waiting) = (self.watch.open.len(), self.schedule.waiting());
                return Err(format!("{open} requests are open after {limit_ms} ms, {waiting} jobs wait"));
            }
            self.step()?;
        }
        Ok(())
    }

    fn at(&mut self, ms: u64, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((ms, self.next_event, event)));
    }

    /// When a message that is sent now arrives; links keep order.
    fn arrival(&mut self, machine: MachineId, direction: usize) -> u64 {
        let sent_ms = self.now_ms.max(self.machines[machine as usize].silent_until_ms);
        let arrival = &mut self.arrivals[machine as usize][direction];
        *arrival = (*arrival).max(sent_ms + self.random.below(self.delay_ms_max + 1));
        *arrival
    }

    fn to(&mut self, machine: MachineId, event: Event) {
        let ms = self.arrival(machine, 0);
        self.at(ms, event);
    }

    fn from(&mut self, machine: MachineId, event: Event) {
        let ms = self.arrival(machine, 1);
        self.at(ms, event);
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(Reverse((ms, _, event))) = self.events.pop() else { return Err("nothing would ever happen".into()) };
        self.now_ms = self.now_ms.max(ms);
        match event {
            Event::Offer { to, offer, key } => self.offered(to, offer, key),
            Event::Cancel { to, offer, key } => self.cancelled(to, offer, key),
            Event::Built { at, life, key } => self.built(at, life, key),
            Event::Ended { from, offer, key, how } => self.ended(from, offer, key, how)?,
            Event::Broken { from } => self.gone(from)?,
            Event::Told { from, running } => self.told(from, running)?,
            Event::Look => self.look()?,
            Event::Gossip => self.gossip(),
            Event::Tick => {
                self.tick_ms = None;
                let actions = self.schedule.tick(self.now_ms);
                self.carry_out(actions)?;
            }
        }
        if let Some(ms) = self.schedule.next_tick_ms().filter(|ms| self.tick_ms.is_none_or(|tick| *ms < tick)) {
            self.tick_ms = Some(ms);
            self.at(ms.max(self.now_ms), Event::Tick);
        }
        Ok(())
    }

    fn carry_out(&mut self, actions: Vec<Action<u32, MachineId>>) -> Result<(), String> {
        for action in actions {
            match action {
                Action::Start { key, at } => {
                    let slots = self.machines[at as usize].slots;
                    self.watch.start(&self.graph, key, at, slots, self.now_ms)?;
                    let offer = self.offer(key, at);
                    self.offers.insert(key, offer);
                }
                Action::Second { key, at } => {
                    self.watch.second(key, at, self.machines[at as usize].slots)?;
                    let offer = self.offer(key, at);
                    self.seconds.insert(key, offer);
                }
                Action::Stop { key, at } => {
                    let second = self.seconds.get(&key).copied().filter(|second| second.at == at);
                    if let Some(second) = second {
                        self.seconds.remove(&key);
                        self.watch.seconds.remove(&key);
                        self.to(at, Event::Cancel { to: at, offer: second.id, key });
                        continue;
                    }
                    let offer = self.offers.get(&key).filter(|offer| offer.at == at);
                    let offer = offer.ok_or_else(|| format!("{key} is stopped at {at}, where it does not run"))?.id;
                    self.watch.stopped(key);
                    self.to(at, Event::Cancel { to: at, offer, key });
                }
                // Others come back.
                Action::Nowhere { .. } => {}
                Action::Answer { request, key, answer } => {
                    self.watch.answer(request, key, &answer, self.now_ms)?;
                }
            }
        }
        self.watch.forget_unwanted(|key| self.schedule.wants(key));
        Ok(())
    }

    fn offer(&mut self, key: u32, at: MachineId) -> Offer {
        let offer = Offer { at, id: self.next_offer, since_ms: self.now_ms };
        self.next_offer += 1;
        self.to(at, Event::Offer { to: at, offer: offer.id, key });
        offer
    }

    /// The first run of a job is lost: where there is a second, that is the run from now on.
    fn promote(&mut self, key: u32) {
        if let Some(second) = self.seconds.remove(&key) {
            self.offers.insert(key, second);
            self.watch.promoted(key);
        }
    }

    fn offered(&mut self, at: MachineId, offer: OfferId, key: u32) {
        let machine = &mut self.machines[at as usize];
        if !machine.is_up {
            return;
        }
        if let Some(running) = machine.running.get_mut(&key) {
            running.offer = offer;
            return;
        }
        let how = match machine.is_full() {
            true => How::Full { until_ms: self.now_ms + FULL_MS },
            false if self.random.chance(self.chances.refused) => How::RefusedJob,
            false => {
                let until_ms = self.now_ms + self.graph.tasks[key as usize].duration_ms * machine.slowness;
                machine.running.insert(key, Running { offer, until_ms });
                self.traffic.begins(&self.graph, key, at);
                let life = machine.life;
                return self.at(until_ms, Event::Built { at, life, key });
            }
        };
        self.from(at, Event::Ended { from: at, offer, key, how });
    }

    fn cancelled(&mut self, at: MachineId, offer: OfferId, key: u32) {
        let machine = &mut self.machines[at as usize];
        if machine.running.get(&key).is_some_and(|running| running.offer == offer) {
            machine.running.remove(&key);
            self.from(at, Event::Ended { from: at, offer, key, how: How::Stopped });
        }
    }

    fn built(&mut self, at: MachineId, life: u64, key: u32) {
        let machine = &mut self.machines[at as usize];
        // One that was stopped and begun again is not done yet.
        let is_done = |running: &Running| running.until_ms <= self.now_ms;
        if machine.life != life || !machine.running.get(&key).is_some_and(is_done) {
            return;
        }
        let Some(running) = machine.running.remove(&key) else { return };
        let how = match self.graph.tasks[key as usize].is_broken {
            _ if self.random.chance(self.chances.lost) => How::Lost,
            _ if self.random.chance(self.chances.out_of_memory) => How::OutOfMemory,
            true => How::Failed,
            false => How::Success,
        };
        self.from(at, Event::Ended { from: at, offer: running.offer, key, how });
    }

    /// Word of an offer reaches the coordinator.
    fn ended(&mut self, from: MachineId, id: OfferId, key: u32, how: How) -> Result<(), String> {
        // What an earlier offer brought to the same executor settles the later one, which is withdrawn.
        let is_late = |offer: &Offer| how == How::Success && offer.at == from;
        let open = self.offers.get(&key).copied().filter(|offer| offer.id == id || is_late(offer));
        let second = self.seconds.get(&key).copied();
        let second = second.filter(|second| second.id == id || (how == How::Success && second.at == from));
        if open.is_none() && second.is_none() && how != How::Success {
            return Ok(());
        }
        if let Some(second) = second {
            self.seconds.remove(&key);
            self.watch.seconds.remove(&key);
            if second.id != id {
                self.to(from, Event::Cancel { to: from, offer: second.id, key });
            }
        }
        if let Some(offer) = open.filter(|offer| offer.id != id) {
            self.to(from, Event::Cancel { to: from, offer: offer.id, key });
        }
        if let Some(offer) = open {
            self.offers.remove(&key);
            self.watch.running.remove(&key);
            if !matches!(how, How::Success | How::Failed) {
                *self.lost_ms.entry(key).or_default() += self.now_ms - offer.since_ms;
            }
            if how == How::Lost {
                self.promote(key);
            }
        }
        let text = || "the simulator says no".to_owned();
        let end = match how {
            How::Success => End::Success { output_bytes: self.graph.tasks[key as usize].output_bytes },
            How::Failed | How::Stopped => End::Failed,
            How::Lost => End::Lost,
            How::OutOfMemory => End::OutOfMemory { used_mib: self.graph.tasks[key as usize].memory_mib },
            How::RefusedJob => End::Refused { text: text(), full_until_ms: None },
            How::Full { until_ms } => End::Refused { text: text(), full_until_ms: Some(until_ms) },
        };
        match how {
            How::Success => {
                self.watch.succeeded(key);
                self.traffic.built(key, from);
            }
            How::Failed => drop(self.watch.failed.insert(key)),
            // Second copies are no tries.
            How::RefusedJob | How::Full { .. } if second.is_none() => self.watch.refused(key),
            How::RefusedJob | How::Full { .. } => {}
            How::Stopped | How::Lost | How::OutOfMemory => {}
        }
        let actions = self.schedule.ended(&key, &from, end, self.now_ms);
        self.carry_out(actions)
    }

    /// The coordinator takes an executor for dead.
    fn gone(&mut self, machine: MachineId) -> Result<(), String> {
        if !self.members.remove(&machine) {
            return Ok(());
        }
        let lost: Vec<u32> = self.offers.iter().filter(|(_, offer)| offer.at == machine).map(|(key, _)| *key).collect();
        self.seconds.retain(|key, second| {
            let stays = second.at != machine;
            if !stays {
                self.watch.seconds.remove(key);
            }
            stays
        });
        for key in lost {
            self.watch.running.remove(&key);
            if let Some(offer) = self.offers.remove(&key) {
                *self.lost_ms.entry(key).or_default() += self.now_ms - offer.since_ms;
            }
            self.promote(key);
        }
        let actions = self.schedule.set_executor(machine, None, self.now_ms);
        self.carry_out(actions)
    }

    fn told(&mut self, from: MachineId, running: u32) -> Result<(), String> {
        if !self.members.contains(&from) {
            return Ok(());
        }
        let record = self.machines[from as usize].record();
        let record = shoal_grid::placement::Executor { running, ..record };
        let actions = self.schedule.set_executor(from, Some(record), self.now_ms);
        self.carry_out(actions)
    }

    fn look(&mut self) -> Result<(), String> {
        for machine in 0..self.machines.len() as MachineId {
            let known = &self.machines[machine as usize];
            if known.is_up && known.silent_until_ms <= self.now_ms {
                self.heard_ms[machine as usize] = self.now_ms;
                if self.members.insert(machine) {
                    let actions = self.schedule.set_executor(machine, Some(known.record()), self.now_ms);
                    self.carry_out(actions)?;
                }
            } else if self.heard_ms[machine as usize] + SILENT_MS <= self.now_ms {
                self.gone(machine)?;
            }
            if !self.members.contains(&machine) || !self.machines[machine as usize].is_up {
                self.down_ms += LOOK_MS * u64::from(self.machines[machine as usize].slots);
            }
        }
        if self.seconds_late {
            let actions = self.schedule.second_late(self.now_ms);
            self.carry_out(actions)?;
        }
        self.at(self.now_ms + LOOK_MS, Event::Look);
        Ok(())
    }

    fn gossip(&mut self) {
        for machine in 0..self.machines.len() as MachineId {
            if self.machines[machine as usize].is_up {
                let running = self.machines[machine as usize].record().running;
                self.from(machine, Event::Told { from: machine, running });
            }
        }
        self.at(self.now_ms + GOSSIP_MS, Event::Gossip);
    }
}
