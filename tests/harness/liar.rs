//! A member of a mesh, in this process and over the real protocol, that says of builds what a test wants.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_mesh::builds::{Answer, BuildServer, Execute};
use shoal_mesh::chunk_server::{ChunkServer, ServerLimits};
use shoal_mesh::handle::{Mesh, Options};
use shoal_mesh::identity::Identity;
use shoal_mesh::join::join;
use shoal_store::{Ingested, Store};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame, BuiltOutput, Offer, Outcome, Reason};
use shoal_wire::mesh::format::Format;
use shoal_wire::mesh::node_record::Versions;
use shoal_wire::mesh::ticket::Ticket;
use shoal_wire::nix::aterm;
use shoal_wire::nix::hash::sha256;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::SecretKey;
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::BuildStatus;
use tokio::runtime::Runtime;

use crate::command::wait_for;
use crate::mesh::{SEEN_PATIENCE, invite, is_live, peers};
use crate::node::Node;
use crate::place::Place;

const JOIN_PATIENCE: Duration = Duration::from_secs(20);
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// More than any request here has derivations, so that it is always asked.
const SLOTS: u32 = 64;
/// The version of builds that all nodes speak.
pub const BUILDS_VERSION: u8 = <BuildAsk as Format>::VERSION;

/// What it does with an offer, on a thread of its own.
pub type Lie = dyn Fn(&Offer, &Shelf, &Answer) + Send + Sync;

/// What the liar really has.
#[derive(Clone)]
pub struct Shelf {
    store: Store,
    chunks: ChunkServer,
    dir: StoreDir,
    node: NodeKey,
}

impl Shelf {
    /// The outputs of an offered derivation, by name.
    pub fn outputs(&self, offer: &Offer) -> Vec<(String, StorePath)> {
        let derivation = aterm::parse(&self.dir, &offer.derivation, &offer.name).expect("a derivation");
        let path = |name: &String| derivation.output_path(&self.dir, name).expect("a path that is known");
        derivation.outputs.keys().map(|name| (name.clone(), path(name))).collect()
    }

    /// The end of a build that went well, with these outputs, which it promises to have, of whose NARs it gives one hash.
    pub fn built(&self, outputs: Vec<(String, StorePath)>, hash: [u8; 32]) -> BuildFrame {
        let output = |(name, path)| (name, BuiltOutput { path, nar_size: 120, nar_hash: hash });
        BuildFrame::Ended(Box::new(Outcome {
            status: BuildStatus::Built as u8,
            error: Vec::new(),
            times_built: 1,
            is_non_deterministic: false,
            start_time: 0,
            stop_time: 0,
            cpu_user: None,
            cpu_system: None,
            outputs: outputs.into_iter().map(output).collect(),
            at: Some(self.node),
            memory_mib: 0,
            out_of_memory: false,
            given_up: false,
        }))
    }

    /// How often it was asked for records, manifests or chunks.
    pub fn questions(&self) -> u64 {
        self.chunks.served().requests
    }

    /// The hash of the NAR of a file of these bytes.
    pub fn nar_hash(bytes: &[u8]) -> [u8; 32] {
        sha256(&Shelf::nar(bytes))
    }

    fn nar(bytes: &[u8]) -> Vec<u8> {
        let mut writer = NarWriter::new(Vec::new());
        let written = writer.regular(b"", false, bytes.len() as u64).and_then(|()| writer.contents(bytes));
        written.and_then(|()| writer.finish()).expect("a NAR")
    }

    /// Makes a file of these bytes, which it has under the path when that is given to [`Shelf::has`].
    pub fn makes(&self, path: &StorePath, bytes: &[u8]) -> (PathInfo, Ingested) {
        let mut ingest = self.store.ingest();
        ingest.write_all(&Shelf::nar(bytes)).expect("room");
        let ingested = ingest.finish().expect("a NAR");
        (PathInfo::new(path.clone(), ingested.nar_hash, ingested.nar_size), ingested)
    }

    /// Has these from now on.
    pub fn has(&self, made: Vec<(PathInfo, Ingested)>) {
        self.store.commit(made).expect("room");
    }
}

struct Host {
    shelf: Shelf,
    lie: Box<Lie>,
    offers: Arc<AtomicUsize>,
}

/// Reaches the thread that a host is asked on.
#[derive(Clone)]
struct Door(Arc<Host>);

