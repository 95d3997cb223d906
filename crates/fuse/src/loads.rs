//! Paths that are looked up at the root and are not in memory yet.
//!
//! Invariants: a name is asked for once at a time, however many look it up; nobody waits beyond the deadline, since who
//! waits in a lookup cannot be killed; what comes late is shown to the next who asks.

use crate::source::Source;
use crate::table::{Shown, Table};
use crate::tree::Tree;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Paths asked for at a time. Each is a few round trips.
const WORKERS: usize = 8;
/// Names that wait to be asked for; more fail at once.
const QUEUE_MAX: usize = 4096;

/// What came of looking a path up.
#[derive(Clone)]
pub enum Found {
    Path(Arc<Shown>),
    Nothing,
    /// It is there, but there is no room for its tree.
    NoRoom,
    /// The source failed, or did not answer in time, or nobody asks it any more.
    Failed,
}

/// Takes what is found. Called once.
pub type Tell = Box<dyn FnOnce(Found) + Send>;

/// Is told whether all names are in memory. Called once.
pub type TellListed = Box<dyn FnOnce(bool) + Send>;

pub struct Loads {
    state: Mutex<State>,
    work: Condvar,
    timed: Condvar,
    source: Arc<dyn Source>,
    table: Arc<Table>,
    patience: Duration,
}

#[derive(Default)]
struct State {
    queue: VecDeque<String>,
    /// Who waits for each name that is asked for.
    waiting: HashMap<String, Vec<(Instant, Tell)>>,
    /// Who waits for the list of names to be complete.
    for_list: Vec<(Instant, TellListed)>,
    is_listed: bool,
    is_over: bool,
}

impl Loads {
    /// `lists`: brings all that the source lists into memory; otherwise nothing is ever listed.
    pub fn start(
        source: Arc<dyn Source>,
        table: Arc<Table>,
        patience: Duration,
        lists: bool,
    ) -> io::Result<(Arc<Loads>, Vec<JoinHandle<()>>)> {
        let state = Mutex::new(State { is_listed: !lists, ..State::default() });
        let (work, timed) = (Condvar::new(), Condvar::new());
        let loads = Arc::new(Loads { state, work, timed, source, table, patience });
        let mut threads = Vec::new();
        let mut spawn = |name: String, run: fn(&Loads)| -> io::Result<()> {
            let loads = loads.clone();
            threads.push(thread::Builder::new().name(name).spawn(move || run(&loads))?);
            Ok(())
        };
        for number in 0..WORKERS {
            spawn(format!("load {number}"), Loads::work)?;
        }
        spawn("lookup deadlines".into(), Loads::keep_time)?;
        if lists {
            spawn("load all".into(), Loads::load_all)?;
        }
        Ok((loads, threads))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks a name up where it is not in memory. Never waits.
    pub fn look_up(&self, name: &str, tell: Tell) {
        let mut state = self.state();
        let is_new = !state.waiting.contains_key(name);
        if state.is_over || (is_new && state.queue.len() >= QUEUE_MAX) {
            drop(state);
            return tell(Found::Failed);
        }
        state.waiting.entry(name.to_owned()).or_default().push((Instant::now() + self.patience, tell));
        if is_new {
            state.queue.push_back(name.to_owned());
        }
        drop(state);
        self.work.notify_one();
        self.timed.notify_one();
    }

    /// Calls `tell` once all names that the source listed are in memory, with `false` where that takes too long.
    pub fn when_listed(&self, tell: TellListed) {
        let mut state = self.state();
        if state.is_listed || state.is_over {
            let is_listed = state.is_listed;
            drop(state);
            return tell(is_listed);
        }
        state.for_list.push((Instant::now() + self.patience, tell));
        drop(state);
        self.timed.notify_one();
    }

    pub fn is_listed(&self) -> bool {
        self.state().is_listed
    }

    /// Everybody who waits is told that it failed.
    pub fn end(&self) {
        let (waiting, for_list) = {
            let mut state = self.state();
            state.is_over = true;
            (std::mem::take(&mut state.waiting), std::mem::take(&mut state.for_list))
        };
        self.work.notify_all();
        self.timed.notify_all();
        waiting.into_values().flatten().for_each(|(_, tell)| tell(Found::Failed));
        for_list.into_iter().for_each(|(_, tell)| tell(false));
    }

    fn work(&self) {
        loop {
            let mut state = self.state();
            let name = loop {
                match state.queue.pop_front() {
                    _ if state.is_over => return,
                    // All who waited were told that it took too long.
                    Some(name) if state.waiting.get(&name).is_none_or(Vec::is_empty) => {
                        state.waiting.remove(&name);
                    }
                    Some(name) => break name,
                    None => state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            let found = self.load(&name, Table::insert_wanted);
            let waiting = self.state().waiting.remove(&name).unwrap_or_default();
            for (_, tell) in waiting {
                tell(found.clone());
            }
        }
    }

    fn load(&self, name: &str, insert: fn(&Table, &str, Tree) -> Option<Arc<Shown>>) -> Found {
        if let Some(shown) = self.table.by_name(name) {
            return Found::Path(shown);
        }
        match self.source.manifest(name) {
            Ok(Some(manifest)) => match insert(&self.table, name, Tree::new(&manifest)) {
                Some(shown) => Found::Path(shown),
                None => {
                    tracing::warn!(name, "there is no room for another path in the mount");
                    Found::NoRoom
                }
            },
            Ok(None) => Found::Nothing,
            Err(error) => {
                tracing::warn!(name, %error, "a path could not be looked up");
                Found::Failed
            }
        }
    }

    /// Brings all that the source lists into memory, so that they can be listed with their kinds, and looked up at once.
    fn load_all(&self) {
        let names = loop {
            match self.source.names() {
                Ok(names) => break names,
                Err(error) => {
                    tracing::warn!(%error, "the paths that are here could not be listed");
                    let state = self.state();
                    let paused = self.timed.wait_timeout_while(state, self.patience, |state| !state.is_over);
                    if paused.unwrap_or_else(PoisonError::into_inner).0.is_over {
                        return;
                    }
                }
            }
        };
        for name in names {
            if self.state().is_over {
                return;
            }
            self.load(&name, Table::insert);
        }
        let told = {
            let mut state = self.state();
            state.is_listed = true;
            std::mem::take(&mut state.for_list)
        };
        told.into_iter().for_each(|(_, tell)| tell(true));
    }

    fn keep_time(&self) {
        let mut state = self.state();
        while !state.is_over {
            let now = Instant::now();
            let (mut lookups, mut lists) = (Vec::new(), Vec::new());
            for waiting in state.waiting.values_mut() {
                lookups.extend(waiting.extract_if(.., |(at, _)| *at <= now));
            }
            lists.extend(state.for_list.extract_if(.., |(at, _)| *at <= now));
            let deadlines = state.waiting.values().flatten().map(|(at, _)| *at);
            let next = deadlines.chain(state.for_list.iter().map(|(at, _)| *at)).min();
            if !lookups.is_empty() || !lists.is_empty() {
                drop(state);
                lookups.into_iter().for_each(|(_, tell)| tell(Found::Failed));
                lists.into_iter().for_each(|(_, tell)| tell(false));
                state = self.state();
                continue;
            }
            let pause = next.map_or(self.patience, |at| at.saturating_duration_since(now));
            state = self.timed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
