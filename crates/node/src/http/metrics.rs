//! `/metrics`, in Prometheus' text format, and what is counted for it.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;

use super::connection::Traffic;
use super::{Body, Cache, Response, response};

const PROMETHEUS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// What the HTTP server counts.
#[derive(Default)]
pub struct Metrics {
    responses: [AtomicU64; CLASSES.len()],
    sent_bytes: AtomicU64,
    pub connections: AtomicU64,
    pub refused_connections: AtomicU64,
    in_flight: AtomicU64,
    requests: AtomicU64,
}

/// A request that is not answered to its end. Counted until dropped.
pub struct InFlight {
    metrics: Arc<Metrics>,
    connection: Arc<Traffic>,
    /// A piece was handed over and the next one not asked for yet.
    offered: bool,
}

impl InFlight {
    /// `connection`: of the client's own connection.
    pub fn new(metrics: &Arc<Metrics>, connection: &Arc<Traffic>) -> InFlight {
        metrics.in_flight.fetch_add(1, Ordering::Relaxed);
        connection.began();
        InFlight { metrics: metrics.clone(), connection: connection.clone(), offered: false }
    }

    /// The client has room for a piece.
    pub fn asked(&mut self) {
        if std::mem::take(&mut self.offered) {
            self.connection.takes();
        }
    }

    /// A piece of so many bytes is handed over.
    pub fn sent(&mut self, bytes: u64) {
        self.metrics.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.connection.offers();
        self.offered = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.asked();
        self.metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.connection.ended();
    }
}

impl Metrics {
    pub fn responded(&self, response: &Response) {
        let class = usize::from(response.status().as_u16() / 100).saturating_sub(1);
        if let Some(count) = self.responses.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of a request that came in now.
    pub fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// One metric's lines.
struct Page(String);

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: &[(&str, u64)]) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }
}

pub async fn get(cache: Arc<Cache>) -> Response {
    let stats = match cache.store.stats() {
        Ok(stats) => stats,
        Err(error) => return response::unreadable("/metrics", &error),
    };
    let http = &cache.metrics;
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut page = Page(String::new());
    let labels = CLASSES.map(|class| format!("{{status=\"{class}\"}}"));
    let responses: Vec<(&str, u64)> = labels.iter().zip(&http.responses).map(|(l, n)| (l.as_str(), load(n))).collect();
    page.metric("shoal_http_responses_total", "counter", "Responses by class of status.", &responses);
    let counters = [
        ("shoal_http_sent_bytes_total", "Bytes of response bodies.", load(&http.sent_bytes)),
        (
            "shoal_http_refused_connections_total",
            "Connections closed for want of room.",
            load(&http.refused_connections),
        ),
    ];
    counters.iter().for_each(|(name, help, value)| page.metric(name, "counter", help, &[("", *value)]));
    let gauges = [
        ("shoal_http_open_connections", "Connections that are open.", load(&http.connections)),
        ("shoal_http_unanswered_requests", "Requests that are not answered to their end.", http.in_flight()),
        ("shoal_store_valid_paths", "Valid store paths.", stats.paths),
        ("shoal_store_indexed_chunks", "Chunks that the index knows.", stats.chunks),
        ("shoal_store_live_bytes", "Bytes of chunks that the index knows.", stats.live_bytes),
        ("shoal_store_disk_bytes", "Bytes of all segments.", stats.segment_bytes),
    ];
    gauges.iter().for_each(|(name, help, value)| page.metric(name, "gauge", help, &[("", *value)]));
    response::ok(PROMETHEUS, response::NO_STORE, Body::whole(page.0))
}
