//! Files that are kept open between reads: what somebody reads goes on being there for him when its name is something
//! else, or gone.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files that are open at a time. Of files that are deleted so many may still take room on the disk.
const OPENED_MAX: usize = 256;

#[derive(Default)]
pub struct Opened(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// By node, with when it was last used.
    files: HashMap<u64, (Arc<OwnedFd>, u64)>,
    now: u64,
}

impl Opened {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, node: u64) -> Option<Arc<OwnedFd>> {
        let mut inner = self.inner();
        inner.now += 1;
        let now = inner.now;
        let (file, used) = inner.files.get_mut(&node)?;
        *used = now;
        Some(file.clone())
    }

    /// Keeps a file. The one that was used the longest ago goes for it where there are too many.
    pub fn keep(&self, node: u64, file: Arc<OwnedFd>) {
        let mut inner = self.inner();
        inner.now += 1;
        let now = inner.now;
        if inner.files.len() >= OPENED_MAX && !inner.files.contains_key(&node) {
            let oldest = inner.files.iter().min_by_key(|(_, (_, used))| *used).map(|(node, _)| *node);
            oldest.and_then(|oldest| inner.files.remove(&oldest));
        }
        inner.files.insert(node, (file, now));
    }

    pub fn close(&self, node: u64) {
        self.inner().files.remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_one_that_was_used_the_longest_ago_is_closed() {
        let opened = Opened::default();
        let file: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
        (0..OPENED_MAX as u64).for_each(|node| opened.keep(node, file.clone()));
        assert!(opened.get(0).is_some());
        opened.keep(1 << 20, file.clone());
        assert!(opened.get(0).is_some() && opened.get(1).is_none() && opened.get(2).is_some());
        assert_eq!(Arc::strong_count(&file), OPENED_MAX + 1);
        opened.close(2);
        assert!(opened.get(2).is_none());
    }
}
