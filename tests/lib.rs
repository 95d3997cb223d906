//! What end-to-end tests are made of: real Nix clients, machines to run them on, and nodes to talk to.
//!
//! A test that needs something this machine cannot give (root, the package set beside the repository) says so and
//! passes: see [`skip`].

#[path = "harness/cable.rs"]
pub mod cable;
#[path = "harness/certificates.rs"]
pub mod certificates;
#[path = "harness/clients.rs"]
pub mod clients;
#[path = "harness/clocks.rs"]
pub mod clocks;
#[path = "harness/command.rs"]
pub mod command;
#[path = "harness/dag.rs"]
pub mod dag;
#[path = "harness/debian.rs"]
pub mod debian;
#[path = "harness/expected.rs"]
pub mod expected;
#[path = "harness/liar.rs"]
pub mod liar;
#[path = "harness/machine.rs"]
pub mod machine;
#[path = "harness/mesh.rs"]
pub mod mesh;
#[path = "harness/network.rs"]
pub mod network;
#[path = "harness/node.rs"]
pub mod node;
#[path = "harness/place.rs"]
pub mod place;
#[path = "harness/pods.rs"]
pub mod pods;
#[path = "harness/random.rs"]
pub mod random;
#[path = "harness/relay.rs"]
pub mod relay;
#[path = "harness/s3.rs"]
pub mod s3;
#[path = "harness/shapes.rs"]
pub mod shapes;
#[path = "harness/sources.rs"]
pub mod sources;
#[path = "harness/web.rs"]
pub mod web;

pub use clients::Nix;
pub use command::{Cmd, Finished};
pub use dag::Dag;
pub use liar::Liar;
pub use machine::{Machine, Remote, built};
pub use mesh::Mesh;
pub use node::Node;
pub use place::Place;
pub use s3::S3;

/// Says by name why a test is not run here. Use as `return skip("…")`.
pub fn skip(why: &str) {
    println!("skipped: {why}");
}

/// Whether everything is to be run, however long it takes: `SHOAL_E2E=full`.
pub fn is_full() -> bool {
    std::env::var("SHOAL_E2E").is_ok_and(|value| value == "full")
}
