//! The process that sets a sandbox up and stays with the builder until its end.
//!
//! Born by the launcher before there is a build, it makes a sandbox and waits for a spec on its socket. From
//! then on it needs nobody: if the node dies, it goes on, and leaves the outcome in the scratch directory.

use std::fs::{DirBuilder, OpenOptions, read_to_string};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::poll;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, open, utimensat};
use rustix::process::umask;

use crate::audience::Audience;
use crate::birth::{Network, Newborn};
use crate::child::{read_spec, talk, unreadable};
use crate::failure::{Attempt, Doing, Failure};
use crate::identity::{Ids, Lease, Rights};
use crate::log::Log;
use crate::protocol::encode_outcome;
use crate::watch::{Seen, Watch};
use crate::{
    Cgroups, End, Outcome, Scratch, Spec, Usage, capabilities, launcher, message, probe, record, seccomp, sys,
};

/// The hidden first argument that makes an executable a supervisor.
pub const SUPERVISOR_ARG: &str = "__sandbox";

/// Runs a [`crate::Program::Builtin`]: name and payload in, exit code out. Called in the sandbox, in a process
/// of its own; its stdout and stderr are the build's log.
pub type Builtin = fn(name: &str, payload: &[u8]) -> i32;

/// One build may have this part of the threads that the machine can have.
const THREADS_SHARE: u64 = 4;

/// How long an attached watcher who does not read keeps a supervisor alive after the end. It finds everything
/// in the scratch directory, too.
const FAREWELL_MAX: Duration = Duration::from_secs(60);

const OWNER_ONLY: Mode = Mode::from_raw_mode(0o077);

/// What all supervisors of a launcher have in common.
pub(crate) struct Context {
    pub rights: Rights,
    pub filter: Vec<u8>,
    pub builtin: Builtin,
    pub threads_max: Option<u64>,
}

