//! Whole messages over unix sequenced-packet sockets, with descriptors where needed.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::{Errno, IoSlice, IoSliceMut, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The longest message. A piece of log and its tag; well below the least socket buffer (208 KiB).
pub(crate) const MESSAGE_MAX: usize = 64 * 1024 + 1;

/// Descriptors that one message brings: a spec and a view.
const FDS_MAX: usize = 2;

/// Two connected sockets that keep messages apart, closed on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends one message, waiting for room.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    send_flags(socket, bytes, &[], SendFlags::NOSIGNAL)
}

/// Sends one message and duplicates of at most [`FDS_MAX`] descriptors, waiting for room.
pub(crate) fn send_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_flags(socket, bytes, fds, SendFlags::NOSIGNAL)
}

/// Sends one message, or fails with `WouldBlock` when there is no room.
pub(crate) fn try_send(socket: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    send_flags(socket, bytes, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_flags(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    retry_on_intr(|| sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, flags))?;
    Ok(())
}

/// One received message.
pub(crate) struct Received<'a> {
    /// Empty when the other side has closed.
    pub bytes: &'a [u8],
    pub fds: Vec<OwnedFd>,
}

/// Waits for one message.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received<'_>> {
    receive_flags(socket, buffer, RecvFlags::CMSG_CLOEXEC)
}

/// The message that is there, or `WouldBlock`.
pub(crate) fn try_receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received<'_>> {
    receive_flags(socket, buffer, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
}

fn receive_flags(socket: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> io::Result<Received<'_>> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        match recvmsg(socket.as_fd(), &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Ok(message) => break message.bytes,
            // The other side closed without reading what we had sent. It is said once, and before all that the
            // other side had sent.
            Err(Errno::CONNRESET | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = rights.flatten().collect();
    Ok(Received { bytes: &buffer[..length], fds })
}
