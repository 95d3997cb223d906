//! Where two trees differ.

use crate::nar::index_of;
use crate::nar_trees::{Tree, nar_of, tree};
use proptest::prelude::*;
use shoal_wire::nix::nar::NarLimits;
use shoal_wire::nix::nar::compare::{Difference, What, differences};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;

fn compare(first: &Tree, second: &Tree, max: usize) -> (Vec<Difference>, bool) {
    let (first, second) = (nar_of(first), nar_of(second));
    let of = |nar: &[u8]| index_of(nar, NarLimits::ANY_RELEASE);
    let part = |nar: &[u8], range: Range<u64>| nar[range.start as usize..range.end as usize].to_vec();
    let differ_at = |one: Range<u64>, other: Range<u64>| {
        let (one, other) = (part(&first, one), part(&second, other));
        let same = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
        Ok::<_, Infallible>((one != other).then_some(same as u64))
    };
    let Ok(found) = differences(&of(&first), &of(&second), max, differ_at);
    found
}

fn lines(first: &Tree, second: &Tree, max: usize) -> Vec<String> {
    compare(first, second, max).0.iter().map(|difference| difference.describe("n0", "n1")).collect()
}

fn file(contents: &str) -> Tree {
    Tree::File { executable: false, contents: contents.into() }
}

fn directory<const N: usize>(entries: [(&str, Tree); N]) -> Tree {
    Tree::Directory(entries.into_iter().map(|(name, tree)| (name.into(), tree)).collect::<BTreeMap<_, _>>())
}

#[test]
fn each_kind_of_difference_is_one_line_with_its_path() {
    let link = |target: &str| Tree::Symlink(target.into());
    let first = directory([
        ("bin", directory([("run", Tree::File { executable: true, contents: b"#!/bin/sh".to_vec() })])),
        ("date", file("built at 12:00")),
        ("lib", directory([("a.so", file("a")), ("b.so", file("b"))])),
        ("log", file("one")),
        ("same", directory([("deep", file("same"))])),
        ("self", link("here")),
        ("tmp\x1b", directory([])),
    ]);
    let second = directory([
        ("bin", directory([("run", file("#!/bin/sh"))])),
        ("date", file("built at 12:30")),
        ("lib", directory([("a.so", file("a")), ("c.so", file("c"))])),
        ("log", file("one more")),
        ("same", directory([("deep", file("same"))])),
        ("self", link("there")),
        ("tmp\x1b", file("")),
    ]);
    let expected = [
        "bin/run: executable only in n0",
        "date: contents differ from byte 12 on, of 14",
        "lib/b.so: only in n0",
        "lib/c.so: only in n1",
        "log: contents differ from byte 3 on, of 3 in n0 and 8 in n1",
        "self: points to 'here' in n0, to 'there' in n1",
        "tmp\\x1b: a directory in n0, a file in n1",
    ];
    assert_eq!(lines(&first, &second, 10), expected);
    assert_eq!(lines(&first, &second, 7), expected);
    assert!(!compare(&first, &second, 7).1 && compare(&first, &second, 6).1, "it is said that there are more");
    assert_eq!(lines(&first, &second, 2), expected[..2]);
    assert_eq!(lines(&file("a"), &file("b"), 9), ["the output itself: contents differ from byte 0 on, of 1"]);
}

proptest! {
    #[test]
    fn trees_differ_where_they_are_not_the_same_and_nowhere_else(first in tree(), second in tree()) {
        prop_assert_eq!(compare(&first, &first, 100), (Vec::new(), false));
        let (found, is_cut) = compare(&first, &second, 1_000);
        prop_assert_eq!(found.is_empty(), nar_of(&first) == nar_of(&second));
        prop_assert!(!is_cut);
        let turned: Vec<What> = compare(&second, &first, 1_000).0.into_iter().map(|found| turn(found.what)).collect();
        let straight: Vec<What> = found.into_iter().map(|found| found.what).collect();
        prop_assert_eq!(turned, straight);
    }
}

fn turn(what: What) -> What {
    match what {
        What::OnlyInFirst => What::OnlyInSecond,
        What::OnlyInSecond => What::OnlyInFirst,
        What::Kind { first, second } => What::Kind { first: second, second: first },
        What::Executable { first } => What::Executable { first: !first },
        What::Target { first, second } => What::Target { first: second, second: first },
        What::Contents { byte, first_size, second_size } => {
            What::Contents { byte, first_size: second_size, second_size: first_size }
        }
    }
}
