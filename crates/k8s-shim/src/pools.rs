//! A StatefulSet as a pool of nodes: what its annotations say.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::StatefulSet;
use shoal_grid::can_run::Machine;
use thiserror::Error;

pub const MIN: &str = "shoal.build/min-replicas";
pub const MAX: &str = "shoal.build/max-replicas";
pub const SYSTEMS: &str = "shoal.build/systems";
pub const FEATURES: &str = "shoal.build/features";
pub const SLOTS: &str = "shoal.build/slots";
pub const STARTUP: &str = "shoal.build/startup-seconds";
pub const QUIET: &str = "shoal.build/quiet-seconds";
/// Written: what was decided last, and why.
pub const STATUS: &str = "shoal.build/status";

const STARTUP_S: u32 = 60;
/// Less is paid for nodes that are started again than for those that idle for longer.
const QUIET_S: u32 = 15;
/// A number that is greater is a mistake.
const NUMBER_MAX: u32 = 100_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    pub uid: String,
    /// Of what was read; a write to anything newer is refused.
    pub resource_version: Option<String>,
    pub replicas: u32,
    /// Pods that are there by the API server's word.
    pub ready: u32,
    /// Its pods count from here.
    pub first: u32,
    pub min: u32,
    pub max: u32,
    pub startup_s: u32,
    pub quiet_s: u32,
    /// What one of its nodes runs, where that is said; else the nodes tell.
    pub slots: Option<u32>,
    pub machine: Option<Machine>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    #[error("it has no name")]
    NoName,
    #[error("it has no annotation {MAX}, without which it is not sized")]
    NoMaximum,
    #[error("annotation {name} is '{value}', which is no number between 0 and {NUMBER_MAX}")]
    NoNumber { name: &'static str, value: String },
    #[error("{MIN} is {min}, more than {MAX}, which is {max}")]
    Bounds { min: u32, max: u32 },
}

impl Spec {
    pub fn of(set: &StatefulSet) -> Result<Spec, SpecError> {
        let none = BTreeMap::new();
        let annotations = set.metadata.annotations.as_ref().unwrap_or(&none);
        let number = |name: &'static str| -> Result<Option<u32>, SpecError> {
            let Some(value) = annotations.get(name) else { return Ok(None) };
            match value.trim().parse() {
                Ok(number) if number <= NUMBER_MAX => Ok(Some(number)),
                _ => Err(SpecError::NoNumber { name, value: value.chars().take(40).collect() }),
            }
        };
        let words = |name: &str| -> Option<BTreeSet<String>> {
            let list = annotations.get(name)?.split([',', ' ']).filter(|word| !word.is_empty());
            Some(list.map(str::to_owned).collect())
        };
        let max = number(MAX)?.ok_or(SpecError::NoMaximum)?;
        let min = number(MIN)?.unwrap_or(1.min(max));
        if min > max {
            return Err(SpecError::Bounds { min, max });
        }
        let count = |count: Option<i32>| count.and_then(|count| u32::try_from(count).ok());
        let spec = set.spec.as_ref();
        let machine = words(SYSTEMS).map(|systems| Machine { systems, features: words(FEATURES).unwrap_or_default() });
        Ok(Spec {
            name: set.metadata.name.clone().ok_or(SpecError::NoName)?,
            uid: set.metadata.uid.clone().unwrap_or_default(),
            resource_version: set.metadata.resource_version.clone(),
            replicas: count(spec.and_then(|spec| spec.replicas)).unwrap_or(1),
            ready: count(set.status.as_ref().and_then(|status| status.ready_replicas)).unwrap_or(0),
            first: count(spec.and_then(|spec| spec.ordinals.as_ref()).and_then(|ordinals| ordinals.start)).unwrap_or(0),
            min,
            max,
            startup_s: number(STARTUP)?.unwrap_or(STARTUP_S).max(1),
            quiet_s: number(QUIET)?.unwrap_or(QUIET_S),
            slots: number(SLOTS)?.filter(|slots| *slots > 0),
            machine,
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn set(annotations: &[(&str, &str)], replicas: i32) -> StatefulSet {
        let mut set = StatefulSet::default();
        set.metadata.name = Some("shoal".to_owned());
        let owned = annotations.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        set.metadata.annotations = Some(owned.collect());
        set.spec = Some(Default::default());
        set.spec.as_mut().expect("was just set").replicas = Some(replicas);
        set
    }

    #[test]
    fn annotations_make_a_pool_and_mistakes_are_named() {
        let spec = Spec::of(&set(&[(MAX, "9"), (SYSTEMS, "x86_64-linux, i686-linux"), (FEATURES, "kvm")], 3)).unwrap();
        assert_eq!((spec.min, spec.max, spec.replicas, spec.startup_s, spec.quiet_s), (1, 9, 3, 60, 15));
        assert_eq!(spec.machine.unwrap().systems.len(), 2);
        assert_eq!(Spec::of(&set(&[], 1)), Err(SpecError::NoMaximum));
        assert_eq!(Spec::of(&set(&[(MAX, "2"), (MIN, "3")], 1)), Err(SpecError::Bounds { min: 3, max: 2 }));
        for odd in ["-1", "many", "", "1000000", "1.5"] {
            assert!(matches!(Spec::of(&set(&[(MAX, odd)], 1)), Err(SpecError::NoNumber { name: MAX, .. })), "{odd}");
        }
        assert_eq!(Spec::of(&set(&[(MAX, "0")], 0)).unwrap().min, 0);
    }
}
