//! Ways to read a path: ranges, frames, files, directories.

use crate::support::{Rng, TestStore, Tree, add, directory, export, file, path};
use shoal_store::Error;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

fn sample(rng: &mut Rng) -> Tree {
    directory([
        ("bin", directory([("tool", Tree::File { executable: true, contents: rng.noise(300_000) })])),
        ("empty", file("")),
        ("lib", directory([("a.so", file(rng.text(1_500_000))), ("b", Tree::Symlink(b"a.so".to_vec()))])),
        ("nothing", directory([])),
        ("readme", file("read me\n")),
    ])
}

#[test]
fn any_range_is_that_range() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("any_range");
    let nar = sample(&mut rng).nar();
    add(&t.store, &path("p"), &nar, &[]);
    let size = nar.len() as u64;
    let mut export = t.store.export(&path("p")).expect("export").expect("valid");
    assert_eq!(export.size(), size);
    for round in 0..200 {
        let (offset, len) = (rng.below(size + 10), if round % 3 == 0 { rng.below(size) } else { rng.below(2_000) });
        export.seek(offset, len);
        let mut bytes = Vec::new();
        export.read_to_end(&mut bytes).expect("read");
        let from = offset.min(size) as usize;
        let to = (from + len as usize).min(nar.len());
        assert!(bytes == nar[from..to], "{len} bytes from {offset}");
    }
}

#[test]
fn stored_frames_are_a_zst_file_of_the_nar() {
    let t = TestStore::new();
    let nar = sample(&mut Rng::seeded("stored_frames")).nar();
    add(&t.store, &path("p"), &nar, &[]);
    let frames = t.store.stored_frames(&path("p"), 0..u64::MAX).expect("frames").expect("valid");
    let mut zst = Vec::new();
    for run in frames.runs(1 << 20) {
        let mut bytes = Vec::new();
        frames.read(&run, &mut bytes).expect("read");
        assert_eq!(bytes.len() as u64, run.len);
        zst.extend_from_slice(&bytes);
    }
    assert!(zstd::decode_all(&zst[..]).expect("a .zst file") == nar);
    assert!(zst.len() < nar.len());
    // A segment is one too, so that a store can be rescued without this program.
    let segment =
        std::fs::read_dir(t.dir.path().join("segments")).expect("segments").next().expect("one").expect("entry");
    let rescued = zstd::decode_all(std::fs::File::open(segment.path()).expect("open")).expect("a .zst file");
    assert_eq!(rescued.len(), nar.len(), "each chunk once, in any order");
    let manifest = t.store.manifest(&path("p")).expect("manifest").expect("valid");
    let mut rest = &nar[..];
    for chunk in &manifest.chunks {
        let (chunk, after) = rest.split_at(chunk.len as usize);
        assert!(rescued.windows(chunk.len()).any(|window| window == chunk));
        rest = after;
    }
}

#[test]
fn the_frames_of_a_range_hold_it() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("frames_of_a_range");
    let nar = sample(&mut rng).nar();
    add(&t.store, &path("p"), &nar, &[]);
    let size = nar.len() as u64;
    for _ in 0..100 {
        let start = rng.below(size);
        let end = (start + 1 + rng.below(200_000)).min(size);
        let frames = t.store.stored_frames(&path("p"), start..end).expect("frames").expect("valid");
        let (mut zst, mut bytes) = (Vec::new(), Vec::new());
        for run in frames.runs(1 + rng.below(300_000)) {
            frames.read(&run, &mut bytes).expect("read");
            zst.extend_from_slice(&bytes);
        }
        let (from, held) = (frames.nar_offset(), zstd::decode_all(&zst[..]).expect("a .zst file"));
        assert!(from <= start && end <= from + held.len() as u64, "{start}..{end} in {from} + {}", held.len());
        assert!(nar[from as usize..][..held.len()] == held);
        let chunks: Vec<u64> = frames.frames().map(|(chunk, _)| u64::from(chunk.len)).collect();
        assert!(start < from + chunks[0], "the first chunk is needed");
        assert!(end > from + held.len() as u64 - chunks[chunks.len() - 1], "the last chunk is needed");
    }
    assert!(t.store.stored_frames(&path("none"), 0..1).expect("frames").is_none());
}

#[test]
fn files_are_found_by_name() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("files");
    let tree = sample(&mut rng);
    add(&t.store, &path("p"), &tree.nar(), &[]);
    add(&t.store, &path("file"), &file("just me").nar(), &[]);
    let read = |name: &str, inner: &str| {
        let mut contents = Vec::new();
        t.store.read_file(&path(name), inner)?.expect("valid").read_to_end(&mut contents).expect("read");
        Ok::<_, Error>(contents)
    };
    let Tree::Directory(entries) = &tree else { panic!() };
    let Tree::Directory(lib) = &entries[&b"lib"[..]] else { panic!() };
    let Tree::File { contents, .. } = &lib[&b"a.so"[..]] else { panic!() };
    assert!(read("p", "lib/a.so").expect("a file") == *contents);
    assert_eq!(read("p", "/readme").expect("a file"), b"read me\n");
    assert_eq!(read("p", "empty").expect("a file"), b"");
    assert_eq!(read("file", "").expect("a file"), b"just me");
    for none in ["lib", "lib/b", "lib/c", "", "readme/x", "../readme"] {
        assert!(matches!(read("p", none), Err(Error::NoSuchFile(_))), "{none}");
    }
    assert!(t.store.read_file(&path("nobody"), "x").expect("no error").is_none());
    assert!(t.store.index(&path("nobody")).expect("no error").is_none());
}

