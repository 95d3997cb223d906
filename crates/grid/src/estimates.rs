//! What derivations will take, by what those of the same name took before.
//!
//! Invariants:
//! - kept by package and system, without the version: the next version inherits what the last one took;
//! - each build moves the duration halfway to what it took, and the memory at once to a greater peak but only halfway to a
//!   lesser one: too little memory costs more than too much;
//! - merging takes the word of who built it last, so that it may be done in any order and any number of times;
//! - at most [`ESTIMATES_MAX`] are kept; those that were built longest ago go first.

use std::collections::{BTreeMap, BTreeSet};

/// Packages remembered: those of a distribution, on some systems.
pub const ESTIMATES_MAX: usize = 100_000;

/// What a derivation that was never seen is taken to last: most are small.
pub const UNKNOWN: Estimate = Estimate { duration_ms: 1_000, memory_mib: 0, built_s: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Estimate {
    /// When one was last built, in Unix seconds. First, so that the order is that of age.
    pub built_s: u64,
    pub duration_ms: u64,
    /// Peak; 0 where it was never measured.
    pub memory_mib: u64,
}

/// Name without version, and system.
type Package = (String, String);

#[derive(Clone, Debug, Default)]
pub struct Estimates {
    known: BTreeMap<Package, Estimate>,
    by_age: BTreeSet<(Estimate, Package)>,
}

impl Estimates {
    /// `drv_name` is a derivation's name, with or without `.drv`. Where it was only built for other systems, those tell.
    pub fn get(&self, drv_name: &str, system: &str) -> Estimate {
        let name = package_name(drv_name).to_owned();
        if let Some(known) = self.known.get(&(name.clone(), system.to_owned())) {
            return *known;
        }
        let of_name = self.known.range((name.clone(), String::new())..).take_while(|((other, _), _)| *other == name);
        of_name.map(|(_, known)| *known).max().unwrap_or(UNKNOWN)
    }

    /// One was built. `memory_mib` is 0 where nothing measured it.
    pub fn record(&mut self, drv_name: &str, system: &str, built: Estimate) {
        let package = (package_name(drv_name).to_owned(), system.to_owned());
        let estimate = match self.known.get(&package) {
            None => built,
            Some(before) => Estimate {
                built_s: built.built_s.max(before.built_s),
                duration_ms: before.duration_ms.midpoint(built.duration_ms),
                memory_mib: match built.memory_mib {
                    0 => before.memory_mib,
                    peak => peak.max(before.memory_mib.midpoint(peak)),
                },
            },
        };
        self.put(package, estimate);
    }

    /// Takes what another node knows. Among words of the same second the greater holds, so that all nodes agree.
    pub fn merge(&mut self, name: &str, system: &str, theirs: Estimate) {
        let package = (package_name(name).to_owned(), system.to_owned());
        if self.known.get(&package).is_none_or(|ours| *ours < theirs) {
            self.put(package, theirs);
        }
    }

    /// All, or those built since a time, by package and system.
    pub fn since(&self, built_s: u64) -> impl Iterator<Item = (&str, &str, Estimate)> {
        let first = Estimate { built_s, duration_ms: 0, memory_mib: 0 };
        let newer = self.by_age.range((first, Package::default())..);
        newer.map(|(estimate, (name, system))| (name.as_str(), system.as_str(), *estimate))
    }

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

/// The name without its version: up to the first dash that a digit follows, as Nix splits names.
fn package_name(drv_name: &str) -> &str {
    let name = drv_name.strip_suffix(".drv").unwrap_or(drv_name);
    let bytes = name.as_bytes();
    let version = bytes.windows(2).position(|pair| pair[0] == b'-' && pair[1].is_ascii_digit());
    &name[..version.unwrap_or(name.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINUX: &str = "x86_64-linux";

    fn built(built_s: u64, duration_ms: u64, memory_mib: u64) -> Estimate {
        Estimate { built_s, duration_ms, memory_mib }
    }

    #[test]
    fn versions_share_an_estimate_and_systems_lend_theirs() {
        let mut estimates = Estimates::default();
        assert_eq!(estimates.get("gcc-13.2.0.drv", LINUX), UNKNOWN);
        estimates.record("gcc-13.2.0.drv", LINUX, built(5, 9_000, 800));
        assert_eq!(estimates.get("gcc-14.1", LINUX), built(5, 9_000, 800));
        assert_eq!(estimates.get("gcc-14.1", "aarch64-linux"), built(5, 9_000, 800));
        assert_eq!(estimates.get("gcc-wrapper-14.1", LINUX), UNKNOWN);
    }

    #[test]
    fn durations_follow_slowly_and_memory_rises_at_once() {
        let mut estimates = Estimates::default();
        estimates.record("gcc", LINUX, built(1, 8_000, 1_000));
        estimates.record("gcc", LINUX, built(2, 4_000, 3_000));
        assert_eq!(estimates.get("gcc", LINUX), built(2, 6_000, 3_000));
        estimates.record("gcc", LINUX, built(3, 6_000, 1_000));
        assert_eq!(estimates.get("gcc", LINUX), built(3, 6_000, 2_000));
        estimates.record("gcc", LINUX, built(4, 6_000, 0));
        assert_eq!(estimates.get("gcc", LINUX).memory_mib, 2_000, "which was not measured");
    }

    #[test]
    fn those_built_longest_ago_are_forgotten_first() {
        let mut estimates = Estimates::default();
        let count = ESTIMATES_MAX as u64 + 10;
        (0..count).for_each(|n| estimates.record(&format!("p{n}"), LINUX, built(count - n, 7, 0)));
        assert_eq!(estimates.since(0).count(), ESTIMATES_MAX);
        assert_eq!(estimates.since(0).map(|(_, _, estimate)| estimate.built_s).min(), Some(11));
        assert_eq!(estimates.get("p0", LINUX).duration_ms, 7);
        assert_eq!(estimates.get(&format!("p{}", count - 1), LINUX), UNKNOWN);
    }

    proptest! {
        #[test]
        fn nodes_that_tell_each_other_agree_in_whatever_order(
            words in prop::collection::vec((0u8..4, 0u64..5, 0u64..5, 0u64..5), 1..30),
            order in any::<u64>(),
        ) {
            let merged = |words: &[(u8, u64, u64, u64)]| {
                let mut estimates = Estimates::default();
                for (name, built_s, duration_ms, memory_mib) in words {
                    estimates.merge(&format!("p{name}"), LINUX, built(*built_s, *duration_ms, *memory_mib));
                }
                estimates.since(0).map(|(name, _, estimate)| (name.to_owned(), estimate)).collect::<BTreeSet<_>>()
            };
            let mut other = words.clone();
            let mut random = crate::random::Random::new(order);
            other.sort_by_cached_key(|_| random.word());
            other.extend(words.first().copied());
            prop_assert_eq!(merged(&words), merged(&other));
        }
    }
}
