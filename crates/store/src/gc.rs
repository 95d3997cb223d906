//! Garbage collection: mark from the roots, then sweep, beside everything else.
//!
//! The graph of paths is marked on a snapshot. What was found dead is deleted in small transactions
//! that ask again what may have changed since: leases ([`crate::leases`]), roots, referrers. A path's
//! chunks are counted down by the manifests that go; those that reach nothing, and were not wanted by
//! any ingest since the collection began ([`crate::pins`]), are swept, those that no path had before
//! the first path. Who reads meanwhile has half of the time ([`rests`]). A segment without live records
//! is deleted; one of which little is live is rewritten first ([`compact`]).

mod chunks;
mod compact;
mod graph;
mod paths;
mod rests;
mod segments;

use crate::error::{GcError, Result};
use crate::kept;
use crate::leases::Leases;
use crate::pins::Pins;
use crate::roots::forget_stale_links;
use crate::store::Store;
use chunks::ChunkCounts;
pub use compact::{Compacted, Compaction};
use graph::Graph;
use rests::Rests;
use shoal_wire::nix::store_path::StorePath;
use std::sync::PoisonError;

/// Paths deleted in one transaction: other writers wait for it, some milliseconds.
const PATHS_BATCH: usize = 64;

/// What to collect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GcAction {
    /// Delete nothing, list what roots reach.
    ReturnLive,
    /// Delete nothing, list what roots do not reach.
    ReturnDead,
    /// Delete what roots do not reach; with paths, only those of it and what refers to them.
    DeleteDead,
    /// Delete exactly these paths; [`GcError::Alive`] if one is reached by a root or referred to by
    /// a path that is not among them.
    DeleteSpecific,
}

#[derive(Debug, Clone)]
pub struct GcRequest {
    pub action: GcAction,
    pub paths: Vec<StorePath>,
    /// Stored bytes after which no further path is deleted; those used longest ago go first. With 0 none is, and only
    /// what no path has is given back.
    pub max_freed: u64,
    /// Whether a live path keeps the derivation that it names as its deriver.
    pub keep_derivations: bool,
    /// Segments are rewritten of which less than this is live, in percent; 0 rewrites none.
    pub compact_below: u64,
}

/// What is dead in a segment that stays is at most a quarter of it; what is copied to gain a byte is
/// at most three.
const COMPACT_BELOW_PERCENT: u64 = 75;

impl GcRequest {
    /// Without paths or limit, derivations kept: Nix's defaults.
    pub fn new(action: GcAction) -> Self {
        GcRequest {
            action,
            paths: Vec::new(),
            max_freed: u64::MAX,
            keep_derivations: true,
            compact_below: COMPACT_BELOW_PERCENT,
        }
    }
}

/// What was collected, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    pub paths: Vec<StorePath>,
    /// Stored bytes that nothing refers to any more.
    pub freed: u64,
    /// Bytes of segments that were deleted.
    pub deleted: u64,
    /// Bytes that were copied to other segments for that.
    pub copied: u64,
    /// Of paths that were named to be deleted, those that stayed: a watcher of the store kept them, since nobody else has them
    /// or they are open, or something began to use them.
    pub kept: Vec<StorePath>,
}

impl Store {
    /// Collects garbage. One collection runs at a time; a second waits.
    pub fn collect(&self, request: &GcRequest) -> Result<GcReport, GcError> {
        let _one = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        let _watch = Watch::begin(&self.pins, &self.leases);
        let graph = self.graph()?;
        let live = graph.live(self, request.keep_derivations)?;
        let doomed = match request.action {
            GcAction::ReturnLive => return Ok(listed(graph.paths_where(|path| live[path]))),
            GcAction::ReturnDead => return Ok(listed(graph.paths_where(|path| !live[path]))),
            GcAction::DeleteDead => graph.dead(&live, &request.paths),
            GcAction::DeleteSpecific => graph.deletable(&live, &request.paths, request.keep_derivations)?,
        };
        if request.action == GcAction::DeleteDead {
            forget_stale_links(self)?;
            kept::forget_ended(self)?;
        }
        Ok(self.sweep(request, graph, doomed)?)
    }

