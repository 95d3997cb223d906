//! What derivations will take, by what those of the same name took before, here or at other nodes.
//!
//! Invariants:
//! - kept by package and system, without the version: the next version inherits what the last one took;
//! - each build moves the duration halfway to what it took, and the memory at once to a greater peak but only halfway to a
//!   lesser one: too little memory costs more than too much;
//! - merging takes the word of who built it last, so that it may be done in any order and any number of times;
//! - what this node has seen built is never further than [`HEARD_FACTOR`] from its estimate, whatever others say;
//! - at most [`ESTIMATES_MAX`] are kept, and as many of those that were seen built; those that were built longest ago go
//!   first.
//!
//! Nodes compare theirs by a [*digest*](Estimates::digest), a word for each of some buckets of packages, and send each
//! other whole buckets that differ, beginning anywhere: so none waits for ever behind those that change often.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::random::scramble;

/// Packages remembered: those of a distribution, on some systems.
pub const ESTIMATES_MAX: usize = 100_000;

/// What a derivation that was never seen is taken to last: most are small.
pub const UNKNOWN: Estimate = Estimate { duration_ms: 1_000, memory_mib: 0, built_s: 0 };

/// Machines of one mesh differ less; the rest is an error, or a lie.
pub const HEARD_FACTOR: u64 = 4;
/// Longest duration that another node is believed: a week.
const HEARD_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// Largest peak that another node is believed: more than any machine has.
const HEARD_MIB_MAX: u64 = 16 << 20;
/// So far may clocks be apart.
pub const AHEAD_S_MAX: u64 = 300;

/// Packages of a bucket, about.
const BUCKET_LEN: usize = 16;
const BUCKETS_MIN: usize = 16;
/// Buckets of a digest at most: 16 KiB, and of the largest table 25 packages a bucket.
pub const BUCKETS_MAX: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Estimate {
    /// When one was last built, in Unix seconds. First, so that the order is that of age.
    pub built_s: u64,
    pub duration_ms: u64,
    /// Peak; 0 where it was never measured.
    pub memory_mib: u64,
}

impl Estimate {
    /// What is made of another's word where this one was seen.
    fn bound(&self, heard: Estimate) -> Estimate {
        let near = |seen: u64, heard: u64| heard.clamp(seen / HEARD_FACTOR, seen.saturating_mul(HEARD_FACTOR));
        Estimate {
            built_s: heard.built_s,
            duration_ms: near(self.duration_ms, heard.duration_ms),
            memory_mib: if self.memory_mib == 0 { heard.memory_mib } else { near(self.memory_mib, heard.memory_mib) },
        }
    }
}

/// Name without version, and system.
type Package = (String, String);

/// A bounded table of estimates.
#[derive(Clone, Debug, Default)]
struct Table {
    known: BTreeMap<Package, Estimate>,
    by_age: BTreeSet<(Estimate, Package)>,
}

