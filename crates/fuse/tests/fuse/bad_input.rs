//! A source that hangs, fails, lies and loses things: readers get an error in time, and can always be killed.

use crate::fake::{Fake, Mood, name_of};
use crate::lab::{Lab, Place, Reader, eventually, hasty};
use crate::paths::{file, noise};
use shoal_fuse::{Mount, Options};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What the kernel says when a read fails.
const EIO: i32 = 5;

fn big(fake: &Fake) -> Vec<u8> {
    let contents = noise(1, 3 << 20);
    fake.add_listed("big", &[("data", file(&contents))]);
    contents
}

#[test]
fn what_is_no_directory_is_refused_and_stays() {
    if crate::lab::cannot_mount() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let refused = Mount::start(&file, Arc::new(Fake::default()), &Options::default());
    assert!(refused.is_err_and(|error| error.to_string().contains("not a directory")));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn a_chunk_that_is_not_its_own_is_an_error_after_the_deadline_and_right_once_the_source_is() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    let contents = big(&fake);
    fake.feel(Mood::Lies);
    let lab = Lab::new(&hasty(), fake);
    assert_eq!(lab.read("big", "data").unwrap_err().raw_os_error(), Some(EIO));
    assert!(lab.mount.handle().stats().corrupt_chunks > 1, "it was tried again");
    lab.fake.feel(Mood::Well);
    let healed = eventually(|| lab.read("big", "data").ok()).expect("it is remembered for a while only");
    assert!(healed == contents);
}

#[test]
fn a_source_that_fails_for_a_moment_is_not_noticed() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    let contents = big(&fake);
    fake.feel(Mood::Fails);
    let lab = Lab::new(&Options::default(), fake);
    let read = thread::scope(|scope| {
        let reader = scope.spawn(|| lab.read("big", "data"));
        assert!(eventually(|| (lab.fake.asked().len() > 3).then_some(())).is_some(), "it is asked again");
        lab.fake.feel(Mood::Well);
        reader.join().unwrap()
    });
    assert!(read.unwrap() == contents);
}

#[test]
fn a_source_that_hangs_is_an_error_after_the_deadline_which_is_remembered() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    big(&fake);
    fake.feel(Mood::Hangs);
    let (read_deadline, failure_memory) = (Duration::from_secs(3), Duration::from_secs(30));
    let lab = Lab::new(&Options { read_deadline, failure_memory, ..hasty() }, fake);
    let file = fs::File::open(lab.path("big", "data")).unwrap();
    let mut page = vec![0; 4096];
    let begun = Instant::now();
    assert_eq!(file.read_exact_at(&mut page, 0).unwrap_err().raw_os_error(), Some(EIO));
    assert!(begun.elapsed() >= read_deadline);
    let begun = Instant::now();
    assert_eq!(file.read_exact_at(&mut page, 0).unwrap_err().raw_os_error(), Some(EIO));
    assert!(begun.elapsed() < read_deadline, "the second waits no more");
    assert!(fs::metadata(lab.path("big", "data")).is_ok(), "what is in memory is answered");
}

#[test]
fn a_source_that_hung_is_asked_again_after_a_while() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    let contents = big(&fake);
    fake.feel(Mood::Hangs);
    let lab = Lab::new(&hasty(), fake);
    let file = fs::File::open(lab.path("big", "data")).unwrap();
    let mut page = vec![0; 4096];
    assert_eq!(file.read_exact_at(&mut page, 0).unwrap_err().raw_os_error(), Some(EIO));
    lab.fake.feel(Mood::Well);
    assert!(eventually(|| file.read_exact_at(&mut page, 0).ok()).is_some());
    assert!(page == contents[..4096]);
}

#[test]
fn what_nobody_has_is_an_error_at_once() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    big(&fake);
    fake.feel(Mood::Lost);
    let lab = Lab::new(&Options::default(), fake);
    let begun = Instant::now();
    assert_eq!(lab.read("big", "data").unwrap_err().raw_os_error(), Some(EIO));
    assert!(begun.elapsed() < Options::default().read_deadline / 2);
}

#[test]
fn who_waits_for_a_read_can_be_killed() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    big(&fake);
    fake.feel(Mood::Hangs);
    let lab = Lab::new(&Options::default(), fake);
    let mut reader = Reader::of(&lab.path("big", "data"));
    assert!(eventually(|| (!lab.fake.asked().is_empty()).then_some(())).is_some());
    assert!(!reader.has_ended());
    reader.kill();
    assert!(reader.end().is_some(), "it stays, killed and waiting");
}

#[test]
fn a_lookup_that_hangs_ends_in_time_and_holds_nobody_else_up() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    big(&fake);
    let lookup_deadline = Duration::from_secs(6);
    let lab = Lab::new(&Options { lookup_deadline, ..hasty() }, fake);
    assert!(lab.read("big", "data").is_ok());
    lab.fake.let_lookups_hang(true);
    thread::scope(|scope| {
        let slow = scope.spawn(|| lab.read("elsewhere", "data"));
        let begun = Instant::now();
        while !slow.is_finished() {
            let look = Instant::now();
            assert!(lab.read("big", "data").is_ok());
            assert!(look.elapsed() < lookup_deadline - Duration::from_secs(1));
        }
        assert!(begun.elapsed() < 5 * lookup_deadline);
        assert_eq!(slow.join().unwrap().unwrap_err().raw_os_error(), Some(EIO));
    });
}

