//! The legacy serve protocol (`ssh://`), versions 2.5 to 2.7: what `nix-store --serve` speaks.
//!
//! Commands and replies follow each other with nothing between. There is no way to say that a command failed,
//! but for the two that build: print the reason to stderr and end the process. Format:
//! `libstore/serve-protocol.cc`, `legacy-ssh-store.cc`, `export-import.cc` of NixOS/nix.

pub mod client;
pub mod commands;
pub mod export;
pub mod handshake;

pub use client::Client;
pub use commands::{BuildOptions, BuildPathsReply, Op, Reply, Request, ServeBuildResult};
pub use export::{ExportEntry, ExportReader, ExportWriter};
pub use handshake::HandshakeError;

/// The first word of a client.
pub const CLIENT_MAGIC: u64 = 0x390c_9deb;
/// The first word of a server.
pub const SERVER_MAGIC: u64 = 0x5452_eecb;
/// The only major version.
pub const MAJOR: u64 = 2;
/// What this implementation announces.
pub const MINOR_MAX: u8 = 7;
/// The oldest peer that is accepted: Nix 2.3.
pub const MINOR_MIN: u8 = 5;
