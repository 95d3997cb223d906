use super::*;
use crate::chunk_lab::*;
use crate::chunk_server::ServerLimits;
use crate::log_lab::Log;
use shoal_wire::mesh::chunks::{Ask, Part};
use shoal_wire::mesh::path_record::path_key;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// A NAR of four files that do not compress, of about `len` bytes.
fn sample(seed: u64, len: usize) -> Vec<u8> {
    let file = |n: u64| noise(seed * 10 + n, len / 4);
    nar([("a", file(0)), ("b", file(1)), ("c", file(2)), ("d", file(3))])
}

fn commit(store: &Store, path: &StorePath, fetched: Fetched) {
    let Fetched { ingested, .. } = fetched;
    store.commit(vec![(PathInfo::new(path.clone(), ingested.nar_hash, ingested.nar_size), ingested)]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_comes_over_with_its_record_and_can_be_committed() {
    let there = store();
    let contents = sample(1, 3 * MIB);
    let path = add(&there.store, "whole", &contents);
    let (host, server) = Host::honest(&there.store, ServerLimits::default()).await;
    let (fetcher, here, _) = fetcher(&[&host]).await;
    let keys = [path_key(path.hash_part()).unwrap(), [0; 32]];
    let records = fetcher.records(&keys, host.key).await.unwrap();
    assert!(records[1].is_none());
    let sealed = records[0].as_ref().unwrap();
    assert_eq!((sealed.author, &sealed.path), (host.key, &path));
    let fetched = fetcher.fetch(want(sealed, &[&host])).await.unwrap();
    assert!(!here.store.is_valid(&path).unwrap(), "valid before it was committed");
    assert!(fetched.dropped.is_empty());
    commit(&here.store, &path, fetched);
    assert_eq!(export(&here.store, &path).unwrap(), contents);
    assert_eq!(server.served().busy, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_come_from_whoever_has_them() {
    let there = store();
    let contents = sample(2, 6 * MIB);
    let path = add(&there.store, "parts", &contents);
    let record = record(&there.store, &path);
    let chunks = there.store.manifest(&path).unwrap().unwrap().chunks;
    let mut hosts = Vec::new();
    for part in 0..3 {
        let mine: Vec<[u8; 32]> = chunks.iter().skip(part).step_by(3).map(|chunk| chunk.hash).collect();
        let store = there.store.clone();
        hosts.push(
            Host::fake(move |ask| {
                let mut parts = honest(&store, &ask);
                if let Ask::Chunks { hashes, .. } = &ask {
                    for (part, _) in parts.iter_mut().zip(hashes).filter(|(_, hash)| !mine.contains(hash)) {
                        *part = Part::Absent.encode().to_vec();
                    }
                }
                (parts.concat(), Then::Finish)
            })
            .await,
        );
    }
    let all: Vec<&Host> = hosts.iter().collect();
    let (fetcher, here, _) = fetcher(&all).await;
    let fetched = fetcher.fetch(want(&record, &all)).await.unwrap();
    assert!(fetched.dropped.is_empty(), "{:?}", fetched.dropped);
    commit(&here.store, &path, fetched);
    assert_eq!(export(&here.store, &path).unwrap(), contents);
}

/// Fetches from a host that answers so, alone and beside an honest one. Alone it must fail and leave nothing valid.
async fn with_bad_host(
    name: &str,
    bad: impl Fn(&Store, Ask) -> (Vec<u8>, Then) + Clone + Send + Sync + 'static,
    expected: Option<Fault>,
) {
    let there = store();
    let contents = sample(3, 4 * MIB);
    let path = add(&there.store, name, &contents);
    let record = record(&there.store, &path);
    let (honest, _server) = Host::honest(&there.store, ServerLimits::default()).await;
    let store = there.store.clone();
    let bad = Host::fake(move |ask| bad(&store, ask)).await;
    let (fetcher, here, _) = fetcher(&[&bad, &honest]).await;
    let log = Log::begin();
    let alone = fetcher.fetch(want(&record, &[&bad])).await;
    let error = alone.err().unwrap_or_else(|| panic!("{name}: it came from a bad host alone"));
    let faults = |dropped: &[Dropped]| dropped.iter().map(|dropped| (dropped.peer, dropped.fault)).collect::<Vec<_>>();
    assert_eq!(
        faults(&error.dropped),
        expected.map(|fault| (bad.key, fault)).into_iter().collect::<Vec<_>>(),
        "{name}"
    );
    assert!(here.store.paths().unwrap().is_empty());
    // Who lies is for the caller to cut off, and to name.
    let lines = usize::from(matches!(expected, Some(Fault::Silent | Fault::Broke)));
    assert_eq!(log.count(&bad.key, "a peer is asked for nothing more of a path"), lines, "{name}");
    let began = Instant::now();
    let fetched = fetcher.fetch(want(&record, &[&bad, &honest])).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "{name}: {:?}", began.elapsed());
    assert!(faults(&fetched.dropped).iter().all(|(peer, fault)| *peer == bad.key && Some(*fault) == expected));
    commit(&here.store, &path, fetched);
    assert_eq!(export(&here.store, &path).unwrap(), contents);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_wrong_bytes_is_dropped_and_named() {
    let flipped = |store: &Store, ask: Ask| {
        let mut parts = honest(store, &ask);
        if matches!(ask, Ask::Chunks { .. }) {
            parts.iter_mut().for_each(|part| *part.last_mut().unwrap() ^= 1);
        }
        (parts.concat(), Then::Finish)
    };
    with_bad_host("flipped", flipped, Some(Fault::Lied)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_another_manifest_is_dropped_and_named() {
    let other = |store: &Store, ask: Ask| {
        let mut parts = honest(store, &ask);
        if matches!(ask, Ask::Manifest(_)) {
            let at = parts[0].len() - 5;
            parts[0][at] ^= 1;
        }
        (parts.concat(), Then::Finish)
    };
    with_bad_host("manifest", other, Some(Fault::Lied)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_no_parts_at_all_is_dropped_and_named() {
    let garbage = |_: &Store, _: Ask| (noise(9, 100_000), Then::Finish);
    with_bad_host("garbage", garbage, Some(Fault::Lied)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_none_of_the_chunks_is_no_liar() {
    let absent = |store: &Store, ask: Ask| match ask {
        Ask::Chunks { hashes, .. } => (Part::Absent.encode().repeat(hashes.len()), Then::Finish),
        ask => (honest(store, &ask).concat(), Then::Finish),
    };
    with_bad_host("absent", absent, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_streams_early_is_dropped() {
    let cut = |store: &Store, ask: Ask| {
        let parts = honest(store, &ask).concat();
        let len = if matches!(ask, Ask::Chunks { .. }) { 20 } else { parts.len() };
        (parts[..len].to_vec(), Then::Finish)
    };
    with_bad_host("cut", cut, Some(Fault::Broke)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_falls_silent_in_the_middle_is_dropped() {
    let stalls = |store: &Store, ask: Ask| match &ask {
        Ask::Chunks { hashes, .. } => {
            let mut parts = honest(store, &ask);
            parts.truncate(hashes.len() / 2);
            (parts.concat(), Then::Hang)
        }
        _ => (honest(store, &ask).concat(), Then::Finish),
    };
    with_bad_host("stalls", stalls, Some(Fault::Silent)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_was_cut_goes_on_where_it_was() {
    let there = store();
    let contents = sample(4, 20 * MIB);
    let path = add(&there.store, "resumed", &contents);
    let record = record(&there.store, &path);
    // Two seconds are left when it is cut.
    let (cut, _) = Host::honest(&there.store, ServerLimits { upload_bytes_per_s: Some(4_000_000) }).await;
    let (other, server) = Host::honest(&there.store, ServerLimits::default()).await;
    let (fetcher, here, _) = fetcher(&[&cut, &other]).await;
    let fetching = fetcher.begin(want(&record, &[&cut]));
    while fetching.progress().moved_bytes < contents.len() as u64 * 6 / 10 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(cut);
    let error = fetching.wait().await.err().expect("it was cut");
    assert!(matches!(error.failure, FetchFailure::NoHolder), "{error:?}");
    assert!(here.store.paths().unwrap().is_empty());
    let fetched = fetcher.fetch(want(&record, &[&other])).await.unwrap();
    let moved = fetched.moved_bytes as f64 / contents.len() as f64;
    assert!(moved <= 0.42, "{moved} of it moved after the cut; {:?}", server.served());
    commit(&here.store, &path, fetched);
    assert_eq!(export(&here.store, &path).unwrap(), contents);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_path_has_here_does_not_move() {
    let there = store();
    let old: Vec<(String, Vec<u8>)> = (0..100).map(|n| (format!("{n:03}"), noise(500 + n, 200_000))).collect();
    let mut new = old.clone();
    new[50].1 = noise(999, 200_000);
    let nar_of =
        |files: &[(String, Vec<u8>)]| nar(files.iter().map(|(name, contents)| (name.as_str(), contents.clone())));
    add(&there.store, "old", &nar_of(&old));
    let path = add(&there.store, "new", &nar_of(&new));
    let (host, _server) = Host::honest(&there.store, ServerLimits::default()).await;
    let (fetcher, here, _) = fetcher(&[&host]).await;
    add(&here.store, "old", &nar_of(&old));
    let fetched = fetcher.fetch(want(&record(&there.store, &path), &[&host])).await.unwrap();
    let moved = fetched.moved_bytes as f64 / fetched.ingested.nar_size as f64;
    assert!(moved <= 0.03, "{moved} moved where 0.01 is new");
    commit(&here.store, &path, fetched);
    assert_eq!(export(&here.store, &path).unwrap(), nar_of(&new));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_wants_move_each_chunk_once() {
    let there = store();
    let shared = noise(70, 4 * MIB);
    let mut paths = Vec::new();
    for n in 0..4u64 {
        let contents = nar([("own", noise(71 + n, MIB)), ("shared", shared.clone())]);
        paths.push((add(&there.store, &format!("one-of-{n}"), &contents), contents));
    }
    let (host, server) = Host::honest(&there.store, ServerLimits { upload_bytes_per_s: Some(20_000_000) }).await;
    let (fetcher, here, _) = fetcher(&[&host]).await;
    let mut fetching = Vec::new();
    for (path, _) in &paths {
        for _ in 0..3 {
            fetching.push((path, fetcher.begin(want(&record(&there.store, path), &[&host]))));
        }
    }
    for (path, fetching) in &fetching {
        commit(&here.store, path, fetching.wait().await.unwrap());
    }
    let mut hashes = std::collections::HashSet::new();
    for (path, contents) in &paths {
        assert_eq!(&export(&here.store, path).unwrap(), contents);
        hashes.extend(there.store.manifest(path).unwrap().unwrap().chunks.iter().map(|chunk| chunk.hash));
    }
    assert_eq!(server.served().chunks, hashes.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_copy_yields_to_a_client_who_waits() {
    let there = store();
    let big = add(&there.store, "big", &sample(80, 40 * MIB));
    let small = add(&there.store, "small", &sample(81, 8 * MIB));
    let (host, _server) = Host::honest(&there.store, ServerLimits { upload_bytes_per_s: Some(4_000_000) }).await;
    let (fetcher, _here, _) = fetcher(&[&host]).await;
    let copy = fetcher.begin(Want { urgency: Urgency::Replication, ..want(&record(&there.store, &big), &[&host]) });
    while copy.progress().moved_bytes < MIB as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let fetching = fetcher.begin(want(&record(&there.store, &small), &[&host]));
    while fetching.progress().moved_bytes == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = copy.progress().moved_bytes;
    fetching.wait().await.unwrap();
    // What was asked for before it may be on its way: half a second of it. Half of all would be 8 MiB.
    let meanwhile = copy.progress().moved_bytes - before;
    println!("{meanwhile} bytes of the copy moved meanwhile");
    assert!(meanwhile < 2 * MIB as u64, "{meanwhile} bytes of the copy moved while a client waited");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_at_a_holder_is_absent_there_and_not_wrong() {
    let there = store();
    let contents = sample(90, 3 * MIB);
    let path = add(&there.store, "damaged", &contents);
    let record = record(&there.store, &path);
    let whole = store();
    add(&whole.store, "damaged", &contents);
    let segment = std::fs::read_dir(there.dir.path().join("segments")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let (damaged, _server) = Host::honest(&there.store, ServerLimits::default()).await;
    let (good, _good_server) = Host::honest(&whole.store, ServerLimits::default()).await;
    let (fetcher, here, _) = fetcher(&[&damaged, &good]).await;
    let error = fetcher.fetch(want(&record, &[&damaged])).await.err().expect("one chunk is damaged");
    assert!(matches!(error.failure, FetchFailure::Absent) && error.dropped.is_empty(), "{error:?}");
    assert!(!there.store.is_valid(&path).unwrap(), "the holder takes note of the damage");
    let fetched = fetcher.fetch(want(&record, &[&damaged, &good])).await.unwrap();
    commit(&here.store, &path, fetched);
    assert_eq!(export(&here.store, &path).unwrap(), contents);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nar_is_read_while_it_comes_in() {
    let there = store();
    let contents = sample(100, 8 * MIB);
    let path = add(&there.store, "read", &contents);
    let (host, _server) = Host::honest(&there.store, ServerLimits { upload_bytes_per_s: Some(8_000_000) }).await;
    let (fetcher, _here, _) = fetcher(&[&host]).await;
    let fetching = fetcher.begin(want(&record(&there.store, &path), &[&host]));
    let mut reader = fetching.reader();
    let reading = fetching.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut start = vec![0; MIB];
        reader.read_exact(&mut start).unwrap();
        let moved = reading.progress().moved_bytes;
        reader.read_to_end(&mut start).unwrap();
        (start, moved)
    });
    let (read, moved_at_start) = read.await.unwrap();
    assert!(moved_at_start < 6 * MIB as u64, "{moved_at_start} bytes had come before the first MiB was read");
    assert_eq!(read, contents);
    fetching.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_a_fetch_that_fails_gets_an_error_and_no_end() {
    let there = store();
    let path = add(&there.store, "fails", &sample(110, 2 * MIB));
    let last = there.store.manifest(&path).unwrap().unwrap().chunks.last().unwrap().hash;
    let store = there.store.clone();
    let host = Host::fake(move |ask| {
        let mut parts = honest(&store, &ask);
        if let Ask::Chunks { hashes, .. } = &ask {
            for (part, _) in parts.iter_mut().zip(hashes).filter(|(_, hash)| **hash == last) {
                *part = Part::Absent.encode().to_vec();
            }
        }
        (parts.concat(), Then::Finish)
    })
    .await;
    let (fetcher, _here, _) = fetcher(&[&host]).await;
    let mut reader = fetcher.begin(want(&record(&there.store, &path), &[&host])).reader();
    let read = tokio::task::spawn_blocking(move || reader.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(read.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nar_other_than_its_record_says_is_refused_where_that_is_checked() {
    let there = store();
    let path = add(&there.store, "checked", &sample(120, 2 * MIB));
    let (host, _server) = Host::honest(&there.store, ServerLimits::default()).await;
    let (fetcher, _here, _) = fetcher(&[&host]).await;
    let right = record(&there.store, &path);
    let mut wrong = right.clone();
    wrong.nar_hash = [1; 32];
    let checked = |record| Want { checks_nar: true, ..want(record, &[&host]) };
    let error = fetcher.fetch(checked(&wrong)).await.err().expect("another NAR");
    assert!(matches!(error.failure, FetchFailure::NarHash), "{error:?}");
    assert!(fetcher.fetch(checked(&right)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_is_named_later_brings_what_is_left() {
    let there = store();
    let contents = sample(130, 4 * MIB);
    let path = add(&there.store, "later", &contents);
    let record = record(&there.store, &path);
    let store = there.store.clone();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let hangs = Host::fake(move |ask| match &ask {
        Ask::Chunks { .. } => {
            count.fetch_add(1, Ordering::Relaxed);
            (Vec::new(), Then::Hang)
        }
        _ => (honest(&store, &ask).concat(), Then::Finish),
    })
    .await;
    let (host, _server) = Host::honest(&there.store, ServerLimits::default()).await;
    let (fetcher, here, book) = fetcher(&[&hangs]).await;
    let fetching = fetcher.begin(want(&record, &[&hangs]));
    while asked.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    book.add(&host);
    fetching.add_holders(&[host.key]);
    commit(&here.store, &path, fetching.wait().await.unwrap());
    assert_eq!(export(&here.store, &path).unwrap(), contents);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_nobody_waits_for_stops_and_leaves_its_chunks() {
    let there = store();
    let contents = sample(140, 8 * MIB);
    let path = add(&there.store, "stopped", &contents);
    let record = record(&there.store, &path);
    let (host, server) = Host::honest(&there.store, ServerLimits { upload_bytes_per_s: Some(8_000_000) }).await;
    let (fetcher, _here, _) = fetcher(&[&host]).await;
    let fetching = fetcher.begin(want(&record, &[&host]));
    while fetching.progress().moved_bytes < 4 * MIB as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(fetching);
    let fetched = fetcher.fetch(want(&record, &[&host])).await.unwrap();
    assert!(fetched.moved_bytes < 6 * MIB as u64, "{} moved again; {:?}", fetched.moved_bytes, server.served());
}
