//! Our own formats: what nodes say to each other and keep about each other.
//!
//! All are postcard with a version byte before it, have one encoding, and are decoded strictly ([`format`]). What a
//! node or the mesh answers for is [`sealed`].

pub mod announcement;
pub mod builds;
pub mod certificate;
pub mod chunks;
pub mod cold;
pub mod demand;
pub mod departure;
pub mod format;
pub mod frame;
pub mod hello;
pub mod join;
pub mod manifest;
pub mod node_record;
pub mod path_record;
pub mod revocation;
pub mod sealed;
pub mod suspicion;
pub mod ticket;
pub mod transfer;

/// A node's Ed25519 public key. It is its name on the wire and its address to the transport.
pub type NodeKey = [u8; 32];
/// The Ed25519 public key that signs the certificates of a mesh.
pub type MeshId = [u8; 32];
