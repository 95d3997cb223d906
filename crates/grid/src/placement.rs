//! Where a derivation is built: at one of the executors that can take it now, or why none of them does.
//!
//! - Only an executor that nothing speaks against is chosen: [`lasting`] and [`passing`] are the only judges, and their
//!   [`Reason`] is what people read.
//! - Among those the one that lacks the fewest input bytes, in steps; then the least loaded, then again the one that lacks
//!   the fewest, then the least pressed, then the first by id: the same facts give the same place.
//! - What is known of an executor may be wrong; it decides itself when it is asked. So a refusal is remembered, never
//!   fatal.
//! - An estimate of memory never keeps a derivation from all machines: one that runs nothing takes it. Only where it would
//!   have no more than it died with before it does not go.

use std::fmt;

use crate::can_run::{Machine, Refusal, Requirement, can_run};

mod verdict;

pub use verdict::{Merits, Verdict, judge, merits};

/// Fewer bytes than this are not worth a busier machine: they move within a tenth of a second.
pub(crate) const BYTES_STEP: u64 = 8 << 20;

/// Executors named in a text before the rest is only counted.
const EXECUTORS_NAMED_MAX: usize = 10;

/// A node that builds, by what it says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Executor {
    pub machine: Machine,
    /// Derivations it builds at once.
    pub slots: u32,
    /// How many it said it builds, for whomever. 0 for the own node, which is told of nothing by hearsay.
    pub running: u32,
    pub free_memory: FreeMemory,
    /// The most that one build can have there, whatever else runs; `None` where nothing is known of it.
    pub memory_max_mib: Option<u64>,
    /// Share of time in which something waited for CPU, memory or disk there, in percent.
    pub pressure: u8,
    /// Takes new builds.
    pub active: bool,
    /// It did not answer a moment ago: what only it could run waits until it is heard of, or is a member no more.
    pub silent: bool,
    /// It was caught in a lie, and is asked for nothing.
    pub distrusted: bool,
}

/// Memory that builds may take, in MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreeMemory {
    #[default]
    Unknown,
    /// What it said, with all counted that ran there then.
    Told(u64),
    /// What this coordinator's jobs there have between them.
    Shared(u64),
}

/// What a coordinator knows of an executor beyond its word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Jobs of this coordinator that are there.
    pub ours: u32,
    /// Jobs of others, as far as is believed.
    pub others: u32,
    /// Memory of jobs that were placed there since it last told what is free.
    pub promised_mib: u64,
    /// Memory of all jobs of this coordinator that are there.
    pub ours_mib: u64,
    /// It refused, and takes nothing before this time.
    pub refused: Option<Refused>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub text: String,
    pub until_ms: u64,
}

/// What came of placing a job there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    /// It was lost there; not again before the time, and not at all while another can run it.
    Failed {
        until_ms: u64,
    },
    Refused(Refused),
}

/// What a derivation needs.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub requirement: &'a Requirement,
    /// Estimated peak; 0 where nothing is known.
    pub memory_mib: u64,
    /// So much it had when it died for want of more; 0 where it never did.
    pub exceeded_mib: u64,
}

/// An executor with regard to one derivation.
#[derive(Clone, Debug)]
pub struct Candidate<'a, N> {
    pub node: &'a N,
    pub executor: &'a Executor,
    pub standing: &'a Standing,
    /// Bytes of known inputs that are not there.
    pub missing_bytes: u64,
    pub tried: Option<&'a Tried>,
    /// Why it cannot be asked for this derivation, ever.
    pub out_of_reach: Option<&'a str>,
}

/// Why an executor does not take a derivation; the text is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Platform mismatch or missing features.
    Unfit(Refusal),
    Draining,
    Distrusted,
    Silent,
    NoSlot {
        slots: u32,
    },
    Memory {
        needed_mib: u64,
        free_mib: u64,
    },
    /// It died for want of memory with as much as a build can have there.
    MemoryMax {
        exceeded_mib: u64,
        max_mib: u64,
    },
    /// The derivation cannot be brought there.
    OutOfReach(String),
    /// Without a time: others are tried first.
    FailedHere {
        again_in_ms: Option<u64>,
    },
    /// It could take it, but a busy one that has more of the inputs is waited for, so long at most.
    HasLess {
        again_in_ms: u64,
    },
    Refused {
        text: String,
        /// From now until it is asked again.
        again_in_ms: u64,
    },
}

