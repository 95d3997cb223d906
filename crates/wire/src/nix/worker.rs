//! The worker protocol (`ssh-ng://`, `unix://`), versions 1.32 to 1.38: what `nix-daemon` speaks.
//!
//! A connection is a [handshake](handshake), then requests: opcode and request from the client, any number of
//! [log messages](stderr) from the server, the last of them saying whether a reply follows. Format:
//! `libstore/worker-protocol.cc`, `daemon.cc`, `remote-store.cc` of NixOS/nix.

pub mod build_result;
pub mod client;
pub mod handshake;
pub mod ops;
pub mod path_info;
pub mod stderr;
pub mod upload;

pub use build_result::{BuildResult, BuildStatus, KeyedBuildResult};
pub use client::{CallError, Client};
pub use handshake::{HandshakeError, Offer, ServerInfo, Trust};
pub use ops::{Op, Reply, Request};
pub use path_info::UnkeyedPathInfo;
pub use stderr::{RemoteError, StderrMessage};
pub use upload::UploadEntries;

/// `nixc`: the first word of a client.
pub const CLIENT_MAGIC: u64 = 0x6e69_7863;
/// `dxio`: the first word of a server.
pub const SERVER_MAGIC: u64 = 0x6478_696f;
/// The only major version.
pub const MAJOR: u64 = 1;
/// What this implementation announces.
pub const MINOR_MAX: u8 = 38;
/// The oldest peer that is accepted: Nix 2.4. Before it uploads and derived paths look different.
pub const MINOR_MIN: u8 = 32;
