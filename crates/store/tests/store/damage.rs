//! A flipped bit or a lost file is an error that says where, and never wrong bytes.

use crate::support::{
    Rng, TestStore, Tree, add, add_in_haste, directory, export, file, info, ingest, path, small_options,
};
use redb::ReadableTable;
use shoal_store::{CommitError, Damage, Defect, Error, GcAction, GcRequest, Object, Store};
use shoal_wire::nix::signature::SecretKey;
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

fn flip(t: &TestStore, segment: usize, offset: u64, bit: u64) {
    let file = OpenOptions::new().read(true).write(true).open(&segments(t)[segment]).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ (1 << bit)], offset).expect("write");
}

/// A path that is known to be damaged is not valid to anybody who asks.
fn assert_is_a_miss(t: &TestStore, name: &str) {
    let me = path(name);
    assert!(!t.store.is_valid(&me).expect("is valid"));
    assert_eq!(t.store.path_info(&me).expect("path info"), None);
    assert_eq!(t.store.path_from_hash_part(me.hash_part()).expect("look up"), None);
    assert_eq!(t.store.valid_of([&me]).expect("valid of"), []);
    assert!(!t.store.paths().expect("paths").contains(&me));
    assert!(t.store.export(&me).expect("export").is_none());
    assert!(t.store.stored_frames(&me, 0..u64::MAX).expect("frames").is_none());
    assert!(t.store.damaged_paths().expect("damaged").iter().any(|info| info.path == me));
}

/// Where each record of the first segment begins, and where the last ends.
fn boundaries(t: &TestStore, name: &str) -> Vec<u64> {
    let frames = t.store.stored_frames(&path(name), 0..u64::MAX).expect("frames").expect("valid");
    frames.frames().flat_map(|(_, place)| [u64::from(place.offset), place.frame_offset(), place.end() - 1]).collect()
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let mut t = TestStore::new();
    let mut rng = Rng::seeded("a_flipped_bit");
    let tree = directory([("noise", file(rng.noise(70_000))), ("text", file(rng.text(120_000)))]);
    let nar = tree.nar();
    add(&t.store, &path("p"), &nar, &[]);
    let len = fs::metadata(&segments(&t)[0]).expect("metadata").len();
    let preamble = 16;
    // Every byte of the first header, the ends of all headers and frames, and some of everything else.
    let mut offsets: Vec<u64> = (preamble..preamble + 60).chain(boundaries(&t, "p")).collect();
    offsets.extend((0..200).map(|_| preamble + rng.below(len - preamble)));
    for offset in offsets {
        let bit = rng.below(8);
        flip(&t, 0, offset, bit);
        let damage = try_export(&t, "p").expect_err("read although damaged");
        assert_eq!(damage.path, Some(path("p")));
        assert!(matches!(damage.object, Object::Chunk(_)));
        let place = damage.place.expect("a place");
        assert!((u64::from(place.offset)..place.end()).contains(&offset), "{offset} is not in {place:?}");
        assert!(damage.to_string().contains("00000000.seg"), "{damage}");
        assert_is_a_miss(&t, "p");
        if offset % 16 == 0 {
            t = t.reopened();
            assert_is_a_miss(&t, "p");
            let report = t.store.verify(true).expect("verify");
            assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
            assert_eq!(report.damage[0].path, Some(path("p")));
        }
        flip(&t, 0, offset, bit);
        // What a disk read wrong once is trusted again when it reads right.
        let report = t.store.verify(true).expect("verify");
        assert_eq!((report.absolved, report.damage.len()), (1, 0), "{:?}", report.damage);
        assert!(try_export(&t, "p").expect("mended") == nar);
    }
}

