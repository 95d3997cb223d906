//! The chunker: its chunks are the stream, and where they end depends on the bytes around alone.

use crate::support::Rng;
use shoal_store::chunker::{AVERAGE, Chunker, MAX, MIN};
use std::collections::HashSet;

/// Chunks of `data`, fed in pieces as `split` says, cut at `cuts`.
fn chunks(data: &[u8], cuts: &[u64], mut split: impl FnMut() -> usize) -> Vec<Vec<u8>> {
    let mut chunker = Chunker::default();
    for &cut in cuts {
        chunker.cut_at(cut);
    }
    let mut found = Vec::new();
    let mut pending = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        let n = split().clamp(1, rest.len());
        let (taken, ends) = chunker.advance(&rest[..n]);
        pending.extend_from_slice(&rest[..taken]);
        rest = &rest[taken..];
        if ends {
            found.push(std::mem::take(&mut pending));
        }
    }
    found.extend((!pending.is_empty()).then_some(pending));
    found
}

fn whole(data: &[u8]) -> Vec<Vec<u8>> {
    chunks(data, &[], || usize::MAX)
}

#[test]
fn chunks_are_the_stream_however_it_is_fed() {
    let mut rng = Rng::seeded("chunks_are_the_stream");
    for round in 0..12 {
        let len = rng.below(1 << 20) as usize;
        let data = if round % 2 == 0 { rng.noise(len) } else { rng.text(len) };
        let mut cuts: Vec<u64> = (0..rng.below(6)).map(|_| rng.below(len as u64 + 1)).collect();
        cuts.sort_unstable();
        let expected = chunks(&data, &cuts, || usize::MAX);
        assert_eq!(expected.concat(), data);
        for max in [1, 64, 5_000, 300_000] {
            let mut splits = rng.clone();
            let fed = chunks(&data, &cuts, || 1 + splits.below(max) as usize);
            assert!(fed == expected, "pieces of up to {max} bytes moved a boundary");
        }
        let mut ends: Vec<u64> = expected
            .iter()
            .scan(0, |at, c| {
                *at += c.len() as u64;
                Some(*at)
            })
            .collect();
        ends.insert(0, 0);
        assert!(cuts.iter().all(|cut| ends.contains(cut)), "every forced cut is a boundary");
    }
}

#[test]
fn lengths_stay_in_bounds_and_gather_around_the_average() {
    let data = Rng::seeded("lengths").noise(32 << 20);
    let found = whole(&data);
    let (_, inner) = found.split_last().expect("chunks");
    assert!(inner.iter().all(|chunk| chunk.len() >= MIN && chunk.len() <= MAX));
    let mean = data.len() / found.len();
    assert!((AVERAGE * 3 / 4..AVERAGE * 3 / 2).contains(&mean), "mean {mean}");
    let zeros = whole(&vec![0; 4 * MAX]);
    assert!(zeros.iter().all(|chunk| chunk.len() == zeros[0].len()), "a constant stream has constant chunks");
}

#[test]
fn an_insertion_moves_only_the_boundaries_around_it() {
    let mut rng = Rng::seeded("an_insertion");
    let data = rng.noise(8 << 20);
    let before: HashSet<Vec<u8>> = whole(&data).into_iter().collect();
    for _ in 0..4 {
        let at = rng.below(data.len() as u64) as usize;
        let mut changed = data.clone();
        let len = 1 + rng.below(100) as usize;
        let inserted = rng.noise(len);
        changed.splice(at..at, inserted);
        let new: usize = whole(&changed).iter().filter(|chunk| !before.contains(*chunk)).map(Vec::len).sum();
        assert!(new <= 4 * MAX, "{new} bytes are in new chunks after an insertion at {at}");
    }
}

/// Pins the parameters: whoever changes them must change the format's version too.
#[test]
fn boundaries_are_those_of_format_1() {
    let data = Rng(1).noise(1 << 20);
    let lengths: Vec<usize> = whole(&data).iter().map(Vec::len).collect();
    expect_test::expect![
        "[52956, 115531, 154688, 69570, 81053, 93055, 77221, 79457, 67653, 70157, 85178, 75255, 26802]"
    ]
    .assert_eq(&format!("{lengths:?}"));
}
