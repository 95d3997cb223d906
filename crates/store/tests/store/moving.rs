//! Chunks that move from store to store: frames as they lie, and NARs put together from them.

use crate::support::*;
use shoal_store::{
    Arrivals, AssembleError, ChunkError, ChunkHold, Effort, Encoder, FrameError, GcAction, GcRequest, ManifestRefused,
    ReceivedManifest, Store,
};
use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::nix::hash::sha256;
use std::fs;

/// What of a store's chunks lies on disk, in their order.
fn frames(store: &Store, chunks: &[ChunkRef]) -> Vec<Option<Vec<u8>>> {
    let frames = store.loose_frames(chunks.iter().map(|chunk| chunk.hash).collect()).unwrap();
    let mut found = Vec::new();
    while found.len() < chunks.len() {
        let read = frames.read(found.len(), 300_000).unwrap();
        assert!(!read.frames.is_empty(), "no progress");
        found.extend(read.frames.iter().map(|range| range.clone().map(|range| read.bytes[range].to_vec())));
    }
    found
}

fn arrivals<'a>(store: &Store, frames: impl IntoIterator<Item = (&'a ChunkRef, &'a [u8])>) -> Arrivals {
    let mut arrivals = store.arrivals().unwrap();
    for (chunk, frame) in frames {
        arrivals.slot(*chunk, false, frame.len()).unwrap().copy_from_slice(frame);
    }
    arrivals
}

fn bring(hold: &ChunkHold, store: &Store, chunks: &[ChunkRef], frames: &[Option<Vec<u8>>]) {
    let frames = chunks.iter().zip(frames).map(|(chunk, frame)| (chunk, frame.as_deref().unwrap()));
    let verified = arrivals(store, frames).verify().unwrap();
    assert!(verified.refused().is_none(), "{:?}", verified.refused());
    assert_eq!(verified.len(), chunks.len());
    hold.keep(verified).unwrap();
}

fn held(store: &Store, chunks: &[ChunkRef]) -> ChunkHold {
    let mut hold = store.hold_chunks();
    hold.lacks(&chunks.iter().map(|chunk| chunk.hash).collect::<Vec<_>>()).unwrap();
    hold
}

/// A store with one path: its NAR, content root and chunks.
struct There {
    test: TestStore,
    nar: Vec<u8>,
    root: [u8; 32],
    chunks: Vec<ChunkRef>,
}

fn there(what: &str) -> There {
    let mut rng = Rng::seeded(what);
    let test = TestStore::new();
    let nar = directory([("a", file(rng.noise(900_000))), ("b", file(rng.text(900_000)))]).nar();
    let at = path("there");
    add(&test.store, &at, &nar, &[]);
    let chunks = test.store.manifest(&at).unwrap().unwrap().chunks;
    There { root: test.store.content_root(&at).unwrap().unwrap(), test, nar, chunks }
}

fn received(there: &There, here: &Store) -> ReceivedManifest {
    let (packed, _) = there.test.store.packed_manifest(&there.root).unwrap().unwrap();
    ReceivedManifest::open(here, there.root, there.nar.len() as u64, packed).unwrap()
}

#[test]
fn a_path_moves_with_its_frames_as_they_are() {
    let (there, here) = (there("moves"), TestStore::new());
    let hold = held(&here.store, &there.chunks);
    let stored = frames(&there.test.store, &there.chunks);
    bring(&hold, &here.store, &there.chunks, &stored);
    let ingested = hold.assemble(&received(&there, &here.store), sha256(&there.nar)).unwrap();
    assert_eq!(here.store.nar_hash(&ingested).unwrap(), sha256(&there.nar));
    assert!(here.store.paths().unwrap().is_empty(), "valid before it was committed");
    let at = path("here");
    here.store.commit(vec![(info(&at, &ingested), ingested)]).unwrap();
    assert_eq!(export(&here.store, &at), there.nar);
    assert_eq!(frames(&here.store, &there.chunks), stored, "compressed anew");
    drop(hold);
    let here = here.reopened();
    assert_eq!(export(&here.store, &at), there.nar);
    assert!(here.store.kept_manifest(there.root, there.nar.len() as u64).unwrap().is_some());
}

/// What is refused of a frame for the first chunk; the ones before it and after it are right.
fn refusal(there: &There, here: &Store, frame: &[u8]) -> Option<ChunkError> {
    let stored = frames(&there.test.store, &there.chunks);
    let right = |n: usize| (&there.chunks[n], stored[n].as_deref().unwrap());
    let hold = held(here, &there.chunks);
    let mut verified = arrivals(here, [right(1), (&there.chunks[0], frame), right(2)]).verify().unwrap();
    assert_eq!(verified.len(), if verified.refused().is_some() { 1 } else { 3 });
    let refused = verified.take_refused();
    hold.keep(verified).unwrap();
    assert!(hold.is_here(&there.chunks[1].hash), "what came before counts");
    assert_eq!(hold.is_here(&there.chunks[0].hash), refused.is_none());
    refused
}

