//! Members that were asked what is answered at once, and say nothing: mostly dead ones, seconds before members agree on it.
//!
//! A mute member is asked for nothing that another can do, and is waited for only where nobody else can say anything. What it
//! costs to be wrong is one copy more, or a claim at another owner.

use super::TICK_MS;
use crate::ring::{Key, NodeId};
use shoal_wire::mesh::announcement::HolderMessage;
use std::collections::BTreeMap;

/// Who says nothing for so long after a question is mute.
pub const MUTE_AFTER_MS: u64 = 1_000;
/// How long it is left alone, unless it says something: by then it is suspected, or answers again.
pub const MUTE_MS: u64 = 5_000;
/// Longest time between two ticks of a node that runs as it should.
const GAP_MS: u64 = 3 * TICK_MS;
/// A member that makes a copy says nothing until it has it. After this it is asked something beside it.
pub const COPY_PROBE_MS: u64 = 400;

#[derive(Clone, Debug, Default)]
pub(super) struct Mutes {
    /// Who was asked since it was heard last, and since when.
    asked: BTreeMap<NodeId, u64>,
    /// Who did not answer, and until when it is left alone.
    mute: BTreeMap<NodeId, u64>,
    ticked_ms: Option<u64>,
}

impl Mutes {
    pub fn told(&mut self, node: NodeId, message: &HolderMessage, now_ms: u64) {
        if is_answered_at_once(message) {
            self.asked.entry(node).or_insert(now_ms);
        }
    }

    /// A question could not be sent.
    pub fn untold(&mut self, node: &NodeId, now_ms: u64) {
        if self.asked.get(node) == Some(&now_ms) {
            self.asked.remove(node);
        }
    }

    pub fn heard(&mut self, node: &NodeId) {
        self.asked.remove(node);
        self.mute.remove(node);
    }

    pub fn tick(&mut self, now_ms: u64) {
        // Where this node itself stood still, answers lie here unread.
        let gap_ms = now_ms.saturating_sub(self.ticked_ms.replace(now_ms).unwrap_or(now_ms));
        if gap_ms > GAP_MS {
            self.asked.values_mut().for_each(|since| *since = now_ms.min(*since + gap_ms));
        }
        self.mute.retain(|_, until| *until > now_ms);
        let late = self.asked.extract_if(.., |_, since| now_ms.saturating_sub(*since) >= MUTE_AFTER_MS);
        self.mute.extend(late.map(|(node, _)| (node, now_ms + MUTE_MS)));
    }

    /// A member did not answer.
    pub fn mark(&mut self, node: NodeId, now_ms: u64) {
        self.mute.insert(node, now_ms + MUTE_MS);
    }

    pub fn is_mute(&self, node: &NodeId, now_ms: u64) -> bool {
        self.mute.get(node).is_some_and(|until| *until > now_ms)
    }

    /// Those of `slow` of whom nothing is expected, and who are to be asked something.
    pub fn to_probe(&self, slow: BTreeMap<NodeId, Key>, now_ms: u64) -> Vec<(NodeId, Key)> {
        slow.into_iter().filter(|(node, _)| !self.asked.contains_key(node) && !self.is_mute(node, now_ms)).collect()
    }
}

fn is_answered_at_once(message: &HolderMessage) -> bool {
    match message {
        HolderMessage::Holds(_)
        | HolderMessage::Drops(_)
        | HolderMessage::Lookup { .. }
        | HolderMessage::MayDrop { .. }
        | HolderMessage::Claim { .. } => true,
        // Told to all at once, and few of them can be dialled at once.
        HolderMessage::Begins { .. }
        | HolderMessage::Lacks { .. }
        | HolderMessage::Records(_)
        | HolderMessage::Answer { .. }
        | HolderMessage::Copy(_)
        | HolderMessage::Keep { .. }
        | HolderMessage::Stored(_)
        | HolderMessage::Declined(_)
        | HolderMessage::Differs(_)
        | HolderMessage::Dropped { .. }
        | HolderMessage::Claimed { .. }
        | HolderMessage::Unclaim(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = [1; 32];
    const QUESTION: HolderMessage = HolderMessage::Lookup { id: 1, keys: Vec::new() };

    /// Ticks as a node does, each time that a tick's time divides.
    fn run(mutes: &mut Mutes, times: std::ops::Range<u64>) {
        times.filter(|ms| ms % TICK_MS == 0).for_each(|ms| mutes.tick(ms));
    }

    #[test]
    fn who_says_nothing_after_a_question_is_mute_until_it_says_something() {
        let mut mutes = Mutes::default();
        mutes.told(NODE, &HolderMessage::Stored(Vec::new()), 0);
        mutes.told(NODE, &QUESTION, 10);
        mutes.untold(&NODE, 10);
        mutes.tick(MUTE_AFTER_MS);
        assert!(!mutes.is_mute(&NODE, MUTE_AFTER_MS), "nothing was asked");
        mutes.told(NODE, &QUESTION, 2_000);
        mutes.told(NODE, &QUESTION, 2_900);
        run(&mut mutes, 1_000..2_999);
        assert!(!mutes.is_mute(&NODE, 2_999));
        run(&mut mutes, 2_999..3_200);
        assert!(mutes.is_mute(&NODE, 3_200));
        mutes.heard(&NODE);
        assert!(!mutes.is_mute(&NODE, 3_200));
        run(&mut mutes, 3_200..9_000);
        assert!(!mutes.is_mute(&NODE, 9_000), "what it was asked before is forgotten");
    }

    #[test]
    fn a_node_that_stood_still_takes_nobody_for_mute() {
        let mut mutes = Mutes::default();
        mutes.tick(0);
        mutes.told(NODE, &QUESTION, 100);
        mutes.tick(10_000);
        assert!(!mutes.is_mute(&NODE, 10_000));
        (1..=5).for_each(|tick| mutes.tick(10_000 + tick * TICK_MS));
        assert!(mutes.is_mute(&NODE, 11_000), "it has said nothing since");
    }

    #[test]
    fn who_is_mute_is_tried_again_after_a_while() {
        let mut mutes = Mutes::default();
        mutes.told(NODE, &QUESTION, 0);
        run(&mut mutes, 0..1_001);
        assert!(mutes.is_mute(&NODE, 1_000 + MUTE_MS - 1) && !mutes.is_mute(&NODE, 1_000 + MUTE_MS));
        run(&mut mutes, 1_001..6_001);
        mutes.told(NODE, &QUESTION, 6_100);
        mutes.tick(6_200);
        assert!(!mutes.is_mute(&NODE, 6_200), "it has its time to answer");
    }

    #[test]
    fn only_those_are_probed_of_whom_nothing_is_expected() {
        let (mut mutes, slow) = (Mutes::default(), BTreeMap::from([(NODE, [9; 32])]));
        assert_eq!(mutes.to_probe(slow.clone(), 0), [(NODE, [9; 32])]);
        mutes.told(NODE, &QUESTION, 0);
        assert!(mutes.to_probe(slow.clone(), 500).is_empty());
        run(&mut mutes, 0..1_001);
        assert!(mutes.to_probe(slow, 1_000).is_empty());
    }
}
