//! Views: what they show, what the kernel keeps between them, and what they say of reads that failed.

use crate::fake::{Fake, Mood, name_of};
use crate::lab::{PATIENCE, eventually, hasty};
use crate::paths::{file, link, noise};
use shoal_fuse::{Options, Profile, View, ViewError, ViewMount};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Takes root's rights, and a kernel that copies a part of a mount that is attached nowhere.
fn views(options: &Options, fake: &Arc<Fake>) -> Option<ViewMount> {
    let started = ViewMount::start(fake.clone(), options);
    let usable = started.and_then(|mount| match mount.view([]) {
        Err(ViewError::Open(error)) => {
            let dir = PathBuf::new();
            Err(shoal_fuse::MountError::Mount { dir, error })
        }
        _ => Ok(mount),
    });
    match usable {
        Ok(mount) => Some(mount),
        Err(error) => {
            println!("skipped: no views here: {error}");
            None
        }
    }
}

fn at(view: &View, inside: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/store/{inside}", view.dir().as_raw_fd()))
}

fn listed(view: &View, inside: &str) -> Vec<String> {
    let entries = fs::read_dir(at(view, inside)).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn shop() -> Arc<Fake> {
    let fake = Fake::default();
    fake.add("one", &[("bin/run", file(b"one")), ("bin/link", link("run"))]);
    fake.add("two", &[("lib/deep/big", file(&noise(2, 3 << 20)))]);
    fake.add("plain", &[("", file(b"plain"))]);
    Arc::new(fake)
}

#[test]
fn a_view_shows_its_paths_and_no_others_and_views_beside_it_show_theirs() {
    let fake = shop();
    let Some(mount) = views(&Options::default(), &fake) else { return };
    let (one, two, plain) = (name_of("one"), name_of("two"), name_of("plain"));
    let first = mount.view([two.as_str(), one.as_str(), one.as_str()]).unwrap();
    let second = mount.view([plain.as_str(), two.as_str()]).unwrap();
    assert_eq!(listed(&first, ""), [one.clone(), two.clone()]);
    assert_eq!(listed(&second, ""), [plain.clone(), two.clone()]);
    assert!(fs::symlink_metadata(at(&first, &plain)).is_err());
    assert!(fs::symlink_metadata(at(&second, &one)).is_err());
    assert_eq!(fs::read(at(&second, &plain)).unwrap(), b"plain");
    assert_eq!(listed(&first, &format!("{one}/bin")), ["link", "run"]);
    assert_eq!(fs::read(at(&first, &format!("{one}/bin/link"))).unwrap(), b"one");
    // The kernel has a directory at one place only, so each view has its own; a file it may have at many.
    let number = |view: &View, inside: &str| fs::metadata(at(view, &format!("{two}/{inside}"))).unwrap().ino();
    assert_ne!(number(&first, "lib/deep"), number(&second, "lib/deep"));
    assert_eq!(number(&first, "lib/deep/big"), number(&second, "lib/deep/big"));
    drop(first);
    assert_eq!(fs::read(at(&second, &format!("{two}/lib/deep/big"))).unwrap(), noise(2, 3 << 20));
    assert!(matches!(mount.view(["0c2rmgxmbc5c1qsmxvb1pmgyv0kvcbgv-nobody"]), Err(ViewError::Path { .. })));
}

#[test]
fn what_one_view_read_the_next_one_does_not_read_again() {
    let fake = shop();
    let Some(mount) = views(&Options::default(), &fake) else { return };
    let two = name_of("two");
    let big = |view: &View| fs::read(at(view, &format!("{two}/lib/deep/big"))).unwrap();
    let first = mount.view([two.as_str()]).unwrap();
    assert!(big(&first) == noise(2, 3 << 20));
    drop(first);
    let reads = mount.stats().reads;
    let second = mount.view([two.as_str()]).unwrap();
    assert!(big(&second) == noise(2, 3 << 20));
    assert_eq!(mount.stats().reads, reads, "the kernel has it");
}

#[test]
fn a_view_whose_reader_was_given_an_error_says_so_and_the_others_do_not() {
    let fake = shop();
    let Some(mount) = views(&hasty(), &fake) else { return };
    let (one, two) = (name_of("one"), name_of("two"));
    let (first, second) = (mount.view([one.as_str()]).unwrap(), mount.view([one.as_str(), two.as_str()]).unwrap());
    fake.feel(Mood::Fails);
    let failed = fs::read(at(&second, &format!("{two}/lib/deep/big"))).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert!(second.has_failed());
    assert!(!first.has_failed());
    mount.stop();
    assert!(first.has_failed(), "nobody answers its readers any more");
}

#[test]
fn a_mount_that_is_stopped_wakes_who_waits_in_a_view() {
    let fake = shop();
    let Some(mount) = views(&Options::default(), &fake) else { return };
    let view = mount.view([name_of("two").as_str()]).unwrap();
    fake.feel(Mood::Hangs);
    let big = at(&view, &format!("{}/lib/deep/big", name_of("two")));
    let reader = std::thread::spawn(move || fs::read(big));
    eventually(|| (mount.stats().waited_reads > 0).then_some(())).expect("it waits");
    let begun = Instant::now();
    mount.stop();
    fake.feel(Mood::Well);
    assert!(reader.join().unwrap().is_err());
    assert!(begun.elapsed() < Duration::from_secs(5), "not after its deadline of half a minute");
}

#[test]
fn paths_that_only_ended_views_showed_can_be_deleted_and_those_of_a_view_cannot() {
    let fake = shop();
    let Some(mount) = views(&Options::default(), &fake) else { return };
    let (one, two) = (name_of("one"), name_of("two"));
    let names = [one.clone(), two.clone()];
    let first = mount.view([one.as_str(), two.as_str()]).unwrap();
    let second = mount.view([two.as_str()]).unwrap();
    fs::read(at(&first, &format!("{one}/bin/run"))).unwrap();
    fs::read(at(&first, &format!("{two}/lib/deep/big"))).unwrap();
    assert_eq!(mount.handle().in_use(&names), names);
    drop(first);
    assert_eq!(mount.handle().in_use(&names), names[1..]);
    drop(second);
    assert!(mount.handle().in_use(&names).is_empty());
    mount.handle().vanished(&names);
    fake.delete("one");
    assert!(matches!(mount.view([one.as_str()]), Err(ViewError::Path { .. })));
}

#[test]
fn a_view_of_a_thousand_paths_is_there_at_once() {
    let fake = Fake::default();
    let names: Vec<String> = (0..1000).map(|number| format!("path-{number}")).collect();
    names.iter().for_each(|name| drop(fake.add(name, &[("file", file(name.as_bytes()))])));
    let Some(mount) = views(&Options::default(), &Arc::new(fake)) else { return };
    let names: Vec<String> = names.iter().map(|name| name_of(name)).collect();
    let view = || {
        let begun = Instant::now();
        let view = mount.view(names.iter().map(String::as_str)).unwrap();
        (begun.elapsed(), view)
    };
    let (first, shown) = view();
    assert_eq!(listed(&shown, "").len(), 1000);
    let again = (0..20).map(|_| view().0).min().unwrap();
    println!("1,000 paths: {first:?} when nothing is known of them, then {again:?}");
    assert!(again < first / 5, "{first:?}, then {again:?}");
    // As it is when it is used, and not slowed down by checks.
    assert!(cfg!(debug_assertions) || again < Duration::from_millis(10), "{again:?}");
}

#[test]
fn what_one_view_read_is_in_memory_before_the_next_one_of_its_kind_reads_it() {
    let headers = |seed: u64| {
        let header = move |n: u64| (format!("include/{n}.h"), file(&noise(seed + n, 100_000)));
        (0..40).map(header).collect::<Vec<_>>()
    };
    let shop = |seed: u64| {
        let fake = Fake::default();
        fake.add("lib", &headers(seed));
        Arc::new(fake)
    };
    // Every fifth of it is read.
    let reads = |view: &View| {
        for n in (0..40).step_by(5) {
            assert_eq!(fs::read(at(view, &format!("{}/include/{n}.h", name_of("lib")))).unwrap().len(), 100_000);
        }
    };
    let (first, second) = (shop(1_000), shop(2_000));
    let Some(mount) = views(&Options::default(), &first) else { return };
    let view = mount.view([name_of("lib").as_str()]).unwrap();
    view.expect(&Profile::default(), PATIENCE, &|| false);
    reads(&view);
    let (profile, before) = (view.profile(&Profile::default()), mount.stats());
    assert_eq!((profile.files.len(), before.expected_chunks), (8, 0));
    // Another mount, with other bytes under the same names.
    let Some(mount) = views(&Options::default(), &second) else { return };
    let view = mount.view([name_of("lib").as_str()]).unwrap();
    view.expect(&profile, PATIENCE, &|| false);
    reads(&view);
    let after = mount.stats();
    println!("blocking misses: {} of {} reads, then {}", before.waited_reads, before.reads, after.waited_reads);
    assert!(after.waited_reads * 10 <= before.waited_reads, "{} and then {}", before.waited_reads, after.waited_reads);
    assert!(
        after.fetched_bytes * 5 <= before.fetched_bytes * 6,
        "{} bytes, then {}",
        before.fetched_bytes,
        after.fetched_bytes
    );
    assert_eq!(view.profile(&profile), profile);
}

#[test]
fn a_view_shows_what_a_path_is_by_now_and_not_what_it_was_for_an_earlier_one() {
    let fake = shop();
    let Some(mount) = views(&hasty(), &fake) else { return };
    let one = name_of("one");
    drop(mount.view([one.as_str()]).unwrap());
    fake.add("one", &[("other", file(b"made anew"))]);
    let view = mount.view([one.as_str()]).unwrap();
    assert_eq!(fs::read(at(&view, &format!("{one}/other"))).unwrap(), b"made anew");
}

#[test]
fn a_view_that_nobody_wants_any_more_is_not_waited_for() {
    let fake = shop();
    // Nothing comes in the time that the test has.
    let options = Options { lookup_deadline: 2 * PATIENCE, ..Options::default() };
    let Some(mount) = views(&options, &fake) else { return };
    fake.let_lookups_hang(true);
    let begun = Instant::now();
    let over = || begun.elapsed() > Duration::from_millis(50);
    assert!(matches!(mount.view_unless([name_of("one").as_str()], &over), Err(ViewError::Withdrawn)));
    fake.let_lookups_hang(false);
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn what_a_build_that_nobody_wants_any_more_would_read_is_not_waited_for() {
    let fake = shop();
    let Some(mount) = views(&Options::default(), &fake) else { return };
    let view = mount.view([name_of("two").as_str()]).unwrap();
    fs::read(at(&view, &format!("{}/lib/deep/big", name_of("two")))).unwrap();
    let profile = view.profile(&Profile::default());
    drop((view, mount));
    let Some(mount) = views(&Options::default(), &fake) else { return };
    let view = mount.view([name_of("two").as_str()]).unwrap();
    fake.feel(Mood::Hangs);
    let begun = Instant::now();
    view.expect(&profile, 2 * PATIENCE, &|| begun.elapsed() > Duration::from_millis(50));
    assert!(begun.elapsed() < PATIENCE);
    fake.feel(Mood::Well);
}
