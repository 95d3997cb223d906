//! What is fetched because its like was read before.

use super::Fetches;
use crate::profile::Wanted;
use shoal_wire::mesh::manifest::ChunkRef;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// Of the chunks in memory, so much may be what is expected, by all together: the rest is for what is read besides.
const MEMORY_SHARE: (usize, usize) = (3, 4);
/// How often it is looked whether all is there.
const LOOK: Duration = Duration::from_millis(5);

impl Fetches {
    /// Fetches what is expected to be read into memory; what there is no room for is brought near. Waits until all is
    /// there, or does not come, or `patience` is over, or somebody says that it is over.
    pub fn expect(&self, wanted: &[Wanted], patience: Duration, is_over: &dyn Fn() -> bool) {
        let deadline = Instant::now() + patience;
        let room_for_all = self.options.cache_bytes_max / MEMORY_SHARE.1 * MEMORY_SHARE.0;
        let mut taken = 0;
        let mut coming = Vec::new();
        for Wanted { of, chunks } in wanted {
            let refs: Vec<_> = chunks.iter().filter_map(|number| of.tree.chunk(*number)).collect();
            let fits = fitting(&refs, &mut self.state().expected_bytes, room_for_all);
            taken += refs[..fits].iter().map(|chunk| chunk.len as usize).sum::<usize>();
            self.counts.expected_chunks.fetch_add(refs.len() as u64, Ordering::Relaxed);
            self.bring_in(of, refs[..fits].iter().copied());
            coming.extend(refs[..fits].iter().map(|chunk| chunk.hash));
            runs(chunks.get(fits..).unwrap_or_default()).into_iter().for_each(|run| self.bring_near(of, run));
        }
        let is_coming = || {
            let state = self.state();
            !state.is_over && coming.iter().any(|hash| state.flights.contains_key(hash))
        };
        while Instant::now() < deadline && is_coming() && !is_over() {
            thread::sleep(LOOK);
        }
        let mut state = self.state();
        state.expected_bytes = state.expected_bytes.saturating_sub(taken);
    }
}

/// How many of these there is room for, which is taken.
fn fitting(chunks: &[ChunkRef], taken: &mut usize, room: usize) -> usize {
    let fits = |chunk: &&ChunkRef| {
        let with_it = taken.saturating_add(chunk.len as usize);
        let fits = with_it <= room;
        if fits {
            *taken = with_it;
        }
        fits
    };
    chunks.iter().take_while(fits).count()
}

/// Numbers as ranges.
fn runs(numbers: &[usize]) -> Vec<Range<usize>> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    let mut runs: Vec<Range<usize>> = Vec::new();
    for number in numbers {
        match runs.last_mut().filter(|run| run.end == number) {
            Some(run) => run.end += 1,
            None => runs.push(number..number + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_expects_something_later_has_the_room_that_is_left() {
        let chunks = [[1; 30], [2; 30], [3; 30]].map(|bytes| ChunkRef::of(&bytes));
        let mut taken = 0;
        assert_eq!(fitting(&chunks[..2], &mut taken, 100), 2);
        assert_eq!(fitting(&chunks, &mut taken, 100), 1, "another takes what is left");
        assert_eq!((fitting(&chunks, &mut taken, 100), taken), (0, 90));
        assert_eq!(fitting(&chunks, &mut 0, usize::MAX), 3);
    }

    #[test]
    fn numbers_side_by_side_are_one_run() {
        assert_eq!(runs(&[7, 3, 4, 9, 8]), [3..5, 7..10]);
        assert!(runs(&[]).is_empty());
    }
}
