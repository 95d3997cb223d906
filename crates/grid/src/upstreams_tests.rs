use std::collections::BTreeMap;

use super::*;
use proptest::prelude::*;

#[test]
fn priority_before_latency_and_the_unmeasured_before_the_slow() {
    let mut upstreams = Upstreams::new([40, 40, 30, 40]);
    upstreams.answered(0, true, 900);
    upstreams.answered(1, false, 300);
    assert_eq!(upstreams.order(0), [2, 3, 1, 0]);
    upstreams.answered(3, true, 500);
    assert_eq!(upstreams.order(0), [2, 1, 3, 0]);
}

#[test]
fn one_slow_answer_does_not_undo_many_quick_ones() {
    let mut upstreams = Upstreams::new([40, 40]);
    (0..20).for_each(|_| upstreams.answered(0, true, 100));
    upstreams.answered(1, true, 400);
    upstreams.answered(0, true, 1_000);
    assert_eq!(upstreams.order(0), [0, 1]);
}

#[test]
fn an_outage_opens_and_one_good_probe_closes() {
    let mut breaker = Breaker::default();
    for now_ms in 0..3 {
        assert!(breaker.begin(now_ms));
        breaker.failed(now_ms);
    }
    assert_eq!(breaker.phase(5_001), Phase::Open);
    assert_eq!(breaker.phase(5_002), Phase::HalfOpen);
    assert!(breaker.begin(5_002));
    assert!(!breaker.begin(5_003), "a second probe at the same time");
    breaker.failed(5_100);
    assert_eq!(breaker.phase(15_099), Phase::Open, "the pause doubles");
    assert!(breaker.begin(15_100));
    breaker.succeeded();
    assert_eq!(breaker, Breaker::default());
}

#[test]
fn a_probe_that_was_never_sent_keeps_nobody_waiting() {
    let mut upstreams = Upstreams::new([0]);
    (0..3).for_each(|_| upstreams.failed(0, 0));
    assert!(upstreams.begin(0, 5_000));
    assert!(upstreams.order(5_001).is_empty(), "a probe is out");
    upstreams.abandoned(0, 0);
    assert!(upstreams.order(5_001).is_empty(), "what began before the breaker opened was no probe");
    upstreams.abandoned(0, 5_000);
    assert_eq!(upstreams.order(5_001), [0]);
    assert!(upstreams.begin(0, 5_001));
    upstreams.answered(0, true, 1);
    upstreams.abandoned(0, 5_001);
    assert_eq!(upstreams.health()[0].breaker, Breaker::default());
}

#[test]
fn a_lost_probe_lets_another_one_go() {
    let mut breaker = Breaker::default();
    (0..3).for_each(|_| breaker.failed(0));
    assert!(breaker.begin(5_000));
    assert!(!breaker.begin(34_999));
    assert!(breaker.begin(35_000));
}

#[test]
fn what_was_said_is_believed_for_a_while() {
    let mut said = Remembered::new(30_000, 10);
    said.insert("a", 1, 1_000);
    assert_eq!(said.get(&"a", 30_999), Some(&1));
    assert_eq!(said.get(&"a", 31_000), None);
    said.insert("b", 2, 31_000);
    assert_eq!(said.len(), 1, "what has expired is kept no longer");
    said.insert("b", 3, 40_000);
    said.insert("c", 4, 61_500);
    assert_eq!(said.get(&"b", 61_500), Some(&3), "said again later");
    said.forget(&"b");
    assert_eq!(said.get(&"b", 61_500), None);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut said = Remembered::new(1, 100);
    (0..1_000).for_each(|key| said.insert(key, (), 0));
    assert_eq!(said.len(), 100);
    assert!(said.get(&999, 0).is_some() && said.get(&0, 0).is_none());
}

proptest! {
    /// However upstreams behave, a breaker never stays open longer than its longest pause, and passes at most one
    /// request at a time unless closed.
    #[test]
    fn breakers_recover(events in prop::collection::vec((0u64..20_000, 0u8..3), 1..200)) {
        let (mut breaker, mut now_ms, mut probes_out) = (Breaker::default(), 0, 0);
        for (later_ms, kind) in events {
            now_ms += later_ms;
            match kind {
                0 => {
                    let phase = breaker.phase(now_ms);
                    prop_assert_eq!(breaker.begin(now_ms), phase != Phase::Open);
                    if phase == Phase::HalfOpen {
                        prop_assert!(!breaker.begin(now_ms));
                        probes_out += 1;
                    }
                }
                1 => breaker.failed(now_ms),
                _ if probes_out > 0 => {
                    probes_out = 0;
                    breaker.succeeded();
                    prop_assert_eq!(breaker.phase(now_ms), Phase::Closed);
                }
                _ => {}
            }
            prop_assert_ne!(breaker.phase(now_ms + 60_000), Phase::Open);
        }
    }

    /// A lookup ends by its deadline, asks each at most once and in order, and finds what somebody has if that one
    /// answers in time.
    #[test]
    fn lookups_end(
        behaviour in prop::collection::vec((0u8..4, 0u64..3_000), 0..6),
        budget_ms in 1u64..3_000,
        hedge_ms in 1u64..1_000,
    ) {
        let mut lookup = Lookup::new((0..behaviour.len()).collect(), 0, budget_ms, hedge_ms);
        let mut arrivals: BTreeMap<(u64, UpstreamId), Answer> = BTreeMap::new();
        let (mut now_ms, mut asked) = (0, Vec::new());
        let outcome = loop {
            match lookup.step(now_ms) {
                Step::Ask(id) => {
                    asked.push(id);
                    let (kind, after_ms) = behaviour[id];
                    let answer = [Answer::Found, Answer::Missing, Answer::Failed].get(usize::from(kind));
                    answer.map(|answer| arrivals.insert((now_ms + after_ms, id), *answer));
                }
                Step::Wait { until_ms } => {
                    prop_assert!(until_ms > now_ms && until_ms <= budget_ms);
                    match arrivals.first_key_value().map(|(key, _)| *key) {
                        Some((at_ms, id)) if at_ms <= until_ms => {
                            now_ms = now_ms.max(at_ms);
                            let answer = arrivals.remove(&(at_ms, id)).unwrap();
                            lookup.answer(id, answer);
                        }
                        _ => now_ms = until_ms,
                    }
                }
                end => break end,
            }
        };
        prop_assert!(now_ms <= budget_ms);
        prop_assert_eq!(&asked, &(0..asked.len()).collect::<Vec<_>>());
        match outcome {
            Step::Found(id) => prop_assert_eq!(behaviour[id].0, 0),
            _ => {
                let in_time = now_ms < budget_ms;
                prop_assert!(!in_time || asked.iter().all(|id| matches!(behaviour[*id].0, 1 | 2)));
            }
        }
    }
}
