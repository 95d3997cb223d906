//! Looking on while a derivation is built, without wanting it: who only watches keeps no build alive.

use std::time::Duration;

use shoal_wire::nix::store_path::StorePath;

use super::feed::{BuildEvent, Feed, Next};
use super::service::BuildService;

/// Those that look on at one build; more are refused, as if it did not run.
const WATCHERS_MAX: usize = 64;
/// Silence is no reason to look again; this only bounds the wait.
const SILENCE_MAX: Duration = Duration::from_secs(3600);

/// What a running build says.
pub struct Watch(Feed);

/// Ends when the build has ended, or when somebody wakes the watcher.
impl Iterator for Watch {
    type Item = BuildEvent;

    fn next(&mut self) -> Option<BuildEvent> {
        loop {
            match self.0.next(SILENCE_MAX) {
                Next::Event(event) => return Some(event),
                Next::Idle => {}
                Next::Done(_) | Next::Woken => return None,
            }
        }
    }
}

impl Watch {
    /// Something to end the wait from another thread.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let feed = self.0.clone();
        move || feed.wake()
    }
}

impl BuildService {
    /// What a build that runs said so far and says from now on; `None` where it does not run.
    pub fn watch(&self, drv_path: &StorePath) -> Option<Watch> {
        let mut state = self.lock();
        let running = state.jobs.get_mut(drv_path)?.running.as_mut()?;
        if running.watchers.len() >= WATCHERS_MAX {
            return None;
        }
        let feed = Feed::new(1);
        running.past.events(running.id).into_iter().for_each(|event| feed.push(event));
        running.watchers.push(feed.clone());
        Some(Watch(feed))
    }

    /// Stops a build that runs, for everybody who wants it. Whether it ran.
    pub fn stop(&self, drv_path: &StorePath) -> bool {
        let state = self.lock();
        let running = state.jobs.get(drv_path).and_then(|job| job.running.as_ref());
        let ran = running.map(|running| running.kill.kill()).is_some();
        state.guests.stop(drv_path) || ran
    }
}
