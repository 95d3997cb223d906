//! What is fetched because its like was read before.

use super::Fetches;
use crate::profile::Wanted;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// Of the chunks in memory, so much may be what is expected: the rest is for what is read besides.
const MEMORY_SHARE: (usize, usize) = (3, 4);
/// How often it is looked whether all is there.
const LOOK: Duration = Duration::from_millis(5);

impl Fetches {
    /// Fetches what is expected to be read into memory; what there is no room for is brought near. Waits until all is
    /// there, or does not come, or `patience` is over.
    pub fn expect(&self, wanted: &[Wanted], patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut room = self.options.cache_bytes_max / MEMORY_SHARE.1 * MEMORY_SHARE.0;
        let mut coming = Vec::new();
        for Wanted { of, chunks } in wanted {
            let refs: Vec<_> = chunks.iter().filter_map(|number| of.tree.chunk(*number)).collect();
            let fits = refs.iter().take_while(|chunk| {
                let left = room.checked_sub(chunk.len as usize);
                room = left.unwrap_or(0);
                left.is_some()
            });
            let fits = fits.count();
            self.counts.expected_chunks.fetch_add(refs.len() as u64, Ordering::Relaxed);
            self.bring_in(of, refs[..fits].iter().copied());
            coming.extend(refs[..fits].iter().map(|chunk| chunk.hash));
            runs(chunks.get(fits..).unwrap_or_default()).into_iter().for_each(|run| self.bring_near(of, run));
        }
        let is_coming = || {
            let state = self.state();
            !state.is_over && coming.iter().any(|hash| state.flights.contains_key(hash))
        };
        while Instant::now() < deadline && is_coming() {
            thread::sleep(LOOK);
        }
    }
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
    fn numbers_side_by_side_are_one_run() {
        assert_eq!(runs(&[7, 3, 4, 9, 8]), [3..5, 7..10]);
        assert!(runs(&[]).is_empty());
    }
}
