//! Caches that fail, lie or stall. Nothing wrong is stored, nothing waits long, and another cache helps out.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use shoal_node::upstream::{Authorities, CLIENT_BUDGET, HEDGE, Patience};
use shoal_wire::nix::hash::{Hash, sha256};
use shoal_wire::nix::narinfo::Compression;
use shoal_wire::nix::signature::SecretKey;
use shoal_wire::nix::store_path::StoreDir;

use super::lab::{Lab, PATIENCE, Published, as_cache, cache, key, noise};
use super::server::{DRIP_TIME, Reply, Server};

/// More than any bound in the lab, less than a hang.
const BOUNDED: Duration = Duration::from_secs(20);

/// The path is a clean miss behind `bad` alone, for those who want it stored and for those who read it; and whole
/// behind `bad` and a good cache.
fn is_harmless(bad: &Server, published: &Published) {
    let since = Instant::now();
    let lab = Lab::behind(&[bad]);
    lab.upstreams.fetch(&published.path).unwrap_err();
    assert!(lab.stored(&published.path).is_none());
    let lab = Lab::behind(&[bad]);
    if let Some(streamed) = lab.streamed(&published.path) {
        let (before, _) = streamed.expect_err("a wrong NAR was given out whole");
        assert!(before.len() < published.nar.len());
    }
    assert!(lab.stored(&published.path).is_none());
    let good = cache(90);
    published.on(&good);
    let lab = Lab::behind(&[bad, &good]);
    lab.upstreams.fetch(&published.path).unwrap();
    assert!(lab.stored(&published.path).unwrap() == published.nar);
    assert!(since.elapsed() < 3 * BOUNDED);
}

fn honest() -> Published {
    Published::new('1', &noise(1, 500_000), &[], Compression::Zstd)
}

#[test]
fn a_nar_that_is_not_what_was_signed() {
    let (bad, published) = (cache(10), honest());
    let other = Published::new('1', &noise(2, 500_000), &[], Compression::Zstd);
    // File hash and size are those of the wrong file, and nobody signs them.
    let mut lie = honest();
    lie.narinfo.file_hash = other.narinfo.file_hash;
    lie.narinfo.file_size = other.narinfo.file_size;
    lie.on_with(&bad, Reply::Body(other.file));
    is_harmless(&bad, &published);
}

#[test]
fn a_signed_size_that_is_wrong() {
    for (less, more) in [(1, 0), (0, 8), (400_000, 0)] {
        let bad = cache(10);
        let mut lie = honest();
        lie.narinfo.info.nar_size = lie.narinfo.info.nar_size - less + more;
        lie.signed().on(&bad);
        let lab = Lab::behind(&[&bad]);
        let path = honest().path;
        lab.upstreams.fetch(&path).unwrap_err();
        assert!(lab.streamed(&path).is_none_or(|streamed| streamed.is_err()));
        assert!(lab.stored(&path).is_none());
    }
}

#[test]
fn a_file_that_is_not_the_one_of_the_narinfo() {
    for wrong_hash in [true, false] {
        let (bad, published) = (cache(10), honest());
        let mut lie = honest();
        match wrong_hash {
            true => lie.narinfo.file_hash = Some(Hash::sha256(sha256(b"other"))),
            false => lie.narinfo.file_size = Some(published.file.len() as u64 + 1),
        }
        lie.on(&bad);
        is_harmless(&bad, &published);
    }
}

#[test]
fn pages_for_people_with_status_200() {
    let (bad, published) = (cache(10), honest());
    let page = b"<html><body>Welcome! Please log in.</body></html>\n".to_vec();
    bad.put(&published.narinfo_url(), Reply::Body(page.clone()));
    is_harmless(&bad, &published);
    let bad = cache(10);
    published.on_with(&bad, Reply::Body(page.clone()));
    is_harmless(&bad, &published);
    let bad = Server::start();
    bad.put("/nix-cache-info", Reply::Body(page));
    published.on(&bad);
    is_harmless(&bad, &published);
}

#[test]
fn a_cache_for_another_store() {
    let (bad, published) = (Server::start(), honest());
    bad.put("/nix-cache-info", Reply::Body(b"StoreDir: /gnu/store\n".to_vec()));
    published.on(&bad);
    is_harmless(&bad, &published);
}

