use super::*;
use crate::can_run::Machine;
use crate::placement::{Executor, FreeMemory, Placement, Reason, Verdict};
use proptest::prelude::*;

#[path = "schedule_choosy_tests.rs"]
mod choosy;
#[path = "schedule_pick_tests.rs"]
mod pick;
#[path = "schedule_seconds_tests.rs"]
mod seconds;

type Schedule = super::Schedule<u32, u8>;
type Action = super::Action<u32, u8>;

const SYSTEM: &str = "x86_64-linux";
const DONE: End = End::Success { output_bytes: 0 };

fn words(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn executor(slots: u32) -> Executor {
    let machine = Machine { systems: words(&[SYSTEM]), features: words(&[]) };
    Executor { machine, slots, active: true, ..Executor::default() }
}

fn mesh(executors: &[(u8, Executor)]) -> Schedule {
    let mut schedule = Schedule::new();
    schedule.set_executors(executors.iter().cloned().collect(), 0);
    schedule
}

/// One executor, 0.
fn lone(slots: u32) -> Schedule {
    mesh(&[(0, executor(slots))])
}

fn node(key: u32, deps: &[u32]) -> Node<u32> {
    let requirement = Requirement { system: SYSTEM.into(), ..Requirement::default() };
    Node { key, deps: deps.to_vec(), estimate_ms: 1, has_estimate: false, requirement, memory_mib: 0 }
}

fn terms(keep_going: bool) -> Terms {
    Terms { keep_going, ..Terms::default() }
}

/// What is started, and where.
fn starts(actions: &[Action]) -> Vec<(u32, u8)> {
    actions.iter().filter_map(|a| if let Action::Start { key, at } = a { Some((*key, *at)) } else { None }).collect()
}

/// Submits with all nodes as goals, at 0.
fn submit(schedule: &mut Schedule, nodes: Vec<Node<u32>>) -> (RequestId, Vec<(u32, u8)>) {
    let goals = nodes.iter().map(|node| node.key).collect();
    let (request, actions) = schedule.submit(nodes, goals, terms(true), 0);
    (request, starts(&actions))
}

#[test]
fn the_longest_chain_starts_first() {
    let mut schedule = lone(1);
    let nodes = vec![node(1, &[]), node(2, &[]), node(3, &[2]), node(4, &[3])];
    let (_, actions) = schedule.submit(nodes, BTreeSet::from([1, 4]), terms(false), 0);
    assert_eq!(starts(&actions), [(2, 0)]);
    assert_eq!(starts(&schedule.ended(&2, &0, DONE, 0)), [(3, 0)]);
}

#[test]
fn a_shared_job_runs_once_and_answers_both() {
    let mut schedule = lone(4);
    let (first, actions) = schedule.submit(vec![node(1, &[])], BTreeSet::from([1]), terms(false), 0);
    assert_eq!(starts(&actions), [(1, 0)]);
    let graph = vec![node(1, &[]), node(2, &[1])];
    let (second, actions) = schedule.submit(graph, BTreeSet::from([1, 2]), terms(false), 0);
    assert!(starts(&actions).is_empty());
    assert_eq!(
        schedule.ended(&1, &0, DONE, 0),
        [
            Action::Answer { request: first, key: 1, answer: Answer::Done },
            Action::Answer { request: second, key: 1, answer: Answer::Done },
            Action::Start { key: 2, at: 0 },
        ]
    );
}

#[test]
fn a_leaving_client_stops_only_what_nobody_else_wants() {
    let mut schedule = lone(4);
    let (first, _) = schedule.submit(vec![node(1, &[]), node(2, &[])], BTreeSet::from([1, 2]), terms(false), 0);
    schedule.submit(vec![node(2, &[])], BTreeSet::from([2]), terms(false), 0);
    assert_eq!(schedule.cancel(first, 0), [Action::Stop { key: 1, at: 0 }]);
    assert_eq!(schedule.ended(&1, &0, End::Failed, 0), []);
    assert_eq!(schedule.running(), 1);
}

#[test]
fn wanted_again_while_stopping_runs_again() {
    let mut schedule = lone(1);
    let (first, _) = schedule.submit(vec![node(1, &[])], BTreeSet::from([1]), terms(false), 0);
    assert_eq!(schedule.cancel(first, 0), [Action::Stop { key: 1, at: 0 }]);
    let (second, actions) = schedule.submit(vec![node(1, &[])], BTreeSet::from([1]), terms(false), 0);
    assert_eq!(actions, []);
    assert_eq!(schedule.ended(&1, &0, End::Failed, 0), [Action::Start { key: 1, at: 0 }]);
    assert_eq!(schedule.ended(&1, &0, DONE, 0), [Action::Answer { request: second, key: 1, answer: Answer::Done }]);
}

#[test]
fn a_failure_dooms_what_needs_it_and_without_keep_going_the_rest() {
    let graph = || vec![node(1, &[]), node(2, &[1]), node(3, &[])];
    let goals = || BTreeSet::from([2, 3]);
    let mut schedule = lone(1);
    let (request, _) = schedule.submit(graph(), goals(), terms(false), 0);
    assert_eq!(
        schedule.ended(&1, &0, End::Failed, 0),
        [
            Action::Answer { request, key: 2, answer: Answer::DependencyFailed { failed: 1 } },
            Action::Answer { request, key: 3, answer: Answer::Abandoned { failed: 1 } },
        ]
    );
    let mut schedule = lone(1);
    let (request, _) = schedule.submit(graph(), goals(), terms(true), 0);
    assert_eq!(
        schedule.ended(&1, &0, End::Failed, 0),
        [
            Action::Answer { request, key: 2, answer: Answer::DependencyFailed { failed: 1 } },
            Action::Start { key: 3, at: 0 }
        ]
    );
}

#[test]
fn dependants_go_where_their_inputs_are() {
    let mut schedule = mesh(&[(1, executor(2)), (2, executor(2))]);
    let (_, started) = submit(&mut schedule, vec![node(1, &[]), node(2, &[]), node(3, &[1]), node(4, &[2])]);
    assert_eq!(started, [(1, 1), (2, 2)]);
    let large = || End::Success { output_bytes: 1 << 30 };
    assert_eq!(starts(&schedule.ended(&2, &2, large(), 0)), [(4, 2)]);
    assert_eq!(starts(&schedule.ended(&1, &1, large(), 0)), [(3, 1)]);
}

#[test]
fn what_runs_at_an_executor_for_others_begins_there_without_a_place() {
    let mut schedule = lone(1);
    let (_, started) = submit(&mut schedule, vec![node(1, &[]), node(2, &[]), node(3, &[2])]);
    assert_eq!(started, [(2, 0)]);
    assert_eq!(schedule.join(&3, &0, 0), [], "it waits for another job");
    assert_eq!(schedule.join(&1, &9, 0), [], "no such executor");
    assert_eq!(starts(&schedule.join(&1, &0, 0)), [(1, 0)]);
    assert_eq!(schedule.join(&1, &0, 0), [], "it runs");
    assert_eq!(starts(&schedule.ended(&2, &0, DONE, 0)), [], "the other has the only place now");
    assert_eq!(starts(&schedule.ended(&1, &0, DONE, 0)), [(3, 0)]);
}

#[test]
fn what_was_lost_runs_elsewhere_and_is_given_up_in_the_end() {
    let mut schedule = mesh(&[(1, executor(1)), (2, executor(1))]);
    let (request, started) = submit(&mut schedule, vec![node(1, &[]), node(2, &[1])]);
    assert_eq!(started, [(1, 1)]);
    assert_eq!(starts(&schedule.ended(&1, &1, End::Lost, 0)), [(1, 2)]);
    let (mut now_ms, mut at, mut tries) = (0, 2, 2);
    loop {
        let actions = schedule.ended(&1, &at, End::Lost, now_ms);
        if !actions.is_empty() {
            let failed = Answer::DependencyFailed { failed: 1 };
            let given_up = Answer::GivenUp { tries: TRIES_MAX };
            let answer = |key, answer| Action::Answer { request, key, answer };
            assert_eq!((tries, actions), (TRIES_MAX, vec![answer(1, given_up), answer(2, failed)]));
            return;
        }
        // Both have failed with it: it is tried again there, but not at once.
        let later = schedule.next_tick_ms().expect("a time");
        assert!(later > now_ms);
        now_ms = later;
        let started = starts(&schedule.tick(now_ms));
        if let Some((_, node)) = started.first() {
            (at, tries) = (*node, tries + 1);
        } else {
            panic!("nothing starts at {now_ms}");
        }
    }
}

#[test]
fn what_ran_at_an_executor_that_is_gone_is_placed_again_and_a_late_success_counts() {
    let mut schedule = mesh(&[(1, executor(1)), (2, executor(1))]);
    let (request, started) = submit(&mut schedule, vec![node(1, &[])]);
    assert_eq!(started, [(1, 1)]);
    assert_eq!(starts(&schedule.set_executor(1, None, 0)), [(1, 2)]);
    assert_eq!(schedule.ended(&1, &1, End::Lost, 0), [], "which was known");
    let answer = Action::Answer { request, key: 1, answer: Answer::Done };
    assert_eq!(schedule.ended(&1, &1, DONE, 0), [answer, Action::Stop { key: 1, at: 2 }]);
    assert_eq!(schedule.ended(&1, &2, End::Failed, 0), []);
    assert_eq!((schedule.running(), schedule.waiting()), (0, 0));
}

#[test]
fn nothing_is_stopped_at_an_executor_that_is_gone() {
    let mut schedule = lone(2);
    let (request, _) = schedule.submit(vec![node(1, &[]), node(2, &[])], BTreeSet::from([1, 2]), terms(false), 0);
    let mut now_ms = 0;
    for _ in 1..TRIES_MAX {
        assert_eq!(schedule.ended(&1, &0, End::Lost, now_ms), []);
        now_ms = schedule.next_tick_ms().expect("a time");
        assert_eq!(starts(&schedule.tick(now_ms)), [(1, 0)]);
    }
    let answer = |key, answer| Action::Answer { request, key, answer };
    assert_eq!(
        schedule.set_executor(0, None, now_ms),
        [answer(1, Answer::GivenUp { tries: TRIES_MAX }), answer(2, Answer::Abandoned { failed: 1 })]
    );
    assert_eq!((schedule.running(), schedule.waiting()), (0, 0));
}

#[test]
fn an_executor_that_is_full_is_left_alone_until_then() {
    let mut schedule = mesh(&[(1, executor(8))]);
    submit(&mut schedule, vec![node(1, &[])]);
    let full = |until_ms| End::Refused { text: "full".into(), full_until_ms: Some(until_ms) };
    assert_eq!(schedule.ended(&1, &1, full(700), 0), []);
    let (_, started) = submit(&mut schedule, vec![node(2, &[])]);
    assert_eq!(started, []);
    let refused = Reason::Refused { text: "full".into(), again_in_ms: 700 };
    assert_eq!(schedule.placement(&2, 0), Some(Placement::Waits(vec![(1, refused)])));
    assert_eq!(schedule.next_tick_ms(), Some(700));
    assert_eq!(starts(&schedule.tick(699)), []);
    assert_eq!(starts(&schedule.tick(700)), [(1, 1), (2, 1)]);
    assert_eq!(starts(&schedule.ended(&2, &1, full(0), 700)), []);
    assert_eq!(starts(&schedule.tick(700 + REFUSAL_MS_MIN)), [(2, 1)]);
    assert_eq!(schedule.ended(&1, &1, full(u64::MAX), 700), []);
    assert_eq!(starts(&schedule.tick(700 + REFUSAL_BELIEVED_MS)), [(1, 1)]);
}

#[test]
fn the_word_of_others_about_load_holds_for_a_time_and_counts_no_job_twice() {
    let busy = Executor { running: 2, ..executor(2) };
    let mut schedule = mesh(&[(1, busy.clone())]);
    let (_, started) = submit(&mut schedule, vec![node(1, &[]), node(2, &[]), node(3, &[])]);
    assert_eq!(started, []);
    assert_eq!(schedule.next_tick_ms(), Some(LOAD_BELIEVED_MS));
    assert_eq!(starts(&schedule.tick(LOAD_BELIEVED_MS)), [(1, 1), (2, 1)]);
    schedule.set_executor(1, Some(Executor { running: 0, ..busy.clone() }), LOAD_BELIEVED_MS + 1);
    // It tells of both late, when one of them is over.
    assert_eq!(starts(&schedule.ended(&1, &1, DONE, LOAD_BELIEVED_MS + 2)), [(3, 1)]);
    assert_eq!(starts(&schedule.set_executor(1, Some(busy), LOAD_BELIEVED_MS + 3)), []);
    let (_, started) = submit(&mut schedule, vec![node(4, &[])]);
    assert_eq!(started, []);
    assert_eq!(starts(&schedule.ended(&2, &1, DONE, LOAD_BELIEVED_MS + 4)), [(4, 1)]);
}

#[test]
fn what_nobody_can_run_is_said_at_once_and_runs_when_somebody_comes() {
    let mut schedule = lone(1);
    let riscv = Requirement { system: "riscv64-linux".into(), ..Requirement::default() };
    let graph = || vec![Node { requirement: riscv.clone(), ..node(1, &[]) }];
    let (request, actions) = schedule.submit(graph(), BTreeSet::from([1]), terms(false), 0);
    assert_eq!(actions, [Action::Nowhere { key: 1 }]);
    assert!(matches!(schedule.placement(&1, 0), Some(Placement::Nowhere(reasons)) if reasons.len() == 1));
    let other =
        Executor { machine: Machine { systems: words(&["riscv64-linux"]), ..Machine::default() }, ..executor(1) };
    assert_eq!(starts(&schedule.set_executor(7, Some(other), 0)), [(1, 7)]);
    // A job that runs is not given up.
    assert_eq!(schedule.give_up(&1, 0), []);
    assert_eq!(schedule.set_executor(7, None, 0), [Action::Nowhere { key: 1 }]);
    assert_eq!(schedule.give_up(&1, 0), [Action::Answer { request, key: 1, answer: Answer::Failed }]);
    assert_eq!((schedule.running(), schedule.waiting()), (0, 0));
}

#[test]
fn a_job_that_nobody_can_take_now_does_not_block_those_below_it() {
    let small = Executor { free_memory: FreeMemory::Told(1_000), ..executor(2) };
    let mut schedule = mesh(&[(1, small)]);
    let (_, started) = submit(&mut schedule, vec![node(1, &[])]);
    assert_eq!(started, [(1, 1)]);
    let hungry = |key| Node { memory_mib: 4_000, estimate_ms: 1_000, ..node(key, &[]) };
    let (_, started) = submit(&mut schedule, vec![hungry(2), hungry(3), node(4, &[])]);
    assert_eq!(started, [(4, 1)]);
    let lacks = Reason::Memory { needed_mib: 4_000, free_mib: 1_000 };
    assert_eq!(starts(&schedule.ended(&1, &1, DONE, 0)), []);
    assert_eq!(schedule.placement(&2, 0), Some(Placement::Waits(vec![(1, lacks)])));
    // Where nothing else runs an estimate keeps nothing out.
    assert_eq!(starts(&schedule.ended(&4, &1, DONE, 0)), [(2, 1)]);
}

#[test]
fn what_ran_out_of_memory_is_tried_again_with_twice_as_much() {
    let roomy = |free_mib| Executor { free_memory: FreeMemory::Told(free_mib), ..executor(2) };
    let mut schedule = mesh(&[(1, roomy(1_000)), (2, roomy(8_000))]);
    let (_, started) = submit(&mut schedule, vec![node(1, &[]), node(2, &[]), node(3, &[])]);
    assert_eq!(started, [(1, 1), (2, 2), (3, 1)]);
    assert_eq!(starts(&schedule.ended(&1, &1, End::OutOfMemory { used_mib: 900 }, 0)), [(1, 2)]);
}

#[test]
fn a_small_request_is_not_behind_a_large_one_nor_a_person_behind_a_machine() {
    let mut schedule = lone(2);
    let large: Vec<Node<u32>> = (0..100).map(|key| Node { estimate_ms: 1_000, ..node(key, &[]) }).collect();
    let (_, started) = submit(&mut schedule, large);
    assert_eq!(started, [(0, 0), (1, 0)]);
    let detached = Terms { priority: Priority::Detached, ..Terms::default() };
    schedule.submit(vec![node(300, &[])], BTreeSet::from([300]), detached, 0);
    submit(&mut schedule, vec![node(200, &[])]);
    assert_eq!(starts(&schedule.ended(&0, &0, DONE, 0)), [(200, 0)]);
    assert_eq!(starts(&schedule.ended(&1, &0, DONE, 0)), [(2, 0)]);
    assert_eq!(starts(&schedule.ended(&200, &0, DONE, 0)), [(3, 0)]);
}

/// One step of a random run: what is done to the schedule.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        edges: Vec<(u8, u8)>,
        goals: Vec<u8>,
        keep_going: bool,
    },
    End {
        which: u8,
        how: u8,
    },
    Cancel {
        which: u8,
    },
    /// An executor comes, tells something else, or goes.
    Tell {
        which: u8,
        slots: Option<u32>,
        running: u32,
    },
    Wait {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let submit =
        (prop::collection::vec((0u8..20, 0u8..20), 0..30), prop::collection::vec(0u8..20, 1..4), any::<bool>())
            .prop_map(|(edges, goals, keep_going)| Step::Submit { edges, goals, keep_going });
    let end = (any::<u8>(), 0u8..10).prop_map(|(which, how)| Step::End { which, how });
    let tell = (0..EXECUTORS, prop::option::weighted(0.7, 0u32..4), 0u32..4)
        .prop_map(|(which, slots, running)| Step::Tell { which, slots, running });
    let cancel = any::<u8>().prop_map(|which| Step::Cancel { which });
    let wait = (0u64..5_000).prop_map(|ms| Step::Wait { ms });
    prop_oneof![2 => submit, 8 => end, 1 => cancel, 2 => tell, 2 => wait]
}

