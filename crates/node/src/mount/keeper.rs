//! The process that holds the configured mount while its node starts again.
//!
//! It is this program, started again, and outlives the node as builds' supervisors do. It listens at a socket in the data
//! directory; whoever connects is given the mount's descriptors, and has the mount for as long as the connection is open.
//! When nobody has had it for a while, it is unmounted. The keeper ends when the mount does.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use shoal_fuse::Kept;

/// The first argument of a keeper.
pub const KEEPER_ARG: &str = "__keep-mount";
/// What is said may change between versions; another one's mount is made anew.
const VERSION: u8 = 1;
/// Descriptors in one message: the listening socket, and what a mount is.
const FDS_MAX: usize = 4;
/// A path, and the version.
const MESSAGE_MAX: usize = 4097;
/// The other end is a process that has nothing else to do.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// The connection to a keeper. The mount is this process's while it is open.
pub struct Keeper {
    _connection: UnixStream,
}

/// Where the keeper of a node listens.
fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("mount.sock")
}

impl Keeper {
    /// Gives a mount to a keeper, which unmounts it when no node has had it for `patience`.
    pub fn start(data_dir: &Path, dir: &Path, kept: &Kept, patience: Duration) -> Result<Keeper> {
        let socket = socket(data_dir);
        // One that keeps something else has lost its mount by now, and ends.
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
        let (ours, theirs) = UnixStream::pair()?;
        let mut keeper = Command::new("/proc/self/exe");
        keeper.args([KEEPER_ARG, &patience.as_millis().to_string()]).env_clear().current_dir("/");
        keeper.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = keeper.spawn().context("cannot start the process that keeps the mount")?;
        send(&ours, dir, &[&[listener.as_fd()], &fds(kept)[..]].concat())?;
        // Its end is seen by nobody but init, or this thread while this process is there.
        std::thread::Builder::new().name("keeper".into()).spawn(move || drop(child.wait()))?;
        match Keeper::find(data_dir)? {
            Some((keeper, kept_at, _)) if kept_at == dir => Ok(keeper),
            _ => bail!("the process that keeps the mount does not answer"),
        }
    }

    /// The mount that a keeper has for this node, and where it is. `None`: there is no keeper.
    pub fn find(data_dir: &Path) -> Result<Option<(Keeper, PathBuf, Kept)>> {
        let Ok(connection) = UnixStream::connect(socket(data_dir)) else { return Ok(None) };
        connection.set_read_timeout(Some(ANSWER_PATIENCE))?;
        let (dir, fds) = receive(&connection)?;
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next()) {
            (Some(device), Some(numbers)) => {
                Ok(Some((Keeper { _connection: connection }, dir, Kept { device, numbers, beneath: fds.next() })))
            }
            _ => bail!("the process that keeps the mount has none"),
        }
    }
}

fn fds(kept: &Kept) -> Vec<BorrowedFd<'_>> {
    [Some(&kept.device), Some(&kept.numbers), kept.beneath.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect()
}

fn send(to: &UnixStream, dir: &Path, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let message = [&[VERSION], dir.as_os_str().as_bytes()].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(to, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(from: &UnixStream) -> Result<(PathBuf, Vec<OwnedFd>)> {
    let mut message = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut message)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = fds.flatten().collect();
    match message.get(..received.bytes).and_then(<[u8]>::split_first) {
        Some((&VERSION, dir)) => Ok((PathBuf::from(std::ffi::OsString::from_vec(dir.to_vec())), fds)),
        Some((version, _)) => bail!("the process that keeps the mount speaks version {version}, not {VERSION}"),
        None => bail!("the process that keeps the mount said nothing"),
    }
}

/// The keeper's life. It starts without threads and makes none.
pub fn keeper_main() -> ! {
    let patience = env::args().nth(2).and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
    // A signal to the node's group is not for it.
    let _ = rustix::process::setsid();
    let ended = patience.context("no patience").and_then(keep);
    std::process::exit(if ended.is_ok() { 0 } else { 1 })
}

fn keep(patience: Duration) -> Result<()> {
    let given = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (dir, mut fds) = receive(&given)?;
    if fds.len() < 3 {
        bail!("nothing to keep");
    }
    let listener = UnixListener::from(fds.remove(0));
    let mut holder: Option<UnixStream> = None;
    let mut alone_since = Instant::now();
    loop {
        let left = patience.saturating_sub(alone_since.elapsed());
        if holder.is_none() && left.is_zero() {
            return unmount(&dir);
        }
        let wait = if holder.is_some() { None } else { Some(Timespec::try_from(left)?) };
        let mut polled = vec![
            PollFd::new(&listener, PollFlags::IN),
            // Of it only errors are told: it is unmounted, or was aborted.
            PollFd::new(&fds[0], PollFlags::empty()),
        ];
        polled.extend(holder.as_ref().map(|holder| PollFd::new(holder, PollFlags::IN)));
        match poll(&mut polled, wait.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled?,
        };
        let happened: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(polled);
        if happened[1] {
            return Ok(());
        }
        if happened.get(2) == Some(&true) && holder.as_mut().is_some_and(has_gone) {
            (holder, alone_since) = (None, Instant::now());
        }
        if happened[0] {
            let (next, _) = listener.accept()?;
            let given: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            if send(&next, &dir, &given).is_ok() {
                holder = Some(next);
            }
        }
    }
}

/// Nothing is ever said by who has the mount but that it is gone.
fn has_gone(holder: &mut UnixStream) -> bool {
    !matches!(holder.read(&mut [0; 1]), Ok(1))
}

fn unmount(dir: &Path) -> Result<()> {
    for line in shoal_fuse::mounts()?.iter().rev().filter(|line| line.dir == dir) {
        shoal_fuse::remove(line)?;
    }
    Ok(())
}
