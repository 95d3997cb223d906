//! Requests for chunks and parts of answers from peers: none panics, what decodes has one encoding and keeps its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::mesh::chunks::{Ask, PART_LEN, Part};
use shoal_wire::mesh::format::{decode, encode};

fuzz_target!(|bytes: &[u8]| {
    let (head, rest) = bytes.split_at(PART_LEN.min(bytes.len()));
    let Ok(ask) = decode::<Ask>(rest) else { return };
    assert_eq!(encode(&ask), rest);
    let limits = ask.limits();
    let Some(Ok(part)) = head.first_chunk().map(|head| Part::decode(head, limits)) else { return };
    assert_eq!(part.encode(), *head);
    if let Part::Here { len, bytes, .. } = part {
        assert!(len as usize <= limits.contents && bytes as usize <= limits.bytes);
    }
});
