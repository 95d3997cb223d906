//! What requests are answered from, and the one place where a path is looked for.

use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;

use http::HeaderValue;
use shoal_store::{PathRecord, Store};
use shoal_wire::nix::base32;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation};
use shoal_wire::nix::store_path::{HASH_PART_LEN, StoreDir, StorePath};
use tokio::sync::Semaphore;

use super::budget::{ANSWER_BYTES_MAX, BEGUN_BYTES_MAX, Budget};
use super::link::Offer;
use super::metrics::Metrics;
use super::narinfo::Told;
use super::put::Writer;
use super::{Response, response};
use crate::cold::Cold;
use crate::mesh::seek::Card;
use crate::upstream::{UpstreamStatus, Upstreams};

/// Threads that read NARs on their way here, a piece at a time, once there is one; a client that takes nothing needs
/// none. With those for questions, fetches and uploads they are fewer than the 512 of the runtime, so that there is
/// always one to read from the disk.
const ARRIVALS_MAX: usize = 64;

/// Answers that are made at once of what a path holds, of a length that nobody knows before: each may take a second and
/// some 100 MiB, of a path with a million files.
const MADE_MAX: usize = 8;

pub struct Cache {
    pub dir: StoreDir,
    pub store: Store,
    pub metrics: Arc<Metrics>,
    /// The form of NARs that narinfos tell of.
    pub offer: Offer,
    /// Asked for what the store lacks.
    pub elsewhere: Option<Arc<dyn Elsewhere>>,
    /// Threads that may read what comes from there.
    pub arrivals: Arc<Semaphore>,
    /// The bucket behind the mesh, for who looks at what is written to it.
    pub cold: Option<Arc<Cold>>,
    /// Takes in what clients send; without it nothing can be written.
    pub writer: Option<Writer>,
    /// Whether reading takes a token too.
    pub is_closed: bool,
    /// What the node tells other nodes of itself.
    pub card: Option<Card>,
    /// For answers that are whole in memory.
    pub answers: Budget,
    /// For what NARs hold while they are sent.
    pub begun: Budget,
    /// Narinfos of paths that are here.
    pub told: Told,
    makers: Arc<Semaphore>,
}

/// Where the path with some hash part is.
#[derive(Debug)]
pub enum Found {
    /// Valid here.
    Here(Arc<PathRecord>),
    /// Not here, but [`Elsewhere::nar`] gives its contents.
    Elsewhere(Box<PathInfo>),
    Absent,
}

pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A NAR as it comes. A reader that blocks; an error in the middle takes back what came before.
pub trait Arriving: Read + Send {
    /// Ends when the next read does not wait for more to come, or only for a moment.
    fn ready(&self) -> Later<'static, ()>;
}

/// Other caches and nodes.
pub trait Elsewhere: Send + Sync + 'static {
    /// What is known there of the path with this hash part. Takes no longer than a client is willing to wait for a
    /// narinfo; who cannot be asked has nothing.
    fn find<'a>(&'a self, hash_part: &'a str) -> Later<'a, Option<PathInfo>>;

    /// The NAR of a path that was found, as it comes, while it goes into the store.
    fn nar<'a>(&'a self, info: &'a PathInfo) -> Later<'a, Option<Box<dyn Arriving>>>;

    /// Makes a path that was found valid here, with all it refers to, and waits for that. What goes wrong is in the log.
    fn fetch<'a>(&'a self, info: &'a PathInfo) -> Later<'a, ()>;

    /// Where an output came out, by somebody who is trusted here; in as much time as [`Elsewhere::find`].
    fn realisation<'a>(&'a self, id: &'a DrvOutput) -> Later<'a, Option<Realisation>>;

    /// The same in the form from Nix 2.35 on.
    fn build_trace<'a>(&'a self, key: &'a BuildTraceKey) -> Later<'a, Option<BuildTrace>>;

    /// What was printed by a build of this derivation, by whoever has it.
    fn log<'a>(&'a self, derivation: &'a StorePath) -> Later<'a, Option<Arc<Vec<u8>>>>;

    /// For `/metrics`.
    fn status(&self) -> Vec<UpstreamStatus>;
}

impl Cache {
    pub fn new(store: Store, dir: StoreDir) -> Cache {
        Cache {
            dir,
            store,
            metrics: Arc::default(),
            offer: Offer::Auto,
            elsewhere: None,
            arrivals: Arc::new(Semaphore::new(ARRIVALS_MAX)),
            writer: None,
            is_closed: false,
            card: None,
            cold: None,
            answers: Budget::of(ANSWER_BYTES_MAX),
            begun: Budget::of(BEGUN_BYTES_MAX),
            told: Told::default(),
            makers: Arc::new(Semaphore::new(MADE_MAX)),
        }
    }

    /// Also looks in these caches.
    pub fn behind(mut self, upstreams: &Upstreams) -> Cache {
        self.elsewhere = Some(Arc::new(upstreams.clone()));
        self
    }

    /// An answer that is made of what a path holds, on a thread that may take its time. Makers wait for no client, so
    /// others wait for them as long as it takes. `what`: for the log.
    pub async fn made(
        self: &Arc<Self>,
        what: &str,
        make: impl FnOnce(&Cache) -> Result<Response, shoal_store::Error> + Send + 'static,
    ) -> Response {
        let Ok(turn) = self.makers.clone().acquire_owned().await else { return response::later() };
        let cache = self.clone();
        let made = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            make(&cache)
        });
        match made.await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => response::unreadable(what, &error),
            Err(panicked) => response::unreadable(what, &panicked),
        }
    }

    /// An answer that is made and whole in memory, or that there is no room for it.
    pub fn whole(&self, content_type: HeaderValue, caching: HeaderValue, bytes: Vec<u8>) -> Response {
        match self.answers.body(bytes) {
            Some(body) => response::ok(content_type, caching, body),
            None => response::later(),
        }
    }

    /// Looks for a path here, then elsewhere.
    pub async fn lookup(&self, hash_part: &str) -> Result<Found, shoal_store::Error> {
        if !is_hash_part(hash_part) {
            return Ok(Found::Absent);
        }
        if let Some(record) = self.store.find(hash_part)? {
            return Ok(Found::Here(record));
        }
        let Some(elsewhere) = &self.elsewhere else { return Ok(Found::Absent) };
        Ok(elsewhere.find(hash_part).await.map_or(Found::Absent, |info| Found::Elsewhere(Box::new(info))))
    }

    /// Has a path that was found elsewhere fetched, for what can only be answered of one that is here.
    pub async fn fetched(&self, info: &PathInfo) -> Result<Found, shoal_store::Error> {
        if let Some(elsewhere) = &self.elsewhere {
            elsewhere.fetch(info).await;
        }
        Ok(self.store.find(info.path.hash_part())?.map_or(Found::Absent, Found::Here))
    }
}

/// Whether the text is the 32 digits that a store path begins with.
pub fn is_hash_part(text: &str) -> bool {
    text.len() == HASH_PART_LEN && text.bytes().all(base32::is_digit)
}
