use super::*;

const MIB: u64 = 1 << 20;

/// Takes so many seconds.
fn lasting(key: u32, deps: &[u32], seconds: u64) -> Node<u32> {
    Node { estimate_ms: seconds * 1_000, ..node(key, deps) }
}

/// Executors 0 to `count` of one slot each, and outputs of 100 MiB of which each lies at one of them.
fn warm(count: u8, outputs: &[(u32, u8)]) -> Schedule {
    let mut schedule = mesh(&(0..count).map(|id| (id, executor(1))).collect::<Vec<_>>());
    outputs.iter().for_each(|(key, at)| schedule.learn(key, at, 100 * MIB));
    schedule
}

#[test]
fn a_job_that_has_time_waits_for_the_executor_that_has_its_inputs_and_not_longer_than_it_may() {
    let nodes = || vec![lasting(1, &[10], 1_000), lasting(2, &[10], 10)];
    let mut schedule = warm(4, &[(10, 0)]);
    assert_eq!(submit(&mut schedule, nodes()).1, [(1, 0)]);
    let Some(Explanation::Place { executors, .. }) = schedule.explain(&2, 0) else { panic!("it waits for no place") };
    assert_eq!(kinds(executors), [(0, "no-slot"), (1, "has-less"), (2, "has-less"), (3, "has-less")]);
    let total = schedule.wanted(u64::MAX, 0).demand().total();
    assert_eq!((total.ready.jobs, total.coming.jobs), (0, 1), "more slots are of no use to it");
    assert_eq!(starts(&schedule.ended(&1, &0, DONE, 50_000)), [(2, 0)]);

    let mut schedule = warm(4, &[(10, 0)]);
    submit(&mut schedule, nodes());
    assert_eq!(starts(&schedule.tick(100_000)), []);
    let due_ms = schedule.next_tick_ms().expect("it does not wait for ever");
    assert!(due_ms <= WAIT_MS_MAX, "{due_ms}");
    let later_ms = (due_ms..).step_by(1_000).find(|ms| !starts(&schedule.tick(*ms)).is_empty()).expect("it starts");
    assert!(later_ms <= 250_000, "{later_ms}: a quarter of the time that it had");
}

#[test]
fn what_has_no_time_waits_for_nobody() {
    let mut schedule = warm(4, &[(10, 0)]);
    let (_, started) = submit(&mut schedule, vec![lasting(1, &[10], 1_000), lasting(2, &[10], 900)]);
    assert_eq!(started, [(1, 0), (2, 1)]);
}

#[test]
fn where_every_slot_is_needed_none_stays_free_and_each_takes_what_lacks_least_there() {
    let mut schedule = warm(2, &[(10, 0), (11, 1)]);
    let nodes = vec![lasting(1, &[10], 100), lasting(2, &[10], 50), lasting(3, &[11], 40)];
    assert_eq!(submit(&mut schedule, nodes).1, [(1, 0), (3, 1)], "2 is overtaken by 3");
    assert_eq!(starts(&schedule.ended(&3, &1, DONE, 0)), [(2, 1)]);
}

#[test]
fn another_request_is_not_overtaken() {
    let mut schedule = warm(2, &[(10, 0), (11, 1)]);
    submit(&mut schedule, vec![lasting(1, &[10], 100), lasting(5, &[11], 100)]);
    submit(&mut schedule, vec![lasting(2, &[10], 50), lasting(3, &[10], 90)]);
    submit(&mut schedule, vec![lasting(4, &[11], 500)]);
    assert_eq!(
        starts(&schedule.ended(&5, &1, DONE, 0)),
        [(3, 1)],
        "4 would be at home there, and is of a later request"
    );
}

#[test]
fn inputs_come_with_a_job_to_where_it_begins_and_not_to_where_it_is_refused() {
    let refused = End::Refused { text: "no".into(), full_until_ms: None };
    for (end, lacks) in [(End::Lost, "lacks no known inputs"), (refused, "lacks 100 MiB of inputs")] {
        let mut schedule = warm(2, &[(10, 0)]);
        assert_eq!(submit(&mut schedule, vec![lasting(1, &[10], 9), lasting(2, &[10], 9)]).1, [(1, 0), (2, 1)]);
        schedule.ended(&2, &1, end, 0);
        let (_, started) = submit(&mut schedule, vec![lasting(3, &[10], 9)]);
        assert_eq!(started, [(3, 1)]);
        let why = schedule.why(&3).into_iter().find(|(at, _)| *at == 1).expect("it is placed there").1;
        assert!(why.to_string().contains(lacks), "{why}");
    }
}
