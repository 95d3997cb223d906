use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;
use crate::random::Random;
use proptest::prelude::*;

fn asked(ballot: &mut Ballot<u32, u8>, able: &[u32], now_ms: u64) -> Vec<u32> {
    let mut asked = Vec::new();
    while let Step::Ask(node) = ballot.step(able, now_ms) {
        asked.push(node);
    }
    asked
}

#[test]
fn as_many_as_needed_are_asked_the_best_first() {
    let mut ballot = Ballot::new(2);
    assert_eq!(asked(&mut ballot, &[7, 3, 5], 0), [7, 3]);
    assert_eq!(ballot.step(&[7, 3, 5], 0), Step::Wait { until_ms: None });
    ballot.hear(&7, Word::Built(1), 0);
    ballot.hear(&5, Word::Built(1), 0);
    assert_eq!(ballot.step(&[7, 3, 5], 0), Step::Wait { until_ms: None }, "5 was not asked");
    ballot.hear(&3, Word::Built(1), 0);
    assert_eq!(ballot.step(&[], 0), Step::Agreed);
}

#[test]
fn two_that_differ_end_it_before_the_third() {
    let mut ballot = Ballot::new(3);
    assert_eq!(asked(&mut ballot, &[1, 2, 3], 0), [1, 2, 3]);
    ballot.hear(&2, Word::Built(1), 0);
    ballot.hear(&1, Word::Built(2), 0);
    assert_eq!(ballot.step(&[1, 2, 3], 0), Step::Differ);
    assert_eq!(ballot.votes(), [(2, 1), (1, 2)]);
}

#[test]
fn who_is_lost_or_full_is_asked_again_after_all_others() {
    let mut ballot = Ballot::new(1);
    let able = [1, 2, 3];
    assert_eq!(asked(&mut ballot, &able, 0), [1]);
    ballot.hear(&1, Word::Lost, 0);
    assert_eq!(asked(&mut ballot, &able, 0), [2]);
    ballot.hear(&2, Word::Refused { until_ms: Some(500) }, 0);
    assert_eq!(asked(&mut ballot, &able, 600), [3]);
    ballot.hear(&3, Word::Refused { until_ms: None }, 600);
    assert_eq!(asked(&mut ballot, &able, 600), [2]);
    ballot.hear(&2, Word::Refused { until_ms: Some(9_000) }, 600);
    assert_eq!(ballot.step(&able, 600), Step::Wait { until_ms: Some(LOST_MS) });
    assert_eq!(asked(&mut ballot, &able, LOST_MS), [1]);
}

#[test]
fn where_fewer_can_vote_than_are_needed_nobody_waits() {
    let mut ballot = Ballot::<u32, u8>::new(3);
    assert_eq!(ballot.step(&[1, 2], 0), Step::TooFew { able: 2 });
    assert_eq!(asked(&mut ballot, &[1, 2, 3], 0), [1, 2, 3]);
    ballot.hear(&2, Word::Refused { until_ms: None }, 0);
    assert_eq!(ballot.step(&[1, 2, 3], 0), Step::TooFew { able: 2 });
    assert_eq!(ballot.step(&[1, 2, 3, 4], 0), Step::Ask(4));
}

#[test]
fn who_is_silent_is_waited_for_and_not_for_ever() {
    let mut ballot = Ballot::<u32, u8>::new(2);
    assert_eq!(asked(&mut ballot, &[1, 2], 0), [1, 2]);
    ballot.hear(&2, Word::Lost, 100);
    assert_eq!(ballot.step(&[1, 2], 200), Step::Wait { until_ms: Some(100 + LOST_MS) });
    assert_eq!(ballot.step(&[1], 5_000), Step::Wait { until_ms: Some(200 + SILENT_MS) });
    assert_eq!(ballot.step(&[1, 2], 6_000), Step::Ask(2));
    ballot.hear(&2, Word::Lost, 6_000);
    assert_eq!(ballot.step(&[1], 6_000 + SILENT_MS), Step::TooFew { able: 1 });
    // One that is silent when it begins, and one that never takes it.
    let mut ballot = Ballot::<u32, u8>::new(2);
    ballot.expect(&[2], 0);
    assert_eq!(asked(&mut ballot, &[1], 0), [1]);
    assert_eq!(ballot.step(&[1], 0), Step::Wait { until_ms: Some(SILENT_MS) });
    assert_eq!(ballot.step(&[1, 2], 10), Step::Ask(2));
    assert!(ballot.has_hope(&2));
    ballot.hear(&2, Word::Refused { until_ms: None }, 20);
    assert!(!ballot.has_hope(&2));
    assert_eq!(ballot.step(&[1], 30), Step::TooFew { able: 1 });
}

