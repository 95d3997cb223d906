//! Who brings a path in from outside of the mesh, so that of all that want it one asks the caches behind them.
//!
//! The first live owner of a path gives its claim to the first that asks. It ends when the path is held, when it is given
//! back, when the claimant dies, or when it was not renewed for [`CLAIM_MS`]. A claim only saves work: who gets no answer
//! in [`ANSWER_MS`] goes on without one.

use super::{Action, Catalogue, WAITING_MAX};
use crate::ring::{Key, NodeId};
use shoal_wire::mesh::announcement::HolderMessage;
use std::collections::{BTreeMap, BTreeSet};

/// A claim that is not renewed ends: its claimant hangs. Claimants renew it each third of that.
pub const CLAIM_MS: u64 = 30_000;
/// An owner that does not answer holds nobody up, and is mute from then on: without that every claim at an owner that has
/// just died would wait.
pub const ANSWER_MS: u64 = 1_000;

#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// Given by this node, with the time they end.
    given: BTreeMap<Key, (NodeId, u64)>,
    /// Asked for by this node, and since when.
    asked: BTreeMap<u64, (Key, NodeId, u64)>,
}

impl Catalogue {
    /// This node would bring a path in. [`Action::Claimed`] with the id follows, and says who does.
    pub fn claim(&mut self, key: Key, now_ms: u64) -> (u64, Vec<Action>) {
        self.now_ms = now_ms;
        self.ids += 1;
        let id = self.ids;
        match self.leader(&key) {
            Some(owner) if owner != self.me && self.claims.asked.len() < WAITING_MAX => {
                self.claims.asked.insert(id, (key, owner, now_ms));
                self.send(owner, HolderMessage::Claim { id, key });
            }
            owner => {
                let by = if owner == Some(self.me) { self.give_claim(self.me, key) } else { self.me };
                self.out.push(Action::Claimed { id, by });
            }
        }
        (id, self.finish())
    }

    /// This node does not bring it in after all.
    pub fn unclaim(&mut self, key: Key, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        // It may have been given before the owner was mute, or since.
        for owner in self.leader(&key).into_iter().chain(self.first_live(&key)).collect::<BTreeSet<_>>() {
            match owner == self.me {
                true => self.end_claim(&owner, &key),
                false => self.send(owner, HolderMessage::Unclaim(key)),
            }
        }
        self.finish()
    }

    /// Who is asked for a claim: the first live owner that is neither suspected nor mute, if there is one. By the newest
    /// ring: while it settles, two nodes that see the same members ask the same one.
    fn leader(&self, key: &Key) -> Option<NodeId> {
        let mut live = self.newest_ring().successors(key).filter(|node| self.members.live.contains(node));
        live.find(|node| !self.is_doubtful(node)).or_else(|| self.first_live(key))
    }

    fn first_live(&self, key: &Key) -> Option<NodeId> {
        self.newest_ring().successors(key).find(|node| self.members.live.contains(node))
    }

    /// As the owner: who brings the path in, or has it already.
    pub(super) fn give_claim(&mut self, asker: NodeId, key: Key) -> NodeId {
        let (now_ms, live, suspected) = (self.now_ms, &self.members.live, &self.members.suspected);
        if let Some(holder) = self.owned.answer(&key, |node| live.contains(node)).holders.first() {
            return *holder;
        }
        match self.claims.given.get(&key) {
            Some((claimant, until))
                if *claimant != asker
                    && *until > now_ms
                    && live.contains(claimant)
                    && !suspected.contains(claimant) =>
            {
                *claimant
            }
            known => {
                if known.is_some() || self.claims.given.len() < WAITING_MAX {
                    self.claims.given.insert(key, (asker, now_ms + CLAIM_MS));
                }
                asker
            }
        }
    }

    pub(super) fn end_claim(&mut self, claimant: &NodeId, key: &Key) {
        if self.claims.given.get(key).is_some_and(|(by, _)| by == claimant) {
            self.claims.given.remove(key);
        }
    }

    pub(super) fn claim_answered(&mut self, owner: &NodeId, id: u64, by: NodeId) {
        if self.claims.asked.get(&id).is_some_and(|(_, asked, _)| asked == owner) {
            self.claims.asked.remove(&id);
            self.out.push(Action::Claimed { id, by });
        }
    }

