//! Whom this node tells news and compares views with: a few members, and those that chose it.
//!
//! Each of a thousand members that talked to any other would hold a connection to all of them. The partners of all make a
//! random graph in which each has some [`limits::PARTNERS`] neighbours that it chose and as many that chose it: it holds
//! together whoever dies, and news crosses it in as many steps as if everybody talked to everybody. It changes slowly, so
//! that nobody stays between the same neighbours for ever.
//!
//! Invariants:
//! - partners are live as this node sees it, and never the node itself;
//! - there are [`limits::PARTNERS`] that it chose, where there are as many members, and no more that chose it;
//! - who is told news in turn is each of them once, before one of them is told again.

use super::limits::{self, CALLER_MS, PARTNER_MS, PARTNERS};
use crate::random::Random;
use shoal_wire::mesh::NodeKey;
use std::collections::VecDeque;

/// Tries to draw somebody new, where most of a small mesh are partners already.
const DRAWS: usize = 4 * PARTNERS;

#[derive(Clone, Debug, Default)]
pub struct Partners {
    /// The oldest first.
    chosen: VecDeque<NodeKey>,
    /// Others that spoke lately as partners do, and when.
    callers: VecDeque<(NodeKey, u64)>,
    changed_ms: u64,
    turn: usize,
}

impl Partners {
    /// A live member that has chosen this node.
    pub fn called_by(&mut self, node: NodeKey, now_ms: u64) {
        if self.chosen.contains(&node) {
            return;
        }
        self.callers.retain(|(caller, _)| *caller != node);
        if self.callers.len() < PARTNERS {
            self.callers.push_back((node, now_ms));
        }
    }

    /// Takes out who is not live any more, and chooses others. `live` is in the order of keys.
    pub fn choose(&mut self, me: &NodeKey, live: &[NodeKey], random: &mut Random, now_ms: u64) {
        let is_live = |node: &NodeKey| live.binary_search(node).is_ok();
        self.chosen.retain(is_live);
        self.callers.retain(|(node, at)| now_ms.saturating_sub(*at) < CALLER_MS && is_live(node));
        let all = live.len().saturating_sub(usize::from(is_live(me)));
        if all > PARTNERS && now_ms.saturating_sub(self.changed_ms) >= PARTNER_MS {
            self.changed_ms = now_ms;
            self.chosen.pop_front();
        }
        for _ in 0..DRAWS {
            if self.chosen.len() >= PARTNERS.min(all) {
                break;
            }
            let drawn = random.pick(live).filter(|node| *node != me && !self.chosen.contains(node));
            if let Some(node) = drawn {
                self.chosen.push_back(*node);
                self.callers.retain(|(caller, _)| caller != node);
            }
        }
    }

    /// The next to be told.
    pub fn in_turn(&mut self) -> Option<NodeKey> {
        self.turn = self.turn.wrapping_add(1);
        self.nth(self.turn.checked_rem(self.len())?)
    }

    /// Any of them.
    pub fn any(&self, random: &mut Random) -> Option<NodeKey> {
        self.nth(random.below(self.len() as u64) as usize)
    }

    fn nth(&self, n: usize) -> Option<NodeKey> {
        let callers = self.callers.iter().map(|(node, _)| node);
        self.chosen.iter().chain(callers).nth(n).copied()
    }

    /// At most two times [`limits::PARTNERS`].
    pub fn len(&self) -> usize {
        debug_assert!(self.chosen.len() <= limits::PARTNERS && self.callers.len() <= limits::PARTNERS);
        self.chosen.len() + self.callers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn nodes(count: u8) -> Vec<NodeKey> {
        (0..count).map(|n| [n; 32]).collect()
    }

    #[test]
    fn a_node_has_few_partners_and_in_time_others() {
        let (live, mut random) = (nodes(200), Random::new(1));
        let mut partners = Partners::default();
        partners.choose(&[7; 32], &live, &mut random, 0);
        let first = partners.chosen.clone();
        assert_eq!(first.len(), PARTNERS);
        assert!(!first.contains(&[7; 32]));
        partners.choose(&[7; 32], &live, &mut random, PARTNER_MS - 1);
        assert_eq!(partners.chosen, first);
        (1..=PARTNERS as u64).for_each(|n| partners.choose(&[7; 32], &live, &mut random, n * PARTNER_MS));
        assert_eq!(partners.chosen.len(), PARTNERS);
        assert_ne!(partners.chosen, first);
    }

    #[test]
    fn in_a_small_mesh_everybody_is_a_partner_and_who_dies_is_none() {
        let (mut live, mut random) = (nodes(5), Random::new(2));
        let mut partners = Partners::default();
        partners.choose(&[0; 32], &live, &mut random, 0);
        assert_eq!(partners.chosen.iter().copied().collect::<BTreeSet<_>>(), live[1..].iter().copied().collect());
        live.remove(3);
        partners.choose(&[0; 32], &live, &mut random, 1);
        assert_eq!(partners.len(), 3);
        assert!(!partners.chosen.contains(&[3; 32]));
    }

    #[test]
    fn who_chose_this_node_is_told_too_for_as_long_as_it_does() {
        let (live, mut random) = (nodes(200), Random::new(3));
        let mut partners = Partners::default();
        partners.choose(&[0; 32], &live, &mut random, 0);
        let others: Vec<NodeKey> = live[1..].iter().filter(|node| !partners.chosen.contains(node)).copied().collect();
        others.iter().for_each(|node| partners.called_by(*node, 0));
        assert_eq!(partners.len(), 2 * PARTNERS, "no more than that");
        let told: BTreeSet<NodeKey> = (0..partners.len()).filter_map(|_| partners.in_turn()).collect();
        assert_eq!(told.len(), 2 * PARTNERS, "each once");
        assert!(told.contains(&others[0]));
        partners.choose(&[0; 32], &live, &mut random, CALLER_MS);
        assert_eq!(partners.len(), PARTNERS);
    }
}
