//! Paths that are looked up at the root and are not in memory yet.
//!
//! Invariants: a name is asked for once at a time, however many look it up, and again where that failed, for as long as
//! somebody waits; nobody waits beyond the deadline, since who waits in a lookup cannot be killed; what comes late is
//! shown to the next who asks.

use crate::source::{Source, SourceError};
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
/// What failed is asked for again after so long.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

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
    /// Names that failed, in the order of the times from which they are asked for again.
    again: VecDeque<(Instant, String)>,
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
        if state.is_over || (is_new && state.queue.len() + state.again.len() >= QUEUE_MAX) {
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
        while let Some(name) = self.next() {
            let loaded = self.load(&name, Table::insert_wanted);
            self.came(name, loaded);
        }
    }

    /// The next name to ask for; those that failed come after those that nobody asked for yet. `None` at the end.
    fn next(&self) -> Option<String> {
        let mut state = self.state();
        while !state.is_over {
            let now = Instant::now();
            let name = match state.queue.pop_front() {
                None if state.again.front().is_some_and(|(at, _)| *at <= now) => {
                    state.again.pop_front().map(|(_, name)| name)
                }
                name => name,
            };
            match name {
                // All who waited were told that it took too long.
                Some(name) if state.waiting.get(&name).is_none_or(Vec::is_empty) => {
                    tracing::warn!(name, "a path was looked up for too long");
                    state.waiting.remove(&name);
                }
                Some(name) => {
                    // Somebody else minds the time from which others are asked for again.
                    if !state.again.is_empty() {
                        self.work.notify_one();
                    }
                    return Some(name);
                }
                None => {
                    state = match state.again.front().map(|(at, _)| at.saturating_duration_since(now)) {
                        Some(pause) => self.work.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0,
                        None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                    };
                }
            }
        }
        None
    }

    /// Tells who waits for a name; what failed is put back while there is anybody.
    fn came(&self, name: String, loaded: Result<Found, SourceError>) {
        let mut state = self.state();
        let is_awaited = state.waiting.get(&name).is_some_and(|waiting| !waiting.is_empty());
        if let Err(SourceError::Failed(why)) = &loaded
            && is_awaited
            && !state.is_over
        {
            tracing::debug!(name, why, "a path is looked up again");
            state.again.push_back((Instant::now() + LOOK_AGAIN, name));
            return;
        }
        let waiting = state.waiting.remove(&name).unwrap_or_default();
        drop(state);
        let found = loaded.unwrap_or_else(|error| {
            tracing::warn!(name, %error, "a path could not be looked up");
            Found::Failed
        });
        for (_, tell) in waiting {
            tell(found.clone());
        }
    }

    fn load(&self, name: &str, insert: fn(&Table, &str, Tree) -> Option<Arc<Shown>>) -> Result<Found, SourceError> {
        if let Some(shown) = self.table.by_name(name) {
            return Ok(Found::Path(shown));
        }
        let Some(manifest) = self.source.manifest(name)? else { return Ok(Found::Nothing) };
        Ok(match insert(&self.table, name, Tree::new(&manifest)) {
            Some(shown) => Found::Path(shown),
            None => {
                tracing::warn!(name, "there is no room for another path in the mount");
                Found::NoRoom
            }
        })
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
            // What failed is asked for again when somebody looks it up.
            if let Err(error) = self.load(&name, Table::insert) {
                tracing::warn!(name, %error, "a path is not listed");
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Deliver;
    use crate::testing;
    use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
    use std::sync::mpsc;

    /// What is waited for takes milliseconds.
    const ENDS: Duration = Duration::from_secs(60);

    /// Fails, until it is told not to.
    #[derive(Default)]
    struct Failing {
        is_well: Mutex<bool>,
        asked: Mutex<HashMap<String, usize>>,
    }

    impl Source for Failing {
        fn names(&self) -> Result<Vec<String>, SourceError> {
            Ok(vec!["listed".into()])
        }

        fn manifest(&self, name: &str) -> Result<Option<Manifest>, SourceError> {
            *self.asked.lock().unwrap().entry(name.into()).or_default() += 1;
            match name {
                "broken" => Err(SourceError::Broken("for good".into())),
                "sound" => Ok(Some(testing::path(&[("", testing::file(b"a"))]).0)),
                _ if *self.is_well.lock().unwrap() => Ok(None),
                _ => Err(SourceError::Failed("for now".into())),
            }
        }

        fn fetch(&self, _: &str, _: &[ChunkRef], _: Deliver<'_>) {}

        fn prefetch(&self, _: &str, _: &[ChunkRef]) {}
    }

    fn start(patience: Duration) -> (Arc<Failing>, Arc<Loads>) {
        let source = Arc::<Failing>::default();
        let (loads, _) = Loads::start(source.clone(), Arc::default(), patience, true).unwrap();
        (source, loads)
    }

    fn look_up(loads: &Loads, name: &str) -> mpsc::Receiver<Found> {
        let (tell, told) = mpsc::channel();
        loads.look_up(name, Box::new(move |found| drop(tell.send(found))));
        told
    }

    #[test]
    fn what_fails_is_asked_for_again_while_somebody_waits_and_keeps_nobody_from_others() {
        let (source, loads) = start(Duration::from_secs(600));
        let failing: Vec<_> = (0..2 * WORKERS).map(|number| look_up(&loads, &number.to_string())).collect();
        assert!(matches!(look_up(&loads, "sound").recv_timeout(ENDS).unwrap(), Found::Path(_)));
        assert!(matches!(look_up(&loads, "broken").recv_timeout(ENDS).unwrap(), Found::Failed));
        assert!(failing.iter().all(|told| told.try_recv().is_err()), "they wait");
        *source.is_well.lock().unwrap() = true;
        assert!(failing.iter().all(|told| matches!(told.recv_timeout(ENDS).unwrap(), Found::Nothing)));
        let (tell, told) = mpsc::channel();
        loads.when_listed(Box::new(move |is_listed| tell.send(is_listed).unwrap()));
        assert!(told.recv_timeout(ENDS).unwrap());
        assert_eq!(source.asked.lock().unwrap()["listed"], 1, "nobody waits for it");
        loads.end();
    }

    #[test]
    fn what_fails_until_nobody_waits_any_more_is_forgotten() {
        let (source, loads) = start(Duration::from_millis(300));
        assert!(matches!(look_up(&loads, "failing").recv_timeout(ENDS).unwrap(), Found::Failed));
        let until = Instant::now() + ENDS;
        while !loads.state().waiting.is_empty() {
            assert!(Instant::now() < until, "it is asked for still");
            thread::yield_now();
        }
        assert!(loads.state().again.is_empty());
        assert!(source.asked.lock().unwrap()["failing"] > 0);
        loads.end();
    }
}
