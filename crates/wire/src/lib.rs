//! Bytes to values and back. Pure: no I/O, no async runtime, no clock.

pub mod mesh;
pub mod nix;
