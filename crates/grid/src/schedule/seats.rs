//! The executors as one coordinator knows them.
//!
//! Invariants:
//! - `ours` is the number of jobs that were started there and have not ended;
//! - the word of others about what runs there is believed for [`LOAD_BELIEVED_MS`], and what was ours is not counted
//!   twice: a stale word costs a refusal or a short wait, never a stall;
//! - a seat keeps its number for as long as there are jobs, so that jobs may name it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::placement::{Executor, Refused, Standing};

/// How long a word about load holds: nodes tell of changes every few seconds, and one that no longer does is asked.
pub const LOAD_BELIEVED_MS: u64 = 10_000;

/// Longest that a node which refused is left alone, whatever it said: its clock and its plans may be wrong.
pub const REFUSAL_BELIEVED_MS: u64 = 60_000;

/// Shortest: a word that was long on its way must not make offers follow each other without pause.
pub const REFUSAL_MS_MIN: u64 = 250;

#[derive(Debug)]
pub(super) struct Seat<N> {
    pub node: N,
    /// None when it is no member any more.
    pub executor: Option<Executor>,
    pub standing: Standing,
    /// Jobs of ours there.
    pub jobs: BTreeSet<u32>,
    told_ms: u64,
    /// Counts what it told; memory that was promised before is in its newest word.
    told: u32,
    /// Most jobs of ours since it last told, and between that and the time before: what it told may count any of them.
    peaks: [u32; 2],
}

#[derive(Debug)]
pub(super) struct Seats<N> {
    seats: Vec<Seat<N>>,
    by_node: BTreeMap<N, u32>,
    /// When a seat may open by itself.
    wakes: BTreeSet<(u64, u32)>,
}

impl<N: Clone + Ord> Seats<N> {
    pub fn new() -> Self {
        Seats { seats: Vec::new(), by_node: BTreeMap::new(), wakes: BTreeSet::new() }
    }

    pub fn get(&self, seat: u32) -> &Seat<N> {
        &self.seats[seat as usize]
    }

    pub fn find(&self, node: &N) -> Option<u32> {
        self.by_node.get(node).copied()
    }

    /// How many jobs these build at once.
    pub fn slots(&self, seats: &BTreeSet<u32>) -> u64 {
        let executors = seats.iter().filter_map(|seat| self.get(*seat).executor.as_ref());
        executors.map(|executor| u64::from(executor.slots)).sum()
    }

