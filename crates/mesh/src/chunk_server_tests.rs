use super::*;
use crate::chunk_lab::{Book, Host, add, fetcher, nar, noise, path, store};
use crate::dial::Dial;
use crate::fetcher::Realised;
use iroh::endpoint::ConnectionError;
use shoal_store::Store;
use shoal_wire::mesh::chunks::{PART_LEN, RealisationKey, Urgency};
use shoal_wire::mesh::format::encode;
use shoal_wire::mesh::path_record::path_key;
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation, UnkeyedRealisation};
use shoal_wire::nix::signature::SecretKey;
use shoal_wire::nix::store_path::StorePath;
use std::collections::BTreeSet;

const PATIENCE: Duration = Duration::from_secs(20);

/// A path of 12 MiB of noise; the chunks of it that fit into one request.
fn stocked(store: &Store) -> Vec<[u8; 32]> {
    let path = add(store, "stocked", &nar([("a", noise(1, 12 << 20))]));
    let chunks = store.manifest(&path).unwrap().unwrap().chunks;
    chunks.iter().map(|chunk| chunk.hash).take(shoal_wire::mesh::chunks::CHUNKS_MAX).collect()
}

async fn connect(host: &Host) -> (Connection, Arc<Book>) {
    let book = Book::new(&[host]).await;
    (book.chunks(host.key).await.unwrap(), book)
}

async fn ask(connection: &Connection, bytes: &[u8]) -> RecvStream {
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    receive
}

