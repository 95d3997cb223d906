//! What only nodes speak.

pub mod manifest;
pub mod transfer;
