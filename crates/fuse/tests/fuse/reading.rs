//! What is shown, and what it costs.

use crate::fake::{Fake, name_of};
use crate::lab::{Lab, Place, eventually, run};
use crate::paths::{Entry, executable, file, link, noise};
use shoal_fuse::{Mount, Options};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

fn small() -> Vec<(&'static str, Entry)> {
    vec![
        ("bin/hello", executable(b"#!/bin/sh\necho hello from $(basename \"$0\")\n")),
        ("lib/data", file(&noise(3, 200_000))),
        ("lib/empty", file(b"")),
        ("lib/link", link("../bin/hello")),
    ]
}

#[test]
fn a_path_is_shown_as_it_was_stored() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    fake.add_listed("tool", &small());
    fake.add_listed("source", &[("", file(b"one file"))]);
    let lab = Lab::new(&Options::default(), fake);
    assert_eq!(lab.read("tool", "lib/data").unwrap(), noise(3, 200_000));
    assert_eq!(lab.read("tool", "lib/empty").unwrap(), b"");
    assert_eq!(lab.read("source", "").unwrap(), b"one file");
    assert_eq!(fs::read_link(lab.path("tool", "lib/link")).unwrap(), Path::new("../bin/hello"));
    let out = run(&mut Command::new(lab.path("tool", "lib/link")));
    assert_eq!(String::from_utf8_lossy(&out.stdout), "hello from link\n");
    let mode = |path: &str| fs::symlink_metadata(lab.path("tool", path)).unwrap().permissions().mode();
    assert_eq!((mode("lib"), mode("lib/data"), mode("bin/hello")), (0o40555, 0o100444, 0o100555));
    let meta = fs::metadata(lab.path("tool", "lib/data")).unwrap();
    assert_eq!((meta.len(), meta.mtime(), meta.uid()), (200_000, 1, 0));
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&lab.root()), BTreeSet::from([name_of("source"), name_of("tool")]));
    assert_eq!(names(&lab.path("tool", "lib")), BTreeSet::from(["data", "empty", "link"].map(String::from)));
    assert_eq!(fs::write(lab.path("tool", "lib/new"), "x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_mount_that_is_stopped_is_gone_though_a_file_of_it_is_open() {
    if crate::lab::cannot_mount() {
        return;
    }
    let place = Place::new();
    let fake = Fake::default();
    fake.add_listed("source", &[("", file(b"one file"))]);
    let mount = Mount::start(&place.dir(), Arc::new(fake), &Options::default()).unwrap();
    let open = fs::File::open(place.dir().join(name_of("source"))).unwrap();
    mount.stop().unwrap();
    assert!(!place.is_mounted());
    assert!(open.read_at(&mut [0; 4], 0).is_err());
}

#[test]
fn what_is_warm_asks_nothing() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    let headers = (0..300).map(|n| (format!("include/{n}.h"), file(format!("int f{n}();\n").as_bytes())));
    fake.add_listed("tool", &headers.collect::<Vec<_>>());
    let lab = Lab::new(&Options::default(), fake);
    let include = lab.path("tool", "include");
    let round = || {
        for n in 0..300 {
            assert!(fs::metadata(include.join(format!("{n}.h"))).is_ok());
            assert!(fs::metadata(include.join(format!("{n}.hpp"))).is_err());
            assert!(fs::read(include.join(format!("{n}.h"))).is_ok());
        }
        assert!(run(Command::new("find").arg(lab.root())).status.success());
    };
    round();
    let before = lab.mount.handle().stats();
    round();
    let after = lab.mount.handle().stats();
    assert_eq!(after.upcalls() - before.upcalls(), 0, "{before:?} {after:?}");
}

#[test]
fn a_path_that_becomes_valid_later_shows_up() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    fake.add_listed("tool", &small());
    let lab = Lab::new(&Options::default(), fake);
    let listed = || fs::read_dir(lab.root()).unwrap().count();
    assert_eq!(listed(), 1);
    assert_eq!(lab.read("late", "a").unwrap_err().kind(), ErrorKind::NotFound);
    let manifest = lab.fake.add("late", &[("a", file(b"here"))]);
    assert_eq!(lab.read("late", "a").unwrap(), b"here", "it can be looked up at once");
    assert_eq!(lab.read("told", "a").unwrap_err().kind(), ErrorKind::NotFound);
    lab.mount.handle().appeared(&name_of("told"), &manifest);
    assert_eq!(listed(), 3);
    assert!(fs::metadata(lab.root().join("no-store-path")).is_err());
}

#[test]
fn only_what_is_read_is_fetched_and_each_chunk_once() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    let contents = noise(8, 16 << 20);
    fake.add("big", &[("image", file(&contents)), ("other", file(&noise(9, 4 << 20)))]);
    let lab = Lab::new(&Options::default(), fake);
    let image = fs::File::open(lab.path("big", "image")).unwrap();
    let mut page = vec![0; 4096];
    for place in [3u64, 11, 7] {
        image.read_exact_at(&mut page, place << 20).unwrap();
        assert_eq!(page, contents[place as usize * (1 << 20)..][..4096]);
    }
    let asked = lab.fake.asked().len();
    assert!(asked <= 12, "three pages took {asked} chunks of 64 KiB");
    assert_eq!(fs::read(lab.path("big", "image")).unwrap(), contents);
    let asked = lab.fake.asked();
    assert_eq!(asked.iter().collect::<BTreeSet<_>>().len(), asked.len(), "none twice");
    assert!(asked.len() <= 260, "{} chunks for 16 MiB", asked.len());
}

#[test]
fn the_first_touch_of_a_small_path_brings_all_of_it_near_and_a_listing_nothing() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    let manifest = fake.add_listed("tool", &small());
    let lab = Lab::new(&Options::default(), fake);
    assert!(run(Command::new("ls").arg("-lR").arg(lab.root())).status.success());
    assert_eq!((lab.fake.asked().len(), lab.fake.near().len()), (0, 0));
    lab.read("tool", "bin/hello").unwrap();
    let all: BTreeSet<[u8; 32]> = manifest.chunks.iter().map(|chunk| chunk.hash).collect();
    let near = || Some(lab.fake.near().into_iter().collect::<BTreeSet<_>>()).filter(|near| *near == all);
    assert!(eventually(near).is_some());
}

#[test]
fn a_mount_at_a_symlink_is_gone_when_it_is_stopped() {
    if crate::lab::cannot_mount() {
        return;
    }
    let place = Place::new();
    let links = tempfile::tempdir().unwrap();
    let (first, second) = (links.path().join("first"), links.path().join("second"));
    std::os::unix::fs::symlink(place.dir(), &first).unwrap();
    std::os::unix::fs::symlink("first", &second).unwrap();
    let mount = Mount::start(&second, Arc::new(Fake::default()), &Options::default()).unwrap();
    assert!(place.is_mounted());
    mount.stop().unwrap();
    assert!(!place.is_mounted());
}