#[test]
fn a_path_that_nobody_trusted_signed() {
    let (bad, published) = (cache(10), honest());
    let mut unsigned = honest();
    unsigned.narinfo.info.signatures.clear();
    unsigned.on(&bad);
    assert!(Lab::behind(&[&bad]).upstreams.offer(published.path.hash_part()).is_none());
    is_harmless(&bad, &published);
}

#[test]
fn another_path_than_was_asked_for() {
    let (bad, published) = (cache(10), honest());
    let other = Published::new('2', b"other", &[], Compression::None);
    bad.put(&published.narinfo_url(), Reply::Body(other.narinfo_text()));
    is_harmless(&bad, &published);
}

#[test]
fn a_connection_that_breaks_is_taken_up_again() {
    let (server, published) = (cache(10), honest());
    published.on_with(&server, Reply::Cut(published.file.clone(), 200_000));
    let lab = Lab::behind(&[&server]);
    assert!(lab.streamed(&published.path).unwrap().unwrap() == published.nar);
    lab.upstreams.fetch(&published.path).unwrap();
    assert_eq!(server.count(&published.nar_url()), 2);
}

#[test]
fn a_cache_that_dies_half_way() {
    let (bad, published) = (cache(10), honest());
    published.on_with(&bad, Reply::CutForGood(published.file.clone(), 200_000));
    is_harmless(&bad, &published);
    // Who reads meanwhile does not notice.
    let good = cache(90);
    published.on(&good);
    let lab = Lab::behind(&[&bad, &good]);
    assert!(lab.streamed(&published.path).unwrap().unwrap() == published.nar);
    assert_eq!(good.count(&published.nar_url()), 1);
}

/// What a reader has got cannot be taken back, so it gets an error and not a mixture.
#[test]
fn a_cache_that_lies_and_dies() {
    let (bad, good, published) = (cache(10), cache(90), honest());
    let other = Published::new('1', &noise(2, 500_000), &[], Compression::None);
    let mut lie = Published::new('1', &noise(1, 500_000), &[], Compression::None);
    lie.narinfo.file_hash = None;
    lie.on_with(&bad, Reply::CutForGood(other.file, 200_000));
    published.on(&good);
    let lab = Lab::one_by_one(&[&bad, &good]);
    let (before, why) = lab.streamed(&published.path).unwrap().unwrap_err();
    assert!(before.len() < published.nar.len());
    assert!(why.contains("different bytes"), "{why}");
    lab.upstreams.fetch(&published.path).unwrap();
    assert!(lab.stored(&published.path).unwrap() == published.nar);
}

/// Nor is a reader given a wrong whole that is slower than the cache that helps out.
#[test]
fn a_cache_that_lies_to_a_slow_reader() {
    let (bad, good, published) = (cache(10), cache(90), honest());
    let other = Published::new('1', &noise(2, 500_000), &[], Compression::None);
    let mut lie = Published::new('1', &noise(1, 500_000), &[], Compression::None);
    lie.narinfo.file_hash = None;
    lie.on_with(&bad, Reply::Body(other.file));
    published.on(&good);
    let lab = Lab::one_by_one(&[&bad, &good]);
    let mut reader = lab.upstreams.nar(&published.path).unwrap().unwrap();
    lab.upstreams.fetch(&published.path).unwrap();
    assert_eq!((bad.count(&published.nar_url()), good.count(&published.nar_url())), (1, 1));
    let mut got = Vec::new();
    let why = reader.read_to_end(&mut got).unwrap_err().to_string();
    assert!(got.len() < published.nar.len());
    assert!(why.contains("different bytes"), "{why}");
    assert!(lab.stored(&published.path).unwrap() == published.nar);
}

fn stalls_at(place: impl Fn(&Published) -> String) {
    let (bad, published) = (cache(10), honest());
    published.on(&bad);
    bad.put(&place(&published), Reply::Stall);
    is_harmless(&bad, &published);
}

#[test]
fn a_cache_that_says_nothing_of_itself() {
    stalls_at(|_| "/nix-cache-info".into());
}

#[test]
fn a_cache_that_says_nothing_of_a_path() {
    stalls_at(Published::narinfo_url);
}

#[test]
fn a_cache_that_sends_nothing() {
    stalls_at(Published::nar_url);
}

#[test]
fn a_cache_that_stops_sending() {
    let (bad, published) = (cache(10), honest());
    published.on_with(&bad, Reply::Gated(published.file.clone(), 100_000));
    is_harmless(&bad, &published);
}

