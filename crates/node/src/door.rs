//! Front doors: where clients come in, and the threads that serve them.
//!
//! A door (ssh, unix socket) finds out who the client is and bridges its bytes to a blocking session by a
//! [`pipe`]. It knows nothing of Nix: what a session does is behind [`Host`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

pub use authorized_keys::{AuthorizedKeys, Grant, Role};
pub use command::Program;
pub use pipe::{Hangup, PipeReader, PipeWriter};
pub use ssh::{SshDoor, SshOptions};
pub use unix::UnixDoor;

pub mod authorized_keys;
pub mod command;
pub mod host_key;
pub mod pipe;
pub mod ssh;
pub mod unix;

/// Sessions at once. Each costs a thread, which sleeps in a read most of the time.
pub const SESSIONS_MAX: usize = 1024;
/// Address space of a session's thread; what is not touched costs nothing. Enough for debug builds.
const SESSION_STACK: usize = 2 << 20;

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    pub grant: Grant,
    /// For people: `ssh 192.0.2.1:4711`, `socket uid 1000`.
    pub from: String,
}

/// One client's session, ready to be served.
pub struct Call {
    pub program: Program,
    pub peer: Peer,
    pub input: PipeReader,
    pub output: PipeWriter,
    pub hangup: Hangup,
}

/// Serves sessions.
pub trait Host: Send + Sync + 'static {
    /// Runs one session to its end, on its own thread. Returns the exit status that an ssh client sees.
    fn serve(&self, call: Call) -> u32;

    /// What a client of `program` can read when there is no room for its session: bytes of its protocol, or none.
    fn refusal(&self, program: Program, text: &str) -> Vec<u8>;
}

/// One in so many sessions is kept free for others, however many somebody wants.
const KEPT_FREE: usize = 4;

/// Starts sessions on threads of their own, at most so many at once. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    host: Arc<dyn Host>,
    running: Arc<Running>,
    max: usize,
}

/// Sessions that run now, by who their client is.
#[derive(Default)]
struct Running(Mutex<HashMap<String, usize>>);

/// Counts a session for as long as it lives.
struct Place {
    running: Arc<Running>,
    who: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        if let Some(own) = running.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                running.remove(&self.who);
            }
        }
    }
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.lock().values().sum()
    }
}

impl Sessions {
    pub fn new(host: Arc<dyn Host>, max: usize) -> Sessions {
        Sessions { host, running: Arc::default(), max }
    }

    /// Sessions that run now.
    pub fn running(&self) -> usize {
        self.running.count()
    }

    fn place(&self, who: &str) -> Option<Place> {
        let mut running = self.running.lock();
        let others: usize = running.iter().filter(|(name, _)| *name != who).map(|(_, count)| count).sum();
        let own = running.entry(who.to_owned()).or_default();
        if *own + others >= self.max || *own >= self.max - self.max / KEPT_FREE {
            return None;
        }
        *own += 1;
        Some(Place { running: self.running.clone(), who: who.to_owned() })
    }

    /// Runs the session; where there is no room, tells the client so and ends it.
    pub fn start(&self, program: Program, peer: Peer, session: pipe::SessionEnd) {
        let pipe::SessionEnd { input, output, hangup, end } = session;
        let call = Call { program, peer, input, output, hangup };
        let Some(place) = self.place(&call.peer.grant.who) else {
            let text = format!("this node already serves {} sessions; try again later", self.running());
            return self.refuse(call, end, &text);
        };
        let host = self.host.clone();
        let name = call.peer.from.clone();
        let run = move || {
            let _place = place;
            let status = host.serve(call);
            end.finish(status);
        };
        let thread = thread::Builder::new().name(thread_name(&name)).stack_size(SESSION_STACK);
        if let Err(error) = thread.spawn(run) {
            // The closure, and with it the pipe, is gone: the client sees its session end.
            tracing::warn!("cannot start a thread for {name}: {error}");
        }
    }

    fn refuse(&self, call: Call, end: pipe::End, text: &str) {
        use std::io::Write;
        tracing::warn!("refused {}: {text}", call.peer.from);
        let mut stderr = call.output.with_lane(pipe::Lane::Stderr);
        let mut output = call.output;
        // The pipe is empty, so these short messages fit without waiting.
        let _ = output.write_all(&self.host.refusal(call.program, text)).and_then(|()| output.flush());
        let _ = writeln!(stderr, "shoal: {text}").and_then(|()| stderr.flush());
        end.finish(EXIT_TRY_AGAIN);
    }
}

/// `EX_TEMPFAIL`.
const EXIT_TRY_AGAIN: u32 = 75;

/// The kernel shows 15 bytes of a thread's name.
fn thread_name(from: &str) -> String {
    from.chars().filter(|c| *c != '\0').take(15).collect()
}

/// Every connection is a file descriptor, and the usual soft limit of 1,024 is fewer than the doors admit.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("cannot raise the limit on open files: {error}");
    }
}
