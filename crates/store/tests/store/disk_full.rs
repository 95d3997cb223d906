//! A full disk refuses what comes and loses nothing.

use crate::support::{Rng, add, export, file, info, path};
use shoal_store::{GcAction, GcRequest, IngestError, Options, Store};
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// A small file system of its own, if this machine lets us have one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &size, "shoal-test"]).arg(dir.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).output();
    }
}

/// Adds paths of incompressible bytes until one is refused for want of space; returns how many went in.
fn fill(store: &Store, rng: &mut Rng) -> Vec<(String, Vec<u8>)> {
    let mut kept = Vec::new();
    for n in 0..1000 {
        let nar = file(rng.noise(300_000)).nar();
        let name = format!("fill {n}");
        let mut ingest = store.ingest();
        let taken = ingest.write_all(&nar).map_err(|_| ()).and_then(|()| match ingest.finish() {
            Ok(ingested) => Ok(ingested),
            Err(IngestError::Store(error)) if error.is_full() => Err(()),
            Err(error) => panic!("not full but {error}"),
        });
        let Ok(ingested) = taken else {
            return kept;
        };
        match store.commit(vec![(info(&path(&name), &ingested), ingested)]) {
            Ok(()) => kept.push((name, nar)),
            Err(_) => return kept,
        }
    }
    panic!("the disk never filled up");
}

fn exercise(dir: &Path, reserve_bytes: u64) {
    let options = || Options { segment_bytes: 4 << 20, reserve_bytes, ..Options::default() };
    let mut rng = Rng::seeded("disk_full");
    let mut store = Store::open(dir, options()).expect("open");
    let kept = fill(&store, &mut rng);
    assert!(kept.len() > 10, "{} paths", kept.len());
    for _ in 0..2 {
        for (name, nar) in &kept {
            assert!(export(&store, &path(name)) == *nar, "{name}");
        }
        assert_eq!(store.paths().expect("paths").len(), kept.len(), "nothing half-written is seen");
        drop(store);
        store = Store::open(dir, options()).expect("open again");
    }
    store.add_root("keep", &path(&kept[0].0)).expect("add root");
    let report = store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect on a full disk");
    assert_eq!(report.paths.len(), kept.len() - 1);
    let nar = file(rng.noise(2 << 20)).nar();
    add(&store, &path("after"), &nar, &[]);
    assert!(export(&store, &path("after")) == nar);
    assert!(export(&store, &path(&kept[0].0)) == kept[0].1);
}

#[test]
fn with_space_kept_for_the_index() {
    match SmallDisk::mount(40 << 20) {
        Some(disk) => exercise(disk.0.path(), 4 << 20),
        None => println!("skipped: cannot mount a small file system"),
    }
}

/// Even the index meets the end of the disk.
#[test]
fn with_no_space_kept() {
    match SmallDisk::mount(40 << 20) {
        Some(disk) => {
            let dir = disk.0.path();
            let mut rng = Rng::seeded("with_no_space_kept");
            let options = || Options { segment_bytes: 4 << 20, reserve_bytes: 0, ..Options::default() };
            let store = Store::open(dir, options()).expect("open");
            let kept = fill(&store, &mut rng);
            let other = std::fs::write(dir.join("rest"), vec![0; 40 << 20]);
            assert!(other.is_err(), "nothing is left");
            for n in 0..50 {
                let _ = store.add_root(&format!("{n} {}", "x".repeat(2000)), &path("x"));
            }
            for (name, nar) in &kept {
                assert!(export(&store, &path(name)) == *nar, "{name}");
            }
            std::fs::remove_file(dir.join("rest")).expect("remove");
            add(&store, &path("after"), &file("after").nar(), &[]);
            drop(store);
            let store = Store::open(dir, options()).expect("open again");
            assert_eq!(store.paths().expect("paths").len(), kept.len() + 1);
            assert!(store.verify(true).expect("verify").damage.is_empty());
        }
        None => println!("skipped: cannot mount a small file system"),
    }
}

/// Many ingests meet the end of the disk at once: each is refused for that or acknowledged, and what is acknowledged stays.
#[test]
fn beside_each_other() {
    let Some(disk) = SmallDisk::mount(48 << 20) else {
        println!("skipped: cannot mount a small file system");
        return;
    };
    let options = || Options { segment_bytes: 4 << 20, reserve_bytes: 4 << 20, ..Options::default() };
    let mut rng = Rng::seeded("disk_full beside each other");
    let store = Store::open(disk.0.path(), options()).expect("open");
    let kept: Vec<(String, Vec<u8>)> = std::thread::scope(|scope| {
        let fillers: Vec<_> = (0..4)
            .map(|thread| {
                let (store, mut rng) = (&store, Rng(rng.next()));
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    // Long enough that they overlap; two refusals are enough.
                    let mut refused = 0;
                    for n in 0..1000 {
                        let nar = file(rng.noise(400_000 + n)).nar();
                        let name = format!("{thread} {n}");
                        match try_add(store, &name, &nar) {
                            Ok(()) => kept.push((name, nar)),
                            Err(error) => {
                                assert!(error.is_full(), "not full but {error}");
                                refused += 1;
                            }
                        }
                        if refused == 2 {
                            return kept;
                        }
                    }
                    panic!("the disk never filled up");
                })
            })
            .collect();
        fillers.into_iter().flat_map(|filler| filler.join().expect("filler")).collect()
    });
    assert!(kept.len() > 20, "{} paths", kept.len());
    assert_eq!(store.stats().expect("stats").pinned, 0);
    drop(store);
    let store = Store::open(disk.0.path(), options()).expect("open again");
    assert_eq!(store.paths().expect("paths").len(), kept.len());
    for (name, nar) in &kept {
        assert!(export(&store, &path(name)) == *nar, "{name}");
    }
    assert!(store.verify(true).expect("verify").damage.is_empty());
}

fn try_add(store: &Store, name: &str, nar: &[u8]) -> Result<(), shoal_store::Error> {
    let mut ingest = store.ingest();
    let mut rest = nar;
    while !rest.is_empty() {
        let used = ingest.feed(rest).map_err(of_store)?;
        rest = &rest[used..];
    }
    let ingested = ingest.finish().map_err(of_store)?;
    store.commit(vec![(info(&path(name), &ingested), ingested)]).map_err(|error| match error {
        shoal_store::CommitError::Store(error) => error,
        error => panic!("{error}"),
    })
}

fn of_store(error: IngestError) -> shoal_store::Error {
    match error {
        IngestError::Store(error) => error,
        error => panic!("{error}"),
    }
}
