//! The binary cache's server, asked over real connections by clients that are as good or bad as they like.

#[path = "http/bad_input.rs"]
mod bad_input;
#[path = "../../../tests/harness/certificates.rs"]
mod certificates;
#[path = "http/copies.rs"]
mod copies;
#[path = "http/damage.rs"]
mod damage;
#[path = "http/http2.rs"]
mod http2;
#[path = "http/http3.rs"]
mod http3;
#[path = "http/lab.rs"]
mod lab;
#[path = "http/reading.rs"]
mod reading;
#[path = "http/slow.rs"]
mod slow;
#[path = "http/tls.rs"]
mod tls;
#[path = "http/uploads.rs"]
mod uploads;
#[path = "http/writable.rs"]
mod writable;
