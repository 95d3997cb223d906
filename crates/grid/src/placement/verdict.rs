//! What each executor is to one derivation: what [`place`](super::place) chooses by, and what people read.

use std::fmt;

use super::{Ask, Candidate, Reason, is_fresh, lasting, passing, rank};

const MIB: u64 = 1 << 20;

/// What speaks for an executor that nothing speaks against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merits {
    /// Bytes of known inputs that it lacks.
    pub missing_bytes: u64,
    /// Places that are taken there, as far as is known, and how many it has.
    pub busy: u32,
    pub slots: u32,
    /// In percent.
    pub pressure: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may take it. Place 1 is the best.
    Ranked {
        place: u32,
        merits: Merits,
    },
    Kept(Reason),
}

/// What each of the candidates is to the derivation, in their order.
pub fn judge<N: Ord>(ask: Ask<'_>, candidates: &[Candidate<'_, N>], now_ms: u64) -> Vec<Verdict> {
    let unfit: Vec<Option<Reason>> =
        candidates.iter().map(|candidate| lasting(candidate.executor, ask.requirement)).collect();
    let has_fresh = candidates.iter().zip(&unfit).any(|(candidate, unfit)| unfit.is_none() && is_fresh(ask, candidate));
    let kept: Vec<Option<Reason>> = candidates
        .iter()
        .zip(unfit)
        .map(|(candidate, unfit)| unfit.or_else(|| passing(ask, candidate, has_fresh, now_ms)))
        .collect();
    let mut free: Vec<usize> = (0..candidates.len()).filter(|&number| kept[number].is_none()).collect();
    free.sort_by_key(|&number| (rank(&candidates[number]), candidates[number].node));
    let mut places = vec![0; candidates.len()];
    (1..).zip(free).for_each(|(place, number)| places[number] = place);
    let verdict = |((kept, place), candidate): ((Option<Reason>, u32), &Candidate<'_, N>)| match kept {
        Some(reason) => Verdict::Kept(reason),
        None => Verdict::Ranked { place, merits: merits(candidate) },
    };
    kept.into_iter().zip(places).zip(candidates).map(verdict).collect()
}

/// What [`rank`] weighs, for people.
pub fn merits<N>(candidate: &Candidate<'_, N>) -> Merits {
    Merits {
        missing_bytes: candidate.missing_bytes,
        busy: candidate.standing.ours.saturating_add(candidate.standing.others),
        slots: candidate.executor.slots,
        pressure: candidate.executor.pressure,
    }
}

impl Verdict {
    /// In one word, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Verdict::Ranked { .. } => "ranked",
            Verdict::Kept(Reason::Unfit(_)) => "unfit",
            Verdict::Kept(Reason::Draining) => "draining",
            Verdict::Kept(Reason::Distrusted) => "distrusted",
            Verdict::Kept(Reason::Silent) => "silent",
            Verdict::Kept(Reason::NoSlot { .. }) => "no-slot",
            Verdict::Kept(Reason::Memory { .. }) => "no-memory",
            Verdict::Kept(Reason::MemoryMax { .. }) => "too-little-memory",
            Verdict::Kept(Reason::OutOfReach(_)) => "out-of-reach",
            Verdict::Kept(Reason::FailedHere { .. }) => "failed-here",
            Verdict::Kept(Reason::HasLess { .. }) => "has-less",
            Verdict::Kept(Reason::Refused { .. }) => "refused",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Kept(reason) => reason.fmt(f),
            Verdict::Ranked { place, merits } => write!(f, "number {place} in the ranking: {merits}"),
        }
    }
}

impl fmt::Display for Merits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.missing_bytes {
            0 => write!(f, "lacks no known inputs")?,
            bytes => write!(f, "lacks {} MiB of inputs", bytes.div_ceil(MIB))?,
        }
        write!(f, ", {} of {} slots taken", self.busy, self.slots)?;
        match self.pressure {
            0 => Ok(()),
            pressure => write!(f, ", under pressure {pressure} % of the time"),
        }
    }
}
