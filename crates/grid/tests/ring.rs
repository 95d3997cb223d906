//! What the ring and the announcements that follow it promise.

use proptest::collection::btree_map;
use proptest::prelude::*;
use shoal_grid::announce::{BATCH_KEYS_MAX, OWNERS, announcements, owners};
use shoal_grid::ring::{Key, NodeId, Ring, WEIGHT_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;

/// The `n`th of a series without order; `series` keeps nodes and keys apart.
fn name(series: u64, n: u64) -> [u8; 32] {
    let mut state = series << 32 | n;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state ^ (state >> 29)).to_le_bytes()
    };
    [word(), word(), word(), word()].concat().try_into().unwrap()
}

fn nodes(count: u64) -> Vec<NodeId> {
    (0..count).map(|n| name(1, n)).collect()
}

fn keys(count: u64) -> Vec<Key> {
    (0..count).map(|n| name(2, n)).collect()
}

fn order(ring: &Ring, key: &Key) -> Vec<NodeId> {
    ring.successors(key).collect()
}

fn weight(weight: u8) -> NonZeroU8 {
    NonZeroU8::new(weight).unwrap()
}

fn members() -> impl Strategy<Value = BTreeMap<NodeId, NonZeroU8>> {
    btree_map(any::<NodeId>(), (1..=WEIGHT_MAX).prop_map(weight), 1..40)
}

proptest! {
    /// Each member comes once, whatever the order in which it was learned.
    #[test]
    fn order_is_of_the_set(members in members(), key: Key) {
        let forward = Ring::weighted(members.clone());
        let backward = Ring::weighted(members.clone().into_iter().rev());
        prop_assert_eq!(order(&forward, &key), order(&backward, &key));
        let seen: BTreeSet<NodeId> = forward.successors(&key).collect();
        prop_assert_eq!(forward.successors(&key).count(), members.len());
        prop_assert!(seen.iter().eq(members.keys()));
    }

    /// One that leaves, or comes, or changes its weight moves nobody else against another.
    #[test]
    fn others_keep_their_order(members in members(), pick: prop::sample::Index, new in 1..=WEIGHT_MAX, key: Key) {
        let id = *pick.get(&members.keys().copied().collect::<Vec<_>>());
        let without = Ring::weighted(members.clone().into_iter().filter(|(other, _)| *other != id));
        let mut changed = members.clone();
        changed.insert(id, weight(new));
        for ring in [Ring::weighted(members), Ring::weighted(changed)] {
            let others: Vec<NodeId> = ring.successors(&key).filter(|other| *other != id).collect();
            prop_assert_eq!(others, order(&without, &key));
        }
    }

    /// More weight never loses a key.
    #[test]
    fn weight_only_gains(members in members(), pick: prop::sample::Index, key: Key) {
        let id = *pick.get(&members.keys().copied().collect::<Vec<_>>());
        let place = |members: &BTreeMap<NodeId, NonZeroU8>| {
            Ring::weighted(members.clone()).successors(&key).position(|other| other == id)
        };
        let mut heavier = members.clone();
        heavier.insert(id, weight(WEIGHT_MAX));
        prop_assert!(place(&heavier) <= place(&members));
    }

    /// After a change, those told before and those told now are all the owners, and nobody is told twice.
    #[test]
    fn announcements_are_what_is_new(before in members(), after in members(), keys in prop::collection::btree_set(any::<Key>(), 0..40)) {
        let (before, after) = (Ring::weighted(before), Ring::weighted(after));
        let mut told = BTreeSet::new();
        for announcement in announcements(&before, &after, &keys) {
            for key in announcement.keys {
                prop_assert!(told.insert((key, announcement.to)));
            }
        }
        let new: BTreeSet<(Key, NodeId)> = keys
            .iter()
            .flat_map(|key| owners(&after, key).into_iter().map(|owner| (*key, owner)))
            .filter(|(key, owner)| !owners(&before, key).contains(owner))
            .collect();
        prop_assert_eq!(told, new);
    }
}

/// The order is a part of the protocol: nodes of two versions have to agree on it.
#[test]
fn order_is_fixed() {
    let ring: Ring = (0..8).map(|n| [n; 32]).collect();
    let firsts: Vec<Vec<u8>> =
        (0..3).map(|key| ring.successors(&[key * 7 + 1; 32]).map(|id| id[0]).collect()).collect();
    expect_test::expect!["[[6, 7, 1, 0, 5, 2, 3, 4], [6, 5, 3, 7, 1, 0, 4, 2], [3, 0, 5, 4, 2, 6, 1, 7]]"]
        .assert_eq(&format!("{firsts:?}"));
    let heavy = Ring::weighted((0..8).map(|n| ([n; 32], weight(n + 1))));
    let firsts: Vec<u8> = heavy.successors(&[1; 32]).map(|id| id[0]).collect();
    expect_test::expect!["[6, 7, 4, 1, 3, 5, 2, 0]"].assert_eq(&format!("{firsts:?}"));
}

/// 20,000 keys on 50 nodes: 1,200 each, which by chance alone vary by 34; four such deviations are the bound
/// for all 50.
#[test]
fn load_is_even() {
    let ring: Ring = nodes(50).into_iter().collect();
    let mut load: BTreeMap<NodeId, i64> = BTreeMap::new();
    for key in keys(20_000) {
        for owner in owners(&ring, &key) {
            *load.entry(owner).or_default() += 1;
        }
    }
    assert_eq!(load.len(), 50);
    assert!(load.values().all(|count| (count - 1200).abs() < 140), "{:?}", load.values());
}

/// A node of weight four among six of weight one leads four keys of ten.
#[test]
fn weight_is_a_share() {
    let ids = nodes(7);
    let ring = Ring::weighted(ids.iter().enumerate().map(|(n, id)| (*id, weight(if n == 0 { 4 } else { 1 }))));
    let led = keys(20_000).iter().filter(|key| ring.successors(key).next() == Some(ids[0])).count();
    assert!((7_700..8_300).contains(&led), "{led}");
}

/// One of 20 nodes comes or goes: of 10,000 keys it owns 3/20, and just those are announced.
#[test]
fn a_change_costs_what_changed_owner() {
    let ids = nodes(20);
    let (all, fewer): (Ring, Ring) = (ids.iter().copied().collect(), ids[1..].iter().copied().collect());
    let keys = keys(10_000);
    let owned = keys.iter().filter(|key| owners(&all, key).contains(&ids[0])).count();
    let count = |before: &Ring, after: &Ring| -> usize {
        announcements(before, after, &keys).iter().map(|announcement| announcement.keys.len()).sum()
    };
    assert!((1_350..1_650).contains(&owned), "{owned}");
    assert_eq!(count(&fewer, &all), owned);
    assert_eq!(count(&all, &fewer), owned);
    assert_eq!(count(&all, &all), 0);
    assert_eq!(count(&Ring::default(), &all), OWNERS * keys.len());
}

#[test]
fn batches_are_bounded() {
    let ring: Ring = nodes(2).into_iter().collect();
    let sizes: Vec<usize> =
        announcements(&Ring::default(), &ring, &keys(2_500)).iter().map(|batch| batch.keys.len()).collect();
    assert_eq!(sizes, [BATCH_KEYS_MAX, BATCH_KEYS_MAX, 452, BATCH_KEYS_MAX, BATCH_KEYS_MAX, 452]);
}
