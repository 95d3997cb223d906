//! What becomes valid, and when.

use crate::support::{TestStore, add, export, file, info, ingest, named, path};
use shoal_store::CommitError;
use shoal_wire::nix::content_address::ContentAddress;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation, UnkeyedRealisation};
use shoal_wire::nix::signature::SecretKey;
use std::collections::BTreeSet;

#[test]
fn a_path_keeps_all_that_is_known_of_it() {
    let mut t = TestStore::new();
    add(&t.store, &path("dependency"), &file("x").nar(), &[]);
    let nar = file("contents").nar();
    let ingested = ingest(&t.store, &nar);
    let me = named("me", "me-1.0");
    let mut info = PathInfo {
        path: me.clone(),
        deriver: Some(named("drv", "me-1.0.drv")),
        nar_hash: ingested.nar_hash,
        nar_size: ingested.nar_size,
        references: BTreeSet::from([me.clone(), path("dependency")]),
        registration_time: 1_700_000_000,
        ultimate: true,
        signatures: BTreeSet::new(),
        ca: Some(
            "fixed:r:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"
                .parse::<ContentAddress>()
                .expect("ca"),
        ),
    };
    let key = SecretKey::from_seed("test-1", [7; 32]).expect("key");
    info.signatures.insert(key.sign(b"anything"));
    t.store.commit(vec![(info.clone(), ingested)]).expect("commit");
    let more = key.sign(b"something else");
    assert!(t.store.add_signatures(&me, std::slice::from_ref(&more)).expect("add signatures"));
    assert!(!t.store.add_signatures(&path("nobody"), std::slice::from_ref(&more)).expect("add signatures"));
    info.signatures.insert(more);
    for _ in 0..2 {
        assert_eq!(t.store.path_info(&me).expect("path info"), Some(info.clone()));
        assert_eq!(t.store.path_from_hash_part(me.hash_part()).expect("look up"), Some(me.clone()));
        assert_eq!(t.store.paths().expect("paths").len(), 2);
        t = t.reopened();
    }
    for strange in ["", "x", &me.hash_part()[..31], "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", me.base_name()] {
        assert_eq!(t.store.path_from_hash_part(strange).expect("look up"), None, "{strange:?}");
    }
}

#[test]
fn a_batch_is_valid_together_or_not_at_all() {
    let t = TestStore::new();
    let (a, b) = (path("a"), path("b"));
    let batch = |with_b: bool| {
        let (first, second) = (ingest(&t.store, &file("a").nar()), ingest(&t.store, &file("b").nar()));
        let mut info_a = info(&a, &first);
        info_a.references.insert(b.clone());
        let mut batch = vec![(info_a, first)];
        if with_b {
            batch.push((info(&b, &second), second));
        }
        batch
    };
    match t.store.commit(batch(false)) {
        Err(CommitError::Reference { path, reference }) => assert_eq!((path, reference), (a.clone(), b.clone())),
        other => panic!("{other:?}"),
    }
    assert!(!t.store.is_valid(&a).expect("is valid"));
    t.store.commit(batch(true)).expect("commit");
    assert!(t.store.is_valid(&a).expect("is valid") && t.store.is_valid(&b).expect("is valid"));
    assert_eq!(t.store.referrers(&b).expect("referrers"), vec![a.clone()]);
    assert_eq!(t.store.referrers(&a).expect("referrers"), vec![]);
}

#[test]
fn contents_must_be_the_announced_ones() {
    let t = TestStore::new();
    let ingested = ingest(&t.store, &file("a").nar());
    let other = PathInfo::new(path("a"), [0; 32], ingested.nar_size);
    assert!(matches!(t.store.commit(vec![(other, ingested)]), Err(CommitError::Contents { .. })));
    let stats = t.store.stats().expect("stats");
    assert_eq!((stats.paths, stats.pinned), (0, 0));
}

#[test]
fn a_valid_path_stays_as_it_is() {
    let t = TestStore::new();
    let me = path("me");
    add(&t.store, &me, &file("first").nar(), &[]);
    let before = t.store.path_info(&me).expect("path info");
    let chunks = t.store.stats().expect("stats").chunks;
    add(&t.store, &me, &file("second").nar(), &[]);
    assert_eq!(t.store.path_info(&me).expect("path info"), before);
    assert_eq!(t.store.stats().expect("stats").chunks, chunks, "nothing of the second is kept");
    assert_eq!(export(&t.store, &me), file("first").nar());
}

