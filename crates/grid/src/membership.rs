//! Who is in the mesh, and who of them lives.
//!
//! Every node keeps the newest signed record of every other. Facts (records, suspicions, revocations) are pushed to some
//! of a few random members ([`partners`]) while they are new, and anti-entropy finds what pushing missed. Whether a member lives follows
//! from facts alone:
//! - its monitors probe it ([`monitors`]); one that gets no answer signs a suspicion against its incarnation;
//! - suspicions by [`limits::QUORUM`] authors that stand for [`limits::GRACE_MS`] are a death;
//! - a suspected or dead node that hears of it publishes a greater incarnation, which undoes both.
//!
//! Invariants, beside those of [`view`]:
//! - no clock is compared with another node's, but for the terms of certificates, which allow five minutes;
//! - nothing counts that was not verified, whoever passed it on, and who passes on what is forged is cut off;
//! - bytes sent stay within [`budget`], whatever the size of the mesh and however much happens in it;
//! - every list has a bound, and what is dropped for it anti-entropy carries later.
//!
//! The transport that this sits on must
//! - deliver frames between nodes whose keys it has verified, and tell the sender's key with each: a frame is evidence
//!   that its sender lives. Loss, delay, reordering and duplication by the network are expected, replay by others is not
//!   (QUIC sees to it);
//! - let nobody in without a certificate of this mesh that holds, and close connections on [`Action::Cut`];
//! - find addresses in [`Membership::view`] or in the contacts it was started with, and drop what cannot be sent at once
//!   rather than queue it: everything here is repeated or repaired;
//! - call [`Membership::tick`] each [`limits::TICK_MS`] with a clock that only goes forward, and the wall clock beside it;
//! - keep [`Action::Incarnation`] and, where it can, [`Membership::snapshot`] on disk. A node that lost both comes back
//!   all the same: others tell it what it was.

pub mod budget;
pub mod conduct;
pub mod limits;
pub mod member;
pub mod monitors;
pub mod notary;
pub mod partners;
mod receive;
pub mod rumors;
mod sync;
pub mod view;

use crate::random::Random;
use budget::{Budget, Urgency};
use conduct::{Conduct, Conducts, Offence};
use limits::*;
use member::{Member, Standing};
use monitors::Monitors;
use notary::Notary;
use partners::Partners;
use rumors::{Rumors, Topic};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::demand::Demand;
use shoal_wire::mesh::format::{FormatError, encode};
use shoal_wire::mesh::frame::{Fact, Frame};
use shoal_wire::mesh::node_record::{Extension, NodeRecord, Presence};
use shoal_wire::mesh::suspicion::Suspicion;
use view::{Learned, View};

/// Two clocks of one node: one that only goes forward, and what it takes for the time, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub ms: u64,
    pub wall_s: u64,
}

/// What happened to a member, for who places builds, owns records and shows peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Joined(NodeKey),
    Updated(NodeKey),
    Suspected(NodeKey),
    /// It contradicted.
    Cleared(NodeKey),
    Died(NodeKey),
    Returned(NodeKey),
    Left(NodeKey),
    Expired(NodeKey),
    Revoked(NodeKey),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Send {
        to: NodeKey,
        frame: Vec<u8>,
    },
    Changed(Change),
    /// Close the connections of this peer, and let it in again when it proves that it changed.
    Cut {
        peer: NodeKey,
        offence: Offence,
    },
    /// To be kept on disk: the next start begins with one more.
    Incarnation(u64),
    /// Others know this node of a life that it does not remember.
    LivedBefore,
}

/// Whether this node's record differs from what it published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unpublished {
    Nothing,
    Load,
    Matters,
}

#[derive(Debug)]
pub struct Membership<N> {
    notary: N,
    me: NodeKey,
    own: NodeRecord,
    unpublished: Unpublished,
    published_ms: u64,
    /// How far the next publication of its load lies from its turn, in thousandths of the interval, so that nodes that
    /// started together do not publish together.
    refresh_phase: u64,
    refuted_ms: Option<u64>,
    view: View,
    contacts: Vec<NodeKey>,
    partners: Partners,
    rumors: Rumors,
    monitors: Monitors,
    /// The live members or the suspected ones are others than when monitors were assigned.
    is_reassigned: bool,
    conducts: Conducts,
    budget: Budget,
    random: Random,
    nonce: u64,
    ticked_ms: u64,
    sync_ms: u64,
    /// The last answer was cut short.
    is_behind: bool,
    swept_ms: u64,
    out: Vec<Action>,
}

