//! Turns: rights to do something of which only so much is done at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// What all tokens share, and of which one of them has at most a part: it does not keep everybody else out.
pub struct Turns {
    all: Arc<Semaphore>,
    each_max: usize,
    /// By the name of a token. Who has no turn and waits for none is forgotten.
    each: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// Given back when dropped.
pub struct Turn {
    _own: OwnedSemaphorePermit,
    _one_of_all: OwnedSemaphorePermit,
}

impl Turns {
    pub fn new(all: usize, each_max: usize) -> Turns {
        Turns { all: Arc::new(Semaphore::new(all)), each_max, each: Mutex::default() }
    }

    /// A turn for the token of this name; `None` where too many have theirs for as long as `patience`.
    pub async fn take(&self, who: &str, patience: Duration) -> Option<Turn> {
        let turn = async {
            // In this order: who waits for others of his own holds nothing that is shared.
            let own = self.of(who).acquire_owned().await.ok()?;
            let one_of_all = self.all.clone().acquire_owned().await.ok()?;
            Some(Turn { _own: own, _one_of_all: one_of_all })
        };
        timeout(patience, turn).await.ok()?
    }

    fn of(&self, who: &str) -> Arc<Semaphore> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        each.retain(|_, own| Arc::strong_count(own) > 1);
        let own = each.entry(who.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.each_max)));
        own.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_who_takes_all_his_turns_leaves_some_for_others() {
        let turns = Turns::new(4, 3);
        let take = async |who| turns.take(who, Duration::from_millis(1)).await;
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(take("greedy").await.expect("his own"));
        }
        assert!(take("greedy").await.is_none());
        let other = take("modest").await.expect("there is one left");
        assert!(take("late").await.is_none());
        drop(taken.pop());
        assert!(take("late").await.is_some());
        drop((taken, other));
        assert!(take("modest").await.is_some());
        assert_eq!(turns.each.lock().unwrap().len(), 1, "who has none is remembered");
    }
}
