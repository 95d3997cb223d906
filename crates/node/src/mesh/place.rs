//! A node's place in a mesh at its start: the one that it had, the one that a ticket or a shared secret gives it, or a
//! mesh of its own.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use shoal_mesh::bootstrap::PeerAddress;
use shoal_mesh::identity::Identity;
use shoal_mesh::join::join;
use shoal_wire::mesh::ticket::{Contact, Ticket};

use super::{directory, read_secret};
use crate::config::Config;
use crate::{files, keys};

/// How long the nodes of one ticket are asked.
const JOIN_PATIENCE: Duration = Duration::from_secs(20);
/// In the directory of what the node keeps of its mesh: `KEY@ADDR`, one a line.
const CONTACTS: &str = "contacts";
/// Letters that are shown of what is no ticket and no file.
const SHOWN_MAX: usize = 40;
/// A ticket in a file is one line of some 2 KiB.
const TICKET_FILE_BYTES_MAX: u64 = 16 << 10;

#[derive(Default)]
pub struct Place {
    /// `None`: in no mesh.
    pub identity: Option<Identity>,
    /// Nodes that are there, as whoever let this one in said.
    pub contacts: Vec<Contact>,
}

pub fn wall_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Finds the node's place, or makes one.
pub async fn find(config: &Config) -> Result<Place> {
    if config.mesh.is_none() {
        return Ok(Place::default());
    }
    let dir = directory(&config.data_dir);
    let node_key = || keys::node_key(&config.data_dir);
    if let Some(secret) = &config.mesh_secret_file {
        let secret = read_secret(secret)?;
        if let Some(old) = Identity::open(&dir, node_key()?)?
            && old.mesh() != *secret.public().bytes()
            && knows_no_others(&old)
        {
            Identity::leave(&dir)?;
        }
        let identity = Identity::with_secret(&dir, node_key()?, secret, wall_s())?;
        return Ok(Place { identity: Some(identity), contacts: Vec::new() });
    }
    if let Some(identity) = Identity::open(&dir, node_key()?)?
        && !is_to_join(config, &identity)?
    {
        return Ok(Place { identity: Some(identity), contacts: contacts_of(config)? });
    }
    if config.join.is_empty() {
        let signing_keys = keys::signing_keys(config)?;
        let identity = Identity::create(&dir, node_key()?, &signing_keys, wall_s())?;
        return Ok(Place { identity: Some(identity), contacts: Vec::new() });
    }
    join_any(config).await
}

/// Whether it is of a mesh of one, as a node makes it that is told nothing else.
fn knows_no_others(identity: &Identity) -> bool {
    // That is at most its own record.
    identity.facts().len() <= 1
}

/// Whether the configuration has tickets, all of other meshes, and this node is alone in the one that it made at an
/// earlier start.
fn is_to_join(config: &Config, identity: &Identity) -> Result<bool> {
    if config.join.is_empty() || !knows_no_others(identity) {
        return Ok(false);
    }
    for text in &config.join {
        if read_ticket(text)?.grant()?.mesh == identity.mesh() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where tickets said that the mesh is. A node that has just joined knows nobody else, as does one that was away for long.
fn contacts_of(config: &Config) -> Result<Vec<Contact>> {
    let mut contacts = Vec::new();
    for text in &config.join {
        contacts.extend(read_ticket(text)?.contacts);
    }
    let file = directory(&config.data_dir).join(CONTACTS);
    // It only helps; who is there may be known in other ways.
    for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
        if let Ok(PeerAddress { node, address }) = line.parse() {
            contacts.push(Contact { node, addresses: BTreeSet::from([address]) });
        }
    }
    Ok(contacts)
}

fn keep_contacts(config: &Config, contacts: &[Contact]) -> Result<()> {
    let lines = contacts.iter().flat_map(|contact| {
        contact.addresses.iter().map(|address| format!("{}\n", PeerAddress { node: contact.node, address: *address }))
    });
    let file = directory(&config.data_dir).join(CONTACTS);
    let text: String = lines.collect();
    files::replace(&file, files::PUBLIC, text.as_bytes()).with_context(|| format!("cannot write {}", file.display()))
}

/// Joins by the first of the configured tickets that works.
async fn join_any(config: &Config) -> Result<Place> {
    let mut failed = Vec::new();
    for text in &config.join {
        match by_ticket(config, text).await {
            Ok(place) => return Ok(place),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    anyhow::bail!("cannot join a mesh: {}", failed.join("; "))
}

/// Asks the nodes of a ticket to be let in, and keeps what they give.
pub async fn by_ticket(config: &Config, text: &str) -> Result<Place> {
    let ticket = read_ticket(text)?;
    let node_key = keys::node_key(&config.data_dir)?;
    let bind = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let dir = directory(&config.data_dir);
    let old = Identity::open(&dir, keys::node_key(&config.data_dir)?)?;
    let mesh = ticket.grant()?.mesh;
    let is_other = old.as_ref().is_some_and(|old| old.mesh() != mesh);
    if is_other && !old.as_ref().is_none_or(knows_no_others) {
        anyhow::bail!("this node is in another mesh, with others; take it out first with 'shoal mesh leave'");
    }
    drop(old);
    let welcome = join(&node_key, bind, &ticket, &config.name, JOIN_PATIENCE).await?;
    if is_other {
        Identity::leave(&dir)?;
    }
    let identity = Identity::accept(&dir, node_key, &welcome, wall_s())?;
    let mut contacts = welcome.contacts;
    contacts.extend(ticket.contacts);
    keep_contacts(config, &contacts)?;
    Ok(Place { identity: Some(identity), contacts })
}

/// A ticket, or the one in the file of this name.
pub fn read_ticket(text: &str) -> Result<Ticket> {
    let text = text.trim();
    if text.starts_with("shoal1") {
        return Ok(text.parse()?);
    }
    // A ticket is a secret, and what is nearly one may be.
    let shown: String = text.chars().take(SHOWN_MAX).collect();
    let meta = std::fs::metadata(text).with_context(|| {
        format!("'{shown}' is neither a ticket nor a file with one; `shoal mesh invite` at a member prints one")
    })?;
    anyhow::ensure!(meta.len() <= TICKET_FILE_BYTES_MAX, "{text} is too long for a ticket");
    let ticket = std::fs::read_to_string(text).with_context(|| format!("cannot read the ticket in {text}"))?;
    ticket.trim().parse().with_context(|| format!("{text} holds no ticket"))
}
