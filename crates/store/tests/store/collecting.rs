//! Collection takes what is dead, all of it, and never anything else, whatever goes on beside it.

use crate::support::{Rng, TestStore, Tree, add, directory, export, file, info, ingest, named, path, small_options};
use shoal_store::{GcAction, GcError, GcRequest, Options, Store};
use shoal_wire::nix::realisation::{DrvOutput, Realisation};
use shoal_wire::nix::store_path::StorePath;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

fn collect(store: &Store, action: GcAction) -> Vec<StorePath> {
    let mut paths = store.collect(&GcRequest::new(action)).expect("collect").paths;
    paths.sort();
    paths
}

fn sorted<const N: usize>(names: [&str; N]) -> Vec<StorePath> {
    let mut paths = names.map(path).to_vec();
    paths.sort();
    paths
}

/// `a` refers to `b`, `b` to `c` and itself, `d` to `c`.
fn graph() -> TestStore {
    let t = TestStore::new();
    add(&t.store, &path("c"), &file("c").nar(), &[]);
    add(&t.store, &path("b"), &file("b").nar(), &[&path("c"), &path("b")]);
    add(&t.store, &path("a"), &file("a").nar(), &[&path("b")]);
    add(&t.store, &path("d"), &file("d").nar(), &[&path("c")]);
    t
}

#[test]
fn what_roots_reach_lives() {
    let t = graph();
    t.store.add_root("r", &path("b")).expect("add root");
    assert_eq!(collect(&t.store, GcAction::ReturnLive), sorted(["b", "c"]));
    assert_eq!(collect(&t.store, GcAction::ReturnDead), sorted(["a", "d"]));
    assert_eq!(t.store.paths().expect("paths").len(), 4, "nothing was deleted");
    assert_eq!(collect(&t.store, GcAction::DeleteDead), sorted(["a", "d"]));
    assert_eq!(t.store.paths().expect("paths"), sorted(["b", "c"]));
    assert_eq!(t.store.referrers(&path("c")).expect("referrers"), sorted(["b"]));
    assert!(t.store.remove_root("r").expect("remove root"));
    assert_eq!(collect(&t.store, GcAction::DeleteDead), sorted(["b", "c"]));
    let stats = t.store.stats().expect("stats");
    assert_eq!((stats.paths, stats.chunks, stats.live_bytes), (0, 0, 0));
}

#[test]
fn deleting_specific_paths_means_exactly_these() {
    let t = graph();
    t.store.add_root("r", &path("a")).expect("add root");
    let delete = |names: &[&str]| {
        let paths = names.iter().map(|name| path(name)).collect();
        let report = t.store.collect(&GcRequest { paths, ..GcRequest::new(GcAction::DeleteSpecific) })?;
        Ok::<_, GcError>(report.paths)
    };
    for alive in [&["a"][..], &["c"], &["d", "b"]] {
        let error = delete(alive).expect_err("alive");
        assert!(matches!(error, GcError::Alive(_)) && error.to_string().contains("still alive"), "{error}");
    }
    assert_eq!(t.store.paths().expect("paths").len(), 4, "an error deletes nothing");
    assert_eq!(delete(&["d"]).expect("delete"), vec![path("d")]);
    assert_eq!(delete(&["d"]).expect("gone already"), vec![]);
    assert!(t.store.remove_root("r").expect("remove root"));
    assert!(matches!(delete(&["b"]), Err(GcError::Alive(p)) if p == path("b")), "a refers to it");
    assert_eq!(delete(&["b", "a"]).expect("delete"), vec![path("a"), path("b")]);
}

#[test]
fn a_live_path_keeps_its_derivation_where_asked() {
    let t = TestStore::new();
    let drv = named("d", "x.drv");
    add(&t.store, &drv, &file("drv").nar(), &[]);
    let ingested = ingest(&t.store, &file("out").nar());
    let mut info = info(&path("out"), &ingested);
    info.deriver = Some(drv.clone());
    t.store.commit(vec![(info, ingested)]).expect("commit");
    t.store.add_root("r", &path("out")).expect("add root");
    assert_eq!(collect(&t.store, GcAction::DeleteDead), vec![]);
    let request = GcRequest { paths: vec![drv.clone()], ..GcRequest::new(GcAction::DeleteSpecific) };
    assert!(matches!(t.store.collect(&request), Err(GcError::Alive(_))));
    let request = GcRequest { keep_derivations: false, ..GcRequest::new(GcAction::DeleteDead) };
    assert_eq!(t.store.collect(&request).expect("collect").paths, vec![drv]);
    assert_eq!(t.store.valid_derivers(&path("out")).expect("derivers"), vec![]);
}