/// What an observer of the actions knows; checks the invariants of the module's header.
#[derive(Default)]
struct Observer {
    running: BTreeMap<u32, u8>,
    slots: BTreeMap<u8, u32>,
    open: BTreeMap<RequestId, BTreeSet<u32>>,
    now_ms: u64,
}

impl Observer {
    fn see(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start { key, at } => {
                    assert_eq!(self.running.insert(key, at), None, "{key} started twice");
                    let ours = self.running.values().filter(|node| **node == at).count();
                    assert!(ours as u32 <= self.slots[&at], "{at} is full");
                }
                Action::Second { key, .. } => panic!("{key} is started twice, and nobody looked for what is late"),
                Action::Stop { key, at } => assert_eq!(self.running.get(&key), Some(&at), "stopped while not running"),
                Action::Nowhere { .. } => assert!(self.slots.values().all(|slots| *slots == 0), "any can run it"),
                Action::Answer { request, key, .. } => {
                    let goals = self.open.get_mut(&request).expect("answer to a closed request");
                    assert!(goals.remove(&key), "goal {key} answered twice");
                    if goals.is_empty() {
                        self.open.remove(&request);
                    }
                }
            }
        }
    }

    fn tell(&mut self, schedule: &mut Schedule, which: u8, slots: Option<u32>, running: u32) {
        match slots {
            Some(slots) => drop(self.slots.insert(which, slots)),
            None => {
                self.slots.remove(&which);
                self.running.retain(|_, at| *at != which);
            }
        }
        let told = slots.map(|slots| Executor { running, ..executor(slots) });
        let actions = schedule.set_executor(which, told, self.now_ms);
        self.see(actions);
    }

    fn end(&mut self, schedule: &mut Schedule, which: u8, how: u8) {
        let Some((&key, &at)) = self.running.iter().nth(usize::from(which) % self.running.len().max(1)) else { return };
        let text = || "no".to_owned();
        let end = match how {
            0 => End::Failed,
            1 => End::Lost,
            2 => End::OutOfMemory { used_mib: 10 },
            3 => End::Refused { text: text(), full_until_ms: None },
            4 => End::Refused { text: text(), full_until_ms: Some(self.now_ms + 1_000) },
            how => End::Success { output_bytes: u64::from(how) << 24 },
        };
        self.running.remove(&key);
        let actions = schedule.ended(&key, &at, end, self.now_ms);
        self.see(actions);
    }
}