/// The same path, brought again, takes the place of what is damaged; so do paths that share its chunks.
#[test]
fn what_is_damaged_heals_when_it_comes_again() {
    let mut rng = Rng::seeded("what_is_damaged_heals");
    for round in 0..12 {
        let t = TestStore::new();
        let shared = rng.noise(300_000);
        let tree = |own: Vec<u8>| directory([("own", file(own)), ("shared", file(shared.clone()))]).nar();
        let (p, q) = (tree(rng.text(200_000)), tree(rng.text(100_000)));
        let key = SecretKey::from_seed("test-1", [7; 32]).expect("key");
        add(&t.store, &path("p"), &p, &[]);
        add(&t.store, &path("q"), &q, &[&path("p")]);
        t.store.add_signatures(&path("p"), &[key.sign(b"p")]).expect("sign");
        let before = t.store.stats().expect("stats");
        let len = fs::metadata(&segments(&t)[0]).expect("metadata").len();
        let flips: Vec<u64> = (0..1 + rng.below(20)).map(|_| 16 + rng.below(len - 16)).collect();
        flips.iter().for_each(|&offset| flip(&t, 0, offset, rng.0 % 8));
        let found = t.store.verify(true).expect("verify").damage;
        assert!(!found.is_empty(), "round {round}: {flips:?}");
        for (name, nar) in [("p", &p), ("q", &q)] {
            match t.store.is_valid(&path(name)).expect("is valid") {
                true => assert!(export(&t.store, &path(name)) == *nar),
                false => assert_is_a_miss(&t, name),
            }
        }
        let t = t.reopened();
        add(&t.store, &path("p"), &p, &[]);
        add(&t.store, &path("q"), &q, &[&path("p")]);
        let healed = |t: &TestStore| {
            assert!(export(&t.store, &path("p")) == p && export(&t.store, &path("q")) == q, "round {round}: {flips:?}");
            assert_eq!(t.store.damaged_paths().expect("damaged"), []);
            assert_eq!(t.store.path_info(&path("p")).expect("info").expect("valid").signatures.len(), 1);
            assert_eq!(t.store.referrers(&path("p")).expect("referrers"), [path("q")]);
            assert!(t.store.verify(true).expect("verify").damage.is_empty());
        };
        healed(&t);
        let after = t.store.stats().expect("stats");
        assert_eq!((after.damaged, after.chunks, after.paths), (0, before.chunks, before.paths));
        healed(&t.reopened());
    }
}

/// An upload that began before the damage was found relies on what is damaged: it is told so, and keeps nobody from
/// healing it. Once it is healed the upload is as good as any.
#[test]
fn an_upload_that_waits_is_told_of_damage_and_keeps_nobody_from_healing() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("an_upload_that_waits");
    let nar = file(rng.noise(200_000)).nar();
    add(&t.store, &path("p"), &nar, &[]);
    let waiting = ingest(&t.store, &nar);
    flip(&t, 0, 5_000, 1);
    assert_eq!(t.store.verify(true).expect("verify").damage.len(), 1);
    let refused = t.store.commit(vec![(info(&path("w"), &waiting), waiting.clone())]);
    assert!(matches!(refused, Err(CommitError::Damaged { path: of }) if of == path("w")));
    assert!(t.store.damaged_paths().expect("damaged").iter().all(|info| info.path != path("w")));
    let healing = ingest(&t.store, &nar);
    t.store.commit(vec![(info(&path("h"), &healing), healing)]).expect("commit");
    t.store.commit(vec![(info(&path("w"), &waiting), waiting)]).expect("commit");
    for name in ["p", "w", "h"] {
        assert!(export(&t.store, &path(name)) == nar, "{name}");
    }
}