    /// Ends claims that were not renewed, and the waiting of those that got no answer.
    pub(super) fn end_claims(&mut self) {
        let now_ms = self.now_ms;
        self.claims.given.retain(|_, (_, until)| *until > now_ms);
        let is_late = |since: u64| now_ms.saturating_sub(since) >= ANSWER_MS;
        let late = self.claims.asked.extract_if(.., |_, (_, _, since)| is_late(*since));
        for (id, (_, owner, _)) in late {
            self.mutes.mark(owner, now_ms);
            self.out.push(Action::Claimed { id, by: self.me });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::members::Members;
    use super::super::mute::MUTE_MS;
    use super::*;
    use std::num::NonZeroU8;

    const KEY: Key = [7; 32];

    /// A catalogue of each of three nodes, the first of which leads for [`KEY`].
    fn three() -> [Catalogue; 3] {
        let nodes: [NodeId; 3] = [[1; 32], [2; 32], [3; 32]];
        let members = Members {
            storers: nodes.map(|node| (node, NonZeroU8::MIN)).into(),
            live: nodes.into(),
            ..Members::default()
        };
        let mut all = nodes.map(|node| Catalogue::new(node, 1, 2, [], 0));
        for catalogue in &mut all {
            catalogue.set_members(members.clone(), 0);
        }
        let leader = all[0].live_owners(&KEY)[0];
        all.sort_by_key(|catalogue| catalogue.me != leader);
        all
    }

    /// What comes of a question of `asker`, which the leader hears at `now_ms`.
    fn ask(leader: &mut Catalogue, asker: &mut Catalogue, now_ms: u64) -> NodeId {
        let (_, actions) = asker.claim(KEY, now_ms);
        let [Action::Send { message, .. }] = &actions[..] else { panic!("{actions:?}") };
        let answers = leader.receive(asker.me, message.clone(), now_ms);
        let [Action::Send { message, .. }] = &answers[..] else { panic!("{answers:?}") };
        match &asker.receive(leader.me, message.clone(), now_ms)[..] {
            [Action::Claimed { by, .. }] => *by,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn of_all_that_want_a_path_the_first_brings_it() {
        let [mut leader, mut b, mut c] = three();
        assert_eq!(ask(&mut leader, &mut b, 0), b.me);
        assert_eq!(ask(&mut leader, &mut c, 1), b.me);
        let (_, own) = leader.claim(KEY, 2);
        assert_eq!(own, [Action::Claimed { id: 1, by: b.me }]);
    }

    #[test]
    fn a_claim_that_is_given_back_or_not_renewed_is_free() {
        let [mut leader, mut b, mut c] = three();
        assert_eq!(ask(&mut leader, &mut b, 0), b.me);
        leader.receive(c.me, HolderMessage::Unclaim(KEY), 1);
        assert_eq!(ask(&mut leader, &mut c, 2), b.me, "only its claimant gives it back");
        leader.receive(b.me, HolderMessage::Unclaim(KEY), 3);
        assert_eq!(ask(&mut leader, &mut c, 4), c.me);
        assert_eq!(ask(&mut leader, &mut c, 20_000), c.me);
        assert_eq!(ask(&mut leader, &mut b, 4 + CLAIM_MS), c.me, "it was renewed");
        assert_eq!(ask(&mut leader, &mut b, 20_000 + CLAIM_MS), b.me);
    }

    #[test]
    fn who_asks_for_what_is_there_hears_who_has_it() {
        let [mut leader, mut b, c] = three();
        leader.receive(
            c.me,
            HolderMessage::Holds(vec![shoal_wire::mesh::announcement::Holding { key: KEY, content: [1; 16] }]),
            0,
        );
        assert_eq!(ask(&mut leader, &mut b, 1), c.me);
    }

    #[test]
    fn a_silent_owner_holds_nobody_up() {
        let [_, mut b, _] = three();
        let (id, _) = b.claim(KEY, 0);
        assert!(!b.tick(ANSWER_MS - 1).contains(&Action::Claimed { id, by: b.me }));
        assert!(b.tick(ANSWER_MS).contains(&Action::Claimed { id, by: b.me }));
    }

    #[test]
    fn an_owner_that_was_silent_is_not_waited_for_again_and_is_asked_when_that_is_over() {
        let [leader, mut b, _] = three();
        b.claim(KEY, 0);
        b.tick(ANSWER_MS);
        let (_, second) = b.claim(KEY, ANSWER_MS);
        assert!(
            !second.iter().any(|action| matches!(action, Action::Send { to, .. } if *to == leader.me)),
            "{second:?}"
        );
        let (_, later) = b.claim(KEY, ANSWER_MS + MUTE_MS);
        assert!(matches!(&later[..], [Action::Send { to, .. }] if *to == leader.me), "{later:?}");
    }

    #[test]
    fn an_owner_that_answers_late_is_asked_again_at_once() {
        let [mut leader, mut b, mut c] = three();
        let (_, asked) = b.claim(KEY, 0);
        let [Action::Send { message: late, .. }] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(ask(&mut leader, &mut c, 1), c.me);
        b.tick(ANSWER_MS);
        let answers = leader.receive(b.me, late.clone(), ANSWER_MS + 1);
        let [Action::Send { message, .. }] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(b.receive(leader.me, message.clone(), ANSWER_MS + 1), [], "nobody waits for it any more");
        assert_eq!(ask(&mut leader, &mut b, ANSWER_MS + 1), c.me);
    }

    #[test]
    fn those_that_a_silent_owner_left_without_an_answer_agree_when_they_ask_again() {
        let [_, mut b, mut c] = three();
        for asker in [&mut b, &mut c] {
            let (id, _) = asker.claim(KEY, 0);
            assert!(asker.tick(ANSWER_MS).contains(&Action::Claimed { id, by: asker.me }));
        }
        let (mut second, mut other) = if b.leader(&KEY) == Some(b.me) { (b, c) } else { (c, b) };
        let (id, actions) = second.claim(KEY, ANSWER_MS);
        assert_eq!(actions, [Action::Claimed { id, by: second.me }]);
        assert_eq!(ask(&mut second, &mut other, ANSWER_MS), second.me);
    }

    #[test]
    fn a_claimant_that_is_suspected_has_no_claim() {
        let [mut leader, mut b, mut c] = three();
        assert_eq!(ask(&mut leader, &mut b, 0), b.me);
        let members = Members { suspected: [b.me].into(), ..leader.members.clone() };
        leader.set_members(members, 1);
        assert_eq!(ask(&mut leader, &mut c, 2), c.me);
    }
}