fn chunks(hashes: &[[u8; 32]]) -> Vec<u8> {
    encode(&Ask::Chunks { urgency: Urgency::Client, hashes: hashes.to_vec() })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_what_it_asked_for_is_cut_off() {
    let there = store();
    let hashes = stocked(&there.store);
    let key = Arc::new(SecretKey::from_seed("test", [9; 32]).unwrap());
    let patience = Duration::from_millis(600);
    let server = ChunkServer::with_patience(there.store.clone(), key, ServerLimits::default(), patience);
    let host = Host::new(Arc::new(server.clone())).await;
    let (connection, _book) = connect(&host).await;
    let _unread = ask(&connection, &chunks(&hashes)).await;
    let closed = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert!(
        matches!(&closed, ConnectionError::ApplicationClosed(close) if close.error_code == Close::NotRead.code()),
        "{closed}"
    );
    assert_eq!(server.served().cut, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_too_much_at_once_is_told_that_it_is_too_much() {
    let there = store();
    let hashes = stocked(&there.store);
    let (host, server) = Host::honest(&there.store, ServerLimits::default()).await;
    let (connection, _book) = connect(&host).await;
    // None of these is read, so that all that is answered stays open.
    let mut open = Vec::new();
    for _ in 0..REQUESTS_MAX {
        let mut stream = ask(&connection, &chunks(&hashes)).await;
        let mut head = [0; PART_LEN];
        timeout(PATIENCE, stream.read_exact(&mut head)).await.unwrap().unwrap();
        open.push((stream, head));
    }
    assert!(open.iter().all(|(_, head)| *head != Part::Busy.encode()));
    let mut more = ask(&connection, &chunks(&hashes[..3])).await;
    let told = timeout(PATIENCE, more.read_to_end(1000)).await.unwrap().unwrap();
    assert_eq!(told, Part::Busy.encode().repeat(3));
    assert_eq!(server.served().busy, 1);
    // Room is there again when one is read.
    let (mut stream, _) = open.pop().unwrap();
    timeout(PATIENCE, stream.read_to_end(20 << 20)).await.unwrap().unwrap();
    let mut more = ask(&connection, &chunks(&hashes[..1])).await;
    assert!(timeout(PATIENCE, more.read_to_end(1 << 20)).await.unwrap().unwrap().len() > PART_LEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_served_soon_is_told_so() {
    let there = store();
    let hashes = stocked(&there.store);
    let limits = ServerLimits { upload_bytes_per_s: Some(50_000) };
    let (host, server) = Host::honest(&there.store, limits).await;
    let (connection, _book) = connect(&host).await;
    let mut stream = ask(&connection, &chunks(&hashes)).await;
    let told = timeout(PATIENCE, stream.read_to_end(20 << 20)).await.unwrap().unwrap();
    assert!(told.len() < 1 << 20, "{} bytes at 50 kB/s", told.len());
    assert!(told.ends_with(&Part::Busy.encode().repeat(hashes.len() / 2)));
    assert_eq!(server.served().busy, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_and_others_are_answered() {
    let there = store();
    let hashes = stocked(&there.store);
    let (host, _server) = Host::honest(&there.store, ServerLimits::default()).await;
    let (connection, _book) = connect(&host).await;
    let too_long = vec![1; Ask::LEN_MAX + 1];
    for bad in [&b""[..], b"GET / HTTP/1.1", &too_long] {
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        // It may be refused before all of it is sent.
        let _ = send.write_all(bad).await;
        let _ = send.finish();
        assert!(timeout(PATIENCE, receive.read_to_end(1000)).await.unwrap().is_err());
    }
    let mut stream = ask(&connection, &chunks(&hashes[..1])).await;
    assert!(timeout(PATIENCE, stream.read_to_end(1 << 20)).await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_records_come_in_their_order() {
    let there = store();
    let contents = nar([("a", b"small".to_vec())]);
    let paths: Vec<StorePath> = (0..40).map(|n| add(&there.store, &format!("path-{n}"), &contents)).collect();
    let mut keys: Vec<[u8; 32]> = paths.iter().map(|path| path_key(path.hash_part()).unwrap()).collect();
    // Of nobody's, and no keys at all: they are longer than any hash part.
    keys.extend((0..600u64).map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()));
    let (host, _server) = Host::honest(&there.store, ServerLimits::default()).await;
    let (fetcher, _here, _) = fetcher(&[&host]).await;
    let records = fetcher.records(&keys, host.key).await.unwrap();
    let found: Vec<Option<&StorePath>> =
        records.iter().map(|record| record.as_ref().map(|record| &record.path)).collect();
    assert_eq!(found[..40], paths.iter().map(Some).collect::<Vec<_>>());
    assert!(found.len() == 640 && found[40..].iter().all(Option::is_none));
}

#[tokio::test(flavor = "multi_thread")]
async fn realisations_and_logs_are_told_of() {
    let there = store();
    let out_path = add(&there.store, "out", &nar([("a", b"x".to_vec())]));
    let drv = path("made.drv");
    let id = DrvOutput { drv_hash: [3; 32], output: "out".into() };
    let old = Realisation::new(id.clone(), out_path.clone());
    there.store.add_realisation(&old).unwrap();
    let key = BuildTraceKey { drv_path: drv.clone(), output: "out".into() };
    let value = UnkeyedRealisation { out_path, signatures: BTreeSet::new() };
    let new = BuildTrace { key: key.clone(), value };
    there.store.add_build_trace(&new).unwrap();
    let text = b"building\n".repeat(200_000);
    there.store.put_log(&drv, &text[..]).unwrap();
    let (host, _server) = Host::honest(&there.store, ServerLimits::default()).await;
    let (fetcher, _here, _) = fetcher(&[&host]).await;
    let other = DrvOutput { drv_hash: [4; 32], output: "out".into() };
    let keys = [RealisationKey::Output(id), RealisationKey::Trace(key), RealisationKey::Output(other)];
    let found = fetcher.realisations(&keys, host.key).await.unwrap();
    assert_eq!(found, [Some(Realised::Output(old)), Some(Realised::Trace(new)), None]);
    let log = fetcher.log(&drv, host.key).await.unwrap().unwrap();
    assert_eq!(zstd::decode_all(&log[..]).unwrap(), text);
    assert_eq!(fetcher.log(&path("other.drv"), host.key).await.unwrap(), None);
}
