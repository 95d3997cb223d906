//! What one client hears of its builds while they run: a bounded queue from build threads to its session.
//!
//! Builds never wait for a client. When a client reads too slowly, what builders say is dropped and counted; what the
//! node says (started, finished, results) is always kept, and is bounded by the graph.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::BuildResult;

use super::memory::Used;

/// Log bytes a slow client may be behind before lines are dropped: a few seconds of a talkative compiler.
const UNREAD_LOG_BYTES_MAX: usize = 4 << 20;

/// What a short event takes beside its text.
const EVENT_BYTES: usize = 64;

/// Names one execution of one derivation, unique while the node runs.
pub type JobId = u64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildEvent {
    Started {
        job: JobId,
        drv_path: StorePath,
        /// The node that it runs on, if that is another one.
        machine: Option<String>,
    },
    Phase {
        job: JobId,
        phase: String,
    },
    /// One line of the builder's output, without its end of line.
    Line {
        job: JobId,
        line: Vec<u8>,
    },
    Finished {
        job: JobId,
    },
    /// Counts over the derivations of this request.
    Progress {
        done: u64,
        expected: u64,
        running: u64,
        failed: u64,
    },
    /// The node's own text for people, one or more whole lines.
    Message(String),
    /// The same of a builder.
    Said(String),
}

impl BuildEvent {
    /// Whether it is something to read, and not only what is going on.
    pub fn is_text(&self) -> bool {
        match self {
            BuildEvent::Line { .. } | BuildEvent::Message(_) | BuildEvent::Said(_) | BuildEvent::Phase { .. } => true,
            BuildEvent::Started { .. } | BuildEvent::Finished { .. } | BuildEvent::Progress { .. } => false,
        }
    }

    /// Bytes of what a builder may say without end.
    fn said_bytes(&self) -> usize {
        match self {
            BuildEvent::Line { line: said, .. } => said.len() + EVENT_BYTES,
            BuildEvent::Phase { phase: said, .. } | BuildEvent::Said(said) => said.len() + EVENT_BYTES,
            BuildEvent::Started { .. } | BuildEvent::Finished { .. } => 0,
            BuildEvent::Progress { .. } | BuildEvent::Message(_) => 0,
        }
    }
}

/// What [`Feed::next`] found.
#[derive(Debug)]
pub enum Next {
    Event(BuildEvent),
    /// All goals are settled; the results by derivation.
    Done(HashMap<StorePath, BuildResult>),
    /// Nothing happened in the given time.
    Idle,
    /// Somebody asked for attention, for example because the client is gone.
    Woken,
}

#[derive(Default)]
struct State {
    events: VecDeque<BuildEvent>,
    log_bytes: usize,
    lines_dropped: u64,
    results: HashMap<StorePath, BuildResult>,
    goals_open: usize,
    woken: bool,
    has_lacked: bool,
    has_given_up: bool,
    used: Used,
}

#[derive(Clone, Default)]
pub struct Feed {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Feed {
    pub fn new(goals: usize) -> Feed {
        let feed = Feed::default();
        feed.lock().goals_open = goals;
        feed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, event: BuildEvent) {
        let mut state = self.lock();
        let said_bytes = event.said_bytes();
        if said_bytes > 0 && state.log_bytes + said_bytes > UNREAD_LOG_BYTES_MAX {
            state.lines_dropped += 1;
            return;
        }
        state.log_bytes += said_bytes;
        if let BuildEvent::Line { job, .. } = &event
            && state.lines_dropped > 0
        {
            let dropped = std::mem::take(&mut state.lines_dropped);
            let note = format!("[{dropped} lines left out: the client reads too slowly; the log has them]");
            let note = BuildEvent::Line { job: *job, line: note.into_bytes() };
            state.log_bytes += note.said_bytes();
            state.events.push_back(note);
        }
        state.events.push_back(event);
        drop(state);
        self.shared.1.notify_all();
    }

    /// Settles one goal.
    pub fn settle(&self, drv_path: StorePath, result: BuildResult) {
        let mut state = self.lock();
        if state.results.insert(drv_path, result).is_none() {
            state.goals_open = state.goals_open.saturating_sub(1);
        }
        drop(state);
        self.shared.1.notify_all();
    }

    /// Something failed since what it needs was lost with the node that had it: asked for again, that is built again.
    pub fn lacks(&self) {
        self.lock().has_lacked = true;
    }

    pub fn has_lacked(&self) -> bool {
        self.lock().has_lacked
    }

    /// It was tried as often as anything is: who follows it need not try it too.
    pub fn gives_up(&self) {
        self.lock().has_given_up = true;
    }

    pub fn has_given_up(&self) -> bool {
        self.lock().has_given_up
    }

    /// What the builder used of which this tells.
    pub fn set_used(&self, used: Used) {
        self.lock().used = used;
    }

    pub fn used(&self) -> Used {
        self.lock().used
    }

    /// Whether all goals are settled.
    pub fn is_done(&self) -> bool {
        self.lock().goals_open == 0
    }

    /// Makes the reader return once with [`Next::Woken`].
    pub fn wake(&self) {
        self.lock().woken = true;
        self.shared.1.notify_all();
    }

    /// The next thing to tell the client, waiting at most `wait` for it.
    pub fn next(&self, wait: Duration) -> Next {
        let deadline = Instant::now() + wait;
        let mut state = self.lock();
        loop {
            if std::mem::take(&mut state.woken) {
                return Next::Woken;
            }
            if let Some(event) = state.events.pop_front() {
                state.log_bytes = state.log_bytes.saturating_sub(event.said_bytes());
                return Next::Event(event);
            }
            if state.goals_open == 0 {
                return Next::Done(std::mem::take(&mut state.results));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Idle;
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: usize) -> BuildEvent {
        BuildEvent::Line { job: 1, line: vec![b'x'; n] }
    }

    #[test]
    fn lines_beyond_the_bound_are_counted_and_nothing_else_is_lost() {
        let feed = Feed::new(1);
        feed.push(line(UNREAD_LOG_BYTES_MAX - EVENT_BYTES));
        feed.push(BuildEvent::Phase { job: 1, phase: "install".into() });
        feed.push(BuildEvent::Said("of a builder".into()));
        feed.push(line(1));
        feed.push(BuildEvent::Finished { job: 1 });
        let wait = Duration::ZERO;
        assert!(matches!(feed.next(wait), Next::Event(BuildEvent::Line { .. })));
        assert!(matches!(feed.next(wait), Next::Event(BuildEvent::Finished { .. })));
        assert!(matches!(feed.next(wait), Next::Idle));
        feed.push(line(1));
        let Next::Event(BuildEvent::Line { line, .. }) = feed.next(wait) else { panic!("no note") };
        assert!(line.starts_with(b"[3 lines left out"));
    }

    #[test]
    fn a_wake_is_seen_once() {
        let feed = Feed::new(1);
        feed.wake();
        assert!(matches!(feed.next(Duration::ZERO), Next::Woken));
        assert!(matches!(feed.next(Duration::ZERO), Next::Idle));
    }
}
