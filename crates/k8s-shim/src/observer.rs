//! Its place in the mesh: it hears what all say, and says which nodes are to drain.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use shoal_mesh::chunk_server::{ChunkServer, ServerLimits};
use shoal_mesh::dial::{BoxFuture, Offence, ServeBuilds};
use shoal_mesh::handle::{Mesh, Options as MeshOptions};
use shoal_mesh::identity::Identity;
use shoal_mesh::join::join;
use shoal_mesh::roster::Roster;
use shoal_store::Store;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::certificate::Roles;
use shoal_wire::mesh::departure::DrainOrders;
use shoal_wire::mesh::node_record::NAME_LEN_MAX;
use shoal_wire::mesh::ticket::{Contact, Ticket};
use shoal_wire::nix::signature::SecretKey;
use tokio::sync::watch;

use crate::options::Options;

/// How long the nodes of the ticket are asked.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether the certificate is old.
const RENEWAL_PERIOD: Duration = Duration::from_secs(3_600);
/// A ticket in a file is one line of some 2 KiB, a key is less.
const FILE_BYTES_MAX: u64 = 16 << 10;
/// Pages of an index in which nothing is.
const INDEX_CACHE_BYTES: usize = 1 << 20;

#[derive(Clone)]
pub struct Observer {
    mesh: Mesh,
}

/// It runs nothing.
struct NoBuilds;

impl ServeBuilds for NoBuilds {
    fn serve(&self, _: NodeKey, connection: iroh::endpoint::Connection) -> BoxFuture<'static, Option<Offence>> {
        Box::pin(async move {
            connection.close(0u32.into(), b"this node runs no builds");
            None
        })
    }
}

impl Observer {
    /// Joins by the ticket, or comes back.
    pub async fn join(options: &Options) -> Result<Observer> {
        let dir = options.data_dir.join("mesh");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let name: String = options.identity().chars().take(NAME_LEN_MAX).collect();
        let ticket = options.join.as_deref().map(read_ticket).transpose()?;
        let (identity, contacts) = find_place(&dir, &options.data_dir.join("node-key"), ticket, &name).await?;
        let roles = identity.certificate().term.roles;
        ensure!(
            roles.contain(Roles::OPERATE),
            "the ticket does not allow to size the mesh; have one made with 'shoal mesh invite --reusable --role operate', and empty {}",
            options.data_dir.display()
        );
        ensure!(
            !roles.contain(Roles::STORE),
            "the ticket makes this a node that keeps paths, which it cannot; have one made with --role operate only"
        );
        let store_options = shoal_store::Options { index_cache_bytes: INDEX_CACHE_BYTES, ..Default::default() };
        let store =
            Store::open(&options.data_dir.join("store"), store_options).context("cannot open the empty store")?;
        let identity = Arc::new(identity);
        let key = Arc::new(identity.node_key().clone());
        let mesh_options = MeshOptions {
            chunks: Arc::new(ChunkServer::new(store.clone(), key, ServerLimits::default())),
            store,
            identity,
            bind: options.mesh,
            builds: Arc::new(NoBuilds),
            contacts: contacts
                .into_iter()
                .map(|contact| (contact.node, contact.addresses.into_iter().collect()))
                .collect(),
            announced: Vec::new(),
            copies: 1,
            describe: Box::new(move |own| own.name = name),
        };
        let (mesh, mut orders) = Mesh::open(mesh_options).await?;
        // Nobody orders copies of who keeps none; who does is told no.
        let refuser = mesh.clone();
        tokio::spawn(async move {
            while let Some(order) = orders.recv().await {
                refuser.fetch_failed(order.holding.key).await;
            }
        });
        tokio::spawn(stay_certified(mesh.clone()));
        Ok(Observer { mesh })
    }

    pub fn rosters(&self) -> watch::Receiver<Arc<Roster>> {
        self.mesh.rosters()
    }

    pub fn roster(&self) -> Arc<Roster> {
        self.mesh.roster()
    }

    /// Asks these nodes to drain, and no others.
    pub async fn order(&self, orders: DrainOrders) {
        let orders = (!orders.is_none()).then_some(orders);
        self.mesh.update(move |own| own.set_extension(orders.as_ref())).await;
    }

    pub async fn stop(&self) {
        self.mesh.stop().await;
    }
}

async fn stay_certified(mesh: Mesh) {
    loop {
        if let Err(error) = mesh.renew_if_old().await {
            let error = format!("{error:#}");
            tracing::warn!(error, "the observer's certificate is old, and no other can be had; it is tried again");
        }
        tokio::time::sleep(RENEWAL_PERIOD).await;
    }
}

async fn find_place(
    dir: &Path,
    key_file: &Path,
    ticket: Option<Ticket>,
    name: &str,
) -> Result<(Identity, Vec<Contact>)> {
    let key = || node_key(key_file);
    let mut contacts = ticket.as_ref().map(|ticket| ticket.contacts.clone()).unwrap_or_default();
    if let Some(identity) = Identity::open(dir, key()?)? {
        return Ok((identity, contacts));
    }
    let ticket = ticket.context("it is in no mesh yet; give a ticket with --join")?;
    let bind = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let welcome = join(&key()?, bind, &ticket, name, JOIN_PATIENCE).await?;
    contacts.extend(welcome.contacts.iter().cloned());
    Ok((Identity::accept(dir, key()?, &welcome, wall_s())?, contacts))
}

/// A ticket, or the one in the file of this name.
fn read_ticket(text: &str) -> Result<Ticket> {
    if text.trim().starts_with("shoal1") {
        return Ok(text.parse()?);
    }
    let file = read_small(Path::new(text)).context("--join is neither a ticket nor a file with one")?;
    file.parse().with_context(|| format!("{text} holds no ticket"))
}

fn read_small(path: &Path) -> Result<String> {
    let len = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    ensure!(len <= FILE_BYTES_MAX, "{} is too long: {len} bytes", path.display());
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The key that it is known by, made where there is none.
fn node_key(path: &Path) -> Result<SecretKey> {
    if path.exists() {
        return read_small(path)?.trim().parse().with_context(|| format!("{} holds no key", path.display()));
    }
    let key = SecretKey::generate("node")?;
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|mut file| {
        file.write_all(key.to_secret_text().as_bytes())?;
        file.sync_all()
    });
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(key)
}

fn wall_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
