//! Runs one builder process in Linux namespaces, under a supervisor process of its own.
//!
//! A caller fills a [`Spec`] and calls [`spawn`]; it gets a [`Running`] from which output and, at the end,
//! the [`Outcome`] are read. The supervisor outlives its caller: after a restart [`attach`] adopts it by the
//! scratch directory alone. Everything about a build is in that directory (see [`Scratch`]).
//!
//! The executable that calls [`spawn`] must call [`supervisor_main`] first thing in `main` when its first
//! argument is [`SUPERVISOR_ARG`]: the supervisor is that executable, started again.
//!
//! This crate knows no Nix protocol and no chunk store: inputs are trees on disk, outputs are trees on disk.

mod audience;
mod birth;
mod capabilities;
mod cgroup;
mod child;
mod failure;
mod identity;
mod launcher;
mod log;
mod message;
mod outcome;
mod output;
mod probe;
mod protocol;
mod pty;
mod rootfs;
mod running;
mod scratch;
mod seccomp;
mod spec;
mod store;
mod supervisor;
mod sys;
mod view;
mod walk;
mod watch;

pub use capabilities::{Capability, State, capabilities};
pub use cgroup::cgroups;
pub use outcome::{End, Outcome, Usage};
pub use output::{OutputError, canonicalise, release, remove_tree};
pub use running::{Event, Killer, Running, attach, spawn};
pub use scratch::Scratch;
pub use spec::{Bind, BuildFile, Cgroups, Identity, Input, Limits, Personality, Program, Spec};
pub use supervisor::{Builtin, SUPERVISOR_ARG, supervisor_main};