/// A narinfo is answered within its budget, and by another cache long before.
#[test]
fn silence_costs_little() {
    let (bad, good, published) = (cache(10), cache(90), honest());
    published.on(&good);
    bad.put(&published.narinfo_url(), Reply::Stall);
    let lab = Lab::behind(&[&bad, &good]);
    let since = Instant::now();
    assert!(lab.upstreams.offer(published.path.hash_part()).is_some());
    assert!(since.elapsed() < CLIENT_BUDGET);
    // Nothing else ends it in time.
    let minute = Duration::from_secs(60);
    let patience = Patience { ask: minute, first_byte: minute, stall: minute, ..PATIENCE };
    let lab = Lab::with(&[bad.url()], Authorities::default(), patience, HEDGE);
    let since = Instant::now();
    assert!(lab.upstreams.offer(published.path.hash_part()).is_none());
    // It may take a while to begin, on a busy machine.
    assert!(since.elapsed() < CLIENT_BUDGET + Duration::from_secs(10));
    bad.open_gate();
}

/// Who reads a path may have what it refers to, and waits for nothing of it.
#[test]
fn a_reader_does_not_wait_for_references() {
    let (server, below) = (cache(10), Published::new('1', b"below", &[], Compression::None));
    let top = Published::new('2', &noise(2, 100_000), &[&below.path], Compression::Zstd);
    top.on(&server);
    server.put(&below.narinfo_url(), Reply::Stall);
    let lab = Lab::behind(&[&server]);
    let since = Instant::now();
    assert!(lab.streamed(&top.path).unwrap().unwrap() == top.nar);
    assert!(since.elapsed() < CLIENT_BUDGET);
    assert!(lab.stored(&top.path).is_none());
}

/// A kept connection that the server has closed meanwhile is no failure.
#[test]
fn connections_that_are_not_kept() {
    let server = cache(10);
    let paths: Vec<Published> =
        "123456789".chars().map(|digit| Published::new(digit, &[digit as u8], &[], Compression::None)).collect();
    for published in &paths {
        published.on(&server);
        server.put(&published.narinfo_url(), Reply::HangUp(published.narinfo_text()));
    }
    let lab = Lab::behind(&[&server]);
    paths.iter().for_each(|published| lab.upstreams.fetch(&published.path).unwrap());
    assert_eq!(lab.upstreams.status()[0].failed, 0);
    // Nor is one that it closes in that moment; a server that always does so fails.
    let (bad, published) = (cache(10), honest());
    published.on(&bad);
    bad.put(&published.narinfo_url(), Reply::Nothing);
    let lab = Lab::behind(&[&bad]);
    assert!(lab.upstreams.offer(published.path.hash_part()).is_none());
    assert_eq!((bad.count(&published.narinfo_url()), lab.upstreams.status()[0].failed), (2, 1));
}

#[test]
fn redirects_are_followed_but_not_for_ever() {
    let (server, published) = (cache(10), honest());
    let elsewhere = Server::start();
    elsewhere.put("/blob", Reply::Body(published.file.clone()));
    published.on_with(&server, Reply::Redirect(format!("{}/blob", elsewhere.url())));
    let lab = Lab::behind(&[&server]);
    lab.upstreams.fetch(&published.path).unwrap();
    let bad = cache(10);
    published.on_with(&bad, Reply::Redirect(published.nar_url()));
    is_harmless(&bad, &published);
    assert!(bad.count(&published.nar_url()) <= 40, "{}", bad.count(&published.nar_url()));
    let bad = cache(10);
    published.on_with(&bad, Reply::Redirect("file:///etc/passwd".into()));
    is_harmless(&bad, &published);
}

#[test]
fn bodies_without_end() {
    let published = honest();
    let bad = cache(10);
    bad.put(&published.narinfo_url(), Reply::Endless(b"Sig: x\n".repeat(1000)));
    is_harmless(&bad, &published);
    for sizes_known in [true, false] {
        let bad = cache(10);
        let mut lie = Published::new('1', &noise(1, 500_000), &[], Compression::None);
        if !sizes_known {
            (lie.narinfo.file_size, lie.narinfo.file_hash) = (None, None);
        }
        lie.on_with(&bad, Reply::Endless(noise(3, 65_536)));
        is_harmless(&bad, &published);
    }
}

