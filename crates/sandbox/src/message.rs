//! Whole messages over unix sequenced-packet sockets, with a descriptor where needed.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::{Errno, IoSlice, IoSliceMut, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The longest message. A piece of log and its tag; well below the least socket buffer (208 KiB).
pub(crate) const MESSAGE_MAX: usize = 64 * 1024 + 1;

/// Two connected sockets that keep messages apart, closed on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends one message, waiting for room.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    send_flags(socket, bytes, None, SendFlags::NOSIGNAL)
}

/// Sends one message and a duplicate of `fd`, waiting for room.
pub(crate) fn send_with_fd(socket: impl AsFd, bytes: &[u8], fd: impl AsFd) -> io::Result<()> {
    send_flags(socket, bytes, Some(&fd), SendFlags::NOSIGNAL)
}

/// Sends one message, or fails with `WouldBlock` when there is no room.
pub(crate) fn try_send(socket: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    send_flags(socket, bytes, None, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_flags(socket: impl AsFd, bytes: &[u8], fd: Option<&dyn AsFdRef>, flags: SendFlags) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd.fd()]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    retry_on_intr(|| sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, flags))?;
    Ok(())
}

/// [`AsFd`] without its generics.
trait AsFdRef {
    fn fd(&self) -> rustix::fd::BorrowedFd<'_>;
}

impl<T: AsFd> AsFdRef for T {
    fn fd(&self) -> rustix::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

/// One received message.
pub(crate) struct Received<'a> {
    /// Empty when the other side has closed.
    pub bytes: &'a [u8],
    pub fd: Option<OwnedFd>,
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
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
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
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(Received { bytes: &buffer[..length], fd })
}