#[test]
fn space_comes_back_and_shared_chunks_stay() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("space_comes_back");
    let shared = rng.noise(1 << 20);
    let tree = |own: Vec<u8>| directory([("own", file(own)), ("shared", file(shared.clone()))]).nar();
    let (keep, drop) = (tree(rng.noise(1 << 20)), tree(rng.noise(9 << 20)));
    add(&t.store, &path("drop"), &drop, &[]);
    add(&t.store, &path("keep"), &keep, &[]);
    t.store.add_root("r", &path("keep")).expect("add root");
    let before = t.store.stats().expect("stats");
    // Not rewriting segments, which may compress better what came in in haste.
    let request = GcRequest { compact_below: 0, ..GcRequest::new(GcAction::DeleteDead) };
    let report = t.store.collect(&request).expect("collect");
    assert_eq!(report.paths, vec![path("drop")]);
    assert!((9 << 20..10 << 20).contains(&report.freed), "{report:?}");
    assert!(report.deleted >= 3 << 20, "wholly dead segments go: {report:?}");
    let after = t.store.stats().expect("stats");
    assert_eq!(before.live_bytes - after.live_bytes, report.freed);
    assert_eq!(before.segment_bytes - after.segment_bytes, report.deleted);
    let t = t.reopened();
    assert!(export(&t.store, &path("keep")) == keep);
    assert!(t.store.verify(true).expect("verify").damage.is_empty());
    // And what was collected can come again.
    add(&t.store, &path("drop"), &drop, &[]);
    assert!(export(&t.store, &path("drop")) == drop);
}

/// Half of each segment dies: what is left moves together, readers that hold a snapshot go on.
#[test]
fn segments_that_are_half_dead_are_rewritten() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("segments_that_are_half_dead");
    let mut kept = Vec::new();
    for n in 0..40 {
        let nar = file(rng.noise(600_000)).nar();
        add(&t.store, &path(&n.to_string()), &nar, &[]);
        if n % 2 == 0 {
            t.store.add_root(&n.to_string(), &path(&n.to_string())).expect("add root");
            kept.push((path(&n.to_string()), nar));
        }
    }
    let before = t.store.stats().expect("stats");
    let frames = t.store.stored_frames(&kept[0].0, 0..u64::MAX).expect("frames").expect("valid");
    let plan = t.store.plan(&GcRequest::new(GcAction::DeleteDead)).expect("plan");
    assert_eq!(t.store.stats().expect("stats"), before, "a plan deletes nothing");
    let report = t.store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect");
    assert_eq!(report.paths.len(), 20);
    assert_eq!((plan.paths, plan.freed), (report.paths.clone(), report.freed));
    assert!(report.copied >= 8 << 20, "{report:?}");
    let after = t.store.stats().expect("stats");
    assert!(after.segment_bytes < before.segment_bytes * 8 / 10, "{before:?} {after:?}");
    let mut bytes = Vec::new();
    for run in frames.runs(1 << 20) {
        frames.read(&run, &mut bytes).expect("read from a segment that was rewritten");
    }
    drop(frames);
    t.store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect");
    let last = t.store.stats().expect("stats");
    assert!(last.live_bytes * 100 >= last.segment_bytes * 60, "what was held is gone now: {last:?}");
    for (path, nar) in &kept {
        assert!(export(&t.store, path) == *nar);
    }
    let t = t.reopened();
    for (path, nar) in &kept {
        assert!(export(&t.store, path) == *nar);
    }
    assert!(t.store.verify(true).expect("verify").damage.is_empty());
}

