//! Where the time of a build went: what its end waited for, and which of its runs were side by side.

/// The chain of derivations that the end of a build waited for, first to last: the one that ended last, before it the one
/// of those it waited for that ended last, and so on. O(derivations + edges).
///
/// `deps[n]` are those that n waited for; `ended_ms[n]` is when n ended, if it has.
pub fn critical_path(deps: &[&[u32]], ended_ms: &[Option<u64>]) -> Vec<u32> {
    let last_of = |among: &mut dyn Iterator<Item = u32>| {
        let ended = among.filter_map(|n| Some((ended_ms.get(n as usize).copied().flatten()?, n)));
        ended.max_by_key(|(ms, n)| (*ms, std::cmp::Reverse(*n))).map(|(_, n)| n)
    };
    let mut path = Vec::new();
    let mut next = last_of(&mut (0..).take(deps.len()));
    // What waits in a circle, as in no graph that is valid, has not ended; the bound holds whatever is passed in.
    while let Some(n) = next.filter(|_| path.len() < deps.len()) {
        path.push(n);
        next = last_of(&mut deps[n as usize].iter().copied());
    }
    path.reverse();
    path
}

/// For each run, from and to when, the lowest slot that is free then: as many slots as there are runs at a time. Those that
/// only touch are not at the same time. O(runs * slots).
pub fn slots(runs: &[(u64, u64)]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by_key(|&n| runs[n]);
    let mut free_from: Vec<u64> = Vec::new();
    let mut slots = vec![0; runs.len()];
    for n in order {
        let (from, to) = runs[n];
        let slot = free_from.iter().position(|free| *free <= from).unwrap_or_else(|| {
            free_from.push(0);
            free_from.len() - 1
        });
        free_from[slot] = to.max(from);
        slots[n] = slot as u32;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_end_is_followed_back_through_what_ended_last() {
        // 0 and 1 before 2; 3 by itself; 4 has not ended and waits for all.
        let deps: [&[u32]; 5] = [&[], &[], &[0, 1], &[], &[2, 3]];
        assert_eq!(critical_path(&deps, &[Some(5), Some(9), Some(20), Some(15), None]), [1, 2]);
        assert_eq!(critical_path(&deps, &[Some(5), Some(9), Some(20), Some(30), None]), [3]);
        assert_eq!(critical_path(&deps, &[None; 5]), [] as [u32; 0]);
        assert_eq!(critical_path(&[&[0]], &[Some(1)]), [0], "a circle ends");
    }

    proptest! {
        #[test]
        fn runs_in_one_slot_follow_each_other(runs in prop::collection::vec((0u64..50, 1u64..20), 0..40)) {
            let runs: Vec<(u64, u64)> = runs.into_iter().map(|(from, took)| (from, from + took)).collect();
            let slots = slots(&runs);
            for (a, b) in (0..runs.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
                let apart = runs[a].1 <= runs[b].0 || runs[b].1 <= runs[a].0;
                prop_assert!(slots[a] != slots[b] || apart);
            }
            let busiest = (0..70).map(|ms| runs.iter().filter(|(from, to)| (*from..*to).contains(&ms)).count()).max();
            let used = slots.iter().max().map_or(0, |slot| *slot as usize + 1);
            prop_assert_eq!(used, busiest.unwrap_or(0));
        }
    }
}