#[test]
fn sixty_four_readers_of_one_cold_file_are_one_fetch() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    let contents = big(&fake);
    fake.feel(Mood::Hangs);
    let lab = Lab::new(&Options::default(), fake);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..64).map(|_| scope.spawn(|| lab.read("big", "data"))).collect();
        assert!(eventually(|| (!lab.fake.asked().is_empty()).then_some(())).is_some());
        lab.fake.feel(Mood::Well);
        for reader in readers {
            assert!(reader.join().unwrap().unwrap() == contents);
        }
    });
    let asked = lab.fake.asked();
    assert_eq!(asked.iter().collect::<BTreeSet<_>>().len(), asked.len(), "no chunk twice");
}

#[test]
fn a_path_that_is_deleted_while_it_is_open_keeps_what_was_read_and_fails_for_the_rest() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    let contents = big(&fake);
    fake.add_listed("idle", &[("data", file(b"idle"))]);
    let lab = Lab::new(&hasty(), fake);
    let handle = lab.mount.handle();
    let names = [name_of("big"), name_of("idle")];
    assert!(lab.read("idle", "data").is_ok());
    let file = fs::File::open(lab.path("big", "data")).unwrap();
    let mut page = vec![0; 4096];
    file.read_exact_at(&mut page, 0).unwrap();
    assert_eq!(handle.in_use(&names), [name_of("big")], "only what is open is");
    lab.fake.delete("big");
    handle.vanished(&[name_of("big")]);
    assert_eq!(lab.read("big", "data").unwrap_err().kind(), ErrorKind::NotFound);
    file.read_exact_at(&mut page, 0).unwrap();
    assert!(page == contents[..4096], "what was read stays");
    assert_eq!(file.read_exact_at(&mut page, 2 << 20).unwrap_err().raw_os_error(), Some(EIO));
    assert_eq!(handle.stats().paths, 1);
}

#[test]
fn a_storm_of_forgets_leaves_nothing_behind_and_nothing_wrong() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    let many = (0..20_000).map(|n| (format!("{}/{n}", n % 50), file(format!("{n}").as_bytes())));
    fake.add_listed("many", &many.collect::<Vec<_>>());
    let lab = Lab::new(&Options::default(), fake);
    let (handle, names) = (lab.mount.handle(), [name_of("many")]);
    for round in 1..=3u64 {
        for n in 0..20_000 {
            assert!(fs::symlink_metadata(lab.path("many", &format!("{}/{n}", n % 50))).is_ok());
        }
        assert!(eventually(|| handle.in_use(&names).is_empty().then_some(())).is_some(), "all is forgotten");
        assert!(handle.stats().forgets >= round * 20_000);
    }
    assert_eq!(lab.read("many", "7/1007").unwrap(), b"1007");
}

/// A path of another node whose contents are not always the same, as of a build that is not reproducible.
#[test]
fn a_path_that_was_made_anew_elsewhere_is_shown_as_it_is_once_the_old_one_is_found_lost() {
    if crate::lab::cannot_mount() {
        return;
    }
    let fake = Fake::default();
    fake.add("again", &[("data", file(&noise(1, 300_000)))]);
    let lab = Lab::new(&hasty(), fake);
    assert_eq!(fs::metadata(lab.path("again", "data")).unwrap().len(), 300_000);
    lab.fake.add("again", &[("data", file(&noise(2, 200_000)))]);
    assert_eq!(lab.read("again", "data").unwrap_err().raw_os_error(), Some(EIO));
    let now = eventually(|| lab.read("again", "data").ok()).expect("what is there now");
    assert!(now == noise(2, 200_000));
}

/// The process that serves it is about to end, and its other nodes are out of reach already.
#[test]
fn what_fails_after_a_mount_was_left_is_answered_by_who_goes_on_with_it() {
    if crate::lab::cannot_mount() {
        return;
    }
    let (place, fake) = (Place::new(), Arc::new(Fake::default()));
    big(&fake);
    fake.feel(Mood::Hangs);
    let options = Options { failure_memory: Duration::ZERO, ..Options::default() };
    let (mount, kept) = Mount::start_to_keep(&place.dir(), fake.clone(), &options).unwrap();
    let Some(kept) = kept.filter(|_| rustix::process::geteuid().is_root()) else {
        return println!("skipped: no mount can be kept here");
    };
    let mut reader = Reader::of(&place.dir().join(name_of("big")).join("data"));
    assert!(eventually(|| (!fake.asked().is_empty()).then_some(())).is_some());
    let handle = mount.handle().clone();
    mount.leave();
    fake.feel(Mood::Lost);
    assert!(eventually(|| (handle.stats().failed_reads > 0).then_some(())).is_some());
    assert!(!reader.has_ended());
    fake.feel(Mood::Well);
    let next = Mount::resume(&place.dir(), kept, fake, &options).unwrap();
    assert!(reader.end().expect("its end").success());
    next.stop().unwrap();
}
