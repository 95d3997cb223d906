//! Scanner and rewriter against every window compared.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::references::{HashPart, Rewriter, Scanner};
use shoal_wire::nix::store_path::StorePath;

const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

fn path(part: &[u8]) -> StorePath {
    let part = std::str::from_utf8(part).expect("digits are ASCII");
    StorePath::from_base_name(&format!("{part}-x")).expect("a store path")
}

// Most bytes become digits, or no window would ever pass.
fuzz_target!(|input: &[u8]| {
    let [cut, first, second, rest @ ..] = input else { return };
    let bytes: Vec<u8> =
        rest.iter().map(|&byte| if byte < 240 { DIGITS[usize::from(byte % 32)] } else { byte }).collect();
    let digits = |part: &&[u8]| part.iter().all(|byte| DIGITS.contains(byte));
    let windows: Vec<&[u8]> = bytes.windows(32).filter(digits).collect();
    let chosen = [first, second].map(|at| windows.get(usize::from(*at)).copied().unwrap_or(DIGITS));
    let step = usize::from(*cut % 70) + 1;

    let candidates: BTreeSet<StorePath> = chosen.iter().map(|part| path(part)).chain([path(DIGITS)]).collect();
    let mut scanner = Scanner::new(candidates.iter().cloned());
    bytes.chunks(step).for_each(|piece| scanner.update(piece));
    let occurs = |path: &&StorePath| windows.contains(&path.hash_part().as_bytes());
    let naive: BTreeSet<StorePath> = candidates.iter().filter(occurs).cloned().collect();
    assert_eq!(scanner.finish(), naive);

    let part = |bytes: &[u8]| HashPart::try_from(bytes).expect("32 bytes");
    let rewrites = BTreeMap::from([(part(chosen[0]), part(DIGITS)), (part(chosen[1]), [0; 32])]);
    let mut rewriter = Rewriter::new(Vec::new(), rewrites.clone());
    bytes.chunks(step).for_each(|piece| rewriter.write_all(piece).expect("a Vec takes everything"));
    let (out, offsets) = rewriter.finish().expect("a Vec takes everything");
    let (mut expected, mut at, mut found) = (bytes.clone(), 0, Vec::new());
    while let Some(window) = bytes.get(at..at + 32) {
        match rewrites.get(window) {
            Some(to) => {
                expected[at..at + 32].copy_from_slice(to);
                found.push(at as u64);
                at += 32;
            }
            None => at += 1,
        }
    }
    assert_eq!((out, offsets), (expected, found));
});