    /// All members, in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = (u32, &Seat<N>, &Executor)> {
        self.by_node.values().filter_map(|&seat| {
            let known = self.get(seat);
            Some((seat, known, known.executor.as_ref()?))
        })
    }

    /// Takes what a node says of itself, or that it is gone; true if that is news.
    pub fn tell(&mut self, node: &N, executor: Option<Executor>, now_ms: u64) -> Option<u32> {
        let seat = match self.find(node) {
            Some(seat) => seat,
            None => {
                executor.as_ref()?;
                let seat = u32::try_from(self.seats.len()).ok()?;
                self.by_node.insert(node.clone(), seat);
                self.seats.push(Seat {
                    node: node.clone(),
                    executor: None,
                    standing: Standing::default(),
                    jobs: BTreeSet::new(),
                    told_ms: now_ms,
                    told: 0,
                    peaks: [0; 2],
                });
                seat
            }
        };
        let known = &mut self.seats[seat as usize];
        if known.executor == executor {
            return None;
        }
        let ours = known.standing.ours;
        let others =
            executor.as_ref().map_or(0, |told| told.running).saturating_sub(known.peaks[0].max(known.peaks[1]));
        known.standing.others = others;
        known.standing.promised_mib = 0;
        if executor.is_none() {
            known.standing.refused = None;
        }
        known.executor = executor;
        known.told_ms = now_ms;
        known.told = known.told.wrapping_add(1);
        known.peaks = [ours, known.peaks[0]];
        Some(seat)
    }

    /// A job takes a place; returns what [`Seats::leave`] wants to know.
    pub fn take(&mut self, seat: u32, job: u32, memory_mib: u64) -> u32 {
        let known = &mut self.seats[seat as usize];
        known.jobs.insert(job);
        known.standing.ours += 1;
        known.standing.promised_mib = known.standing.promised_mib.saturating_add(memory_mib);
        known.standing.ours_mib = known.standing.ours_mib.saturating_add(memory_mib);
        known.peaks[0] = known.peaks[0].max(known.standing.ours);
        known.told
    }

    pub fn leave(&mut self, seat: u32, job: u32, memory_mib: u64, told: u32) {
        let known = &mut self.seats[seat as usize];
        known.jobs.remove(&job);
        known.standing.ours = known.standing.ours.saturating_sub(1);
        known.standing.ours_mib = known.standing.ours_mib.saturating_sub(memory_mib);
        if known.told == told {
            known.standing.promised_mib = known.standing.promised_mib.saturating_sub(memory_mib);
        }
    }

    /// It takes nothing until then.
    pub fn refuse(&mut self, seat: u32, refused: Refused, now_ms: u64) {
        let span = (now_ms.saturating_add(REFUSAL_MS_MIN), now_ms.saturating_add(REFUSAL_BELIEVED_MS));
        let until_ms = refused.until_ms.clamp(span.0, span.1);
        self.seats[seat as usize].standing.refused = Some(Refused { until_ms, ..refused });
    }

    /// A job of ours has ended there, so there is room again.
    pub fn forgive(&mut self, seat: u32) {
        self.seats[seat as usize].standing.refused = None;
    }

    /// Whether it may take a job now. Where time alone will open it, that time is noted.
    pub fn is_open(&mut self, seat: u32, now_ms: u64) -> bool {
        let known = &mut self.seats[seat as usize];
        let Some(executor) = known.executor.as_ref().filter(|executor| executor.active && !executor.silent) else {
            return false;
        };
        if known.standing.refused.as_ref().is_some_and(|refused| refused.until_ms <= now_ms) {
            known.standing.refused = None;
        }
        let believed_ms = known.told_ms.saturating_add(LOAD_BELIEVED_MS);
        if believed_ms <= now_ms {
            known.standing.others = 0;
        }
        let Standing { ours, others, .. } = known.standing;
        let opens_ms = match &known.standing.refused {
            Some(refused) => refused.until_ms,
            None if ours >= executor.slots => return false,
            None if ours.saturating_add(others) >= executor.slots => believed_ms,
            None => return true,
        };
        self.wakes.insert((opens_ms, seat));
        false
    }

    /// Notes a time at which something else than a seat is to be looked at again.
    pub fn wake_at(&mut self, ms: u64) {
        self.wakes.insert((ms, u32::MAX));
    }

    pub fn next_wake_ms(&self) -> Option<u64> {
        self.wakes.first().map(|(ms, _)| *ms)
    }

    /// Seats whose time has come.
    pub fn due(&mut self, now_ms: u64) -> Vec<u32> {
        let later = self.wakes.split_off(&(now_ms.saturating_add(1), 0));
        let due = std::mem::replace(&mut self.wakes, later);
        due.into_iter().map(|(_, seat)| seat).filter(|seat| *seat != u32::MAX).collect()
    }

    /// No job names a seat any more. The numbers of those that stay, by their old ones, if these have changed.
    pub fn forget_gone(&mut self) -> Option<HashMap<u32, u32>> {
        if self.seats.iter().any(|seat| seat.executor.is_none()) {
            let stays = (0..).zip(&self.seats).filter(|(_, seat)| seat.executor.is_some());
            let numbers = stays.map(|(seat, _)| seat).zip(0..).collect();
            self.seats.retain(|seat| seat.executor.is_some());
            self.by_node = (0..).zip(&self.seats).map(|(seat, known)| (known.node.clone(), seat)).collect();
            // Where there is no job, nothing waits for a time.
            self.wakes.clear();
            return Some(numbers);
        }
        None
    }
}
