use super::*;
use crate::random::Random;
use proptest::prelude::*;

const LINUX: &str = "x86_64-linux";
const NOW_S: u64 = 1_000_000;

fn built(built_s: u64, duration_ms: u64, memory_mib: u64) -> Estimate {
    Estimate { built_s, duration_ms, memory_mib }
}

#[test]
fn versions_share_an_estimate_and_systems_lend_theirs() {
    let mut estimates = Estimates::default();
    assert_eq!(estimates.get("gcc-13.2.0.drv", LINUX), UNKNOWN);
    estimates.record("gcc-13.2.0.drv", LINUX, built(5, 9_000, 800));
    assert_eq!(estimates.get("gcc-14.1", LINUX), built(5, 9_000, 800));
    assert_eq!(estimates.get("gcc-14.1", "aarch64-linux"), built(5, 9_000, 800));
    assert_eq!(estimates.get("gcc-wrapper-14.1", LINUX), UNKNOWN);
}

#[test]
fn durations_follow_slowly_and_memory_rises_at_once() {
    let mut estimates = Estimates::default();
    estimates.record("gcc", LINUX, built(1, 8_000, 1_000));
    estimates.record("gcc", LINUX, built(2, 4_000, 3_000));
    assert_eq!(estimates.get("gcc", LINUX), built(2, 6_000, 3_000));
    estimates.record("gcc", LINUX, built(3, 6_000, 1_000));
    assert_eq!(estimates.get("gcc", LINUX), built(3, 6_000, 2_000));
    estimates.record("gcc", LINUX, built(4, 6_000, 0));
    assert_eq!(estimates.get("gcc", LINUX).memory_mib, 2_000, "which was not measured");
}

#[test]
fn those_built_longest_ago_are_forgotten_first() {
    let mut estimates = Estimates::default();
    let count = ESTIMATES_MAX as u64 + 10;
    (0..count).for_each(|n| estimates.record(&format!("p{n}"), LINUX, built(count - n, 7, 0)));
    assert_eq!(estimates.len(), ESTIMATES_MAX);
    assert_eq!(estimates.all().map(|(_, _, estimate, _)| estimate.built_s).min(), Some(11));
    assert_eq!(estimates.get("p0", LINUX).duration_ms, 7);
    assert_eq!(estimates.get(&format!("p{}", count - 1), LINUX), UNKNOWN);
}

#[test]
fn what_cannot_be_is_not_believed() {
    let mut estimates = Estimates::default();
    let lies = [
        built(NOW_S + AHEAD_S_MAX + 1, 5, 5),
        built(u64::MAX, 5, 5),
        built(NOW_S, HEARD_MS_MAX + 1, 5),
        built(NOW_S, 5, u64::MAX),
    ];
    assert!(lies.into_iter().all(|lie| !estimates.merge("gcc", LINUX, lie, NOW_S)));
    assert_eq!(estimates.get("gcc", LINUX), UNKNOWN);
    let latest = built(NOW_S + AHEAD_S_MAX, 5, 5);
    assert!(estimates.merge("gcc", LINUX, latest, NOW_S));
    assert!(!estimates.merge("gcc", LINUX, latest, NOW_S), "it is known");
    assert_eq!(estimates.get("gcc", LINUX).duration_ms, 5);
}

#[test]
fn a_name_is_never_empty() {
    let mut estimates = Estimates::default();
    estimates.record("-1.0", LINUX, built(1, 8_000, 0));
    assert_eq!(estimates.all().map(|(name, ..)| name).collect::<Vec<_>>(), ["-1.0"]);
    assert!(!estimates.merge("", LINUX, built(2, 5, 5), NOW_S));
    estimates.restore("", LINUX, built(2, 5, 5), None);
    assert_eq!((estimates.len(), estimates.get("-1.0.drv", LINUX)), (1, built(1, 8_000, 0)));
}

#[test]
fn what_was_built_in_the_future_is_built_now_the_next_time() {
    let mut estimates = Estimates::default();
    estimates.record("gcc", LINUX, built(NOW_S * 2, 8_000, 0));
    estimates.record("gcc", LINUX, built(NOW_S, 8_000, 0));
    assert_eq!(estimates.get("gcc", LINUX).built_s, NOW_S);
    estimates.merge("gcc", LINUX, built(NOW_S + AHEAD_S_MAX, 8_000, 0), NOW_S);
    estimates.record("gcc", LINUX, built(NOW_S + 1, 8_000, 0));
    assert_eq!(estimates.get("gcc", LINUX).built_s, NOW_S + AHEAD_S_MAX);
}

