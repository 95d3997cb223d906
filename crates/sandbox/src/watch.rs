//! A supervisor's life while the builder lives: output, limits, watchers, and the end.
//!
//! Invariants: nothing waits but the one `poll`; the log file has every byte before anybody is sent it; the
//! verdict, once there, stays; `run` returns when every process of the sandbox is dead and reaped.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::audience::Audience;
use crate::birth::Newborn;
use crate::cgroup::JOIN_AFTER;
use crate::child::talk;
use crate::failure::reason;
use crate::identity::{Ids, map_ids};
use crate::log::{Appended, Log};
use crate::message::{self, MESSAGE_MAX};
use crate::{Cgroups, End, Spec, Usage, sys};

/// Reads between two looks at everything else, each of up to a terminal's buffer (4 KiB).
const READS_MAX: usize = 64;
const READ_MAX: usize = 4096;

/// How long output may arrive after the last process is dead. It is in the kernel's hands by then: only a
/// terminal that was sent over a socket nobody read takes longer to close.
const DRAIN_MAX: Duration = Duration::from_millis(200);

/// What is being watched.
pub(crate) struct Watch<'a> {
    pub sandbox: &'a mut Newborn,
    pub ids: Ids,
    pub spec: &'a Spec,
    pub log: &'a mut Log,
    pub audience: &'a mut Audience,
    started: Instant,
    last_output: Instant,
    terminal_open: bool,
    executed: Option<Instant>,
    /// Why we killed it, or that it never was a builder.
    verdict: Option<End>,
    /// Keeps the mounts until somebody has time to take them down.
    mounts: Option<File>,
    /// When to move it into its control group.
    join_at: Option<Instant>,
}

/// What [`Watch::run`] saw.
pub(crate) struct Seen {
    pub end: End,
    pub usage: Usage,
    pub setup_us: u64,
    /// Keep it until the outcome is told: closing it takes the sandbox's mounts down, which takes a while.
    pub mounts: Option<File>,
}

impl<'a> Watch<'a> {
    pub fn new(
        sandbox: &'a mut Newborn,
        ids: Ids,
        spec: &'a Spec,
        log: &'a mut Log,
        audience: &'a mut Audience,
        started: Instant,
    ) -> Self {
        Watch {
            sandbox,
            ids,
            spec,
            log,
            audience,
            started,
            last_output: started,
            terminal_open: true,
            executed: None,
            verdict: None,
            mounts: None,
            join_at: matches!(spec.cgroups, Cgroups::V1 { .. }).then(|| started + JOIN_AFTER),
        }
    }

    /// Until the end.
    pub fn run(mut self) -> io::Result<Seen> {
        while !self.step()? {}
        self.drain()?;
        self.hear();
        let (status, used) = sys::wait_usage(self.sandbox.pid)?;
        let end = self.verdict.unwrap_or(match (libc::WIFSIGNALED(status), status) {
            (true, status) => End::Signaled(libc::WTERMSIG(status)),
            (false, status) => End::Exited(libc::WEXITSTATUS(status)),
        });
        let mut usage = usage(&used);
        self.sandbox.group.read(&mut usage);
        let setup = self.executed.map_or(Duration::ZERO, |at| at - self.started);
        Ok(Seen { end, usage, setup_us: setup.as_micros() as u64, mounts: self.mounts })
    }

    /// Waits for something to happen and deals with it. `true` when the sandbox's processes are dead.
    fn step(&mut self) -> io::Result<bool> {
        let [process, terminal, socket] = self.wait()?;
        if socket {
            self.hear();
        }
        if terminal {
            self.read_terminal();
        }
        if self.audience.serve(self.log) {
            self.kill(End::Killed);
        }
        self.enforce();
        Ok(process)
    }