impl<N: Notary> Membership<N> {
    /// `own` says what this node is; its incarnation must be above all that it ever published, as far as it remembers.
    /// `contacts` are nodes whose addresses the transport knows. Fails where `own` is outside its limits.
    pub fn new(notary: N, own: NodeRecord, contacts: Vec<NodeKey>, seed: u64, now: Now) -> Result<Self, FormatError> {
        let mut random = Random::new(seed);
        let me = notary.node();
        let mut this = Membership {
            me,
            unpublished: Unpublished::Nothing,
            published_ms: now.ms,
            refresh_phase: 0,
            refuted_ms: None,
            view: View::new(own.mesh),
            contacts: Vec::new(),
            partners: Partners::default(),
            rumors: Rumors::default(),
            monitors: Monitors::default(),
            is_reassigned: true,
            conducts: Conducts::default(),
            budget: Budget::new(now.ms),
            nonce: random.word(),
            ticked_ms: now.ms,
            sync_ms: now.ms + random.below(SYNC_MS),
            is_behind: false,
            swept_ms: now.ms,
            out: Vec::new(),
            random,
            own,
            notary,
        };
        this.meet(contacts);
        this.own.version.sequence = 0;
        this.publish(now)?;
        this.refresh_phase = this.random.below(1_000);
        if this.view.get(&me).is_none() {
            return Err(FormatError::Limit { what: "certificate", field: "the time in which it holds" });
        }
        Ok(this)
    }

    pub fn view(&self) -> &View {
        &self.view
    }

    pub fn me(&self) -> NodeKey {
        self.me
    }

    pub fn conduct(&self, peer: &NodeKey) -> Conduct {
        self.conducts.of(peer)
    }

    /// Facts to start from the next time.
    pub fn snapshot(&self) -> Vec<Fact> {
        let revocations = self.view.revocations().values().map(|sealed| Fact::Revocation(sealed.bytes().clone()));
        revocations.chain(self.view.members().values().flat_map(Member::facts)).collect()
    }

    /// Takes in facts from disk, or from an administrator, which are verified as any others. Those that cannot be used
    /// are left out.
    pub fn restore(&mut self, facts: &[Fact], now: Now) -> Vec<Action> {
        for fact in facts {
            // The disk may be older than the mesh.
            let _ = self.learn(fact, now);
        }
        self.finish()
    }

    /// More contacts, as a list of names gives them when it is asked again. The latest [`CONTACTS_MAX`] are kept.
    pub fn meet(&mut self, contacts: impl IntoIterator<Item = NodeKey>) {
        for contact in contacts {
            self.contacts.retain(|known| *known != contact);
            if contact != self.me {
                self.contacts.push(contact);
            }
        }
        let surplus = self.contacts.len().saturating_sub(CONTACTS_MAX);
        self.contacts.drain(..surplus);
    }

    /// A revocation made here or told by an administrator, sealed by the mesh key; it is pushed at once.
    pub fn revoke(&mut self, sealed: &[u8], now: Now) -> Result<Vec<Action>, FormatError> {
        let fact = Fact::Revocation(shoal_wire::mesh::sealed::SealedBytes(sealed.into()));
        let (learned, topic) = self.learn(&fact, now)?;
        if learned == Learned::Urgent {
            self.rumors.push(topic, fact, true);
        }
        Ok(self.finish())
    }

    /// Changes what this node says of itself; version and identity stay. What only concerns its load is published when
    /// its turn comes, everything else as soon as it may.
    pub fn update(&mut self, change: impl FnOnce(&mut NodeRecord)) {
        let mut new = self.own.clone();
        change(&mut new);
        (new.mesh, new.node, new.version) = (self.own.mesh, self.own.node, self.own.version);
        let kind = match (new == self.own, self.is_only_load(&new)) {
            (true, _) => Unpublished::Nothing,
            (_, true) => Unpublished::Load,
            _ => Unpublished::Matters,
        };
        self.unpublished = self.unpublished.max(kind);
        self.own = new;
    }

    /// Whether nothing but load and demand differs from what this node says. That there is demand at all where there was
    /// none is more than that: somebody may start machines for it.
    fn is_only_load(&self, new: &NodeRecord) -> bool {
        let mut new = NodeRecord { load: self.own.load, ..new.clone() };
        match (self.own.extensions.get(&Demand::NUMBER), new.extensions.get_mut(&Demand::NUMBER)) {
            (Some(before), Some(after)) => after.clone_from(before),
            (Some(before), None) => drop(new.extensions.insert(Demand::NUMBER, before.clone())),
            (None, _) => {}
        }
        new == self.own
    }

