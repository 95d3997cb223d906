//! Another node stands in for the one that sees to a client's request: it goes on with it should that one be lost.
//!
//! The request's node keeps a stream open to its stand-in for as long as the request lasts. When the stream breaks and
//! members say that the node is lost, the stand-in makes the request its own: builders that run are adopted through their
//! claims, what is built is found, and a client that comes back, to any node, joins what runs.
//!
//! Invariants:
//! - a request has one stand-in at a time, the next node of the ring that takes it, and short ones have none;
//! - a stand-in takes nothing over from a node that lives, and gives up after the time that the request said;
//! - correctness depends on none of this: who asks again, to any node, gets the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use shoal_grid::membership::member::Standing;
use shoal_grid::ring::Ring;
use shoal_mesh::builds::{Answer, Gone, ask};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame, Errand, Reason, WANTED_LEN_MAX, WANTED_MAX};
use shoal_wire::mesh::node_record::Presence;
use shoal_wire::nix::worker::ops::BuildMode;
use tokio::sync::oneshot;

use super::members::builds;
use super::{Grid, serve, translate};
use crate::build::keep_on::GRACE;
use crate::build::request::{BuildOptions, BuildRequest};
use crate::build::service::BuildService;

/// A request that has not ended by then gets a stand-in: one that ends sooner is asked for again as fast.
const AFTER: Duration = Duration::from_secs(1);
/// Between one node that does not stand in, or does not any more, and the next.
const PAUSE: Duration = Duration::from_secs(1);
/// Requests of this node that have a stand-in at once; peers bound what is open.
const STAND_INS_MAX: usize = 64;
/// How long after its stream broke members may take to say that a node is lost. One that lives has found another stand-in.
const LOSS_PATIENCE: Duration = Duration::from_secs(30);
/// How often they are asked.
const LOSS_POLL: Duration = Duration::from_millis(250);

/// Sees to requests whose nodes were lost.
pub trait SeeTo: Send + Sync + 'static {
    /// Returns when the request has ended, or was given up. `of` is what people call the lost node.
    fn see_to(&self, errand: &Errand, of: &str);
}

/// How a client wanted it done.
pub fn options(errand: &Errand) -> BuildOptions {
    BuildOptions {
        keep_going: errand.keep_going,
        substitute: errand.substitute,
        quorum: Some(errand.quorum.into()),
        is_detached: errand.grace_s.is_none(),
        ..translate::options(&errand.settings)
    }
}

/// A node stands in for this one for as long as this is there.
pub struct StandIn {
    service: Arc<BuildService>,
    // Dropped, it ends the task.
    _end: oneshot::Sender<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.service.stand_ins.fetch_sub(1, Ordering::AcqRel);
    }
}

