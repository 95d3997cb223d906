//! What one peer has been asked for, and how fast it answers.

use super::{BREAK_REST_MS, BREAKS_MAX, Outcome, RequestId, Time};
use std::collections::BTreeSet;

/// Speed of a peer that nothing is known of, in bytes a second: half a second's work of it is 1 MiB, which a slow one
/// sends soon enough and a fast one is asked for again and again until its speed is known.
const FIRST_RATE: u64 = 2 << 20;
/// Time over which speed is measured at least: below it timers and batches blur it.
const SAMPLE_MS: Time = 50;
/// Work that a peer is given at most.
const WORK_MS: u64 = 500;
/// What one request takes: a few of them are the work, so that the next is on its way when one ends.
const REQUEST_MS: u64 = 150;
/// Bounds of one request in bytes of chunks: a chunk of the longest kind, and what costs little when it is lost.
const REQUEST_BYTES_MIN: u64 = 256 << 10;
const REQUEST_BYTES_MAX: u64 = 8 << 20;
/// Most bytes of chunks that one peer is asked for: four requests of the longest kind.
const WORK_BYTES_MAX: u64 = 32 << 20;
/// Rests of a peer that said it is busy double from the first to the last.
const BUSY_REST_MS: Time = 25;
const BUSY_DOUBLINGS_MAX: u32 = 6;
/// What is assumed to be on its way when nothing came for a while: an average chunk.
const ON_ITS_WAY: u64 = 64 << 10;

#[derive(Debug)]
pub struct Peer {
    pub requests: BTreeSet<RequestId>,
    /// Bytes of chunks that it was asked for and has not answered.
    pub outstanding: u64,
    /// When something came from it last, or it was asked when it had nothing to do.
    pub heard: Time,
    pub rests_until: Time,
    /// Since when it says nothing but that it is busy.
    pub busy_since: Option<Time>,
    busy: u32,
    breaks: u32,
    /// Bytes a second, and whether they were measured.
    rate: u64,
    is_known: bool,
    sampled: Time,
    sample: u64,
}

impl Default for Peer {
    fn default() -> Self {
        Peer {
            requests: BTreeSet::new(),
            outstanding: 0,
            heard: 0,
            rests_until: 0,
            busy_since: None,
            busy: 0,
            breaks: 0,
            rate: FIRST_RATE,
            is_known: false,
            sampled: 0,
            sample: 0,
        }
    }
}

impl Peer {
    pub fn asked(&mut self, now: Time, request: RequestId, bytes: u64) {
        if self.requests.is_empty() {
            (self.heard, self.sampled, self.sample) = (now, now, 0);
        }
        self.requests.insert(request);
        self.outstanding += bytes;
    }

    pub fn answered(&mut self, now: Time, len: u32, outcome: Outcome) {
        self.heard = now;
        self.outstanding -= u64::from(len);
        match outcome {
            Outcome::Here => {
                (self.busy, self.busy_since, self.breaks) = (0, None, 0);
                self.sample += u64::from(len);
                let elapsed = now.saturating_sub(self.sampled);
                if elapsed >= SAMPLE_MS {
                    let rate = self.sample * 1000 / elapsed;
                    self.rate = if self.is_known { (self.rate + rate) / 2 } else { rate };
                    self.is_known = true;
                    (self.sampled, self.sample) = (now, 0);
                }
            }
            Outcome::Absent => (self.busy, self.busy_since) = (0, None),
            // Of one answer all parts are busy at once; they count as one.
            Outcome::Busy if now >= self.rests_until => {
                self.busy_since.get_or_insert(now);
                self.rests_until = now + (BUSY_REST_MS << self.busy);
                self.busy = (self.busy + 1).min(BUSY_DOUBLINGS_MAX);
            }
            Outcome::Busy => {}
        }
    }

    /// A stream broke off. Whether that is too often. All streams of a connection break at once, which counts as one.
    pub fn broke(&mut self, now: Time) -> bool {
        if now >= self.rests_until {
            self.breaks += 1;
            self.rests_until = now + BREAK_REST_MS;
        }
        self.breaks > BREAKS_MAX
    }

    /// Bytes a second, at least 1: less than it was if nothing came for a while.
    pub fn rate(&self, now: Time) -> u64 {
        let elapsed = now.saturating_sub(self.sampled);
        match self.requests.is_empty() || elapsed <= 2 * SAMPLE_MS {
            true => self.rate.max(1),
            false => self.rate.min((self.sample + ON_ITS_WAY) * 1000 / elapsed).max(1),
        }
    }

    /// How long it takes with what it was asked for, and `bytes` more.
    pub fn busy_ms(&self, now: Time, bytes: u64) -> Time {
        (self.outstanding + bytes).saturating_mul(1000) / self.rate(now)
    }

    pub fn has_room(&self, now: Time, requests_max: usize) -> bool {
        let work = (self.rate(now) * WORK_MS / 1000).min(WORK_BYTES_MAX);
        let is_idle = self.requests.is_empty();
        now >= self.rests_until && self.requests.len() < requests_max && (is_idle || self.outstanding < work)
    }

    /// What the next request is about.
    pub fn request_bytes(&self, now: Time) -> u64 {
        (self.rate(now) * REQUEST_MS / 1000).clamp(REQUEST_BYTES_MIN, REQUEST_BYTES_MAX)
    }
}