#[test]
fn a_damaged_manifest_heals_too() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("a_damaged_manifest");
    let nar = Tree::random(&mut rng, 200_000).nar();
    add(&t.store, &path("p"), &nar, &[]);
    let root = t.store.content_root(&path("p")).expect("root").expect("valid");
    let TestStore { dir, store } = t;
    drop(store);
    let index = redb::Database::open(dir.path().join("index.redb")).expect("open the index");
    let txn = index.begin_write().expect("begin");
    {
        let table = redb::TableDefinition::<&[u8; 32], &[u8]>::new("manifests");
        let mut table = txn.open_table(table).expect("manifests");
        let mut packed = table.get(&root).expect("get").expect("a manifest").value().to_vec();
        let at = rng.below(packed.len() as u64) as usize;
        packed[at] ^= 1 << rng.below(8);
        table.insert(&root, packed.as_slice()).expect("insert");
    }
    txn.commit().expect("commit");
    drop(index);
    let mut t = TestStore { store: Store::open(dir.path(), small_options()).expect("open"), dir };
    let error = t.store.export(&path("p")).map(|_| ()).expect_err("a damaged manifest");
    assert!(
        matches!(&error, Error::Damaged(damage) if matches!(damage.object, Object::Manifest(r) if r == root)),
        "{error}"
    );
    for _ in 0..2 {
        assert_is_a_miss(&t, "p");
        let report = t.store.verify(false).expect("verify");
        assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
        t = t.reopened();
    }
    add(&t.store, &path("p"), &nar, &[]);
    assert!(export(&t.store, &path("p")) == nar);
    assert!(export(&t.reopened().store, &path("p")) == nar);
}

/// Collections keep what a root keeps, damaged or not, and forget the damage of what they take.
#[test]
fn collections_and_damage() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("collections_and_damage");
    // Each fills most of a segment.
    let nars: Vec<Vec<u8>> = (0..4).map(|n| file(rng.noise((3 << 20) + n)).nar()).collect();
    for (n, nar) in nars.iter().enumerate() {
        add(&t.store, &path(&n.to_string()), nar, &[]);
    }
    t.store.add_root("r", &path("0")).expect("add root");
    for segment in 0..2 {
        flip(&t, segment, 50_000, 3);
    }
    assert_eq!(t.store.verify(true).expect("verify").damage.len(), 2);
    assert_eq!(t.store.stats().expect("stats").damaged, 2);
    t.store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect");
    assert_eq!(t.store.stats().expect("stats").damaged, 1);
    assert_is_a_miss(&t, "0");
    add(&t.store, &path("0"), &nars[0], &[]);
    assert!(export(&t.store, &path("0")) == nars[0]);
    t.store.remove_root("r").expect("remove root");
    t.store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect");
    let stats = t.store.stats().expect("stats");
    assert_eq!((stats.paths, stats.chunks, stats.live_bytes, stats.damaged), (0, 0, 0, 0));
}

/// What cannot be read is not tried again whenever the node is idle, and keeps no segment.
#[test]
fn damage_does_not_keep_a_segment_in_haste() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("damage_in_haste");
    for n in 0..3 {
        add_in_haste(&t.store, &path(&n.to_string()), &file(rng.text((3 << 20) + n)).nar());
    }
    let first = t.store.stats().expect("stats");
    assert_eq!(first.hasty_bytes, first.live_bytes, "{first:?}");
    let lost = segments(&t).len();
    flip(&t, 0, 100_000, 5);
    assert!(t.store.recompress(u64::MAX, &|| true).expect("recompress").segments > 0);
    assert_eq!(t.store.stats().expect("stats").damaged, 1);
    // What was open the first time, the second copies; a segment with damage would be chosen for ever.
    let settled = (0..3).any(|_| t.store.recompress(u64::MAX, &|| true).expect("again").segments == 0);
    assert!(settled, "{:?}", t.store.stats());
    assert!(!segments(&t)[0].ends_with("00000000.seg"), "{lost} segments");
    assert_eq!(t.store.damaged_paths().expect("damaged").len(), 1);
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
    assert_is_a_miss(&t, "p");
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
    assert_is_a_miss(&t, "0");
    assert!(export(&t.store, &path("2")) == nars[2]);
    let report = t.store.verify(true).expect("verify");
    assert!(report.damage.iter().all(|damage| matches!(damage.defect, Defect::NoSegment | Defect::Quarantined)));
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
