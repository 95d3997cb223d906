//! Claims of the paths that this node writes to the bucket, renewed for as long as that takes: a slow line needs minutes
//! for what waits for one pack.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shoal_grid::catalogue::claims::CLAIM_MS;
use shoal_wire::nix::store_path::StorePath;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::neighbours::Neighbours;

/// Long before a claim ends.
const RENEW_PERIOD: Duration = Duration::from_millis(CLAIM_MS / 3);

/// Who says whose a claim is.
pub trait Owners: Send + Sync + 'static {
    /// Whether it is this node's.
    fn claim(&self, path: &StorePath) -> bool;
    /// Waits for nothing.
    fn renew(&self, path: &StorePath);
    fn unclaim(&self, path: &StorePath);
}

impl Owners for Neighbours {
    fn claim(&self, path: &StorePath) -> bool {
        self.claim_cold(path)
    }

    fn renew(&self, path: &StorePath) {
        self.renew_cold_claim(path);
    }

    fn unclaim(&self, path: &StorePath) {
        self.unclaim_cold(path);
    }
}

/// No more than wait for one pack, and one.
struct Held<O> {
    owners: O,
    paths: Mutex<BTreeSet<StorePath>>,
}

pub struct Claims<O: Owners> {
    held: Arc<Held<O>>,
    renewing: AbortHandle,
}

impl<O: Owners> Held<O> {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<StorePath>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self) {
        self.lock().iter().for_each(|path| self.owners.renew(path));
    }
}

impl<O: Owners> Claims<O> {
    pub fn new(owners: O, runtime: &Handle) -> Claims<O> {
        let held = Arc::new(Held { owners, paths: Mutex::default() });
        let renewed = held.clone();
        let renew = async move {
            let mut ticks = tokio::time::interval(RENEW_PERIOD);
            loop {
                ticks.tick().await;
                renewed.renew();
            }
        };
        Claims { held, renewing: runtime.spawn(renew).abort_handle() }
    }

    /// Whether this node is to write the path; if so until [`Claims::end`].
    pub fn claim(&self, path: &StorePath) -> bool {
        let is_ours = self.held.owners.claim(path);
        if is_ours {
            self.held.lock().insert(path.clone());
        }
        is_ours
    }

    pub fn end(&self, path: &StorePath) {
        self.held.lock().remove(path);
        self.held.owners.unclaim(path);
    }
}

impl<O: Owners> Drop for Claims<O> {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Owners for Arc<Notes> {
        fn claim(&self, path: &StorePath) -> bool {
            path.name() != "theirs"
        }

        fn renew(&self, path: &StorePath) {
            self.0.lock().unwrap().push(format!("renew {}", path.name()));
        }

        fn unclaim(&self, path: &StorePath) {
            self.0.lock().unwrap().push(format!("end {}", path.name()));
        }
    }

    #[test]
    fn what_is_claimed_is_renewed_until_it_is_written() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let notes = Arc::new(Notes::default());
        let claims = Claims::new(notes.clone(), runtime.handle());
        let path = |name: &str| StorePath::from_base_name(&format!("{}-{name}", "1".repeat(32))).unwrap();
        assert!(claims.claim(&path("a")) && claims.claim(&path("b")) && !claims.claim(&path("theirs")));
        claims.held.renew();
        claims.end(&path("a"));
        claims.held.renew();
        assert_eq!(*notes.0.lock().unwrap(), ["renew a", "renew b", "end a", "renew b"]);
    }

    #[test]
    fn claims_are_renewed_by_themselves() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let notes = Arc::new(Notes::default());
        let claims = Claims::new(notes.clone(), runtime.handle());
        claims.claim(&StorePath::from_base_name(&format!("{}-a", "1".repeat(32))).unwrap());
        // The first time is at once.
        runtime.block_on(async {
            while notes.0.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(*notes.0.lock().unwrap(), ["renew a"]);
    }
}
