//! Manifests: one encoding, one content root, and sums that add up.

use crate::nar_trees::{nar_of, tree};
use proptest::prelude::*;
use shoal_wire::mesh::manifest::{CHUNK_LEN_MAX, ChunkRef, Manifest, ManifestError, content_root};
use shoal_wire::nix::nar::NarLimits;
use shoal_wire::nix::nar::index::IndexBuilder;
use shoal_wire::nix::nar::parse::NarParser;

/// The manifest of a NAR that is cut every `len` bytes.
fn manifest_of(nar: &[u8], len: usize) -> Manifest {
    let mut parser = NarParser::new(NarLimits::ANY_RELEASE);
    let mut builder = IndexBuilder::new();
    parser.feed(nar, &mut builder).expect("a NAR");
    let chunk = |bytes: &[u8]| ChunkRef { hash: content_root(bytes), len: bytes.len() as u32 };
    let index = builder.finish(parser.offset()).expect("whole");
    Manifest { chunks: nar.chunks(len).map(chunk).collect(), index }
}

proptest! {
    #[test]
    fn a_manifest_survives_with_its_root(tree in tree(), len in 1..500usize) {
        let manifest = manifest_of(&nar_of(&tree), len);
        let encoded = manifest.encode();
        prop_assert_eq!(manifest.content_root(), content_root(&encoded));
        prop_assert_eq!(Manifest::decode(&encoded).unwrap(), manifest);
    }

    /// Other bytes are another manifest or none.
    #[test]
    fn a_mutated_manifest_is_refused_or_canonical(tree in tree(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut encoded = manifest_of(&nar_of(&tree), 64).encode();
        let at = at.index(encoded.len());
        if cut {
            encoded.truncate(at);
        } else {
            encoded[at] = byte;
        }
        if let Ok(manifest) = Manifest::decode(&encoded) {
            prop_assert_eq!(manifest.encode(), encoded);
        }
    }
}

#[test]
fn what_does_not_add_up_is_refused() {
    let nar = nar_of(&crate::nar_trees::Tree::Symlink(b"x".to_vec()));
    let good = manifest_of(&nar, 50);
    let decoded = |change: fn(&mut Manifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        Manifest::decode(&manifest.encode()).map(|_| ())
    };
    assert_eq!(decoded(|_| ()), Ok(()));
    let nar = nar.len() as u64;
    assert_eq!(decoded(|m| m.chunks[0].len += 1), Err(ManifestError::Size { chunks: nar + 1, nar }));
    assert_eq!(decoded(|m| m.chunks[0].len = 0), Err(ManifestError::ChunkLen(0)));
    assert_eq!(decoded(|m| m.chunks[0].len = CHUNK_LEN_MAX + 1), Err(ManifestError::ChunkLen(CHUNK_LEN_MAX + 1)));
    assert_eq!(decoded(|m| m.chunks.clear()), Err(ManifestError::Size { chunks: 0, nar }));
    let mut encoded = good.encode();
    encoded.push(0);
    assert_eq!(Manifest::decode(&encoded), Err(ManifestError::NotCanonical), "a byte too many");
    encoded[0] = 2;
    assert_eq!(Manifest::decode(&encoded), Err(ManifestError::Version(2)));
    assert!(matches!(Manifest::decode(&[]), Err(ManifestError::Encoding(_))));
}

/// The format is fixed: nodes of different builds must agree on content roots.
#[test]
fn the_encoding_does_not_drift() {
    let nar = nar_of(&crate::nar_trees::Tree::File { executable: true, contents: b"hello\n".to_vec() });
    let root: String = manifest_of(&nar, 100).content_root().iter().map(|byte| format!("{byte:02x}")).collect();
    expect_test::expect!["5d5cd13e4fef85f9b849c607fa046c57b35f71b3742f944fb5d4e7d7e1d77d86"].assert_eq(&root);
}
