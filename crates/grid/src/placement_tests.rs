use super::*;
use expect_test::expect;
use std::collections::BTreeSet;

fn words(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn executor() -> Executor {
    let machine = Machine { systems: words(&["x86_64-linux"]), features: words(&["kvm"]) };
    Executor { machine, slots: 4, active: true, ..Executor::default() }
}

type Known = (Executor, Standing, u64, Option<Tried>);

/// Hands candidates to `then`, of which each is `(executor, standing, missing bytes, tried)`.
fn with_candidates<T>(
    features: &[&str],
    memory_mib: u64,
    known: &[Known],
    then: impl Fn(Ask<'_>, &[Candidate<'_, usize>]) -> T,
) -> T {
    let requirement = Requirement { system: "x86_64-linux".into(), features: words(features) };
    let nodes: Vec<usize> = (0..known.len()).collect();
    let candidates: Vec<Candidate<'_, usize>> = known
        .iter()
        .zip(&nodes)
        .map(|((executor, standing, missing_bytes, tried), node)| Candidate {
            node,
            executor,
            standing,
            missing_bytes: *missing_bytes,
            tried: tried.as_ref(),
            out_of_reach: None,
        })
        .collect();
    then(Ask { requirement: &requirement, memory_mib, exceeded_mib: 0 }, &candidates)
}

/// Places at 1000.
fn ask(features: &[&str], memory_mib: u64, known: &[Known]) -> Placement<usize> {
    with_candidates(features, memory_mib, known, |ask, candidates| place(ask, candidates, 1_000))
}

fn idle() -> Known {
    (executor(), Standing::default(), 0, None)
}

#[test]
fn the_fewest_missing_bytes_then_the_least_load_then_the_least_pressure() {
    let busy = Standing { ours: 1, others: 1, ..Standing::default() };
    let pressed = Executor { pressure: 50, ..executor() };
    let best = |known: &[_]| ask(&[], 0, known);
    assert_eq!(
        best(&[(executor(), Standing::default(), 1 << 30, None), (executor(), busy.clone(), 0, None)]),
        Placement::Placed(1)
    );
    assert_eq!(
        best(&[(executor(), busy.clone(), 1 << 20, None), (executor(), Standing::default(), 2 << 20, None)]),
        Placement::Placed(1)
    );
    let pressed_with_all = (Executor { pressure: 50, ..executor() }, Standing::default(), 0, None);
    assert_eq!(best(&[(executor(), Standing::default(), 1, None), pressed_with_all]), Placement::Placed(1));
    assert_eq!(best(&[(pressed, Standing::default(), 0, None), idle()]), Placement::Placed(1));
    assert_eq!(best(&[idle(), idle()]), Placement::Placed(0));
}

#[test]
fn where_it_failed_it_runs_again_only_when_no_other_can() {
    let failed = |until_ms| (executor(), Standing::default(), 0, Some(Tried::Failed { until_ms }));
    let full = (executor(), Standing { others: 4, ..Standing::default() }, 0, None);
    assert_eq!(ask(&[], 0, &[failed(0), idle()]), Placement::Placed(1));
    assert!(matches!(ask(&[], 0, &[failed(0), full]), Placement::Waits(_)));
    assert_eq!(ask(&[], 0, &[failed(0)]), Placement::Placed(0));
    let silent = (Executor { silent: true, ..executor() }, Standing::default(), 0, None);
    assert_eq!(ask(&[], 0, &[failed(0), silent]), Placement::Placed(0), "it may be silent for ever");
    assert_eq!(
        ask(&[], 0, &[failed(2_000)]),
        Placement::Waits(vec![(0, Reason::FailedHere { again_in_ms: Some(1_000) })])
    );
}

#[test]
fn nowhere_is_not_the_same_as_not_now() {
    let draining = Executor { active: false, ..executor() };
    assert!(matches!(ask(&[], 0, &[]), Placement::Nowhere(_)));
    let none = (Executor { slots: 0, ..executor() }, Standing::default(), 0, None);
    assert!(matches!(ask(&[], 0, &[none]), Placement::Nowhere(_)));
    assert!(matches!(ask(&["gpu"], 0, &[idle()]), Placement::Nowhere(_)));
    assert!(matches!(ask(&[], 0, &[(draining.clone(), Standing::default(), 0, None)]), Placement::Nowhere(_)));
    let full = (executor(), Standing { ours: 4, ..Standing::default() }, 0, None);
    assert!(matches!(ask(&[], 0, &[(draining, Standing::default(), 0, None), full]), Placement::Waits(_)));
    let with = |executor| (executor, Standing::default(), 0, None);
    let (silent, liar) =
        (Executor { silent: true, ..executor() }, Executor { silent: true, distrusted: true, ..executor() });
    assert!(matches!(ask(&[], 0, &[with(liar.clone())]), Placement::Nowhere(_)));
    assert!(matches!(ask(&[], 0, &[with(liar), with(silent)]), Placement::Waits(_)));
}