impl Execute for Door {
    fn asked(&self, _peer: NodeKey, ask: BuildAsk, answer: Answer) {
        let host = self.0.clone();
        thread::spawn(move || match ask {
            BuildAsk::Build(offer) => {
                host.offers.fetch_add(1, Ordering::AcqRel);
                (host.lie)(&offer, &host.shelf, &answer);
            }
            _ => {
                let refused = BuildFrame::Refused { reason: Reason::Unknown, text: "no".into(), retry_after_ms: 500 };
                answer.say(refused);
            }
        });
    }
}

/// It leaves the mesh when this is dropped.
pub struct Liar {
    mesh: Mesh,
    runtime: Option<Runtime>,
    offers: Arc<AtomicUsize>,
    name: String,
    _place: Place,
}

impl Liar {
    /// Joins `entry`'s mesh under a name, and answers offers of builds by `lie`.
    pub fn join(entry: &Node, name: &str, lie: impl Fn(&Offer, &Shelf, &Answer) + Send + Sync + 'static) -> Liar {
        Liar::join_with(entry, name, BUILDS_VERSION, lie)
    }

    /// The same of one that speaks of builds in this version alone.
    pub fn join_with(
        entry: &Node,
        name: &str,
        version: u8,
        lie: impl Fn(&Offer, &Shelf, &Answer) + Send + Sync + 'static,
    ) -> Liar {
        let place = Place::new("l");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("runtime: {error}"));
        let offers = Arc::new(AtomicUsize::new(0));
        let store = Store::open(&place.join("store"), shoal_store::Options::default()).expect("a store");
        let key = SecretKey::generate(name).expect("a key");
        let copy = Arc::new(SecretKey::from_seed(name, *key.seed()).expect("a key"));
        let chunks = ChunkServer::new(store.clone(), copy, ServerLimits { upload_bytes_per_s: None });
        let shelf = Shelf { store, chunks, dir: StoreDir::default(), node: *key.public().bytes() };
        let host = Door(Arc::new(Host { shelf, lie: Box::new(lie), offers: offers.clone() }));
        let ticket: Ticket = invite(entry, "").parse().expect("a ticket");
        let mesh = runtime.block_on(open(&place, host, key, &ticket, name, version));
        let liar = Liar { mesh, runtime: Some(runtime), offers, name: name.into(), _place: place };
        liar.wait_until(entry, true);
        liar
    }

    /// Builds that it was asked for.
    pub fn offers(&self) -> usize {
        self.offers.load(Ordering::Acquire)
    }

    /// Waits until a node takes it for a live member, or for none.
    fn wait_until(&self, node: &Node, is_there: bool) {
        wait_for("what a node thinks of a liar", SEEN_PATIENCE, || {
            (peers(node).get(&self.name).is_some_and(|state| is_live(state)) == is_there).then_some(())
        });
    }

    /// Leaves, and waits until `node` has heard that.
    pub fn leave(mut self, node: &Node) {
        if let Some(runtime) = &self.runtime {
            runtime.block_on(self.mesh.leave());
        }
        self.wait_until(node, false);
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.block_on(self.mesh.stop());
            runtime.shutdown_timeout(STOP_PATIENCE);
        }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn open(place: &Place, host: Door, key: SecretKey, ticket: &Ticket, name: &str, version: u8) -> Mesh {
    let bind = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let welcome = join(&key, bind, ticket, name, JOIN_PATIENCE).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    let wall_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let identity = Identity::accept(&place.join("mesh"), key, &welcome, wall_s).expect("an identity");
    let contacts = welcome.contacts.iter().chain(&ticket.contacts);
    let own_name = name.to_owned();
    let options = Options {
        identity: Arc::new(identity),
        store: host.0.shelf.store.clone(),
        bind,
        chunks: Arc::new(host.0.shelf.chunks.clone()),
        builds: Arc::new(BuildServer::new(Arc::new(host))),
        contacts: contacts.map(|contact| (contact.node, contact.addresses.iter().copied().collect())).collect(),
        announced: Vec::new(),
        copies: 1,
        describe: Box::new(move |own| {
            own.name = own_name;
            own.systems.insert("x86_64-linux".into());
            own.capacity.slots = SLOTS;
            own.protocols.builds = Versions { oldest: version, newest: version };
        }),
    };
    let (mesh, mut orders) = Mesh::open(options).await.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    // It keeps no copies for others.
    let refusing = mesh.clone();
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            refusing.fetch_failed(order.holding.key).await;
        }
    });
    mesh
}
