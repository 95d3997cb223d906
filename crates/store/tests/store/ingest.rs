//! What goes in comes out, chunked as the format says.

use crate::support::{Rng, TestStore, Tree, add, directory, export, file, info, ingest, path};
use shoal_store::IngestError;
use shoal_wire::nix::hash::sha256;
use std::collections::HashSet;
use std::io::Write;

#[test]
fn any_tree_comes_out_as_it_went_in() {
    let mut rng = Rng::seeded("any_tree");
    let mut t = TestStore::new();
    let mut kept = Vec::new();
    for round in 0..40 {
        let tree = Tree::random(&mut rng, if round % 10 == 0 { 3 << 20 } else { 60_000 });
        let nar = tree.nar();
        let mut ingest = t.store.ingest();
        let mut rest = &nar[..];
        while !rest.is_empty() {
            let n = (1 + rng.below(200_000) as usize).min(rest.len());
            ingest.write_all(&rest[..n]).expect("ingest");
            rest = &rest[n..];
        }
        let ingested = ingest.finish().expect("finish");
        assert_eq!(ingested.nar_hash, sha256(&nar));
        assert_eq!(ingested.nar_size, nar.len() as u64);
        let path = path(&format!("tree {round}"));
        t.store.commit(vec![(info(&path, &ingested), ingested)]).expect("commit");
        kept.push((path, nar));
    }
    for reopened in [false, true] {
        for (path, nar) in &kept {
            assert!(export(&t.store, path) == *nar, "{path} differs; reopened: {reopened}");
        }
        if !reopened {
            t = t.reopened();
        }
    }
    let report = t.store.verify(true).expect("verify");
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    assert_eq!(report.paths, 40);
}

#[test]
fn the_same_contents_are_stored_once() {
    let t = TestStore::new();
    let nar = directory([("a", file(Rng(7).noise(1 << 20)))]).nar();
    add(&t.store, &path("first"), &nar, &[]);
    let once = t.store.stats().expect("stats");
    add(&t.store, &path("second"), &nar, &[]);
    let twice = t.store.stats().expect("stats");
    assert_eq!((once.chunks, once.segment_bytes), (twice.chunks, twice.segment_bytes));
    assert_eq!(twice.paths, 2);
}

#[test]
fn a_big_file_has_the_same_chunks_in_any_tree() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("a_big_file");
    let big = rng.noise(2 << 20);
    let alone = file(big.clone()).nar();
    let deep = directory([
        ("aaa", file(rng.text(20_000))),
        ("lib", directory([("x", file(rng.text(777))), ("y.so", file(big.clone())), ("z", file(rng.text(50_000)))])),
    ])
    .nar();
    let chunks = |nar: &[u8], name: &str| -> HashSet<[u8; 32]> {
        add(&t.store, &path(name), nar, &[]);
        let manifest = t.store.manifest(&path(name)).expect("manifest").expect("valid");
        assert_eq!(manifest.chunks.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>(), nar.len() as u64);
        manifest.chunks.iter().map(|chunk| chunk.hash).collect()
    };
    let (alone, deep) = (chunks(&alone, "alone"), chunks(&deep, "deep"));
    // All but the NAR's own words around the file.
    assert_eq!(alone.difference(&deep).count(), 2, "before and after the contents");
}

#[test]
fn a_nar_that_is_none_leaves_nothing() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("a_nar_that_is_none");
    let nar = Tree::random(&mut rng, 400_000).nar();
    for _ in 0..40 {
        let cut = rng.below(nar.len() as u64) as usize;
        let mut ingest = t.store.ingest();
        ingest.write_all(&nar[..cut]).expect("a prefix is no error yet");
        assert!(!ingest.is_done());
        assert!(matches!(ingest.finish(), Err(IngestError::Nar(_))), "cut at {cut}");
    }
    let mut ingest = t.store.ingest();
    assert!(ingest.write_all(b"\x0d\0\0\0\0\0\0\0nix-archive-2").is_err());
    assert!(matches!(ingest.feed(b"x"), Err(IngestError::Failed)));
    drop(ingest);
    let mut ingest = t.store.ingest();
    ingest.write_all(&nar).expect("a NAR");
    assert!(ingest.is_done());
    assert_eq!(ingest.feed(b"more").expect("not ours"), 0);
    assert!(ingest.write_all(b"more").is_err(), "bytes after the NAR");
    drop(ingest);
    let stats = t.store.stats().expect("stats");
    assert_eq!((stats.paths, stats.chunks, stats.pinned), (0, 0, 0));
}