#[test]
fn each_reason_is_a_line_that_a_person_understands() {
    let low = Executor { free_memory: FreeMemory::Told(900), ..executor() };
    let used = Standing { ours: 1, promised_mib: 100, ..Standing::default() };
    let refused = Refused { text: "its disk is full".into(), until_ms: 2_000 };
    let full = Standing { others: 4, ..Standing::default() };
    let arm = Executor { machine: Machine { systems: words(&["aarch64-linux"]), ..Machine::default() }, ..executor() };
    let plain = Executor { machine: Machine { systems: words(&["x86_64-linux"]), ..Machine::default() }, ..executor() };
    let known = [
        (arm, Standing::default(), 0, None),
        (plain, Standing::default(), 0, None),
        (Executor { active: false, ..executor() }, Standing::default(), 0, None),
        (executor(), full, 0, None),
        (low, used, 0, None),
        (executor(), Standing::default(), 0, Some(Tried::Failed { until_ms: 5_000 })),
        (executor(), Standing { refused: Some(refused.clone()), ..Standing::default() }, 0, None),
        (executor(), Standing::default(), 0, Some(Tried::Refused(refused))),
        (Executor { silent: true, ..executor() }, Standing::default(), 0, None),
        (Executor { distrusted: true, ..executor() }, Standing::default(), 0, None),
    ];
    let Placement::Waits(reasons) = ask(&["kvm"], 4_000, &known) else { panic!("it is placed") };
    expect![[r#"
        node-0: platform mismatch: needs a machine of system 'x86_64-linux', this one runs aarch64-linux
        node-1: missing system features: needs system features this machine lacks: kvm
        node-2: draining: takes no new builds
        node-3: no free slot: all 4 are taken
        node-4: not enough memory: needs about 4000 MiB, 800 MiB are free
        node-5: failed here before: others are tried first
        node-6: refused: its disk is full; asked again in 1 s
        node-7: refused: its disk is full; asked again in 1 s
        node-8: silent: it did not answer a moment ago
        node-9: not trusted: it denied that it has what it built"#]]
    .assert_eq(&describe(&reasons, |node| format!("node-{node}")));
    let many: Vec<(usize, Reason)> = (0..12).map(|node| (node, Reason::Draining)).collect();
    assert!(describe(&many, usize::to_string).ends_with("9: draining: takes no new builds\nand 2 more"));
}

#[test]
fn who_may_take_it_is_ranked_and_the_merits_are_told() {
    let full = (executor(), Standing { others: 4, ..Standing::default() }, 0, None);
    let busy = Executor { pressure: 7, ..executor() };
    let lacking = (executor(), Standing::default(), 100 << 20, None);
    let known = [full, lacking, (busy, Standing { ours: 1, ..Standing::default() }, 1, None), idle()];
    let verdicts = with_candidates(&["kvm"], 0, &known, |ask, candidates| judge(ask, candidates, 1_000));
    let verdicts: Vec<(usize, Verdict)> = verdicts.into_iter().enumerate().collect();
    expect![[r#"
        node-0: no free slot: all 4 are taken
        node-1: number 3 in the ranking: lacks 100 MiB of inputs, 0 of 4 slots taken
        node-2: number 2 in the ranking: lacks 1 MiB of inputs, 1 of 4 slots taken, under pressure 7 % of the time
        node-3: number 1 in the ranking: lacks no known inputs, 0 of 4 slots taken"#]]
    .assert_eq(&describe(&verdicts, |node| format!("node-{node}")));
    assert_eq!(ask(&["kvm"], 0, &known), Placement::Placed(3));
}

#[test]
fn where_it_would_have_no_more_than_it_died_with_it_does_not_go() {
    let sized = |max_mib| Executor { memory_max_mib: Some(max_mib), ..executor() };
    let requirement = Requirement { system: "x86_64-linux".into(), ..Requirement::default() };
    let standing = Standing::default();
    let (small, large) = (sized(500), sized(501));
    let candidate = |executor| Candidate {
        node: &0,
        executor,
        standing: &standing,
        missing_bytes: 0,
        tried: None,
        out_of_reach: None,
    };
    let ask = |exceeded_mib| Ask { requirement: &requirement, memory_mib: 2 * exceeded_mib, exceeded_mib };
    let Placement::Nowhere(reasons) = place(ask(500), &[candidate(&small)], 0) else { panic!("it may go there") };
    expect!["0: too little memory: 500 MiB were not enough, a build gets 500 MiB at most"]
        .assert_eq(&describe(&reasons, ToString::to_string));
    assert_eq!(place(ask(500), &[candidate(&large)], 0), Placement::Placed(0), "twice as much is only an estimate");
    assert_eq!(place(ask(0), &[candidate(&small)], 0), Placement::Placed(0));
}

#[test]
fn memory_that_jobs_share_is_less_by_what_they_need() {
    let shared = Executor { free_memory: FreeMemory::Shared(1_000), ..executor() };
    let standing = |ours, ours_mib| Standing { ours, ours_mib, ..Standing::default() };
    let lacks = vec![(0, Reason::Memory { needed_mib: 600, free_mib: 500 })];
    assert_eq!(ask(&[], 600, &[(shared.clone(), standing(1, 500), 0, None)]), Placement::Waits(lacks));
    assert_eq!(ask(&[], 600, &[(shared.clone(), standing(1, 400), 0, None)]), Placement::Placed(0));
    assert_eq!(ask(&[], 6_000, &[(shared, standing(0, 0), 0, None)]), Placement::Placed(0), "nothing runs there");
}
