//! A small process that has one thread and next to no memory, and therefore forks supervisors fast.
//!
//! The node starts it once. For each message it gets it bears a supervisor and sends back the node's end of
//! that supervisor's socket. It ends when the node does; supervisors at work stay.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::setsid;
use rustix::thread::set_name;

use crate::supervisor::{Context, SUPERVISOR_ARG, supervise};
use crate::sys::{self, Cloned};
use crate::{Cgroups, message};

/// The argument after [`SUPERVISOR_ARG`].
pub(crate) const TASK: &str = "launch";

/// Sandboxes that wait for a build. Two: while one is used up by a build the next can begin at once, and each
/// costs a process and a network name space.
const SPARES: usize = 2;

/// A launcher, or a spare, may have been killed for lack of memory; a second one in a row is no accident.
const TRIES: usize = SPARES + 2;

/// A request is an encoded [`Cgroups`]: two paths and a number.
const REQUEST_MAX: usize = 16 * 1024;

/// The launcher's life. Its stdin is the node.
pub(crate) fn run(context: &Context) -> io::Result<()> {
    // A terminal's Ctrl-C is for the node, which may want to wait for its builds.
    let _ = setsid();
    sys::close_from(3)?;
    sys::ignore_children();
    // A name for `ps`; without one it goes by that of `/proc/self/exe`.
    let _ = set_name(c"shoal-sandbox");
    let node = std::io::stdin();
    let mut buffer = vec![0; REQUEST_MAX];
    loop {
        let received = message::receive(&node, &mut buffer)?;
        if received.bytes.is_empty() {
            return Ok(());
        }
        let cgroups: Cgroups = postcard::from_bytes(received.bytes).map_err(io::Error::other)?;
        let (near, far) = message::pair()?;
        match sys::clone_process(0, None)? {
            Cloned::Parent { .. } => {
                drop(near);
                message::send_with_fds(&node, b"s", &[far.as_fd()])?;
            }
            Cloned::Child => {
                drop((far, received.fds));
                // What a supervisor can't tell its watchers it can tell nobody.
                let supervised = supervise(context, near, &cgroups);
                sys::exit_now(i32::from(supervised.is_err()))
            }
        }
    }
}

/// The node's side.
struct Launcher {
    socket: OwnedFd,
    process: Child,
}

static LAUNCHER: Mutex<Option<Launcher>> = Mutex::new(None);

/// Sends a message and descriptors to a supervisor that nobody else has, and returns its socket.
pub(crate) fn hand_over(cgroups: &Cgroups, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    let request = postcard::to_stdvec(cgroups).map_err(io::Error::other)?;
    let mut launcher = LAUNCHER.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failure = io::Error::from(io::ErrorKind::NotConnected);
    for _ in 0..TRIES {
        let current = match launcher.take() {
            Some(running) => running,
            None => Launcher::start(&request)?,
        };
        let current = launcher.insert(current);
        let handed =
            current.supervisor().map(|supervisor| (message::send_with_fds(&supervisor, message, fds), supervisor));
        // The build goes first.
        let ordered = message::send(&current.socket, &request);
        match handed {
            Ok((Ok(()), supervisor)) => {
                if ordered.is_err() {
                    *launcher = None;
                }
                return Ok(supervisor);
            }
            Ok((Err(error), _)) => failure = error,
            Err(error) => {
                failure = error;
                *launcher = None;
            }
        }
    }
    Err(failure)
}

impl Launcher {
    fn start(request: &[u8]) -> io::Result<Launcher> {
        let (socket, far) = message::pair()?;
        let process = Command::new("/proc/self/exe")
            .arg0("shoal-sandbox")
            .args([SUPERVISOR_ARG, TASK])
            .stdin(far)
            .stdout(Stdio::null())
            .spawn()?;
        let launcher = Launcher { socket, process };
        (0..SPARES).try_for_each(|_| message::send(&launcher.socket, request))?;
        Ok(launcher)
    }

    /// The oldest spare. Another one must be ordered for it.
    fn supervisor(&self) -> io::Result<OwnedFd> {
        let mut buffer = [0; 1];
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the sandbox launcher has died");
        message::receive(&self.socket, &mut buffer)?.fds.pop().ok_or_else(gone)
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // It has closed its socket or broken the protocol: it is dead or ought to be.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