#[test]
fn what_does_not_hold_its_chunk_is_refused() {
    let (there, here) = (there("refused"), TestStore::new());
    let first = frames(&there.test.store, &there.chunks[..1])[0].clone().unwrap();
    let refused = |frame: &[u8]| refusal(&there, &here.store, frame);
    let is_unusual = |frame: &[u8]| {
        let refused = refused(frame);
        matches!(refused, Some(ChunkError::Frame { error: FrameError::Unusual, .. }))
    };
    let len = there.chunks[0].len as usize;
    let mut other = Vec::new();
    Encoder::new(1).unwrap().encode(&vec![b'x'; len], Effort::Level, &mut other).unwrap();
    assert!(matches!(refused(&other), Some(ChunkError::Hash(_))));
    let mut short = Vec::new();
    Encoder::new(1).unwrap().encode(&vec![b'x'; len - 1], Effort::Level, &mut short).unwrap();
    assert!(matches!(refused(&short), Some(ChunkError::Frame { error: FrameError::Length { .. }, .. })));
    assert!(is_unusual(b""), "nothing");
    assert!(is_unusual(&first[..first.len() - 1]), "cut");
    let empty = zstd::bulk::compress(b"", 1).unwrap();
    assert!(is_unusual(&[&first[..], &empty].concat()), "two frames");
    assert!(is_unusual(&[b"\x50\x2a\x4d\x18\x01\0\0\0x", &first[..]].concat()), "a skippable frame before it");
    // A window of 8 MiB: who reads a .zst file may refuse it, or take that much memory.
    let mut wide = first.clone();
    wide[4] &= !0b10_0000;
    wide.insert(5, 13 << 3);
    assert!(is_unusual(&wide), "a wide window");
    assert!(refused(&first).is_none());
}

#[test]
fn a_slot_has_limits() {
    let mut arrivals = TestStore::new().store.arrivals().unwrap();
    let chunk = |len| ChunkRef { hash: [0; 32], len };
    assert!(matches!(arrivals.slot(chunk(0), false, 10), Err(ChunkError::Len(0))));
    assert!(matches!(arrivals.slot(chunk(1 << 20), false, 10), Err(ChunkError::Len(_))));
    assert!(arrivals.slot(chunk(10), false, 1 << 20).is_err());
    arrivals.slot(chunk(10), false, 10).unwrap();
    arrivals.undo();
    assert_eq!((arrivals.is_empty(), arrivals.len()), (true, 0));
}

#[test]
fn chunks_that_nobody_holds_are_not_kept() {
    let (there, here) = (there("unheld"), TestStore::new());
    let hold = held(&here.store, &there.chunks[..1]);
    let two = &there.chunks[..2];
    bring(&hold, &here.store, two, &frames(&there.test.store, two));
    assert!(hold.is_here(&two[0].hash) && !hold.is_here(&two[1].hash));
    let hold = held(&here.store, &two[1..]);
    assert_eq!(hold.missing(&[two[1].hash]), [true]);
}

#[test]
fn a_nar_with_chunks_missing_is_not_put_together() {
    let (there, here) = (there("missing"), TestStore::new());
    let hold = held(&here.store, &there.chunks);
    let some = &there.chunks[1..];
    bring(&hold, &here.store, some, &frames(&there.test.store, some));
    match hold.assemble(&received(&there, &here.store), sha256(&there.nar)) {
        Err(AssembleError::Lacks(lacking)) => assert_eq!(lacking, [there.chunks[0].hash]),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn a_manifest_other_than_its_name_or_size_says_is_refused() {
    let (there, here) = (there("manifest"), TestStore::new());
    let (packed, len) = there.test.store.packed_manifest(&there.root).unwrap().unwrap();
    let size = there.nar.len() as u64;
    let open = |root, size, packed: &[u8]| ReceivedManifest::open(&here.store, root, size, packed.to_vec()).err();
    assert!(open(there.root, size, &packed).is_none());
    assert!(matches!(open([1; 32], size, &packed), Some(ManifestRefused::Defect(_))));
    assert!(matches!(open(there.root, size + 1, &packed), Some(ManifestRefused::Size { .. })));
    assert!(open(there.root, size, &packed[..packed.len() - 3]).is_some());
    // A frame that says that it holds more than any manifest of such a NAR is not given the memory.
    let bomb = zstd::bulk::compress(&vec![0; len + 100_000_000], 1).unwrap();
    assert!(matches!(open(there.root, size, &bomb), Some(ManifestRefused::Defect(_))));
}

#[test]
fn frames_that_are_being_read_stay_whatever_is_collected() {
    let there = there("collected");
    let dead = there.test.store.loose_frames(there.chunks.iter().map(|chunk| chunk.hash).collect()).unwrap();
    let before = frames(&there.test.store, &there.chunks);
    there.test.store.collect(&GcRequest::new(GcAction::DeleteDead)).unwrap();
    assert!(there.test.store.paths().unwrap().is_empty());
    let read = dead.read(0, usize::MAX >> 1).unwrap();
    let after: Vec<_> = read.frames.into_iter().map(|range| range.map(|range| read.bytes[range].to_vec())).collect();
    assert_eq!(after, before);
    drop(dead);
    assert!(frames(&there.test.store, &there.chunks).iter().all(Option::is_none), "nobody asks for them any more");
}

#[test]
fn frames_that_are_damaged_are_left_out_and_noted() {
    let there = there("left out");
    let segment = fs::read_dir(there.test.dir.path().join("segments")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&segment, bytes).unwrap();
    let found = frames(&there.test.store, &there.chunks);
    assert_eq!(found.iter().filter(|frame| frame.is_none()).count(), 1);
    assert_eq!(there.test.store.damaged_paths().unwrap().len(), 1);
    assert_eq!(frames(&there.test.store, &there.chunks), found, "what is known to be damaged is not read");
}
