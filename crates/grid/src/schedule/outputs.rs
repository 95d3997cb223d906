//! Where outputs lie that jobs need, as one coordinator has seen: where they were built, and where jobs began that need them.
//!
//! Invariants:
//! - it is a guess, for executors delete what they had: a job may be placed less well for it, never wrongly;
//! - what a job needs that has not ended is kept; of the rest [`IDLE_MAX`], those that were needed last;
//! - what lies at more than [`HOLDERS_MAX`] executors is taken to lie everywhere: it says nothing of where a job belongs.
//!
//! A question of one job costs its inputs times those that have them.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// Outputs that no job needs at the moment, for requests to come: some large graphs, some ten MiB.
pub(super) const IDLE_MAX: usize = 50_000;

/// Executors that are told apart for one output.
pub(super) const HOLDERS_MAX: usize = 64;

#[derive(Debug)]
struct Output<K> {
    key: K,
    bytes: u64,
    /// Seats, sorted.
    holders: Vec<u32>,
    is_everywhere: bool,
    /// Jobs that need it.
    users: u32,
    /// Its place among those that nobody needs.
    idle: u64,
}

impl<K> Output<K> {
    /// True if that is news.
    fn hold(&mut self, seat: u32) -> bool {
        let Err(at) = self.holders.binary_search(&seat) else { return false };
        if self.is_everywhere {
            return false;
        }
        if self.holders.len() >= HOLDERS_MAX {
            self.is_everywhere = true;
            self.holders = Vec::new();
            return false;
        }
        self.holders.insert(at, seat);
        true
    }
}

#[derive(Debug)]
pub(super) struct Outputs<K> {
    outputs: Vec<Option<Output<K>>>,
    by_key: HashMap<K, u32>,
    spare: Vec<u32>,
    /// Those that nobody needs, oldest first.
    idle: BTreeSet<(u64, u32)>,
    next_idle: u64,
}

/// What the seats have of one job's inputs.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Bytes that do not lie everywhere.
    input_bytes: u64,
    by_seat: Vec<u64>,
}

impl Held {
    pub fn missing_bytes(&self, seat: u32) -> u64 {
        self.input_bytes - self.by_seat.get(seat as usize).copied().unwrap_or(0)
    }

    /// Seats that have any, those that have most first.
    pub fn holders(&self) -> Vec<(u64, u32)> {
        let mut holders: Vec<(u64, u32)> =
            self.by_seat.iter().copied().zip(0..).filter(|(bytes, _)| *bytes > 0).collect();
        holders.sort_unstable_by(|a, b| b.cmp(a));
        holders
    }
}

impl<K: Clone + Hash + Eq> Outputs<K> {
    pub fn new() -> Self {
        Outputs { outputs: Vec::new(), by_key: HashMap::new(), spare: Vec::new(), idle: BTreeSet::new(), next_idle: 0 }
    }

