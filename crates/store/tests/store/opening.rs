//! Which directories are stores, and who may have them open.

use crate::support::{TestStore, add, export, file, path, small_options};
use shoal_store::{OpenError, Options, Store};
use std::fs;

#[test]
fn handles_may_go_to_other_threads() {
    fn sent<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    shared::<Store>();
    shared::<shoal_store::TempRoots>();
    sent::<shoal_store::Ingest>();
    sent::<shoal_store::Ingested>();
    sent::<shoal_store::Export>();
    sent::<shoal_store::LogWriter>();
}

#[test]
fn one_process_at_a_time() {
    let t = TestStore::new();
    let second = Store::open(t.dir.path(), small_options());
    assert!(matches!(&second, Err(OpenError::Locked(_))));
    let text = second.err().expect("locked").to_string();
    assert!(text.contains("another process") && text.contains("stop it"), "{text}");
    let again = t.reopened();
    add(&again.store, &path("p"), &file("x").nar(), &[]);
}

#[test]
fn strangers_are_left_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    fs::write(dir.path().join("thesis.tex"), "years of work").expect("write");
    assert!(matches!(Store::open(dir.path(), Options::default()), Err(OpenError::NotAStore(_))));
    assert_eq!(fs::read(dir.path().join("thesis.tex")).expect("read"), b"years of work");
}

#[test]
fn a_store_of_another_format_says_so() {
    let t = TestStore::new();
    let dir = t.dir;
    drop(t.store);
    fs::write(dir.path().join("format"), "shoal-store 3\n").expect("write");
    match Store::open(dir.path(), Options::default()) {
        Err(error @ OpenError::Format { .. }) => {
            let text = error.to_string();
            assert!(text.contains("shoal-store 3") && text.contains("shoal-store 2"), "{text}");
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn appending_goes_on_in_the_open_segment() {
    let mut t = TestStore::new();
    for n in 0..5 {
        add(&t.store, &path(&n.to_string()), &file(format!("contents {n}")).nar(), &[]);
        t = t.reopened();
    }
    let stats = t.store.stats().expect("stats");
    assert_eq!(stats.segments, 1);
    for n in 0..5 {
        assert_eq!(export(&t.store, &path(&n.to_string())), file(format!("contents {n}")).nar());
    }
}
