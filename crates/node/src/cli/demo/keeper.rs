//! The process that the nodes of a demo are below.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{getpid, set_child_subreaper};

use super::member::{Member, Plan};
use super::{descendants, guide};
use crate::cli::Outcome;
use crate::control::{Request, client};
use crate::door::authorized_keys::Role;
use crate::door::host_key;
use crate::serve::ready::Ready;
use crate::{clients, files};

/// From the start of a node until it listens, or is seen by another; on a machine that does much else.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Nodes that drain nothing stop within a second.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
/// The ticket is used at once.
const TICKET_S: u64 = 3_600;

/// The demo's end: stdin's.
struct Tie(Receiver<()>);

impl Tie {
    fn new() -> io::Result<Tie> {
        let (end, over) = channel();
        let read = move || {
            // Nothing is ever written to it. An error says the same as an end.
            let _ = io::stdin().read_to_end(&mut Vec::new());
            drop(end);
        };
        thread::Builder::new().name("tie".into()).spawn(read)?;
        Ok(Tie(over))
    }

    /// Whether the demo is over, after at most `wait`.
    fn is_over(&self, wait: Duration) -> bool {
        self.0.recv_timeout(wait) != Err(RecvTimeoutError::Timeout)
    }

    fn wait(&self) {
        // An error is the end.
        let _ = self.0.recv();
    }
}

/// Runs the nodes until stdin ends, and leaves nothing of them but `dir` where it is to be `kept`.
pub fn keep(dir: &Path, kept: bool, plans: &[Plan]) -> Outcome {
    set_child_subreaper(Some(getpid())).context("cannot be told of what nodes leave behind")?;
    let tie = Tie::new()?;
    let mut members = Vec::new();
    let shown = start(dir, plans, &tie, &mut members).and_then(|ready| match ready {
        Some(ready) => guide::announce(dir, kept, &members, &ready),
        None => Ok(()),
    });
    if shown.is_ok() {
        tie.wait();
    }
    stop(&mut members);
    descendants::end();
    if !kept {
        super::remove(dir);
    }
    shown
}

/// Starts all nodes. `None`: the demo was over before.
fn start(dir: &Path, plans: &[Plan], tie: &Tie, members: &mut Vec<Member>) -> Result<Option<Vec<Ready>>> {
    let key = dir.join("client-key");
    let public = host_key::create(&key).context("cannot make an ssh key")?;
    let mut ticket = None;
    for plan in plans {
        fs::create_dir(&plan.config.data_dir)?;
        clients::add(&plan.config.authorized_keys, public.public_key(), Role::Admin, None)?;
        members.push(plan.start(ticket.as_deref()).context("cannot start a node")?);
        if ticket.is_none() && plans.len() > 1 {
            // The others are let in by the first.
            if wait_for(tie, members, |members| members[0].ready())?.is_none() {
                return Ok(None);
            }
            ticket = Some(invite(dir, &plan.config.data_dir)?);
        }
    }
    let ready = wait_for(tie, members, |members| {
        let ready: Vec<Ready> = members.iter().filter_map(Member::ready).collect();
        (ready.len() == plans.len()).then_some(ready)
    })?;
    let Some(ready) = ready else { return Ok(None) };
    let known = wait_for(tie, members, |members| {
        members.iter().all(|member| live(&member.config.data_dir) >= plans.len()).then_some(())
    })?;
    Ok(known.map(|()| ready))
}

/// Waits until `found` gives something. `None`: the demo is over.
fn wait_for<T>(tie: &Tie, members: &mut [Member], found: impl Fn(&[Member]) -> Option<T>) -> Result<Option<T>> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        if let Some(found) = found(members) {
            return Ok(Some(found));
        }
        if let Some(ended) = members.iter_mut().find_map(|member| member.has_ended().then_some(&member.config.name)) {
            bail!("node {ended} did not start");
        }
        if Instant::now() >= deadline {
            bail!("the nodes did not come up within {} s", START_PATIENCE.as_secs());
        }
        if tie.is_over(POLL) {
            return Ok(None);
        }
    }
}

/// Lets others in by a ticket in a file, since anybody may see the flags of a process.
fn invite(dir: &Path, data_dir: &Path) -> Result<PathBuf> {
    let request = Request::MeshInvite {
        reusable: true,
        roles: ["store", "build"].map(String::from).into(),
        ttl_seconds: TICKET_S,
        membership_seconds: shoal_mesh::identity::MEMBERSHIP_S,
    };
    let answer = client::ask_one(data_dir, &request)?;
    let ticket = answer["ticket"].as_str().context("the node gave no ticket")?;
    let file = dir.join("ticket");
    files::replace(&file, files::SECRET, ticket.as_bytes())?;
    Ok(file)
}

/// How many nodes the one of `data_dir` knows to be there, itself among them; 1 where it is in no mesh.
fn live(data_dir: &Path) -> usize {
    let mut live = 0;
    let asked = client::ask(data_dir, &Request::Peers, |peer| {
        live += usize::from(peer["state"] == "alive");
        Ok(())
    });
    if asked.is_ok() { live } else { 1 }
}

/// Lets the nodes stop by themselves, as long as they may wait for what runs on them.
fn stop(members: &mut [Member]) {
    members.iter_mut().for_each(Member::stop);
    let patience = members.iter().map(|member| member.config.drain_timeout).max().unwrap_or_default();
    let deadline = Instant::now() + patience + STOP_PATIENCE;
    while Instant::now() < deadline && members.iter_mut().any(|member| !member.has_ended()) {
        thread::sleep(POLL);
    }
}
