use std::io::Write;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use shoal_grid::random::Random;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::signature::{SecretKey, TrustedKeys};
use shoal_wire::nix::store_path::StoreDir;

use super::*;
use crate::upstream::origin::Origin;
use crate::upstream::source::Trouble;

/// More than two packs, since it does not compress.
const LONG: usize = 40 << 20;
const SEED: u64 = 4711;
/// Until what is to be written is, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bucket in memory, and a store of one node with it.
struct Lab {
    objects: Arc<InMemory>,
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new() -> Lab {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Lab { objects: Arc::new(InMemory::new()), dir: tempfile::tempdir().unwrap(), runtime }
    }

    fn node(&self, name: &str) -> (Store, Arc<Cold>) {
        let dir = self.dir.path().join(name);
        let store = Store::open(&dir.join("store"), shoal_store::Options::default()).unwrap();
        let location = Location::parse("s3://b/p").unwrap();
        let bucket = Bucket::on(self.objects.clone(), &location, "", self.runtime.handle().clone());
        (store, Cold::on(bucket, &dir, true).unwrap())
    }

    fn names(&self, dir: &str) -> Vec<Key> {
        let dir = Key::from(format!("p/{dir}"));
        let listed = self.objects.list_with_delimiter(Some(&dir));
        let mut names: Vec<Key> =
            self.runtime.block_on(listed).unwrap().objects.into_iter().map(|meta| meta.location).collect();
        names.sort();
        names
    }

    fn put(&self, name: &Key, bytes: Vec<u8>) {
        self.runtime.block_on(self.objects.put(name, PutPayload::from(bytes))).unwrap();
    }

    /// Changes a byte in the middle of an object.
    fn damage(&self, name: &Key) {
        self.runtime.block_on(async {
            let mut bytes = self.objects.get(name).await.unwrap().bytes().await.unwrap().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            self.objects.put(name, PutPayload::from(bytes)).await.unwrap();
        });
    }
}

fn nar(contents: &[u8]) -> Vec<u8> {
    let mut nar = NarWriter::new(Vec::new());
    nar.regular(b"", false, contents.len() as u64).unwrap();
    nar.contents(contents).unwrap();
    nar.finish().unwrap()
}

fn put(store: &Store, digit: u8, nar: &[u8]) -> PathInfo {
    let mut ingest = store.ingest();
    ingest.write_all(nar).unwrap();
    let ingested = ingest.finish().unwrap();
    let path = StorePath::from_base_name(&format!("{}-x", digit.to_string().repeat(32))).unwrap();
    let info = PathInfo::new(path, ingested.nar_hash, ingested.nar_size);
    store.commit(vec![(info.clone(), ingested)]).unwrap();
    info
}

fn random(seed: u64, len: usize) -> Vec<u8> {
    println!("seed {seed}");
    let mut random = Random::new(seed);
    (0..len.div_ceil(8)).flat_map(|_| random.word().to_le_bytes()).take(len).collect()
}

fn writer(store: &Store, cold: &Arc<Cold>, key: &SecretKey) -> Writer {
    let means = Means {
        cold: cold.clone(),
        store: store.clone(),
        dir: StoreDir::default(),
        neighbours: Default::default(),
        keys: vec![key.clone()],
        believes: Box::new(|_| Err("nobody is".into())),
        rate: None,
    };
    Writer::start(means).unwrap()
}

