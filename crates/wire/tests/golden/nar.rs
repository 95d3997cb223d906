//! The NAR parser, writer and index.

use crate::nar_trees::{Event, Record, Tree, cuts, nar_of, parse_in_pieces, tree};
use crate::shared;
use proptest::prelude::*;
use shoal_wire::nix::nar::index::{IndexBuilder, NarIndex, Node};
use shoal_wire::nix::nar::parse::NarParser;
use shoal_wire::nix::nar::stream::NarReader;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::nar::{Discard, NarError, NarLimits};
use std::collections::BTreeMap;
use std::io::Read;

const ANY: NarLimits = NarLimits::ANY_RELEASE;

pub fn index_of(nar: &[u8], limits: NarLimits) -> NarIndex {
    let mut parser = NarParser::new(limits);
    let mut builder = IndexBuilder::new();
    assert_eq!(parser.feed(nar, &mut builder), Ok(nar.len()));
    builder.finish(parser.offset()).expect("a whole NAR")
}

fn with_cuts() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    tree().prop_flat_map(|tree| {
        let nar = nar_of(&tree);
        let len = nar.len();
        (Just(nar), cuts(len))
    })
}

proptest! {
    #[test]
    fn events_do_not_depend_on_how_the_bytes_are_cut((nar, cuts) in with_cuts()) {
        let whole = parse_in_pieces(&nar, &[], ANY).unwrap();
        let every: Vec<usize> = (0..nar.len()).collect();
        prop_assert_eq!(&parse_in_pieces(&nar, &cuts, ANY).unwrap(), &whole);
        prop_assert_eq!(&parse_in_pieces(&nar, &every, ANY).unwrap(), &whole);
    }

    #[test]
    fn a_writer_behind_the_parser_copies_the_nar((nar, cuts) in with_cuts()) {
        let mut parser = NarParser::new(ANY);
        let mut writer = NarWriter::new(Vec::new());
        let mut from = 0;
        for to in cuts.into_iter().chain([nar.len()]) {
            parser.feed(&nar[from..to], &mut writer).unwrap();
            from = to;
        }
        prop_assert_eq!(writer.finish().unwrap(), nar);
    }

    #[test]
    fn an_index_finds_every_file_and_survives_encoding(tree in tree()) {
        let nar = nar_of(&tree);
        let index = index_of(&nar, ANY);
        check_tree(&index, &nar, &mut Vec::new(), &tree);
        prop_assert_eq!(index.nar_size(), nar.len() as u64);
        prop_assert_eq!(index.walk().count(), index.entries().len());
        let encoded = postcard::to_stdvec(&index).unwrap();
        prop_assert_eq!(postcard::from_bytes::<NarIndex>(&encoded).unwrap(), index);
    }

    #[test]
    fn a_reader_gives_one_nar_of_a_longer_stream((nar, _) in with_cuts(), tail in any::<[u8; 9]>()) {
        let stream = [nar.as_slice(), &tail].concat();
        for capacity in [1, 7, 4096] {
            let mut inner = std::io::BufReader::with_capacity(capacity, stream.as_slice());
            let mut out = Vec::new();
            NarReader::new(&mut inner, ANY, Discard).read_to_end(&mut out).unwrap();
            prop_assert_eq!(&out, &nar);
            let mut rest = Vec::new();
            inner.read_to_end(&mut rest).unwrap();
            prop_assert_eq!(rest, tail);
        }
    }

    #[test]
    fn a_prefix_is_truncated((nar, _) in with_cuts(), at in any::<prop::sample::Index>()) {
        let prefix = &nar[..at.index(nar.len())];
        let mut parser = NarParser::new(ANY);
        prop_assert_eq!(parser.feed(prefix, &mut Discard), Ok(prefix.len()));
        prop_assert_eq!(parser.finish(), Err(NarError::Truncated { offset: prefix.len() as u64 }));
        prop_assert!(NarReader::new(prefix, ANY, Discard).finish().is_err());
    }

    /// One tree has one NAR: whatever is accepted is what the writer would have written.
    #[test]
    fn what_is_accepted_is_canonical((mut nar, _) in with_cuts(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let at = at.index(nar.len());
        nar[at] = byte;
        let mut parser = NarParser::new(ANY);
        let mut writer = NarWriter::new(Vec::new());
        if let Ok(used) = parser.feed(&nar, &mut writer) && parser.is_done() {
            prop_assert_eq!(&writer.finish().unwrap(), &nar[..used]);
        }
    }

    #[test]
    fn a_mutated_index_never_panics(tree in tree(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut encoded = postcard::to_stdvec(&index_of(&nar_of(&tree), ANY)).unwrap();
        let at = at.index(encoded.len());
        encoded[at] = byte;
        if let Ok(index) = postcard::from_bytes::<NarIndex>(&encoded) {
            prop_assert_eq!(index.walk().count(), index.entries().len());
        }
    }
}

fn check_tree<'a>(index: &NarIndex, nar: &[u8], path: &mut Vec<&'a [u8]>, tree: &'a Tree) {
    let entry = index.lookup(path.iter().copied()).expect("entry is indexed");
    match (tree, &entry.node) {
        (Tree::Directory(entries), Node::Directory { .. }) => {
            let names: Vec<&[u8]> = index.children(entry).iter().map(|child| &*child.name).collect();
            assert_eq!(names, entries.keys().map(Vec::as_slice).collect::<Vec<_>>());
            for (name, child) in entries {
                path.push(name);
                check_tree(index, nar, path, child);
                path.pop();
            }
        }
        (Tree::File { executable, contents }, Node::Regular { executable: x, size, offset }) => {
            assert_eq!(x, executable);
            let start = *offset as usize;
            assert_eq!(&nar[start..start + *size as usize], contents);
        }
        (Tree::Symlink(target), Node::Symlink { target: indexed }) => assert_eq!(**indexed, **target),
        (tree, node) => panic!("{tree:?} was indexed as {node:?}"),
    }
    assert!(index.lookup(path.iter().copied().chain([&b"/"[..]])).is_none());
}

#[test]
fn what_nix_refuses_is_refused() {
    let Some(dir) = shared::find("what_nix_refuses_is_refused", "conformance/nix/libutil/nars") else {
        return;
    };
    let mut verdicts = BTreeMap::new();
    for file in std::fs::read_dir(dir).expect("folder of NARs") {
        let file = file.expect("folder entry");
        let nar = std::fs::read(file.path()).expect("NAR");
        let verdict = match parse_in_pieces(&nar, &[], NarLimits::STRICT) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        verdicts.insert(file.file_name().to_string_lossy().into_owned(), verdict);
    }
    let all: String = verdicts.iter().map(|(name, verdict)| format!("{name}: {verdict}\n")).collect();
    expect_test::expect![[r#"
        dot.nar: NAR contains an invalid file name "."
        dotdot.nar: NAR contains an invalid file name ".."
        empty.nar: NAR contains an invalid file name ""
        executable-after-contents.nar: not a NAR at offset 240: expected ")"
        invalid-tag-instead-of-contents.nar: not a NAR at offset 88: expected "executable" or "contents"
        name-after-node.nar: not a NAR at offset 96: expected "(" "name"
        nul-character.nar: NAR contains an invalid file name "f\0o"
        regular-one-byte-non-zero-padding.nar: not a NAR at offset 97: non-zero padding
        regular-one-byte-zero-padding.nar: accepted
        regular-truncated-large-contents.nar: NAR contents of 18446744073709551615 bytes do not fit at offset 96
        regular-truncated-padding.nar: NAR ends at offset 100 before it is complete
        slash.nar: NAR contains an invalid file name "x/y"
    "#]]
    .assert_eq(&all);
}

/// A directory in a directory, `levels` nodes deep in all.
fn nested(levels: usize) -> Vec<u8> {
    let wide = NarLimits { depth: usize::MAX, ..ANY };
    let mut writer = NarWriter::with_limits(Vec::new(), wide);
    for level in 0..levels {
        writer.directory(if level == 0 { b"" } else { b"d" }).expect("directory");
    }
    for _ in 0..levels {
        writer.end_directory().expect("end");
    }
    writer.finish().expect("whole")
}

#[test]
fn depth_is_limited_and_costs_no_stack() {
    let strict = |levels| parse_in_pieces(&nested(levels), &[], NarLimits::STRICT).map(|_| ());
    assert_eq!(strict(64), Ok(()));
    assert_eq!(strict(65), Err(NarError::Depth { limit: 64 }));
    let deep = nested(200_000);
    let index = index_of(&deep, NarLimits { depth: usize::MAX, ..ANY });
    assert_eq!(index.walk().last().map(|(depth, _)| depth), Some(199_999));
    assert!(index.listing().expect("ASCII names").len() > 200_000);
    // A peer's index of such a tree is refused without using the stack either.
    let encoded = postcard::to_stdvec(&index).expect("encodes");
    assert!(postcard::from_bytes::<NarIndex>(&encoded).is_err());
}

#[test]
fn names_and_targets_have_limits() {
    let file = |name: &[u8]| {
        let mut writer = NarWriter::new(Vec::new());
        writer.directory(b"").expect("root");
        writer.symlink(name, &[b't'; 4095])
    };
    assert!(file(&[b'n'; 255]).is_ok());
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'n'; 256]] {
        assert!(file(name).is_err(), "{name:?}");
    }
    let mut writer = NarWriter::new(Vec::new());
    for target in [&b""[..], b"a\0b", &[b't'; 4096]] {
        assert!(writer.symlink(b"", target).is_err());
    }
    writer.symlink(b"", b"t").expect("a target");
    assert!(writer.symlink(b"", b"t").is_err(), "a second root");
}

#[test]
fn the_writer_refuses_wrong_order() {
    let mut writer = NarWriter::new(Vec::new());
    assert!(writer.contents(b"x").is_err());
    assert!(writer.end_directory().is_err());
    assert!(writer.directory(b"named root").is_err());
    writer.directory(b"").expect("root");
    writer.regular(b"b", false, 2).expect("file");
    assert!(writer.symlink(b"c", b"t").is_err(), "the file is open");
    assert!(writer.contents(b"too long").is_err());
    writer.contents(b"ok").expect("contents");
    assert!(writer.symlink(b"b", b"t").is_err(), "a name twice");
    assert!(writer.symlink(b"a", b"t").is_err(), "a smaller name");
    assert!(writer.finish().is_err(), "the root is open");
}

#[test]
fn a_plain_file_of_6_bytes_is_120_bytes() {
    let nar = nar_of(&Tree::File { executable: false, contents: b"hello\n".to_vec() });
    assert_eq!(nar.len(), 120);
    let mut record = Record::default();
    let mut parser = NarParser::new(NarLimits::STRICT);
    parser.feed(&nar, &mut record).expect("a NAR");
    let expected =
        [Event::Regular(Vec::new(), false, 6, 96), Event::Contents(b"hello\n".to_vec(), 96), Event::EndRegular(102)];
    assert_eq!(record.0, expected);
}

/// The tree of Nix's own listing tests.
fn listed_tree() -> Tree {
    let file = |executable, contents: &str| Tree::File { executable, contents: contents.into() };
    let directory = |entries: Vec<(&str, Tree)>| {
        Tree::Directory(entries.into_iter().map(|(name, tree)| (name.into(), tree)).collect())
    };
    let bar = directory(vec![
        ("baz", file(true, "good day,\n\0\n\tworld!")),
        ("quux", Tree::Symlink(b"/over/there".to_vec())),
    ]);
    directory(vec![("bar", bar), ("foo", file(false, "hello\n\0\n\tworld!"))])
}

#[test]
fn listings_are_those_of_nix() {
    let nar = nar_of(&listed_tree());
    let listing = index_of(&nar, NarLimits::STRICT).listing().expect("UTF-8 names");
    let mut listing: serde_json::Value = serde_json::from_str(&listing).expect("JSON");
    assert_eq!(listing["version"], 1);
    for file in [&["bar", "baz"][..], &["foo"]] {
        let node = file.iter().fold(&mut listing["root"], |node, name| &mut node["entries"][name]);
        let offset = node["narOffset"].as_u64().expect("offset") as usize;
        assert!(nar[offset..].starts_with(if file.len() == 2 { b"good day" } else { b"hello\n\0\n" }));
        // The golden listing is of a tree that was never a NAR.
        node.as_object_mut().expect("object").remove("narOffset");
    }
    let test = "listings_are_those_of_nix";
    for name in ["deep", "shallow"] {
        let Some(path) = shared::find(test, &format!("conformance/nix/libutil/nar-listing/{name}.json")) else {
            return;
        };
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).expect("golden")).expect("JSON");
        if name == "shallow" {
            for (_, entry) in listing["root"]["entries"].as_object_mut().expect("entries") {
                *entry = serde_json::json!({});
            }
        }
        assert_eq!(listing["root"], golden, "{name}");
    }
}

#[test]
fn contents_pass_through_uncopied() {
    struct Inside<'a>(&'a [u8], usize);
    impl shoal_wire::nix::nar::NarSink for Inside<'_> {
        type Error = NarError;
        fn contents(&mut self, bytes: &[u8], _offset: u64) -> Result<(), NarError> {
            assert!(self.0.as_ptr_range().contains(&bytes.as_ptr()));
            self.1 += 1;
            Ok(())
        }
    }
    let nar = nar_of(&Tree::File { executable: true, contents: vec![7; 1 << 20] });
    let mut sink = Inside(&nar, 0);
    NarParser::new(NarLimits::STRICT).feed(&nar, &mut sink).expect("a NAR");
    assert_eq!(sink.1, 1, "in one piece");
}
