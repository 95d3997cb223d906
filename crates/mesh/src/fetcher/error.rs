//! Why nothing came.

use crate::dial::DialError;
use crate::links::short;
use shoal_grid::transfer::Fault;
use shoal_store::Error as StoreError;
use shoal_wire::mesh::NodeKey;
use thiserror::Error;

/// Why a peer gave no answer to a question.
#[derive(Debug, Clone, Error)]
pub enum AskError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("it does not answer")]
    Silent,
    #[error("the connection broke: {0}")]
    Broke(String),
    #[error("it is too busy")]
    Busy,
    /// What it said cannot be true.
    #[error("it lies: {0}")]
    Lied(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AskError {
    pub(super) fn fault(&self) -> Option<Fault> {
        match self {
            AskError::Dial(_) => Some(Fault::Unreachable),
            AskError::Silent => Some(Fault::Silent),
            AskError::Broke(_) => Some(Fault::Broke),
            AskError::Lied(_) => Some(Fault::Lied),
            AskError::Busy | AskError::Store(_) => None,
        }
    }
}

/// A peer that was asked nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    pub peer: NodeKey,
    pub fault: Fault,
    pub why: String,
}

impl Dropped {
    /// Whether it said something that cannot be true, which no broken link does to it.
    pub fn is_offence(&self) -> bool {
        self.fault == Fault::Lied
    }
}

/// Why a path was not fetched. What came of it is kept for a while.
#[derive(Debug, Clone, Error)]
#[error("{failure}{}", told(.dropped))]
pub struct FetchError {
    pub failure: FetchFailure,
    /// Whom it was asked of in vain, and why.
    pub dropped: Vec<Dropped>,
}

/// Who was asked in vain, for people.
fn told(dropped: &[Dropped]) -> String {
    dropped.iter().map(|dropped| format!("; {}…: {}", short(&dropped.peer), dropped.why)).collect()
}

#[derive(Debug, Clone, Error)]
pub enum FetchFailure {
    #[error("nobody is left who has it")]
    NoHolder,
    #[error("nobody who is left has all of its chunks")]
    Absent,
    #[error("the NAR that its record names is another one")]
    NarHash,
    /// What is stored is found damaged again and again.
    #[error("chunks of it do not stay here")]
    Unstable,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the fetch was given up")]
    Stopped,
}
