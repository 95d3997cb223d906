//! The other nodes of the mesh, for threads that may wait: sessions, builds, downloads, collections.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shoal_grid::membership::member::Standing;
use shoal_mesh::fetcher::{Dropped, Fetcher, Fetching, Want};
use shoal_mesh::handle::Mesh;
use shoal_mesh::records::holding;
use shoal_store::Ingested;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::Holding;
use shoal_wire::mesh::builds::claim_key;
use shoal_wire::mesh::path_record::{PathKey, PathRecord, path_key};
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::upstream::{Flight, Held};
pub use parts::NotBrought;
pub use whereabouts::Sought;

mod lore;
pub mod orders;
mod parts;
mod whereabouts;

use whereabouts::Said;

/// How long somebody waits for what one other node has. Others may have it too, and a build waits.
const ASK_PATIENCE: Duration = Duration::from_secs(2);
/// How often those who watch a path arrive are told.
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);
/// Handed on at once of a NAR that is on its way.
const PIECE_BYTES: usize = 128 << 10;
/// How long a node that did not answer is left alone where others can be asked: by then members suspect it, if it is dead.
const QUIET: Duration = Duration::from_secs(5);
/// The same of one that was caught in a lie: it costs a try for each build that it is asked for. That it was started again is
/// not seen by its incarnation, which is a greater one as soon as it contradicts that it is dead.
const DISTRUST: Duration = Duration::from_secs(600);

/// Nodes, or paths at nodes, that are left alone at once. One more is asked, and costs what it costs to ask it.
const LEFT_ALONE_MAX: usize = 4096;

/// Cheap to clone. None of them where this node is in no mesh, as in tests.
#[derive(Clone, Default)]
pub struct Neighbours(Option<Arc<Inner>>);

struct Inner {
    mesh: Mesh,
    fetcher: Fetcher,
    runtime: Handle,
    /// Nodes that did not answer, and until when they are left alone.
    quiet: Mutex<BTreeMap<NodeKey, Instant>>,
    /// The same of those that were caught in a lie.
    distrusted: Mutex<BTreeMap<NodeKey, Instant>>,
    /// Paths of which a node has something else than it said, and until when they are not looked for there.
    disbelieved: Mutex<BTreeMap<(NodeKey, StorePath), Instant>>,
}

impl Neighbours {
    /// `runtime` is the one that the mesh runs on.
    pub fn new(mesh: Mesh, fetcher: Fetcher, runtime: Handle) -> Self {
        Neighbours(Some(Arc::new(Inner {
            mesh,
            fetcher,
            runtime,
            quiet: Mutex::default(),
            distrusted: Mutex::default(),
            disbelieved: Mutex::default(),
        })))
    }

    pub fn mesh(&self) -> Option<&Mesh> {
        self.0.as_ref().map(|inner| &inner.mesh)
    }

    /// There is nobody to ask.
    pub fn is_alone(&self) -> bool {
        self.0.as_ref().is_none_or(|inner| inner.mesh.is_alone())
    }

    fn others(&self) -> Option<&Arc<Inner>> {
        self.0.as_ref().filter(|inner| !inner.mesh.is_alone())
    }

    /// Who else has the paths with these hash parts.
    pub fn find(&self, hash_parts: &[&str]) -> Vec<Option<Held>> {
        let Some(inner) = self.others() else { return vec![None; hash_parts.len()] };
        let keys: Vec<Option<PathKey>> = hash_parts.iter().map(|hash_part| path_key(hash_part)).collect();
        let asked: Vec<PathKey> = keys.iter().flatten().copied().collect();
        // One for each that is asked for.
        let mut found = inner.runtime.block_on(inner.find(&asked)).into_iter();
        keys.into_iter().map(|key| key.and_then(|_| found.next()?.held())).collect()
    }