const EXECUTORS: u8 = 4;

/// Twenty nodes, in which edges lead from greater to lesser ones.
fn graph(edges: &[(u8, u8)]) -> Vec<Node<u32>> {
    let deps = |n| edges.iter().filter(move |&&(a, b)| a == n && b < a).map(|&(_, b)| b.into()).collect();
    (0..20u8).map(|n| Node { deps: deps(n), estimate_ms: u64::from(n) % 7, ..node(n.into(), &[]) }).collect()
}

proptest! {
    #[test]
    fn every_goal_is_answered_once_and_nothing_is_left(steps in prop::collection::vec(step(), 1..100)) {
        let mut schedule = Schedule::new();
        let mut seen = Observer::default();
        seen.tell(&mut schedule, 0, Some(2), 0);
        for step in steps {
            match step {
                Step::Submit { edges, goals, keep_going } => {
                    let goals: BTreeSet<u32> = goals.into_iter().map(u32::from).collect();
                    let (request, actions) = schedule.submit(graph(&edges), goals.clone(), terms(keep_going), seen.now_ms);
                    seen.open.insert(request, goals);
                    seen.see(actions);
                }
                Step::End { which, how } => seen.end(&mut schedule, which, how),
                Step::Cancel { which } => {
                    let Some(&request) = seen.open.keys().nth(usize::from(which) % seen.open.len().max(1)) else { continue };
                    seen.open.remove(&request);
                    let actions = schedule.cancel(request, seen.now_ms);
                    seen.see(actions);
                }
                Step::Tell { which, slots, running } => seen.tell(&mut schedule, which, slots, running),
                Step::Wait { ms } => {
                    seen.now_ms += ms;
                    let actions = schedule.tick(seen.now_ms);
                    seen.see(actions);
                }
            }
        }
        seen.tell(&mut schedule, 0, Some(5), 0);
        while schedule.running() + schedule.waiting() > 0 {
            match (seen.running.is_empty(), schedule.next_tick_ms()) {
                (false, _) => seen.end(&mut schedule, 0, 9),
                (true, Some(ms)) => {
                    seen.now_ms = ms;
                    let actions = schedule.tick(ms);
                    seen.see(actions);
                }
                (true, None) => prop_assert!(false, "nothing would ever happen"),
            }
        }
        prop_assert!(seen.open.is_empty(), "goals left open: {:?}", seen.open);
    }
}

