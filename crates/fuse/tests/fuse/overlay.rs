//! A mount that goes on showing what its directory has.

use crate::fake::{Fake, name_of};
use crate::lab::{Place, cannot_mount, eventually, run};
use crate::paths::{executable, file, noise};
use shoal_fuse::{Mount, MountError, Options};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const MANY: usize = 3000;

/// A mounted overlay; what lies beneath is reached by a descriptor that is older. Fields are dropped in this order.
struct Covered {
    mount: Mount,
    beneath: fs::File,
    place: Place,
}

impl Covered {
    fn new(fake: Fake, fill: impl FnOnce(&Path)) -> Covered {
        let place = Place::new();
        fill(&place.dir());
        let beneath = fs::File::open(place.dir()).unwrap();
        let options = Options { is_overlay: true, ..Options::default() };
        let mount = Mount::start(&place.dir(), Arc::new(fake), &options).expect("a mount");
        Covered { mount, beneath, place }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.dir().join(name)
    }

    fn beneath(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.beneath.as_raw_fd())).join(name)
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(dir)).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn what_the_directory_has_is_shown_beside_store_paths() {
    if cannot_mount() {
        return;
    }
    let fake = Fake::default();
    fake.add_listed("tool", &[("bin/run", executable(b"#!/bin/sh\necho far\n"))]);
    fake.add_listed("both", &[("data", file(b"the mesh's"))]);
    fake.add("unlisted", &[("data", file(b"looked up"))]);
    let covered = Covered::new(fake, |dir| {
        fs::create_dir_all(dir.join("near-path/bin")).unwrap();
        fs::write(dir.join("near-path/bin/run"), "#!/bin/sh\necho near\n").unwrap();
        fs::set_permissions(dir.join("near-path/bin/run"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("bin/run", dir.join("near-path/link")).unwrap();
        fs::write(dir.join("big"), noise(5, 3 << 20)).unwrap();
        fs::create_dir(dir.join(name_of("both"))).unwrap();
        fs::write(dir.join(name_of("both")).join("data"), "the directory's").unwrap();
    });
    for (program, says) in [("near-path/link", "near\n"), (&*format!("{}/bin/run", name_of("tool")), "far\n")] {
        assert_eq!(String::from_utf8_lossy(&run(&mut Command::new(covered.at(program))).stdout), says);
    }
    assert!(fs::read(covered.at("big")).unwrap() == noise(5, 3 << 20));
    assert_eq!(fs::metadata(covered.at("near-path/bin/run")).unwrap().permissions().mode(), 0o100_750);
    assert_eq!(fs::read_link(covered.at("near-path/link")).unwrap(), Path::new("bin/run"));
    assert_eq!(fs::read(covered.at(&name_of("both")).join("data")).unwrap(), b"the directory's");
    assert_eq!(fs::metadata(covered.at("nothing")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fs::write(covered.at("new"), "x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    let mut names = covered.names("");
    names.sort();
    assert_eq!(names, [&*name_of("both"), &*name_of("tool"), "big", "near-path"], "each once");
    assert_eq!(BTreeSet::from_iter(covered.names("near-path")), BTreeSet::from(["bin", "link"].map(String::from)));
    assert_eq!(fs::read(covered.at(&name_of("unlisted")).join("data")).unwrap(), b"looked up");
    assert_eq!(covered.mount.handle().stats().failed_reads, 0);
}

#[test]
fn what_comes_beneath_is_there_at_once_and_what_changes_or_goes_soon() {
    if cannot_mount() {
        return;
    }
    let covered = Covered::new(Fake::default(), |dir| fs::write(dir.join("old"), "old").unwrap());
    assert!(fs::metadata(covered.at("new")).is_err() && covered.names("") == ["old"]);
    fs::create_dir(covered.beneath("new")).unwrap();
    fs::write(covered.beneath("new/file"), "half").unwrap();
    assert_eq!(fs::read(covered.at("new/file")).unwrap(), b"half", "though it was looked for before");
    assert_eq!(covered.names("new"), ["file"]);
    fs::write(covered.beneath("new/file"), "all of it").unwrap();
    fs::write(covered.beneath("new/other"), "more").unwrap();
    let is_whole = || (fs::read(covered.at("new/file")).ok()? == b"all of it").then_some(());
    assert_eq!(eventually(is_whole), Some(()));
    assert_eq!(eventually(|| (covered.names("new").len() == 2).then_some(())), Some(()));
    assert_eq!(eventually(|| (covered.names("").len() == 2).then_some(())), Some(()), "the list comes later");
    fs::remove_dir_all(covered.beneath("new")).unwrap();
    assert_eq!(eventually(|| fs::metadata(covered.at("new/file")).is_err().then_some(())), Some(()));
    assert_eq!(eventually(|| (covered.names("") == ["old"]).then_some(())), Some(()));
}

#[test]
fn a_long_list_has_everything_once() {
    if cannot_mount() {
        return;
    }
    let fake = Fake::default();
    (0..MANY).for_each(|n| drop(fake.add_listed(&format!("far{n}"), &[("", file(b"x"))])));
    let covered = Covered::new(fake, |dir| {
        (0..MANY).for_each(|n| fs::write(dir.join(format!("near{n}")), "x").unwrap());
    });
    let names = covered.names("");
    assert_eq!((names.len(), BTreeSet::from_iter(&names).len()), (2 * MANY, 2 * MANY));
    // With attributes, as a tool that looks at each.
    let found = run(Command::new("find").arg(covered.at("")).args(["-type", "f", "-size", "-2"]));
    assert_eq!(String::from_utf8_lossy(&found.stdout).lines().count(), 2 * MANY);
}

#[test]
fn a_path_that_comes_beneath_later_goes_before_that_of_the_mesh() {
    if cannot_mount() {
        return;
    }
    let fake = Fake::default();
    fake.add_listed("both", &[("data", file(b"the mesh's"))]);
    let covered = Covered::new(fake, |_| {});
    let data = format!("{}/data", name_of("both"));
    assert_eq!(fs::read(covered.at(&data)).unwrap(), b"the mesh's");
    assert_eq!(covered.names(""), [name_of("both")]);
    fs::create_dir(covered.beneath(&name_of("both"))).unwrap();
    fs::write(covered.beneath(&data), "the directory's").unwrap();
    let is_own = || (fs::read(covered.at(&data)).ok()? == b"the directory's").then_some(());
    assert_eq!(eventually(is_own), Some(()));
}

#[test]
fn who_optimises_a_store_or_deletes_from_it_disturbs_no_reader() {
    if cannot_mount() {
        return;
    }
    let covered = Covered::new(Fake::default(), |dir| {
        ["big", "twin"].iter().for_each(|name| fs::write(dir.join(name), noise(6, 3 << 20)).unwrap());
    });
    let file = fs::File::open(covered.at("big")).unwrap();
    let mut begin = vec![0; 4096];
    file.read_exact_at(&mut begin, 0).unwrap();
    fs::rename(covered.beneath("twin"), covered.beneath("big")).unwrap();
    let mut middle = vec![0; 4096];
    file.read_exact_at(&mut middle, 1 << 20).unwrap();
    fs::remove_file(covered.beneath("big")).unwrap();
    let mut end = vec![0; 4096];
    file.read_exact_at(&mut end, (3 << 20) - 4096).unwrap();
    let whole = noise(6, 3 << 20);
    assert!(begin == whole[..4096] && middle == whole[1 << 20..][..4096] && end == whole[(3 << 20) - 4096..]);
}

#[test]
fn no_overlay_has_the_program_that_serves_it() {
    let program = std::env::current_exe().unwrap();
    let options = Options { is_overlay: true, ..Options::default() };
    let refused = Mount::start(program.parent().unwrap(), Arc::new(Fake::default()), &options);
    assert!(matches!(refused, Err(MountError::OwnProgram { .. })));
}