    /// What [`GcAction::DeleteDead`] would delete, and the stored bytes that it would free: exactly that if nothing
    /// changes in between.
    pub fn plan(&self, request: &GcRequest) -> Result<GcReport> {
        let _one = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        let graph = self.graph()?;
        let live = graph.live(self, request.keep_derivations)?;
        let mut users = graph.manifest_users();
        // Manifests that no path has go first.
        let mut counts = ChunkCounts::read(self, &mut Rests::new(&self.segments), |root| {
            users.contains_key(root) || !self.pins.is_free(root)
        })?;
        let mut report = GcReport { freed: chunks::unused(self, &counts)?, ..GcReport::default() };
        for batch in graph.oldest_first(&graph.dead(&live, &request.paths)).chunks(PATHS_BATCH) {
            if report.freed >= request.max_freed {
                break;
            }
            let mut gone = Vec::new();
            for &number in batch {
                report.paths.push(graph.path(number).clone());
                let root = graph.content_root(number);
                let left = users.get_mut(root).map(|count| {
                    *count = count.saturating_sub(1);
                    *count
                });
                // What a damaged manifest had is not known to be free.
                if left == Some(0) && self.pins.is_free(root) {
                    gone.extend(self.manifest_by_root(root).ok().flatten());
                }
            }
            report.freed += chunks::sweepable(self, &counts.release(&gone))?;
        }
        Ok(report)
    }

    fn graph(&self) -> Result<Graph> {
        match self.save_uses() {
            // They only order what is deleted, and a full disk is why it is.
            Err(error) if !error.is_full() => Err(error),
            _ => Graph::read(self),
        }
    }

    fn sweep(&self, request: &GcRequest, graph: Graph, doomed: Vec<usize>) -> Result<GcReport> {
        let mut users = graph.manifest_users();
        let mut rests = Rests::new(&self.segments);
        if request.action == GcAction::DeleteDead {
            paths::forget_manifests(self, &users)?;
        }
        let mut counts = ChunkCounts::read(self, &mut rests, |_| true)?;
        let mut report = GcReport::default();
        // Before any path: what no path has is given back first.
        if request.action == GcAction::DeleteDead {
            report.freed = chunks::sweep_unused(self, &counts, &mut rests)?;
        }
        let mut derivation_gone = false;
        for batch in graph.oldest_first(&doomed).chunks(PATHS_BATCH) {
            if report.freed >= request.max_freed {
                break;
            }
            let batch: Vec<StorePath> = batch.iter().map(|&path| graph.path(path).clone()).collect();
            let allowed = self.allowed_to_delete(batch.clone());
            let gone = paths::delete(self, &allowed, &mut users)?;
            if request.action == GcAction::DeleteSpecific {
                report.kept.extend(batch.into_iter().filter(|path| !gone.paths.contains(path)));
            }
            self.tell_deleted(&allowed, &gone.paths);
            rests.rest(0);
            let unused = counts.release(&gone.manifests);
            report.freed += chunks::sweep(self, &unused, &mut rests)?;
            derivation_gone |= gone.paths.iter().any(StorePath::is_derivation);
            report.paths.extend(gone.paths);
        }
        self.forget_unwanted_damage()?;
        if derivation_gone {
            paths::forget_derivers(self)?;
        }
        report.deleted = segments::delete_dead(self)?;
        let compacted = compact::compact(self, Compaction::LiveBelow(request.compact_below), &|| true)?;
        report.deleted += compacted.deleted;
        report.copied = compacted.copied;
        Ok(report)
    }
}

fn listed(paths: Vec<StorePath>) -> GcReport {
    GcReport { paths, ..GcReport::default() }
}

/// Makes ingests leave word of what they want while a collection runs.
struct Watch<'a> {
    pins: &'a Pins,
    leases: &'a Leases,
}

impl<'a> Watch<'a> {
    fn begin(pins: &'a Pins, leases: &'a Leases) -> Self {
        pins.begin_collection();
        Watch { pins, leases }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.pins.end_collection();
        self.leases.end_deletion();
    }
}