/// What is told of a job's executors, in short.
fn kinds(executors: Vec<(u8, Verdict)>) -> Vec<(u8, &'static str)> {
    executors.into_iter().map(|(node, verdict)| (node, verdict.kind())).collect()
}

#[test]
fn a_job_is_explained_wherever_it_is_in_its_life() {
    let able = Machine { systems: words(&[SYSTEM]), features: words(&["kvm"]) };
    let mut schedule = mesh(&[(1, Executor { machine: able, ..executor(1) }), (2, executor(1))]);
    let kvm = Requirement { system: SYSTEM.into(), features: words(&["kvm"]) };
    let picky = |key, deps: &[u32]| Node { requirement: kvm.clone(), ..node(key, deps) };
    assert_eq!(submit(&mut schedule, vec![picky(1, &[])]).1, [(1, 1)]);
    submit(&mut schedule, vec![picky(2, &[]), picky(3, &[]), picky(4, &[2, 3])]);
    let Some(Explanation::Runs { at: 1, why }) = schedule.explain(&1, 0) else { panic!("it does not run") };
    assert_eq!(kinds(why), [(1, "ranked"), (2, "unfit")]);
    let Some(Explanation::Place { before: 1, executors }) = schedule.explain(&3, 0) else { panic!("it has a place") };
    assert_eq!(kinds(executors), [(1, "no-slot"), (2, "unfit")]);
    assert_eq!(schedule.explain(&4, 0), Some(Explanation::Inputs { named: vec![2, 3], count: 2 }));
    let full = End::Refused { text: "full".into(), full_until_ms: Some(900) };
    schedule.ended(&1, &1, full, 0);
    let Some(Explanation::Place { before: 0, executors }) = schedule.explain(&1, 0) else { panic!("it has a place") };
    assert_eq!(kinds(executors), [(1, "refused"), (2, "unfit")]);
    assert!(schedule.why(&1).is_empty(), "of what does not run nothing is remembered");
    assert_eq!(schedule.explain(&5, 0), None);
}

