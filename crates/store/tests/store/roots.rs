//! Roots, and what they keep.

use crate::support::{TestStore, add, file, path};
use shoal_store::{GcAction, GcRequest, Root};
use std::os::unix::fs::symlink;

#[test]
fn roots_last_and_links_root_what_they_point_at() {
    let mut t = TestStore::new();
    for name in ["named", "linked", "inside", "loose"] {
        add(&t.store, &path(name), &file(name).nar(), &[]);
    }
    let links = tempfile::tempdir().expect("temporary directory");
    let link = |name: &str| links.path().join(name);
    symlink(format!("/nix/store/{}", path("linked")), link("result")).expect("symlink");
    symlink(format!("/nix/store/{}/bin/tool", path("inside")), link("tool")).expect("symlink");
    symlink("/somewhere/else", link("foreign")).expect("symlink");
    for name in ["result", "tool", "foreign", "missing"] {
        t.store.add_link_root(&link(name)).expect("add link");
    }
    t.store.add_root("pin", &path("loose")).expect("add root");
    t.store.add_root("pin", &path("named")).expect("point it elsewhere");
    t = t.reopened();
    let temporary = t.store.temp_roots();
    temporary.add(&path("future"));
    let mut expected = vec![
        (Root::Named("pin".into()), path("named")),
        (Root::Link(link("result")), path("linked")),
        (Root::Link(link("tool")), path("inside")),
        (Root::Temporary, path("future")),
    ];
    let mut found = t.store.roots().expect("roots");
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    drop(temporary);
    let report = t.store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect");
    assert_eq!(report.paths, vec![path("loose")]);
    std::fs::remove_file(link("result")).expect("remove");
    assert!(t.store.remove_root("pin").expect("remove root"));
    assert!(!t.store.remove_root("pin").expect("remove root"));
    let mut report = t.store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect");
    let mut gone = vec![path("linked"), path("named")];
    report.paths.sort();
    gone.sort();
    assert_eq!(report.paths, gone);
}
