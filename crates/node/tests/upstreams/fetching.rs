//! Caches that do what they should.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::{Duration, Instant};

use shoal_node::upstream::CLIENT_BUDGET;
use shoal_wire::nix::content_address::{CaMethod, ContentAddress};
use shoal_wire::nix::hash::Hash;
use shoal_wire::nix::make_path::CaReferences;
use shoal_wire::nix::narinfo::Compression;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use super::lab::{Lab, Published, cache, noise};
use super::server::Reply;

#[test]
fn a_closure_comes_in_whatever_it_is_compressed_with() {
    let server = cache(40);
    let forms = [Compression::None, Compression::Xz, Compression::Zstd, Compression::Bzip2, Compression::Gzip];
    let mut below: Vec<Published> = Vec::new();
    for (digit, compression) in "12345".chars().zip(forms) {
        let references: Vec<&StorePath> = below.iter().map(|published| &published.path).collect();
        let published = Published::new(digit, &noise(digit.into(), 300_000), &references, compression);
        published.on(&server);
        below.push(published);
    }
    let lab = Lab::behind(&[&server]);
    lab.upstreams.fetch(&below[4].path).unwrap();
    for published in &below {
        assert!(lab.stored(&published.path).unwrap() == published.nar);
        let info = lab.store.path_info(&published.path).unwrap().unwrap();
        assert_eq!(info.signatures, published.narinfo.info.signatures);
        assert_eq!(info.references, published.narinfo.info.references);
        assert_eq!(server.count(&published.nar_url()), 1);
    }
    let status = &lab.upstreams.status()[0];
    assert_eq!((status.found, status.fetched_paths, status.state, status.priority), (5, 5, "up", 40));
}

#[test]
fn a_content_encoding_is_taken_off() {
    let server = cache(40);
    let published = Published::new('1', &noise(1, 50_000), &[], Compression::Xz);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let encoded = |bytes: &[u8]| Reply::With(zstd(bytes), vec![("Content-Encoding", "zstd".into())]);
    server.put(&published.narinfo_url(), encoded(&published.narinfo_text()));
    server.put(&published.nar_url(), encoded(&published.file));
    let lab = Lab::behind(&[&server]);
    lab.upstreams.fetch(&published.path).unwrap();
    assert!(lab.stored(&published.path).unwrap() == published.nar);
}

#[test]
fn a_content_addressed_path_needs_no_signature() {
    let (server, dir) = (cache(40), StoreDir::default());
    let mut published = Published::new('1', &noise(1, 5_000), &[], Compression::Zstd);
    let info = &mut published.narinfo.info;
    info.signatures.clear();
    let ca = ContentAddress { method: CaMethod::Nar, hash: Hash::sha256(info.nar_hash) };
    let none = CaReferences { others: BTreeSet::new(), itself: false };
    info.path = dir.make_ca_path(&ca, &none, "self-proving").unwrap();
    info.ca = Some(ca);
    published.path = info.path.clone();
    published.on(&server);
    let lab = Lab::behind(&[&server]);
    lab.upstreams.fetch(&published.path).unwrap();
    assert!(lab.stored(&published.path).unwrap() == published.nar);
}

/// However many ask, in whatever way, a path is fetched once, and all get it.
#[test]
fn one_fetch_a_path_however_many_ask() {
    let server = cache(40);
    let published = Published::new('1', &noise(1, 2_000_000), &[], Compression::Zstd);
    published.on_with(&server, Reply::Gated(published.file.clone(), 1_000_000));
    let lab = Lab::behind(&[&server]);
    let offer = lab.upstreams.offer(published.path.hash_part()).unwrap();
    assert_eq!(offer.info, published.narinfo.info);
    std::thread::scope(|scope| {
        let mut first = lab.upstreams.nar(&published.path).unwrap().unwrap();
        let mut head = vec![0; 200_000];
        // The rest is not even sent yet.
        first.read_exact(&mut head).unwrap();
        assert!(head == published.nar[..200_000]);
        let readers: Vec<_> = (0..8).map(|_| scope.spawn(|| lab.streamed(&published.path).unwrap().unwrap())).collect();
        let fetchers: Vec<_> = (0..4).map(|_| scope.spawn(|| lab.upstreams.fetch(&published.path))).collect();
        server.open_gate();
        first.read_to_end(&mut head).unwrap();
        assert!(head == published.nar);
        readers.into_iter().for_each(|reader| assert!(reader.join().unwrap() == published.nar));
        fetchers.into_iter().for_each(|fetcher| fetcher.join().unwrap().unwrap());
    });
    assert_eq!((server.count(&published.narinfo_url()), server.count(&published.nar_url())), (1, 1));
    assert!(lab.stored(&published.path).unwrap() == published.nar);
}

/// A build wants it too, and others before it: who reads it gets its bytes as they come all the same.
#[test]
fn a_path_whose_turn_is_to_come_is_read_while_it_comes_in() {
    let (busy, other) = (cache(40), cache(50));
    let first: Vec<_> = "12345678"
        .chars()
        .map(|digit| Published::new(digit, &noise(digit.into(), 300_000), &[], Compression::None))
        .collect();
    first.iter().for_each(|published| published.on_with(&busy, Reply::Gated(published.file.clone(), 100_000)));
    let last = Published::new('9', &noise(9, 300_000), &[], Compression::None);
    last.on_with(&other, Reply::Gated(last.file.clone(), 200_000));
    let lab = Lab::behind(&[&busy, &other]);
    let begin = |paths: BTreeSet<StorePath>| {
        let closure = lab.upstreams.closure(&paths, CLIENT_BUDGET).unwrap();
        lab.upstreams.begin(&closure).unwrap()
    };
    let _first = begin(first.iter().map(|published| published.path.clone()).collect());
    let _last = begin(BTreeSet::from([last.path.clone()]));
    assert_eq!(lab.upstreams.counts(), (8, 1));
    let mut reader = lab.upstreams.nar(&last.path).unwrap().unwrap();
    let (read, was_read) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut nar = vec![0; 150_000];
            reader.read_exact(&mut nar).unwrap();
            // Who waits for it may have given up.
            let _ = read.send(nar.clone());
            reader.read_to_end(&mut nar).unwrap();
            let _ = read.send(nar);
        });
        busy.open_gate();
        let begun = was_read.recv_timeout(Duration::from_secs(60));
        other.open_gate();
        assert!(begun.expect("nothing is read before all is here") == last.nar[..150_000]);
        assert!(was_read.recv().unwrap() == last.nar);
    });
}

