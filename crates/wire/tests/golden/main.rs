//! The crate against recorded data: Nix's own golden files, a real package graph, and known vectors.

mod captures;
mod corpus;
mod extensions;
mod log_lines;
mod manifest;
mod mesh;
mod nar;
mod nar_compare;
mod nar_trees;
mod nix_derivation;
mod nix_names;
mod nix_structured;
mod properties;
mod protocol;
mod protocol_values;
mod references;
mod shared;
mod transfer;
mod vectors;
