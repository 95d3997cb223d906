use super::*;
use crate::mesh::format::{decode, encode};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn path(name: &str) -> StorePath {
    StorePath::from_base_name(&format!("dd2s755w68andyyr5makbwzidf6whr5d-{name}")).unwrap()
}

fn asks() -> impl Strategy<Value = BuildAsk> {
    let mode = prop_oneof![Just(Mode::Normal), Just(Mode::Repair), Just(Mode::Check)];
    let settings = any::<(Option<bool>, Option<u64>, Option<u64>, Option<u64>, Option<u64>)>();
    let settings = settings.prop_map(|(keep_failed, timeout_s, max_silent_s, max_log_bytes, cores)| Settings {
        keep_failed,
        timeout_s,
        max_silent_s,
        max_log_bytes,
        cores,
    });
    let near = vec(any::<NodeKey>(), 0..=NEAR_MAX);
    let agreed = btree_map("[a-z]{1,8}", Just(path("a")), 0..4);
    let offer = (vec(any::<u8>(), 0..2_000), mode, settings.clone(), near, any::<(bool, u64)>(), agreed);
    let errand = (vec(".{1,80}", 1..20), any::<(Option<bool>, Option<bool>, Option<u32>, u8)>(), settings);
    prop_oneof![
        any::<u8>().prop_map(|quorum| BuildAsk::Follow { drv_path: path("a.drv"), quorum }),
        vec(any::<u32>(), 1..300).prop_map(BuildAsk::Estimates),
        Just(BuildAsk::Adopt(path("a.drv"))),
        offer.prop_map(|(derivation, mode, settings, near, (keep, memory_mib), agreed)| {
            let offer = Offer { derivation, mode, settings, near, keep, memory_mib, agreed, ..self::offer() };
            BuildAsk::Build(Box::new(offer))
        }),
        errand.prop_map(|(wanted, (keep_going, substitute, grace_s, quorum), settings)| {
            BuildAsk::StandIn(Box::new(Errand { wanted, keep_going, substitute, quorum, settings, grace_s }))
        }),
    ]
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    let output = any::<(u64, [u8; 32])>();
    let output = output.prop_map(|(nar_size, nar_hash)| BuiltOutput { path: path("a"), nar_size, nar_hash });
    let outputs = btree_map("[a-z]{1,8}", output, 0..4);
    let numbers = any::<(u8, u64, bool, u64, u64, Option<i64>, Option<i64>)>();
    let rest = any::<(Option<NodeKey>, u64, bool, bool)>();
    (numbers, vec(any::<u8>(), 0..300), outputs, rest).prop_map(|(numbers, error, outputs, rest)| {
        let (at, memory_mib, out_of_memory, given_up) = rest;
        let (status, times_built, is_non_deterministic, start_time, stop_time, cpu_user, cpu_system) = numbers;
        Outcome {
            status,
            error,
            times_built,
            is_non_deterministic,
            start_time,
            stop_time,
            cpu_user,
            cpu_system,
            outputs,
            at,
            memory_mib,
            out_of_memory,
            given_up,
        }
    })
}

fn estimates() -> impl Strategy<Value = BuildFrame> {
    let row = ("[a-z]{1,20}", any::<(u64, u64, u64)>()).prop_map(|(name, (built_s, duration_ms, memory_mib))| Took {
        name,
        system: "x86_64-linux".into(),
        built_s,
        duration_ms,
        memory_mib,
    });
    (any::<u32>(), vec(row, 0..20)).prop_map(|(known, rows)| BuildFrame::Estimates { known, rows })
}

fn frames() -> impl Strategy<Value = BuildFrame> {
    let reason = prop_oneof![
        Just(Reason::Full),
        Just(Reason::Draining),
        Just(Reason::CannotRun),
        Just(Reason::Unknown),
        Just(Reason::NoMemory)
    ];
    prop_oneof![
        (reason, ".{0,80}", any::<u32>()).prop_map(|(reason, text, retry_after_ms)| BuildFrame::Refused {
            reason,
            text,
            retry_after_ms
        }),
        Just(BuildFrame::Accepted),
        prop::option::of("[a-z]{1,20}").prop_map(|at| BuildFrame::Started { at }),
        ".{0,80}".prop_map(BuildFrame::Phase),
        ".{0,80}".prop_map(BuildFrame::Said),
        ".{0,80}".prop_map(BuildFrame::Message),
        vec(vec(any::<u8>(), 0..100), 1..20).prop_map(BuildFrame::Lines),
        Just(BuildFrame::Alive),
        Just(BuildFrame::Built),
        outcomes().prop_map(|outcome| BuildFrame::Ended(Box::new(outcome))),
        estimates(),
    ]
}

/// Other bytes are refused, or are the one encoding of another value.
fn is_strict<T: Format>(value: &T, at: prop::sample::Index, byte: u8, cut: bool) -> bool {
    let mut bytes = encode(value);
    let at = at.index(bytes.len());
    match cut {
        true => bytes.truncate(at),
        false => bytes[at] = byte,
    }
    decode::<T>(&bytes).is_ok_and(|other| encode(&other) == bytes) || decode::<T>(&bytes).is_err()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn requests_and_answers_come_back_as_they_were(ask in asks(), frame in frames()) {
        prop_assert_eq!(decode::<BuildAsk>(&encode(&ask)), Ok(ask));
        prop_assert_eq!(decode::<BuildFrame>(&encode(&frame)), Ok(frame));
    }

    #[test]
    fn other_bytes_are_something_else_or_nothing(
        ask in asks(), frame in frames(), at in any::<prop::sample::Index>(), byte: u8, cut: bool
    ) {
        prop_assert!(is_strict(&ask, at, byte, cut) && is_strict(&frame, at, byte, cut));
    }
}