/// Where frames lie is remembered: not beyond a collection that moved them, and not for a path that it deleted.
#[test]
fn frames_are_found_where_a_collection_left_them() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("frames_are_found");
    let nars: Vec<Vec<u8>> = (0..40).map(|_| file(rng.noise(600_000)).nar()).collect();
    let name = |n: usize| path(&n.to_string());
    for (n, nar) in nars.iter().enumerate() {
        add(&t.store, &name(n), nar, &[]);
        if n % 2 == 0 {
            t.store.add_root(&n.to_string(), &name(n)).expect("add root");
        }
    }
    let served = |n: usize| {
        let frames = t.store.stored_frames(&name(n), 0..u64::MAX).expect("frames")?;
        let (mut zst, mut bytes) = (Vec::new(), Vec::new());
        for run in frames.runs(1 << 20) {
            frames.read(&run, &mut bytes).expect("read");
            zst.extend_from_slice(&bytes);
        }
        Some(zstd::decode_all(&zst[..]).expect("a .zst file"))
    };
    for (n, nar) in nars.iter().enumerate() {
        assert!(served(n).as_ref() == Some(nar), "{n}");
    }
    let report = t.store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect");
    assert!(report.copied > 0 && report.deleted > 0, "{report:?}");
    for (n, nar) in nars.iter().enumerate() {
        let expected = (n % 2 == 0).then_some(nar);
        assert!(served(n).as_ref() == expected, "{n} after the collection");
    }
    for (n, nar) in nars.iter().enumerate() {
        add(&t.store, &name(n), nar, &[]);
        assert!(served(n).as_ref() == Some(nar), "{n} that came again");
    }
}

#[test]
fn a_limit_stops_early() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("a_limit");
    for n in 0..200 {
        add(&t.store, &path(&n.to_string()), &file(rng.noise(20_000)).nar(), &[]);
    }
    let request = GcRequest { max_freed: 1_500_000, ..GcRequest::new(GcAction::DeleteDead) };
    let report = t.store.collect(&request).expect("collect");
    assert!((1_500_000..3_500_000).contains(&report.freed), "{}", report.freed);
    assert_eq!(t.store.paths().expect("paths").len(), 200 - report.paths.len());
}

/// Of many dead paths the ones used longest ago go, but none before what refers to it.
#[test]
fn what_was_used_last_goes_last() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("what_was_used_last");
    // Path n came at second n; the oldest of all is what the newest refers to, the second was read.
    let name = |n: u64| path(&n.to_string());
    for n in 0..200 {
        let ingested = ingest(&t.store, &file(rng.noise(2_000)).nar());
        let mut info = info(&name(n), &ingested);
        info.registration_time = n;
        info.references.extend((n == 199).then(|| name(0)));
        t.store.commit(vec![(info, ingested)]).expect("commit");
    }
    export(&t.store, &name(1));
    t.store.save_uses().expect("save");
    let t = t.reopened();
    let request = GcRequest { max_freed: 100_000, ..GcRequest::new(GcAction::DeleteDead) };
    let mut gone = t.store.collect(&request).expect("collect").paths;
    let mut oldest: Vec<StorePath> = (2..2 + gone.len() as u64).map(name).collect();
    assert!((50..190).contains(&gone.len()), "{}", gone.len());
    gone.sort();
    oldest.sort();
    assert_eq!(gone, oldest);
}

#[test]
fn realisations_go_with_their_paths() {
    let t = TestStore::new();
    for name in ["old", "new"] {
        add(&t.store, &path(name), &file(name).nar(), &[]);
    }
    let id = |output: &str| DrvOutput { drv_hash: [1; 32], output: output.into() };
    t.store.add_realisation(&Realisation::new(id("out"), path("old"))).expect("add");
    t.store.add_realisation(&Realisation::new(id("dev"), path("old"))).expect("add");
    t.store.add_realisation(&Realisation::new(id("dev"), path("new"))).expect("in its place");
    t.store.add_root("r", &path("new")).expect("add root");
    assert_eq!(collect(&t.store, GcAction::DeleteDead), vec![path("old")]);
    assert_eq!(t.store.realisation(&id("out")).expect("get"), None);
    assert_eq!(t.store.realisation(&id("dev")).expect("get").map(|r| r.out_path), Some(path("new")));
}

