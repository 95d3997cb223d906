//! A node's part in its mesh, for the rest of the program.

use crate::clock::wall_s;
use crate::command::{Command, Order, Outcome};
use crate::damage::Damage;
use crate::dial::{ServeBuilds, ServeChunks};
use crate::driver::{Driver, Parts};
use crate::identity::Identity;
use crate::links::{Links, LinksOptions, PeerLink};
use crate::records::{Records, holding};
use crate::roster::{Peer, Roster};
use anyhow::{Context, Result};
use shoal_store::{Store, Watcher};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::{Enclosed, Holding, KEYS_MAX, SYNC_VERSION};
use shoal_wire::mesh::certificate::Roles;
use shoal_wire::mesh::node_record::{NodeRecord, Versions};
use shoal_wire::mesh::path_record::{PathKey, PathRecord, path_key};
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// Things that are said to the driver and that it has not heard yet: a collection or an upload of tens of thousands of
/// paths says as many at once.
const COMMANDS_MAX: usize = 65_536;
/// What came from links and was not heard yet. Peers take turns.
const INCOMING_MAX: usize = 64;
/// Copies that others want kept here and that nobody has begun with.
const ORDERS_MAX: usize = 4_096;
/// Paths that are stored at once of which each goes along with the request to keep it.
const ENCLOSED_PATHS_MAX: usize = 16;
/// A path that is stored here and has too few copies by then is not acknowledged. Members that die are not waited for
/// any more after some seconds, so this is for copies that are slow to make.
pub const KEEP_PATIENCE: Duration = Duration::from_secs(300);
/// The driver answers what it decides alone at once, and claims by their own bound; this is for when it is gone.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

pub struct Options {
    pub identity: Arc<Identity>,
    pub store: Store,
    pub bind: SocketAddr,
    /// Who answers requests for records and chunks.
    pub chunks: Arc<dyn ServeChunks>,
    /// Who answers requests for builds.
    pub builds: Arc<dyn ServeBuilds>,
    /// Nodes that may be there, and where.
    pub contacts: Vec<(NodeKey, Vec<SocketAddr>)>,
    /// Where others reach this node; empty where they do by its own addresses.
    pub announced: Vec<SocketAddr>,
    /// Nodes that a path is on before it is acknowledged, as far as there are as many.
    pub copies: usize,
    /// Says what this node is: name, systems, capacity. Who it is, its version and its addresses are set already.
    pub describe: Box<dyn FnOnce(&mut NodeRecord) + Send>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Mesh(Arc<Shared>);

struct Shared {
    identity: Arc<Identity>,
    links: Links,
    records: Records,
    copies: usize,
    commands: mpsc::Sender<Command>,
    roster: watch::Receiver<Arc<Roster>>,
    vault: OnceLock<Arc<dyn Vault>>,
}

/// A place outside of the mesh that may be the only one where a path is.
pub trait Vault: Send + Sync {
    /// Which of `paths`, valid here and at no other node, it has whole and as they are here. Called by a collection that is
    /// about to delete them, and waited for.
    fn has(&self, paths: &[StorePath]) -> Vec<StorePath>;
}

/// Where a path is.
#[derive(Clone, Debug)]
pub struct Whereabouts {
    /// Live members that have it, this node among them if it does.
    pub holders: Vec<NodeKey>,
    /// What a live member answers for; `None` where the owners had not been told yet: a holder knows.
    pub record: Option<Arc<Sealed<PathRecord>>>,
}

/// What came of looking for a path.
#[derive(Clone, Debug)]
pub enum Located {
    Held(Whereabouts),
    Missing,
    /// Nothing could be learned in time. Owners that said nothing.
    Unknown(Vec<NodeKey>),
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeepError {
    #[error(
        "it is stored here, but not on as many nodes as it should be after {0:?}: the others are full, too slow or out of reach ('shoal peers' shows them)"
    )]
    Late(Duration),
    #[error("too many paths wait for their copies; try again later")]
    Refused,
}

