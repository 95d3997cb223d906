//! Looks for nodes of the mesh behind names, as the ones that a headless service has: each address is asked over HTTP who
//! is there. What is answered is only a hint; who does not prove by its key to be that node is not talked to.

use std::io::Read;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_mesh::bootstrap::{Nearby, Sighting};
use shoal_mesh::handle::Mesh;
use shoal_wire::mesh::NodeKey;
use shoal_wire::nix::base64::{decode_hex_into, encode_hex};

use tokio::sync::mpsc;

use crate::upstream::{Authorities, Patience, agent};

/// From one round to the next while nobody is found, and when somebody was: nodes come up within a minute of each other,
/// and find all others by the first one.
const PERIOD_ALONE: Duration = Duration::from_secs(2);
const PERIOD: Duration = Duration::from_secs(60);
/// Addresses of one name that are asked in a round; one that answers is enough.
const ADDRESSES_MAX: usize = 16;
/// Nodes of the local network that were seen and not met yet.
const SIGHTINGS_MAX: usize = 64;
/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 4096;
/// Where a node's binary cache is unless the name says otherwise.
const HTTP_PORT: u16 = 8080;

/// What a node tells anybody of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Node key, hexadecimal.
    pub node_id: String,
    /// Key of its mesh, hexadecimal.
    pub mesh_id: String,
    pub mesh_port: u16,
}

impl Card {
    pub fn of(mesh: &Mesh) -> Card {
        Card {
            node_id: encode_hex(&mesh.me()),
            mesh_id: encode_hex(&mesh.identity().mesh()),
            mesh_port: mesh.local_addr().port(),
        }
    }
}

/// Looks for as long as it is polled.
pub async fn seek(mesh: Mesh, names: Vec<String>, own_http_port: Option<u16>) {
    if names.is_empty() {
        return;
    }
    loop {
        let (names, mesh_id, me) = (names.clone(), encode_hex(&mesh.identity().mesh()), mesh.me());
        let port = own_http_port.unwrap_or(HTTP_PORT);
        let found = tokio::task::spawn_blocking(move || {
            names.iter().flat_map(|name| ask_all(name, port, &mesh_id)).filter(|(node, _)| *node != me).collect()
        });
        let Ok(found) = found.await else { return };
        mesh.meet(found).await;
        tokio::time::sleep(if mesh.is_alone() { PERIOD_ALONE } else { PERIOD }).await;
    }
}

/// Tells the local network of this node, and meets those of its mesh that are there, for as long as it is polled.
pub async fn nearby(mesh: Mesh) {
    let (found, mut sightings) = mpsc::channel(SIGHTINGS_MAX);
    let addresses = mesh.links().addresses();
    let nearby = match Nearby::start(mesh.identity().mesh(), mesh.me(), &addresses, found) {
        Ok(nearby) => nearby,
        Err(error) => return tracing::warn!(%error, "cannot look for nodes on the local network"),
    };
    while let Some(Sighting { node, addresses }) = sightings.recv().await {
        mesh.meet(vec![(node, addresses)]).await;
    }
    drop(nearby);
}

/// Members of the mesh `mesh_id` that answer behind `name`.
fn ask_all(name: &str, port: u16, mesh_id: &str) -> Vec<(NodeKey, Vec<SocketAddr>)> {
    let has_port = name.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let addresses = if has_port { name.to_socket_addrs() } else { (name, port).to_socket_addrs() };
    let addresses = match addresses {
        Ok(addresses) => addresses,
        Err(error) => {
            tracing::debug!(name, %error, "a name of nodes cannot be resolved");
            return Vec::new();
        }
    };
    addresses.take(ADDRESSES_MAX).filter_map(|address| ask(address, mesh_id)).collect()
}

fn ask(address: SocketAddr, mesh_id: &str) -> Option<(NodeKey, Vec<SocketAddr>)> {
    let agent = agent(&Authorities::default(), Patience::DEFAULT);
    let mut answer = agent.get(format!("http://{address}/api/v1/node")).call().ok()?;
    let mut text = Vec::new();
    answer.body_mut().as_reader().take(ANSWER_BYTES_MAX).read_to_end(&mut text).ok()?;
    let card: Card = serde_json::from_slice(&text).ok()?;
    if card.mesh_id != mesh_id {
        tracing::debug!(%address, "a node of another mesh answers");
        return None;
    }
    let mut node = NodeKey::default();
    decode_hex_into(card.node_id.as_bytes(), &mut node).ok()?;
    Some((node, vec![SocketAddr::new(address.ip(), card.mesh_port)]))
}
