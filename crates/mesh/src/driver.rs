//! The task that owns what a node knows of its mesh: it hears links, callers and the clock one after the other, and carries
//! out what [`Membership`] and [`Catalogue`] decide.
//!
//! It never waits: what blocks (the store, the disk, signatures in number) runs on threads of its own, and what has no
//! room in a queue is dropped where it is repeated, or refused.

mod acts;

use crate::command::{Command, Order, Outcome};
use crate::identity::Identity;
use crate::links::{Incoming, Links};
use crate::records::Records;
use crate::roster::Roster;
use crate::waiting::Waiting;
use anyhow::Result;
use shoal_grid::catalogue::members::Members;
use shoal_grid::catalogue::{self, Catalogue};
use shoal_grid::membership::limits::TICK_MS;
use shoal_grid::membership::notary::Keys;
use shoal_grid::membership::{Membership, Now};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::{Enclosed, HolderMessage, Holding, Wanted};
use shoal_wire::mesh::node_record::NodeRecord;
use shoal_wire::mesh::path_record::PathKey;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

/// How often what is known of the members goes to disk while they come and go. Who crashed before it knew anybody on disk finds
/// nobody when it comes back, if nobody finds it.
const SAVE_MS: u64 = 500;
/// The same for each member that is known: who knows many is found by one of them, and all are written each time.
const SAVE_MS_A_MEMBER: u64 = 10;
/// The same while they only tell of their load and addresses.
const SAVE_UPDATES_MS: u64 = 30_000;
/// How often the node looks at its own addresses and at callers that have gone away.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// Ticks for which a node that leaves goes on, so that it is heard.
const FAREWELL_TICKS: u32 = 5;
/// Threads that sign or verify path records. More work than they can take is dropped: who looks up a path without a
/// record asks its holders for it.
const RECORD_WORKERS: usize = 2;

/// What the driver is made of.
pub(crate) struct Parts {
    pub identity: Arc<Identity>,
    pub links: Links,
    pub records: Records,
    /// What this node says of itself, its incarnation among it.
    pub own: NodeRecord,
    pub contacts: Vec<NodeKey>,
    pub announced: Vec<SocketAddr>,
    pub copies: usize,
    pub held: Vec<Holding>,
    pub seed: u64,
    /// Where the driver tells itself what came of work on other threads.
    pub commands: mpsc::Sender<Command>,
    pub orders: mpsc::Sender<Order>,
    pub roster: watch::Sender<Arc<Roster>>,
}

pub(crate) struct Driver {
    identity: Arc<Identity>,
    links: Links,
    records: Records,
    membership: Membership<Keys>,
    catalogue: Catalogue,
    waiting: Waiting,
    record_workers: Arc<Semaphore>,
    commands: mpsc::WeakSender<Command>,
    orders: mpsc::Sender<Order>,
    roster: watch::Sender<Arc<Roster>>,
    started: Instant,
    /// Copies that were to be ordered of nodes to which no message could be sent.
    undelivered: Vec<(NodeKey, PathKey)>,
    /// Addresses that were configured; where there are none the links' own are told.
    announced: Vec<SocketAddr>,
    /// Whether the members that are on disk are those that are known, whether what is there of one of them is old, and when
    /// it was last written.
    is_saved: bool,
    is_outdated: bool,
    saved_ms: u64,
    /// Members that were there before told of their load and addresses, since the roster was made. In a large mesh each
    /// frame brings some, and the roster is made anew for all of them.
    has_updates: bool,
    /// In which of its lives each node spoke last.
    lives: HashMap<NodeKey, u64>,
}

/// Whether the driver goes on.
enum Next {
    Go,
    Leave(tokio::sync::oneshot::Sender<()>),
    Stop(tokio::sync::oneshot::Sender<()>),
}

impl Driver {
    pub fn new(parts: Parts) -> Result<Driver> {
        let Parts { identity, links, records, own, contacts, announced, copies, held, seed, commands, orders, roster } =
            parts;
        let started = Instant::now();
        let now = now(started);
        let life = own.version.incarnation;
        let me = own.node;
        let mut membership = Membership::new(identity.notary()?, own, contacts, seed, now)?;
        membership.restore(&identity.facts(), now);
        let mut catalogue = Catalogue::new(me, life, copies, held, now.ms);
        if life <= 1 {
            catalogue.never_lived();
        }
        let mut driver = Driver {
            identity,
            links,
            records,
            membership,
            catalogue,
            waiting: Waiting::default(),
            record_workers: Arc::new(Semaphore::new(RECORD_WORKERS)),
            commands: commands.downgrade(),
            orders,
            roster,
            started,
            undelivered: Vec::new(),
            announced,
            is_saved: false,
            is_outdated: false,
            saved_ms: 0,
            has_updates: false,
            lives: HashMap::new(),
        };
        driver.learn_all_addresses();
        driver.membership.view().revocations().keys().for_each(|node| driver.links.bar(*node));
        driver.members_changed();
        Ok(driver)
    }

