//! Names of the protocols between nodes, and why connections are closed.
//!
//! A connection speaks one protocol. Those of members begin with a hello in both directions, which carries the
//! certificate; nothing else is read before both are verified.

use iroh::endpoint::VarInt;
use shoal_wire::mesh::NodeKey;
use shoal_wire::nix::base64::encode_hex;

/// A newcomer shows its ticket.
pub const JOIN: &[u8] = b"shoal/join/1";
/// Frames of membership as datagrams, or one a stream where they are longer; messages between holders and owners on one
/// ordered stream in each direction.
pub const SYNC: &[u8] = b"shoal/sync/1";
/// Requests for path records, manifests and chunks, a stream each.
pub const CHUNKS: &[u8] = b"shoal/chunks/1";
/// Requests for builds, a stream each; between members whose certificates say that they build.
pub const BUILDS: &[u8] = b"shoal/builds/1";

/// The name that `protocol` is dialled by at `node`: after a slash it has the first half of the node's key in hexadecimal.
/// Addresses come to others, and who has one now does not answer what is meant for who had it: the dial goes on to find
/// the node at another address, where it would end at an answer of the wrong key.
pub fn name_at(protocol: &[u8], node: &NodeKey) -> Vec<u8> {
    [protocol, b"/", encode_hex(&node[..16]).as_bytes()].concat()
}

/// First byte of a one-way stream of [`SYNC`]: one frame follows.
pub const STREAM_OF_FRAME: u8 = 0;
/// First byte of a one-way stream of [`SYNC`]: messages follow, each after its length in four bytes, little-endian.
pub const STREAM_OF_MESSAGES: u8 = 1;

/// Why a connection is closed: the code that the other end sees, beside a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Close {
    /// The node stops.
    Stopping = 1,
    /// The same two nodes have a newer connection.
    Replaced = 2,
    /// Both nodes dialled at once, and the other connection is kept.
    Duplicate = 3,
    /// Too many connections.
    Busy = 4,
    /// No hello came in time.
    Silent = 5,
    /// Something that does not decode, or is not expected here.
    Malformed = 6,
    OtherMesh = 7,
    /// A certificate that the mesh key did not sign.
    Forged = 8,
    /// A certificate of another node.
    OtherKey = 9,
    /// A certificate that does not hold now.
    Expired = 10,
    /// The node was thrown out.
    Barred = 11,
    /// It was cut off a moment ago.
    Resting = 12,
    Flood = 13,
    /// It was cut off by who decides.
    Cut = 14,
    /// Everything was said.
    Done = 15,
    /// It asked for more than it reads.
    NotRead = 16,
    /// A certificate without the role that the protocol needs.
    NoRole = 17,
}

impl Close {
    pub fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}