/// Compares a directory tree with what it was made from, permissions and times included.
fn assert_unpacked(at: &Path, tree: &Tree) {
    let metadata = std::fs::symlink_metadata(at).expect("metadata");
    assert_eq!(metadata.mtime(), 1, "{}", at.display());
    let mode = metadata.permissions().mode() & 0o7777;
    match tree {
        Tree::File { executable, contents } => {
            assert_eq!(mode, if *executable { 0o555 } else { 0o444 }, "{}", at.display());
            assert!(std::fs::read(at).expect("read") == *contents, "{}", at.display());
        }
        Tree::Symlink(target) => {
            let found = std::fs::read_link(at).expect("a symlink");
            assert_eq!(found.as_os_str().as_encoded_bytes(), target);
        }
        Tree::Directory(entries) => {
            assert_eq!(mode, 0o555, "{}", at.display());
            assert_eq!(std::fs::read_dir(at).expect("list").count(), entries.len());
            for (name, entry) in entries {
                assert_unpacked(&at.join(String::from_utf8_lossy(name).as_ref()), entry);
            }
        }
    }
}

#[test]
fn unpacked_trees_are_as_nix_lays_them_down() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("unpacked_trees");
    let out = tempfile::tempdir().expect("temporary directory");
    for round in 0..20 {
        let tree = if round == 0 { sample(&mut rng) } else { Tree::random(&mut rng, 300_000) };
        let me = path(&format!("{round}"));
        add(&t.store, &me, &tree.nar(), &[]);
        let dest = out.path().join(me.base_name());
        assert!(t.store.unpack(&me, &dest).expect("unpack"));
        assert_unpacked(&dest, &tree);
        assert!(t.store.unpack(&me, &dest).is_err(), "what is there is not touched");
        assert_unpacked(&dest, &tree);
    }
    assert!(!t.store.unpack(&path("nobody"), &out.path().join("x")).expect("no error"));
}

/// Long reads have a second thread, which has to follow wherever the reader goes.
#[test]
fn long_reads_may_jump_about() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("long_reads");
    let nar = file(rng.text(24 << 20)).nar();
    add(&t.store, &path("p"), &nar, &[]);
    let size = nar.len() as u64;
    let mut export = t.store.export(&path("p")).expect("export").expect("valid");
    for _ in 0..60 {
        let (offset, len) = (rng.below(size), rng.below(5 << 20) as usize);
        export.seek(offset, size);
        let mut bytes = vec![0; len.min((size - offset) as usize)];
        export.read_exact(&mut bytes).expect("read");
        assert!(bytes == nar[offset as usize..][..bytes.len()], "{len} bytes from {offset}");
    }
}

#[test]
fn many_readers_at_once() {
    let t = TestStore::new();
    let nar = sample(&mut Rng::seeded("many_readers")).nar();
    add(&t.store, &path("p"), &nar, &[]);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| assert!(export(&t.store, &path("p")) == nar));
        }
    });
}

#[test]
fn usage_counts_what_is_shared_once() {
    let t = TestStore::new();
    let mut rng = Rng::seeded("usage");
    let shared = rng.text(1 << 20);
    let tree = |own: Vec<u8>| directory([("own", file(own)), ("shared", file(shared.clone()))]).nar();
    let nars = [tree(rng.noise(200_000)), tree(rng.noise(200_000))];
    add(&t.store, &path("a"), &nars[0], &[]);
    add(&t.store, &path("b"), &nars[1], &[&path("a")]);
    let total = nars.iter().map(|nar| nar.len() as u64).sum::<u64>();
    let all = t.store.usage().expect("usage");
    assert_eq!((all.paths, all.nar_bytes), (2, total));
    assert_eq!(all.stored_bytes, t.store.stats().expect("stats").live_bytes);
    assert!((1 << 20..=(1 << 20) + 5_000).contains(&(total - all.unique_bytes)), "the shared file once: {all:?}");
    assert!(all.unique_bytes - all.stored_bytes > 300_000, "text compresses: {all:?}");
    let one = t.store.usage_of(&[path("a"), path("none"), path("a")]).expect("usage");
    assert_eq!((one.paths, one.nar_bytes, one.unique_bytes), (1, nars[0].len() as u64, nars[0].len() as u64));
    let closure = t.store.closure(&[path("b")]).expect("closure");
    assert_eq!(t.store.usage_of(&closure).expect("usage"), all);
}
