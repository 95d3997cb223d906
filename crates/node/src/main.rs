//! The shoal program.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A build's supervisor is this program, started again; it must not have started any thread.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == shoal_sandbox::SUPERVISOR_ARG) {
        shoal_sandbox::supervisor_main(shoal_node::builtin::run);
    }
    // So is what keeps a mount.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == shoal_node::mount::KEEPER_ARG) {
        shoal_node::mount::keeper_main();
    }
    shoal_node::cli::main()
}
