//! Which ready job takes a free place: not always the first.
//!
//! A request ends when its longest chain does, or when its work is done on all slots, whichever is later: its *pace*. A job
//! that has less than that above it has time, and with time its inputs need not move:
//!
//! - what is *urgent*, with nearly as much above it as the pace allows, starts at once, wherever it can;
//! - another starts at once where it lacks no more than anywhere, full executors among them;
//! - where slots are left over, one that lacks more waits for the executor that has its inputs: a share of the time that it
//!   has, [`WAIT_MS_MAX`] at most;
//! - where all slots are needed, none stays free: of those that lack more, that takes it which lacks the least.
//!
//! Jobs overtake only others of their request, and of those the first [`LOOK_AHEAD`].

use std::hash::Hash;

use super::explain::Choice;
use super::outputs::Held;
use super::queues::Turn;
use super::{LOOK_AHEAD, Schedule};
use crate::placement::{BYTES_STEP, is_fresh};

/// Of the pace, in percent: a job with as much above it is urgent. Estimates are off by more than the rest.
const URGENT_PERCENT: u64 = 80;

/// Slots are left over where the work that is left would keep fewer busy until the request ends, in percent.
const SPARE_PERCENT: u64 = 50;

/// A job waits for the executor that has its inputs no longer than this share of the time that it has.
const WAIT_SHARE: u64 = 4;

/// The longest such wait: estimates may be wrong, and then time was lost for nothing.
pub const WAIT_MS_MAX: u64 = 5 * 60_000;

/// Waits are looked at so often, and whenever anything happens.
const WAIT_STEP_MS: u64 = 1_000;

/// How long a request still takes at best, by estimates, and whether slots are left over until then.
#[derive(Clone, Copy)]
struct Pace {
    rest_ms: u64,
    has_spare: bool,
}

impl Pace {
    fn is_urgent(&self, longest_ms: u64) -> bool {
        longest_ms >= self.rest_ms.saturating_mul(URGENT_PERCENT) / 100
    }

    fn wait_ms(&self, longest_ms: u64) -> u64 {
        (self.rest_ms.saturating_sub(longest_ms) / WAIT_SHARE).min(WAIT_MS_MAX)
    }
}

impl<K: Clone + Ord + Hash, N: Clone + Ord> Schedule<K, N> {
    /// The job of a class that starts now, and where.
    pub(super) fn pick(&mut self, class: u32, now_ms: u64) -> Option<(u32, Choice)> {
        let in_order = self.queues.class(class).in_order().take(LOOK_AHEAD);
        let looked: Vec<(Turn, u32)> = in_order.map(|(turn, place)| (turn, place.2)).collect();
        looked.chunk_by(|one, next| one.0 == next.0).find_map(|turn| self.pick_of(class, turn, now_ms))
    }

    /// Of jobs of one request, in their order.
    fn pick_of(&mut self, class: u32, turn: &[(Turn, u32)], now_ms: u64) -> Option<(u32, Choice)> {
        let pace = self.pace(class, *turn.first()?, now_ms);
        let mut displaced = Vec::new();
        for (place, &(_, number)) in turn.iter().enumerate() {
            let Some(job) = self.jobs.get(number) else { continue };
            let longest_ms = job.longest_ms;
            let held = self.outputs.held(&job.inputs);
            let lean = if pace.is_urgent(longest_ms) { 0 } else { self.lean(number, &held) };
            if lean < BYTES_STEP {
                if let Some(choice) = self.choose(number, &held, now_ms) {
                    return Some((number, choice));
                }
            } else if !pace.has_spare || !self.waits(number, pace.wait_ms(longest_ms), now_ms) {
                displaced.push((lean / BYTES_STEP, place, number, held));
            }
        }
        displaced.sort_unstable_by_key(|(lean, place, _, _)| (*lean, *place));
        displaced.iter().find_map(|(_, _, number, held)| Some((*number, self.choose(*number, held, now_ms)?)))
    }

    /// `first` is the first of the request's ready jobs of this class.
    fn pace(&self, class: u32, (turn, first): (Turn, u32), now_ms: u64) -> Pace {
        let ready_ms = self.jobs.get(first).map_or(0, |job| job.longest_ms);
        let ends_ms = self.requests.get(&turn.2).and_then(|open| open.ends.last()).map_or(0, |(ends_ms, _)| *ends_ms);
        let work_ms = self.jobs.work_ms() / self.queues.class(class).slots.max(1);
        let rest_ms = ready_ms.max(ends_ms.saturating_sub(now_ms)).max(work_ms);
        Pace { rest_ms, has_spare: work_ms <= rest_ms.saturating_mul(SPARE_PERCENT) / 100 }
    }

    /// Bytes of a job's inputs that an executor which could run it has, and none that is free.
    fn lean(&self, number: u32, held: &Held) -> u64 {
        let Some(job) = self.jobs.get(number) else { return 0 };
        let (ask, class) = (self.ask(job), self.queues.class(job.class));
        let could = |seat| self.candidate(job, held, seat).is_some_and(|candidate| is_fresh(ask, &candidate));
        let mut most = None;
        for (bytes, seat) in held.holders() {
            if class.open.contains(&seat) {
                return most.unwrap_or(bytes) - bytes;
            }
            if most.is_none() && class.able.contains(&seat) && job.tried(seat).is_none() && could(seat) {
                most = Some(bytes);
            }
        }
        most.unwrap_or(0)
    }

    /// Whether a job waits on; its wait begins when it is first asked.
    fn waits(&mut self, number: u32, wait_ms: u64, now_ms: u64) -> bool {
        let Some(job) = self.jobs.get_mut(number) else { return false };
        let since_ms = *job.waits_since_ms.get_or_insert(now_ms);
        let until_ms = since_ms.saturating_add(wait_ms);
        job.waits_until_ms = until_ms;
        if until_ms > now_ms {
            self.seats.wake_at(until_ms.next_multiple_of(WAIT_STEP_MS));
        }
        until_ms > now_ms
    }
}
