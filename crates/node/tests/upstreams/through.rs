//! What clients of the binary cache get of paths that only a cache behind the node has, and what they may add to them.

use std::time::Duration;

use shoal_node::http::link::Offer;
use shoal_wire::mesh::transfer::{Entry, Message};
use shoal_wire::nix::base32;
use shoal_wire::nix::narinfo::Compression;

use super::http_lab::{Lab as Door, Wanted};
use super::lab::{Lab, Published, cache, noise};
use super::server::{Reply, Server};

/// An HTTP server on a lab's store and upstreams.
fn door(lab: &Lab) -> Door {
    let behind = Some((lab.store.clone(), lab.upstreams.clone()));
    Door::with(Wanted { behind, takes_uploads: true, offer: Offer::Auto, ..Wanted::default() })
}

fn published(digit: char, below: &[&Published]) -> Published {
    let references: Vec<_> = below.iter().map(|below| &below.path).collect();
    Published::new(digit, &noise(digit.into(), 300_000), &references, Compression::Zstd)
}

fn nar_url(published: &Published, extension: &str) -> String {
    format!("/nar/{}-{}.nar{extension}", published.path.hash_part(), base32::encode(&published.narinfo.info.nar_hash))
}

/// As `nix copy --to` does: what the node tells of is not sent.
#[test]
fn an_upload_may_refer_to_what_only_an_upstream_has() {
    let server = cache(40);
    let bottom = published('1', &[]);
    let below = published('2', &[&bottom]);
    let mut top = published('3', &[&below]);
    [&bottom, &below].into_iter().for_each(|published| published.on(&server));
    let lab = Lab::behind(&[&server]);
    let door = door(&lab);
    assert_eq!(door.get(&below.narinfo_url()).status, 200);
    assert_eq!(door.get(&top.narinfo_url()).status, 404);
    top.narinfo.url = "nar/3.nar.zst".into();
    assert_eq!(door.put("/nar/3.nar.zst", &top.file).status, 200);
    let added = door.put(&top.narinfo_url(), &top.narinfo_text());
    assert_eq!(added.status, 200, "{}", added.text());
    for published in [&bottom, &below, &top] {
        assert!(lab.stored(&published.path).unwrap() == published.nar);
    }
}

/// What nobody has is named, as without upstreams.
#[test]
fn an_upload_that_refers_to_what_nobody_has() {
    let server = cache(40);
    let (nowhere, below) = (published('1', &[]), published('2', &[]));
    let mut top = published('3', &[&nowhere, &below]);
    below.on(&server);
    let lab = Lab::behind(&[&server]);
    let door = door(&lab);
    top.narinfo.url = "nar/3.nar.zst".into();
    assert_eq!(door.put("/nar/3.nar.zst", &top.file).status, 200);
    let refused = door.put(&top.narinfo_url(), &top.narinfo_text());
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains(nowhere.path.base_name()), "{}", refused.text());
    assert!(lab.stored(&top.path).is_none());
}

/// `shoal pull` is answered when the path is here with all it refers to.
#[test]
fn a_pull_waits_for_the_whole_path() {
    let server = cache(40);
    let below = published('1', &[]);
    let top = published('2', &[&below]);
    top.on(&server);
    below.on_with(&server, Reply::Gated(below.file.clone(), 100_000));
    let lab = Lab::behind(&[&server]);
    let door = door(&lab);
    std::thread::scope(|scope| {
        let pulled = scope.spawn(|| door.get(&format!("/api/v1/pull/{}", top.path.hash_part())));
        let asked = |published: &Published, server: &Server| server.count(&published.nar_url()) == 1;
        while !(asked(&below, &server) && asked(&top, &server)) {
            assert!(!pulled.is_finished(), "{:?}", pulled.join());
            std::thread::yield_now();
        }
        // Time for an answer that comes too early.
        std::thread::sleep(Duration::from_millis(200));
        server.open_gate();
        let pulled = pulled.join().unwrap();
        assert_eq!(pulled.status, 200);
        let entry = Entry::decode(&pulled.body).unwrap();
        assert_eq!((entry.info.path, entry.info.nar_hash), (top.path.clone(), top.narinfo.info.nar_hash));
    });
}

/// A client may remember the compressed form from when the path was here.
#[test]
fn the_compressed_form_is_there_as_long_as_the_narinfo() {
    let (server, published) = (cache(40), published('1', &[]));
    published.on(&server);
    let lab = Lab::behind(&[&server]);
    let door = door(&lab);
    let compressed = door.get(&nar_url(&published, ".zst"));
    assert_eq!((compressed.status, compressed.is_whole), (200, true));
    assert!(zstd::decode_all(&compressed.body[..]).unwrap() == published.nar);
    assert_eq!(door.get(&nar_url(&published, "")).body, published.nar);
    assert_eq!(server.count(&published.nar_url()), 1);
}

#[test]
fn a_nar_that_is_gone_is_not_found() {
    let (server, published) = (cache(40), published('1', &[]));
    published.on_with(&server, Reply::Status(404));
    let lab = Lab::behind(&[&server]);
    let door = door(&lab);
    assert_eq!(door.get(&published.narinfo_url()).status, 200);
    for extension in ["", ".zst"] {
        assert_eq!(door.try_get(&nar_url(&published, extension)).map(|answer| answer.status), Some(404));
    }
    // One that comes is passed on.
    published.on(&server);
    let lab = Lab::behind(&[&server]);
    let door = self::door(&lab);
    assert!(door.get(&nar_url(&published, "")).body == published.nar);
}
