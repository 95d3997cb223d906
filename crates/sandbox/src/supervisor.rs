//! The process that sets a sandbox up and stays with the builder until its end.

/// The hidden first argument that makes an executable a supervisor.
pub const SUPERVISOR_ARG: &str = "__sandbox";

/// Runs a [`crate::Program::Builtin`]: name and payload in, exit code out. Called in the sandbox, in a process
/// of its own; its stdout and stderr are the build's log.
pub type Builtin = fn(name: &str, payload: &[u8]) -> i32;

/// The supervisor. Call it before anything else in `main`, while the process has one thread.
pub fn supervisor_main(_builtin: Builtin) -> ! {
    std::process::exit(1)
}