/// Until the bucket has so many paths of the node.
fn wait(cold: &Cold, paths: u64) {
    let since = Instant::now();
    while cold.status().kept_paths < paths {
        assert!(since.elapsed() < PATIENCE, "{:?}", cold.status());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn read(store: &Store, cold: &Arc<Cold>, path: &StorePath) -> Result<Vec<u8>, Trouble> {
    let origin = Origin::bucket(cold.clone(), store.clone());
    let narinfo = origin.narinfo(path.hash_part()).map_err(Trouble::Upstream)?;
    let file = crate::upstream::CacheFile {
        upstream: 0,
        url: narinfo.url,
        compression: narinfo.compression,
        file_hash: None,
        file_size: narinfo.file_size,
    };
    let mut nar = Vec::new();
    origin.read(path, &file, narinfo.info.nar_size, Arc::default(), |bytes| {
        nar.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(nar)
}

#[test]
fn a_path_of_several_packs_comes_back_whole_and_what_it_shares_is_written_once() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let _writer = writer(&store, &cold, &key);
    let contents = random(SEED, LONG);
    let long = nar(&contents);
    let first = put(&store, 1, &long);
    wait(&cold, 1);
    let packs = lab.names("packs").len();
    assert!(packs >= 3, "{packs} packs");
    // Another that ends otherwise.
    let other = nar(&contents[..LONG - 100]);
    let second = put(&store, 2, &other);
    wait(&cold, 2);
    let status = cold.status();
    assert_eq!(lab.names("packs").len(), packs + 1);
    assert!(status.shared_chunks > 100, "{status:?}");
    assert!(status.written_bytes < LONG as u64 + (4 << 20), "{status:?}");
    // A node that has nothing, and then one that has most of it.
    let (empty, there) = lab.node("second");
    let record = there.record(first.path.hash_part()).unwrap();
    let trusted: TrustedKeys = [key.public()].into_iter().fold(TrustedKeys::default(), |mut trusted, key| {
        trusted.insert(key);
        trusted
    });
    assert!(record.info().is_signed(&StoreDir::default(), &trusted));
    assert!(read(&empty, &there, &first.path).unwrap() == long);
    put(&empty, 1, &long);
    assert!(read(&empty, &there, &second.path).unwrap() == other);
}

#[test]
fn a_damaged_pack_gives_no_wrong_bytes_and_is_written_again_by_who_has_them() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let _writer = writer(&store, &cold, &key);
    let short = nar(&random(SEED + 1, 3 << 20));
    let info = put(&store, 1, &short);
    wait(&cold, 1);
    lab.damage(&lab.names("packs")[0]);
    let (empty, there) = lab.node("second");
    assert!(matches!(read(&empty, &there, &info.path), Err(Trouble::Upstream(Refusal::Missing))));
    assert!(!there.keeps(&info.path) && cold.keeps(&info.path));
    let verify = || cold.verify(&store, false, &|_| Ok(()), &mut |_| true).unwrap();
    let found = verify();
    assert_eq!((found.damaged.count, found.rewritten), (2, 1), "{found:?}");
    wait(&cold, 1);
    assert!(cold.keeps(&info.path));
    assert!(read(&empty, &there, &info.path).unwrap() == short);
    let written: Vec<u64> = vec![cold.status().written_paths, cold.status().written_packs];
    assert_eq!(written, [2, 2]);
}

#[test]
fn a_record_with_other_lengths_is_wrong_and_the_chunks_of_the_store_are_not() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let writer = writer(&store, &cold, &key);
    let short = nar(&random(SEED + 2, 3 << 20));
    let info = put(&store, 1, &short);
    wait(&cold, 1);
    drop(writer);
    let (holder, there) = lab.node("second");
    let held = put(&holder, 2, &short);
    assert!(read(&holder, &there, &info.path).unwrap() == short);
    let mut record = there.record(info.path.hash_part()).unwrap();
    let longer = record.chunks.iter().position(|packed| packed.chunk.len < 30_000).unwrap_or(0);
    let other = usize::from(longer == 0);
    record.chunks[longer].chunk.len += 1;
    record.chunks[other].chunk.len -= 1;
    lab.put(&lab.names("paths")[0], record.to_object().unwrap());
    assert!(matches!(read(&holder, &there, &info.path), Err(Trouble::Upstream(Refusal::Missing))));
    assert!(holder.is_valid(&held.path).unwrap());
    assert!(holder.damaged_paths().unwrap().is_empty());
}

#[test]
fn what_has_the_name_of_a_record_only_does_not_keep_it_from_being_written() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let short = nar(&random(SEED + 3, 1 << 20));
    let info = put(&store, 1, &short);
    lab.put(&Key::from(format!("p/{}", record_object(info.path.hash_part()))), b"junk".to_vec());
    let _writer = writer(&store, &cold, &key);
    wait(&cold, 1);
    let (empty, there) = lab.node("second");
    assert!(read(&empty, &there, &info.path).unwrap() == short);
    assert!(cold.keeps(&info.path));
}

#[test]
fn what_lies_deeper_is_no_object_of_a_listing_and_does_not_keep_it_from_ending() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    lab.put(&Key::from("p/packs/zz/a"), b"x".to_vec());
    lab.put(&Key::from("p/packs/b"), b"x".to_vec());
    // Many more than there are.
    let found = cold.verify(&store, true, &|_| Ok(()), &mut |seen| seen.packs < 10).unwrap();
    assert_eq!((found.packs, found.damaged.count), (1, 1), "{found:?}");
}