/// The answer to "where?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement<N> {
    Placed(N),
    /// Some member will be able to; what keeps each from it now.
    Waits(Vec<(N, Reason)>),
    /// No present member ever will.
    Nowhere(Vec<(N, Reason)>),
}

/// What keeps an executor from a derivation for as long as it is as it is.
pub fn lasting(executor: &Executor, requirement: &Requirement) -> Option<Reason> {
    match can_run(&executor.machine, requirement) {
        Err(refusal) => Some(Reason::Unfit(refusal)),
        Ok(()) if executor.distrusted => Some(Reason::Distrusted),
        Ok(()) if !executor.active => Some(Reason::Draining),
        Ok(()) if executor.slots == 0 => Some(Reason::NoSlot { slots: 0 }),
        Ok(()) => None,
    }
}

/// What keeps an executor that is fit from a derivation at the moment. `has_fresh`: an executor that is fit has not failed
/// with it yet.
pub fn passing<N>(ask: Ask<'_>, candidate: &Candidate<'_, N>, has_fresh: bool, now_ms: u64) -> Option<Reason> {
    let (executor, standing) = (candidate.executor, candidate.standing);
    if let Some(reason) = never(ask, candidate) {
        return Some(reason);
    }
    if executor.silent {
        return Some(Reason::Silent);
    }
    let refused = |refused: &Refused| Reason::Refused {
        text: refused.text.clone(),
        again_in_ms: refused.until_ms.saturating_sub(now_ms),
    };
    if let Some(reason) = standing.refused.as_ref().filter(|refused| now_ms < refused.until_ms) {
        return Some(refused(reason));
    }
    match candidate.tried {
        Some(Tried::Failed { until_ms }) if has_fresh || now_ms < *until_ms => {
            let again_in_ms = (!has_fresh).then(|| until_ms.saturating_sub(now_ms));
            return Some(Reason::FailedHere { again_in_ms });
        }
        Some(Tried::Refused(reason)) if now_ms < reason.until_ms => return Some(refused(reason)),
        _ => {}
    }
    let busy = standing.ours.saturating_add(standing.others);
    if busy >= executor.slots {
        return Some(Reason::NoSlot { slots: executor.slots });
    }
    let free_mib = match executor.free_memory {
        FreeMemory::Unknown => return None,
        FreeMemory::Told(told_mib) => told_mib.saturating_sub(standing.promised_mib),
        FreeMemory::Shared(shared_mib) => shared_mib.saturating_sub(standing.ours_mib),
    };
    lacks_memory(busy, ask.memory_mib, free_mib)
}

/// Whether a derivation has to wait until others leave it their memory: beside nothing it need not.
pub fn lacks_memory(busy: u32, needed_mib: u64, free_mib: u64) -> Option<Reason> {
    (busy > 0 && free_mib < needed_mib).then_some(Reason::Memory { needed_mib, free_mib })
}

/// What keeps an executor that is fit from this one derivation for as long as both are as they are.
pub fn never<N>(ask: Ask<'_>, candidate: &Candidate<'_, N>) -> Option<Reason> {
    let out_of_reach = candidate.out_of_reach.map(|why| Reason::OutOfReach(why.to_owned()));
    out_of_reach.or_else(|| too_small(candidate.executor, ask.exceeded_mib))
}

/// Whether an executor that is fit may be what those wait for that failed with the derivation.
pub fn is_fresh<N>(ask: Ask<'_>, candidate: &Candidate<'_, N>) -> bool {
    let has_failed = matches!(candidate.tried, Some(Tried::Failed { .. }));
    !has_failed && !candidate.executor.silent && never(ask, candidate).is_none()
}

/// Whether a derivation that died with so much memory would die there again.
fn too_small(executor: &Executor, exceeded_mib: u64) -> Option<Reason> {
    let max_mib = executor.memory_max_mib.filter(|max_mib| exceeded_mib > 0 && *max_mib <= exceeded_mib)?;
    Some(Reason::MemoryMax { exceeded_mib, max_mib })
}

