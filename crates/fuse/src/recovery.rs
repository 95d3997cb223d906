//! Mounts that nobody serves any more, or that are stuck, are taken away.
//!
//! A process that asks a file system whose server is dead gets an error; one that asks a server which does not answer
//! waits, and after a signal cannot even be killed. Aborting the connection wakes it. So a mount is only ever looked at by
//! a thread that may be left waiting, and aborted where it does not answer.

use crate::mountinfo::{self, MountLine};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// A mount that does not say how it is in so long is taken for stuck.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
/// What mounts and unmounts for ordinary users.
const HELPER: &str = "fusermount3";

/// How a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Serving,
    /// Its server is gone.
    Dead,
    /// Its server is there and does not answer.
    Stuck,
}

/// Looks at a mount of another process, without being caught in it.
pub fn health(dir: &Path) -> Health {
    let (tell, told) = mpsc::channel();
    let looked_at = dir.to_owned();
    let look = move || {
        // Nobody may be left to hear it.
        let _ = tell.send(rustix::fs::statfs(&looked_at).map(|_| ()));
    };
    if thread::Builder::new().name("look at a mount".into()).spawn(look).is_err() {
        return Health::Stuck;
    }
    match told.recv_timeout(ANSWER_PATIENCE) {
        Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Health::Dead,
        Ok(_) => Health::Serving,
        Err(_) => Health::Stuck,
    }
}

/// Takes away dead mounts of ours wherever they are, and a stuck one at `dir`. Error: one at `dir` is in use.
pub fn clear(dir: &Path) -> io::Result<()> {
    let ours: Vec<MountLine> = mountinfo::read()?.into_iter().filter(mountinfo::is_ours).collect();
    // The newest first: mounts at one place lie on each other.
    for line in ours.iter().rev() {
        let is_mine = line.dir == dir;
        match health(&line.dir) {
            Health::Serving if is_mine => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "a mount of shoal is there, and is served"));
            }
            Health::Dead => remove(line).or_else(|error| if is_mine { Err(error) } else { Ok(()) })?,
            Health::Stuck if is_mine => remove(line)?,
            Health::Serving | Health::Stuck => continue,
        }
        tracing::warn!(dir = %line.dir.display(), "a mount that nobody served was taken away");
    }
    Ok(())
}

/// Aborts a mount's connection, so that nobody waits in it any more, and detaches it, though it be in use.
pub fn remove(line: &MountLine) -> io::Result<()> {
    // Where the control file system is mounted, also for the user whose mount it is.
    let _ = fs::write(abort_file(line.minor), "1");
    match unmount(&line.dir, UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => detach_by_helper(&line.dir),
        // Not mounted any more.
        Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn abort_file(minor: u32) -> PathBuf {
    PathBuf::from(format!("/sys/fs/fuse/connections/{minor}/abort"))
}

fn detach_by_helper(dir: &Path) -> io::Result<()> {
    let mut helper = Command::new(HELPER);
    helper.args(["-u", "-q", "-z", "--"]).arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match helper.status()?.success() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{HELPER} does not unmount it"))),
    }
}
