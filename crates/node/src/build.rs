//! Builds derivations on this node, for any number of clients at once.
//!
//! A session hands a [`BuildRequest`](request::BuildRequest) to the [`BuildService`](service::BuildService) and reads
//! events and results from the handle it gets. The service walks the derivation graph, lets `shoal_grid::schedule`
//! decide what runs next, and runs each derivation on a thread of its own: input closure -> trees -> sandbox -> outputs
//! into the store. It knows no protocol and no connection.

mod adopt;
mod audience;
mod checks;
pub mod closure;
pub mod derivations;
mod environment;
mod execute;
pub mod explain;
mod failure;
pub mod feed;
mod graph;
mod history;
mod keep_on;
mod log;
pub mod memory;
pub mod obtain;
mod outputs;
pub mod overview;
mod past;
mod prepare;
mod realisations;
pub mod recent;
mod references_graph;
pub mod remote;
pub mod request;
mod sandbox_spec;
mod scratches;
pub mod service;
mod story;
pub mod trace;
mod traces;
mod variants;
mod verdict;
pub mod watch;

pub(crate) use sandbox_spec::CA_BUNDLES;
