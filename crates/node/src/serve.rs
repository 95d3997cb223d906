//! Starts and stops a node.

pub mod lock;
pub mod notify;
pub mod ready;
