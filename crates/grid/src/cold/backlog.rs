//! Paths that are to be written.
//!
//! Invariants:
//! - a path is in it once, however often it is added;
//! - it has a bound. What finds no room is not lost: the backlog says that all that is stored has to be looked through once
//!   it is empty, which is how it begins too;
//! - of paths that another node writes each comes up again later, when it is looked whether that node did.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Paths that are remembered, some 10 MiB of names.
pub const BACKLOG_MAX: usize = 65_536;

#[derive(Debug)]
pub struct Backlog<P> {
    ready: VecDeque<P>,
    /// By the time at which they are looked at again.
    later: BTreeMap<(u64, P), ()>,
    known: BTreeSet<P>,
    must_look: bool,
    max: usize,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<P> {
    Path(P),
    /// Look through all that is stored, and add what is not written.
    Look,
    /// Nothing before this time, or at all.
    Wait {
        until_ms: Option<u64>,
    },
}

impl<P: Ord + Clone> Backlog<P> {
    /// A node that starts does not know what it has not written.
    pub fn new(max: usize) -> Self {
        let (ready, later, known) = Default::default();
        Backlog { ready, later, known, must_look: true, max }
    }

    /// Whether there was room.
    pub fn add(&mut self, path: P) -> bool {
        if self.known.contains(&path) {
            return true;
        }
        if self.known.len() >= self.max {
            self.must_look = true;
            return false;
        }
        self.known.insert(path.clone());
        self.ready.push_back(path);
        true
    }

    /// Another node writes it, or says so.
    pub fn postpone(&mut self, path: P, until_ms: u64) {
        if self.known.len() >= self.max {
            self.must_look = true;
        } else if self.known.insert(path.clone()) {
            self.later.insert((until_ms, path), ());
        }
    }

    /// Takes the next out, or says what else is to be done.
    pub fn next(&mut self, now_ms: u64) -> Next<P> {
        if let Some(((until_ms, _), ())) = self.later.first_key_value()
            && *until_ms <= now_ms
            && let Some(((_, path), ())) = self.later.pop_first()
        {
            self.known.remove(&path);
            return Next::Path(path);
        }
        if let Some(path) = self.ready.pop_front() {
            self.known.remove(&path);
            return Next::Path(path);
        }
        match self.may_look() {
            true => Next::Look,
            false => Next::Wait { until_ms: self.later.first_key_value().map(|((until_ms, _), ())| *until_ms) },
        }
    }

    /// What is stored is looked through from now on; what finds no room meanwhile makes it necessary again.
    pub fn looking(&mut self) {
        self.must_look = false;
    }

    pub fn look_again(&mut self) {
        self.must_look = true;
    }

    pub fn is_idle(&self) -> bool {
        self.ready.is_empty() && !self.may_look()
    }

    /// A look that finds no room would have to be followed by the next.
    fn may_look(&self) -> bool {
        self.must_look && self.known.len() < self.max
    }

    /// Paths to be written, and those left to others for now.
    pub fn counts(&self) -> (usize, usize) {
        (self.ready.len(), self.later.len())
    }

    /// There are more than these.
    pub fn is_partial(&self) -> bool {
        self.must_look
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(max: usize) -> Backlog<u32> {
        let mut backlog = Backlog::new(max);
        assert_eq!(backlog.next(0), Next::Look);
        backlog.looking();
        backlog
    }

    #[test]
    fn a_path_is_written_once_and_in_turn() {
        let mut backlog = looked(10);
        assert!([3, 1, 3].into_iter().all(|path| backlog.add(path)));
        assert_eq!(backlog.counts(), (2, 0));
        assert_eq!([backlog.next(0), backlog.next(0)], [Next::Path(3), Next::Path(1)]);
        assert_eq!(backlog.next(0), Next::Wait { until_ms: None });
        backlog.add(3);
        assert_eq!(backlog.next(0), Next::Path(3), "one that was taken out may come again");
    }

    #[test]
    fn what_finds_no_room_is_looked_for_when_the_rest_is_written() {
        let mut backlog = looked(2);
        assert_eq!([1, 2, 3].map(|path| backlog.add(path)), [true, true, false]);
        assert!(backlog.is_partial());
        assert_eq!([backlog.next(0), backlog.next(0)], [Next::Path(1), Next::Path(2)]);
        assert_eq!(backlog.next(0), Next::Look);
    }

    #[test]
    fn nothing_is_looked_for_while_all_room_is_taken_by_what_others_write() {
        let mut backlog = looked(2);
        backlog.postpone(1, 100);
        backlog.postpone(2, 200);
        assert!(!backlog.add(3));
        assert!(backlog.is_partial() && backlog.is_idle());
        assert_eq!(backlog.next(0), Next::Wait { until_ms: Some(100) });
        assert_eq!(backlog.next(100), Next::Path(1));
        assert_eq!(backlog.next(100), Next::Look);
    }

    #[test]
    fn what_another_node_writes_comes_up_again() {
        let mut backlog = looked(10);
        backlog.postpone(1, 100);
        backlog.postpone(2, 50);
        backlog.add(1);
        assert_eq!(backlog.next(0), Next::Wait { until_ms: Some(50) });
        assert_eq!(backlog.next(50), Next::Path(2));
        assert_eq!(backlog.next(99), Next::Wait { until_ms: Some(100) });
        assert_eq!(backlog.next(100), Next::Path(1));
        assert_eq!(backlog.next(1_000), Next::Wait { until_ms: None });
    }
}
