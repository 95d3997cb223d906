//! `/metrics`, in Prometheus' text format, and what is counted for it.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderValue, StatusCode};
use tokio::task::spawn_blocking;

use super::connection::{Offered, Traffic, Unanswered};
use super::{Body, Cache, Response, response};
use crate::cold::ColdStatus;
use crate::upstream::UpstreamStatus;

const PROMETHEUS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// How an upload ended: it was taken, the client is to blame that it was not, or this node is.
const OUTCOMES: [&str; 3] = ["taken", "refused", "failed"];

/// What the HTTP server counts.
#[derive(Default)]
pub struct Metrics {
    responses: [AtomicU64; CLASSES.len()],
    sent_bytes: AtomicU64,
    pub connections: AtomicU64,
    pub refused_connections: AtomicU64,
    uploads: [AtomicU64; OUTCOMES.len()],
    pub received_bytes: AtomicU64,
    in_flight: AtomicU64,
    requests: AtomicU64,
}

/// A request that is not answered to its end. Counted until dropped.
pub struct InFlight {
    metrics: Arc<Metrics>,
    /// The next piece, or the end, waits for the client.
    offered: Option<Offered>,
    last_piece_bytes: Option<u64>,
    unanswered: Unanswered,
}

impl InFlight {
    /// `connection`: of the client's own connection.
    pub fn new(metrics: &Arc<Metrics>, connection: &Arc<Traffic>) -> InFlight {
        metrics.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { metrics: metrics.clone(), offered: None, last_piece_bytes: None, unanswered: connection.begin() }
    }

    /// From now on the client is waited for.
    pub fn offer(&mut self) {
        self.offered.get_or_insert_with(|| self.unanswered.offer());
    }

    /// The client has room for a piece.
    pub fn asked(&mut self) {
        if self.offered.take().is_some() && self.last_piece_bytes.is_some() {
            self.unanswered.took();
        }
    }

