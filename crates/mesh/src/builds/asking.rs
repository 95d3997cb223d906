//! Asking for a build, and hearing of it.

use super::{CANCELLED, ReadFailure, SILENCE_MAX, read, write};
use crate::dial::DialBuilds;
use crate::fetcher::AskError;
use iroh::endpoint::{RecvStream, SendStream};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame};
use std::time::Duration;
use tokio::time::timeout;

/// How long opening a connection and a stream may take. Dialling has limits of its own; this one is for all of it.
const OPEN_TIME: Duration = Duration::from_secs(10);

/// A build at another node. Whoever drops it does not want it any more, and the other node hears that.
#[derive(Debug)]
pub struct Building {
    send: SendStream,
    recv: RecvStream,
}

/// Asks `node`.
pub async fn ask(dial: &dyn DialBuilds, node: NodeKey, ask: &BuildAsk) -> Result<Building, AskError> {
    let open = async {
        let connection = dial.builds(node).await?;
        connection.open_bi().await.map_err(|error| AskError::Broke(error.to_string()))
    };
    let (send, recv) = timeout(OPEN_TIME, open).await.map_err(|_| AskError::Silent)??;
    let mut building = Building { send, recv };
    match write(&mut building.send, ask).await {
        Some(Ok(())) => Ok(building),
        Some(Err(error)) => Err(AskError::Broke(error.to_string())),
        None => Err(AskError::Silent),
    }
}

impl Building {
    /// What is said next; not to be called after a frame that is the last.
    pub async fn next(&mut self) -> Result<BuildFrame, AskError> {
        match read(&mut self.recv, SILENCE_MAX).await {
            Ok(frame) => Ok(frame),
            Err(ReadFailure::Silent) => Err(AskError::Silent),
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
