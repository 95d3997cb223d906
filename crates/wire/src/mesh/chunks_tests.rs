use super::*;
use crate::mesh::format::{decode, encode};
use proptest::prelude::*;

fn asks() -> impl Strategy<Value = Ask> {
    let hashes = |max| prop::collection::vec(any::<[u8; 32]>(), 1..=max);
    let urgency = prop_oneof![Just(Urgency::Build), Just(Urgency::Client), Just(Urgency::Replication)];
    let key = any::<(bool, [u8; 32])>().prop_map(|(old, drv_hash)| match old {
        true => RealisationKey::Output(DrvOutput { drv_hash, output: "out".into() }),
        false => RealisationKey::Trace(BuildTraceKey { drv_path: drv(), output: "dev".into() }),
    });
    prop_oneof![
        hashes(RECORDS_MAX).prop_map(Ask::Records),
        any::<[u8; 32]>().prop_map(Ask::Manifest),
        (urgency, hashes(CHUNKS_MAX)).prop_map(|(urgency, hashes)| Ask::Chunks { urgency, hashes }),
        prop::collection::vec(key, 1..20).prop_map(Ask::Realisations),
        Just(Ask::Log(drv())),
    ]
}

fn drv() -> StorePath {
    StorePath::from_base_name("dd2s755w68andyyr5makbwzidf6whr5d-ht.drv").unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn requests_come_back_as_they_were(ask in asks()) {
        let bytes = encode(&ask);
        prop_assert!(bytes.len() <= Ask::LEN_MAX);
        prop_assert_eq!(decode::<Ask>(&bytes), Ok(ask));
    }

    #[test]
    fn other_bytes_are_another_request_or_none(
        ask in asks(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()
    ) {
        let mut bytes = encode(&ask);
        let at = at.index(bytes.len());
        match cut {
            true => bytes.truncate(at),
            false => bytes[at] = byte,
        }
        if let Ok(other) = decode::<Ask>(&bytes) {
            prop_assert!(!cut);
            prop_assert_eq!(encode(&other), bytes);
        }
    }

    /// Every part that is accepted has one encoding and keeps its limits.
    #[test]
    fn parts_are_strict(
        status in 0..6u8, len in 0..600_000u32, bytes in 0..600_000u32, ask in asks()
    ) {
        let mut head = [status; PART_LEN];
        head[1..5].copy_from_slice(&len.to_le_bytes());
        head[5..].copy_from_slice(&bytes.to_le_bytes());
        let limits = ask.limits();
        if let Ok(part) = Part::decode(&head, limits) {
            prop_assert_eq!(part.encode(), head);
            if let Part::Here { len, bytes, .. } = part {
                prop_assert!(len as usize <= limits.contents && (1..=limits.bytes).contains(&(bytes as usize)));
            }
        }
    }
}

#[test]
fn requests_have_limits() {
    let refused = |ask: &Ask| decode::<Ask>(&encode(ask)).is_err();
    assert!(refused(&Ask::Records(Vec::new())));
    assert!(refused(&Ask::Records(vec![[1; 32]; RECORDS_MAX + 1])));
    let chunks = |count| Ask::Chunks { urgency: Urgency::Client, hashes: vec![[1; 32]; count] };
    assert!(refused(&chunks(0)) && refused(&chunks(CHUNKS_MAX + 1)) && !refused(&chunks(CHUNKS_MAX)));
    let path = StorePath::from_base_name("dd2s755w68andyyr5makbwzidf6whr5d-ht").unwrap();
    assert!(refused(&Ask::Log(path)), "only derivations have logs");
}

#[test]
fn a_part_that_announces_too_much_or_nothing_is_refused() {
    let limits = PartLimits { contents: 100, bytes: 200 };
    let here = |len, bytes| Part::decode(&Part::Here { len, bytes, hasty: false }.encode(), limits);
    assert_eq!(here(100, 200), Ok(Part::Here { len: 100, bytes: 200, hasty: false }));
    assert_eq!(here(101, 200), Err(PartError::TooLong { found: 101, max: 100 }));
    assert_eq!(here(100, 201), Err(PartError::TooLong { found: 201, max: 200 }));
    assert_eq!(here(100, 0), Err(PartError::Lengths));
    let mut absent = Part::Absent.encode();
    absent[1] = 1;
    assert_eq!(Part::decode(&absent, limits), Err(PartError::Lengths));
    absent = Part::Busy.encode();
    absent[5] = 1;
    assert_eq!(Part::decode(&absent, limits), Err(PartError::Lengths));
}

#[test]
fn a_build_is_more_urgent_than_a_client_and_both_than_another_copy() {
    assert!(Urgency::Build < Urgency::Client && Urgency::Client < Urgency::Replication);
}
