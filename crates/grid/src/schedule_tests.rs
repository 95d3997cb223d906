use super::*;
use proptest::prelude::*;

fn node(key: u32, deps: &[u32]) -> Node<u32> {
    Node { key, deps: deps.to_vec(), estimate_ms: 1 }
}

fn starts(actions: &[Action<u32>]) -> Vec<u32> {
    actions.iter().filter_map(|a| if let Action::Start(k) = a { Some(*k) } else { None }).collect()
}

#[test]
fn the_longest_chain_starts_first() {
    let mut schedule = Schedule::new(1);
    let nodes = vec![node(1, &[]), node(2, &[]), node(3, &[2]), node(4, &[3])];
    let (_, actions) = schedule.submit(nodes, BTreeSet::from([1, 4]), false);
    assert_eq!(starts(&actions), [2]);
    assert_eq!(starts(&schedule.finished(&2, true)), [3]);
}

#[test]
fn a_shared_job_runs_once_and_answers_both() {
    let mut schedule = Schedule::new(4);
    let (first, actions) = schedule.submit(vec![node(1, &[])], BTreeSet::from([1]), false);
    assert_eq!(starts(&actions), [1]);
    let (second, actions) = schedule.submit(vec![node(1, &[]), node(2, &[1])], BTreeSet::from([1, 2]), false);
    assert!(starts(&actions).is_empty());
    assert_eq!(
        schedule.finished(&1, true),
        [
            Action::Answer { request: first, key: 1, answer: Answer::Done },
            Action::Answer { request: second, key: 1, answer: Answer::Done },
            Action::Start(2),
        ]
    );
}

#[test]
fn a_leaving_client_stops_only_what_nobody_else_wants() {
    let mut schedule = Schedule::new(4);
    let (first, _) = schedule.submit(vec![node(1, &[]), node(2, &[])], BTreeSet::from([1, 2]), false);
    schedule.submit(vec![node(2, &[])], BTreeSet::from([2]), false);
    assert_eq!(schedule.cancel(first), [Action::Stop(1)]);
    assert_eq!(schedule.finished(&1, false), []);
    assert_eq!(schedule.running(), 1);
}

#[test]
fn wanted_again_while_stopping_runs_again() {
    let mut schedule = Schedule::new(1);
    let (first, _) = schedule.submit(vec![node(1, &[])], BTreeSet::from([1]), false);
    assert_eq!(schedule.cancel(first), [Action::Stop(1)]);
    let (second, actions) = schedule.submit(vec![node(1, &[])], BTreeSet::from([1]), false);
    assert_eq!(actions, []);
    assert_eq!(schedule.finished(&1, false), [Action::Start(1)]);
    assert_eq!(schedule.finished(&1, true), [Action::Answer { request: second, key: 1, answer: Answer::Done }]);
}

#[test]
fn a_failure_dooms_what_needs_it_and_without_keep_going_the_rest() {
    let graph = || vec![node(1, &[]), node(2, &[1]), node(3, &[])];
    let goals = || BTreeSet::from([2, 3]);
    let mut schedule = Schedule::new(1);
    let (request, _) = schedule.submit(graph(), goals(), false);
    assert_eq!(
        schedule.finished(&1, false),
        [
            Action::Answer { request, key: 2, answer: Answer::DependencyFailed { failed: 1 } },
            Action::Answer { request, key: 3, answer: Answer::Abandoned { failed: 1 } },
        ]
    );
    let mut schedule = Schedule::new(1);
    let (request, _) = schedule.submit(graph(), goals(), true);
    assert_eq!(
        schedule.finished(&1, false),
        [Action::Answer { request, key: 2, answer: Answer::DependencyFailed { failed: 1 } }, Action::Start(3)]
    );
}

/// One step of a random run: what is done to the schedule.
#[derive(Clone, Debug)]
enum Step {
    Submit { edges: Vec<(u8, u8)>, goals: Vec<u8>, keep_going: bool },
    Finish { which: u8, success: bool },
    Cancel { which: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let submit =
        (prop::collection::vec((0u8..20, 0u8..20), 0..30), prop::collection::vec(0u8..20, 1..4), any::<bool>())
            .prop_map(|(edges, goals, keep_going)| Step::Submit { edges, goals, keep_going });
    let finish = (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(which, success)| Step::Finish { which, success });
    prop_oneof![1 => submit, 4 => finish, 1 => any::<u8>().prop_map(|which| Step::Cancel { which })]
}

/// What an observer of the actions knows; checks the invariants of the module's header.
#[derive(Default)]
struct Observer {
    running: BTreeSet<u32>,
    open: BTreeMap<RequestId, BTreeSet<u32>>,
}

impl Observer {
    fn see(&mut self, slots: usize, actions: Vec<Action<u32>>) {
        for action in actions {
            match action {
                Action::Start(key) => assert!(self.running.insert(key), "{key} started twice"),
                Action::Stop(key) => assert!(self.running.contains(&key), "{key} stopped while not running"),
                Action::Answer { request, key, .. } => {
                    let goals = self.open.get_mut(&request).expect("answer to a closed request");
                    assert!(goals.remove(&key), "goal {key} answered twice");
                    if goals.is_empty() {
                        self.open.remove(&request);
                    }
                }
            }
        }
        assert!(self.running.len() <= slots);
    }
}

proptest! {
    #[test]
    fn every_goal_is_answered_once_and_nothing_is_left(steps in prop::collection::vec(step(), 1..60), slots in 1usize..4) {
        let mut schedule = Schedule::new(slots);
        let mut seen = Observer::default();
        for step in steps {
            match step {
                Step::Submit { edges, goals, keep_going } => {
                    let nodes: Vec<Node<u32>> = (0..20u8)
                        .map(|n| {
                            let deps = edges.iter().filter(|&&(a, b)| a == n && b < a).map(|&(_, b)| b.into());
                            Node { key: n.into(), deps: deps.collect(), estimate_ms: u64::from(n) % 7 }
                        })
                        .collect();
                    let goals: BTreeSet<u32> = goals.into_iter().map(u32::from).collect();
                    let (request, actions) = schedule.submit(nodes, goals.clone(), keep_going);
                    seen.open.insert(request, goals);
                    seen.see(slots, actions);
                }
                Step::Finish { which, success } => {
                    let Some(&key) = seen.running.iter().nth(usize::from(which) % seen.running.len().max(1)) else { continue };
                    seen.running.remove(&key);
                    let actions = schedule.finished(&key, success);
                    seen.see(slots, actions);
                }
                Step::Cancel { which } => {
                    let Some(&request) = seen.open.keys().nth(usize::from(which) % seen.open.len().max(1)) else { continue };
                    seen.open.remove(&request);
                    let actions = schedule.cancel(request);
                    seen.see(slots, actions);
                }
            }
        }
        while let Some(key) = seen.running.pop_first() {
            let actions = schedule.finished(&key, true);
            seen.see(slots, actions);
        }
        prop_assert!(seen.open.is_empty(), "goals left open: {:?}", seen.open);
        prop_assert_eq!(schedule.running() + schedule.waiting(), 0);
    }
}