#[test]
fn concurrent_ingests_of_the_same_contents_store_it_once() {
    let t = TestStore::new();
    let nar = file(Rng::seeded("concurrent_ingests").noise(3 << 20)).nar();
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let (store, nar) = (&t.store, &nar);
            scope.spawn(move || add(store, &path(name), nar, &[]));
        }
    });
    let stats = t.store.stats().expect("stats");
    assert_eq!((stats.paths, stats.pinned), (4, 0));
    // Incompressible: what is live is the NAR and the records' headers, once.
    assert!(stats.live_bytes < nar.len() as u64 * 101 / 100, "{stats:?}");
    assert!(stats.segment_bytes < nar.len() as u64 * 101 / 100, "written twice: {stats:?}");
    for name in ["a", "b", "c", "d"] {
        assert!(export(&t.store, &path(name)) == nar);
    }
}

/// Every length near a block, a queue and a chunk boundary of the hashing and chunking machinery.
#[test]
fn hashes_are_right_at_every_length() {
    let t = TestStore::new();
    let noise = Rng(3).noise(3 << 20);
    let block = 128 << 10;
    for len in [0, 1, 7, 8, block - 300, block - 136, block - 128, block, 2 * block - 132, 8 * block, 17 * block + 5] {
        for len in len..len + 3 {
            let nar = file(&noise[..len]).nar();
            assert_eq!(ingest(&t.store, &nar).nar_hash, sha256(&nar), "{len} bytes");
        }
    }
}

/// The file of the next segment cannot be made: whichever thread packs, the ingest fails, and nothing of it stays.
#[test]
fn what_fails_beside_an_ingest_fails_it() {
    let mut rng = Rng::seeded("what_fails_beside");
    let t = TestStore::new();
    let before = file(rng.noise(100_000)).nar();
    add(&t.store, &path("before"), &before, &[]);
    let obstacle = t.dir.path().join("segments/00000001.seg");
    std::fs::create_dir(&obstacle).expect("an obstacle");
    // More than the rest of the first segment; the last of them is shorter than a block, packed by its own ingest.
    for len in [20 << 20, 9 << 20, 5 << 20] {
        let nar = file(rng.noise(len)).nar();
        let mut ingest = t.store.ingest();
        let error = match ingest.write_all(&nar) {
            Ok(()) => ingest.finish().map(|_| ()).expect_err("no segment can be made").to_string(),
            Err(error) => {
                assert!(matches!(ingest.feed(b"more"), Err(IngestError::Failed)));
                assert!(matches!(ingest.finish(), Err(IngestError::Failed)));
                error.to_string()
            }
        };
        assert!(error.contains("00000001.seg"), "{error}");
        assert_eq!(t.store.stats().expect("stats").pinned, 0);
    }
    std::fs::remove_dir(&obstacle).expect("remove");
    let after = file(rng.noise(9 << 20)).nar();
    add(&t.store, &path("after"), &after, &[]);
    let t = t.reopened();
    assert!(export(&t.store, &path("before")) == before && export(&t.store, &path("after")) == after);
    assert!(t.store.verify(true).expect("verify").damage.is_empty());
}

/// Of two ingests of the same bytes one is dropped at any point: the other is whole.
#[test]
fn a_dropped_ingest_takes_nothing_from_another() {
    let mut rng = Rng::seeded("a_dropped_ingest");
    for round in 0..30 {
        let t = TestStore::new();
        let nar = Tree::random(&mut rng, 3 << 20).nar();
        let (mut dropped, mut kept) = (t.store.ingest(), t.store.ingest());
        let (stop, lead) = (rng.below(nar.len() as u64 + 1) as usize, rng.below(600_000) as usize);
        let mut at = 0;
        let mut dropped_at = 0;
        for piece in nar.chunks(100_000) {
            // Now one of them is first with a chunk, now the other.
            let upto = (at + lead * rng.below(2) as usize).min(stop);
            if dropped_at < upto {
                dropped.write_all(&nar[dropped_at..upto]).expect("ingest");
                dropped_at = upto;
            }
            kept.write_all(piece).expect("ingest");
            at += piece.len();
        }
        match rng.below(3) {
            0 => drop(dropped.finish()),
            _ => drop(dropped),
        }
        let ingested = kept.finish().expect("finish");
        t.store.commit(vec![(info(&path("p"), &ingested), ingested)]).expect("commit");
        assert!(export(&t.store, &path("p")) == nar, "round {round}");
        assert_eq!(t.store.stats().expect("stats").pinned, 0);
        assert!(export(&t.reopened().store, &path("p")) == nar, "round {round}");
    }
}
