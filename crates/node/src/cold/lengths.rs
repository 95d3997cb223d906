//! How long packs are, as the bucket said lately: what names a pack again asks for it again, but not each time.
//!
//! A pack of which this node found that it is not right has no length, however long the bucket says that it is: neither is
//! it named by new records, nor is a copy let go of for it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use shoal_wire::mesh::cold::{PackName, pack_object};

use super::Cold;
use crate::upstream::Refusal;

/// A pack that was there within this time is named in new records unasked.
pub const NAMED_MS: u64 = 3_600_000;
/// Packs that are remembered, some 5 MiB.
const PACKS_MAX: usize = 65_536;
/// Packs that are known to be wrong, some 3 MiB; with more nothing is said of any.
const WRONG_MAX: usize = 65_536;
/// Packs that are asked for at once.
const ASKED_AT_ONCE: usize = 16;

pub struct Lengths {
    /// With the time at which it was heard.
    known: Mutex<HashMap<PackName, (u64, u64)>>,
    wrong: Mutex<BTreeSet<PackName>>,
    max: usize,
}

impl Default for Lengths {
    fn default() -> Lengths {
        Lengths { known: Mutex::default(), wrong: Mutex::default(), max: PACKS_MAX }
    }
}

impl Lengths {
    fn lock(&self) -> MutexGuard<'_, HashMap<PackName, (u64, u64)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As heard since `since_ms`.
    fn get(&self, pack: &PackName, since_ms: u64) -> Option<u64> {
        self.lock().get(pack).filter(|(_, at_ms)| *at_ms >= since_ms).map(|(len, _)| *len)
    }

    pub fn note(&self, pack: PackName, len: u64, now_ms: u64) {
        let mut known = self.lock();
        if known.len() >= self.max && !known.contains_key(&pack) {
            known.retain(|_, (_, at_ms)| now_ms.saturating_sub(*at_ms) < NAMED_MS);
        }
        if known.len() >= self.max && !known.contains_key(&pack) {
            // Asking again is cheap beside what was done with so many.
            known.clear();
        }
        known.insert(pack, (len, now_ms));
    }

    pub fn forget(&self, pack: &PackName) {
        self.lock().remove(pack);
    }

    fn wrong(&self) -> MutexGuard<'_, BTreeSet<PackName>> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With what was found wrong before.
    pub fn with_wrong(wrong: BTreeSet<PackName>) -> Lengths {
        Lengths { wrong: Mutex::new(wrong), ..Lengths::default() }
    }

    pub fn is_any_wrong(&self, packs: &[PackName]) -> bool {
        let wrong = self.wrong();
        packs.iter().any(|pack| wrong.contains(pack))
    }
}

impl Cold {
    /// A pack's bytes are not what its name says, or not there. Known over a restart: nothing else tells of a pack of the
    /// right length.
    pub(super) fn found_wrong(&self, pack: &PackName) {
        let mut wrong = self.lengths.wrong();
        if wrong.len() <= WRONG_MAX && wrong.insert(*pack) {
            self.note_wrong(pack, true);
        }
    }

    /// It was written, or read whole.
    pub(super) fn found_right(&self, pack: &PackName) {
        if self.lengths.wrong().remove(pack) {
            self.note_wrong(pack, false);
        }
    }

    fn note_wrong(&self, pack: &PackName, is_wrong: bool) {
        if let Err(error) = self.notes.set_wrong(pack, is_wrong) {
            tracing::warn!("{error:#}");
        }
    }

    /// How long packs are, 0 of those that are missing, as the bucket said within the last `age_ms`. Nothing is
    /// waited for after `until_ms`. Error: it does not say.
    pub fn pack_lens(&self, packs: &[PackName], age_ms: u64, until_ms: u64) -> Result<Vec<u64>, String> {
        let now_ms = self.now_ms();
        // What was heard at the very start is not heard before it.
        let since_ms = now_ms.saturating_sub(age_ms);
        let wrong = self.lengths.wrong();
        if wrong.len() > WRONG_MAX {
            return Err("too many packs of the bucket are wrong; see 'shoal cold verify'".into());
        }
        let len = |pack: &PackName| if wrong.contains(pack) { Some(0) } else { self.lengths.get(pack, since_ms) };
        let mut lens: Vec<Option<u64>> = packs.iter().map(len).collect();
        drop(wrong);
        let mut open = (0..packs.len()).filter(|&index| lens[index].is_none()).collect::<VecDeque<_>>();
        let mut asked = VecDeque::new();
        loop {
            while asked.len() < ASKED_AT_ONCE
                && let Some(index) = open.pop_front()
            {
                asked.push_back((index, self.bucket.ask_size(&pack_object(&packs[index]))));
            }
            let Some((index, pending)) = asked.pop_front() else { break };
            if self.now_ms() >= until_ms {
                return Err("it is too slow".into());
            }
            let len = match pending.wait(&self.bucket) {
                Ok(len) => len,
                Err(Refusal::Missing) => 0,
                Err(Refusal::Failed(why)) => return Err(why),
            };
            match len {
                0 => self.lengths.forget(&packs[index]),
                len => self.lengths.note(packs[index], len, now_ms),
            }
            lens[index] = Some(len);
        }
        Ok(lens.into_iter().map(Option::unwrap_or_default).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_long_ago_is_not_known() {
        let lengths = Lengths::default();
        lengths.note([1; 32], 5, 100);
        assert_eq!((lengths.get(&[1; 32], 100), lengths.get(&[1; 32], 101)), (Some(5), None));
        lengths.forget(&[1; 32]);
        assert_eq!(lengths.get(&[1; 32], 0), None);
    }

    #[test]
    fn there_are_no_more_than_the_bound_and_old_ones_go_first() {
        let lengths = Lengths { max: 2, ..Lengths::default() };
        lengths.note([1; 32], 1, 0);
        lengths.note([2; 32], 2, NAMED_MS);
        lengths.note([3; 32], 3, NAMED_MS);
        assert_eq!((lengths.get(&[1; 32], 0), lengths.get(&[2; 32], 0)), (None, Some(2)));
        lengths.note([4; 32], 4, NAMED_MS);
        assert_eq!(lengths.lock().len(), 1);
    }
}
