//! Connections to members, as those who move chunks or have something built need them.

use iroh::endpoint::Connection;
use shoal_wire::mesh::NodeKey;
use std::future::Future;
use std::pin::Pin;
use thiserror::Error;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DialError {
    #[error("no address of the node is known")]
    NoAddress,
    #[error("the node does not answer: {0}")]
    Silent(String),
    #[error("the node refuses: {0}")]
    Refused(String),
    /// It was cut off, or is no member.
    #[error("the node is not spoken to: {0}")]
    Barred(String),
}

/// Opens connections of [`crate::protocol::CHUNKS`] to members, or gives the one that is open.
pub trait Dial: Send + Sync + 'static {
    fn chunks(&self, node: NodeKey) -> BoxFuture<'_, Result<Connection, DialError>>;
}

/// The same of [`crate::protocol::BUILDS`].
pub trait DialBuilds: Send + Sync + 'static {
    fn builds(&self, node: NodeKey) -> BoxFuture<'_, Result<Connection, DialError>>;
}

/// What a peer did that no member does, for people.
pub type Offence = String;

/// Answers on a connection of [`crate::protocol::CHUNKS`] whose other end is a member, until it closes, or until the peer
/// is to be cut off for an offence.
pub trait ServeChunks: Send + Sync + 'static {
    fn serve(&self, peer: NodeKey, connection: Connection) -> BoxFuture<'static, Option<Offence>>;
}

/// Answers on a connection of [`crate::protocol::BUILDS`] whose other end is a member that builds, likewise.
pub trait ServeBuilds: Send + Sync + 'static {
    fn serve(&self, peer: NodeKey, connection: Connection) -> BoxFuture<'static, Option<Offence>>;
}
