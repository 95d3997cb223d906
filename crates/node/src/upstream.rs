//! Other nodes and binary caches behind this one: what it does not have, they may.
//!
//! Everything here blocks, within bounds: a question has a time budget, a download must make progress. A cache that is
//! down, lies or stalls makes a path missing, never an error. What comes is believed if it proves itself or a trusted
//! key signed it, and goes into the store as uploads do: nothing is visible before all of it is verified and all it
//! refers to is valid.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use shoal_grid::upstreams::Phase;
use shoal_mesh::fetcher::Urgency;
use shoal_store::Store;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::path_record::PathKey;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation};
use shoal_wire::nix::signature::TrustedKeys;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

pub use cache::{LOG_LEN_MAX, Location};
pub use closure::Closure;
pub use engine::Fetch;
pub use flight::Flight;
pub use offer::{CacheFile, Held, Offer, Source};
pub use stream::NarStream;
pub use web::{Authorities, Patience, Refusal, agent};

use crate::build::derivations::Derivations;
use crate::cold::Cold;
use crate::neighbours::Neighbours;
use crate::session::admission::Admission;
use asks::{Asks, Query, Tried};
use cache::Cache;
use engine::Engine;
use origin::Origin;

mod asks;
mod cache;
mod claims;
mod closure;
pub mod decode;
mod elsewhere;
mod engine;
mod flight;
mod heal;
mod offer;
pub(crate) mod origin;
mod pool;
mod question;
pub(crate) mod source;
mod stream;
mod web;

/// How long somebody waits for a narinfo of one path. A browser or Nix that asks this node has other caches too.
pub const CLIENT_BUDGET: Duration = Duration::from_secs(3);
/// The same where the alternative is a build.
pub const BUILD_BUDGET: Duration = Duration::from_secs(8);
/// Silence after which the next upstream is asked too: several times what a healthy one takes.
pub const HEDGE: Duration = Duration::from_millis(300);

/// Whom to ask, and whom to believe.
pub struct Options {
    pub locations: Vec<Location>,
    pub authorities: Authorities,
    pub patience: Patience,
    /// See [`HEDGE`].
    pub hedge: Duration,
    pub trusted_keys: TrustedKeys,
    /// Off: what they say is believed without a signature, as Nix does with the setting of that name.
    pub require_sigs: bool,
    /// The mesh's bucket.
    pub cold: Option<Arc<Cold>>,
}

/// All that a node has to ask for what it lacks: other nodes, caches, or nobody. Cheap to clone.
#[derive(Clone, Default)]
pub struct Upstreams(Option<Arc<Engine>>);

/// One upstream, for people.
#[derive(Clone, Debug, Serialize)]
pub struct UpstreamStatus {
    pub url: String,
    pub priority: u32,
    /// From question to answer, averaged.
    pub latency_ms: Option<f64>,
    /// `up`, `down` (left alone for a while) or `probing`.
    pub state: &'static str,
    pub found: u64,
    pub missing: u64,
    pub failed: u64,
    pub fetched_paths: u64,
    pub fetched_bytes: u64,
    pub failed_fetches: u64,
}

impl Upstreams {
    /// Asks nobody anything yet.
    pub fn open(
        store: Store,
        dir: StoreDir,
        derivations: Arc<Derivations>,
        neighbours: Neighbours,
        options: Options,
    ) -> Upstreams {
        let admission = Admission::new(derivations, dir.clone(), options.trusted_keys, options.require_sigs);
        let cache = |location| Origin::cache(Cache::new(location, dir.clone(), &options.authorities, options.patience));
        let mut caches: Vec<Origin> = options.locations.into_iter().map(cache).collect();
        caches.extend(options.cold.map(|cold| Origin::bucket(cold, store.clone())));
        let asks = Asks::new(neighbours, caches, admission, options.hedge);
        Upstreams(Some(Arc::new(Engine::new(store, dir, Arc::new(asks)))))
    }

