//! Upstream caches, good and bad ones: a node gets the right bytes from them or a miss, in bounded time.

#[path = "upstreams/faults.rs"]
mod faults;
#[path = "upstreams/fetching.rs"]
mod fetching;
#[path = "upstreams/healing.rs"]
mod healing;
#[path = "http/lab.rs"]
#[expect(dead_code, reason = "the tests of the HTTP server use the rest")]
mod http_lab;
#[path = "upstreams/lab.rs"]
mod lab;
#[path = "upstreams/realisations.rs"]
mod realisations;
#[path = "upstreams/server.rs"]
mod server;
#[path = "upstreams/through.rs"]
mod through;