impl Mesh {
    /// Opens the port and begins to talk. What others want kept here comes out of the receiver; each [`Order`] is to be
    /// answered by [`Mesh::fetched`] or [`Mesh::fetch_failed`].
    pub async fn open(options: Options) -> Result<(Mesh, mpsc::Receiver<Order>)> {
        let Options { identity, store, bind, chunks, builds, contacts, copies, announced, describe } = options;
        let (incoming_tx, incoming) = mpsc::channel(INCOMING_MAX);
        let links = Links::open(LinksOptions { identity: identity.clone(), bind }, incoming_tx, chunks, builds)
            .await
            .with_context(|| {
            format!("cannot listen for other nodes on {bind} (UDP); choose another address with --mesh")
        })?;
        let records = Records::new(store.clone(), Arc::new(identity.node_key().clone()));
        let (commands, heard) = mpsc::channel(COMMANDS_MAX);
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let (roster, seen) = watch::channel(Arc::default());
        let mesh = Mesh(Arc::new(Shared {
            identity: identity.clone(),
            links: links.clone(),
            records,
            copies,
            commands,
            roster: seen,
            vault: OnceLock::new(),
        }));
        // Before it is listed what the store has, so that nothing falls between.
        let damage = Arc::new(Damage::new(store.clone(), mesh.0.commands.clone()));
        store.watch(Arc::new(StoreWatcher { mesh: mesh.clone(), damage: damage.clone() }));
        let listed = mesh.0.records.clone();
        let list = move || damage.begin().and_then(|()| listed.holdings());
        let held = tokio::task::spawn_blocking(list).await??;
        for (node, addresses) in &contacts {
            links.learn_addresses(*node, addresses);
        }
        let mut own = NodeRecord::new(&identity.certificate(), "node");
        own.version.incarnation = identity.begin_incarnation()?;
        own.addresses = if announced.is_empty() { links.addresses() } else { announced.clone() };
        own.protocols.sync = Versions { oldest: 1, newest: SYNC_VERSION };
        let seed = seed(&own);
        describe(&mut own);
        let parts = Parts {
            identity,
            links,
            records: mesh.0.records.clone(),
            own,
            contacts: contacts.into_iter().map(|(node, _)| node).collect(),
            announced,
            copies,
            held,
            seed,
            commands: mesh.0.commands.clone(),
            orders,
            roster,
        };
        tokio::spawn(Driver::new(parts)?.run(incoming, heard));
        Ok((mesh, ordered))
    }

    pub fn me(&self) -> NodeKey {
        self.0.records.author()
    }

    pub fn identity(&self) -> &Arc<Identity> {
        &self.0.identity
    }

    pub fn links(&self) -> &Links {
        &self.0.links
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.0.links.local_addr()
    }

    pub fn open_links(&self) -> Vec<PeerLink> {
        self.0.links.peers()
    }

    pub fn roster(&self) -> Arc<Roster> {
        self.0.roster.borrow().clone()
    }

    /// The members as they change from now on. Nothing changes any more where the node stops.
    pub fn rosters(&self) -> watch::Receiver<Arc<Roster>> {
        let mut rosters = self.0.roster.clone();
        // A copy has seen no more than the receiver that it is made of, which is never waited on.
        rosters.mark_unchanged();
        rosters
    }

    /// From now on the last copy of what `vault` has may be deleted.
    pub fn rely_on(&self, vault: Arc<dyn Vault>) {
        // The first stays: a node has one.
        let _ = self.0.vault.set(vault);
    }

    /// Nobody else lives, so that there is nobody to ask.
    pub fn is_alone(&self) -> bool {
        self.0.roster.borrow().is_alone()
    }

    /// Looks for paths at other nodes, all at once.
    pub async fn look_up(&self, keys: &[PathKey]) -> Vec<Located> {
        let mut answers = Vec::with_capacity(keys.len());
        for keys in keys.chunks(KEYS_MAX) {
            let (replies, told): (Vec<_>, Vec<_>) = keys.iter().map(|_| oneshot::channel()).unzip();
            answers.extend(told);
            // Where nobody takes it, nobody answers.
            let _ = self.0.commands.send(Command::LookUp { keys: keys.to_vec(), replies }).await;
        }
        let mut located = Vec::with_capacity(keys.len());
        for (answer, key) in answers.into_iter().zip(keys) {
            // Lookups have a bound of their own.
            located.push(match answer.await.ok() {
                Some(Outcome::Found(answer)) => {
                    Located::Held(Whereabouts { record: self.believed(key, &answer.record), holders: answer.holders })
                }
                Some(Outcome::Missing) => Located::Missing,
                Some(Outcome::Unreachable(silent)) => Located::Unknown(silent),
                None => Located::Unknown(Vec::new()),
            });
        }
        located
    }

    /// The record of this path, if a live member answers for it.
    pub fn believed(&self, key: &PathKey, sealed: &[u8]) -> Option<Arc<Sealed<PathRecord>>> {
        let record = Sealed::<PathRecord>::open(sealed).ok()?;
        (record.key() == *key && self.roster().is_live(&record.author)).then(|| Arc::new(record))
    }

