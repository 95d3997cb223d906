//! Decisions of the build grid. Pure: events and a time in, actions out.
//!
//! Nothing here does I/O, reads a clock or draws randomness of its own. The node feeds events in and carries
//! the actions out; tests do the same from seeds.

pub mod announce;
pub mod ballot;
pub mod can_run;
pub mod catalogue;
pub mod cold;
pub mod critical_path;
pub mod estimates;
pub mod fetches;
pub mod membership;
pub mod placement;
pub mod random;
pub mod ring;
pub mod schedule;
pub mod sizing;
pub mod timeline;
pub mod transfer;
pub mod upload;
pub mod upstreams;