#[test]
fn a_file_that_explodes() {
    let (published, mut bomb) = (honest(), honest());
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..2_000).for_each(|_| encoder.write_all(&zeros).unwrap());
    bomb.file = encoder.finish().unwrap();
    assert!(bomb.file.len() < 1 << 20);
    bomb.narinfo.file_size = Some(bomb.file.len() as u64);
    bomb.narinfo.file_hash = Some(Hash::sha256(sha256(&bomb.file)));
    let bad = cache(10);
    bomb.on(&bad);
    is_harmless(&bad, &published);
    // A document as well.
    let bad = cache(10);
    bad.put(&published.narinfo_url(), Reply::With(bomb.file.clone(), vec![("Content-Encoding", "zstd".into())]));
    is_harmless(&bad, &published);
}

#[test]
fn errors_of_servers_and_servers_that_are_not_there() {
    let published = honest();
    for status in [400, 401, 429, 500, 503] {
        let bad = cache(10);
        bad.put(&published.narinfo_url(), Reply::Status(status));
        is_harmless(&bad, &published);
    }
    let gone = cache(10);
    let url = gone.url();
    drop(gone);
    let good = cache(90);
    published.on(&good);
    let lab = Lab::new(&[url, good.url()]);
    lab.upstreams.fetch(&published.path).unwrap();
}

/// The body of a refusal is of no interest, so nobody waits for it.
#[test]
fn refusals_that_drip() {
    let len = (2 * BOUNDED.as_millis() / DRIP_TIME.as_millis()) as usize;
    for status in [404, 500] {
        let (bad, published) = (cache(10), honest());
        published.on_with(&bad, Reply::Dripping(status, len));
        is_harmless(&bad, &published);
    }
}

#[test]
fn more_signatures_than_anybody_needs() {
    let (bad, published) = (cache(10), honest());
    let mut loud = honest();
    for n in 0..128 {
        let key = SecretKey::from_seed(&format!("loud-{n}"), [8; 32]).unwrap();
        loud.narinfo.info.sign(&StoreDir::default(), &key).unwrap();
    }
    assert_eq!(loud.narinfo.info.signatures.len(), 129);
    loud.on(&bad);
    assert!(Lab::behind(&[&bad]).upstreams.offer(published.path.hash_part()).is_none());
    is_harmless(&bad, &published);
    loud.narinfo.info.signatures.pop_last();
    loud.narinfo.info.sign(&StoreDir::default(), &key()).unwrap();
    loud.on(&bad);
    let offer = Lab::behind(&[&bad]).upstreams.offer(published.path.hash_part());
    assert_eq!(offer.map(|offer| offer.info.signatures.len()), Some(128));
}

/// A server is believed to be who it is only if the bundle of certificates vouches for it.
#[test]
fn tls_that_nobody_vouches_for() {
    let (server, other, published) = (as_cache(Server::start_tls(), 10), Server::start_tls(), honest());
    published.on(&server);
    let lab = |vouched: &Server| {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("bundle");
        std::fs::write(&bundle, vouched.certificate.as_deref().unwrap()).unwrap();
        Lab::with_authorities(&[server.url()], Authorities::read(&bundle).unwrap())
    };
    let lab_of_other = lab(&other);
    lab_of_other.upstreams.fetch(&published.path).unwrap_err();
    assert_eq!((server.requests(), lab_of_other.upstreams.status()[0].failed), (0, 1));
    let lab = lab(&server);
    lab.upstreams.fetch(&published.path).unwrap();
    assert!(lab.stored(&published.path).unwrap() == published.nar);
}

/// A server that speaks no TLS where it should.
#[test]
fn tls_that_fails() {
    let (plain, good, published) = (cache(10), cache(90), honest());
    published.on(&plain);
    published.on(&good);
    let lab = Lab::new(&[plain.url().replace("http://", "https://"), good.url()]);
    lab.upstreams.fetch(&published.path).unwrap();
    assert_eq!(good.count(&published.nar_url()), 1);
}

#[test]
fn a_cache_that_is_down_is_left_alone() {
    let bad = cache(10);
    let paths: Vec<String> = "123456789".chars().map(|digit| digit.to_string().repeat(32)).collect();
    paths.iter().for_each(|hash_part| bad.put(&format!("/{hash_part}.narinfo"), Reply::Status(500)));
    let lab = Lab::behind(&[&bad]);
    paths.iter().for_each(|hash_part| assert!(lab.upstreams.offer(hash_part).is_none()));
    let asked: usize = paths.iter().map(|hash_part| bad.count(&format!("/{hash_part}.narinfo"))).sum();
    assert_eq!(asked, 3);
    let status = &lab.upstreams.status()[0];
    assert_eq!((status.state, status.failed), ("down", 3));
}