    pub fn find(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut Output<K>> {
        self.outputs.get_mut(number as usize)?.as_mut()
    }

    /// The outputs of `key`, of so many bytes, were built at `seat`. What was built again is nowhere else.
    pub fn built(&mut self, key: &K, bytes: u64, seat: u32) -> u32 {
        let number = self.add(key);
        if let Some(output) = self.get_mut(number) {
            (output.bytes, output.is_everywhere) = (bytes, false);
            output.holders = vec![seat];
        }
        number
    }

    /// They lie there too.
    pub fn learn(&mut self, key: &K, bytes: u64, seat: u32) {
        let number = self.add(key);
        if let Some(output) = self.get_mut(number) {
            output.bytes = bytes;
            output.hold(seat);
        }
    }

    fn add(&mut self, key: &K) -> u32 {
        if let Some(number) = self.find(key) {
            return number;
        }
        let idle = self.next_idle;
        let output = Output { key: key.clone(), bytes: 0, holders: Vec::new(), is_everywhere: false, users: 0, idle };
        let number = match self.spare.pop() {
            Some(number) => number,
            None => {
                self.outputs.push(None);
                u32::try_from(self.outputs.len() - 1).expect("four billion outputs do not fit into memory")
            }
        };
        self.outputs[number as usize] = Some(output);
        self.by_key.insert(key.clone(), number);
        self.rest(number);
        number
    }

    /// Nobody needs it now.
    fn rest(&mut self, number: u32) {
        let idle = self.next_idle;
        self.next_idle += 1;
        if let Some(output) = self.get_mut(number) {
            output.idle = idle;
        }
        self.idle.insert((idle, number));
        if self.idle.len() > IDLE_MAX
            && let Some((_, oldest)) = self.idle.pop_first()
            && let Some(output) = self.outputs[oldest as usize].take()
        {
            self.by_key.remove(&output.key);
            self.spare.push(oldest);
        }
    }

    /// A job needs it.
    pub fn enter(&mut self, number: u32) {
        let Some(output) = self.get_mut(number) else { return };
        output.users += 1;
        let place = (output.idle, number);
        if output.users == 1 {
            self.idle.remove(&place);
        }
    }

    /// A job that needed it is no more.
    pub fn leave(&mut self, number: u32) {
        let Some(output) = self.get_mut(number) else { return };
        output.users = output.users.saturating_sub(1);
        if output.users == 0 {
            self.rest(number);
        }
    }

    /// It comes there. True if it was not there before.
    pub fn come(&mut self, number: u32, seat: u32) -> bool {
        self.get_mut(number).is_some_and(|output| output.hold(seat))
    }

    /// It did not come there.
    pub fn stay_away(&mut self, number: u32, seat: u32) {
        if let Some(output) = self.get_mut(number)
            && let Ok(at) = output.holders.binary_search(&seat)
        {
            output.holders.remove(at);
        }
    }

    pub fn held(&self, inputs: &[u32]) -> Held {
        let mut held = Held::default();
        let known = inputs.iter().filter_map(|number| self.outputs.get(*number as usize)?.as_ref());
        for output in known.filter(|output| !output.is_everywhere) {
            held.input_bytes = held.input_bytes.saturating_add(output.bytes);
            let last = output.holders.last().map_or(0, |seat| *seat as usize + 1);
            if held.by_seat.len() < last {
                held.by_seat.resize(last, 0);
            }
            for seat in &output.holders {
                held.by_seat[*seat as usize] = held.by_seat[*seat as usize].saturating_add(output.bytes);
            }
        }
        held
    }

    /// Seats have other numbers: those that stay, by their old ones.
    pub fn renumber(&mut self, seats: &HashMap<u32, u32>) {
        for output in self.outputs.iter_mut().flatten() {
            output.holders = output.holders.iter().filter_map(|seat| seats.get(seat).copied()).collect();
            output.holders.sort_unstable();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_job_needs_is_forgotten_when_there_is_much_of_it_and_what_one_needs_never() {
        let mut outputs = Outputs::new();
        let needed = outputs.built(&u32::MAX, 7, 3);
        outputs.enter(needed);
        (0..IDLE_MAX as u32 + 1).for_each(|key| _ = outputs.built(&key, 1, 0));
        assert_eq!((outputs.find(&0), outputs.find(&u32::MAX)), (None, Some(needed)));
        assert_eq!(outputs.outputs.len(), IDLE_MAX + 2);
        assert_eq!(outputs.held(&[needed]).holders(), [(7, 3)]);
        outputs.leave(needed);
        assert_eq!((outputs.find(&1), outputs.find(&2).is_some()), (None, true), "the oldest goes");
    }

    #[test]
    fn what_lies_at_very_many_decides_nothing() {
        let mut outputs = Outputs::new();
        let (common, rare) = (outputs.built(&1, 100, 0), outputs.built(&2, 10, 5));
        assert_eq!(outputs.held(&[common, rare]).missing_bytes(5), 100);
        (0..=HOLDERS_MAX as u32).for_each(|seat| _ = outputs.come(common, seat));
        let held = outputs.held(&[common, rare]);
        assert_eq!((held.missing_bytes(0), held.missing_bytes(5), held.missing_bytes(1_000)), (10, 0, 10));
        outputs.built(&1, 100, 9);
        assert_eq!(outputs.held(&[common]).holders(), [(100, 9)], "what is built again is nowhere else");
    }

    #[test]
    fn holders_go_with_their_seats() {
        let mut outputs = Outputs::new();
        let output = outputs.built(&1, 100, 4);
        outputs.come(output, 2);
        outputs.come(output, 1);
        outputs.stay_away(output, 1);
        outputs.renumber(&HashMap::from([(4, 0), (1, 3)]));
        assert_eq!(outputs.held(&[output]).holders(), [(100, 0)]);
    }
}