    /// Holders that were found did not have the path: the next lookup asks again.
    pub async fn doubt(&self, key: PathKey) {
        self.tell(Command::Doubt(key)).await;
    }

    /// Waits until these paths, which are valid here, are on as many nodes as they should be.
    pub async fn keep(&self, holdings: Vec<Holding>) -> Result<(), KeepError> {
        self.keep_enclosed(holdings, HashMap::new()).await
    }

    /// What of these, which are valid here, is to go along with the requests to keep it: small ones, if they are few.
    /// Of many, copies are made together, which costs less. Reads the store.
    pub fn enclosed(&self, paths: &[&PathInfo]) -> HashMap<PathKey, Enclosed> {
        if self.0.copies < 2 || paths.len() > ENCLOSED_PATHS_MAX {
            return HashMap::new();
        }
        let enclose = |info: &&PathInfo| {
            // Without it the path is fetched, which says what is wrong.
            let enclosed = self.0.records.enclosed(info).ok().flatten()?;
            Some((path_key(info.path.hash_part())?, enclosed))
        };
        paths.iter().filter_map(enclose).collect()
    }

    /// As [`Mesh::keep`], with what [`Mesh::enclosed`] gave.
    pub async fn keep_enclosed(
        &self,
        holdings: Vec<Holding>,
        enclosed: HashMap<PathKey, Enclosed>,
    ) -> Result<(), KeepError> {
        let (reply, kept) = oneshot::channel();
        if self.0.commands.send(Command::Keep { holdings, enclosed, reply }).await.is_err() {
            return Err(KeepError::Refused);
        }
        match timeout(KEEP_PATIENCE, kept).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(KeepError::Refused),
            Err(_) => Err(KeepError::Late(KEEP_PATIENCE)),
        }
    }

    /// What an [`Order`] wanted is valid here.
    pub async fn fetched(&self, holding: Holding) {
        self.tell(Command::Fetched(holding)).await;
    }

    pub async fn fetch_failed(&self, key: PathKey) {
        self.tell(Command::FetchFailed(key)).await;
    }

    /// Who brings this path in from outside of the mesh, or has it already: this node, if it is to do it.
    pub async fn claim(&self, key: PathKey) -> NodeKey {
        let (reply, claimed) = oneshot::channel();
        self.tell(Command::Claim { key, reply }).await;
        match timeout(ANSWER_PATIENCE, claimed).await {
            Ok(Ok(by)) => by,
            _ => self.me(),
        }
    }

    /// Gives a claim back, before any that is asked for after this. Waits for nothing: where too much waits already it is
    /// given back later, by a task of `runtime`.
    pub fn unclaim(&self, key: PathKey, runtime: &Handle) {
        if let Err(TrySendError::Full(command)) = self.0.commands.try_send(Command::Unclaim(key)) {
            let own = self.clone();
            runtime.spawn(async move { own.tell(command).await });
        }
    }

    /// More nodes that may be there, and where.
    pub async fn meet(&self, contacts: Vec<(NodeKey, Vec<SocketAddr>)>) {
        self.tell(Command::Meet(contacts)).await;
    }

    /// Changes what this node says of itself; who it is and its version stay.
    pub async fn update(&self, change: impl FnOnce(&mut NodeRecord) + Send + 'static) {
        self.tell(Command::Update(Box::new(change))).await;
    }

    /// Takes back the certificate of a node.
    pub async fn revoke(&self, sealed: Vec<u8>) -> Result<()> {
        let (reply, revoked) = oneshot::channel();
        self.tell(Command::Revoke { sealed, reply }).await;
        Ok(revoked.await.context("this node is stopping")??)
    }

    /// Gets this node another certificate where its own is old. Whether it did; an error where no member that could give
    /// one did.
    pub async fn renew_if_old(&self) -> Result<bool> {
        let identity = &self.0.identity;
        if !identity.is_old(wall_s()) {
            return Ok(false);
        }
        let roster = self.roster();
        let name = roster.get(&self.me()).map(|own| own.record.name.clone()).unwrap_or_default();
        let may = |peer: &&Peer| peer.record.term.roles.contain(Roles::ADMIT);
        let admitting: Vec<NodeKey> = match identity.admits() {
            true => vec![self.me()],
            false => roster.live().filter(may).map(|peer| peer.record.node).collect(),
        };
        let mut why = anyhow::anyhow!("no live node of the mesh lets nodes in");
        for node in admitting {
            match self.0.links.renew(node, &name).await {
                Ok(certificate) => {
                    let change = move |own: &mut NodeRecord| {
                        (own.term, own.certified) = (certificate.term, certificate.signature);
                    };
                    self.update(change).await;
                    return Ok(true);
                }
                Err(error) => why = error.into(),
            }
        }
        Err(why)
    }

    /// What this node holds.
    pub async fn holdings(&self) -> Vec<Holding> {
        let (reply, told) = oneshot::channel();
        self.tell(Command::Holdings(reply)).await;
        told.await.unwrap_or_default()
    }

    /// Says goodbye. Nothing is handed over here.
    pub async fn leave(&self) {
        let (reply, left) = oneshot::channel();
        self.tell(Command::Leave(reply)).await;
        let _ = timeout(ANSWER_PATIENCE, left).await;
        self.0.links.close().await;
    }

    /// Stops talking; others take this node for dead after a while, if it does not come back.
    pub async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        self.tell(Command::Stop(reply)).await;
        let _ = timeout(ANSWER_PATIENCE, stopped).await;
        self.0.links.close().await;
    }

    async fn tell(&self, command: Command) {
        // It has ended where the node stops, or has left: nothing is decided any more.
        let _ = self.0.commands.send(command).await;
    }

    /// The same from a thread that may wait.
    fn tell_blocking(&self, command: Command) {
        let _ = self.0.commands.blocking_send(command);
    }
}

