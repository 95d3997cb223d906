//! Facts that are being pushed, each a bounded number of times.
//!
//! A fact is replaced by a newer one of the same kind about the same member. Urgent ones go first, then those that were
//! sent the fewest times; when there are too many, the ones that are not urgent go.

use super::limits::{COPIES, PUSH_LEN_MAX, RUMORS_MAX};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::frame::Fact;
use std::collections::BTreeMap;

/// What is told: about whom, and, of suspicions, by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    Record(NodeKey),
    Suspicion { subject: NodeKey, author: NodeKey },
    Revocation(NodeKey),
}

#[derive(Clone, Debug)]
struct Rumor {
    fact: Fact,
    is_urgent: bool,
    sent: u32,
}

#[derive(Clone, Debug, Default)]
pub struct Rumors(BTreeMap<Topic, Rumor>);

/// Copies that reach everybody among `members` but one in some hundreds, whom anti-entropy reaches: those that were not
/// reached by c copies a node are e^-c of all.
fn urgent_copies(members: usize) -> u32 {
    // The natural logarithm is 0.7 of the binary one.
    (usize::BITS - members.leading_zeros()) * 7 / 10 + 2
}

impl Rumors {
    pub fn push(&mut self, topic: Topic, fact: Fact, is_urgent: bool) {
        if self.0.len() >= RUMORS_MAX && !self.0.contains_key(&topic) {
            if !is_urgent {
                return;
            }
            let idle = self.0.iter().find(|(_, rumor)| !rumor.is_urgent).map(|(topic, _)| *topic);
            match idle {
                Some(topic) => self.0.remove(&topic),
                None => return,
            };
        }
        self.0.insert(topic, Rumor { fact, is_urgent, sent: 0 });
    }

    /// Suspicions of a member that contradicted them, and what a revoked one said, are not told on.
    pub fn retract(&mut self, mut is_void: impl FnMut(&Topic) -> bool) {
        self.0.retain(|topic, _| !is_void(topic));
    }

    pub fn has_urgent(&self) -> bool {
        self.0.values().any(|rumor| rumor.is_urgent)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The facts of one frame of at most `room` bytes that goes to `targets` of `members`.
    pub fn take(&mut self, room: usize, targets: usize, members: usize) -> Vec<Fact> {
        let mut order: Vec<(bool, u32, Topic)> =
            self.0.iter().map(|(topic, rumor)| (!rumor.is_urgent, rumor.sent, *topic)).collect();
        order.sort_unstable();
        let (mut facts, mut left) = (Vec::new(), room.min(PUSH_LEN_MAX));
        for (_, _, topic) in order {
            let Some(rumor) = self.0.get_mut(&topic) else { continue };
            let len = rumor.fact.frame_len();
            // A record may be longer than a datagram: then it goes alone.
            if len > left && !(facts.is_empty() && len <= room) {
                continue;
            }
            left = left.saturating_sub(len);
            facts.push(rumor.fact.clone());
            rumor.sent += targets as u32;
            let copies = if rumor.is_urgent { urgent_copies(members) } else { COPIES };
            if rumor.sent >= copies {
                self.0.remove(&topic);
            }
        }
        facts
    }
}
