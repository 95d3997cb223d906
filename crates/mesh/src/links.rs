//! What the mesh's decisions hear from other members, and what they need of the connections to them.

use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::HolderMessage;

/// What came from a member whose certificate was verified.
#[derive(Debug)]
pub enum Incoming {
    /// A frame of membership, not yet decoded.
    Frame {
        from: NodeKey,
        frame: Vec<u8>,
    },
    Message {
        from: NodeKey,
        message: Box<HolderMessage>,
    },
}
