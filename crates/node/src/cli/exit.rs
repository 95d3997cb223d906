//! How a command ends.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// Exit codes that scripts may rely on. Success is 0; usage errors are clap's, 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A build or an operation failed.
    Failed = 1,
    /// Bad configuration.
    Config = 64,
    /// No node could be reached.
    Unreachable = 69,
    /// It may work later.
    TryAgain = 75,
}

impl Exit {
    /// What an error exits with.
    pub fn of(error: &anyhow::Error) -> Exit {
        error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map_or(Exit::Failed, |failure| failure.exit)
    }
}

/// A failure with an exit code of its own; any other error exits with [`Exit::Failed`].
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure { exit, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Says on stderr what went wrong, if anything did.
pub fn report(outcome: anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // A reader that has seen enough (`shoal paths | head`) is not a failure worth a message.
    if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let exit = Exit::of(&error);
    let label = if super::output::coloured(io::stderr().is_terminal()) { "\x1b[31;1merror:\x1b[0m" } else { "error:" };
    // Nobody is left to tell if stderr is gone.
    let _ = writeln!(io::stderr(), "{label} {error:#}");
    ExitCode::from(exit as u8)
}
