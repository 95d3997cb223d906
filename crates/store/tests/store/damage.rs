//! A flipped bit or a lost file is an error that says where, and never wrong bytes.

use crate::support::{Rng, TestStore, Tree, add, directory, export, file, path};
use shoal_store::{Damage, Defect, Error, Object};
use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

fn segments(t: &TestStore) -> Vec<PathBuf> {
    let list = fs::read_dir(t.dir.path().join("segments")).expect("list");
    let mut paths: Vec<PathBuf> = list.map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    paths
}

/// The whole NAR, or the damage that stopped the read.
fn try_export(t: &TestStore, name: &str) -> Result<Vec<u8>, Damage> {
    let mut nar = Vec::new();
    let mut export = t.store.export(&path(name)).expect("export").expect("valid");
    match export.read_to_end(&mut nar) {
        Ok(_) => Ok(nar),
        Err(error) => match error.into_inner().and_then(|inner| inner.downcast::<Error>().ok()).as_deref() {
            Some(Error::Damaged(damage)) => Err((**damage).clone()),
            other => panic!("not a damage: {other:?}"),
        },
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("a_flipped_bit");
    let tree = directory([("noise", file(rng.noise(70_000))), ("text", file(rng.text(120_000)))]);
    let nar = tree.nar();
    add(&t.store, &path("p"), &nar, &[]);
    let segment = segments(&t).remove(0);
    let len = fs::metadata(&segment).expect("metadata").len();
    let file = OpenOptions::new().read(true).write(true).open(&segment).expect("open");
    let preamble = 16;
    // Every byte of the first header, and some of everything else.
    let offsets = (preamble..preamble + 60).chain((0..300).map(|_| preamble + rng.below(len - preamble)));
    for offset in offsets.collect::<Vec<u64>>() {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("read");
        let bit = 1 << rng.below(8);
        file.write_all_at(&[byte[0] ^ bit], offset).expect("write");
        let damage = try_export(&t, "p").expect_err("read although damaged");
        assert_eq!(damage.path, Some(path("p")));
        assert!(matches!(damage.object, Object::Chunk(_)));
        let place = damage.place.expect("a place");
        assert!((u64::from(place.offset)..place.end()).contains(&offset), "{offset} is not in {place:?}");
        assert!(damage.to_string().contains("00000000.seg"), "{damage}");
        if offset % 16 == 0 {
            let report = t.store.verify(true).expect("verify");
            assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
            assert_eq!(report.damage[0].path, Some(path("p")));
        }
        file.write_all_at(&byte, offset).expect("write");
    }
    assert!(try_export(&t, "p").expect("mended") == nar);
}

/// A bit of every byte of a segment, one after the other: none of them leaves in a stored frame.
#[test]
fn a_flip_of_any_byte_is_found_before_a_stored_frame_leaves() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("a_flip_of_any_byte");
    let tree = directory([("noise", file(rng.noise(40_000))), ("text", file(rng.text(90_000))), ("x", file("x"))]);
    add(&t.store, &path("p"), &tree.nar(), &[]);
    let segment = segments(&t).remove(0);
    let bytes = fs::read(&segment).expect("read");
    let file = OpenOptions::new().write(true).open(&segment).expect("open");
    // One snapshot for all flips, as the store does not hand out what it knows to be damaged.
    let frames = t.store.stored_frames(&path("p"), 0..u64::MAX).expect("frames").expect("valid");
    let runs: Vec<_> = frames.runs(48 << 10).collect();
    assert!(runs.len() > 1 && frames.frames().len() > runs.len(), "{runs:?}");
    let mut good = Vec::new();
    let mut found = 0;
    for (at, byte) in bytes.iter().enumerate() {
        file.write_all_at(&[byte ^ (1 << rng.below(8))], at as u64).expect("write");
        for run in &runs {
            let covers = (run.offset..run.offset + run.len).contains(&(at as u64));
            match frames.read(run, &mut good) {
                Ok(()) => assert!(!covers, "byte {at} is in {run:?}"),
                Err(Error::Damaged(damage)) if covers => {
                    let place = damage.place.expect("a place");
                    assert!((u64::from(place.offset)..place.end()).contains(&(at as u64)), "{at} is not in {place:?}");
                    assert!(good.is_empty());
                    found += 1;
                }
                Err(error) => panic!("byte {at}: {error}"),
            }
        }
        file.write_all_at(&[*byte], at as u64).expect("write");
    }
    // All but the preamble and the header before each run's first frame.
    assert_eq!(found, bytes.len() - 16 - 48 * runs.len());
    let refused = t.store.stored_frames(&path("p"), 0..u64::MAX).map(|frames| frames.is_some());
    let Err(Error::Damaged(damage)) = refused else { panic!("{refused:?}") };
    assert_eq!(damage.defect, Defect::Quarantined);
    add(&t.store, &path("again"), &tree.nar(), &[]);
    assert!(t.store.stored_frames(&path("p"), 0..u64::MAX).expect("frames").is_some(), "stored again");
}

#[test]
fn a_lost_or_short_segment_is_found_and_the_rest_works() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("a_lost_segment");
    // Each of another length, so that they share nothing. The first segment holds the first only.
    let nars: Vec<Vec<u8>> = (0..3).map(|n| file(rng.noise((3 << 20) + n)).nar()).collect();
    for (n, nar) in nars.iter().enumerate() {
        add(&t.store, &path(&n.to_string()), nar, &[]);
    }
    let files = segments(&t);
    assert!(files.len() >= 3, "{files:?}");
    let len = fs::metadata(&files[0]).expect("metadata").len();
    OpenOptions::new().write(true).open(&files[0]).expect("open").set_len(len / 2).expect("cut");
    let t = t.reopened();
    assert_eq!(try_export(&t, "0").expect_err("cut").defect, Defect::Truncated);
    fs::remove_file(&files[0]).expect("remove");
    let t = t.reopened();
    assert_eq!(try_export(&t, "0").expect_err("gone").defect, Defect::NoSegment);
    assert!(export(&t.store, &path("2")) == nars[2]);
    let report = t.store.verify(true).expect("verify");
    assert!(report.damage.iter().any(|damage| damage.path == Some(path("0"))), "{:?}", report.damage);
    assert!(report.damage.iter().all(|damage| damage.path != Some(path("2"))), "{:?}", report.damage);
    // What is known to be damaged is stored again when it comes in again, for all that want it.
    add(&t.store, &path("new"), &nars[0], &[]);
    for name in ["new", "0"] {
        assert!(export(&t.store, &path(name)) == nars[0], "{name}");
    }
    assert!(t.store.verify(true).expect("verify").damage.iter().all(|damage| damage.path != Some(path("0"))));
    let tree = Tree::random(&mut rng, 1 << 20).nar();
    add(&t.store, &path("tree"), &tree, &[]);
    assert!(export(&t.store, &path("tree")) == tree);
}
