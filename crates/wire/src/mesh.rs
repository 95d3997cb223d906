//! What only nodes speak.

pub mod manifest;
