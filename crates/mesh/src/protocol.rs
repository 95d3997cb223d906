//! Names of the protocols between nodes, and why connections are closed.
//!
//! A connection speaks one protocol. Those of members begin with a hello in both directions, which carries the
//! certificate; nothing else is read before both are verified.

/// A newcomer shows its ticket.
pub const JOIN: &[u8] = b"shoal/join/1";
/// Frames of membership as datagrams, or one a stream where they are longer; messages between holders and owners on one
/// ordered stream in each direction.
pub const SYNC: &[u8] = b"shoal/sync/1";
/// Requests for path records, manifests and chunks, a stream each.
pub const CHUNKS: &[u8] = b"shoal/chunks/1";