impl Table {
    fn put(&mut self, package: Package, estimate: Estimate) {
        if let Some(before) = self.known.insert(package.clone(), estimate) {
            self.by_age.remove(&(before, package.clone()));
        }
        self.by_age.insert((estimate, package));
        if self.known.len() > ESTIMATES_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.known.remove(&oldest);
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Estimates {
    /// What all nodes come to know.
    shared: Table,
    /// What this node saw built, here or at its executors.
    seen: Table,
}

impl Estimates {
    /// `drv_name` is a derivation's name, with or without `.drv`. Where it was only built for other systems, those tell.
    pub fn get(&self, drv_name: &str, system: &str) -> Estimate {
        let name = package_name(drv_name).to_owned();
        if let Some(known) = self.known(&(name.clone(), system.to_owned())) {
            return known;
        }
        let of_name = self.shared.known.range((name.clone(), String::new())..);
        let of_name = of_name.map(|(package, _)| package).take_while(|(other, _)| *other == name);
        of_name.filter_map(|package| self.known(package)).max().unwrap_or(UNKNOWN)
    }

    fn known(&self, package: &Package) -> Option<Estimate> {
        match (self.shared.known.get(package), self.seen.known.get(package)) {
            (Some(shared), Some(seen)) => Some(seen.bound(*shared)),
            (shared, seen) => shared.or(seen).copied(),
        }
    }

    /// One was built, as this node has seen. `memory_mib` is 0 where nothing measured it.
    pub fn record(&mut self, drv_name: &str, system: &str, built: Estimate) {
        let package = (package_name(drv_name).to_owned(), system.to_owned());
        let estimate = match self.known(&package) {
            None => built,
            Some(before) => Estimate {
                // What a clock of the future dated does not stay for ever.
                built_s: match before.built_s > built.built_s.saturating_add(AHEAD_S_MAX) {
                    true => built.built_s,
                    false => built.built_s.max(before.built_s),
                },
                duration_ms: before.duration_ms.midpoint(built.duration_ms),
                memory_mib: match built.memory_mib {
                    0 => before.memory_mib,
                    peak => peak.max(before.memory_mib.midpoint(peak)),
                },
            },
        };
        let measured_mib = match (built.memory_mib, self.seen.known.get(&package)) {
            (0, Some(seen)) => seen.memory_mib,
            (peak, _) => peak,
        };
        self.seen.put(package.clone(), Estimate { memory_mib: measured_mib, ..built });
        self.shared.put(package, estimate);
    }

    /// Takes what another node knows, unless that cannot be. Among words of the same second the greater holds, so that all
    /// nodes agree. True: it is known now, and was not.
    pub fn merge(&mut self, name: &str, system: &str, theirs: Estimate, now_s: u64) -> bool {
        let is_possible = !name.is_empty()
            && !system.is_empty()
            && theirs.built_s <= now_s.saturating_add(AHEAD_S_MAX)
            && theirs.duration_ms <= HEARD_MS_MAX
            && theirs.memory_mib <= HEARD_MIB_MAX;
        let package = (package_name(name).to_owned(), system.to_owned());
        if !is_possible || self.shared.known.get(&package).is_some_and(|ours| *ours >= theirs) {
            return false;
        }
        self.shared.put(package.clone(), theirs);
        self.shared.known.contains_key(&package)
    }

    /// As they were saved.
    pub fn restore(&mut self, name: &str, system: &str, shared: Estimate, seen: Option<Estimate>) {
        if name.is_empty() || system.is_empty() {
            return;
        }
        let package = (name.to_owned(), system.to_owned());
        if let Some(seen) = seen {
            self.seen.put(package.clone(), seen);
        }
        self.shared.put(package, shared);
    }

    /// All, by package and system, and what of it was seen.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str, Estimate, Option<Estimate>)> {
        self.shared.known.iter().map(|(package, shared)| {
            (package.0.as_str(), package.1.as_str(), *shared, self.seen.known.get(package).copied())
        })
    }

    pub fn len(&self) -> usize {
        self.shared.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A word for each bucket. `theirs`: how many packages the node knows that is asked, as far as it has said.
    pub fn digest(&self, theirs: usize) -> Vec<u32> {
        let count = self.len().max(theirs) / BUCKET_LEN;
        self.digest_of(count.clamp(BUCKETS_MIN, BUCKETS_MAX).next_power_of_two())
    }

    fn digest_of(&self, buckets: usize) -> Vec<u32> {
        let mut words = vec![0u32; buckets];
        for (package, estimate) in &self.shared.known {
            let hash = hash(package);
            let Estimate { built_s, duration_ms, memory_mib } = *estimate;
            let of_row = [built_s, duration_ms, memory_mib].into_iter().fold(hash, |sum, word| scramble(sum ^ word));
            let word = &mut words[hash as usize % buckets];
            *word = word.wrapping_add(of_row as u32);
        }
        words
    }

    /// What is in buckets that differ from those of `digest`, at most `max`: bucket by bucket from the one that `from`
    /// names, of each those built last first.
    pub fn differing(&self, digest: &[u32], from: u64, max: usize) -> Vec<(&str, &str, Estimate)> {
        let count = digest.len();
        if count == 0 || count > BUCKETS_MAX {
            return Vec::new();
        }
        let differs: Vec<bool> =
            self.digest_of(count).iter().zip(digest).map(|(ours, theirs)| ours != theirs).collect();
        let (begin, mut found) = (from as usize % count, Vec::new());
        for (package, estimate) in &self.shared.known {
            let bucket = hash(package) as usize % count;
            if differs[bucket] {
                found.push(((bucket + count - begin) % count, Reverse(*estimate), package));
            }
        }
        found.sort_unstable();
        found.truncate(max);
        found
            .into_iter()
            .map(|(_, Reverse(estimate), (name, system))| (name.as_str(), system.as_str(), estimate))
            .collect()
    }
}

/// FNV-1a, scrambled: the same at all nodes.
fn hash((name, system): &Package) -> u64 {
    let bytes = name.bytes().chain([0]).chain(system.bytes());
    scramble(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)))
}

/// The name without its version: up to the first dash that a digit follows, as Nix splits names. Never empty: of a name
/// that begins so all is its name.
fn package_name(drv_name: &str) -> &str {
    let name = drv_name.strip_suffix(".drv").unwrap_or(drv_name);
    let bytes = name.as_bytes();
    let version = bytes.windows(2).position(|pair| pair[0] == b'-' && pair[1].is_ascii_digit());
    &name[..version.filter(|at| *at > 0).unwrap_or(name.len())]
}

#[cfg(test)]
#[path = "estimates_tests.rs"]
mod tests;