    /// Which of process, terminal and the process' socket have something to say.
    fn wait(&self) -> io::Result<[bool; 3]> {
        let timeout = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        let interest = |on| if on { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![PollFd::new(&self.sandbox.pidfd, PollFlags::IN)];
        if self.terminal_open {
            fds.push(PollFd::new(&self.sandbox.terminal, interest(true)));
        }
        if self.executed.is_none() {
            fds.push(PollFd::new(&self.sandbox.socket, interest(true)));
        }
        self.audience.interests(self.log, &mut fds);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let terminal = self.terminal_open && ready(1);
        let socket = self.executed.is_none() && ready(1 + usize::from(self.terminal_open));
        Ok([ready(0), terminal, socket])
    }

    fn deadline(&self) -> Option<Instant> {
        if self.verdict.is_some() {
            return None;
        }
        let timeout = self.spec.limits.timeout.map(|limit| self.started + limit);
        let silence = self.spec.limits.max_silent.map(|limit| self.last_output + limit);
        timeout.into_iter().chain(silence).chain(self.join_at).min()
    }

    fn enforce(&mut self) {
        let now = Instant::now();
        if self.join_at.is_some_and(|at| at <= now) {
            self.join_at = None;
            self.sandbox.group.join(&self.spec.cgroups, self.sandbox.pid);
        }
        let over = |since: Instant, limit: Option<Duration>| {
            limit.is_some_and(|limit| now.saturating_duration_since(since) >= limit)
        };
        if over(self.started, self.spec.limits.timeout) {
            self.kill(End::TimedOut);
        } else if over(self.last_output, self.spec.limits.max_silent) {
            self.kill(End::Silent);
        }
    }

    /// The first reason counts.
    fn kill(&mut self, why: End) {
        if self.verdict.is_none() {
            self.verdict = Some(why);
            self.sandbox.kill();
        }
    }

    /// What the sandbox's first process says before it is the builder.
    fn hear(&mut self) {
        let mut buffer = vec![0; MESSAGE_MAX];
        while self.executed.is_none() {
            let Ok(received) = message::try_receive(&self.sandbox.socket, &mut buffer) else { return };
            match received.bytes {
                [] => {
                    self.executed = Some(Instant::now());
                    let path = format!("/proc/{}/ns/mnt", self.sandbox.pid.as_raw_nonzero());
                    // Gone already: then its mounts are, too.
                    self.mounts = File::open(path).ok();
                }
                talk::IDS => self.map_ids(),
                [talk::FAILED, text @ ..] => {
                    self.verdict = Some(End::SetupFailed(String::from_utf8_lossy(text).into_owned()));
                }
                _ => self.kill(End::SetupFailed("the sandbox speaks in riddles".to_owned())),
            }
        }
    }

    fn map_ids(&mut self) {
        let mapped = map_ids(self.sandbox.pid, self.ids);
        let answered = mapped
            .map_err(|failure| failure.to_string())
            .and_then(|()| message::send(&self.sandbox.socket, talk::IDS).map_err(|error| error.to_string()));
        if let Err(text) = answered {
            self.kill(End::SetupFailed(text));
        }
    }

    fn read_terminal(&mut self) {
        let mut buffer = [0; READ_MAX];
        for _ in 0..READS_MAX {
            match rustix::io::read(&self.sandbox.terminal, &mut buffer) {
                Ok(read @ 1..) => self.append(&buffer[..read]),
                Err(Errno::AGAIN | Errno::INTR) => return,
                // Everybody has closed it. A builder that lives on without it would never be heard again.
                Ok(0) | Err(_) => {
                    self.terminal_open = false;
                    self.sandbox.kill();
                    return;
                }
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.last_output = Instant::now();
        match self.log.append(bytes) {
            Ok(Appended::All) => {}
            Ok(Appended::UpToLimit) => self.kill(End::LogLimit),
            Err(error) => self.kill(End::SetupFailed(format!("writing the log: {}", reason(&error)))),
        }
    }

    /// Takes what the dead have left in the terminal.
    fn drain(&mut self) -> io::Result<()> {
        let until = Instant::now() + DRAIN_MAX;
        while self.terminal_open {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or_default();
            let mut fds = [PollFd::new(&self.sandbox.terminal, PollFlags::IN)];
            if poll(&mut fds, Some(&timeout))? == 0 {
                break;
            }
            self.read_terminal();
        }
        Ok(())
    }
}

fn usage(used: &libc::rusage) -> Usage {
    let microseconds = |time: libc::timeval| (time.tv_sec as u64) * 1_000_000 + time.tv_usec as u64;
    Usage {
        cpu_user_us: microseconds(used.ru_utime),
        cpu_system_us: microseconds(used.ru_stime),
        memory_peak_bytes: used.ru_maxrss as u64 * 1024,
        out_of_memory: false,
    }
}