/// The lower the better. Of executors that are as busy as each other the one that has more of the inputs is better, if it
/// is by one byte: what follows in a chain stays where the chain is.
pub fn rank<N>(candidate: &Candidate<'_, N>) -> (u64, u64, u64, u8) {
    let Standing { ours, others, .. } = candidate.standing;
    let busy = u64::from(ours.saturating_add(*others));
    let load = busy * 1_000 / u64::from(candidate.executor.slots.max(1));
    (candidate.missing_bytes / BYTES_STEP, load, candidate.missing_bytes, candidate.executor.pressure)
}

/// Places one derivation. Reasons are in the order of the candidates.
pub fn place<N: Clone + Ord>(ask: Ask<'_>, candidates: &[Candidate<'_, N>], now_ms: u64) -> Placement<N> {
    let mut reasons = Vec::new();
    for (candidate, verdict) in candidates.iter().zip(judge(ask, candidates, now_ms)) {
        match verdict {
            Verdict::Ranked { place: 1, .. } => return Placement::Placed(candidate.node.clone()),
            Verdict::Ranked { .. } => {}
            Verdict::Kept(reason) => reasons.push((candidate.node.clone(), reason)),
        }
    }
    match reasons.iter().all(|(_, reason)| reason.lasts()) {
        true => Placement::Nowhere(reasons),
        false => Placement::Waits(reasons),
    }
}

/// One line an executor, which `name` names; those after the first ten are counted.
pub fn describe<N>(whys: &[(N, impl fmt::Display)], name: impl Fn(&N) -> String) -> String {
    let named = whys.iter().take(EXECUTORS_NAMED_MAX);
    let mut lines: Vec<String> = named.map(|(node, why)| format!("{}: {why}", name(node))).collect();
    if whys.len() > EXECUTORS_NAMED_MAX {
        lines.push(format!("and {} more", whys.len() - EXECUTORS_NAMED_MAX));
    }
    lines.join("\n")
}

impl Reason {
    /// Whether it holds for as long as the executor is as it is: [`lasting`] gives it, or [`never`].
    pub fn lasts(&self) -> bool {
        match self {
            Reason::Unfit(_) | Reason::Draining | Reason::Distrusted => true,
            Reason::MemoryMax { .. } | Reason::OutOfReach(_) => true,
            Reason::NoSlot { slots } => *slots == 0,
            Reason::Silent | Reason::Memory { .. } | Reason::FailedHere { .. } => false,
            Reason::HasLess { .. } | Reason::Refused { .. } => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Unfit(refusal) => write!(f, "{}: {refusal}", refusal.reason()),
            Reason::Draining => write!(f, "draining: takes no new builds"),
            Reason::Distrusted => write!(f, "not trusted: it denied that it has what it built"),
            Reason::Silent => write!(f, "silent: it did not answer a moment ago"),
            Reason::NoSlot { slots: 0 } => write!(f, "builds nothing: it has no slots"),
            Reason::NoSlot { slots } => write!(f, "no free slot: all {slots} are taken"),
            Reason::Memory { needed_mib, free_mib } => {
                write!(f, "not enough memory: needs about {needed_mib} MiB, {free_mib} MiB are free")
            }
            Reason::MemoryMax { exceeded_mib, max_mib } => {
                write!(f, "too little memory: {exceeded_mib} MiB were not enough, a build gets {max_mib} MiB at most")
            }
            Reason::OutOfReach(why) => f.write_str(why),
            Reason::FailedHere { again_in_ms: None } => write!(f, "failed here before: others are tried first"),
            Reason::FailedHere { again_in_ms: Some(ms) } => {
                write!(f, "failed here before: tried again in {} s", ms.div_ceil(1_000))
            }
            Reason::HasLess { again_in_ms } => {
                let seconds = again_in_ms.div_ceil(1_000);
                write!(f, "has less of the inputs than a busy one, which is waited for: {seconds} s at most")
            }
            Reason::Refused { text, again_in_ms } => {
                write!(f, "refused: {text}; asked again in {} s", again_in_ms.div_ceil(1_000))
            }
        }
    }
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