#[test]
fn concurrent_commits_are_all_kept() {
    let mut t = TestStore::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &t.store;
            scope.spawn(move || {
                let mut last = None;
                for n in 0..30 {
                    let me = path(&format!("{thread} {n}"));
                    add(store, &me, &file(format!("contents {n}")).nar(), last.as_ref().as_slice());
                    last = Some(me);
                }
            });
        }
    });
    for _ in 0..2 {
        assert_eq!(t.store.paths().expect("paths").len(), 240);
        for thread in 0..8 {
            for n in 0..30 {
                let me = path(&format!("{thread} {n}"));
                assert_eq!(export(&t.store, &me), file(format!("contents {n}")).nar());
            }
        }
        t = t.reopened();
    }
}

#[test]
fn one_rejected_commit_does_not_touch_those_beside_it() {
    let t = TestStore::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &t.store;
            scope.spawn(move || {
                for n in 0..20 {
                    let me = path(&format!("{thread} {n}"));
                    let ingested = ingest(store, &file(format!("{thread} {n}")).nar());
                    let mut info = info(&me, &ingested);
                    let good = (thread + n) % 2 == 0;
                    if !good {
                        info.references.insert(path("nobody"));
                    }
                    assert_eq!(store.commit(vec![(info, ingested)]).is_ok(), good);
                }
            });
        }
    });
    assert_eq!(t.store.paths().expect("paths").len(), 80);
    assert!(t.store.verify(true).expect("verify").damage.is_empty());
}

#[test]
fn derivers_are_found_from_both_sides() {
    let t = TestStore::new();
    let (drv, other, out) = (named("d", "x.drv"), named("e", "y.drv"), path("out"));
    add(&t.store, &drv, &file("drv").nar(), &[]);
    let ingested = ingest(&t.store, &file("out").nar());
    let mut info = info(&out, &ingested);
    info.deriver = Some(drv.clone());
    t.store.commit(vec![(info, ingested)]).expect("commit");
    t.store.add_outputs(&other, std::slice::from_ref(&out)).expect("add outputs");
    assert_eq!(t.store.valid_derivers(&out).expect("derivers"), vec![drv.clone()], "the other is not valid yet");
    add(&t.store, &other, &file("other").nar(), &[]);
    let mut both = vec![drv, other];
    both.sort();
    let mut found = t.store.valid_derivers(&out).expect("derivers");
    found.sort();
    assert_eq!(found, both);
}

#[test]
fn realisations_of_both_forms_are_kept() {
    let mut t = TestStore::new();
    let out = path("out");
    add(&t.store, &out, &file("out").nar(), &[]);
    let old = Realisation::new(DrvOutput { drv_hash: [3; 32], output: "out".into() }, out.clone());
    let key = BuildTraceKey { drv_path: named("d", "x.drv"), output: "dev".into() };
    let value = UnkeyedRealisation { out_path: out.clone(), signatures: BTreeSet::new() };
    let new = BuildTrace { key: key.clone(), value };
    t.store.add_realisation(&old).expect("add");
    t.store.add_build_trace(&new).expect("add");
    t = t.reopened();
    assert_eq!(t.store.realisation(&old.id).expect("get"), Some(old.clone()));
    assert_eq!(t.store.build_trace(&key).expect("get"), Some(new));
    let absent = DrvOutput { drv_hash: [3; 32], output: "doc".into() };
    assert_eq!(t.store.realisation(&absent).expect("get"), None);
}

#[test]
fn logs_are_kept_whole_or_not_at_all() {
    use std::io::{Read, Write};
    let mut t = TestStore::new();
    let drv = named("d", "x.drv");
    let read = |t: &TestStore| {
        let mut text = String::new();
        t.store.log(&drv).expect("log").map(|mut log| log.read_to_string(&mut text).expect("read"));
        text
    };
    let mut unfinished = t.store.begin_log(&drv).expect("begin");
    unfinished.write_all(b"half").expect("write");
    assert!(t.store.log(&drv).expect("log").is_none());
    drop(unfinished);
    t.store.put_log(&drv, "line\n".repeat(10_000).as_bytes()).expect("put");
    t = t.reopened();
    assert_eq!(read(&t), "line\n".repeat(10_000));
    t.store.put_log(&drv, &b"again"[..]).expect("put");
    assert_eq!(read(&t), "again");
}