#[test]
fn what_is_stopped_says_so_until_it_has() {
    let mut schedule = lone(1);
    let (request, _) = submit(&mut schedule, vec![node(1, &[])]);
    schedule.cancel(request, 0);
    assert_eq!(schedule.explain(&1, 0), Some(Explanation::Stops { at: 0 }));
    schedule.ended(&1, &0, End::Failed, 0);
    assert_eq!(schedule.explain(&1, 0), None);
}

#[test]
fn of_a_large_mesh_the_best_executors_are_remembered() {
    let members: Vec<(u8, Executor)> = (0..100).map(|id| (id, Executor { pressure: id, ..executor(1) })).collect();
    let mut schedule = mesh(&members);
    let (_, started) = submit(&mut schedule, vec![node(1, &[])]);
    assert_eq!(started, [(1, 0)]);
    let why = schedule.why(&1);
    assert_eq!(why.iter().map(|(node, _)| *node).collect::<Vec<_>>(), (0..WHY_MAX as u8).collect::<Vec<_>>());
}

/// A thousand chains of a thousand, and one above them all.
#[test]
fn a_graph_of_a_million_is_taken_and_dropped() {
    const CHAINS: u32 = 1_024;
    const ALL: u32 = CHAINS * CHAINS;
    let mut schedule = lone(4);
    let chained = (0..ALL).map(|key| if key < CHAINS { node(key, &[]) } else { node(key, &[key - CHAINS]) });
    let top = node(ALL, &(ALL - CHAINS..ALL).collect::<Vec<u32>>());
    let nodes: Vec<Node<u32>> = chained.chain([top]).collect();
    assert_eq!(nodes.len(), 1_048_577);
    let (request, actions) = schedule.submit(nodes, BTreeSet::from([ALL]), terms(true), 0);
    let started = starts(&actions);
    assert_eq!((started.len(), schedule.waiting()), (4, 1_048_573));
    let actions = schedule.ended(&started[0].0, &0, DONE, 1);
    assert_eq!(starts(&actions).len(), 1);
    let stops = schedule.cancel(request, 2).iter().filter(|action| matches!(action, Action::Stop { .. })).count();
    assert_eq!((stops, schedule.waiting()), (4, 0));
}
