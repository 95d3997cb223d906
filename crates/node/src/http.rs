//! The binary cache over HTTP: what this node has, for every stock Nix.
//!
//! [`server`] accepts and bounds connections, hyper speaks HTTP/1.1 and HTTP/2 on them, [`router`] finds who answers.
//! Each noun that can be asked for has its file. Invariants:
//! - no byte is sent that was not verified when it was read; damage cuts the connection or is a 404, never wrong bytes;
//! - every response has its length, so that a client knows when one was cut off;
//! - what a client can make this node hold (connections, heads, bodies in memory, time) has a named bound.

pub mod body;
pub mod browse;
pub mod budget;
pub mod buffers;
pub mod cache;
pub mod cache_info;
pub mod connection;
pub mod copies;
pub mod decode;
pub mod frames;
pub mod health;
pub mod http3;
pub mod link;
pub mod listing;
pub mod logs;
pub mod metrics;
pub mod nar;
pub mod narinfo;
pub mod percent;
pub mod put;
pub mod range;
pub mod realisations;
pub mod request;
pub mod response;
pub mod router;
pub mod server;
pub mod tls;
pub mod turns;

pub use body::Body;
pub use cache::{Arriving, Cache, Elsewhere, Found};
pub use connection::Limits;
pub use request::Request;
pub use response::Response;
pub use server::{HttpOptions, HttpServer};