#[test]
fn what_is_read_or_wanted_stays() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("what_is_read");
    let nar = file(rng.noise(6 << 20)).nar();
    add(&t.store, &path("dependency"), &file("x").nar(), &[]);
    add(&t.store, &path("read"), &nar, &[&path("dependency")]);
    let mut reading = t.store.export(&path("read")).expect("export").expect("valid");
    let mut first = vec![0; 100];
    reading.read_exact(&mut first).expect("read");
    assert_eq!(collect(&t.store, GcAction::DeleteDead), vec![]);
    reading.read_to_end(&mut first).expect("read");
    assert!(first == nar);
    drop(reading);
    let roots = t.store.temp_roots();
    roots.add(&path("read"));
    assert_eq!(collect(&t.store, GcAction::DeleteDead), vec![]);
    drop(roots);
    // An ingest wants the chunks, not the path.
    let wanted = ingest(&t.store, &nar);
    assert_eq!(collect(&t.store, GcAction::DeleteDead).len(), 2);
    t.store.commit(vec![(info(&path("again"), &wanted), wanted)]).expect("commit");
    assert!(export(&t.store, &path("again")) == nar);
}

/// Three threads store the same few contents under ever new names, and check what they stored, while
/// everything is collected all the time.
#[test]
fn collecting_beside_ingests_of_the_same_chunks() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("collecting_beside");
    let nars: Vec<Vec<u8>> = (0..5).map(|_| Tree::random(&mut rng, 400_000).nar()).collect();
    let done = AtomicBool::new(false);
    let collections = std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut collections = 0;
            while !done.load(Ordering::Relaxed) {
                t.store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect");
                collections += 1;
            }
            collections
        });
        let writers: Vec<_> = (0..3)
            .map(|thread| {
                let (store, nars, mut rng) = (&t.store, &nars, Rng(rng.next()));
                scope.spawn(move || {
                    for n in 0..60 {
                        let nar = &nars[rng.below(nars.len() as u64) as usize];
                        let me = path(&format!("{thread} {n}"));
                        let roots = store.temp_roots();
                        roots.add(&me);
                        add(store, &me, nar, &[]);
                        assert!(export(store, &me) == *nar);
                    }
                })
            })
            .collect();
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        let collections = collector.join().expect("collector");
        results.into_iter().for_each(|result| result.expect("writer"));
        collections
    });
    assert!(collections > 3, "{collections} collections are no test");
    collect(&t.store, GcAction::DeleteDead);
    let stats = t.store.stats().expect("stats");
    assert_eq!((stats.paths, stats.chunks, stats.live_bytes, stats.pinned), (0, 0, 0, 0));
}

#[test]
fn what_came_in_in_haste_is_compressed_in_idle_times() {
    // At this level nobody compresses as fast as memory brings bytes: most of it is stored in haste. All of it lies in
    // the segment that is open.
    let t = TestStore::with(Options { level: 19, segment_bytes: 1 << 30, ..small_options() });
    let mut rng = Rng::seeded("what_came_in_in_haste");
    let words: Vec<Vec<u8>> = (0..500).map(|_| rng.noise(8)).collect();
    let text: Vec<u8> = (0..4_000_000).flat_map(|_| words[rng.below(words.len() as u64) as usize].clone()).collect();
    let nar = file(text).nar();
    add(&t.store, &path("a"), &nar, &[]);
    let before = t.store.stats().expect("stats");
    assert!(before.hasty_bytes > before.live_bytes / 2, "{before:?}");
    let ended = t.store.recompress(u64::MAX, &|| false).expect("recompress");
    assert!(ended.copied < before.live_bytes, "it ends when it is told to: {ended:?}");
    t.store.recompress(u64::MAX, &|| true).expect("recompress");
    let after = t.store.stats().expect("stats");
    assert!(after.hasty_bytes < 4 << 20, "{before:?} {after:?}");
    assert!(after.live_bytes < before.live_bytes * 8 / 10, "{before:?} {after:?}");
    assert!(export(&t.store, &path("a")) == nar);
    let t = t.reopened();
    assert!(export(&t.store, &path("a")) == nar);
    assert!(t.store.verify(true).expect("verify").damage.is_empty());
}