    /// Runs until it is told to leave or to stop, or until nobody can tell it any more.
    pub async fn run(mut self, mut incoming: mpsc::Receiver<Incoming>, mut commands: mpsc::Receiver<Command>) {
        let mut ticks = interval(Duration::from_millis(TICK_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut housekeeping = interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            let wake = self.next_wake();
            let next = tokio::select! {
                biased;
                _ = ticks.tick() => self.tick(),
                () = sleep_until(wake.into()) => self.hurry(),
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return drop(self.save().await),
                },
                Some(incoming) = incoming.recv() => self.hear(incoming),
                _ = housekeeping.tick() => self.keep_house(),
            };
            if !matches!(next, Next::Go) {
                break next;
            }
        };
        let _ = self.save().await;
        match end {
            Next::Leave(reply) => {
                let actions = self.membership.leave(now(self.started));
                self.carry_out(actions);
                for _ in 0..FAREWELL_TICKS {
                    ticks.tick().await;
                    self.tick();
                }
                let _ = reply.send(());
            }
            Next::Stop(reply) => drop(reply.send(())),
            Next::Go => {}
        }
    }

    fn now(&self) -> Now {
        now(self.started)
    }

    fn next_wake(&self) -> Instant {
        let far = self.started + Duration::from_millis(self.now().ms + TICK_MS);
        self.catalogue.next_ms().map_or(far, |ms| (self.started + Duration::from_millis(ms)).min(far))
    }

    fn tick(&mut self) -> Next {
        let now = self.now();
        let actions = self.membership.tick(now);
        self.carry_out(actions);
        if self.has_updates {
            self.members_changed();
        }
        let unsaved_ms = now.ms.saturating_sub(self.saved_ms);
        let members = self.membership.view().members().len() as u64;
        if !self.is_saved && unsaved_ms >= SAVE_MS + members * SAVE_MS_A_MEMBER
            || self.is_outdated && unsaved_ms >= SAVE_UPDATES_MS
        {
            drop(self.save());
        }
        self.tick_catalogue()
    }

    fn hurry(&mut self) -> Next {
        let actions = self.catalogue.hurry(self.now().ms);
        self.carry_out_all(actions);
        Next::Go
    }

    fn tick_catalogue(&mut self) -> Next {
        let now_ms = self.now().ms;
        for (node, key) in std::mem::take(&mut self.undelivered) {
            let actions = self.catalogue.undelivered(node, &key, now_ms);
            self.carry_out_all(actions);
        }
        let actions = self.catalogue.tick(now_ms);
        self.carry_out_all(actions);
        Next::Go
    }

    fn hear(&mut self, incoming: Incoming) -> Next {
        match incoming {
            Incoming::Frame { from, frame } => {
                let actions = self.membership.receive(from, &frame, self.now());
                self.carry_out(actions);
            }
            Incoming::Message { from, message } => {
                self.catalogue.heard(&from);
                self.hear_message(from, *message);
            }
        }
        Next::Go
    }

    fn hear_message(&mut self, from: NodeKey, message: HolderMessage) {
        match message {
            HolderMessage::Records(records) => self.verify(from, records),
            HolderMessage::Keep { holding, enclosed } => self.keep_for(from, holding, enclosed),
            message => {
                if let HolderMessage::Begins { life, .. } = message
                    && self.lives.insert(from, life).is_some_and(|before| before < life)
                {
                    self.links.outlived(from);
                }
                let actions = self.catalogue.receive(from, message, self.now().ms);
                self.carry_out_all(actions);
            }
        }
    }

