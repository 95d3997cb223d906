use std::io::Write;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use shoal_grid::random::Random;
use shoal_mesh::handle::Vault;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation, UnkeyedRealisation};
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

    fn remove(&self, name: &Key) {
        self.runtime.block_on(self.objects.delete(name)).unwrap();
    }

    fn get(&self, name: &Key) -> Vec<u8> {
        self.runtime.block_on(async { self.objects.get(name).await.unwrap().bytes().await.unwrap().to_vec() })
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

fn means(store: &Store, cold: &Arc<Cold>, key: &SecretKey) -> Means {
    Means {
        cold: cold.clone(),
        store: store.clone(),
        dir: StoreDir::default(),
        neighbours: Default::default(),
        keys: vec![key.clone()],
        believes: Box::new(|_| Err("nobody is".into())),
        rate: None,
    }
}

fn writer(store: &Store, cold: &Arc<Cold>, key: &SecretKey) -> Writer {
    Writer::start(means(store, cold, key)).unwrap()
}

/// Until the bucket has so many paths of the node.
fn wait(cold: &Cold, paths: u64) {
    let since = Instant::now();
    while cold.status().kept_paths < paths {
        assert!(since.elapsed() < PATIENCE, "{:?}", cold.status());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Which last copies a node may let go of that signs with `key`.
fn last_copies(store: &Store, cold: &Arc<Cold>, key: &SecretKey) -> LastCopies {
    let signers = Signers::new(StoreDir::default(), std::slice::from_ref(key));
    LastCopies::new(cold.clone(), store.clone(), signers)
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

#[test]
fn a_last_copy_goes_only_when_the_bucket_has_the_path_whole() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let contents = nar(&random(SEED + 4, 3 << 20));
    let info = put(&store, 1, &contents);
    let path = [info.path.clone()];
    assert!(last_copies(&store, &cold, &key).has(&path).is_empty(), "nothing is written");
    let written = writer(&store, &cold, &key);
    wait(&cold, 1);
    drop(written);
    let (record, pack) = (lab.names("paths")[0].clone(), lab.names("packs")[0].clone());
    let (right_record, right_pack) = (lab.get(&record), lab.get(&pack));
    // Each node has what it needs and has heard nothing of the bucket yet.
    let mut nodes = 0;
    let mut may_go = |what: &str, is_right: bool| {
        nodes += 1;
        let (store, cold) = lab.node(&format!("node-{nodes}"));
        put(&store, 1, &contents);
        assert_eq!(last_copies(&store, &cold, &key).has(&path), &path[..usize::from(is_right)], "{what}");
        lab.put(&record, right_record.clone());
        lab.put(&pack, right_pack.clone());
        (store, cold)
    };
    may_go("all is there", true);
    lab.damage(&record);
    let (_, damaged) = may_go("a damaged record", false);
    assert_eq!(damaged.last_copies_kept().0, 1);
    assert!(!damaged.keeps(&info.path), "it is to be written again");
    lab.remove(&record);
    may_go("no record", false);
    lab.put(&pack, right_pack[..right_pack.len() - 1].to_vec());
    may_go("a pack that is too short", false);
    lab.remove(&pack);
    may_go("no pack", false);
    let parsed = ColdRecord::from_object(&right_record).unwrap();
    let change = |change: &dyn Fn(&mut ColdRecord)| {
        let mut record = parsed.clone();
        change(&mut record);
        record.to_object().unwrap()
    };
    lab.put(&record, change(&|record| record.signatures.clear()));
    may_go("a record that nobody signed", false);
    lab.put(&record, change(&|record| record.chunks.swap(0, 1)));
    may_go("chunks in another order", false);
    lab.put(&record, change(&|record| record.nar_hash = [1; 32]));
    may_go("another NAR", false);
    lab.put(
        &record,
        change(&|record| {
            record.references.insert(info.path.clone());
        }),
    );
    may_go("other references", false);
    // A pack of the right length that a reader found damaged, by whatever path.
    let (store, cold) = may_go("all is there again", true);
    cold.refuse_pack(&parsed.packs[0], &"2".repeat(32), "a chunk in it has other bytes than its name says");
    assert!(last_copies(&store, &cold, &key).has(&path).is_empty());
    // A bucket that gives no answers.
    let silent = Lab::new();
    let (store, stopped) = silent.node("silent");
    put(&store, 1, &contents);
    let Lab { runtime, dir: _dir, .. } = silent;
    runtime.shutdown_background();
    let lets_go = last_copies(&store, &stopped, &key);
    assert!(lets_go.has(&path).is_empty());
    let (kept, why) = stopped.last_copies_kept();
    assert!(kept == 1 && why.as_ref().is_some_and(|why| why.contains("the node is stopping")), "{why:?}");
    // It is left alone for a while.
    assert!(lets_go.has(&path).is_empty());
    assert!(stopped.last_copies_kept().1.is_some_and(|why| why.contains("a moment ago")));
}

#[test]
fn a_last_copy_stays_until_it_is_written_where_outputs_came_out_as_it() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let info = put(&store, 1, &nar(b"contents"));
    let path = [info.path.clone()];
    {
        let _writer = writer(&store, &cold, &key);
        wait(&cold, 1);
    }
    let (store, cold) = {
        drop((store, cold));
        lab.node("first")
    };
    let realisation = Realisation::new(DrvOutput { drv_hash: [1; 32], output: "out".into() }, info.path.clone());
    store.add_realisation(&realisation).unwrap();
    assert!(last_copies(&store, &cold, &key).has(&path).is_empty());
    let _writer = writer(&store, &cold, &key);
    until("a realisation in the bucket", || cold.lore_to_ask(&store, &info.path).unwrap().is_some());
    assert_eq!(last_copies(&store, &cold, &key).has(&path), path);
}

#[test]
fn logs_and_realisations_come_back_signed_and_are_written_once() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let info = put(&store, 1, &nar(b"contents"));
    let drv = StorePath::from_base_name(&format!("{}-x.drv", "2".repeat(32))).unwrap();
    store.put_log(&drv, &b"what was printed"[..]).unwrap();
    let writer = writer(&store, &cold, &key);
    until("a log in the bucket", || cold.status().written_logs == 1);
    let id = DrvOutput { drv_hash: [1; 32], output: "out".into() };
    store.add_realisation(&Realisation::new(id.clone(), info.path.clone())).unwrap();
    let trace_key = BuildTraceKey { drv_path: drv.clone(), output: "out".into() };
    let value = UnkeyedRealisation { out_path: info.path.clone(), signatures: BTreeSet::new() };
    let trace = BuildTrace { key: trace_key.clone(), value };
    store.add_build_trace(&trace).unwrap();
    until("realisations in the bucket", || cold.status().written_realisations == 2);
    // Behind what was learned again.
    put(&store, 3, &nar(b"last"));
    wait(&cold, 2);
    let status = cold.status();
    assert_eq!((status.written_logs, status.written_realisations), (1, 2), "{status:?}");
    drop(writer);
    let (_, there) = lab.node("second");
    let mut trusted = TrustedKeys::default();
    trusted.insert(key.public());
    assert_eq!(there.log(&drv).unwrap(), b"what was printed");
    let found = there.realisation(&id).unwrap();
    assert_eq!((found.count_valid_signatures(&trusted), &found.out_path), (1, &info.path));
    let found = there.build_trace(&trace_key).unwrap();
    assert_eq!((found.count_valid_signatures(&trusted), &found.value.out_path), (1, &info.path));
    for dir in ["logs", "realisations"] {
        lab.names(dir).iter().for_each(|name| lab.damage(name));
    }
    assert!(matches!(there.log(&drv), Err(Refusal::Missing)));
    let is_good = |found: Result<Realisation, Refusal>| found.is_ok_and(|f| f.count_valid_signatures(&trusted) > 0);
    assert!(!is_good(there.realisation(&id)));
}

#[test]
fn a_pack_that_was_deleted_is_named_by_no_new_record() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let contents = random(SEED + 5, 3 << 20);
    put(&store, 1, &nar(&contents));
    {
        let _writer = writer(&store, &cold, &key);
        wait(&cold, 1);
    }
    lab.names("packs").iter().for_each(|name| lab.remove(name));
    // Not within an hour of the last time that the pack was there, or after a restart.
    drop((store, cold));
    let (store, cold) = lab.node("first");
    let other = nar(&contents[..contents.len() - 100]);
    let second = put(&store, 2, &other);
    let _writer = writer(&store, &cold, &key);
    wait(&cold, 2);
    let (empty, there) = lab.node("second");
    assert!(read(&empty, &there, &second.path).unwrap() == other);
    assert_eq!(cold.status().shared_chunks, 0);
}

