//! What membership does with what comes in.

use super::budget::Urgency;
use super::conduct::Offence;
use super::member::{Member, Standing};
use super::notary::Notary;
use super::rumors::Topic;
use super::view::Learned;
use super::{Action, Membership, Now, sync};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::format::{FormatError, decode};
use shoal_wire::mesh::frame::{Digest, Fact, Frame};

/// Most bytes of a member in [`Frame::Wants`].
const WANT_LEN: usize = 10;

/// The digests of an answer.
struct Told<'a> {
    buckets: usize,
    differing: &'a [u16],
    digests: &'a [Digest],
    more: bool,
}

impl<N: Notary> Membership<N> {
    /// A frame of `from`, whose key and certificate the transport has verified.
    pub fn receive(&mut self, from: NodeKey, frame: &[u8], now: Now) -> Vec<Action> {
        self.take_in(from, frame, now);
        self.finish()
    }

    fn take_in(&mut self, from: NodeKey, bytes: &[u8], now: Now) {
        if from == self.me {
            return;
        }
        if self.view.is_revoked(&from) {
            return self.cut(from, Offence::Revoked);
        }
        if self.view.get(&from).is_some_and(|member| !member.record.term.holds(now.wall_s)) && !carries_facts(bytes) {
            // It may bring a new certificate, but nothing else.
            return self.cut(from, Offence::Expired);
        }
        if self.conducts.received(from, bytes.len(), now.ms) {
            return self.cut(from, Offence::Flood);
        }
        let Ok(frame) = decode::<Frame>(bytes) else { return self.cut(from, Offence::Garbage) };
        self.monitors.heard(&from, now.ms);
        let is_of_partner = matches!(frame, Frame::Facts { pushed: true, .. } | Frame::SyncRequest { .. });
        if is_of_partner && self.view.get(&from).is_some_and(Member::is_live) {
            self.partners.called_by(from, now.ms);
        }
        match frame {
            Frame::Probe { nonce, suspected } => {
                if let Some(incarnation) = suspected.filter(|incarnation| *incarnation == self.own.version.incarnation)
                {
                    self.refute(incarnation, now);
                }
                let version = self.own.version;
                self.send(from, &Frame::Ack { nonce, version });
            }
            // That it came is what counts.
            Frame::Ack { .. } => {}
            Frame::Facts { pushed, facts } => self.take_facts(from, &facts, pushed, now),
            Frame::SyncRequest { salt, hashes, revocations } => {
                let room = self.budget.room(now.ms, Urgency::Spare);
                let request = (salt, hashes.as_slice(), revocations);
                if let Some(answer) = sync::answer(&self.view, request, room, now, &mut self.random) {
                    self.send(from, &answer);
                }
                self.greet(from, now);
            }
            Frame::SyncDigests { buckets, differing, digests, facts, more } => {
                self.take_facts(from, &facts, false, now);
                let told = Told { buckets: buckets.into(), differing: &differing, digests: &digests, more };
                self.take_digests(from, told, now);
            }
            Frame::Wants(wants) => {
                let facts = sync::give(&self.view, &wants, self.budget.room(now.ms, Urgency::Spare));
                self.send_facts(from, facts, now);
            }
        }
    }

    /// One who is dead here and speaks does not know it yet.
    fn greet(&mut self, from: NodeKey, now: Now) {
        let Some(member) = self.view.get(&from) else { return };
        if member.standing == Standing::Dead {
            let facts = member.facts().collect();
            self.send_facts(from, facts, now);
        }
    }

    fn take_digests(&mut self, from: NodeKey, told: Told<'_>, now: Now) {
        let room = self.budget.room(now.ms, Urgency::Spare);
        let (mut wants, facts) = sync::compare(&self.view, told.buckets, told.differing, told.digests, room, now);
        self.send_facts(from, facts, now);
        wants.truncate(self.budget.room(now.ms, Urgency::Spare) / WANT_LEN);
        if !wants.is_empty() {
            self.send(from, &Frame::Wants(wants));
        }
        if told.more {
            // The next one is asked as soon as this one has answered, or if it does not.
            (self.is_behind, self.sync_ms) = (true, now.ms);
            self.synchronise(now);
            self.is_behind = true;
        }
    }

    /// Answers as far as the budget goes: who asks again and again costs no more.
    fn send_facts(&mut self, to: NodeKey, facts: Vec<Fact>, now: Now) {
        let len: usize = facts.iter().map(Fact::frame_len).sum();
        if !facts.is_empty() && len <= self.budget.room(now.ms, Urgency::Soon) {
            self.send(to, &Frame::Facts { pushed: false, facts });
        }
    }

