//! A node: front doors, builds and the command line. It wires; what can be decided without I/O is decided elsewhere.

pub mod build;
pub mod builtin;
pub mod cli;
pub mod client_setup;
pub mod clients;
pub mod config;
pub mod control;
pub mod copy;
pub mod doctor;
pub mod door;
pub mod dump;
pub mod files;
pub mod http;
pub mod inputs;
pub mod keys;
pub mod logging;
pub mod mesh;
pub mod mount;
pub mod neighbours;
pub mod netrc;
pub mod scrub;
pub mod serve;
pub mod session;
pub mod tokens;
pub mod trees;
pub mod upstream;