fn offer() -> Offer {
    Offer {
        drv_path: path("a.drv"),
        name: "a".into(),
        derivation: Vec::new(),
        mode: Mode::Normal,
        settings: Settings::default(),
        near: Vec::new(),
        keep: false,
        memory_mib: 0,
        agreed: BTreeMap::new(),
    }
}

fn errand() -> Errand {
    Errand {
        wanted: Vec::new(),
        keep_going: None,
        substitute: None,
        quorum: 1,
        settings: Settings::default(),
        grace_s: None,
    }
}

fn took(name: &str) -> Took {
    let (name, system) = (name.into(), "x".repeat(NAME_LEN_MAX));
    Took { name, system, built_s: u64::MAX, duration_ms: u64::MAX, memory_mib: u64::MAX }
}

fn refuses<T: Format + std::fmt::Debug>(value: &T, field: &str) {
    match decode::<T>(&encode(value)) {
        Err(FormatError::Limit { field: found, .. }) => assert_eq!(found, field),
        other => panic!("{field}: {other:?}"),
    }
}

#[test]
fn what_is_outside_its_limits_is_refused() {
    let ask = |offer| BuildAsk::Build(Box::new(offer));
    refuses(&BuildAsk::Follow { drv_path: path("no-derivation"), quorum: 1 }, "derivation path");
    refuses(&BuildAsk::Estimates(Vec::new()), "digest");
    refuses(&BuildAsk::Estimates(vec![0; DIGEST_LEN_MAX + 1]), "digest");
    refuses(&BuildFrame::Estimates { known: 0, rows: vec![took("x"); ESTIMATES_MAX + 1] }, "estimates");
    refuses(&BuildFrame::Estimates { known: 0, rows: vec![took("")] }, "name");
    refuses(&ask(Offer { name: String::new(), ..offer() }), "name");
    refuses(&ask(Offer { derivation: vec![0; DERIVATION_LEN_MAX + 1], ..offer() }), "derivation");
    refuses(&ask(Offer { near: vec![[0; 32]; NEAR_MAX + 1], ..offer() }), "nodes");
    let agreed = (0..=OUTPUTS_MAX).map(|number| (number.to_string(), path("a"))).collect();
    refuses(&ask(Offer { agreed, ..offer() }), "agreed outputs");
    refuses(&ask(Offer { agreed: BTreeMap::from([(String::new(), path("a"))]), ..offer() }), "agreed output");
    let errand = |wanted| BuildAsk::StandIn(Box::new(Errand { wanted, ..errand() }));
    refuses(&errand(Vec::new()), "wanted paths");
    refuses(&errand(vec![String::new(); WANTED_MAX + 1]), "wanted paths");
    refuses(&errand(vec!["x".repeat(WANTED_LEN_MAX), "x".into()]), "names of wanted paths");
    let lines = |count, len| BuildFrame::Lines(vec![vec![b'x'; len]; count]);
    refuses(&lines(0, 0), "lines");
    refuses(&lines(LINES_MAX + 1, 1), "lines");
    refuses(&lines(2, LINES_LEN_MAX), "lines");
    refuses(&lines(1, TEXT_LEN_MAX + 1), "lines");
    assert_eq!(decode(&encode(&lines(1, TEXT_LEN_MAX))), Ok(lines(1, TEXT_LEN_MAX)));
    refuses(&BuildFrame::Said("x".repeat(TEXT_LEN_MAX + 1)), "text");
    refuses(&BuildFrame::Started { at: Some(String::new()) }, "node");
}

/// The greatest of each kind fits into what is read.
#[test]
fn the_longest_ones_are_read() {
    let longest = |n: u32| format!("{n:0>width$}", width = NAME_LEN_MAX);
    let output = || BuiltOutput { path: path(&"x".repeat(NAME_LEN_MAX)), nar_size: u64::MAX, nar_hash: [7; 32] };
    let outcome = Outcome {
        status: 3,
        error: vec![b'x'; TEXT_LEN_MAX],
        times_built: u64::MAX,
        is_non_deterministic: true,
        start_time: u64::MAX,
        stop_time: u64::MAX,
        cpu_user: Some(i64::MIN),
        cpu_system: Some(i64::MIN),
        outputs: (0..OUTPUTS_MAX as u32).map(|n| (longest(n), output())).collect(),
        at: Some([0; 32]),
        memory_mib: u64::MAX,
        out_of_memory: true,
        given_up: true,
    };
    let frame = BuildFrame::Ended(Box::new(outcome));
    assert_eq!(decode(&encode(&frame)), Ok(frame));
    let rows = vec![took(&longest(0)); ESTIMATES_MAX];
    let frame = BuildFrame::Estimates { known: u32::MAX, rows };
    assert_eq!(decode(&encode(&frame)), Ok(frame));
    let agreed = (0..OUTPUTS_MAX as u32).map(|n| (longest(n), path(&"x".repeat(NAME_LEN_MAX)))).collect();
    let whole = Offer { derivation: vec![7; DERIVATION_LEN_MAX], near: vec![[1; 32]; NEAR_MAX], agreed, ..offer() };
    let ask = BuildAsk::Build(Box::new(whole));
    assert_eq!(decode(&encode(&ask)), Ok(ask));
}
