//! Commands about the mesh: who is in it, who may come, and how this node comes and goes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use shoal_mesh::handle::Mesh;
use shoal_mesh::identity::{Identity, Invitation};
use shoal_mesh::links::PeerLink;
use shoal_mesh::roster::{Peer, Roster};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::certificate::Roles;
use shoal_wire::mesh::demand::{Amount, Demand};
use shoal_wire::mesh::departure::Remaining;
use shoal_wire::mesh::node_record::Presence;
use shoal_wire::mesh::ticket::{CONTACTS_MAX, Contact};
use shoal_wire::nix::base64::encode_hex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::Request;
use super::server::OnItem;
use crate::build::service::BuildService;
use crate::config::Config;
use crate::mesh::place::{self, wall_s};
use crate::neighbours::Neighbours;

/// Paths handed over at once, between which it is told how far it is.
const HANDED_AT_ONCE: usize = 1024;
/// How long it may take until this node itself sees that it drains.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

pub struct MeshControl {
    config: Config,
    neighbours: Neighbours,
    builds: Arc<BuildService>,
    runtime: Handle,
    /// Has the node start again.
    restart: Arc<Notify>,
}

impl MeshControl {
    pub fn new(
        config: &Config,
        neighbours: Neighbours,
        builds: Arc<BuildService>,
        runtime: Handle,
        restart: Arc<Notify>,
    ) -> Self {
        MeshControl { config: config.clone(), neighbours, builds, runtime, restart }
    }

    fn mesh(&self) -> Result<&Mesh> {
        self.neighbours.mesh().context("this node is in no mesh: it runs with mesh = none")
    }

    pub(super) fn answer(&self, request: &Request, on_item: OnItem<'_>) -> Result<()> {
        match request {
            Request::Peers => self.peers(on_item),
            Request::MeshInvite { reusable, roles, ttl_seconds, membership_seconds } => {
                on_item(self.invite(*reusable, roles, *ttl_seconds, *membership_seconds)?)
            }
            Request::MeshJoin { ticket } => self.join(ticket, on_item),
            Request::MeshLeave => self.leave(on_item),
            Request::MeshRevoke { node } => on_item(self.revoke(node)?),
            Request::Drain => self.drain(on_item),
            _ => bail!("not a command of the mesh"),
        }
    }

    /// For `shoal status`.
    pub fn summary(&self) -> Value {
        let Some(mesh) = self.neighbours.mesh() else { return Value::Null };
        let roster = mesh.roster();
        json!({
            "mesh_id": encode_hex(&mesh.identity().mesh()),
            "members": roster.peers.len(),
            "live": roster.live().count(),
            "admits": mesh.identity().admits(),
            "copies": self.config.copies,
        })
    }

    fn peers(&self, on_item: OnItem<'_>) -> Result<()> {
        let mesh = self.mesh()?;
        let links = mesh.open_links();
        for peer in &mesh.roster().peers {
            let link = links.iter().find(|link| link.node == peer.record.node);
            on_item(peer_item(peer, link, mesh.me()))?;
        }
        Ok(())
    }

    fn invite(&self, reusable: bool, roles: &[String], ttl_s: u64, membership_s: u64) -> Result<Value> {
        let mesh = self.mesh()?;
        let roster = mesh.roster();
        // Those of the configuration, where there are any.
        let announced = roster.get(&mesh.me()).map(|own| own.record.addresses.clone()).unwrap_or_default();
        let addresses = if announced.is_empty() { mesh.links().addresses() } else { announced };
        let own = Contact { node: mesh.me(), addresses: addresses.into_iter().collect() };
        // Others that let nodes in, in case that this one is down; a single-use ticket is good here only.
        let admits = |peer: &&Peer| peer.record.term.roles.contain(Roles::ADMIT) && peer.record.node != mesh.me();
        let others = roster
            .live()
            .filter(admits)
            .map(|peer| Contact { node: peer.record.node, addresses: peer.record.addresses.iter().copied().collect() });
        let contacts = std::iter::once(own).chain(others).take(if reusable { CONTACTS_MAX } else { 1 }).collect();
        let invitation = Invitation { reusable, roles: parse_roles(roles)?, ttl_s, membership_s, contacts };
        Ok(json!({ "ticket": mesh.identity().invite(invitation, wall_s())?.to_string() }))
    }

    fn join(&self, ticket: &str, on_item: OnItem<'_>) -> Result<()> {
        let mesh = self.mesh()?;
        if !mesh.roster().has_no_others() {
            bail!("this node is in a mesh with others; take it out first with 'shoal mesh leave'");
        }
        let place = self.runtime.block_on(place::by_ticket(&self.config, ticket))?;
        let joined = place.identity.as_ref().map(|identity| encode_hex(&identity.mesh()));
        on_item(json!({ "mesh_id": joined, "restarts": true }))?;
        self.restart.notify_one();
        Ok(())
    }

    fn leave(&self, on_item: OnItem<'_>) -> Result<()> {
        let mesh = self.mesh()?;
        if self.config.mesh_secret_file.is_some() || !self.config.join.is_empty() {
            bail!("the configuration has this node join a mesh; take 'join' and 'mesh-secret-file' out of it first");
        }
        self.drain(on_item)?;
        self.runtime.block_on(mesh.leave());
        Identity::leave(&crate::mesh::directory(&self.config.data_dir))?;
        on_item(json!({ "left": true, "restarts": true }))?;
        self.restart.notify_one();
        Ok(())
    }

