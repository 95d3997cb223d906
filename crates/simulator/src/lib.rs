//! Runs the mesh's own code, with up to a thousand nodes, on a network and clocks that exist only in memory.
//!
//! Everything follows from one seed: delays, losses, faults, and every node's own randomness. There is one thread and no
//! clock, so a run that fails is repeated by its seed. Nodes exchange encoded frames and sign and verify as real ones do;
//! only what one node has verified is not verified again for the others ([`archive`]).
//!
//! It is a crate of its own because tests of several crates run on it, and the program must not contain it.

pub mod archive;
pub mod builds;
pub mod check;
pub mod faults;
pub mod host;
pub mod meter;
pub mod network;
pub mod simulation;

pub use simulation::Simulation;
