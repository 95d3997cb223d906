//! Whole nodes on loopback: a store, links, and what decides between them.

use super::*;
use crate::chunk_lab::{add, export, nar, noise};
use crate::chunk_server::{ChunkServer, ServerLimits};
use crate::clock::wall_s;
use crate::fetcher::{Fetcher, Urgency, Want};
use crate::fixture::{Echo, MESH, Node, key, loopback, public, until, within};
use crate::log_lab::Log;
use shoal_store::{GcAction, GcRequest};
use shoal_wire::mesh::announcement::{ENCLOSED_LEN_MAX, HolderMessage};
use shoal_wire::mesh::path_record::PathRecord;
use tempfile::TempDir;

struct Member {
    dir: TempDir,
    store: Store,
    mesh: Mesh,
    orders: mpsc::Receiver<Order>,
    fetcher: Fetcher,
}

impl Member {
    async fn start(seed: u8, knows: &[&Member]) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::with_secret(&dir.path().join("mesh"), key(seed), key(MESH), wall_s()).unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let server = ChunkServer::new(store.clone(), Arc::new(key(seed)), ServerLimits { upload_bytes_per_s: None });
        let contacts = knows.iter().map(|other| (other.mesh.me(), vec![other.mesh.local_addr()])).collect();
        let options = Options {
            identity: Arc::new(identity),
            store: store.clone(),
            bind: loopback(),
            chunks: Arc::new(server),
            builds: Arc::new(Echo),
            contacts,
            announced: Vec::new(),
            copies: 2,
            describe: Box::new(move |own| own.name = format!("node-{seed}")),
        };
        let (mesh, orders) = Mesh::open(options).await.unwrap();
        let fetcher = Fetcher::new(store.clone(), Arc::new(mesh.links().clone()));
        Member { dir, store, mesh, orders, fetcher }
    }

    /// As an upload would leave it.
    async fn stores(&self, name: &str) -> PathInfo {
        self.stores_noise(name, 100_000).await
    }

    async fn stores_noise(&self, name: &str, len: usize) -> PathInfo {
        let (store, name) = (self.store.clone(), name.to_owned());
        let stored = tokio::task::spawn_blocking(move || {
            let path = add(&store, &name, &nar([("a", noise(7, len))]));
            store.path_info(&path).unwrap().unwrap()
        });
        stored.await.unwrap()
    }

    async fn finds(&self, info: &PathInfo) -> Located {
        within(self.mesh.look_up(&[path_key(info.path.hash_part()).unwrap()])).await.pop().unwrap()
    }

    /// Does what the next order wants, as a node does.
    async fn carry_out_one(&mut self) {
        let order = within(self.orders.recv()).await.unwrap();
        let from = order.from[0];
        let record = within(self.fetcher.records(&[order.holding.key], from)).await.unwrap().pop().flatten().unwrap();
        let record = PathRecord::clone(&record);
        let info = record.info();
        let want = Want { record, holders: vec![from], urgency: Urgency::Replication, checks_nar: true };
        let fetched = within(self.fetcher.fetch(want)).await.unwrap();
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.commit(vec![(info, fetched.ingested)]).unwrap()).await.unwrap();
        self.mesh.fetched(order.holding).await;
    }
}