/// Who reads a path gets it even if the node cannot keep it, because something it refers to is nowhere.
#[test]
fn a_path_is_not_visible_before_what_it_refers_to() {
    let server = cache(40);
    let nowhere = Published::new('0', b"", &[], Compression::None);
    let middle = Published::new('1', b"middle", &[&nowhere.path], Compression::None);
    let top = Published::new('2', b"top", &[&middle.path], Compression::None);
    middle.on(&server);
    top.on(&server);
    let lab = Lab::behind(&[&server]);
    assert!(lab.upstreams.fetch(&top.path).unwrap_err().to_string().contains("no upstream has"));
    assert_eq!(server.count(&top.nar_url()), 0);
    assert!(lab.streamed(&top.path).unwrap().unwrap() == top.nar);
    assert_eq!(lab.store.paths().unwrap(), []);
}

#[test]
fn a_read_path_brings_what_it_refers_to() {
    let server = cache(40);
    let below = Published::new('1', &noise(1, 100_000), &[], Compression::Zstd);
    let top = Published::new('2', b"top", &[&below.path], Compression::Zstd);
    below.on(&server);
    top.on(&server);
    let lab = Lab::behind(&[&server]);
    assert!(lab.streamed(&top.path).unwrap().unwrap() == top.nar);
    // It goes on to the end without the reader.
    lab.upstreams.fetch(&top.path).unwrap();
    assert!(lab.stored(&below.path).is_some() && lab.stored(&top.path).is_some());
    assert_eq!((server.count(&below.nar_url()), server.count(&top.nar_url())), (1, 1));
}

/// What several wait for makes them ready at once; one that cannot become valid is not the others' fault.
#[test]
fn a_path_that_lacks_something_fails_alone() {
    let server = cache(40);
    let nowhere = Published::new('0', b"", &[], Compression::None);
    let below = Published::new('1', &noise(1, 100_000), &[], Compression::Zstd);
    let lacks = Published::new('2', b"lacks something", &[&nowhere.path, &below.path], Compression::None);
    let whole = Published::new('3', b"lacks nothing", &[&below.path], Compression::None);
    [&lacks, &whole].into_iter().for_each(|published| published.on(&server));
    below.on_with(&server, Reply::Gated(below.file.clone(), 50_000));
    let lab = Lab::behind(&[&server]);
    assert!(lab.streamed(&lacks.path).unwrap().unwrap() == lacks.nar);
    std::thread::scope(|scope| {
        let fetch = scope.spawn(|| lab.upstreams.fetch(&whole.path));
        // Both wait for the one below.
        let is_next = || [&below, &lacks, &whole].iter().all(|published| server.count(&published.nar_url()) == 1);
        while !is_next() || lab.upstreams.counts() != (1, 0) {
            assert!(!fetch.is_finished(), "nothing was waited for");
            std::thread::yield_now();
        }
        server.open_gate();
        fetch.join().unwrap().unwrap();
    });
    assert!(lab.stored(&whole.path).unwrap() == whole.nar);
    assert!(lab.stored(&lacks.path).is_none());
}

#[test]
fn the_better_priority_is_asked_and_no_is_remembered() {
    let (near, far) = (cache(30), cache(40));
    let published = Published::new('1', b"both have it", &[], Compression::None);
    let other = Published::new('2', b"far has it", &[], Compression::None);
    [&near, &far].into_iter().for_each(|server| published.on(server));
    other.on(&far);
    let lab = Lab::one_by_one(&[&far, &near]);
    // The first question also asks the caches for their priority.
    lab.upstreams.fetch(&other.path).unwrap();
    lab.upstreams.offers(&BTreeSet::from([other.path.clone()]), CLIENT_BUDGET);
    let nobody = "z".repeat(32);
    assert!(lab.upstreams.offer(&nobody).is_none());
    let asked = near.requests() + far.requests();
    assert!(lab.upstreams.offer(&nobody).is_none());
    assert_eq!(near.requests() + far.requests(), asked, "asked again");
    lab.upstreams.fetch(&published.path).unwrap();
    assert_eq!((near.count(&published.nar_url()), far.count(&published.nar_url())), (1, 0));
}

#[test]
fn many_questions_are_on_their_way_at_once() {
    let server = cache(40);
    let paths: Vec<Published> = ('0'..='9')
        .chain("abcdfghijklmnpqrsvwxyz".chars())
        .map(|digit| Published::new(digit, &[digit as u8], &[], Compression::None))
        .collect();
    paths.iter().for_each(|published| published.on(&server));
    let lab = Lab::behind(&[&server]);
    let wanted: BTreeSet<StorePath> = paths.iter().map(|published| published.path.clone()).collect();
    let since = Instant::now();
    assert_eq!(lab.upstreams.offers(&wanted, CLIENT_BUDGET).len(), paths.len());
    assert!(since.elapsed() < CLIENT_BUDGET);
}
