//! Builds across nodes.
//!
//! As a coordinator this node has its clients' derivations built where the schedule says ([`conduct`]); as an executor it
//! builds what others offer ([`serve`], [`guests`]). Invariants:
//! - a derivation is claimed in the mesh before it is built, and who hears that another node has the claim follows that
//!   node's build; where nobody answers for claims it is built all the same;
//! - whatever happens to an executor says nothing about the derivation: only a builder's own failure fails a job;
//! - a build that nobody wants any more is stopped, wherever it runs; one whose coordinator is lost goes on for a while, and
//!   another node sees to the request that it was for ([`stand_in`]).

use std::sync::{Arc, OnceLock, Weak};

use shoal_mesh::builds::{Answer, Execute};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame, Reason};
use tokio::runtime::Handle;

use super::service::BuildService;
use crate::neighbours::Neighbours;
use crate::upstream::Upstreams;

mod ballot;
pub(super) mod bring;
mod conduct;
pub(super) mod guests;
mod hearsay;
#[cfg(test)]
mod lab;
mod members;
mod offer;
mod proof;
pub(super) mod seconds;
mod serve;
pub mod stand_in;
mod translate;

pub(super) use bring::{Brought, Coming};
pub(super) use conduct::conduct;
pub use hearsay::compare_notes;
pub use members::{VERSION, keep_in_step};

/// When a node that starts may be asked again.
const START_RETRY_MS: u32 = 500;

/// What builds across nodes need beyond this node. Cheap to clone.
#[derive(Clone)]
pub struct Grid {
    pub neighbours: Neighbours,
    pub upstreams: Upstreams,
    /// The one that the mesh runs on.
    pub runtime: Handle,
}

impl Grid {
    fn me(&self) -> NodeKey {
        self.neighbours.mesh().map(shoal_mesh::handle::Mesh::me).unwrap_or_default()
    }
}

/// What other nodes ask of this one reaches its builds through this: links are open before there are builds.
#[derive(Clone, Default)]
pub struct Host(Arc<OnceLock<Weak<BuildService>>>);

impl Host {
    /// From now on `builds` answers.
    pub fn set(&self, builds: &Arc<BuildService>) {
        // Of two, which nobody makes, the first counts.
        let _ = self.0.set(Arc::downgrade(builds));
    }
}

impl Execute for Host {
    fn asked(&self, peer: NodeKey, ask: BuildAsk, answer: Answer) {
        if let Some(builds) = self.0.get().and_then(Weak::upgrade) {
            return serve::asked(builds, peer, ask, answer);
        }
        let text = "this node starts, or stops".to_owned();
        // Nobody hears it who has gone.
        answer.say_at_once(BuildFrame::Refused { reason: Reason::Draining, text, retry_after_ms: START_RETRY_MS });
    }
}
