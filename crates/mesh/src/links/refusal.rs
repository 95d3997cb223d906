//! Why there is no link, or no more.

use crate::dial::DialError;
use crate::protocol::Close;
use iroh::endpoint::{Connection, ConnectionError};
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// This node will not have it; the other end is told so.
    Ours(Close, String),
    /// The other end said so.
    Theirs(u64, String),
    /// The connection broke.
    Lost(String),
}

impl Refusal {
    pub fn new(close: Close, reason: impl Into<String>) -> Self {
        Refusal::Ours(close, reason.into())
    }

    pub fn busy() -> Self {
        Refusal::new(Close::Busy, "there are too many connections")
    }

    pub fn stopping() -> Self {
        Refusal::new(Close::Stopping, "the node stops")
    }

    pub fn barred() -> Self {
        Refusal::new(Close::Barred, "the node was thrown out of the mesh")
    }

    pub fn resting(reason: &str) -> Self {
        Refusal::new(Close::Resting, format!("it was cut off a moment ago: {reason}"))
    }

    pub fn silent() -> Self {
        Refusal::new(Close::Silent, "no hello came in time")
    }

    pub fn duplicate() -> Self {
        Refusal::new(Close::Duplicate, "the connection in the other direction is kept")
    }

    /// What ended `connection`.
    pub fn lost(connection: &Connection) -> Self {
        match connection.close_reason() {
            Some(error) => Refusal::from(error),
            None => Refusal::Lost("the stream was broken off".to_owned()),
        }
    }

    /// Closes `connection` if that is on this end, and gives itself back.
    pub fn close(self, connection: &Connection) -> Self {
        if let Refusal::Ours(close, reason) = &self {
            connection.close(close.code(), reason.as_bytes());
        }
        self
    }

    /// Whether another try soon would come to the same.
    pub fn is_lasting(&self) -> bool {
        use Close::*;
        let lasting = [Malformed, OtherMesh, Forged, OtherKey, Expired, Barred, NoRole];
        match self {
            Refusal::Ours(close, _) => lasting.contains(close),
            Refusal::Theirs(code, _) => lasting.iter().any(|close| *close as u64 == *code),
            Refusal::Lost(_) => false,
        }
    }

    /// Whether the other end closed for this reason.
    pub fn is_by(&self, close: Close) -> bool {
        matches!(self, Refusal::Theirs(code, _) if *code == close as u64)
    }
}

impl From<ConnectionError> for Refusal {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(closed) => {
                Refusal::Theirs(closed.error_code.into_inner(), printable(&closed.reason))
            }
            other => Refusal::Lost(other.to_string()),
        }
    }
}

/// What a peer gave as its reason, as it may be shown.
fn printable(reason: &[u8]) -> String {
    let text = String::from_utf8_lossy(reason);
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Ours(_, reason) | Refusal::Lost(reason) => f.write_str(reason),
            Refusal::Theirs(_, reason) => write!(f, "the other end says: {reason}"),
        }
    }
}

/// To who wanted to dial.
impl From<Refusal> for DialError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Ours(_, reason) => DialError::Barred(reason),
            // The other end believes in a connection that this one lost; it will find out.
            Refusal::Theirs(code, reason) if code == Close::Duplicate as u64 => DialError::Silent(reason),
            Refusal::Theirs(_, reason) => DialError::Refused(reason),
            Refusal::Lost(reason) => DialError::Silent(reason),
        }
    }
}
