use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn wanted(key: u8, references: &[u8]) -> Wanted<u8> {
    Wanted { key, references: references.to_vec() }
}

#[test]
fn a_path_waits_for_what_it_refers_to() {
    let mut fetches = Fetches::new(2);
    assert_eq!(fetches.want(vec![wanted(1, &[]), wanted(2, &[1, 2])]), [Action::Download(1), Action::Download(2)]);
    assert_eq!(fetches.downloaded(&2), []);
    assert_eq!(fetches.downloaded(&1), [Action::Commit(1)]);
    assert_eq!(fetches.committed(&1), [Action::Settled { key: 1, is_valid: true }, Action::Commit(2)]);
    assert_eq!(fetches.committed(&2), [Action::Settled { key: 2, is_valid: true }]);
    assert!(!fetches.contains(&1) && !fetches.contains(&2));
}

#[test]
fn what_is_wanted_twice_is_fetched_once() {
    let mut fetches = Fetches::new(2);
    assert_eq!(fetches.want(vec![wanted(1, &[])]), [Action::Download(1)]);
    assert_eq!(fetches.want(vec![wanted(1, &[]), wanted(2, &[1])]), [Action::Download(2)]);
}

#[test]
fn what_nobody_wants_is_not_begun() {
    let mut fetches = Fetches::new(1);
    fetches.want(vec![wanted(1, &[])]);
    fetches.want(vec![wanted(2, &[]), wanted(3, &[2])]);
    fetches.withdraw(&2);
    assert!(fetches.contains(&2), "it is needed for another");
    fetches.withdraw(&3);
    assert!(!fetches.contains(&2) && !fetches.contains(&3));
    fetches.withdraw(&1);
    assert!(fetches.contains(&1), "it was begun");
}

proptest! {
    /// Random closures, random failures, random withdrawals, work done in random order.
    #[test]
    fn everything_is_settled_once_and_in_order(
        closures in prop::collection::vec(prop::collection::vec((0u8..16, prop::collection::vec(0u8..16, 0..4)), 1..8), 1..5),
        failing in prop::collection::btree_set(0u8..16, 0..4),
        leaving in prop::collection::vec(0u8..16, 0..6),
        slots in 1usize..4,
        picks in prop::collection::vec(any::<prop::sample::Index>(), 400),
    ) {
        let mut fetches = Fetches::new(slots);
        let mut to_do: Vec<Action<u8>> = Vec::new();
        let mut settled: BTreeMap<u8, bool> = BTreeMap::new();
        let mut references: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
        let mut wanted_keys = BTreeSet::new();
        for closure in closures {
            // A path refers only to lower ones, and the same path always to the same.
            let mut paths: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
            for (key, below) in closure {
                let below: BTreeSet<u8> = below.into_iter().filter(|reference| *reference < key).collect();
                let known = references.entry(key).or_insert(below).clone();
                let mut open = vec![(key, known)];
                while let Some((key, known)) = open.pop() {
                    open.extend(known.iter().map(|below| (*below, references.entry(*below).or_default().clone())));
                    paths.insert(key, known.into_iter().collect());
                }
            }
            wanted_keys.extend(paths.keys().copied());
            to_do.extend(fetches.want(paths.into_iter().map(|(key, below)| wanted(key, &below)).collect()));
        }
        let mut withdrawn = BTreeSet::new();
        for key in leaving {
            fetches.withdraw(&key);
            withdrawn.insert(key);
        }
        let mut pick = picks.into_iter();
        let mut downloads = BTreeSet::new();
        while !to_do.is_empty() {
            let Some(index) = pick.next() else { break };
            let action = to_do.swap_remove(index.index(to_do.len()));
            let next = match action {
                Action::Download(key) => {
                    prop_assert!(downloads.insert(key), "downloaded twice");
                    prop_assert!(fetches.counts().0 <= slots);
                    if failing.contains(&key) { fetches.failed(&key) } else { fetches.downloaded(&key) }
                }
                Action::Commit(key) => {
                    for below in &references[&key] {
                        prop_assert_eq!(settled.get(below), Some(&true), "{} before {}", key, below);
                    }
                    fetches.committed(&key)
                }
                Action::Settled { key, is_valid } => {
                    prop_assert_eq!(settled.insert(key, is_valid), None);
                    prop_assert!(!is_valid || !failing.contains(&key));
                    Vec::new()
                }
            };
            // What is settled is known at once, what is to be done takes its time.
            for action in next {
                match action {
                    Action::Settled { key, is_valid } => {
                        prop_assert_eq!(settled.insert(key, is_valid), None);
                        prop_assert!(!is_valid || !failing.contains(&key));
                    }
                    other => to_do.push(other),
                }
            }
        }
        for key in wanted_keys {
            prop_assert!(settled.contains_key(&key) || !fetches.contains(&key), "{} hangs", key);
            prop_assert!(settled.contains_key(&key) || !withdrawn.is_empty());
        }
        prop_assert_eq!(fetches.counts(), (0, 0));
    }
}