#[test]
fn what_was_seen_bounds_what_is_heard_and_the_next_build_sets_it_right() {
    let mut estimates = Estimates::default();
    estimates.record("gcc", LINUX, built(1, 8_000, 1_000));
    estimates.merge("gcc", LINUX, built(NOW_S, HEARD_MS_MAX, HEARD_MIB_MAX), NOW_S);
    assert_eq!(estimates.get("gcc", LINUX), built(NOW_S, 32_000, 4_000));
    estimates.merge("gcc", LINUX, built(NOW_S + 1, 0, 0), NOW_S);
    assert_eq!(estimates.get("gcc", LINUX), built(NOW_S + 1, 2_000, 250));
    estimates.record("gcc", LINUX, built(NOW_S + 2, 8_000, 1_000));
    assert_eq!(estimates.get("gcc", LINUX), built(NOW_S + 2, 5_000, 1_000));
    // Another's measurement of memory is taken where there is none.
    estimates.record("cc", LINUX, built(1, 8_000, 0));
    estimates.merge("cc", LINUX, built(2, 9_000, 700), NOW_S);
    assert_eq!(estimates.get("cc", LINUX), built(2, 9_000, 700));
}

#[test]
fn names_without_end_do_not_push_out_what_was_seen() {
    let mut estimates = Estimates::default();
    estimates.record("gcc", LINUX, built(1, 8_000, 1_000));
    (0..=ESTIMATES_MAX).for_each(|n| _ = estimates.merge(&format!("p{n}"), LINUX, built(NOW_S, 7, 0), NOW_S));
    assert_eq!(estimates.len(), ESTIMATES_MAX);
    assert_eq!(estimates.get("gcc", LINUX), built(1, 8_000, 1_000));
}

#[test]
fn what_was_saved_is_known_as_before() {
    let mut estimates = Estimates::default();
    estimates.record("gcc", LINUX, built(1, 8_000, 1_000));
    estimates.merge("gcc", LINUX, built(2, 100_000, 9_000), NOW_S);
    estimates.merge("cc", LINUX, built(2, 5, 6), NOW_S);
    let mut again = Estimates::default();
    estimates.all().for_each(|(name, system, shared, seen)| again.restore(name, system, shared, seen));
    for name in ["gcc", "cc", "none"] {
        assert_eq!(again.get(name, LINUX), estimates.get(name, LINUX));
    }
}

#[test]
fn equal_tables_have_nothing_to_say_to_each_other_and_one_word_moves_one_bucket() {
    let mut ours = Estimates::default();
    (0..2_000).for_each(|n| ours.record(&format!("p{n}"), LINUX, built(n, n, n)));
    let mut theirs = ours.clone();
    let digest = theirs.digest(ours.len());
    assert_eq!((digest.len(), ours.differing(&digest, 7, 100)), (128, vec![]));
    ours.record("p7", LINUX, built(NOW_S, 1, 1));
    let told = ours.differing(&digest, 3, 100);
    assert!(told.len() < 50 && told[0] == ("p7", LINUX, ours.get("p7", LINUX)), "{}", told.len());
    for (name, system, estimate) in told {
        theirs.merge(name, system, estimate, NOW_S);
    }
    assert_eq!(theirs.digest(0), ours.digest(0));
    assert_eq!(ours.differing(&[], 0, 100), vec![], "nothing is asked");
}

proptest! {
    #[test]
    fn nodes_that_tell_each_other_agree_in_whatever_order(
        words in prop::collection::vec((0u8..4, 0u64..5, 0u64..5, 0u64..5), 1..30),
        order in any::<u64>(),
    ) {
        let merged = |words: &[(u8, u64, u64, u64)]| {
            let mut estimates = Estimates::default();
            for (name, built_s, duration_ms, memory_mib) in words {
                estimates.merge(&format!("p{name}"), LINUX, built(*built_s, *duration_ms, *memory_mib), NOW_S);
            }
            estimates.all().map(|(name, _, estimate, _)| (name.to_owned(), estimate)).collect::<BTreeSet<_>>()
        };
        let mut other = words.clone();
        let mut random = Random::new(order);
        other.sort_by_cached_key(|_| random.word());
        other.extend(words.first().copied());
        prop_assert_eq!(merged(&words), merged(&other));
    }

    /// Whatever the tables are: who asks until nothing new comes knows all that the other knew.
    #[test]
    fn asking_again_and_again_ends_with_all_that_the_other_knows(
        ours in prop::collection::vec((0u16..600, 0u64..9), 0..300),
        theirs in prop::collection::vec((0u16..600, 0u64..9), 0..300),
        max in 64usize..128,
        seed in any::<u64>(),
    ) {
        let table = |rows: &[(u16, u64)]| {
            let mut table = Estimates::default();
            rows.iter().for_each(|(name, at)| _ = table.merge(&format!("p{name}"), LINUX, built(*at, *at, 0), NOW_S));
            table
        };
        let (mut asker, asked) = (table(&ours), table(&theirs));
        let mut random = Random::new(seed);
        for _ in 0..200 {
            let digest = asker.digest(asked.len());
            let told = asked.differing(&digest, random.word(), max);
            prop_assert!(told.len() <= max);
            told.into_iter().for_each(|(name, system, row)| _ = asker.merge(name, system, row, NOW_S));
        }
        for (name, system, row, _) in asked.all() {
            prop_assert!(asker.get(name, system) >= row);
        }
    }
}
