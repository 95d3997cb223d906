//! This node in its mesh: what it starts with, what it says of itself, and where it looks for others.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use shoal_mesh::bootstrap::PeerAddress;
use shoal_mesh::builds::BuildServer;
use shoal_mesh::chunk_server::{ChunkServer, ServerLimits};
use shoal_mesh::command::Order;
use shoal_mesh::fetcher::Fetcher;
use shoal_mesh::handle::{Mesh, Options};
use shoal_store::Store;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::node_record::{NodeRecord, Versions};
use shoal_wire::mesh::ticket::Contact;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Receiver;

use crate::build::remote::{Host, VERSION as BUILDS_VERSION};
use crate::config::Config;
use crate::neighbours::Neighbours;
use place::Place;

pub mod departure;
pub mod load;
pub mod place;
pub mod seek;

/// How often it is looked whether the certificate is old, which it is at half of its term.
const RENEWAL_PERIOD: Duration = Duration::from_secs(3_600);
/// Longest name in a node record; that of the configuration may have one more.
const NAME_LEN_MAX: usize = shoal_wire::mesh::node_record::NAME_LEN_MAX;

/// Where what the node keeps of its mesh lies.
pub fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("mesh")
}

/// A node that talks to its mesh.
pub struct Opened {
    pub neighbours: Neighbours,
    pub mesh: Mesh,
    /// What others want kept here.
    pub orders: Receiver<Order>,
    /// Where others ask for builds.
    pub host: Host,
}

/// Begins to talk to other nodes, where this one is in a mesh.
pub async fn open(config: &Config, store: &Store, place: Place) -> Result<Option<Opened>> {
    let (Some(bind), Some(identity)) = (config.mesh, place.identity) else { return Ok(None) };
    let identity = Arc::new(identity);
    let limits = ServerLimits { upload_bytes_per_s: config.mesh_upload_rate };
    let server = Arc::new(ChunkServer::new(store.clone(), Arc::new(identity.node_key().clone()), limits));
    let mut contacts: Vec<(NodeKey, Vec<SocketAddr>)> = place.contacts.iter().map(contact).collect();
    for peer in &config.peer {
        let PeerAddress { node, address } = peer.parse()?;
        contacts.push((node, vec![address]));
    }
    let described = config.clone();
    let host = Host::default();
    let options = Options {
        identity,
        store: store.clone(),
        bind,
        chunks: server,
        builds: Arc::new(BuildServer::new(Arc::new(host.clone()))),
        contacts,
        copies: config.copies as usize,
        announced: config.mesh_address.clone(),
        describe: Box::new(move |own| describe(&described, own)),
    };
    let (mesh, orders) = Mesh::open(options).await?;
    let fetcher = Fetcher::new(store.clone(), Arc::new(mesh.links().clone()));
    let neighbours = Neighbours::new(mesh.clone(), fetcher, Handle::current());
    Ok(Some(Opened { neighbours, mesh, orders, host }))
}

/// Keeps this node's certificate good, for as long as it is polled.
pub async fn stay_certified(mesh: Mesh) {
    loop {
        match mesh.renew_if_old().await {
            Ok(true) => tracing::info!("this node's certificate was renewed"),
            Ok(false) => {}
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "this node's certificate is old, and no other can be had; it is tried again");
            }
        }
        tokio::time::sleep(RENEWAL_PERIOD).await;
    }
}

fn contact(contact: &Contact) -> (NodeKey, Vec<SocketAddr>) {
    (contact.node, contact.addresses.iter().copied().collect())
}

/// The most that one build can have.
fn memory_max_mib(config: &Config) -> u64 {
    let (all_mib, _) = load::memory_mib();
    config.build_memory_max.map_or(all_mib, |max| all_mib.min(max.div_ceil(1 << 20)))
}

/// What this node is and has.
fn describe(config: &Config, own: &mut NodeRecord) {
    own.name = config.name.chars().take(NAME_LEN_MAX).collect();
    own.protocols.builds = Versions { oldest: BUILDS_VERSION, newest: BUILDS_VERSION };
    if !config.no_build {
        own.systems = config.system.iter().cloned().collect();
        own.features = config.feature.iter().cloned().collect();
        own.capacity.slots = config.max_jobs;
    }
    own.capacity.cores = config.cores;
    own.capacity.memory_mib = memory_max_mib(config);
    own.capacity.store_mib = load::disk_mib(&config.data_dir).0;
}

/// The key of a mesh that is shared as a file.
pub fn read_secret(path: &Path) -> Result<shoal_wire::nix::signature::SecretKey> {
    crate::keys::read(path).with_context(|| {
        format!("cannot use the mesh's secret {}; 'shoal mesh create --secret-file' makes one", path.display())
    })
}