    fn revoke(&self, node: &str) -> Result<Value> {
        let mesh = self.mesh()?;
        let key = self.find(node)?;
        let sealed = mesh.identity().revoke(key, wall_s())?;
        self.runtime.block_on(mesh.revoke(sealed.bytes().to_vec()))?;
        Ok(json!({ "revoked": encode_hex(&key) }))
    }

    /// A node by its name, or by the beginning of its key.
    fn find(&self, text: &str) -> Result<NodeKey> {
        let roster = self.mesh()?.roster();
        let fits = |peer: &&Peer| peer.record.name == text || encode_hex(&peer.record.node).starts_with(text);
        let found: Vec<&Peer> = roster.peers.iter().filter(fits).collect();
        match found[..] {
            [one] => Ok(one.record.node),
            [] => bail!("no node is called '{text}', and no node's key begins with it; 'shoal peers' lists them"),
            _ => bail!("'{text}' is more than one node; give more of its key, which 'shoal peers --json' shows"),
        }
    }

    /// Takes no new builds and no copies any more, and has others copy what too few of them have.
    fn drain(&self, on_item: OnItem<'_>) -> Result<()> {
        let mesh = self.mesh()?;
        self.builds.drain(Duration::ZERO);
        let me = mesh.me();
        let mut rosters = mesh.rosters();
        let waited = self.runtime.block_on(async {
            mesh.update(|own| own.presence = Presence::Draining).await;
            let drains =
                |roster: &Arc<Roster>| roster.get(&me).is_some_and(|own| own.record.presence == Presence::Draining);
            matches!(tokio::time::timeout(DRAIN_PATIENCE, rosters.wait_for(drains)).await, Ok(Ok(_)))
        });
        if !waited {
            bail!("this node does not come to say that it drains; try again");
        }
        let roster = mesh.roster();
        if roster.storers() == 0 {
            return match roster.live().count() > 1 {
                true => bail!("no other node keeps paths, so that there is nobody to hand over to"),
                false => on_item(json!({ "handed_over": 0, "of": 0 })),
            };
        }
        let holdings = self.runtime.block_on(mesh.holdings());
        let all = holdings.len();
        for (nth, batch) in holdings.chunks(HANDED_AT_ONCE).enumerate() {
            on_item(json!({ "handed_over": nth * HANDED_AT_ONCE, "of": all }))?;
            self.runtime.block_on(mesh.keep(batch.to_vec()))?;
        }
        on_item(json!({ "handed_over": all, "of": all }))
    }
}

fn parse_roles(names: &[String]) -> Result<Roles> {
    let mut roles = Roles::default();
    for name in names {
        roles = roles.with(match name.as_str() {
            "store" => Roles::STORE,
            "build" => Roles::BUILD,
            "admit" => Roles::ADMIT,
            "operate" => Roles::OPERATE,
            other => bail!("'{other}' is no role of a node: store, build, admit or operate"),
        });
    }
    Ok(roles)
}

fn role_names(roles: Roles) -> Vec<&'static str> {
    let all = [(Roles::STORE, "store"), (Roles::BUILD, "build"), (Roles::ADMIT, "admit"), (Roles::OPERATE, "operate")];
    all.into_iter().filter(|(role, _)| roles.contain(*role)).map(|(_, name)| name).collect()
}

/// What waits for slots, by what it asks of a machine. What is not told apart has no system.
pub(super) fn demand_item(demand: Demand) -> Value {
    let item = |system: Option<&str>, features: Vec<&String>, amount: Amount| {
        json!({
            "system": system,
            "features": features,
            "ready": { "jobs": amount.ready.jobs, "slot_seconds": amount.ready.slot_s },
            "coming": { "jobs": amount.coming.jobs, "slot_seconds": amount.coming.slot_s },
        })
    };
    let rest = (!demand.rest.is_none()).then(|| item(None, Vec::new(), demand.rest));
    let kinds = demand.kinds.iter().map(|kind| item(Some(&kind.system), kind.features.iter().collect(), kind.amount));
    kinds.chain(rest).collect()
}

fn peer_item(peer: &Peer, link: Option<&PeerLink>, me: NodeKey) -> Value {
    let record = &peer.record;
    json!({
        "name": record.name,
        "node_id": encode_hex(&record.node),
        "self": record.node == me,
        "state": format!("{:?}", peer.standing).to_lowercase(),
        "presence": format!("{:?}", record.presence).to_lowercase(),
        "roles": role_names(record.term.roles),
        "addresses": record.addresses,
        "systems": record.systems,
        "features": record.features,
        "slots": record.capacity.slots,
        "running": record.load.running,
        "queued": record.load.queued,
        "demand": demand_item(record.extension::<Demand>().unwrap_or_default()),
        "draining_left": record
            .extension::<Remaining>()
            .map(|left| json!({ "builds": left.builds, "paths": left.paths })),
        "free_memory_mib": record.load.free_memory_mib,
        "free_store_mib": record.load.free_store_mib,
        "certificate_expires": record.term.expires_s,
        "link": link.map(|link| json!({
            "address": link.address,
            "rtt_ms": link.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
            "sent_bytes": link.sent_bytes,
            "received_bytes": link.received_bytes,
        })),
    })
}