    /// A piece of so many bytes is handed over.
    pub fn sent(&mut self, bytes: u64) {
        self.metrics.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last_piece_bytes = Some(bytes);
        self.offer();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let (Some(_), Some(bytes)) = (&self.offered, self.last_piece_bytes) {
            self.unanswered.took_last(bytes);
        }
        self.metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub fn responded(&self, response: &Response) {
        let class = usize::from(response.status().as_u16() / 100).saturating_sub(1);
        if let Some(count) = self.responses.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An upload was answered.
    pub fn uploaded(&self, status: StatusCode) {
        let outcome = if status.is_success() { 0 } else { 1 + usize::from(status.is_server_error()) };
        self.uploads[outcome].fetch_add(1, Ordering::Relaxed);
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
    fn metric<V: Display>(&mut self, name: &str, kind: &str, help: &str, samples: &[(&str, V)]) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    /// A metric with a sample for each value of a label.
    fn labelled<V: Display>(&mut self, name: &str, kind: &str, help: &str, samples: impl Iterator<Item = (String, V)>) {
        let samples: Vec<_> = samples.collect();
        let samples: Vec<_> = samples.iter().map(|(labels, value)| (labels.as_str(), value)).collect();
        self.metric(name, kind, help, &samples);
    }
}

/// `{name="value",…}`, as Prometheus quotes it.
fn labels<const N: usize>(pairs: [(&str, &str); N]) -> String {
    let quoted = pairs.map(|(name, value)| {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("{name}=\"{value}\"")
    });
    format!("{{{}}}", quoted.join(","))
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

pub async fn get(cache: Arc<Cache>) -> Response {
    let store = cache.store.clone();
    // It waits for who appends.
    let stats = match spawn_blocking(move || store.stats()).await {
        Ok(Ok(stats)) => stats,
        Ok(Err(error)) => return response::unreadable("/metrics", &error),
        Err(error) => return response::unreadable("/metrics", &error),
    };
    let mut page = Page(String::new());
    page.http(&cache);
    let gauges = [
        ("shoal_store_valid_paths", "Valid store paths.", stats.paths),
        ("shoal_store_indexed_chunks", "Chunks that the index knows.", stats.chunks),
        ("shoal_store_live_bytes", "Bytes of chunks that the index knows.", stats.live_bytes),
        ("shoal_store_disk_bytes", "Bytes of all segments.", stats.segment_bytes),
    ];
    gauges.iter().for_each(|(name, help, value)| page.metric(name, "gauge", help, &[("", *value)]));
    cache.cold.iter().for_each(|cold| page.cold(&cold.status()));
    page.upstreams(&cache.elsewhere.as_ref().map(|elsewhere| elsewhere.status()).unwrap_or_default());
    response::ok(PROMETHEUS, response::NO_STORE, Body::whole(page.0))
}

impl Page {
    fn http(&mut self, cache: &Cache) {
        let http = &cache.metrics;
        let responses = CLASSES.iter().zip(&http.responses).map(|(class, n)| (labels([("status", class)]), load(n)));
        self.labelled("shoal_http_responses_total", "counter", "Responses by class of status.", responses);
        let uploads = OUTCOMES.iter().zip(&http.uploads).map(|(outcome, n)| (labels([("outcome", outcome)]), load(n)));
        self.labelled(
            "shoal_http_uploads_total",
            "counter",
            "Files that clients put, by what became of them.",
            uploads,
        );
        let refused = load(&http.refused_connections);
        let counters = [
            ("shoal_http_sent_bytes_total", "Bytes of response bodies.", load(&http.sent_bytes)),
            ("shoal_http_received_bytes_total", "Bytes of uploads.", load(&http.received_bytes)),
            ("shoal_http_refused_connections_total", "Connections closed for want of room.", refused),
        ];
        counters.iter().for_each(|(name, help, value)| self.metric(name, "counter", help, &[("", *value)]));
        let (nars, bytes) = cache.writer.as_ref().map(|writer| writer.deposits().held_counts()).unwrap_or_default();
        let gauges = [
            ("shoal_http_open_connections", "Connections that are open.", load(&http.connections)),
            ("shoal_http_unanswered_requests", "Requests that are not answered to their end.", http.in_flight()),
            ("shoal_http_held_nars", "Uploaded NARs that wait for their narinfo.", nars),
            ("shoal_http_held_bytes", "Bytes of NARs that wait for their narinfo.", bytes),
        ];
        gauges.iter().for_each(|(name, help, value)| self.metric(name, "gauge", help, &[("", *value)]));
    }

    /// What is written to the bucket. What is read from it is among the upstreams.
    fn cold(&mut self, cold: &ColdStatus) {
        let counters = [
            ("shoal_cold_written_paths_total", "Store paths written to the bucket.", cold.written_paths),
            ("shoal_cold_written_packs_total", "Packs of chunks written to the bucket.", cold.written_packs),
            ("shoal_cold_written_bytes_total", "Bytes written to the bucket.", cold.written_bytes),
            ("shoal_cold_shared_chunks_total", "Chunks that the bucket had already.", cold.shared_chunks),
            ("shoal_cold_written_logs_total", "Build logs written to the bucket.", cold.written_logs),
            ("shoal_cold_written_realisations_total", "Realisations written to the bucket.", cold.written_realisations),
            ("shoal_cold_freed_last_copies_total", "Last copies that were left to the bucket.", cold.freed_last_copies),
            (
                "shoal_cold_kept_last_copies_total",
                "Times that a last copy stayed for want of it.",
                cold.kept_last_copies,
            ),
            ("shoal_cold_failed_requests_total", "Writes that failed and are tried again.", cold.failed_writes),
        ];
        counters.iter().for_each(|(name, help, value)| self.metric(name, "counter", help, &[("", *value)]));
        let gauges = [
            ("shoal_cold_backlog_paths", "Store paths to be written to the bucket.", cold.backlog as u64),
            ("shoal_cold_kept_paths", "Store paths of this node that are in the bucket.", cold.kept_paths),
        ];
        gauges.iter().for_each(|(name, help, value)| self.metric(name, "gauge", help, &[("", *value)]));
    }

    /// One sample for each cache that the configuration names.
    fn upstreams(&mut self, upstreams: &[UpstreamStatus]) {
        if upstreams.is_empty() {
            return;
        }
        let name = |status: &UpstreamStatus| labels([("upstream", &status.url)]);
        let answers = upstreams.iter().flat_map(|status| {
            let counts = [("found", status.found), ("missing", status.missing), ("failed", status.failed)];
            counts.map(|(answer, n)| (labels([("upstream", &status.url), ("answer", answer)]), n))
        });
        self.labelled("shoal_upstream_answers_total", "counter", "What an upstream cache said to questions.", answers);
        let mut counter = |metric: &str, help: &str, value: fn(&UpstreamStatus) -> u64| {
            self.labelled(metric, "counter", help, upstreams.iter().map(|status| (name(status), value(status))));
        };
        counter("shoal_upstream_fetched_paths_total", "Store paths fetched.", |status| status.fetched_paths);
        counter("shoal_upstream_fetched_bytes_total", "Bytes of files fetched, as they came.", |status| {
            status.fetched_bytes
        });
        counter("shoal_upstream_failed_fetches_total", "Files that broke off or were not as promised.", |status| {
            status.failed_fetches
        });
        let open = upstreams.iter().map(|status| (name(status), u8::from(status.state != "up")));
        self.labelled("shoal_upstream_open_breakers", "gauge", "1 while the cache is left alone or tried again.", open);
        let known = upstreams.iter().filter_map(|status| Some((name(status), status.latency_ms? / 1000.0)));
        self.labelled("shoal_upstream_latency_seconds", "gauge", "From question to answer, averaged.", known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_quoted() {
        assert_eq!(labels([("a", "b"), ("c", "d\"\\\n")]), r#"{a="b",c="d\"\\\n"}"#);
    }

    #[test]
    fn a_cache_has_a_sample_in_each_metric() {
        let mut page = Page(String::new());
        let status = UpstreamStatus {
            url: "http://u/".into(),
            priority: 40,
            latency_ms: Some(1.5),
            state: "down",
            found: 1,
            missing: 2,
            failed: 3,
            fetched_paths: 4,
            fetched_bytes: 5,
            failed_fetches: 6,
        };
        page.upstreams(&[status]);
        let samples: Vec<&str> = page.0.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                r#"shoal_upstream_answers_total{upstream="http://u/",answer="found"} 1"#,
                r#"shoal_upstream_answers_total{upstream="http://u/",answer="missing"} 2"#,
                r#"shoal_upstream_answers_total{upstream="http://u/",answer="failed"} 3"#,
                r#"shoal_upstream_fetched_paths_total{upstream="http://u/"} 4"#,
                r#"shoal_upstream_fetched_bytes_total{upstream="http://u/"} 5"#,
                r#"shoal_upstream_failed_fetches_total{upstream="http://u/"} 6"#,
                r#"shoal_upstream_open_breakers{upstream="http://u/"} 1"#,
                r#"shoal_upstream_latency_seconds{upstream="http://u/"} 0.0015"#,
            ]
        );
    }
}
