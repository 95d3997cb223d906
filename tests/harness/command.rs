//! Programs that are run with a deadline and never outlive their test.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::node::Node;

/// Long enough for any single step that a test does not give a limit of its own.
pub const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(5);

/// Readers of stdout and stderr.
type Kept = (JoinHandle<Vec<u8>>, JoinHandle<Vec<u8>>);

/// A command to run; environment variables of the test run itself reach it only by name.
pub struct Cmd {
    command: Command,
    shown: String,
    patience: Duration,
}

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
    shown: String,
}

/// A command that runs. Killed, with everything it started in its group, when dropped.
pub struct Running {
    child: Child,
    /// How it ended, once its number, and that of its group, may be another's.
    reaped: Option<ExitStatus>,
    output: Option<Kept>,
    since: Instant,
    shown: String,
}

impl Cmd {
    pub fn new(program: impl AsRef<OsStr>) -> Cmd {
        let shown = Path::new(program.as_ref()).file_name().unwrap_or(program.as_ref()).to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.env_clear().stdin(Stdio::null());
        for name in ["PATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        Cmd { command, shown, patience: PATIENCE }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Cmd {
        self.shown.push_str(&format!(" {}", arg.as_ref().to_string_lossy()));
        self.command.arg(arg);
        self
    }

    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Cmd {
        args.into_iter().fold(self, Cmd::arg)
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Cmd {
        self.command.env(name, value);
        self
    }

    pub fn without_env(mut self, name: &str) -> Cmd {
        self.command.env_remove(name);
        self
    }

    pub fn dir(mut self, dir: &Path) -> Cmd {
        self.command.current_dir(dir);
        self
    }

    pub fn patience(mut self, patience: Duration) -> Cmd {
        self.patience = patience;
        self
    }

    pub fn user(mut self, uid: u32) -> Cmd {
        self.command.uid(uid).gid(uid);
        self
    }

    /// Runs in this network namespace.
    pub fn within(mut self, namespace: &str) -> Cmd {
        let file =
            File::open(Path::new("/run/netns").join(namespace)).unwrap_or_else(|error| panic!("{namespace}: {error}"));
        // SAFETY: setns is async-signal-safe and touches no memory of this process; the file is open as long as the closure.
        unsafe {
            self.command.pre_exec(move || match libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        self
    }

    /// Runs on the network that the node is on.
    pub fn beside(self, node: &Node) -> Cmd {
        match node.namespace() {
            Some(namespace) => self.within(namespace),
            None => self,
        }
    }

    /// Has these descriptors, from 3 on, as a service manager passes sockets.
    pub fn passing(mut self, sockets: Vec<OwnedFd>) -> Cmd {
        // Above what they become, so that none is overwritten before it was copied.
        let high = |fd: OwnedFd| fcntl_dupfd_cloexec(fd, 100).unwrap_or_else(|error| panic!("a descriptor: {error}"));
        let sockets: Vec<OwnedFd> = sockets.into_iter().map(high).collect();
        // SAFETY: dup2 is async-signal-safe and touches no memory of this process; the sockets are open as long as the closure.
        unsafe {
            self.command.pre_exec(move || {
                for (to, fd) in (3..).zip(&sockets) {
                    if libc::dup2(fd.as_raw_fd(), to) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        self
    }

    pub fn stdin(mut self, from: Stdio) -> Cmd {
        self.command.stdin(from);
        self
    }

    /// Starts it with its output kept in memory.
    pub fn start(mut self) -> Running {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = self.spawn();
        running.output = running.child.stdout.take().zip(running.child.stderr.take()).map(|(out, err)| keep(out, err));
        running
    }

    /// Starts it with its output in files.
    pub fn start_into(mut self, stdout: Stdio, stderr: Stdio) -> Running {
        self.command.stdout(stdout).stderr(stderr);
        self.spawn()
    }

    fn spawn(mut self) -> Running {
        self.command.process_group(0);
        // SAFETY: prctl with PR_SET_PDEATHSIG is async-signal-safe and touches no memory of this process.
        unsafe {
            self.command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let child = self.command.spawn().unwrap_or_else(|error| panic!("cannot run {}: {error}", self.shown));
        Running { child, reaped: None, output: None, since: Instant::now(), shown: self.shown }
    }

    /// Runs it to its end; panics when that does not come in time.
    pub fn run(self) -> Finished {
        let patience = self.patience;
        self.start().finish(patience)
    }

    /// Runs it and panics, with all it said, unless it succeeds.
    pub fn ok(self) -> Finished {
        self.run().expect_code(0)
    }

    /// Runs it and panics, with all it said, unless it fails.
    pub fn fails(self) -> Finished {
        let finished = self.run();
        assert!(!finished.status.success(), "should have failed: {finished}");
        finished
    }
}

fn keep(mut out: ChildStdout, mut err: ChildStderr) -> Kept {
    let read = |from: &mut dyn Read| {
        let mut bytes = Vec::new();
        // A killed command may leave a half line; what came is what counts.
        let _ = from.read_to_end(&mut bytes);
        bytes
    };
    (thread::spawn(move || read(&mut out)), thread::spawn(move || read(&mut err)))
}

impl Running {
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        if self.reaped.is_none() {
            // It may have ended already.
            let _ = rustix::process::kill_process(self.pid(), signal);
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.status().is_some()
    }

    /// How it ended, if it has. Its number stays its own, for what is left of its group.
    fn status(&self) -> Option<ExitStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.reaped.or_else(|| {
            let found = waitid(WaitId::Pid(self.pid()), options);
            let ended = found.unwrap_or_else(|error| panic!("{}: {error}", self.shown))?;
            // As the kernel has it in one word.
            let code = ended.exit_status().map(|code| code << 8);
            Some(ExitStatus::from_raw(code.or(ended.terminating_signal()).unwrap_or_default()))
        })
    }

    /// Waits for the end without reading the output; panics when that does not come in time.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            if Instant::now() >= deadline {
                self.kill();
                let heard = self.take_output();
                panic!("not done after {patience:?}: {}\n{}\n{}", self.shown, heard.0, heard.1);
            }
            thread::sleep(POLL);
        }
    }

    pub fn finish(mut self, patience: Duration) -> Finished {
        let status = self.wait(patience);
        let took = self.since.elapsed();
        let (stdout, stderr) = self.take_output();
        Finished { status, stdout, stderr, took, shown: std::mem::take(&mut self.shown) }
    }

    fn take_output(&mut self) -> (String, String) {
        let text = |bytes: JoinHandle<Vec<u8>>| String::from_utf8_lossy(&bytes.join().unwrap_or_default()).into_owned();
        self.output.take().map(|(out, err)| (text(out), text(err))).unwrap_or_default()
    }

    /// Ends it and its group at once, or what it left of that.
    pub fn kill(&mut self) {
        if self.reaped.is_none() {
            let _ = kill_process_group(self.pid(), Signal::KILL);
            self.reaped = self.child.wait().ok();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Finished {
    pub fn expect_code(self, code: i32) -> Finished {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Lines of stdout.
    pub fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }

    /// Stdout without white space around it.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or(0)),
        };
        let Finished { shown, took, stdout, stderr, .. } = self;
        write!(f, "`{shown}` ended with {end} after {took:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Waits until `found` gives something; panics after `patience`.
pub fn wait_for<T>(what: &str, patience: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        thread::sleep(POLL);
    }
}