    /// There is nobody to ask, for now: other nodes may come.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|engine| engine.asks.caches.is_empty() && engine.asks.neighbours.is_alone())
    }

    fn engine(&self) -> Option<&Arc<Engine>> {
        self.0.as_ref().filter(|_| !self.is_empty())
    }

    /// What other nodes have of these paths, themselves only.
    pub fn in_mesh<'a>(&self, paths: impl IntoIterator<Item = &'a StorePath>) -> Vec<Arc<Offer>> {
        let Some(engine) = self.0.as_ref().filter(|engine| !engine.asks.neighbours.is_alone()) else {
            return Vec::new();
        };
        let queries: Vec<Query<'_>> = paths.into_iter().map(Query::Path).collect();
        engine.asks.find_in_mesh(&queries).into_iter().flatten().collect()
    }

    /// The same of the path with this hash part.
    pub fn hash_part_in_mesh(&self, hash_part: &str) -> Option<Arc<Offer>> {
        self.0.as_ref()?.asks.find_in_mesh(&[Query::HashPart(hash_part)]).pop()?
    }

    pub fn neighbours(&self) -> Neighbours {
        self.0.as_ref().map(|engine| engine.asks.neighbours.clone()).unwrap_or_default()
    }

    /// What must be fetched of one other node for the paths with these keys.
    pub fn closure_at(&self, holder: NodeKey, keys: impl Iterator<Item = PathKey>) -> Result<Closure> {
        match &self.0 {
            Some(engine) => Closure::find_at(&engine.store, &engine.asks.neighbours, holder, keys),
            None => Ok(Closure::default()),
        }
    }

    /// Begins to fetch what others want kept here.
    pub fn begin_copy(&self, closure: &Closure) -> Option<Fetch> {
        let engine = self.0.as_ref().filter(|_| !closure.is_empty())?;
        Some(engine.fetch(closure, Urgency::Replication, None))
    }

    /// What an upstream would give for the path with this hash part.
    pub fn offer(&self, hash_part: &str) -> Option<Arc<Offer>> {
        let engine = self.0.as_ref()?;
        engine.asks.find(&[Query::HashPart(hash_part)], CLIENT_BUDGET, &Tried::default()).pop()?
    }

    /// What upstreams would give for each of these paths, themselves only.
    pub fn offers(&self, paths: &BTreeSet<StorePath>, budget: Duration) -> Vec<Arc<Offer>> {
        let Some(engine) = &self.0 else { return Vec::new() };
        let queries: Vec<Query<'_>> = paths.iter().map(Query::Path).collect();
        engine.asks.find(&queries, budget, &Tried::default()).into_iter().flatten().collect()
    }

    /// What must be fetched for those of `roots` that are not valid; a root that cannot be had whole is not in it.
    pub fn closure(&self, roots: &BTreeSet<StorePath>, budget: Duration) -> Result<Closure> {
        match &self.0 {
            Some(engine) => Closure::find(&engine.store, &engine.asks, roots, budget),
            None => Ok(Closure::default()),
        }
    }

    /// Begins to fetch a closure.
    pub fn begin(&self, closure: &Closure) -> Option<Fetch> {
        let engine = self.0.as_ref().filter(|_| !closure.is_empty())?;
        Some(engine.fetch(closure, Urgency::Build, None))
    }

    /// As [`Upstreams::begin`], for who reads parts of it meanwhile, which go first.
    pub fn begin_behind(&self, closure: &Closure) -> Option<Fetch> {
        let engine = self.0.as_ref().filter(|_| !closure.is_empty())?;
        Some(engine.fetch(closure, Urgency::Client, None))
    }

    /// Makes a path valid together with all it refers to, and waits for that.
    pub fn fetch(&self, path: &StorePath) -> Result<()> {
        let engine = self.0.as_ref().context("this node has no upstream caches")?;
        let closure = self.closure(&BTreeSet::from([path.clone()]), BUILD_BUDGET)?;
        if engine.store.is_valid(path)? {
            return Ok(());
        }
        let full = engine.dir.print(path);
        let not_offered = || format!("no upstream has '{full}' with all it refers to and a trusted signature");
        anyhow::ensure!(closure.contains(path), not_offered());
        let fetch = engine.fetch(&closure, Urgency::Client, None);
        for flight in &fetch.flights {
            flight.wait().map_err(|why| anyhow::anyhow!("cannot fetch '{full}': {why}"))?;
        }
        Ok(())
    }

    /// The NAR of a path that an upstream offers: its bytes as they come, while they go into the store. It goes on to
    /// the end, with what the path refers to, whoever stops reading.
    pub fn nar(&self, path: &StorePath) -> Result<Option<NarStream>> {
        let Some(engine) = &self.0 else { return Ok(None) };
        if let Some(flight) = engine.flight(path) {
            flight.want_tape(&engine.tmp());
            return Ok(Some(NarStream::of_flight(engine.store.clone(), flight)));
        }
        if let Some(export) = engine.store.export(path)?
            && let Some(info) = engine.store.path_info(path)?
        {
            return Ok(Some(NarStream::of_export(engine.store.clone(), export, info.nar_hash)));
        }
        let wanted = BTreeSet::from([path.clone()]);
        let Some(offer) = self.offers(&wanted, CLIENT_BUDGET).pop() else { return Ok(None) };
        // What it refers to is looked for later. Who asks may have it, and where it is not to be had nothing stays.
        let closure = Closure { offers: [(path.clone(), offer)].into_iter().collect() };
        let fetch = engine.fetch(&closure, Urgency::Client, Some(path));
        let flight = fetch.flights.iter().find(|flight| flight.path == *path).cloned();
        fetch.detach();
        Ok(flight.map(|flight| NarStream::of_flight(engine.store.clone(), flight)))
    }

    /// Where an output of a derivation came out, by a trusted key.
    pub fn realisation(&self, id: &DrvOutput, budget: Duration) -> Option<Arc<Realisation>> {
        self.0.as_ref()?.asks.realisation(id, budget)
    }

    /// The same in the form from Nix 2.35 on.
    pub fn build_trace(&self, key: &BuildTraceKey, budget: Duration) -> Option<Arc<BuildTrace>> {
        self.0.as_ref()?.asks.build_trace(key, budget)
    }

    /// What was printed by a build of this derivation, by what an upstream says.
    pub fn log(&self, derivation: &StorePath, budget: Duration) -> Option<Arc<Vec<u8>>> {
        self.0.as_ref()?.asks.log(derivation, budget)
    }

    /// The URL of an upstream, without login, or the name of a node.
    pub fn url(&self, offer: &Offer) -> String {
        let Some(engine) = &self.0 else { return String::new() };
        match &offer.source {
            Source::Cache(file) => engine.asks.caches[file.upstream].base().trim_end_matches('/').to_string(),
            Source::Mesh(held) => {
                format!(
                    "shoal://{}",
                    held.holders.first().map(|node| engine.asks.neighbours.name(node)).unwrap_or_default()
                )
            }
        }
    }

    /// Where the file of an offer is, or what stands for it.
    pub fn file_url(&self, offer: &Offer) -> String {
        let Some(engine) = &self.0 else { return String::new() };
        match &offer.source {
            Source::Cache(file) => engine.asks.caches[file.upstream].file_url(&file.url),
            Source::Mesh(_) => format!("{}/{}", self.url(offer), offer.info.path.base_name()),
        }
    }

    /// Whether what is said of a path would be believed from an upstream. Error: why not, for people.
    pub fn believes(&self, info: &PathInfo) -> Result<(), String> {
        let Some(engine) = &self.0 else { return Ok(()) };
        engine.asks.admission.check_claim(info, true).map_err(engine::fault_text)
    }

    /// Paths being downloaded, and those that wait for it.
    pub fn counts(&self) -> (usize, usize) {
        self.0.as_ref().map_or((0, 0), |engine| engine.counts())
    }

    pub fn status(&self) -> Vec<UpstreamStatus> {
        let Some(engine) = &self.0 else { return Vec::new() };
        let (health, now_ms) = engine.asks.health();
        let rows = engine.asks.caches.iter().zip(health);
        let status = rows.map(|(cache, health)| UpstreamStatus {
            url: cache.base().to_string(),
            priority: health.priority,
            latency_ms: health.latency_us.map(|us| us as f64 / 1000.0),
            state: match health.breaker.phase(now_ms) {
                Phase::Closed => "up",
                Phase::HalfOpen => "probing",
                Phase::Open => "down",
            },
            found: health.found,
            missing: health.missing,
            failed: health.failed,
            fetched_paths: cache.fetched.paths.load(Ordering::Relaxed),
            fetched_bytes: cache.fetched.bytes.load(Ordering::Relaxed),
            failed_fetches: cache.fetched.failed.load(Ordering::Relaxed),
        });
        status.collect()
    }
}
