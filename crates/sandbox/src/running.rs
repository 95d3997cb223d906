//! A build seen from outside: its output, its end, and the way to stop it.

use std::io;
use std::path::Path;
use std::time::Instant;

use crate::{Outcome, Scratch, Spec};

/// What [`Running::next`] has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the log, in order, each once. Split anywhere.
    Output(Vec<u8>),
    /// Comes once, after all output.
    Exited(Outcome),
}

/// A build that is running, or has ended and is about to say how.
///
/// Dropping it leaves the build alone.
#[derive(Debug)]
pub struct Running {
    scratch: Scratch,
}

impl Running {
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Waits for the next event. `None` when `deadline` passed first.
    pub fn next(&mut self, _deadline: Option<Instant>) -> io::Result<Option<Event>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Stops the build. Returns at once; [`Event::Exited`] follows. No effect when it is over.
    pub fn kill(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A handle for another thread.
    pub fn killer(&self) -> io::Result<Killer> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Stops a build from another thread than the one that reads its events.
#[derive(Debug)]
pub struct Killer {}

impl Killer {
    pub fn kill(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Starts a build. Errors are the caller's machine's; what goes wrong inside comes as an [`Outcome`].
pub fn spawn(_spec: &Spec) -> io::Result<Running> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Goes on with a build that an earlier process started, from byte `log_offset` of its log.
/// Also works when the build has ended in the meantime.
///
/// `NotFound` when nothing was ever started in `scratch`.
pub fn attach(_scratch: &Path, _log_offset: u64) -> io::Result<Running> {
    Err(io::ErrorKind::Unsupported.into())
}
