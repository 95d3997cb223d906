//! Going on with a mount that somebody else served.
//!
//! The kernel keeps a mount for as long as somebody holds its descriptor. What it asks meanwhile waits, and what the last
//! server took and did not answer it asks again when it is told to.

use crate::file_system::FileSystem;
use fuser::{Config, Session, SessionACL};
use rustix::io::{DupFlags, Errno, dup3};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Numbers of `linux/fuse.h`.
const INIT: u32 = 26;
const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_RESEND: i32 = 7;
const PROTOCOL: (u32, u32) = (7, 42);
/// Of an answer, and of a word of our own to the kernel.
const OUT_HEADER_LEN: u32 = 16;

/// A session that goes on where another stopped. The library begins each by greeting the kernel, which the kernel does
/// once in the life of a mount: so it greets a socket, in whose place it is given the descriptor.
pub fn session(file_system: FileSystem, device: &OwnedFd, config: Config) -> io::Result<Session<FileSystem>> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::io::write(&ours, &greeting())?;
    let session = Session::from_fd(file_system, theirs, SessionACL::All, config)?;
    // SAFETY: the session holds this descriptor, and nothing here closes it: dup3 puts another file in its place.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(session.as_fd().as_raw_fd()) });
    dup3(device, &mut place, DupFlags::CLOEXEC)?;
    Ok(session)
}

/// What the kernel says first.
fn greeting() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |numbers: &[u32]| numbers.iter().for_each(|number| bytes.extend(number.to_ne_bytes()));
    // Length, opcode, number of the request and of the node, of the user, group and process, and padding.
    put(&[40 + 64, INIT, 1, 0, 0, 0, 0, 0, 0, 0]);
    // Version, read-ahead, and what it can: all, since what is used was settled long ago.
    put(&[PROTOCOL.0, PROTOCOL.1, 128 << 10, u32::MAX, u32::MAX]);
    put(&[0; 11]);
    bytes
}

/// Has the kernel ask again what was taken and not answered. Takes Linux 6.9.
pub fn ask_again(device: BorrowedFd<'_>) -> io::Result<()> {
    tell(device, NOTIFY_RESEND, &[])
}

/// Whether the kernel knows a node: somebody may have it open, or be in it.
pub fn is_known(device: BorrowedFd<'_>, node: u64) -> bool {
    // Which node, from where, and how much: nothing of its contents.
    let what = [node, u64::MAX, 0].map(u64::to_ne_bytes).concat();
    // Where it cannot be asked, it may know it.
    !tell(device, NOTIFY_INVAL_INODE, &what).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn tell(device: BorrowedFd<'_>, code: i32, what: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::new();
    bytes.extend((OUT_HEADER_LEN + what.len() as u32).to_ne_bytes());
    bytes.extend(code.to_ne_bytes());
    bytes.extend(0u64.to_ne_bytes());
    bytes.extend(what);
    loop {
        match rustix::io::write(device.as_fd(), &bytes) {
            Err(Errno::INTR) => {}
            written => return Ok(written.map(drop)?),
        }
    }
}