#[test]
fn whole_chunks_that_are_not_the_nar_are_found_and_written_again() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let _writer = writer(&store, &cold, &key);
    let contents = nar(&random(SEED + 6, 3 << 20));
    let info = put(&store, 1, &contents);
    wait(&cold, 1);
    let mut record = cold.record(info.path.hash_part()).unwrap();
    record.chunks.swap(0, 1);
    lab.put(&lab.names("paths")[0], record.to_object().unwrap());
    let verify = |quick| cold.verify(&store, quick, &|_| Ok(()), &mut |_| true).unwrap();
    assert_eq!(verify(true).damaged.count, 0);
    let found = verify(false);
    assert_eq!((found.damaged.count, found.rewritten), (1, 1), "{found:?}");
    assert!(found.damaged.first[0].why.contains("do not make the NAR"), "{found:?}");
    wait(&cold, 1);
    assert_eq!(verify(false).damaged.count, 0);
    let (empty, there) = lab.node("second");
    assert!(read(&empty, &there, &info.path).unwrap() == contents);
}

#[test]
fn what_others_believe_in_is_not_replaced_by_other_contents() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let first = put(&store, 1, &nar(b"one build"));
    let _writer = writer(&store, &cold, &key);
    wait(&cold, 1);
    let (other, there) = lab.node("second");
    let second = put(&other, 1, &nar(b"another build"));
    let _other_writer = writer(&other, &there, &key);
    until("a look at the bucket", || there.notes.is_done(&second.path).unwrap());
    assert_eq!(cold.record(first.path.hash_part()).unwrap().nar_hash, first.nar_hash);
    assert!(!there.keeps(&second.path));
    assert!(last_copies(&other, &there, &key).has(&[second.path]).is_empty());
}

