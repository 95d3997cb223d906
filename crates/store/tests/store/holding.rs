//! Chunks that come one by one: cut as an ingest cuts them, checked, and held until their paths are made.

use crate::support::*;
use shoal_store::{ChunkError, ChunkHold, Effort, GcAction, GcRequest, IngestError, NarCutter, Options, Store};
use shoal_wire::mesh::manifest::ChunkRef;
use std::io::Read;

/// Fed in pieces of `len` bytes.
fn cut(nar: &[u8], len: usize) -> Vec<(ChunkRef, Vec<u8>)> {
    cut_nar(nar, len, Effort::Level)
}

fn refs(chunks: &[(ChunkRef, Vec<u8>)]) -> Vec<ChunkRef> {
    chunks.iter().map(|(chunk, _)| *chunk).collect()
}

fn hashes(chunks: &[(ChunkRef, Vec<u8>)]) -> Vec<[u8; 32]> {
    chunks.iter().map(|(chunk, _)| chunk.hash).collect()
}

fn bring(hold: &mut ChunkHold, chunks: &[(ChunkRef, Vec<u8>)]) -> Result<(), ChunkError> {
    hold.bring(chunks.iter().map(|(chunk, frame)| (*chunk, &frame[..])))
}

fn collect(store: &Store) {
    store.collect(&GcRequest::new(GcAction::DeleteDead)).unwrap();
}

/// A NAR of some dozen chunks, all different.
fn sample(rng: &mut Rng) -> Vec<u8> {
    directory([("a", file(rng.noise(1_500_000))), ("b", file(rng.text(700_000))), ("c", file("small"))]).nar()
}

#[test]
fn a_nar_is_cut_as_an_ingest_cuts_it() {
    let mut rng = Rng::seeded("cut");
    let test = TestStore::new();
    for round in 0..12 {
        let nar = Tree::random(&mut rng, 1 << 20).nar();
        let at = path(&format!("cut {round}"));
        add(&test.store, &at, &nar, &[]);
        let len = 1 + rng.below(300_000) as usize;
        assert_eq!(refs(&cut(&nar, len)), test.store.manifest(&at).unwrap().unwrap().chunks, "in pieces of {len}");
    }
}

#[test]
fn bytes_after_a_nar_or_too_few_are_no_nar() {
    let nar = file("x").nar();
    let none = |_: &[u8]| Ok::<_, IngestError>(());
    let mut cutter = NarCutter::default();
    assert!(matches!(cutter.feed(&[&nar[..], b"1234"].concat(), none), Err(IngestError::Trailing(4))));
    let mut cutter = NarCutter::default();
    cutter.feed(&nar[..nar.len() - 8], none).unwrap();
    assert!(cutter.finish(none).is_err());
}

#[test]
fn chunks_that_were_brought_make_a_path() {
    let mut rng = Rng::seeded("brought");
    let test = TestStore::new();
    let nar = sample(&mut rng);
    let chunks = cut(&nar, 100_000);
    let mut hold = test.store.hold_chunks();
    assert_eq!(hold.lacks(&hashes(&chunks)).unwrap(), vec![true; chunks.len()]);
    bring(&mut hold, &chunks).unwrap();
    assert_eq!(hold.lacks(&hashes(&chunks)).unwrap(), vec![false; chunks.len()]);
    assert_eq!(hold.len(), chunks.len());
    let mut ingest = test.store.ingest();
    std::io::copy(&mut hold.contents(refs(&chunks)).unwrap(), &mut ingest).unwrap();
    let ingested = ingest.finish().unwrap();
    test.store.add_root("p", &path("p")).unwrap();
    test.store.commit(vec![(info(&path("p"), &ingested), ingested)]).unwrap();
    drop(hold);
    collect(&test.store);
    assert_eq!(test.store.stats().unwrap().pinned, 0);
    assert!(export(&test.reopened().store, &path("p")) == nar);
}

/// What a collection must not take: chunks of an upload that goes on, whoever asked for them first.
#[test]
fn a_collection_leaves_what_is_held() {
    let mut rng = Rng::seeded("held");
    let test = TestStore::new();
    let nar = sample(&mut rng);
    let chunks = cut(&nar, 100_000);
    let (first, second) = chunks.split_at(chunks.len() / 2);
    // Half of them belong to a path that is about to be deleted, half are brought.
    add(&test.store, &path("old"), &nar, &[]);
    let mut hold = test.store.hold_chunks();
    assert_eq!(hold.lacks(&hashes(first)).unwrap(), vec![false; first.len()]);
    collect(&test.store);
    assert!(!test.store.is_valid(&path("old")).unwrap());
    assert_eq!(hold.lacks(&hashes(first)).unwrap(), vec![false; first.len()], "what was named is still here");
    let lacking = hold.lacks(&hashes(second)).unwrap();
    assert_eq!(lacking, vec![true; second.len()], "what nobody named is gone");
    bring(&mut hold, second).unwrap();
    // Enough to close segments, so that they can be deleted or compacted.
    for round in 0..4 {
        add(&test.store, &path(&format!("other {round}")), &file(rng.noise(3 << 20)).nar(), &[]);
        collect(&test.store);
    }
    let mut other = test.store.hold_chunks();
    assert_eq!(other.lacks(&hashes(&chunks)).unwrap(), vec![false; chunks.len()], "another's hold is enough");
    drop(hold);
    collect(&test.store);
    let mut contents = Vec::new();
    other.contents(refs(&chunks)).unwrap().read_to_end(&mut contents).unwrap();
    assert!(contents == nar);
}