    fn command(&mut self, command: Command) -> Next {
        let now = self.now();
        let actions = match command {
            Command::LookUp { keys, replies } => {
                let (ids, actions) = self.catalogue.look_up_others(&keys, now.ms);
                ids.into_iter().zip(replies).for_each(|(id, reply)| self.waiting.for_lookup(id, reply));
                actions
            }
            Command::Doubt(key) => {
                self.catalogue.doubt(&key);
                Vec::new()
            }
            Command::Keep { holdings, enclosed, reply } => {
                self.waiting.for_copies(&holdings, reply);
                let actions: Vec<_> = holdings.into_iter().flat_map(|holding| self.keep(holding, now.ms)).collect();
                actions.into_iter().map(|action| self.enclose(action, &enclosed)).collect()
            }
            Command::Added(holdings) => {
                holdings.into_iter().flat_map(|holding| self.catalogue.added(holding, now.ms)).collect()
            }
            Command::Gone(keys) => keys.into_iter().flat_map(|key| self.catalogue.deleted(key, now.ms)).collect(),
            Command::Stayed(keys) => self.catalogue.stayed(&keys, now.ms),
            Command::MayDelete { keys, reply } => {
                let (id, actions) = self.catalogue.may_delete(keys, now.ms);
                self.waiting.for_deletion(id, reply);
                actions
            }
            Command::MayLeave { keys, reply } => {
                // Who has gone away deletes nothing.
                let _ = reply.send(self.catalogue.may_leave(&keys));
                Vec::new()
            }
            Command::Fetched(holding) => self.catalogue.fetched(holding, now.ms),
            Command::FetchFailed(key) => self.catalogue.fetch_failed(&key, now.ms),
            Command::Claim { key, reply } => {
                let (id, actions) = self.catalogue.claim(key, now.ms);
                self.waiting.for_claim(id, reply);
                actions
            }
            Command::Unclaim(key) => self.catalogue.unclaim(key, now.ms),
            Command::Learn { key, content, sealed } => {
                self.catalogue.learn_record(&key, &content, &sealed);
                Vec::new()
            }
            Command::Meet(contacts) => return self.meet(contacts),
            Command::Update(change) => {
                self.membership.update(change);
                Vec::new()
            }
            Command::Revoke { sealed, reply } => {
                let revoked = self.membership.revoke(&sealed, now);
                let _ = reply.send(revoked.map(|actions| self.carry_out(actions)));
                Vec::new()
            }
            Command::Holdings(reply) => {
                let _ = reply.send(self.holdings());
                Vec::new()
            }
            Command::Leave(reply) => return Next::Leave(reply),
            Command::Stop(reply) => return Next::Stop(reply),
        };
        self.carry_out_all(actions);
        Next::Go
    }

    /// Another node wants a copy of what it sends kept here.
    fn keep_for(&mut self, from: NodeKey, holding: Holding, enclosed: Enclosed) {
        let message = HolderMessage::Copy(vec![Wanted { holding, from: vec![from] }]);
        let actions = self.catalogue.receive(from, message, self.now().ms);
        let mut enclosed = Some(enclosed);
        for action in actions {
            match action {
                catalogue::Action::Fetch { holding, from } => {
                    self.order(Order { holding, from, enclosed: enclosed.take() });
                }
                action => self.carry_out_all(vec![action]),
            }
        }
    }

    fn keep(&mut self, holding: Holding, now_ms: u64) -> Vec<shoal_grid::catalogue::Action> {
        let (is_taken, actions) = self.catalogue.stored(holding, now_ms);
        if !is_taken {
            self.waiting.refuse_copies(&holding.key);
        }
        actions
    }

    fn meet(&mut self, contacts: Vec<(NodeKey, Vec<SocketAddr>)>) -> Next {
        for (node, addresses) in &contacts {
            self.links.suggest_addresses(*node, addresses);
        }
        self.membership.meet(contacts.into_iter().map(|(node, _)| node));
        Next::Go
    }

    fn holdings(&self) -> Vec<Holding> {
        self.catalogue.holdings().iter().map(|(key, content)| Holding { key: *key, content: *content }).collect()
    }

    fn keep_house(&mut self) -> Next {
        self.waiting.sweep();
        if self.announced.is_empty() {
            let addresses = self.links.addresses();
            self.membership.update(|own| own.addresses = addresses);
        }
        Next::Go
    }

    fn members_changed(&mut self) {
        self.has_updates = false;
        self.roster.send_replace(Arc::new(Roster::of(self.membership.view())));
        let members = Members::of(self.membership.view());
        let actions = self.catalogue.set_members(members, self.now().ms);
        self.carry_out_all(actions);
    }

    fn learn_all_addresses(&self) {
        for (node, member) in self.membership.view().members() {
            self.links.learn_addresses(*node, &member.record.addresses);
        }
    }

    /// Keeps what is known of the members for the next start.
    fn save(&mut self) -> tokio::task::JoinHandle<()> {
        (self.is_saved, self.is_outdated, self.saved_ms) = (true, false, self.now().ms);
        let (identity, facts) = (self.identity.clone(), self.membership.snapshot());
        tokio::task::spawn_blocking(move || {
            // Others tell it again.
            if let Err(error) = identity.keep_facts(facts) {
                tracing::warn!(%error, "cannot keep what is known of the mesh");
            }
        })
    }
}

fn now(started: Instant) -> Now {
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let wall_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Now { ms, wall_s }
}

/// For callers: what a lookup came to.
fn outcome(action: &shoal_grid::catalogue::Action) -> Option<(u64, Outcome)> {
    use shoal_grid::catalogue::Action;
    Some(match action {
        Action::Found { id, answer, .. } => (*id, Outcome::Found(answer.clone())),
        Action::Missing { id, .. } => (*id, Outcome::Missing),
        Action::Unreachable { id, silent, .. } => (*id, Outcome::Unreachable(silent.clone())),
        _ => return None,
    })
}
