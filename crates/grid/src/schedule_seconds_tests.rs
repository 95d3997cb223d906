//! Second copies of what is late.

use super::*;

/// Where second copies are started.
fn seconds(actions: &[Action]) -> Vec<(u32, u8)> {
    actions.iter().filter_map(|a| if let Action::Second { key, at } = a { Some((*key, *at)) } else { None }).collect()
}

fn stops(actions: &[Action]) -> Vec<(u32, u8)> {
    actions.iter().filter_map(|a| if let Action::Stop { key, at } = a { Some((*key, *at)) } else { None }).collect()
}

const LATE_MS: u64 = LATE_FACTOR * 1_000 + LATE_MS_MIN;

/// Job 1 runs at 0, of which is known that it takes a second; 1 is free.
fn with_known_job() -> (Schedule, RequestId) {
    let mut schedule = mesh(&[(0, executor(1)), (1, executor(1))]);
    let known = Node { estimate_ms: 1_000, has_estimate: true, ..node(1, &[]) };
    let (request, started) = submit(&mut schedule, vec![known]);
    assert_eq!(started, [(1, 0)]);
    (schedule, request)
}

/// The same when it is late.
fn with_second() -> (Schedule, RequestId) {
    let (mut schedule, request) = with_known_job();
    assert_eq!(seconds(&schedule.second_late(LATE_MS - 1)), []);
    assert_eq!(seconds(&schedule.second_late(LATE_MS)), [(1, 1)]);
    assert_eq!(seconds(&schedule.second_late(10 * LATE_MS)), [], "one is enough");
    (schedule, request)
}

#[test]
fn whichever_copy_of_a_late_job_is_done_first_counts_and_the_other_is_stopped() {
    for (first, other) in [(0, 1), (1, 0)] {
        let (mut schedule, request) = with_second();
        let ended = schedule.ended(&1, &first, DONE, LATE_MS);
        assert!(ended.contains(&Action::Answer { request, key: 1, answer: Answer::Done }), "{ended:?}");
        assert_eq!(stops(&ended), [(1, other)]);
        schedule.ended(&1, &other, End::Failed, LATE_MS);
        assert_eq!((schedule.running(), schedule.waiting()), (0, 0));
        let (_, started) = submit(&mut schedule, vec![node(2, &[]), node(3, &[])]);
        assert_eq!(started.len(), 2, "both places are free");
    }
}

#[test]
fn what_becomes_of_a_second_copy_says_nothing_and_it_takes_the_place_of_a_lost_first() {
    let (mut schedule, _) = with_second();
    assert_eq!(schedule.ended(&1, &1, End::Failed, LATE_MS), []);
    assert_eq!(schedule.runs_at(&1), Some(&0));
    let (mut schedule, _) = with_second();
    assert_eq!(schedule.ended(&1, &0, End::Lost, LATE_MS), []);
    assert_eq!((schedule.runs_at(&1), schedule.running()), (Some(&1), 1));
    let (mut schedule, _) = with_second();
    assert_eq!(schedule.set_executor(1, None, LATE_MS), []);
    assert_eq!(starts(&schedule.set_executor(0, None, LATE_MS)), []);
    assert_eq!(schedule.runs_at(&1), None);
    let (mut schedule, _) = with_second();
    assert_eq!(schedule.set_executor(0, None, LATE_MS), []);
    assert_eq!(schedule.runs_at(&1), Some(&1));
}

#[test]
fn a_failure_or_a_client_that_goes_stops_both_copies() {
    let (mut schedule, request) = with_second();
    let ended = schedule.ended(&1, &0, End::Failed, LATE_MS);
    assert!(ended.contains(&Action::Answer { request, key: 1, answer: Answer::Failed }), "{ended:?}");
    assert_eq!(stops(&ended), [(1, 1)]);
    let (mut schedule, request) = with_second();
    assert_eq!(stops(&schedule.cancel(request, LATE_MS)), [(1, 0), (1, 1)]);
    schedule.ended(&1, &0, End::Failed, LATE_MS);
    assert_eq!((schedule.running(), schedule.waiting()), (0, 0));
}

#[test]
fn no_second_copy_takes_a_place_that_somebody_waits_for_or_is_made_on_a_guess() {
    let mut schedule = mesh(&[(0, executor(1)), (1, executor(1))]);
    submit(&mut schedule, vec![Node { estimate_ms: 1_000, ..node(1, &[]) }]);
    assert_eq!(seconds(&schedule.second_late(10 * LATE_MS)), [], "nothing is known of it");
    let (mut schedule, _) = with_known_job();
    let kvm = Requirement { system: SYSTEM.into(), features: words(&["kvm"]) };
    submit(&mut schedule, vec![Node { requirement: kvm, ..node(2, &[]) }]);
    assert_eq!(seconds(&schedule.second_late(LATE_MS)), [], "2 is ready");
    let members = (0..30).map(|id| (id, executor(1))).collect::<Vec<_>>();
    let mut schedule = mesh(&members);
    let known = |key| Node { estimate_ms: 1_000, has_estimate: true, ..node(key, &[]) };
    submit(&mut schedule, (0..15).map(known).collect());
    assert_eq!(seconds(&schedule.second_late(LATE_MS)).len(), SECONDS_MAX);
}