    /// Who else has a path, for who must know whether that could be learnt.
    pub fn seek(&self, path: &StorePath) -> Sought {
        let (Some(inner), Some(key)) = (self.0.as_ref(), path_key(path.hash_part())) else {
            return Sought::Missing { may_return: false };
        };
        if inner.mesh.is_alone() {
            return inner.missing();
        }
        match inner.runtime.block_on(inner.find(&[key])).pop() {
            // One hash part may name another path there.
            Some(Sought::Held(held)) if held.record.path != *path => Sought::Missing { may_return: false },
            sought => sought.unwrap_or(Sought::Unknown),
        }
    }

    /// Asks nodes themselves, one and all, for what owners do not know or say wrongly: a last resort. Those in `not` are
    /// left out.
    pub fn search(&self, path: &StorePath, not: &BTreeSet<NodeKey>) -> Option<Held> {
        let (inner, key) = (self.others()?, path_key(path.hash_part())?);
        let ask = move |inner: Arc<Inner>, node: NodeKey| async move {
            let record = inner.fetcher.records(&[key], node).await?.pop().flatten();
            Ok(record.and_then(|record| Some((inner.mesh.believed(&key, record.bytes())?, node))))
        };
        let (record, holder) = inner.runtime.block_on(inner.clone().first_answer(not, ask))?;
        Some(Held { record, holders: vec![holder] })
    }

    /// What one node has of these.
    pub fn find_at(&self, node: NodeKey, keys: &[PathKey]) -> Vec<Option<Held>> {
        let Some(inner) = self.others() else { return vec![None; keys.len()] };
        let records = inner.within(inner.records_at(node, keys)).unwrap_or_else(|| {
            self.was_quiet(node);
            Vec::new()
        });
        let held = |record: Option<Arc<Sealed<PathRecord>>>| Some(Held { record: record?, holders: vec![node] });
        let mut found: Vec<Option<Held>> = records.into_iter().map(held).collect();
        found.resize(keys.len(), None);
        found
    }

    /// What one node says itself of these, which it should have; `None`: it does not say in time.
    pub fn said_by(&self, node: NodeKey, keys: &[PathKey]) -> Option<Said> {
        let inner = self.0.as_ref()?;
        inner.runtime.block_on(inner.said_by(node, keys))
    }

    /// Brings the contents of a path here, which its flight is told of as they come.
    /// With `checks_nar` the NAR's hash is computed, although a member answers for it.
    pub fn fetch(&self, held: &Held, flight: &Flight, checks_nar: bool) -> Result<Ingested, String> {
        let Some(inner) = self.0.as_ref() else { return Err("this node is in no mesh".into()) };
        let want = Want {
            record: PathRecord::clone(&held.record),
            holders: held.holders.clone(),
            urgency: flight.urgency(),
            checks_nar,
        };
        let key = want.record.key();
        // What a fetch does when it is dropped takes the runtime too.
        let _inside = inner.runtime.enter();
        let fetching = inner.fetcher.begin(want);
        if flight.has_tape() {
            pass_on(&fetching, flight).map_err(|error| error.to_string())?;
        }
        inner.runtime.block_on(async {
            let fetched = wait(&fetching, flight).await;
            self.cut_off(inner, &fetching.dropped());
            if fetched.is_err() {
                inner.mesh.doubt(key).await;
            }
            fetched
        })
    }

    /// Whoever sent what is wrong is talked to no more.
    fn cut_off(&self, inner: &Inner, dropped: &[Dropped]) {
        for dropped in dropped.iter().filter(|dropped| dropped.is_offence()) {
            let node = self.name(&dropped.peer);
            tracing::warn!(
                node,
                why = dropped.why,
                "a node sent what is not what it should be; its connections are closed"
            );
            inner.mesh.links().cut(dropped.peer, "it sent what is not what it should be");
        }
    }