impl BuildService {
    /// Has another node stand in for this one while the request lasts, where there is one.
    pub(in crate::build) fn with_stand_in(self: &Arc<Self>, request: &BuildRequest) -> Option<StandIn> {
        let grid = self.grid().filter(|grid| !grid.neighbours.is_alone())?.clone();
        let errand = self.errand(request)?;
        if self.stand_ins.fetch_add(1, Ordering::AcqRel) >= STAND_INS_MAX {
            self.stand_ins.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let (end, ended) = oneshot::channel();
        grid.runtime.clone().spawn(async move {
            tokio::select! {
                () = keep_one(&grid, errand) => {}
                _ = ended => {}
            }
        });
        Some(StandIn { service: self.clone(), _end: end })
    }

    /// `None` for what no other node can see to.
    fn errand(&self, request: &BuildRequest) -> Option<Errand> {
        let BuildRequest { wanted, mode, options } = request;
        if *mode != BuildMode::Normal || wanted.is_empty() || wanted.len() > WANTED_MAX {
            return None;
        }
        let wanted: Vec<String> = wanted.iter().map(|wanted| wanted.print(&self.dir)).collect();
        (wanted.iter().map(String::len).sum::<usize>() <= WANTED_LEN_MAX).then(|| Errand {
            wanted,
            keep_going: options.keep_going,
            substitute: options.substitute,
            quorum: u8::try_from(self.quorum(options)).unwrap_or(u8::MAX),
            settings: translate::settings(options),
            grace_s: (!options.is_detached).then_some(u32::try_from(GRACE.as_secs()).unwrap_or(u32::MAX)),
        })
    }
}

/// Asks one node after the other, and keeps the one that takes the errand. Never ends by itself.
async fn keep_one(grid: &Grid, errand: Errand) {
    tokio::time::sleep(AFTER).await;
    let key = key(&errand);
    let question = BuildAsk::StandIn(Box::new(errand));
    let mut asked = BTreeSet::new();
    loop {
        match next_in_line(grid, &key, &asked) {
            Some(node) => {
                asked.insert(node);
                let why = until_it_does_not(grid, node, &question).await;
                tracing::debug!(node = grid.neighbours.name(&node), why, "it does not stand in for a request");
            }
            // All were asked: from the beginning.
            None => asked.clear(),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Of equal requests each has the same.
fn key(errand: &Errand) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"shoal errand");
    errand.wanted.iter().for_each(|wanted| _ = hasher.update(wanted.as_bytes()).update(b"\0"));
    *hasher.finalize().as_bytes()
}

fn next_in_line(grid: &Grid, key: &[u8; 32], asked: &BTreeSet<NodeKey>) -> Option<NodeKey> {
    let roster = grid.neighbours.mesh()?.roster();
    let others = roster.peers.iter().filter(builds).filter(|peer| peer.record.presence == Presence::Active);
    let others = others.map(|peer| peer.record.node).filter(|node| *node != grid.me());
    let ring: Ring = others.filter(|node| !asked.contains(node) && !grid.neighbours.is_quiet(node)).collect();
    ring.successors(key).next()
}

/// Why it does not, from when on.
async fn until_it_does_not(grid: &Grid, node: NodeKey, question: &BuildAsk) -> String {
    let Some(mesh) = grid.neighbours.mesh() else { return "this node is in no mesh".into() };
    let mut standing = match ask(mesh.links(), node, question).await {
        Ok(standing) => standing,
        Err(error) => return error.to_string(),
    };
    loop {
        match standing.next().await {
            Ok(BuildFrame::Accepted | BuildFrame::Alive) => {}
            Ok(BuildFrame::Refused { text, .. }) => return text,
            Ok(_) => return "it answers what nobody asked".into(),
            Err(error) => return error.to_string(),
        }
    }
}

/// Stands in for `peer`, on a thread that may wait, and sees to its request if it is lost.
pub(super) fn stand_in(service: &Arc<BuildService>, grid: &Grid, peer: NodeKey, errand: &Errand, answer: &Answer) {
    let Some(see_to) = service.see_to() else {
        return serve::refuse(answer, Reason::Draining, "this node starts, or stops".into());
    };
    let life = incarnation(grid, &peer);
    let thread = thread::current();
    answer.watch(move || thread.unpark());
    if !answer.say(BuildFrame::Accepted) {
        return;
    }
    let gone = loop {
        match answer.gone() {
            Some(gone) => break gone,
            None => thread::park(),
        }
    };
    if gone == Gone::Lost && is_lost(grid, &peer, life) {
        let name = grid.neighbours.name(&peer);
        tracing::info!(node = name, "a node is lost; what its client wanted is seen to here");
        see_to.see_to(errand, &name);
    }
}

/// Which of its lives a node is in, as far as is known.
pub(super) fn incarnation(grid: &Grid, node: &NodeKey) -> Option<u64> {
    let roster = grid.neighbours.mesh()?.roster();
    roster.get(node).map(|peer| peer.record.version.incarnation)
}

/// Whether members come to say that a node is lost, or began a new life.
fn is_lost(grid: &Grid, node: &NodeKey, life: Option<u64>) -> bool {
    let until = Instant::now() + LOSS_PATIENCE;
    while Instant::now() < until {
        let Some(mesh) = grid.neighbours.mesh() else { return false };
        let roster = mesh.roster();
        let lives = roster.get(node).is_some_and(|peer| peer.standing == Standing::Alive);
        if !lives || incarnation(grid, node) != life {
            return true;
        }
        thread::sleep(LOSS_POLL);
    }
    false
}
