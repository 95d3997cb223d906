//! The shoal program.

use std::process::ExitCode;

fn main() -> ExitCode {
    shoal_node::cli::main()
}
