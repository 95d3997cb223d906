//! What the node asks of the task that owns membership and catalogue.

use shoal_grid::catalogue::owned::Answer;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::{Enclosed, Holding};
use shoal_wire::mesh::format::FormatError;
use shoal_wire::mesh::node_record::NodeRecord;
use shoal_wire::mesh::path_record::{ContentTag, PathKey};
use std::collections::HashMap;
use std::net::SocketAddr;
use tokio::sync::oneshot;

/// What came of looking for one path in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Found(Answer),
    /// The owners know of nobody who has it.
    Missing,
    /// Too few owners answered. Those that did not.
    Unreachable(Vec<NodeKey>),
}

pub(crate) enum Command {
    /// What other nodes have of at most [`KEYS_MAX`](shoal_wire::mesh::announcement::KEYS_MAX), and who waits for each.
    LookUp {
        keys: Vec<PathKey>,
        replies: Vec<oneshot::Sender<Outcome>>,
    },
    /// Holders did not have it.
    Doubt(PathKey),
    /// Paths that are valid here and are to be acknowledged: answered when all have their copies. Dropped where too many
    /// wait. Those that are enclosed go along with the request to keep them.
    Keep {
        holdings: Vec<Holding>,
        enclosed: HashMap<PathKey, Enclosed>,
        reply: oneshot::Sender<()>,
    },
    Added(Vec<Holding>),
    Gone(Vec<PathKey>),
    /// Owners gave their word for these, and they have stayed all the same.
    Stayed(Vec<PathKey>),
    MayDelete {
        keys: Vec<PathKey>,
        reply: oneshot::Sender<Vec<PathKey>>,
    },
    /// Which of these may go though no other node has them: they are kept outside of the mesh.
    MayLeave {
        keys: Vec<PathKey>,
        reply: oneshot::Sender<Vec<PathKey>>,
    },
    Fetched(Holding),
    FetchFailed(PathKey),
    Claim {
        key: PathKey,
        reply: oneshot::Sender<NodeKey>,
    },
    Unclaim(PathKey),
    /// A record that was verified.
    Learn {
        key: PathKey,
        content: ContentTag,
        sealed: Vec<u8>,
    },
    Meet(Vec<(NodeKey, Vec<SocketAddr>)>),
    /// Changes what this node says of itself.
    Update(Box<dyn FnOnce(&mut NodeRecord) + Send>),
    Revoke {
        sealed: Vec<u8>,
        reply: oneshot::Sender<Result<(), FormatError>>,
    },
    /// What this node holds.
    Holdings(oneshot::Sender<Vec<Holding>>),
    /// Says goodbye, and is answered when it was said.
    Leave(oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

/// Another node, or this one as an owner, wants a copy kept here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub holding: Holding,
    /// Who has it.
    pub from: Vec<NodeKey>,
    /// The path itself, as who has it sent it; nothing of it is verified.
    pub enclosed: Option<Enclosed>,
}