/// What a node wrote while it was alone, or under another key, is of no use to the mesh that it joined.
#[test]
fn a_record_signed_with_an_older_key_frees_no_last_copy_until_it_is_signed_anew() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let (older, newer) = (SecretKey::generate("alone-1").unwrap(), SecretKey::generate("mesh-1").unwrap());
    let info = put(&store, 1, &nar(&random(SEED + 7, 1 << 20)));
    let path = [info.path.clone()];
    {
        let _writer = writer(&store, &cold, &older);
        wait(&cold, 1);
    }
    drop((store, cold));
    let (store, cold) = lab.node("first");
    assert!(cold.keeps(&info.path));
    assert!(last_copies(&store, &cold, &newer).has(&path).is_empty());
    assert!(!cold.notes.is_kept(&info.path).unwrap(), "a note hides that it is to be written again");
    // As one that trusts what its own key signed before.
    let mut means = means(&store, &cold, &newer);
    means.believes = Box::new(|_| Ok(()));
    let _writer = Writer::start(means).unwrap();
    wait(&cold, 1);
    assert_eq!(last_copies(&store, &cold, &newer).has(&path), path);
    // Those of the older key still believe it, and nothing but the record was written.
    assert_eq!(cold.record(info.path.hash_part()).unwrap().signatures.len(), 2);
    assert_eq!(cold.status().written_packs, 0);
}

