//! The command line. Help, man page and completions all come from the types here and the table of configuration keys.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

use crate::config::flags::DataDirFlag;
use crate::config::{self, ConfigFlags, Loaded};

mod build;
mod check_config;
mod client;
mod cold;
mod copy;
mod demo;
mod doctor;
mod du;
mod exit;
mod explain;
mod key;
mod manual;
mod mesh;
mod mount;
mod output;
mod paths;
mod pin;
mod scrub;
mod serve;
mod status;
mod token;
mod trace;
mod use_node;
mod watch;

pub use exit::{Exit, Failure};

type Outcome = anyhow::Result<()>;

/// A build grid for Nix: one program that is a store, a cache and a builder.
#[derive(Parser)]
#[command(name = "shoal", version, propagate_version = true, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct Global {
    /// Read this configuration file instead of /etc/shoal/config.toml
    #[arg(long, global = true, value_name = "FILE", help_heading = "Node")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub data_dir: DataDirFlag,
    /// Say more; twice for even more
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Node")]
    pub verbose: u8,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a node until it is told to stop
    Serve(serve::Serve),
    /// Show what a running node is doing
    Status(status::Status),
    /// List the nodes of the mesh
    Peers(mesh::Peers),
    /// Make a mesh, let nodes in, and come and go
    #[command(subcommand)]
    Mesh(mesh::Mesh),
    /// Have a node take nothing new and hand over what only it holds, before it is stopped
    Drain(mesh::Drain),
    /// List the store paths of a running node
    Paths(paths::Paths),
    /// Show how much the store holds, and what chunking and compression save
    Du(du::Du),
    /// Build derivations that the node or another one has, without Nix
    Build(build::Build),
    /// List running builds, and those that ended last
    Builds(status::Builds),
    /// Say why derivations wait, or why they went where they went
    Explain(explain::Explain),
    /// Show where the time of a build went
    Trace(trace::Trace),
    /// Stop a build, or a request that nobody waits for
    Cancel(build::Cancel),
    /// Print the log of a build
    Log(paths::Log),
    /// Delete store paths that nothing keeps
    Gc(paths::Gc),
    /// Copy store paths and what they refer to from this machine's Nix store to a node
    Push(copy::Push),
    /// Copy store paths and what they refer to from a node to this machine's Nix store
    Pull(copy::Pull),
    /// Show the store at a directory, and fetch what is read of it
    Mount(mount::Mount),
    /// Keep store paths under a name, or list what is kept
    Pin(pin::Pin),
    /// Keep no longer what was pinned
    Unpin(pin::Unpin),
    /// Read all that is stored, and have what is damaged healed by upstream caches
    Scrub(scrub::Scrub),
    /// Look after the bucket behind the mesh
    #[command(subcommand)]
    Cold(cold::Cold),
    /// Push what this machine's Nix store gains, from a queue that survives whatever happens
    WatchStore(watch::WatchStore),
    /// Show or install the lines that point a machine's Nix at this node
    Use(use_node::Use),
    /// Say who may use this node over ssh
    #[command(subcommand)]
    Client(client::Client),
    /// Say who may use this node over HTTP
    #[command(subcommand)]
    Token(token::Token),
    /// Make and show signing keys
    #[command(subcommand)]
    Key(key::Key),
    /// Check the machine and say how to fix what is wrong
    Doctor(doctor::Doctor),
    /// Run some nodes in a temporary directory, to try things on
    Demo(demo::Demo),
    /// Check the configuration and show every setting with its origin
    CheckConfig(check_config::CheckConfig),
    /// Print a shell's completions
    Completions(manual::Completions),
    /// Print the manual page
    Man,
}

/// Whether a command that reads prints for people or for programs.
#[derive(Args, Clone, Copy)]
pub struct ReadArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Global {
    /// The configuration with `flags` on top.
    pub fn load(&self, flags: ConfigFlags) -> anyhow::Result<Loaded> {
        self.load_here(flags.and(&self.data_dir))
    }

    /// The same for a command that has a data directory of its own.
    fn load_here(&self, flags: ConfigFlags) -> anyhow::Result<Loaded> {
        config::load(self.config.as_deref(), text_environment(), &flags).map_err(|errors| {
            let list = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            Failure::new(Exit::Config, list).into()
        })
    }
}

/// Variables that are text; none of ours can be anything else.
fn text_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    exit::report(run(&cli))
}

fn run(cli: &Cli) -> Outcome {
    match &cli.command {
        Command::Serve(command) => command.run(&cli.global),
        Command::Demo(command) => command.run(&cli.global),
        Command::Status(command) => command.run(&cli.global),
        Command::Peers(command) => command.run(&cli.global),
        Command::Mesh(command) => command.run(&cli.global),
        Command::Drain(command) => command.run(&cli.global),
        Command::Paths(command) => command.run(&cli.global),
        Command::Du(command) => command.run(&cli.global),
        Command::Build(command) => command.run(&cli.global),
        Command::Builds(command) => command.run(&cli.global),
        Command::Explain(command) => command.run(&cli.global),
        Command::Trace(command) => command.run(&cli.global),
        Command::Cancel(command) => command.run(&cli.global),
        Command::Log(command) => command.run(&cli.global),
        Command::Gc(command) => command.run(&cli.global),
        Command::Push(command) => command.run(&cli.global),
        Command::Pull(command) => command.run(&cli.global),
        Command::Mount(command) => command.run(&cli.global),
        Command::Pin(command) => command.run(&cli.global),
        Command::Unpin(command) => command.run(&cli.global),
        Command::Scrub(command) => command.run(&cli.global),
        Command::Cold(command) => command.run(&cli.global),
        Command::WatchStore(command) => command.run(&cli.global),
        Command::Use(command) => command.run(&cli.global),
        Command::Client(command) => command.run(&cli.global),
        Command::Token(command) => command.run(&cli.global),
        Command::Key(command) => command.run(&cli.global),
        Command::Doctor(command) => command.run(&cli.global),
        Command::CheckConfig(command) => command.run(&cli.global),
        Command::Completions(command) => command.run(Cli::command()),
        Command::Man => manual::man(Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
