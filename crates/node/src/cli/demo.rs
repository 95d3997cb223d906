//! `shoal demo`: a mesh of nodes in a temporary directory, with everything a client needs to try it.
//!
//! Invariants:
//! - each node is a process of its own, as on machines of their own;
//! - all of them are below a [`keeper`], which ends them, their builds and the directory when its stdin does: whatever
//!   ends the demo closes that;
//! - should the keeper be the one that dies, the demo does the same in its place.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::process::{getpid, set_child_subreaper};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, Failure, Global, Outcome};
use crate::config::ConfigFlags;
use member::Plan;

mod descendants;
mod guide;
mod keeper;
mod member;

/// As many as have a name.
const NODES_MAX: u8 = 9;

#[derive(Args)]
pub struct Demo {
    /// Use this new directory and leave it there, instead of a temporary one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How many nodes, 1 to 9
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
    nodes: u8,
    /// The directory of the demo that this process keeps
    #[arg(long, hide = true, value_name = "DIR")]
    keeper: Option<PathBuf>,
    #[command(flatten)]
    flags: ConfigFlags,
}

impl Demo {
    pub fn run(&self, global: &Global) -> Outcome {
        match &self.keeper {
            Some(dir) => keeper::keep(dir, self.dir.is_some(), &self.plans(global, dir)?),
            None => self.watch(global),
        }
    }

    fn plans(&self, global: &Global, dir: &Path) -> Result<Vec<Plan>> {
        (1..=self.nodes).map(|number| Plan::new(global, &self.flags, dir, number, self.nodes)).collect()
    }

    /// Starts the keeper and waits until it has ended, or has it end when this process is to.
    fn watch(&self, global: &Global) -> Outcome {
        let dir = match &self.dir {
            Some(dir) => std::path::absolute(dir)?,
            None => std::env::temp_dir().join(format!("shoal-demo-{}", std::process::id())),
        };
        // What is wrong with the flags is said before anything is made.
        self.plans(global, &dir)?;
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        set_child_subreaper(Some(getpid())).context("cannot be told of what nodes leave behind")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = runtime.block_on(async { signals() })?;
        let mut keeper = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .arg("--keeper")
            .arg(&dir)
            .stdin(Stdio::piped())
            // A terminal's Ctrl-C is for this process.
            .process_group(0)
            .spawn()
            .context("cannot start the demo's second process")?;
        let tie = keeper.stdin.take();
        thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(let_go(signals, tie)))?;
        let status = keeper.wait()?;
        descendants::end();
        if self.dir.is_none() {
            remove(&dir);
        }
        match status.success() {
            true => Ok(()),
            false => Err(Failure::new(Exit::Failed, format!("the demo did not end well ({status})")).into()),
        }
    }
}

fn signals() -> Result<[Signal; 3]> {
    let listen = |kind| signal(kind).context("cannot listen to signals");
    Ok([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?])
}

/// Has the keeper end at the first signal.
async fn let_go(signals: [Signal; 3], tie: Option<ChildStdin>) {
    let [mut interrupt, mut terminate, mut hangup] = signals;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    drop(tie);
}

/// Removes the demo's directory with all that is in it.
fn remove(dir: &Path) {
    if let Err(error) = shoal_sandbox::remove_tree(dir) {
        tracing::warn!(%error, "cannot remove {}", dir.display());
    }
}

/// `127.0.0.1:0` and the like, which leave the port to the kernel, are good for every node.
fn is_for_all(flag: &str, value: &str) -> bool {
    match flag {
        "ssh" | "http" | "mesh" => value == "none" || value.ends_with(":0"),
        "name" | "socket" | "authorized-keys" | "mesh-address" => false,
        _ => true,
    }
}

/// A demo is a mesh of its own.
fn check_apart(config: &crate::config::Config, nodes: u8) -> Result<()> {
    let joins = !config.join.is_empty() || config.mesh_secret_file.is_some() || !config.peer_dns.is_empty();
    let bad = |message: &str| Failure::new(Exit::Config, message);
    ensure!(!joins, bad("a demo makes a mesh of its own: it takes no join, mesh-secret-file and peer-dns"));
    ensure!(nodes == 1 || config.mesh.is_some(), bad("several nodes need their mesh; or give --nodes 1"));
    Ok(())
}
