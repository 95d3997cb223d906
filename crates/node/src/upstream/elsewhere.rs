//! What the HTTP server gets from upstreams: questions that block, on threads made for that.

use std::sync::Arc;
use std::time::Duration;

use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation};
use shoal_wire::nix::store_path::StorePath;
use tokio::time::timeout;

use super::{CLIENT_BUDGET, UpstreamStatus, Upstreams};
use crate::http::cache::Later;
use crate::http::{Arriving, Elsewhere};

/// From a turn to the answer: the question has its budget, and as long again to get a thread and to look into the store.
const ASKED_PATIENCE: Duration = Duration::from_secs(2 * CLIENT_BUDGET.as_secs());
/// How long who wants a path fetched waits for a turn.
const FETCH_PATIENCE: Duration = Duration::from_secs(30);

impl Upstreams {
    /// Asks on a thread. Who gets no turn in the time for an answer has none; who goes away gives its place in the
    /// queue up.
    async fn asked<T, F>(&self, ask: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(&Upstreams, Duration) -> Option<T> + Send + 'static,
    {
        let upstreams = self.clone();
        let turn = self.engine()?.turns.clone().acquire_owned();
        let turn = timeout(CLIENT_BUDGET, turn).await.ok()?.ok()?;
        let mut asked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            ask(&upstreams, CLIENT_BUDGET)
        });
        match timeout(ASKED_PATIENCE, &mut asked).await {
            Ok(answered) => answered.ok().flatten(),
            Err(_) => {
                // One that has begun ends by its budget.
                asked.abort();
                None
            }
        }
    }
}

impl Elsewhere for Upstreams {
    fn find<'a>(&'a self, hash_part: &'a str) -> Later<'a, Option<PathInfo>> {
        let hash_part = hash_part.to_string();
        let offer = self.asked(move |upstreams, _| upstreams.offer(&hash_part));
        Box::pin(async move { offer.await.map(|offer| offer.info.clone()) })
    }

    fn nar<'a>(&'a self, info: &'a PathInfo) -> Later<'a, Option<Box<dyn Arriving>>> {
        let info = info.clone();
        let stream = self.asked(move |upstreams, _| {
            let stream = upstreams.nar(&info.path).unwrap_or_else(|error| {
                tracing::warn!(path = info.path.base_name(), error = format!("{error:#}"), "cannot read from upstream");
                None
            });
            // What is fetched now may not be what was described.
            stream.filter(|stream| stream.nar_hash == info.nar_hash)
        });
        Box::pin(async move { stream.await.map(|stream| Box::new(stream) as Box<dyn Arriving>) })
    }

    fn fetch<'a>(&'a self, info: &'a PathInfo) -> Later<'a, ()> {
        let (upstreams, path) = (self.clone(), info.path.clone());
        Box::pin(async move {
            let Some(engine) = &upstreams.0 else { return };
            let turn = timeout(FETCH_PATIENCE, engine.fetch_turns.clone().acquire_owned()).await;
            let Ok(Ok(turn)) = turn else {
                return tracing::warn!(path = path.base_name(), "too many paths are fetched for clients");
            };
            let name = path.clone();
            let fetched = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                upstreams.fetch(&path)
            });
            if let Ok(Err(error)) = fetched.await {
                let error = format!("{error:#}");
                tracing::warn!(path = name.base_name(), error, "cannot fetch a path for a client");
            }
        })
    }

    fn realisation<'a>(&'a self, id: &'a DrvOutput) -> Later<'a, Option<Realisation>> {
        let id = id.clone();
        let found = self.asked(move |upstreams, budget| upstreams.realisation(&id, budget));
        Box::pin(async move { found.await.map(|found| (*found).clone()) })
    }

    fn build_trace<'a>(&'a self, key: &'a BuildTraceKey) -> Later<'a, Option<BuildTrace>> {
        let key = key.clone();
        let found = self.asked(move |upstreams, budget| upstreams.build_trace(&key, budget));
        Box::pin(async move { found.await.map(|found| (*found).clone()) })
    }

    fn log<'a>(&'a self, derivation: &'a StorePath) -> Later<'a, Option<Arc<Vec<u8>>>> {
        let derivation = derivation.clone();
        Box::pin(self.asked(move |upstreams, budget| upstreams.log(&derivation, budget)))
    }

    fn status(&self) -> Vec<UpstreamStatus> {
        Upstreams::status(self)
    }
}