#[test]
fn nodes_that_die_under_it_again_and_again_end_it() {
    let mut ballot = Ballot::<u32, u8>::new(1);
    for loss in 0..LOSSES_MAX {
        let now_ms = u64::from(loss) * LOST_MS;
        assert_eq!(ballot.step(&[1], now_ms), Step::Ask(1));
        ballot.hear(&1, Word::Lost, now_ms);
    }
    assert_eq!(ballot.step(&[1, 2], 100_000), Step::GivenUp { losses: LOSSES_MAX });
}

/// Nodes with places for one build each: some lie, some die, some are full for a while.
struct Nodes {
    liars: u32,
    deaths: u64,
    refusals: u64,
    takes_ms_max: u64,
}

/// What all are asked and say in virtual time, until it ends. How, and the voters.
fn run(nodes: &Nodes, count: u32, needed: usize, random: &mut Random) -> (Step<u32>, Vec<(u32, u8)>) {
    let mut ballot = Ballot::new(needed);
    let mut able: Vec<u32> = (0..count).collect();
    able.sort_by_cached_key(|_| random.word());
    let (mut now_ms, mut open) = (0, BTreeSet::new());
    let mut words: BinaryHeap<Reverse<(u64, u32)>> = BinaryHeap::new();
    for _ in 0..10_000 {
        match ballot.step(&able, now_ms) {
            Step::Ask(node) => {
                assert!(open.insert(node), "{node} is asked twice");
                assert!(ballot.votes().iter().all(|(voter, _)| *voter != node), "{node} has voted");
                assert!(open.len() + ballot.votes().len() <= needed);
                words.push(Reverse((now_ms + random.below(nodes.takes_ms_max + 1), node)));
            }
            Step::Wait { until_ms } => {
                let next = words.peek().map(|Reverse((ms, _))| *ms);
                if let Some(until_ms) = until_ms.filter(|until_ms| next.is_none_or(|next| *until_ms < next)) {
                    now_ms = now_ms.max(until_ms);
                    continue;
                }
                let Reverse((ms, node)) = words.pop().expect("somebody is waited for");
                now_ms = now_ms.max(ms);
                open.remove(&node);
                let word = match () {
                    () if random.chance(nodes.deaths) => Word::Lost,
                    () if random.chance(nodes.refusals) => {
                        let until_ms = random.chance(90).then(|| now_ms + 1 + random.below(1_000));
                        Word::Refused { until_ms }
                    }
                    () if node < nodes.liars => Word::Built(2),
                    () => Word::Built(1),
                };
                ballot.hear(&node, word, now_ms);
            }
            end => return (end, ballot.votes().to_vec()),
        }
    }
    panic!("it does not end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// With fewer liars than votes are needed, what they made up is never agreed on; without faults honest nodes agree.
    #[test]
    fn liars_are_found_out_and_every_ballot_ends(
        seed: u64, count in 1u32..9, needed in 1usize..6, liars in 0u32..4, deaths in 0u64..30, refusals in 0u64..60
    ) {
        let nodes = Nodes { liars, deaths, refusals, takes_ms_max: 5_000 };
        let (end, votes) = run(&nodes, count, needed, &mut Random::new(seed));
        let values: BTreeSet<u8> = votes.iter().map(|(_, vote)| *vote).collect();
        let voters: BTreeSet<u32> = votes.iter().map(|(voter, _)| *voter).collect();
        prop_assert_eq!(voters.len(), votes.len());
        match &end {
            Step::Agreed => {
                prop_assert_eq!((votes.len(), values.len()), (needed, 1));
                prop_assert!(values.contains(&1) || liars as usize >= needed, "only liars voted: {:?}", votes);
            }
            Step::Differ => prop_assert_eq!(values.len(), 2),
            Step::TooFew { able } => prop_assert!(*able < needed),
            Step::GivenUp { losses } => prop_assert!(*losses == LOSSES_MAX && deaths > 0),
            other => prop_assert!(false, "{:?} is no end", other),
        }
        if deaths == 0 && refusals == 0 && count as usize >= needed && liars == 0 {
            prop_assert_eq!(end, Step::Agreed);
        }
    }
}

#[test]
fn who_wants_more_votes_gets_them_until_it_is_agreed() {
    let mut ballot = Ballot::new(2);
    assert_eq!(asked(&mut ballot, &[1, 2, 3], 0), [1, 2]);
    ballot.hear(&1, Word::Built(7), 0);
    ballot.need(3);
    ballot.need(1);
    assert_eq!(asked(&mut ballot, &[1, 2, 3], 0), [3]);
    ballot.hear(&2, Word::Built(7), 0);
    assert_eq!(ballot.step(&[1, 2, 3], 0), Step::Wait { until_ms: None });
    ballot.hear(&3, Word::Built(7), 0);
    assert_eq!(ballot.step(&[1, 2, 3], 0), Step::Agreed);
    ballot.need(usize::MAX);
    assert_eq!((ballot.needed(), ballot.step(&[1, 2, 3], 0)), (VOTES_MAX, Step::TooFew { able: 3 }));
}
