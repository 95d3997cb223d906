use super::*;
use crate::chunk_lab::{Book, Host, add, fetcher, nar, noise, path, store};
use crate::dial::{Dial, DialError};
use crate::fetcher::Realised;
use crate::fixture::{Node, within};
use crate::log_lab::Log;
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
    let patience = Patience { unread_max: Duration::from_millis(600), ..Patience::default() };
    let server = ChunkServer::with_patience(there.store.clone(), key, ServerLimits::default(), patience);
    let host = Host::new(Arc::new(server.clone())).await;
    let (connection, book) = connect(&host).await;
    let log = Log::begin();
    let _unread = ask(&connection, &chunks(&hashes)).await;
    let closed = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert!(
        matches!(&closed, ConnectionError::ApplicationClosed(close) if close.error_code == Close::NotRead.code()),
        "{closed}"
    );
    assert_eq!(server.served().cut, 1);
    log.tells(&book.key(), "does not read what it asked for").await;
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

/// A node whose server is this one lets in two others: the first does something, and is cut off for it with `offence`,
/// while the second is answered.
async fn offends(server: ChunkServer, hashes: &[[u8; 32]], offence: &str, how: impl AsyncFn(&Connection)) {
    let member = Node::serving(1, Arc::new(server)).await;
    let (bad, good) = (Node::new(2).await, Node::new(3).await);
    bad.knows(&member);
    good.knows(&member);
    let log = Log::begin();
    let connection = within(bad.links.chunks(member.key())).await.unwrap();
    let of_good = within(good.links.chunks(member.key())).await.unwrap();
    let (closed, answered) = tokio::join!(
        async {
            how(&connection).await;
            within(connection.closed()).await
        },
        async {
            let began = Instant::now();
            let mut stream = ask(&of_good, &chunks(&hashes[..1])).await;
            (timeout(PATIENCE, stream.read_to_end(1 << 20)).await.unwrap().unwrap().len(), began.elapsed())
        }
    );
    let ConnectionError::ApplicationClosed(close) = &closed else { panic!("{closed}") };
    assert_eq!(close.error_code, Close::Malformed.code());
    assert_eq!(String::from_utf8_lossy(&close.reason), offence);
    assert!(answered.0 > PART_LEN && answered.1 < Duration::from_secs(5), "{answered:?}");
    log.tells(&bad.key(), offence).await;
    assert_eq!(log.count(&bad.key(), "a peer is cut off"), 1);
    assert_eq!(member.links.counts().cut_off, 1);
    // It rests, and is let in again then.
    let resting = format!("it was cut off a moment ago: {offence}");
    assert_eq!(within(bad.links.chunks(member.key())).await.unwrap_err(), DialError::Refused(resting));
    assert!(of_good.close_reason().is_none());
}

fn server_of(there: &Store, patience: Patience) -> ChunkServer {
    let key = Arc::new(SecretKey::from_seed("test", [1; 32]).unwrap());
    ChunkServer::with_patience(there.clone(), key, ServerLimits::default(), patience)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_what_is_no_request_is_cut_off_and_others_are_answered() {
    let there = store();
    let hashes = stocked(&there.store);
    let too_long = vec![1; Ask::LEN_MAX + 1];
    let long = format!("sent a request of more than {} bytes", Ask::LEN_MAX);
    let garbage = b"GET / HTTP/1.1";
    let error = decode::<Ask>(garbage).unwrap_err();
    for (bytes, offence) in [(&garbage[..], format!("sent a bad request: {error}")), (&too_long[..], long)] {
        let server = server_of(&there.store, Patience::default());
        offends(server, &hashes, &offence, async |connection| {
            let (mut send, _receive) = connection.open_bi().await.unwrap();
            // It may be refused before all of it is sent.
            let _ = send.write_all(bytes).await;
            let _ = send.finish();
            connection.closed().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_floods_with_requests_is_cut_off_and_others_are_answered() {
    let there = store();
    let hashes = stocked(&there.store);
    let patience = Patience { requests_a_s: 1, requests_burst: 100, ..Patience::default() };
    let server = server_of(&there.store, patience);
    offends(server, &hashes, "asked more often than it may", async |connection| {
        while let Ok((mut send, _receive)) = connection.open_bi().await {
            let _ = send.write_all(&encode(&Ask::Records(vec![[7; 32]]))).await;
        }
    })
    .await;
}

/// A question that is given up midway, as when whoever waits for the answer goes.
#[tokio::test(flavor = "multi_thread")]
async fn who_gives_a_question_up_is_not_cut_off() {
    let there = store();
    let hashes = stocked(&there.store);
    let (host, _server) = Host::honest(&there.store, ServerLimits::default()).await;
    let (connection, _book) = connect(&host).await;
    let asked = chunks(&hashes);
    for len in [0, 1, asked.len() / 2] {
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(&asked[..len]).await.unwrap();
        match len {
            0 => send.finish().unwrap(),
            _ => send.reset(VarInt::from_u32(2)).unwrap(),
        }
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
