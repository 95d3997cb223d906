//! Real sandboxes, as root and as an ordinary user.
//!
//! Not the standard harness: this executable is the supervisor of its own builds, too. It understands what
//! `cargo test` and `cargo nextest` say to a harness.

#[path = "sandbox/builtins.rs"]
mod builtins;
#[path = "sandbox/ending.rs"]
mod ending;
#[path = "sandbox/environment.rs"]
mod environment;
#[path = "sandbox/harness.rs"]
mod harness;
#[path = "sandbox/inputs.rs"]
mod inputs;
#[path = "sandbox/outputs.rs"]
mod outputs;
#[path = "sandbox/recycling.rs"]
mod recycling;
#[path = "sandbox/watching.rs"]
mod watching;
#[path = "sandbox/world.rs"]
mod world;

fn main() {
    let mut args = std::env::args();
    match args.nth(1).as_deref() {
        Some(shoal_sandbox::SUPERVISOR_ARG) => shoal_sandbox::supervisor_main(builtins::run),
        Some(watching::START_AND_DIE) => watching::start_and_die(args),
        _ => {}
    }
    let tests = [environment::TESTS, inputs::TESTS, ending::TESTS, watching::TESTS, outputs::TESTS, recycling::TESTS];
    harness::main(&tests.concat())
}
