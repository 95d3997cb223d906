//! Those who watch a build: each gets the whole log from the offset it asked for, and the outcome.
//!
//! Nothing here waits for a watcher. One who does not read is left behind, and catches up from the log file.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with};

use crate::Scratch;
use crate::log::Log;
use crate::message::{self, MESSAGE_MAX};
use crate::protocol::{PIECE_MAX, Request, encode_log};

/// More than a node and a few curious commands is an accident.
const WATCHERS_MAX: usize = 16;

/// Everybody who watches one build, and the socket where more can come when the one who started it is gone.
#[derive(Debug)]
pub(crate) struct Audience {
    /// Where others shall be able to attach.
    scratch: Option<Scratch>,
    listener: Option<OwnedFd>,
    watchers: Vec<Watcher>,
    outcome: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Watcher {
    socket: OwnedFd,
    /// The next byte of the log to send; `None` before it asked.
    next: Option<u64>,
    /// It has the outcome.
    told: bool,
    gone: bool,
}

impl Audience {
    /// Begins with the one who started the build.
    pub fn new(starter: OwnedFd) -> Audience {
        let starter = Watcher { socket: starter, next: Some(0), told: false, gone: false };
        Audience { scratch: None, listener: None, watchers: vec![starter], outcome: None }
    }

    /// Lets others attach at `<scratch>/control` once nobody is left. The process' umask decides who may.
    pub fn expect_at(&mut self, scratch: &Scratch) {
        self.scratch = Some(scratch.clone());
    }

    /// A socket is a file that has to be made and deleted; hardly any build ever needs it.
    fn listen_when_alone(&mut self) {
        let (Some(scratch), None, true) = (&self.scratch, &self.listener, self.watchers.is_empty()) else { return };
        // The build goes on all the same, and leaves its outcome in a file.
        self.listener = open_control(scratch).ok();
    }

    /// From now on everybody who has read the whole log is told how the build ended.
    pub fn conclude(&mut self, outcome: Vec<u8>) {
        self.outcome = Some(outcome);
    }

    /// Everybody who is still there knows how the build ended.
    pub fn is_satisfied(&self) -> bool {
        self.watchers.iter().all(|watcher| watcher.told || watcher.next.is_none())
    }

    /// What to wait for.
    pub fn interests<'a>(&'a self, log: &Log, into: &mut Vec<PollFd<'a>>) {
        if let Some(listener) = &self.listener {
            into.push(PollFd::new(listener, PollFlags::IN));
        }
        for watcher in &self.watchers {
            let behind = watcher.next.is_some_and(|next| next < log.len());
            let waiting = behind || (self.outcome.is_some() && !watcher.told);
            let out = if waiting { PollFlags::OUT } else { PollFlags::empty() };
            into.push(PollFd::new(&watcher.socket, PollFlags::IN | out));
        }
    }

    /// Accepts, listens to and serves everybody as far as that goes without waiting. `true` if the build
    /// shall be killed.
    pub fn serve(&mut self, log: &Log) -> bool {
        self.accept();
        let mut kill = false;
        for watcher in &mut self.watchers {
            kill |= watcher.listen();
            watcher.send(log, self.outcome.as_deref());
        }
        self.watchers.retain(|watcher| !watcher.gone);
        self.listen_when_alone();
        kill
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        while let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC) {
            if self.watchers.len() < WATCHERS_MAX {
                self.watchers.push(Watcher { socket, next: None, told: false, gone: false });
            }
        }
    }
}

impl Watcher {
    /// Hears all that the watcher has said. `true` if it wants the build killed.
    fn listen(&mut self) -> bool {
        let mut kill = false;
        let mut buffer = [0; 16];
        loop {
            let request = match message::try_receive(&self.socket, &mut buffer) {
                Ok(received) => Request::decode(received.bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return kill,
                Err(_) => None,
            };
            match request {
                Some(Request::Kill) => kill = true,
                Some(Request::Watch(offset)) => self.next = Some(offset),
                // Closed, or not one of us.
                None => {
                    self.gone = true;
                    return kill;
                }
            }
        }
    }

    fn send(&mut self, log: &Log, outcome: Option<&[u8]>) {
        let sent = self.send_log(log).and_then(|()| match (outcome, self.next) {
            (Some(outcome), Some(next)) if next >= log.len() && !self.told => {
                message::try_send(&self.socket, outcome)?;
                self.told = true;
                Ok(())
            }
            _ => Ok(()),
        });
        if let Err(error) = sent {
            self.gone |= error.kind() != io::ErrorKind::WouldBlock;
        }
    }

    fn send_log(&mut self, log: &Log) -> io::Result<()> {
        const { assert!(PIECE_MAX < MESSAGE_MAX) };
        while let Some(next) = self.next.filter(|next| *next < log.len()) {
            let mut piece = vec![0; PIECE_MAX.min((log.len() - next) as usize)];
            let read = log.read_at(&mut piece, next)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            message::try_send(&self.socket, &encode_log(&piece[..read]))?;
            self.next = Some(next + read as u64);
        }
        Ok(())
    }
}

fn open_control(scratch: &Scratch) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let (_dir, address) = control_address(scratch)?;
    bind(&listener, &address)?;
    listen(&listener, WATCHERS_MAX as i32)?;
    Ok(listener)
}

/// Where a build's supervisor listens. Good as long as the returned descriptor is open: socket addresses are
/// limited to 107 bytes, so the directory is named by it.
pub(crate) fn control_address(scratch: &Scratch) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(scratch.path(), flags, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/control", dir.as_raw_fd()))?;
    Ok((dir, address))
}
