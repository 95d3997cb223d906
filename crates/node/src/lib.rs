//! A node: front doors, builds and the command line. It wires; what can be decided without I/O is decided elsewhere.

pub mod cli;
pub mod config;
pub mod door;
