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
//!
//! # Processes
//! The node starts one *launcher*, a process of one thread that forks fast. The launcher keeps a few spare
//! *supervisors*, each with the *first process* of a sandbox that has its name spaces and most of its root file
//! system already. A build takes a spare: its supervisor makes the scratch directory ready while the first process
//! looks at the inputs; then the first process mounts them, gives up its rights and executes the builder.
//!
//! # Invariants
//! - No thread of the node ever forks, and no process here has a second thread: nothing is locked in a child.
//! - Nothing of a build is in the supervisor's memory alone but the time: log and outcome are files first.
//! - The first process dies with its supervisor, and every process of the sandbox with the first process.
//! - The outcome is told when all of them are dead. Mounts may still be on their way out.
//! - A builder never has a right that the caller of [`spawn`] does not have, and with root's none at all.

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
mod overlay;
mod probe;
mod protocol;
mod pty;
mod record;
mod recycle;
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

pub use capabilities::{Capability, State, capabilities, try_view};
pub use cgroup::cgroups;
pub use outcome::{End, Outcome, Usage};
pub use output::{OutputError, canonicalise, release, remove_tree};
pub use recycle::recycle;
pub use running::{Event, Killer, Running, attach, spawn};
pub use scratch::Scratch;
pub use spec::{Bind, BuildFile, Cgroups, Identity, Input, Limits, Personality, Program, Spec};
pub use supervisor::{Builtin, SUPERVISOR_ARG, supervisor_main};