    /// Waits until paths that are valid here are on as many nodes as they should be. Error: for people.
    pub fn keep<'a>(&self, paths: impl IntoIterator<Item = &'a PathInfo>) -> Result<(), String> {
        let Some(inner) = self.others() else { return Ok(()) };
        let paths: Vec<&PathInfo> = paths.into_iter().collect();
        let holdings: Vec<Holding> = paths.iter().filter_map(|path| holding(path)).collect();
        if holdings.is_empty() {
            return Ok(());
        }
        let enclosed = inner.mesh.enclosed(&paths);
        inner.runtime.block_on(inner.mesh.keep_enclosed(holdings, enclosed)).map_err(|error| error.to_string())
    }

    /// Whether this node is to bring a path in from outside of the mesh.
    pub fn claim(&self, path: &StorePath) -> bool {
        let (Some(inner), Some(key)) = (self.others(), path_key(path.hash_part())) else { return true };
        inner.runtime.block_on(inner.mesh.claim(key)) == inner.mesh.me()
    }

    pub fn renew_claim(&self, path: &StorePath) {
        let (Some(inner), Some(key)) = (self.others(), path_key(path.hash_part())) else { return };
        let inner = inner.clone();
        // Nobody waits for the answer: whoever else has it by now, this download is under way.
        inner.runtime.clone().spawn(async move { inner.mesh.claim(key).await });
    }

    pub fn unclaim(&self, path: &StorePath) {
        let (Some(inner), Some(key)) = (self.others(), path_key(path.hash_part())) else { return };
        inner.mesh.unclaim(key, &inner.runtime);
    }

    /// Whether this node is to write a path to the bucket.
    pub fn claim_cold(&self, path: &StorePath) -> bool {
        let Some(inner) = self.others() else { return true };
        inner.runtime.block_on(inner.mesh.claim(cold_key(path))) == inner.mesh.me()
    }

    /// Keeps the claim. Nobody waits for the answer: whoever else has it by now, this path is being written.
    pub fn renew_cold_claim(&self, path: &StorePath) {
        let (Some(inner), key) = (self.others().cloned(), cold_key(path)) else { return };
        inner.runtime.clone().spawn(async move { inner.mesh.claim(key).await });
    }

    pub fn unclaim_cold(&self, path: &StorePath) {
        let Some(inner) = self.others() else { return };
        inner.mesh.unclaim(cold_key(path), &inner.runtime);
    }

    /// Who sees to the build of a derivation: this node where nobody else does, or nobody says so in time.
    pub fn claim_build(&self, drv_path: &StorePath) -> NodeKey {
        match self.others() {
            Some(inner) => inner.runtime.block_on(inner.mesh.claim(claim_key(drv_path))),
            None => self.mesh().map(Mesh::me).unwrap_or_default(),
        }
    }

    /// Keeps the claim. Nobody waits for the answer: whoever else has it by now, this build is under way.
    pub fn renew_build_claim(&self, drv_path: &StorePath) {
        let (Some(inner), key) = (self.others().cloned(), claim_key(drv_path)) else { return };
        inner.runtime.clone().spawn(async move { inner.mesh.claim(key).await });
    }

    pub fn unclaim_build(&self, drv_path: &StorePath) {
        let Some(inner) = self.others() else { return };
        inner.mesh.unclaim(claim_key(drv_path), &inner.runtime);
    }

    /// A node did not answer.
    pub fn was_quiet(&self, node: NodeKey) {
        if let Some(inner) = self.0.as_ref() {
            inner.was_quiet(node);
        }
    }

    /// A node was caught in a lie.
    pub fn distrust(&self, node: NodeKey) {
        if let Some(inner) = self.0.as_ref() {
            leave_alone(&inner.distrusted, node, DISTRUST);
        }
    }

    /// Whether a node is not believed and asked for nothing, although it lives.
    pub fn is_distrusted(&self, node: &NodeKey) -> bool {
        self.0.as_ref().is_some_and(|inner| is_left_alone(&inner.distrusted, node))
    }

    /// A node has something else under a path's name than it said, which may have been made again meanwhile.
    pub fn disbelieve(&self, node: NodeKey, path: StorePath) {
        if let Some(inner) = self.0.as_ref() {
            leave_alone(&inner.disbelieved, (node, path), DISTRUST);
        }
    }

    /// Whether a path is looked for elsewhere although a node has it.
    pub fn is_disbelieved(&self, node: &NodeKey, path: &StorePath) -> bool {
        self.0.as_ref().is_some_and(|inner| is_left_alone(&inner.disbelieved, &(*node, path.clone())))
    }

    /// Whether a node may be dead, as far as anybody knows, or lies: it is asked when there is no other.
    pub fn is_quiet(&self, node: &NodeKey) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.is_quiet(node))
    }

    /// What people call a node.
    pub fn name(&self, node: &NodeKey) -> String {
        let roster = self.mesh().map(Mesh::roster);
        roster.as_ref().and_then(|roster| roster.get(node)).map(|peer| peer.record.name.clone()).unwrap_or_default()
    }
}