#[test]
fn what_no_hold_keeps_is_swept_and_asked_for_again() {
    let mut rng = Rng::seeded("dropped");
    let test = TestStore::new();
    let chunks = cut(&sample(&mut rng), 100_000);
    let mut hold = test.store.hold_chunks();
    bring(&mut hold, &chunks).unwrap();
    drop(hold);
    collect(&test.store);
    let mut hold = test.store.hold_chunks();
    assert_eq!(hold.lacks(&hashes(&chunks)).unwrap(), vec![true; chunks.len()]);
}

#[test]
fn chunks_that_are_not_what_they_say_are_refused() {
    let mut rng = Rng::seeded("lies");
    let test = TestStore::new();
    let chunks = cut(&sample(&mut rng), 100_000);
    let mut hold = test.store.hold_chunks();
    let (one, two) = (chunks[1].clone(), chunks[2].clone());
    let other_bytes = (one.0, two.1.clone());
    let other_len = (ChunkRef { len: one.0.len + 1, ..one.0 }, one.1.clone());
    let other_name = (ChunkRef { hash: [1; 32], ..one.0 }, one.1.clone());
    let torn = (one.0, one.1[..one.1.len() / 2].to_vec());
    let long = (ChunkRef { len: 1 << 20, ..one.0 }, one.1.clone());
    let empty = (ChunkRef { len: 0, ..one.0 }, one.1.clone());
    assert!(matches!(bring(&mut hold, &[other_name]), Err(ChunkError::Hash([1, ..]))));
    for lie in [other_bytes, other_len, torn, long, empty] {
        assert!(!matches!(bring(&mut hold, &[lie]), Ok(()) | Err(ChunkError::Store(_))));
    }
    assert_eq!(hold.lacks(&[one.0.hash, [1; 32]]).unwrap(), [true, true]);
    bring(&mut hold, &[one.clone(), two]).unwrap();
    assert_eq!(hold.lacks(&[one.0.hash]).unwrap(), [false]);
}

/// As a node is used that only reads what others have, and commits nothing.
#[test]
fn what_was_held_and_never_committed_is_counted_and_given_back() {
    let mut rng = Rng::seeded("held");
    let test = TestStore::new();
    let mut holds = Vec::new();
    for _ in 0..12 {
        let chunks = cut(&file(rng.noise(1 << 20)).nar(), 1 << 20);
        let mut hold = test.store.hold_chunks();
        hold.lacks(&hashes(&chunks)).unwrap();
        bring(&mut hold, &chunks).unwrap();
        holds.push(hold);
    }
    let used = || test.store.stats().unwrap().segment_bytes;
    assert!(used() >= 12 << 20, "{}", used());
    assert_eq!(test.store.reclaim().unwrap(), 0, "all of it is held");
    holds.drain(..8);
    let before = used();
    let given = test.store.reclaim().unwrap();
    assert!(given >= 3 << 20 && before - used() == given, "{given} of {before}");
    holds.clear();
    collect(&test.store);
    assert!(used() <= 4 << 20, "but for the segment that is open nothing stays: {}", used());
    assert!(test.reopened().store.verify(true).unwrap().damage.is_empty());
}

/// The open segment may be all that a small disk has room for.
#[test]
fn a_segment_that_is_open_and_mostly_dead_is_given_back() {
    let mut rng = Rng::seeded("open");
    let test = TestStore::with(Options { segment_bytes: 64 << 20, ..small_options() });
    let kept = file(rng.noise(1 << 20)).nar();
    add(&test.store, &path("kept"), &kept, &[]);
    let chunks = cut(&file(rng.noise(10 << 20)).nar(), 1 << 20);
    let mut hold = test.store.hold_chunks();
    hold.lacks(&hashes(&chunks)).unwrap();
    bring(&mut hold, &chunks).unwrap();
    assert_eq!(test.store.reclaim().unwrap(), 0);
    drop(hold);
    assert!(test.store.reclaim().unwrap() >= 10 << 20);
    let used = test.store.stats().unwrap().segment_bytes;
    assert!(used < 2 << 20, "{used}");
    assert!(export(&test.store, &path("kept")) == kept);
    assert!(export(&test.reopened().store, &path("kept")) == kept);
}
