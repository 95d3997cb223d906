//! A collection leaves half of its time to those who read meanwhile.
//!
//! It takes a core and much of the way to memory, and nobody waits for it as one waits for a NAR. Between its steps
//! it rests for as long as it worked, if anybody read since. It may be reading the index then, which keeps nobody from
//! reading or writing it: only who opens the index again after an error waits.

use crate::segment::Segments;
use std::thread;
use std::time::{Duration, Instant};

/// Work after which it looks whether anybody reads.
const WORK_MIN: Duration = Duration::from_millis(2);
/// The longest rest: a step may have waited for the disk.
const REST_MAX: Duration = Duration::from_millis(200);

pub struct Rests<'a> {
    segments: &'a Segments,
    /// When the work began that it did not rest for yet, and how much was read until then.
    since: Instant,
    reads: u64,
}

impl<'a> Rests<'a> {
    pub fn new(segments: &'a Segments) -> Self {
        Rests { segments, since: Instant::now(), reads: segments.reads() }
    }

    /// To be called between steps. `own`: how often the collection itself read a segment since the last call. Whether it
    /// rested.
    pub fn rest(&mut self, own: u64) -> bool {
        self.reads += own;
        let worked = self.since.elapsed();
        if worked < WORK_MIN {
            return false;
        }
        let others_read = self.segments.reads() != self.reads;
        if others_read {
            thread::sleep(worked.min(REST_MAX));
        }
        *self = Rests::new(self.segments);
        others_read
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;
    use crate::store::Store;

    #[test]
    fn it_rests_after_work_while_others_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let mut rests = Rests::new(&store.segments);
        let work = || {
            let since = Instant::now();
            while since.elapsed() < WORK_MIN {
                std::hint::spin_loop();
            }
        };
        let read = || assert!(store.segments.reader(7).unwrap().is_none());
        work();
        assert!(!rests.rest(0), "nobody reads");
        read();
        work();
        assert!(rests.rest(0), "somebody reads");
        read();
        work();
        assert!(!rests.rest(1), "only the collection itself reads");
    }
}