/// The key of the claim of writing a path to the bucket, which is that of no path.
fn cold_key(path: &StorePath) -> PathKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"shoal cold").update(path.hash_part().as_bytes());
    *hasher.finalize().as_bytes()
}

fn leave_alone<K: Ord>(left: &Mutex<BTreeMap<K, Instant>>, what: K, time: Duration) {
    let (mut left, now) = (left.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
    left.retain(|_, until| now < *until);
    if left.len() < LEFT_ALONE_MAX {
        left.insert(what, now + time);
    }
}

fn is_left_alone<K: Ord>(left: &Mutex<BTreeMap<K, Instant>>, what: &K) -> bool {
    let left = left.lock().unwrap_or_else(PoisonError::into_inner);
    left.get(what).is_some_and(|until| Instant::now() < *until)
}

/// Gives the flight the NAR as it comes.
fn pass_on(fetching: &Fetching, flight: &Flight) -> std::io::Result<()> {
    let mut reader = fetching.reader();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match reader.read(&mut piece)? {
            0 => return Ok(()),
            n => flight.record(&piece[..n]),
        }
    }
}

/// Waits for the end, and tells the flight how far it is.
async fn wait(fetching: &Fetching, flight: &Flight) -> Result<Ingested, String> {
    loop {
        match timeout(PROGRESS_PERIOD, fetching.wait()).await {
            Ok(fetched) => return fetched.map(|fetched| fetched.ingested).map_err(|error| error.to_string()),
            Err(_) => flight.progressed(fetching.progress()),
        }
    }
}

impl Inner {
    fn was_quiet(&self, node: NodeKey) {
        leave_alone(&self.quiet, node, QUIET);
    }

    /// Whether a node did not answer this one a moment ago.
    fn has_been_quiet(&self, node: &NodeKey) -> bool {
        is_left_alone(&self.quiet, node)
    }

    fn is_quiet(&self, node: &NodeKey) -> bool {
        self.has_been_quiet(node)
            || is_left_alone(&self.distrusted, node)
            || self.mesh.roster().get(node).is_none_or(|peer| peer.standing != Standing::Alive)
    }

    /// Waits, but not longer than anybody should for what others know.
    fn within<T>(&self, asked: impl Future<Output = T>) -> Option<T> {
        // A timer is of the runtime that it is made in.
        self.runtime.block_on(async { timeout(ASK_PATIENCE, asked).await.ok() })
    }

    async fn records_at(&self, node: NodeKey, keys: &[PathKey]) -> Vec<Option<Arc<Sealed<PathRecord>>>> {
        match self.fetcher.records(keys, node).await {
            Ok(records) => self.all_believed(keys, records),
            Err(error) => {
                tracing::debug!(%error, "a node does not say what it has");
                vec![None; keys.len()]
            }
        }
    }

    fn all_believed(
        &self,
        keys: &[PathKey],
        records: Vec<Option<Sealed<PathRecord>>>,
    ) -> Vec<Option<Arc<Sealed<PathRecord>>>> {
        let believed = |(key, record): (&PathKey, Option<Sealed<PathRecord>>)| self.mesh.believed(key, record?.bytes());
        keys.iter().zip(records).map(believed).collect()
    }
}
