//! A build seen from outside: its output, its end, and the way to stop it.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use crate::audience::control_address;
use crate::log::Log;
use crate::message::{self, MESSAGE_MAX};
use crate::protocol::{PIECE_MAX, Report, Request, decode_outcome, decode_report};
use crate::{End, Outcome, Scratch, Spec, Usage, launcher, record};

/// How long a supervisor may take to see that nobody watches any more, on a very busy machine.
const ATTACH_MAX: Duration = Duration::from_secs(10);

/// Between two tries.
const ATTACH_PAUSE: Duration = Duration::from_millis(2);

/// What [`Running::next`] has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the log, in order, each once. Split anywhere.
    Output(Vec<u8>),
    /// Comes once, after all output.
    Exited(Outcome),
}

/// A build that is running, or has ended and is about to say how.
///
/// Dropping it leaves the build alone.
#[derive(Debug)]
pub struct Running {
    scratch: Scratch,
    source: Source,
    /// Bytes of the log that were given out.
    seen: u64,
    buffer: Vec<u8>,
}

/// Where news come from.
#[derive(Debug)]
enum Source {
    Supervisor(OwnedFd),
    /// There is no supervisor any more, only what it left.
    Files,
    Nothing,
}

impl Running {
    fn new(scratch: Scratch, source: Source, seen: u64) -> Self {
        Running { scratch, source, seen, buffer: vec![0; MESSAGE_MAX] }
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Waits for the next event. `None` when `deadline` passed first. `UnexpectedEof` after the last event.
    pub fn next(&mut self, deadline: Option<Instant>) -> io::Result<Option<Event>> {
        loop {
            match &self.source {
                Source::Nothing => return Err(io::ErrorKind::UnexpectedEof.into()),
                Source::Files => return self.read_files().map(Some),
                Source::Supervisor(socket) => {
                    if !wait_readable(socket.as_fd(), deadline)? {
                        return Ok(None);
                    }
                }
            }
            if let Some(event) = self.receive()? {
                return Ok(Some(event));
            }
            self.source = Source::Files;
        }
    }

    /// What the supervisor says next; `None` when it is gone.
    fn receive(&mut self) -> io::Result<Option<Event>> {
        let Source::Supervisor(socket) = &self.source else { return Ok(None) };
        let received = message::receive(socket, &mut self.buffer)?;
        if received.bytes.is_empty() {
            return Ok(None);
        }
        Ok(Some(match decode_report(received.bytes)? {
            Report::Log(piece) => {
                self.seen += piece.len() as u64;
                Event::Output(piece.to_vec())
            }
            Report::Outcome(outcome) => {
                self.source = Source::Nothing;
                Event::Exited(outcome)
            }
        }))
    }

    /// What a supervisor that is gone has left: the rest of the log, then the outcome.
    fn read_files(&mut self) -> io::Result<Event> {
        let log = match File::open(self.scratch.log()) {
            Ok(log) => Some(log),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(log) = &log {
            let mut piece = vec![0; PIECE_MAX];
            let read = log.read_at(&mut piece, self.seen)?;
            piece.truncate(read);
            if !piece.is_empty() {
                self.seen += piece.len() as u64;
                return Ok(Event::Output(piece));
            }
        }
        self.source = Source::Nothing;
        match record::read(&self.scratch.exit())? {
            Some(bytes) => decode_outcome(&bytes).map(Event::Exited),
            None => Ok(Event::Exited(self.lost())),
        }
    }

    fn lost(&self) -> Outcome {
        Outcome {
            end: End::Lost,
            usage: Usage::default(),
            started_at: 0,
            stopped_at: 0,
            setup_us: 0,
            log_bytes: self.seen,
            uid: 0,
        }
    }

    /// Stops the build. Returns at once; [`Event::Exited`] follows. No effect when it is over.
    pub fn kill(&self) -> io::Result<()> {
        match &self.source {
            Source::Supervisor(socket) => send_kill(socket.as_fd()),
            Source::Files | Source::Nothing => Ok(()),
        }
    }

    /// A handle for another thread.
    pub fn killer(&self) -> io::Result<Killer> {
        Ok(Killer(match &self.source {
            Source::Supervisor(socket) => Some(socket.try_clone()?),
            Source::Files | Source::Nothing => None,
        }))
    }
}

/// Stops a build from another thread than the one that reads its events.
#[derive(Debug)]
pub struct Killer(Option<OwnedFd>);

impl Killer {
    /// As [`Running::kill`].
    pub fn kill(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |socket| send_kill(socket.as_fd()))
    }
}

fn send_kill(socket: BorrowedFd<'_>) -> io::Result<()> {
    match message::send(socket, &Request::Kill.encode()) {
        // The supervisor is gone, and with it the build.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        sent => sent,
    }
}

fn wait_readable(socket: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Starts a build. Errors are the caller's machine's; what goes wrong inside comes as an [`Outcome`].
pub fn spawn(spec: &Spec) -> io::Result<Running> {
    let bytes = spec.encode().map_err(io::Error::other)?;
    let mut file = File::from(memfd_create("spec", MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    file.rewind()?;
    let mut fds = vec![file.as_fd()];
    fds.extend(spec.view.as_ref().map(|view| view.as_fd()));
    let supervisor = launcher::hand_over(&spec.cgroups, b"s", &fds)?;
    Ok(Running::new(Scratch::new(&spec.scratch), Source::Supervisor(supervisor), 0))
}

/// Goes on with a build that an earlier process started, from byte `log_offset` of its log.
/// Also works when the build has ended in the meantime.
///
/// `NotFound` when nothing was ever started in `scratch`; `TimedOut` when its supervisor does not answer, as it
/// does while the earlier process lives.
pub fn attach(scratch: &Path, log_offset: u64) -> io::Result<Running> {
    let scratch = Scratch::new(scratch);
    let until = Instant::now() + ATTACH_MAX;
    loop {
        match connect_supervisor(&scratch, log_offset) {
            Ok(socket) => return Ok(Running::new(scratch, Source::Supervisor(socket), log_offset)),
            // Nobody listens yet, or any more, or stopped listening just now.
            Err(Errno::NOENT | Errno::CONNREFUSED | Errno::PIPE | Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
        // In this order: the outcome is written before the supervisor goes.
        let is_supervised = Log::is_open(&scratch.log())?;
        if record::read(&scratch.exit())?.is_some() {
            return Ok(Running::new(scratch, Source::Files, log_offset));
        }
        match is_supervised {
            // Its supervisor was killed.
            false if scratch.log().metadata().is_ok_and(|log| log.len() > 0) => {
                return Ok(Running::new(scratch, Source::Files, log_offset));
            }
            false => return Err(io::ErrorKind::NotFound.into()),
            true if Instant::now() >= until => return Err(io::ErrorKind::TimedOut.into()),
            true => std::thread::sleep(ATTACH_PAUSE),
        }
    }
}

fn connect_supervisor(scratch: &Scratch, log_offset: u64) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let (_dir, address) = control_address(scratch).map_err(errno)?;
    connect(&socket, &address)?;
    message::send(&socket, &Request::Watch(log_offset).encode()).map_err(errno)?;
    Ok(socket)
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