    /// Says goodbye. The node should go on for some ticks, so that it is heard.
    pub fn leave(&mut self, now: Now) -> Vec<Action> {
        self.own.presence = Presence::Left;
        // An error leaves the old record, and the node is found dead instead.
        let _ = self.publish(now);
        self.push(now);
        self.finish()
    }

    pub fn tick(&mut self, now: Now) -> Vec<Action> {
        let gap = now.ms.saturating_sub(self.ticked_ms);
        if gap >= PAUSE_MS {
            self.monitors.forget_silence();
            self.view.forgive(gap);
        }
        self.ticked_ms = now.ms;
        self.view.settle(now.ms);
        if now.ms.saturating_sub(self.swept_ms) >= SWEEP_MS {
            self.swept_ms = now.ms;
            self.view.sweep(now);
        }
        self.publish_in_turn(now);
        self.collect_changes();
        self.probe(now);
        self.suspect_the_silent(now);
        self.partners.choose(&self.me, self.view.live(), &mut self.random, now.ms);
        self.push(now);
        self.synchronise(now);
        self.finish()
    }

    fn finish(&mut self) -> Vec<Action> {
        self.collect_changes();
        std::mem::take(&mut self.out)
    }

    fn collect_changes(&mut self) {
        for change in self.view.take_changes() {
            let is_of_liveness = !matches!(change, Change::Updated(_));
            self.is_reassigned |= is_of_liveness;
            match change {
                // The void must not go on living as rumors.
                Change::Cleared(node) | Change::Returned(node) => {
                    let view = &self.view;
                    let holds = |author: &NodeKey| {
                        let member = view.get(&node);
                        member.is_some_and(|member| member.suspicions.iter().any(|held| held.author == *author))
                    };
                    self.rumors.retract(
                        |topic| matches!(topic, Topic::Suspicion { subject, author } if *subject == node && !holds(author)),
                    );
                }
                Change::Revoked(node) => self.rumors.retract(|topic| match topic {
                    Topic::Record(about) => *about == node,
                    Topic::Suspicion { subject, author } => *subject == node || *author == node,
                    Topic::Revocation(_) => false,
                }),
                Change::Suspected(node) => self.monitors.hurry(&node, self.ticked_ms),
                _ => {}
            }
            self.out.push(Action::Changed(change));
        }
    }

    /// Publishes `own` with the next sequence.
    fn publish(&mut self, now: Now) -> Result<(), FormatError> {
        self.own.version.sequence += 1;
        let record = self.notary.seal_record(self.own.clone())?;
        let fact = Fact::Record(record.bytes().clone());
        let learned = self.view.learn_record(record, now);
        let is_urgent = self.unpublished != Unpublished::Load || learned == Learned::Urgent;
        self.rumors.push(Topic::Record(self.me), fact, is_urgent);
        (self.unpublished, self.published_ms) = (Unpublished::Nothing, now.ms);
        self.refresh_phase = 500 + self.random.below(1_000);
        Ok(())
    }

    fn publish_in_turn(&mut self, now: Now) {
        let wait_ms = match self.unpublished {
            Unpublished::Nothing => return,
            Unpublished::Load => {
                let interval_ms = REFRESH_MS_MIN.max(self.view.live().len() as u64 * REFRESH_MS_A_MEMBER);
                interval_ms * self.refresh_phase / 1_000
            }
            Unpublished::Matters => PUBLISH_MS_MIN,
        };
        if now.ms.saturating_sub(self.published_ms) >= wait_ms {
            // What is outside its limits stays unpublished; `update` is this program's own.
            let _ = self.publish(now);
        }
    }

    /// Contradicts whatever is said about `incarnation` of this node or an earlier one.
    fn refute(&mut self, incarnation: u64, now: Now) {
        let is_past = incarnation < self.own.version.incarnation;
        let is_early = self.refuted_ms.is_some_and(|last| now.ms.saturating_sub(last) < REFUTE_MS);
        if is_past || is_early || self.own.presence == Presence::Left {
            return;
        }
        self.refuted_ms = Some(now.ms);
        self.own.version.incarnation = incarnation.saturating_add(1);
        self.own.version.sequence = 0;
        self.unpublished = Unpublished::Matters;
        if self.publish(now).is_ok() {
            self.out.push(Action::Incarnation(self.own.version.incarnation));
        }
    }

