//! Asking for a build, and hearing of it.

use super::{ALIVE_MAX, CANCELLED, ReadFailure, read, write};
use crate::dial::DialBuilds;
use crate::fetcher::AskError;
use crate::protocol::Close;
use iroh::endpoint::{Connection, RecvStream, SendStream};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame};
use std::time::Duration;
use tokio::time::timeout;

/// How long opening a connection and a stream may take. Dialling has limits of its own; this one is for all of it.
const OPEN_TIME: Duration = ALIVE_MAX;

/// A build at another node. Whoever drops it does not want it any more, and the other node hears that.
#[derive(Debug)]
pub struct Building {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

/// Asks `node`.
pub async fn ask(dial: &dyn DialBuilds, node: NodeKey, ask: &BuildAsk) -> Result<Building, AskError> {
    let open = async {
        let connection = dial.builds(node).await?;
        let (send, recv) = connection.open_bi().await.map_err(|error| AskError::Broke(error.to_string()))?;
        Ok::<_, AskError>(Building { connection, send, recv })
    };
    let mut building = timeout(OPEN_TIME, open).await.map_err(|_| AskError::Silent)??;
    match write(&mut building.send, ask).await {
        Some(Ok(())) => Ok(building),
        Some(Err(error)) => Err(AskError::Broke(error.to_string())),
        None => Err(AskError::Silent),
    }
}

impl Building {
    /// What is said next; not to be called after a frame that is the last.
    pub async fn next(&mut self) -> Result<BuildFrame, AskError> {
        match read(&mut self.recv, ALIVE_MAX).await {
            Ok(frame) => Ok(frame),
            Err(ReadFailure::Silent) => {
                // Where the node was started again nobody answers on it any more, and the next one asks on another.
                self.connection.close(Close::Silent.code(), b"it says nothing");
                Err(AskError::Silent)
            }
            Err(ReadFailure::Broke(error)) => Err(AskError::Broke(error.to_string())),
            Err(ReadFailure::Bad(error)) => Err(AskError::Lied(error.to_string())),
        }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // Where all was said already there is nothing to reset.
        let _ = self.send.reset(CANCELLED);
        let _ = self.recv.stop(CANCELLED);
    }
}
