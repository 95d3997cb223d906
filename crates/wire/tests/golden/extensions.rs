//! What later versions added to node records.

use crate::mesh::{record, strict, survives};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use shoal_wire::mesh::demand::{Amount, Demand, KINDS_MAX, Kind, Work};
use shoal_wire::mesh::departure::{DrainOrders, GROUPS_MAX, Remaining, number};
use shoal_wire::mesh::format::{Format, FormatError, decode, encode};
use shoal_wire::mesh::node_record::{EXTENSION_LEN_MAX, Extension};

fn amounts() -> impl Strategy<Value = Amount> {
    let work = || (any::<u32>(), any::<u64>()).prop_map(|(jobs, slot_s)| Work { jobs, slot_s });
    (work(), work(), any::<u32>()).prop_map(|(ready, coming, ending)| Amount { ready, coming, ending })
}

prop_compose! {
    fn kinds()(
        system in "[a-z0-9_]{1,64}", features in btree_set("[a-z-]{1,64}", 0..12), amount in amounts()
    ) -> Kind {
        Kind { system, features, amount }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever waits has room in a record, and nothing of it is lost but which kind it is of.
    #[test]
    fn demand_is_bounded_and_whole(kinds in vec(kinds(), 0..20), at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
        let mut total = Amount::default();
        kinds.iter().filter(|kind| !kind.amount.is_none()).for_each(|kind| total += kind.amount);
        let demand = Demand::new(kinds);
        prop_assert_eq!(demand.total(), total);
        prop_assert!(demand.kinds.len() <= KINDS_MAX && encode(&demand).len() <= EXTENSION_LEN_MAX);
        survives(&demand);
        strict(&demand, at, byte, cut);
        let mut record = record();
        record.set_extension(Some(&demand));
        survives(&record);
        prop_assert_eq!(record.extension::<Demand>(), Some(demand));
    }

    #[test]
    fn departures_survive_and_are_strict(
        groups in vec(("[a-z-]{1,63}", any::<u32>()), 0..12), builds: u32, paths: u64,
        at in any::<prop::sample::Index>(), byte: u8, cut: bool
    ) {
        let (orders, remaining) = (DrainOrders::new(groups.clone()), Remaining { builds, paths });
        survives(&orders);
        survives(&remaining);
        strict(&orders, at, byte, cut);
        strict(&remaining, at, byte, cut);
        prop_assert!(encode(&orders).len() <= EXTENSION_LEN_MAX);
        prop_assert!(groups.is_empty() || !orders.is_none());
    }
}

fn kind(system: &str, features: &[&str], jobs: u32, slot_s: u64) -> Kind {
    let amount = Amount { ready: Work { jobs, slot_s }, coming: Work { jobs: 1, slot_s: 2 }, ending: jobs };
    Kind { system: system.into(), features: features.iter().map(|word| word.to_string()).collect(), amount }
}

#[test]
fn the_kinds_with_the_most_time_are_told_apart() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let kinds = (1..).zip(names).map(|(n, name)| kind(name, &[], n, u64::from(n))).collect();
    let demand = Demand::new(kinds);
    let kept: Vec<&str> = demand.kinds.iter().map(|kind| kind.system.as_str()).collect();
    assert_eq!(kept, ["c", "d", "e", "f", "g", "h", "i", "j"]);
    assert_eq!(
        demand.rest,
        Amount { ready: Work { jobs: 3, slot_s: 3 }, coming: Work { jobs: 2, slot_s: 4 }, ending: 3 }
    );
}

#[test]
fn what_is_out_of_order_or_too_much_is_refused() {
    let refused = |demand: &Demand| match decode::<Demand>(&encode(demand)) {
        Err(FormatError::Limit { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let twice = vec![kind("a", &[], 1, 1), kind("a", &[], 2, 2)];
    assert_eq!(refused(&Demand { kinds: twice, rest: Amount::default() }), "order of kinds");
    let odd = vec![kind("a b", &[], 1, 1)];
    assert_eq!(refused(&Demand { kinds: odd, rest: Amount::default() }), "systems and features");
    let mut record = record();
    record.extensions.insert(Demand::NUMBER, vec![1, 2, 3]);
    assert_eq!(record.extension::<Demand>(), None, "which does not decode");
}

#[test]
fn orders_are_to_the_last_of_a_group() {
    let orders = DrainOrders::new([("shoal".to_owned(), 2), ("shoal-big".to_owned(), 0)]);
    let asked = ["shoal-2", "shoal-10", "shoal-big-0"];
    let not_asked = ["shoal-1", "shoal-02", "shoal-+2", "shoal", "shoal-", "other-5", "shoal-big", "shoal-4294967296"];
    assert!(asked.iter().all(|name| orders.ask(name)));
    assert!(!not_asked.iter().any(|name| orders.ask(name)));
    assert_eq!(number("shoal-big-7"), Some(("shoal-big", 7)));
    let many = DrainOrders::new((0..20).map(|n| (format!("pool{n}"), n)));
    assert_eq!((0..20).filter(|n| many.ask(&format!("pool{n}-{n}"))).count(), GROUPS_MAX);
}

/// Nodes of different builds must agree on every byte.
#[test]
fn encodings_do_not_drift() {
    let demand =
        Demand::new(vec![kind("x86_64-linux", &["kvm", "big-parallel"], 3, 700), kind("x86_64-linux", &[], 9, 60)]);
    let orders = DrainOrders::new([("shoal-big".to_owned(), 4)]);
    let hash = |bytes: Vec<u8>| format!("{} {}", bytes.len(), &blake3::hash(&bytes).to_hex()[..16]);
    let all = [encode(&demand), encode(&orders), encode(&Remaining { builds: 3, paths: 300 })].map(hash);
    expect_test::expect![[r#"63 a5d69f336f9d734a, 13 d187e87aba320368, 4 deed41789afeabcc"#]]
        .assert_eq(&all.join(", "));
    assert_eq!(Demand::VERSION, 1);
}
