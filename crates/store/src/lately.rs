//! What was worked out of the index lately, kept until the index changes.
//!
//! Who looks something up asks for the store's [`State`] before it reads the index, and keeps what it made under that. A
//! commit changes the state once it can be seen and before its caller goes on, so nothing older is given to anybody who
//! may know better.

use crate::store::Store;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Values that are kept; of a larger store the ones that are asked for come back one by one.
const KEPT_MAX: usize = 8192;

/// What the index holds and what of it is right: equal only where nothing was changed in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    commits: u64,
    damage: u64,
}

/// Values by hash part, all of one state of the store.
#[derive(Debug)]
pub struct Lately<V>(Mutex<Kept<V>>);

#[derive(Debug)]
struct Kept<V> {
    state: State,
    values: HashMap<Box<str>, V>,
}

impl Store {
    /// What a value that is worked out from now on is true of.
    pub fn state(&self) -> State {
        State { commits: self.index.commits(), damage: self.pins.damage_generation() }
    }
}

impl<V> Default for Lately<V> {
    fn default() -> Self {
        Lately(Mutex::new(Kept { state: State::default(), values: HashMap::new() }))
    }
}

impl<V: Clone> Lately<V> {
    /// The value of a hash part, if it is still true in this state.
    pub fn get(&self, hash_part: &str, state: State) -> Option<V> {
        let kept = self.kept();
        (kept.state == state).then(|| kept.values.get(hash_part).cloned())?
    }

    /// Keeps a value that was worked out after `state` was asked for. `now`: the state as it is.
    pub fn put(&self, hash_part: &str, state: State, now: State, value: V) {
        if state != now {
            return;
        }
        let mut kept = self.kept();
        if kept.state != state || kept.values.len() >= KEPT_MAX {
            *kept = Kept { state, values: HashMap::new() };
        }
        kept.values.insert(hash_part.into(), value);
    }

    fn kept(&self) -> MutexGuard<'_, Kept<V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_worked_out_before_a_change_is_not_given_after_it() {
        let lately = Lately::default();
        let (before, after) = (State { commits: 1, damage: 0 }, State { commits: 2, damage: 0 });
        lately.put("a", before, before, 1);
        assert_eq!((lately.get("a", before), lately.get("b", before)), (Some(1), None));
        assert_eq!(lately.get("a", after), None);
        lately.put("a", before, after, 1);
        assert_eq!(lately.get("a", after), None, "from before the change, and late");
        lately.put("b", after, after, 2);
        assert_eq!((lately.get("a", after), lately.get("b", after)), (None, Some(2)));
        assert_eq!(lately.get("b", State { commits: 2, damage: 1 }), None, "something was found damaged");
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let lately = Lately::default();
        let state = State::default();
        (0..KEPT_MAX + 10).for_each(|number| lately.put(&number.to_string(), state, state, ()));
        assert!(lately.kept().values.len() <= KEPT_MAX);
        assert_eq!(lately.get(&(KEPT_MAX + 9).to_string(), state), Some(()));
    }
}
