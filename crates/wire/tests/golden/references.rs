//! Scanner, rewriter and hash modulo against the obvious way to write them.

use proptest::prelude::*;
use shoal_wire::nix::hash::{Hash, HashAlgo};
use shoal_wire::nix::references::{HashModulo, HashPart, Rewriter, Scanner};
use shoal_wire::nix::store_path::StorePath;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// Hash parts over few digits, so that they overlap themselves and each other.
fn hash_part() -> impl Strategy<Value = HashPart> {
    prop_oneof![
        prop::array::uniform32(prop::sample::select(DIGITS.to_vec())),
        prop::array::uniform32(prop::sample::select(b"0a".to_vec())),
        prop::array::uniform32(Just(b'0')),
    ]
}

#[derive(Debug, Clone)]
enum Piece {
    Part(usize),
    /// The beginning of a part, which another piece may complete by accident.
    Prefix(usize, usize),
    Digits(Vec<u8>),
    Bytes(Vec<u8>),
}

fn haystack(parts: Vec<HashPart>) -> impl Strategy<Value = (Vec<HashPart>, Vec<u8>, Vec<usize>)> {
    let n = parts.len();
    let piece = prop_oneof![
        (0..n).prop_map(Piece::Part),
        (0..n, 1..32usize).prop_map(|(part, len)| Piece::Prefix(part, len)),
        prop::collection::vec(prop::sample::select(DIGITS.to_vec()), 0..70).prop_map(Piece::Digits),
        prop::collection::vec(any::<u8>(), 0..50).prop_map(Piece::Bytes),
    ];
    prop::collection::vec(piece, 0..30).prop_flat_map(move |pieces| {
        let bytes: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| match piece {
                Piece::Part(part) => parts[*part].to_vec(),
                Piece::Prefix(part, len) => parts[*part][..*len].to_vec(),
                Piece::Digits(bytes) | Piece::Bytes(bytes) => bytes.clone(),
            })
            .collect();
        let len = bytes.len();
        (Just(parts.clone()), Just(bytes), crate::nar_trees::cuts(len))
    })
}

fn cases() -> impl Strategy<Value = (Vec<HashPart>, Vec<u8>, Vec<usize>)> {
    prop::collection::vec(hash_part(), 1..6).prop_flat_map(haystack)
}

fn path(part: &HashPart) -> StorePath {
    let part = std::str::from_utf8(part).expect("digits are ASCII");
    StorePath::from_base_name(&format!("{part}-x")).expect("store path")
}

fn pieces<'a>(bytes: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let ends = cuts.iter().copied().chain([bytes.len()]);
    ends.scan(0, |from, to| Some(&bytes[std::mem::replace(from, to)..to]))
}

fn naive_rewrite(bytes: &[u8], rewrites: &BTreeMap<HashPart, HashPart>) -> (Vec<u8>, Vec<u64>) {
    let (mut out, mut offsets, mut at) = (bytes.to_vec(), Vec::new(), 0);
    while at + 32 <= bytes.len() {
        match rewrites.get(&bytes[at..at + 32]) {
            Some(to) => {
                out[at..at + 32].copy_from_slice(to);
                offsets.push(at as u64);
                at += 32;
            }
            None => at += 1,
        }
    }
    (out, offsets)
}

fn rewrite(bytes: &[u8], cuts: &[usize], rewrites: &BTreeMap<HashPart, HashPart>) -> (Vec<u8>, Vec<u64>) {
    let mut rewriter = Rewriter::new(Vec::new(), rewrites.clone());
    pieces(bytes, cuts).for_each(|piece| rewriter.write_all(piece).expect("a Vec takes everything"));
    rewriter.finish().expect("a Vec takes everything")
}

proptest! {
    #[test]
    fn the_scanner_finds_what_every_window_compared_finds((parts, bytes, cuts) in cases()) {
        // The last candidate is planted too, but not looked for.
        let candidates: BTreeSet<StorePath> = parts[..parts.len().max(2) - 1].iter().map(path).collect();
        let mut scanner = Scanner::new(candidates.iter().cloned());
        pieces(&bytes, &cuts).for_each(|piece| scanner.update(piece));
        let occurs = |path: &&StorePath| bytes.windows(32).any(|window| window == path.hash_part().as_bytes());
        let naive: BTreeSet<StorePath> = candidates.iter().filter(occurs).cloned().collect();
        prop_assert_eq!(scanner.finish(), naive);
    }

    #[test]
    fn the_rewriter_replaces_from_left_to_right((parts, bytes, cuts) in cases(), to in prop::collection::vec(hash_part(), 6)) {
        let rewrites: BTreeMap<HashPart, HashPart> = parts.into_iter().zip(to).collect();
        prop_assert_eq!(rewrite(&bytes, &cuts, &rewrites), naive_rewrite(&bytes, &rewrites));
    }

    #[test]
    fn hash_modulo_is_the_hash_with_nothing_where_the_own_part_stood((parts, bytes, cuts) in cases()) {
        let own = parts[0];
        let mut modulo = HashModulo::new(HashAlgo::Sha256, own);
        pieces(&bytes, &cuts).for_each(|piece| modulo.update(piece));
        let hashes = modulo.finish().unwrap();
        let (mut zeroed, offsets) = naive_rewrite(&bytes, &BTreeMap::from([(own, [0; 32])]));
        prop_assert_eq!(hashes.without_offsets, Hash::of(HashAlgo::Sha256, &zeroed));
        offsets.iter().for_each(|offset| zeroed.extend(format!("|{offset}").into_bytes()));
        prop_assert_eq!(hashes.with_offsets, Hash::of(HashAlgo::Sha256, &zeroed));
        prop_assert_eq!(hashes.occurrences, offsets.len());
        prop_assert_eq!(hashes.with_offsets == hashes.without_offsets, offsets.is_empty());
    }

    /// Rewriting to parts that do not occur and back is the identity.
    #[test]
    fn rewriting_back_restores((parts, bytes, cuts) in cases()) {
        let from = parts[0];
        // Neither overlaps itself nor is made by chance.
        let to: HashPart = *b"z1111111111111111111111111111111";
        let (there, offsets) = rewrite(&bytes, &cuts, &BTreeMap::from([(from, to)]));
        let (back, same) = rewrite(&there, &[], &BTreeMap::from([(to, from)]));
        prop_assert_eq!(back, bytes);
        prop_assert_eq!(same, offsets);
    }
}

#[test]
fn a_part_that_straddles_many_updates_is_found() {
    let part = *b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut scanner = Scanner::new([path(&part)]);
    part.iter().for_each(|byte| scanner.update(&[*byte]));
    assert_eq!(scanner.finish().len(), 1);
}

#[test]
fn no_candidates_is_no_reference() {
    let mut scanner = Scanner::new([]);
    scanner.update(&[b'0'; 100]);
    assert!(scanner.finish().is_empty());
}

#[test]
fn references_without_end_are_refused() {
    let own: HashPart = [b'a'; 32];
    let mut modulo = HashModulo::new(HashAlgo::Sha256, own);
    let block = own.repeat(1 << 12);
    (0..1 << 10).for_each(|_| modulo.update(&block));
    assert!(modulo.finish().is_some());
    let mut modulo = HashModulo::new(HashAlgo::Sha256, own);
    (0..=1 << 10).for_each(|_| modulo.update(&block));
    assert_eq!(modulo.finish(), None);
}