#[test]
fn a_record_that_only_this_node_believes_is_signed_where_it_lies() {
    let lab = Lab::new();
    let contents = nar(&random(SEED + 8, 1 << 20));
    let (store, cold) = lab.node("first");
    let (lost, own) = (SecretKey::generate("lost-1").unwrap(), SecretKey::generate("own-1").unwrap());
    let info = put(&store, 1, &contents);
    {
        let _writer = writer(&store, &cold, &lost);
        wait(&cold, 1);
    }
    let (other, there) = lab.node("second");
    put(&other, 1, &contents);
    let mut means = means(&other, &there, &own);
    means.believes = Box::new(|_| Ok(()));
    let _writer = Writer::start(means).unwrap();
    wait(&there, 1);
    assert_eq!((there.status().written_paths, there.status().written_packs), (1, 0));
    assert_eq!(there.record(info.path.hash_part()).unwrap().signatures.len(), 2);
    assert_eq!(last_copies(&other, &there, &own).has(std::slice::from_ref(&info.path)), [info.path]);
}

#[test]
fn a_last_copy_stays_whose_signatures_are_nowhere_else() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let (key, cache) = (SecretKey::generate("mesh-1").unwrap(), SecretKey::generate("cache-1").unwrap());
    let mut info = put(&store, 1, &nar(b"contents"));
    let path = [info.path.clone()];
    let _writer = writer(&store, &cold, &key);
    wait(&cold, 1);
    info.sign(&StoreDir::default(), &cache).unwrap();
    store.add_signatures(&info.path, &Vec::from_iter(info.signatures)).unwrap();
    let lets_go = last_copies(&store, &cold, &key);
    assert!(lets_go.has(&path).is_empty());
    until("a record with both", || lets_go.has(&path) == path);
    assert_eq!(cold.record(info.path.hash_part()).unwrap().signatures.len(), 2);
}

#[test]
fn a_pack_that_was_found_wrong_is_wrong_after_a_restart() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let info = put(&store, 1, &nar(&random(SEED + 9, 1 << 20)));
    let path = [info.path.clone()];
    {
        let _writer = writer(&store, &cold, &key);
        wait(&cold, 1);
    }
    // What a writer wrote for stops with it.
    drop((store, cold));
    let (store, cold) = lab.node("first");
    let pack = cold.record(info.path.hash_part()).unwrap().packs[0];
    cold.refuse_pack(&pack, info.path.hash_part(), "a chunk in it has other bytes than its name says");
    drop((store, cold));
    let (store, cold) = lab.node("first");
    assert!(!cold.keeps(&info.path));
    assert!(last_copies(&store, &cold, &key).has(&path).is_empty());
    let _writer = writer(&store, &cold, &key);
    wait(&cold, 1);
    assert_eq!(cold.status().written_packs, 1, "it counted as written");
    assert_eq!(last_copies(&store, &cold, &key).has(&path), path);
}

#[test]
fn a_realisation_that_is_gone_keeps_the_last_copy_and_an_object_that_is_too_long_is_wrong() {
    let lab = Lab::new();
    let (store, cold) = lab.node("first");
    let key = SecretKey::generate("test-1").unwrap();
    let info = put(&store, 1, &nar(b"contents"));
    let path = [info.path.clone()];
    let id = DrvOutput { drv_hash: [1; 32], output: "out".into() };
    store.add_realisation(&Realisation::new(id, info.path.clone())).unwrap();
    {
        let _writer = writer(&store, &cold, &key);
        wait(&cold, 1);
        until("a realisation in the bucket", || cold.status().written_realisations == 1);
    }
    // What a writer wrote for stops with it.
    drop((store, cold));
    let (store, cold) = lab.node("first");
    let lets_go = last_copies(&store, &cold, &key);
    assert_eq!(lets_go.has(&path), path);
    lab.remove(&lab.names("realisations")[0]);
    assert!(lets_go.has(&path).is_empty());
    lab.put(&lab.names("paths")[0], vec![0; 2 << 20]);
    assert!(lets_go.has(&path).is_empty());
    let _writer = writer(&store, &cold, &key);
    until("all of it again", || lets_go.has(&path) == path);
}