async fn pair() -> (Member, Member) {
    let a = Member::start(1, &[]).await;
    let b = Member::start(2, &[&a]).await;
    until("they see each other", || a.mesh.roster().storers() == 2 && b.mesh.roster().storers() == 2).await;
    (a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_is_acknowledged_when_another_node_has_it_too() {
    let (a, mut b) = pair().await;
    let info = a.stores("one").await;
    let kept = tokio::spawn({
        let (mesh, holding) = (a.mesh.clone(), holding(&info).unwrap());
        async move { mesh.keep(vec![holding]).await }
    });
    b.carry_out_one().await;
    assert_eq!(within(kept).await.unwrap(), Ok(()));
    assert!(b.store.is_valid(&info.path).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_path_comes_along_with_the_order_to_keep_it() {
    let (a, mut b) = pair().await;
    for (name, len, comes_along) in [("small", 3_000, true), ("big", ENCLOSED_LEN_MAX, false)] {
        let info = a.stores_noise(name, len).await;
        let (mesh, ordered) = (a.mesh.clone(), info.clone());
        let kept = tokio::spawn(async move {
            let enclosed = now(async { mesh.enclosed(&[&ordered]) });
            mesh.keep_enclosed(vec![holding(&ordered).unwrap()], enclosed).await
        });
        let order = within(b.orders.recv()).await.unwrap();
        assert_eq!((order.holding, &order.from[..]), (holding(&info).unwrap(), &[a.mesh.me()][..]));
        assert_eq!(order.enclosed.is_some(), comes_along, "{name}");
        if let Some(enclosed) = &order.enclosed {
            let record = b.mesh.believed(&order.holding.key, &enclosed.record).unwrap();
            assert_eq!((&record.path, record.nar_size), (&info.path, enclosed.nar.len() as u64));
            assert_eq!(Some(&enclosed.nar), export(&a.store, &info.path).as_ref());
        }
        b.mesh.fetched(order.holding).await;
        assert_eq!(within(kept).await.unwrap(), Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_has_another_finds_with_its_record() {
    let (a, b) = pair().await;
    let info = a.stores("one").await;
    let mut found = Located::Missing;
    until("the owners have heard of it", || {
        found = now(b.finds(&info));
        matches!(found, Located::Held(_))
    })
    .await;
    let Located::Held(whereabouts) = found else { panic!("{found:?}") };
    assert_eq!(whereabouts.holders, [a.mesh.me()]);
    let missing = PathInfo::new(crate::chunk_lab::path("nowhere"), [1; 32], 1);
    let mut outcome = Located::Unknown(Vec::new());
    until("the owners can say that nobody has it", || {
        outcome = now(b.finds(&missing));
        !matches!(outcome, Located::Unknown(_))
    })
    .await;
    assert!(matches!(outcome, Located::Missing), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_the_members_to_change_rests_until_they_do() {
    let a = Member::start(1, &[]).await;
    until("it is in its own mesh", || a.mesh.roster().peers.len() == 1).await;
    let mut rosters = a.mesh.rosters();
    let quiet = timeout(Duration::from_millis(500), rosters.changed()).await;
    assert!(quiet.is_err(), "nobody came or went");
    let _b = Member::start(2, &[&a]).await;
    within(rosters.wait_for(|roster| roster.live().count() == 2)).await.unwrap();
}

/// For polls, which are no futures.
fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_copy_is_not_collected_and_another_one_may_be() {
    let (a, mut b) = pair().await;
    let info = a.stores("one").await;
    let collect = |store: &Store| {
        let store = store.clone();
        async move {
            let collected = tokio::task::spawn_blocking(move || store.collect(&GcRequest::new(GcAction::DeleteDead)));
            collected.await.unwrap().unwrap().paths.len()
        }
    };
    assert_eq!(within(collect(&a.store)).await, 0, "nobody else has it");
    let mesh = a.mesh.clone();
    let kept = tokio::spawn({
        let holding = holding(&info).unwrap();
        async move { mesh.keep(vec![holding]).await }
    });
    b.carry_out_one().await;
    within(kept).await.unwrap().unwrap();
    let mut deleted = 0;
    until("the owners know of both", || {
        deleted = now(collect(&a.store));
        deleted == 1
    })
    .await;
    assert_eq!(within(collect(&b.store)).await, 0, "it is the last one now");
    assert!(b.store.is_valid(&info.path).unwrap());
}

/// Has what it was given.
struct Shelf(Vec<StorePath>);

impl Vault for Shelf {
    fn has(&self, paths: &[StorePath]) -> Vec<StorePath> {
        paths.iter().filter(|path| self.0.contains(path)).cloned().collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_copy_is_collected_when_it_is_elsewhere() {
    let (a, _b) = pair().await;
    let (one, two) = (a.stores("one").await, a.stores("two").await);
    let collect = || {
        let store = a.store.clone();
        async move {
            let collected = tokio::task::spawn_blocking(move || store.collect(&GcRequest::new(GcAction::DeleteDead)));
            collected.await.unwrap().unwrap().paths
        }
    };
    assert!(within(collect()).await.is_empty(), "nobody else has them");
    a.mesh.rely_on(Arc::new(Shelf(vec![one.path.clone()])));
    let mut deleted = Vec::new();
    until("the owners have settled", || {
        deleted.extend(now(collect()));
        !deleted.is_empty()
    })
    .await;
    assert_eq!(deleted, [one.path]);
    assert!(a.store.is_valid(&two.path).unwrap(), "it is nowhere else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_want_a_path_from_outside_one_brings_it() {
    let (a, b) = pair().await;
    let key = [9; 32];
    let first = within(a.mesh.claim(key)).await;
    assert_eq!(first, a.mesh.me());
    assert_eq!(within(b.mesh.claim(key)).await, first);
    for _ in 0..100 {
        a.mesh.unclaim(key, &Handle::current());
        assert_eq!(within(a.mesh.claim(key)).await, first);
        assert_eq!(within(b.mesh.claim(key)).await, first, "what was given back before is not what it has now");
    }
    a.mesh.unclaim(key, &Handle::current());
    let mut by = first;
    until("it is free again", || {
        by = now(b.mesh.claim(key));
        by == b.mesh.me()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_is_known_to_have_left_and_who_comes_again_is_back() {
    let (a, b) = pair().await;
    let gone = b.mesh.me();
    within(b.mesh.leave()).await;
    until("it is heard", || !a.mesh.roster().is_live(&gone)).await;
    let again = Member::start(2, &[&a]).await;
    until("it is back", || a.mesh.roster().is_live(&gone) && again.mesh.roster().live().count() == 2).await;
}

/// What a disk may do to the newest of what a store has written.
fn damage(member: &Member) {
    let segments = std::fs::read_dir(member.dir.path().join("store/segments")).unwrap();
    for segment in segments.map(|segment| segment.unwrap().path()) {
        let mut bytes = std::fs::read(&segment).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_is_not_looked_for_here_and_is_again_when_it_is_whole() {
    let (a, b) = pair().await;
    let info = a.stores("one").await;
    let other = b.stores("one").await;
    assert_eq!(info.nar_hash, other.nar_hash);
    let mut holders = Vec::new();
    let holders_are = async |expected: &[NodeKey], holders: &mut Vec<NodeKey>| {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        until(&format!("holders are {expected:?}, and not {holders:?}"), || {
            now(b.mesh.doubt(path_key(info.path.hash_part()).unwrap()));
            if let Located::Held(whereabouts) = now(b.finds(&info)) {
                *holders = whereabouts.holders;
                holders.sort_unstable();
            }
            *holders == expected
        })
        .await;
    };
    let (here, there) = (a.mesh.me(), b.mesh.me());
    holders_are(&[here, there], &mut holders).await;
    damage(&a);
    let store = a.store.clone();
    let report = tokio::task::spawn_blocking(move || store.verify(true).unwrap()).await.unwrap();
    assert!(!report.damage.is_empty());
    holders_are(&[there], &mut holders).await;
    a.stores("one").await;
    assert!(a.store.is_valid(&info.path).unwrap(), "who stores it again heals it");
    holders_are(&[here, there], &mut holders).await;
}

fn key_of(path: &shoal_wire::nix::store_path::StorePath) -> PathKey {
    path_key(path.hash_part()).unwrap()
}

/// Member 3 tells the others that it has `record`, and shows them the record as `author` signed it.
fn claim(liar: &Member, others: [&Member; 2], record: PathRecord, author: u8) {
    let holding = holding(&record.info()).unwrap();
    let sealed = Sealed::seal(PathRecord { author: public(author), ..record }, &key(author)).unwrap().bytes().to_vec();
    for other in others {
        let (links, to) = (liar.mesh.links(), other.mesh.me());
        assert!(links.send_message(to, &HolderMessage::Holds(vec![holding])));
        assert!(links.send_message(to, &HolderMessage::Records(vec![sealed.clone()])));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_claims_paths_that_it_lacks_keeps_nobody_from_them_and_nothing_of_it_is_stored() {
    let (a, b) = pair().await;
    let liar = Member::start(3, &[&a, &b]).await;
    until("they see each other", || [&a, &b, &liar].iter().all(|member| member.mesh.roster().storers() == 3)).await;
    let info = a.stores("one").await;
    let real = within(b.fetcher.records(&[key_of(&info.path)], a.mesh.me())).await.unwrap().pop().flatten().unwrap();
    let ghost = some_record("ghost").info();
    until("the claim is heard", || {
        // Again, as holders do when owners change: these may not have settled yet.
        claim(&liar, [&a, &b], PathRecord::clone(&real), 3);
        claim(&liar, [&a, &b], some_record("ghost"), 3);
        match now(b.finds(&ghost)) {
            Located::Held(at) => at.holders == [liar.mesh.me()] && at.record.is_some(),
            _ => false,
        }
    })
    .await;
    let want = |record: PathRecord, holders| Want { record, holders, urgency: Urgency::Client, checks_nar: true };
    // The liar first.
    let both = vec![liar.mesh.me(), a.mesh.me()];
    within(b.fetcher.fetch(want(PathRecord::clone(&real), both))).await.unwrap();
    assert!(within(b.fetcher.fetch(want(some_record("ghost"), vec![liar.mesh.me()]))).await.is_err());
    assert!(!b.store.is_valid(&ghost.path).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stranger_signed_is_not_believed_whoever_passes_it_on() {
    let (a, b) = pair().await;
    let member = Member::start(3, &[&a, &b]).await;
    until("they see each other", || [&a, &b, &member].iter().all(|member| member.mesh.roster().storers() == 3)).await;
    let (strange, known) = (some_record("of-a-stranger").info(), some_record("of-a-member").info());
    let mut found = Located::Missing;
    until("the record that a member signed is believed", || {
        claim(&member, [&a, &b], some_record("of-a-stranger"), 4);
        claim(&member, [&a, &b], some_record("of-a-member"), 2);
        found = now(a.finds(&known));
        matches!(&found, Located::Held(at) if at.record.is_some())
    })
    .await;
    // It was said before the other one.
    let Located::Held(at) = now(a.finds(&strange)) else { panic!("the claim was not heard") };
    assert!(at.record.is_none(), "{at:?}");
    assert_eq!(a.mesh.links().counts().cut_off, 0, "members may be known to others that are not known here");
}

/// A member of the mesh says this to another, and is cut off for it, which the log of the other one tells.
async fn says(seed: u8, offence: &str, how: impl Fn(&Node, NodeKey)) {
    let member = Member::start(1, &[]).await;
    let bad = Node::new(seed).await;
    let me = member.mesh.me();
    bad.links.learn_addresses(me, &[member.mesh.local_addr()]);
    let log = Log::begin();
    let links = member.mesh.links();
    until("it is cut off", || {
        how(&bad, me);
        links.counts().cut_off > 0
    })
    .await;
    log.tells(&bad.key(), offence).await;
    until("its connections are closed", || !links.peers().iter().any(|peer| peer.node == bad.key())).await;
    let store = member.store.clone();
    assert!(tokio::task::spawn_blocking(move || store.paths()).await.unwrap().unwrap().is_empty());
}

/// What node 4 would say of a path, if it had signed it.
fn sealed_by_4(name: &str) -> Vec<u8> {
    let record = PathRecord { author: *key(4).public().bytes(), ..some_record(name) };
    Sealed::seal(record, &key(4)).unwrap().bytes().to_vec()
}

fn some_record(name: &str) -> PathRecord {
    PathRecord {
        author: [0; 32],
        path: crate::chunk_lab::path(name),
        nar_hash: [1; 32],
        nar_size: 1,
        references: Default::default(),
        content_root: [2; 32],
        deriver: None,
        ca: None,
        signatures: Default::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_passes_forged_records_on_is_cut_off_and_named() {
    let mut forged = sealed_by_4("forged");
    let at = forged.len() - 1;
    forged[at] ^= 1;
    for records in [vec![forged], vec![b"nonsense".to_vec()]] {
        says(31, "it sent a path record that nobody signed", |bad, to| {
            bad.links.send_message(to, &HolderMessage::Records(records.clone()));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_frames_that_nobody_signed_is_cut_off_and_named() {
    says(32, "a peer is cut off", |bad, to| bad.links.send_frame(to, vec![9; 200])).await;
}
