//! Sockets that the service manager opened before it started the node, as sd_listen_fds(3) says it: clients wait in them
//! while the node starts or is replaced, instead of being refused.
//!
//! A socket is for the door that it is named after (`FileDescriptorName=`: `ssh`, `http` or `socket`), and without such a name
//! for the one whose port it has. What came by this way stays open for as long as the process lives, so that the node can
//! become itself anew.

use std::env;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::{AddressFamily, SocketAddrAny, SocketType, getsockname, sockopt};

use crate::config::Config;

/// The first one's number, always.
const FIRST: RawFd = 3;
/// One for each door, and some spare: a manager that says more is believed nothing.
const SOCKETS_MAX: RawFd = 16;
const NAMES: &str = "name it 'ssh', 'http' or 'socket' with FileDescriptorName=, or give it that door's port";

/// What each door is to listen at, where somebody else opened that.
#[derive(Debug, Default)]
pub struct Passed {
    pub ssh: Option<TcpListener>,
    pub http: Option<TcpListener>,
    /// HTTP/3.
    pub http_udp: Option<UdpSocket>,
    pub socket: Option<(UnixListener, PathBuf)>,
}

impl Passed {
    /// What was passed to this process. Fails if a socket is for no door, or two are for one.
    pub fn take(config: &Config) -> Result<Passed> {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = Passed::default();
        for fd in numbers()? {
            // SAFETY: the manager left these numbers to this process, and nothing else uses them; this is a look only.
            let original = unsafe { BorrowedFd::borrow_raw(fd) };
            fcntl_setfd(original, FdFlags::CLOEXEC).with_context(|| format!("LISTEN_FDS: no descriptor {fd}"))?;
            let copy = original.try_clone_to_owned().context("cannot take a socket over")?;
            let name = names.next().unwrap_or_default();
            passed.put(copy, name, config).with_context(|| format!("socket {fd} ('{name}') of the service manager"))?;
        }
        let has_http3 = passed.http.is_some() && config.http_certificate.is_some();
        ensure!(
            passed.http_udp.is_none() || has_http3,
            "HTTP/3 takes a socket of TCP beside that of UDP, and a certificate"
        );
        Ok(passed)
    }

    fn put(&mut self, socket: OwnedFd, name: &str, config: &Config) -> Result<()> {
        let kind = sockopt::socket_type(&socket).context("it is no socket")?;
        let address = getsockname(&socket)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        if address.address_family() == AddressFamily::UNIX {
            ensure!(kind == SocketType::STREAM && is_listening(&socket), "it is not one that takes connections");
            let listener = UnixListener::from(socket);
            let address = listener.local_addr()?;
            let path = address.as_pathname().ok_or_else(|| anyhow!("it has no name in the file system"))?;
            return fill(&mut self.socket, (listener, path.to_owned()));
        }
        let address = ip_address(address)?;
        let has_port_of = |door: Option<SocketAddr>| door.is_some_and(|door| door.port() == address.port());
        let for_ssh = name == "ssh" || name != "http" && has_port_of(config.ssh);
        let for_http = name == "http" || has_port_of(config.http);
        match kind {
            SocketType::STREAM if !is_listening(&socket) => bail!("it is not one that takes connections"),
            SocketType::STREAM if for_ssh => fill(&mut self.ssh, socket.into()),
            SocketType::STREAM if for_http => fill(&mut self.http, socket.into()),
            SocketType::DGRAM if for_http && !config.http3 => bail!("it is for HTTP/3, which is off: --http3"),
            SocketType::DGRAM if for_http => fill(&mut self.http_udp, socket.into()),
            _ => bail!("no door is at {address}: {NAMES}"),
        }
    }
}

fn fill<T>(place: &mut Option<T>, socket: T) -> Result<()> {
    ensure!(place.replace(socket).is_none(), "its door has one already");
    Ok(())
}

fn is_listening(socket: &OwnedFd) -> bool {
    sockopt::socket_acceptconn(socket).unwrap_or(false)
}

fn ip_address(address: SocketAddrAny) -> Result<SocketAddr> {
    SocketAddr::try_from(address).map_err(|_| anyhow!("it is neither of IP nor of the file system"))
}

/// Lets the program that this process becomes have them too. To be called right before it does.
pub fn keep_for_next() {
    for fd in numbers().unwrap_or(0..0) {
        // SAFETY: see `take`.
        let original = unsafe { BorrowedFd::borrow_raw(fd) };
        if fcntl_getfd(original).is_ok() {
            let _ = fcntl_setfd(original, FdFlags::empty());
        }
    }
}

/// The descriptors that were passed to this very process, and not to a parent of it.
fn numbers() -> Result<Range<RawFd>> {
    let own = std::process::id().to_string();
    if env::var("LISTEN_PID").ok().as_deref() != Some(&own) {
        return Ok(0..0);
    }
    let count = env::var("LISTEN_FDS").unwrap_or_default();
    match count.parse::<RawFd>() {
        Ok(count) if (0..=SOCKETS_MAX).contains(&count) => Ok(FIRST..FIRST + count),
        _ => bail!("LISTEN_FDS is '{count}', and no number up to {SOCKETS_MAX}"),
    }
}
