//! Compresses well, in idle times, what the store took in in haste.

use std::sync::Arc;
use std::time::Duration;

use shoal_store::Store;

use crate::build::service::BuildService;
use crate::config::units::size_text;
use crate::door::Sessions;
use crate::http::metrics::Metrics;

/// How often the node looks whether it is idle.
const PERIOD: Duration = Duration::from_secs(15);
/// Segments rewritten at a time. The lock of collections is held meanwhile; whoever comes in ends it within some MiB.
const BYTES_AT_ONCE: u64 = 1 << 30;

/// Watches for as long as it is polled. `http`: of the binary cache, if there is one.
pub async fn watch(store: Store, builds: Arc<BuildService>, sessions: Sessions, http: Option<Arc<Metrics>>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick is at once, when everything has better to do.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let (store, builds, sessions, http) = (store.clone(), builds.clone(), sessions.clone(), http.clone());
        let asks_http = move || http.as_ref().is_some_and(|http| http.in_flight() > 0);
        let idle = move || sessions.running() == 0 && !asks_http() && builds.overview().running.is_empty();
        let settled = tokio::task::spawn_blocking(move || match idle() {
            true => store.recompress(BYTES_AT_ONCE, &idle),
            false => Ok(shoal_store::Compacted::default()),
        });
        match settled.await {
            Ok(Ok(done)) if done.segments == 0 => {}
            Ok(Ok(done)) => {
                let (before, after) = (size_text(done.deleted), size_text(done.copied));
                tracing::info!(segments = done.segments, before, after, "compressed what came in in haste");
            }
            Ok(Err(error)) => tracing::warn!("cannot compress what came in in haste: {error:#}"),
            // The runtime is going down.
            Err(_) => return,
        }
    }
}