    fn probe(&mut self, now: Now) {
        if std::mem::take(&mut self.is_reassigned) {
            let watched = monitors::watched(&self.me, self.view.live(), self.view.suspected());
            let random = &mut self.random;
            self.monitors.assign(watched, now.ms, || random.below(PROBE_MS));
        }
        for node in self.monitors.due(now.ms) {
            self.nonce = self.nonce.wrapping_add(1);
            let member = self.view.get(&node).filter(|member| member.standing == Standing::Suspected);
            let suspected = member.map(|member| member.version.incarnation);
            self.send(node, &Frame::Probe { nonce: self.nonce, suspected });
        }
    }

    fn suspect_the_silent(&mut self, now: Now) {
        for subject in self.monitors.silent(now.ms) {
            let Some(member) = self.view.get(&subject) else { continue };
            if member.suspicions.iter().any(|suspicion| suspicion.author == self.me) {
                continue;
            }
            let (mesh, incarnation) = (self.view.mesh(), member.version.incarnation);
            let suspicion = Suspicion { mesh, author: self.me, subject, incarnation };
            let Ok(sealed) = self.notary.seal_suspicion(suspicion) else { continue };
            let fact = Fact::Suspicion(sealed.bytes().clone());
            if self.view.learn_suspicion(sealed, now) == Learned::Urgent {
                self.rumors.push(Topic::Suspicion { subject, author: self.me }, fact, true);
            }
        }
        self.collect_changes();
    }

    fn push(&mut self, now: Now) {
        if self.rumors.is_empty() {
            return;
        }
        let mut targets = Vec::new();
        for _ in 0..2 * FANOUT {
            let target = self.partners.in_turn().or_else(|| self.random.pick(&self.contacts).copied());
            if let Some(target) = target.filter(|target| !targets.contains(target) && targets.len() < FANOUT) {
                targets.push(target);
            }
        }
        let urgency = if self.rumors.has_urgent() { Urgency::Soon } else { Urgency::Spare };
        let room = self.budget.room(now.ms, urgency).saturating_sub(PACKET_OVERHEAD) / FANOUT;
        if targets.is_empty() || room < PUSH_LEN_MAX {
            return;
        }
        let members = self.view.live().len();
        let facts = self.rumors.take(room.min(FRAME_ROOM), targets.len(), members);
        if facts.is_empty() {
            return;
        }
        let frame = Frame::Facts { pushed: true, facts };
        for target in targets {
            self.send(target, &frame);
        }
    }

    fn synchronise(&mut self, now: Now) {
        if now.ms < self.sync_ms {
            return;
        }
        let is_behind = std::mem::take(&mut self.is_behind);
        self.sync_ms = match is_behind {
            true => now.ms + SYNC_CATCH_UP_MS,
            false => now.ms + SYNC_MS / 2 + self.random.below(SYNC_MS),
        };
        let partner = match self.random.below(SYNC_ASTRAY) == 0 || self.view.live().len() < 2 {
            true => self.random_astray().or_else(|| self.partners.any(&mut self.random)),
            // What a newcomer has to fetch is more than a few may send.
            false if is_behind => self.random_live(),
            false => self.partners.any(&mut self.random),
        };
        let Some(partner) = partner else { return };
        let request = sync::request(&self.view, now, &mut self.random);
        let frame = encode(&request);
        if self.budget.room(now.ms, Urgency::Spare) >= frame.len() {
            self.send_bytes(partner, frame);
        }
    }

    fn random_live(&mut self) -> Option<NodeKey> {
        let me = self.me;
        let live = self.view.live();
        // This node is one of them.
        (0..4).find_map(|_| self.random.pick(live).copied().filter(|node| *node != me))
    }

    /// A contact, or a member that is dead here: it may be that it lives on the other side of a partition.
    fn random_astray(&mut self) -> Option<NodeKey> {
        let dead = self.view.members().iter().filter(|(_, member)| member.standing == Standing::Dead);
        let view = &self.view;
        let lost = |contact: &&NodeKey| !view.is_revoked(contact) && view.get(contact).is_none_or(|m| !m.is_live());
        let astray: Vec<NodeKey> =
            dead.map(|(node, _)| *node).chain(self.contacts.iter().filter(lost).copied()).collect();
        self.random.pick(&astray).copied()
    }

    fn send(&mut self, to: NodeKey, frame: &Frame) {
        self.send_bytes(to, encode(frame));
    }

    fn send_bytes(&mut self, to: NodeKey, frame: Vec<u8>) {
        self.budget.spend(frame.len());
        self.out.push(Action::Send { to, frame });
    }
}

/// Bytes of facts in a frame, so that its head fits as well.
const FRAME_ROOM: usize = shoal_wire::mesh::frame::FRAME_LEN_MAX - 16;
