//! Jobs that not everybody who is fit for them can run.

use super::*;

#[test]
fn what_died_for_want_of_memory_goes_only_where_it_gets_more() {
    let sized = |max_mib| Executor { memory_max_mib: Some(max_mib), ..executor(1) };
    let mut schedule = mesh(&[(1, sized(500)), (2, sized(2_000))]);
    let (_, started) = submit(&mut schedule, vec![node(9, &[]), node(1, &[])]);
    assert_eq!(started, [(9, 1), (1, 2)]);
    let died = |used_mib| End::OutOfMemory { used_mib };
    assert!(schedule.is_tried_again(&9, &died(500)) && !schedule.is_tried_again(&9, &died(2_000)));
    assert_eq!(starts(&schedule.ended(&9, &1, died(500), 0)), [], "the larger one is busy");
    let Some(Explanation::Place { executors, .. }) = schedule.explain(&9, 0) else { panic!("it waits for no place") };
    assert_eq!(kinds(executors), [(1, "too-little-memory"), (2, "no-slot")]);
    assert_eq!(starts(&schedule.ended(&1, &2, DONE, 0)), [(9, 2)]);
    let ended = schedule.ended(&9, &2, died(2_000), 0);
    assert!(matches!(ended[..], [Action::Answer { key: 9, answer: Answer::GivenUp { tries: 2 }, .. }]), "{ended:?}");
    assert_eq!((schedule.running(), schedule.waiting()), (0, 0));
}

#[test]
fn what_waits_for_memory_is_told_when_the_last_who_has_it_goes() {
    let sized = |max_mib| Executor { memory_max_mib: Some(max_mib), ..executor(1) };
    let mut schedule = mesh(&[(1, sized(500)), (2, sized(2_000))]);
    submit(&mut schedule, vec![node(9, &[]), node(1, &[])]);
    schedule.ended(&9, &1, End::OutOfMemory { used_mib: 500 }, 0);
    assert!(schedule.set_executor(2, None, 0).contains(&Action::Nowhere { key: 9 }));
    assert!(matches!(schedule.placement(&9, 0), Some(Placement::Nowhere(reasons)) if reasons.len() == 1));
}

/// Who has too little memory for it is no reason to leave alone who has failed with it.
#[test]
fn what_was_lost_where_alone_it_has_memory_enough_is_tried_there_again() {
    let sized = |max_mib| Executor { memory_max_mib: Some(max_mib), ..executor(1) };
    let mut schedule = mesh(&[(1, sized(500)), (2, sized(2_000))]);
    submit(&mut schedule, vec![node(9, &[])]);
    assert_eq!(starts(&schedule.ended(&9, &1, End::OutOfMemory { used_mib: 500 }, 0)), [(9, 2)]);
    assert_eq!(starts(&schedule.ended(&9, &2, End::Lost, 0)), []);
    let again_ms = schedule.next_tick_ms().expect("it is tried again");
    assert_eq!(starts(&schedule.tick(again_ms)), [(9, 2)]);
}

#[test]
fn what_only_one_can_run_waits_while_that_is_silent_and_not_once_it_is_distrusted() {
    let mut schedule = mesh(&[(1, executor(1)), (2, executor(0))]);
    assert_eq!(submit(&mut schedule, vec![node(9, &[])]).1, [(9, 1)]);
    let silent = Executor { silent: true, ..executor(1) };
    assert_eq!(schedule.set_executor(1, Some(silent.clone()), 0), []);
    assert_eq!(schedule.ended(&9, &1, End::Lost, 0), []);
    assert!(schedule.able(&9, 0).is_empty());
    let again_ms = schedule.next_tick_ms().expect("it is tried again");
    assert_eq!(schedule.tick(again_ms), [], "it is silent still");
    assert_eq!(starts(&schedule.set_executor(1, Some(executor(1)), again_ms)), [(9, 1)]);
    schedule.ended(&9, &1, End::Lost, again_ms);
    let distrusted = Executor { distrusted: true, ..silent };
    assert_eq!(schedule.set_executor(1, Some(distrusted), again_ms), [Action::Nowhere { key: 9 }]);
}

fn refused() -> End {
    End::Refused { text: "too long".into(), full_until_ms: None }
}

#[test]
fn what_cannot_be_sent_waits_for_its_own_node_and_is_tried_there_again() {
    let mut schedule = mesh(&[(0, executor(1)), (1, executor(1)), (2, executor(1))]);
    assert_eq!(submit(&mut schedule, vec![node(8, &[]), node(9, &[])]).1, [(8, 0), (9, 1)]);
    schedule.confine(&9, &0, "too long");
    assert_eq!(schedule.ended(&9, &1, refused(), 0), []);
    let Some(Explanation::Place { executors, .. }) = schedule.explain(&9, 0) else { panic!("it waits for no place") };
    assert_eq!(kinds(executors), [(0, "no-slot"), (1, "out-of-reach"), (2, "out-of-reach")]);
    assert_eq!(schedule.able(&9, 0), [0]);
    assert_eq!(starts(&schedule.ended(&8, &0, DONE, 0)), [(9, 0)]);
    assert_eq!(starts(&schedule.ended(&9, &0, End::Lost, 0)), []);
    let again_ms = schedule.next_tick_ms().expect("it is tried again");
    assert_eq!(starts(&schedule.tick(again_ms)), [(9, 0)]);
}

#[test]
fn what_cannot_be_sent_by_who_builds_nothing_is_said_at_once() {
    let mut schedule = mesh(&[(0, executor(0)), (1, executor(1)), (2, executor(1))]);
    assert_eq!(submit(&mut schedule, vec![node(9, &[])]).1, [(9, 1)]);
    schedule.confine(&9, &0, "too long");
    assert_eq!(schedule.ended(&9, &1, refused(), 0), [Action::Nowhere { key: 9 }]);
    let told = vec![
        (0, Reason::NoSlot { slots: 0 }),
        (1, Reason::OutOfReach("too long".into())),
        (2, Reason::OutOfReach("too long".into())),
    ];
    assert_eq!(schedule.placement(&9, 0), Some(Placement::Nowhere(told)));
    let actions = schedule.give_up(&9, 0);
    assert!(matches!(actions[..], [Action::Answer { key: 9, answer: Answer::Failed, .. }]), "{actions:?}");
}

#[test]
fn what_cannot_be_sent_is_told_when_its_own_node_builds_no_more() {
    let mut schedule = mesh(&[(0, executor(1)), (1, executor(1))]);
    submit(&mut schedule, vec![node(8, &[]), node(9, &[])]);
    schedule.confine(&9, &0, "too long");
    schedule.ended(&9, &1, refused(), 0);
    assert!(schedule.set_executor(0, Some(executor(0)), 0).contains(&Action::Nowhere { key: 9 }));
}