/// The supervisor. Call it before anything else in `main`, while the process has one thread.
pub fn supervisor_main(builtin: Builtin) -> ! {
    let task = std::env::args_os().nth(2).unwrap_or_default();
    let done = match task.to_str() {
        Some(launcher::TASK) => seccomp::compile()
            .map(|filter| Context { rights: Rights::detect(), filter, builtin, threads_max: threads_max() })
            .and_then(|context| launcher::run(&context)),
        Some(capabilities::TASK) => probe::overlays(std::env::args_os().nth(3).as_deref()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not for people")),
    };
    if let Err(error) = done {
        eprintln!("{SUPERVISOR_ARG}: {error}");
        sys::exit_now(1);
    }
    sys::exit_now(0)
}

/// Supervises one build from before its beginning.
pub(crate) fn supervise(context: &Context, starter: OwnedFd, cgroups: &Cgroups) -> io::Result<()> {
    sys::keep_children();
    leave_streams()?;
    umask(OWNER_ONLY);
    let newborn = Newborn::bear(context, cgroups, Network::Own);
    let mut buffer = [0; 1];
    let received = message::receive(&starter, &mut buffer)?;
    let mut fds = received.fds.into_iter();
    let Some(file) = fds.next() else { return Ok(()) };
    let view = fds.next();

    let mut build = Build {
        started: Instant::now(),
        started_at: unix_seconds(),
        audience: Audience::new(starter),
        log: None,
        uid: Ids::own().uid,
    };
    let spec = read_spec(&file).and_then(|bytes| Spec::decode(&bytes).map(|(spec, _)| spec).map_err(unreadable));
    let spec = match spec {
        Ok(spec) => spec,
        Err(failure) => return build.conclude(None, Seen::failed(failure)),
    };
    let scratch = Scratch::new(&spec.scratch);
    let seen = newborn
        .and_then(|newborn| build.run(context, newborn, &spec, &scratch, (file, view)))
        .unwrap_or_else(Seen::failed);
    build.conclude(Some(&scratch), seen)
}

/// What a supervisor has in hand.
struct Build {
    started: Instant,
    started_at: u64,
    audience: Audience,
    log: Option<Log>,
    uid: u32,
}

impl Build {
    fn run(
        &mut self,
        context: &Context,
        newborn: Newborn,
        spec: &Spec,
        scratch: &Scratch,
        (file, view): (OwnedFd, Option<OwnedFd>),
    ) -> Attempt<Seen> {
        let network = if spec.network { Network::Host } else { Network::Own };
        let mut sandbox = if newborn.suits(context, network, &spec.cgroups) {
            newborn
        } else {
            Newborn::bear(context, &spec.cgroups, network)?
        };
        let fds: Vec<BorrowedFd<'_>> = [&file].into_iter().chain(&view).map(AsFd::as_fd).collect();
        unless_dead(message::send_with_fds(&sandbox.socket, talk::SPEC, &fds)).doing("handing over the spec")?;
        drop((file, view));
        let lease = Lease::acquire(&spec.identity, context.rights)?;
        self.uid = lease.ids.uid;
        if record::read(&scratch.exit()).doing("looking at the scratch directory")?.is_some() {
            return Err(Failure::new("the scratch directory is that of another build"));
        }
        self.audience.expect_at(scratch);
        let log = Log::create(&scratch.log(), spec.limits.max_log_bytes).doing("creating the log")?;
        let log = self.log.insert(log);
        umask(Mode::empty());
        prepare(spec, scratch, context.rights, lease.ids)?;
        umask(OWNER_ONLY);
        if context.rights == Rights::Root {
            lend(&sandbox.terminal, lease.ids).doing("lending the terminal to the builder")?;
        }
        sandbox.group.limit(&spec.cgroups, sandbox.pid).doing("limiting memory")?;
        unless_dead(message::send(&sandbox.socket, &lease.ids.encode())).doing("handing over the ids")?;
        Watch::new(&mut sandbox, lease.ids, spec, log, &mut self.audience, self.started)
            .run()
            .doing("watching the builder")
    }

    /// Writes the outcome down and tells everybody.
    fn conclude(mut self, scratch: Option<&Scratch>, seen: Seen) -> io::Result<()> {
        let outcome = Outcome {
            end: seen.end,
            usage: seen.usage,
            started_at: self.started_at,
            stopped_at: unix_seconds(),
            setup_us: seen.setup_us,
            log_bytes: self.log.as_ref().map_or(0, Log::len),
            uid: self.uid,
        };
        let message = encode_outcome(&outcome)?;
        if let Some(scratch) = scratch {
            record::write(&scratch.exit(), message.get(1..).unwrap_or_default())?;
            self.log.as_ref().map_or(Ok(()), Log::close)?;
        }
        self.audience.conclude(message);
        let log = match self.log {
            Some(log) => log,
            None => Log::empty()?,
        };
        let until = Instant::now() + FAREWELL_MAX;
        self.audience.serve(&log);
        while !self.audience.is_satisfied() && Instant::now() < until {
            let mut fds = Vec::new();
            self.audience.interests(&log, &mut fds);
            let left = until.saturating_duration_since(Instant::now());
            poll(&mut fds, Timespec::try_from(left).ok().as_ref())?;
            self.audience.serve(&log);
        }
        drop(seen.mounts);
        Ok(())
    }
}

impl Seen {
    fn failed(failure: Failure) -> Seen {
        let end = End::SetupFailed(failure.to_string());
        Seen { end, usage: Usage::default(), setup_us: 0, mounts: None }
    }
}

/// A first process that has failed meanwhile has said why, which will be heard.
fn unless_dead(sent: io::Result<()>) -> io::Result<()> {
    match sent {
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
        sent => sent,
    }
}

/// Makes the directories that the sandbox mounts, and the builder's files.
fn prepare(spec: &Spec, scratch: &Scratch, rights: Rights, ids: Ids) -> Attempt<()> {
    let directories = [
        (scratch.upper(), 0o755, None, None),
        (scratch.store(), 0o1775, None, Some(ids.gid)),
        (scratch.tmp(), 0o1777, None, None),
        (scratch.build_dir(), 0o700, Some(ids.uid), Some(ids.gid)),
    ];
    for (path, mode, uid, gid) in directories {
        let owner = (rights == Rights::Root).then_some((uid, gid));
        furnish(&path, mode, owner).doing_with(|| format!("making directory '{}'", path.display()))?;
    }
    for file in &spec.files {
        let name = Path::new(&file.name);
        if name.components().count() != 1 || name.file_name() != Some(name.as_os_str()) {
            return Err(Failure::new(format!("'{}' is not a file name", file.name)));
        }
        let path = scratch.build_dir().join(name);
        let doing = || format!("writing '{}'", path.display());
        let mut options = OpenOptions::new();
        let created = options.write(true).create_new(true).mode(file.mode).open(&path);
        let mut created = created.doing_with(doing)?;
        created.write_all(&file.bytes).doing_with(doing)?;
        if rights == Rights::Root {
            fchown(&created, Some(ids.uid), Some(ids.gid)).doing_with(doing)?;
        }
    }
    Ok(())
}

/// A directory that looks new, whether it is or a build before had it. `owner`s are who else than the caller.
fn furnish(path: &Path, mode: u32, owner: Option<(Option<u32>, Option<u32>)>) -> io::Result<()> {
    let made = DirBuilder::new().mode(mode).create(path);
    if let Some((uid, gid)) = owner {
        let own = Ids::own();
        chown(path, Some(uid.unwrap_or(own.uid)), Some(gid.unwrap_or(own.gid)))?;
    }
    match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            rustix::fs::chmod(path, Mode::from_raw_mode(mode))?;
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            let times = Timestamps { last_access: now, last_modification: now };
            Ok(utimensat(CWD, path, &times, AtFlags::empty())?)
        }
        made => made,
    }
}

/// Lets the builder open its terminal by name, as `/dev/stderr` does.
fn lend(master: &OwnedFd, ids: Ids) -> io::Result<()> {
    let name = rustix::pty::ptsname(master, Vec::new())?;
    let path = name.to_str().map_err(io::Error::other)?;
    chown(path, Some(ids.uid), None)?;
    Ok(rustix::fs::chmod(path, Mode::from_raw_mode(0o600))?)
}

/// The node's own streams may have somebody at the other end who waits for them to be closed.
fn leave_streams() -> io::Result<()> {
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    (0..3).try_for_each(|stream| sys::duplicate_to(&null, stream))
}

/// What one build may have of the machine's threads, so that a fork bomb leaves room for others.
fn threads_max() -> Option<u64> {
    let limit = |file: &str| read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let limits = [limit("/proc/sys/kernel/threads-max"), limit("/proc/sys/kernel/pid_max")];
    limits.into_iter().flatten().min().map(|all| all / THREADS_SHARE)
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