/// For choices that only have to differ between nodes and between their lives.
fn seed(own: &NodeRecord) -> u64 {
    let mut seed = [0; 8];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&own.node).update(&own.version.incarnation.to_le_bytes()).finalize_xof().fill(&mut seed);
    u64::from_le_bytes(seed)
}

/// Tells the mesh what the store has, and the store what must not go.
struct StoreWatcher {
    mesh: Mesh,
    damage: Arc<Damage>,
}

impl StoreWatcher {
    /// Those of `paths` whose keys come back.
    fn ask(
        &self,
        paths: &[StorePath],
        command: impl Fn(Vec<PathKey>, oneshot::Sender<Vec<PathKey>>) -> Command,
    ) -> Vec<StorePath> {
        let keyed: Vec<(PathKey, &StorePath)> =
            paths.iter().filter_map(|path| Some((path_key(path.hash_part())?, path))).collect();
        let mut allowed = Vec::new();
        for batch in keyed.chunks(KEYS_MAX) {
            let (reply, told) = oneshot::channel();
            let keys = batch.iter().map(|(key, _)| *key).collect();
            self.mesh.tell_blocking(command(keys, reply));
            let keys = told.blocking_recv().unwrap_or_default();
            allowed.extend(batch.iter().filter(|(key, _)| keys.contains(key)).map(|(_, path)| (*path).clone()));
        }
        allowed
    }
}

impl Watcher for StoreWatcher {
    fn committed(&self, paths: &[PathInfo]) {
        let holdings: Vec<Holding> = paths.iter().filter_map(holding).collect();
        if !holdings.is_empty() {
            self.mesh.tell_blocking(Command::Added(holdings));
        }
    }

    fn may_delete(&self, paths: &[StorePath]) -> Vec<StorePath> {
        if self.mesh.roster().has_no_others() {
            return paths.to_vec();
        }
        let mut allowed = self.ask(paths, |keys, reply| Command::MayDelete { keys, reply });
        let Some(vault) = self.mesh.0.vault.get() else { return allowed };
        let last: Vec<StorePath> = paths.iter().filter(|path| !allowed.contains(path)).cloned().collect();
        if !last.is_empty() {
            let kept = vault.has(&last);
            // Asked after it: somebody may have begun to wait for copies meanwhile.
            allowed.extend(self.ask(&kept, |keys, reply| Command::MayLeave { keys, reply }));
        }
        // In the order that they were asked in: each before what it refers to.
        paths.iter().filter(|path| allowed.contains(path)).cloned().collect()
    }

    fn deleted(&self, gone: &[StorePath], stayed: &[StorePath]) {
        let keys: Vec<PathKey> = gone.iter().filter_map(|path| path_key(path.hash_part())).collect();
        if !keys.is_empty() {
            self.mesh.tell_blocking(Command::Gone(keys));
        }
        // The owners gave their word for these and take them for gone.
        let again = stayed.iter().filter_map(|path| path_key(path.hash_part())).collect::<Vec<_>>();
        if !again.is_empty() && !self.mesh.roster().has_no_others() {
            self.mesh.tell_blocking(Command::Stayed(again));
        }
    }

    fn damage_changed(&self) {
        self.damage.changed();
    }
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