    fn take_facts(&mut self, from: NodeKey, facts: &[Fact], pushed: bool, now: Now) {
        for fact in facts {
            match self.learn(fact, now) {
                Err(FormatError::Version { .. }) => self.conducts.stale(from),
                Err(error) => {
                    let is_forged = matches!(error, FormatError::Forged(_));
                    return self.cut(from, if is_forged { Offence::Forged } else { Offence::Garbage });
                }
                Ok((Learned::OtherMesh, _)) => return self.cut(from, Offence::OtherMesh),
                Ok((Learned::Stale, topic)) => {
                    self.conducts.stale(from);
                    self.correct(from, topic, now);
                }
                // What anti-entropy brings is new here only; a newcomer would tell everybody everything.
                Ok((Learned::Urgent, topic)) if pushed || !matches!(topic, Topic::Record(_)) => {
                    self.rumors.push(topic, fact.clone(), true);
                }
                Ok((Learned::Urgent, topic)) => self.push_return(topic, fact),
                Ok((Learned::News, topic)) if pushed => self.rumors.push(topic, fact.clone(), false),
                Ok((Learned::News | Learned::Known | Learned::Refused, _)) => {}
            }
        }
    }

    /// A record that anti-entropy brought is pushed if it contradicts a death or a suspicion.
    fn push_return(&mut self, topic: Topic, fact: &Fact) {
        let Topic::Record(node) = topic else { return };
        let is_first = self.view.get(&node).is_none_or(|member| member.version.incarnation <= 1);
        if !is_first {
            self.rumors.push(topic, fact.clone(), false);
        }
    }

    /// Who speaks of itself in an old version lost its memory.
    fn correct(&mut self, from: NodeKey, topic: Topic, now: Now) {
        if topic != Topic::Record(from) {
            return;
        }
        if let Some(member) = self.view.get(&from) {
            let facts = member.facts().collect();
            self.send_facts(from, facts, now);
        }
    }

    /// Verifies a fact and puts it into the view.
    pub(super) fn learn(&mut self, fact: &Fact, now: Now) -> Result<(Learned, Topic), FormatError> {
        match fact {
            Fact::Record(bytes) => {
                let record = self.notary.open_record(bytes)?;
                let topic = Topic::Record(record.node);
                if record.node == self.me && record.mesh == self.view.mesh() {
                    // Said by this node in a life that it does not remember.
                    if record.version > self.own.version {
                        self.out.push(Action::LivedBefore);
                        self.refute(record.version.incarnation, now);
                    }
                    return Ok((Learned::Known, topic));
                }
                let (node, incarnation) = (record.node, record.version.incarnation);
                let was_mine = self.is_suspected_by_me(&node);
                let learned = self.view.learn_record(record, now);
                if was_mine.is_some_and(|suspected| incarnation > suspected) && learned == Learned::Urgent {
                    self.monitors.contradicted(&node, now.ms);
                }
                Ok((learned, topic))
            }
            Fact::Suspicion(bytes) => {
                let suspicion = self.notary.open_suspicion(bytes)?;
                let topic = Topic::Suspicion { subject: suspicion.subject, author: suspicion.author };
                if suspicion.subject == self.me && suspicion.mesh == self.view.mesh() {
                    self.refute(suspicion.incarnation, now);
                    return Ok((Learned::Known, topic));
                }
                Ok((self.view.learn_suspicion(suspicion, now), topic))
            }
            Fact::Revocation(bytes) => {
                let revocation = self.notary.open_revocation(bytes)?;
                let topic = Topic::Revocation(revocation.node);
                Ok((self.view.learn_revocation(revocation, now), topic))
            }
        }
    }

    /// The incarnation of `node` that this node suspects.
    fn is_suspected_by_me(&self, node: &NodeKey) -> Option<u64> {
        let member = self.view.get(node)?;
        let is_mine = member.suspicions.iter().any(|suspicion| suspicion.author == self.me);
        is_mine.then_some(member.version.incarnation)
    }

    fn cut(&mut self, peer: NodeKey, offence: Offence) {
        self.conducts.offended(peer);
        self.out.push(Action::Cut { peer, offence });
    }
}

/// Whether an encoded frame is [`Frame::Facts`].
fn carries_facts(bytes: &[u8]) -> bool {
    matches!(decode::<Frame>(bytes), Ok(Frame::Facts { .. }))
}
