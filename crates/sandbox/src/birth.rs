//! A sandbox before it has anything to build: a process in name spaces of its own, a terminal, a control group.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal, pidfd_send_signal};

use crate::cgroup::Group;
use crate::child::{self, Inheritance, talk};
use crate::failure::{Attempt, Doing};
use crate::identity::{Ids, Rights, map_ids};
use crate::supervisor::Context;
use crate::sys::{self, Cloned};
use crate::{Cgroups, message, pty};

/// The first process of a sandbox, waiting for a spec. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Newborn {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// To the process.
    pub socket: OwnedFd,
    /// The near end of the builder's terminal.
    pub terminal: OwnedFd,
    pub group: Group,
    has_own_network: bool,
}

/// Whether the sandbox is born with a network of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Own,
    Host,
}

impl Newborn {
    pub fn bear(context: &Context, cgroups: &Cgroups, network: Network) -> Attempt<Newborn> {
        let terminal = pty::open().doing("opening a pseudo terminal")?;
        let (near, far) = message::pair().doing("making a socket pair")?;
        let group = Group::create(cgroups);
        let has_own_network = network == Network::Own;
        let host_network = has_own_network.then(|| File::open("/proc/self/ns/net")).transpose();
        let host_network = host_network.doing("opening the host's network")?.map(OwnedFd::from);
        let flags = name_spaces(context.rights, network);
        let inheritance = Inheritance {
            rights: context.rights,
            filter: &context.filter,
            builtin: context.builtin,
            threads_max: context.threads_max,
            host_network,
            terminal: terminal.slave,
            supervisor: far,
        };
        match sys::clone_process(flags, group.unified()).doing("making name spaces")? {
            Cloned::Child => {
                // Held open here they would keep the sandbox from noticing that its supervisor died.
                drop((near, terminal.master));
                child::run(&inheritance)
            }
            Cloned::Parent { pid, pidfd } => {
                let terminal = terminal.master;
                let socket = near;
                let newborn = Newborn { pid, pidfd, socket, terminal, group, has_own_network };
                newborn.warm(context.rights)?;
                Ok(newborn)
            }
        }
    }

    fn warm(&self, rights: Rights) -> Attempt<()> {
        if rights == Rights::User {
            map_ids(self.pid, Ids::own())?;
        }
        message::send(&self.socket, talk::WARM).doing("starting the sandbox")
    }

    /// Whether a build can run here that has this access to the network, and these control groups.
    pub fn suits(&self, context: &Context, network: Network, cgroups: &Cgroups) -> bool {
        let can_leave = context.rights == Rights::Root && self.has_own_network;
        let network_suits = match network {
            Network::Own => self.has_own_network,
            Network::Host => can_leave || !self.has_own_network,
        };
        network_suits && self.group.serves(cgroups)
    }

    pub fn kill(&self) {
        // Fails only when there is nothing left to kill.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        self.kill();
        // A control group can be removed when nobody is in it. Fails if it was reaped already.
        let _ = sys::wait_usage(self.pid);
    }
}

/// Root gives its sandbox a user name space later, when the mounts are made.
fn name_spaces(rights: Rights, network: Network) -> u64 {
    let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if network == Network::Own {
        flags |= libc::CLONE_NEWNET;
    }
    if rights == Rights::User {
        flags |= libc::CLONE_NEWUSER;
    }
    flags as u64
}
