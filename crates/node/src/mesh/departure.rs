//! Draining because who operates the mesh asks for it, and telling what is left here while this node drains.
//!
//! Invariants:
//! - an order counts while it stands in the record of a live member that may give it. Where it does not, the node takes
//!   builds and copies again: at once if some such member lives, else after [`ORDER_GRACE`], so that an operator that dies
//!   leaves no node idle;
//! - nothing is said to be left only while everything that is here was acknowledged by others that stay, which is asked
//!   again for as long as builds may add to it.

use std::sync::Arc;
use std::time::Duration;

use shoal_mesh::handle::Mesh;
use shoal_mesh::roster::Roster;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::Holding;
use shoal_wire::mesh::certificate::Roles;
use shoal_wire::mesh::departure::{DrainOrders, Remaining};
use shoal_wire::mesh::node_record::Presence;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::build::service::BuildService;

/// How long an order holds when nobody lives that may give one: an operator that starts again has to find its way.
const ORDER_GRACE: Duration = Duration::from_secs(30);
/// How often it is looked at what is left. Each look is said to all.
const PERIOD: Duration = Duration::from_secs(2);
/// Paths handed over at once.
const HANDED_AT_ONCE: usize = 1024;

/// What live members that may say so want of this node; `None` where there are none.
pub fn is_ordered(roster: &Roster, me: &NodeKey) -> Option<bool> {
    let name = &roster.get(me)?.record.name;
    let operators = roster.live().filter(|peer| peer.record.term.roles.contain(Roles::OPERATE));
    operators.map(|peer| peer.record.extension::<DrainOrders>().is_some_and(|orders| orders.ask(name))).max()
}

/// Obeys, and tells what is left, for as long as it is polled.
pub async fn obey(mesh: Mesh, builds: Arc<BuildService>) {
    let mut rosters = mesh.rosters();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told_at = Instant::now();
    let mut handover = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = rosters.changed() => if changed.is_err() { return },
        }
        let ordered = is_ordered(&mesh.roster(), &mesh.me());
        if ordered.is_some() {
            told_at = Instant::now();
        }
        if ordered == Some(true) {
            if builds.drain_as_ordered() {
                tracing::info!("the mesh's operator asks this node to drain");
                mesh.update(|own| own.presence = Presence::Draining).await;
            }
        } else if (ordered == Some(false) || told_at.elapsed() >= ORDER_GRACE) && builds.resume_as_ordered() {
            tracing::info!("nobody asks this node to drain any more: it takes builds again");
            mesh.update(|own| own.presence = Presence::Active).await;
        }
        let drains = mesh.roster().get(&mesh.me()).is_some_and(|own| own.record.presence == Presence::Draining);
        match drains {
            true => {
                let handover = handover.get_or_insert_with(|| Handover::begin(mesh.clone(), builds.clone()));
                let left = handover.left();
                mesh.update(move |own| own.set_extension(Some(&left))).await;
            }
            false if handover.take().is_some() => {
                mesh.update(|own| own.set_extension::<Remaining>(None)).await;
            }
            false => {}
        }
    }
}

/// Gives what is here to others, until it is dropped.
struct Handover {
    left: watch::Receiver<Remaining>,
    task: tokio::task::JoinHandle<()>,
}

impl Handover {
    fn begin(mesh: Mesh, builds: Arc<BuildService>) -> Self {
        // Until the first look everything is left.
        let (tell, left) = watch::channel(Remaining { builds: u32::MAX, paths: u64::MAX });
        Handover { left, task: tokio::spawn(hand_over(mesh, builds, tell)) }
    }

    fn left(&self) -> Remaining {
        *self.left.borrow()
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn hand_over(mesh: Mesh, builds: Arc<BuildService>, tell: watch::Sender<Remaining>) {
    // Who was to keep what when all of it was acknowledged.
    let mut kept: Option<(Vec<NodeKey>, usize)> = None;
    loop {
        // Before the paths: what the last build adds is among them.
        let open = builds.open_builds();
        let holdings = mesh.holdings().await;
        let now = (mesh.roster().keepers().map(|peer| peer.record.node).collect::<Vec<_>>(), holdings.len());
        if kept.as_ref() != Some(&now) && !now.0.is_empty() {
            kept = keep_all(&mesh, &holdings, open, &tell).await.then_some(now);
        }
        let is_kept = holdings.is_empty() || kept.is_some();
        let paths = if is_kept { 0 } else { holdings.len() as u64 };
        tell.send_replace(Remaining { builds: open, paths });
        tokio::time::sleep(PERIOD).await;
    }
}

/// Whether others acknowledged all of these. Tells how many are left, which is never none before the end.
async fn keep_all(mesh: &Mesh, holdings: &[Holding], builds: u32, tell: &watch::Sender<Remaining>) -> bool {
    for (nth, batch) in holdings.chunks(HANDED_AT_ONCE).enumerate() {
        let paths = (holdings.len() - nth * HANDED_AT_ONCE) as u64;
        tell.send_replace(Remaining { builds, paths });
        if let Err(error) = mesh.keep(batch.to_vec()).await {
            tracing::warn!(%error, paths, "cannot hand over what is here; it is tried again");
            return false;
        }
    }
    true
}
