//! The one answer to "may this derivation run on that machine?".

use std::collections::BTreeSet;
use std::fmt;

/// Platform of derivations that need no particular machine (`builtin:fetchurl` and its kin).
const ANY_SYSTEM: &str = "builtin";

/// What a machine offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub systems: BTreeSet<String>,
    pub features: BTreeSet<String>,
}

/// What a derivation asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    pub system: String,
    pub features: BTreeSet<String>,
}

/// Why a machine may not run a derivation; its text is shown to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    System { wanted: String, offered: BTreeSet<String> },
    Features { missing: BTreeSet<String> },
}

pub fn can_run(machine: &Machine, requirement: &Requirement) -> Result<(), Refusal> {
    if requirement.system != ANY_SYSTEM && !machine.systems.contains(&requirement.system) {
        return Err(Refusal::System { wanted: requirement.system.clone(), offered: machine.systems.clone() });
    }
    let missing: BTreeSet<String> = requirement.features.difference(&machine.features).cloned().collect();
    if missing.is_empty() { Ok(()) } else { Err(Refusal::Features { missing }) }
}

impl Refusal {
    /// The reason in one phrase, as Nix words it.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::System { .. } => "platform mismatch",
            Refusal::Features { .. } => "missing system features",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |set: &BTreeSet<String>| set.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        match self {
            Refusal::System { wanted, offered } if offered.is_empty() => {
                write!(f, "needs a machine of system '{wanted}', this one builds nothing")
            }
            Refusal::System { wanted, offered } => {
                write!(f, "needs a machine of system '{wanted}', this one runs {}", list(offered))
            }
            Refusal::Features { missing } => write!(f, "needs system features this machine lacks: {}", list(missing)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(items: &[&str]) -> BTreeSet<String> {
        items.iter().map(|s| s.to_string()).collect()
    }

    fn ask(system: &str, features: &[&str]) -> Result<(), Refusal> {
        let machine =
            Machine { systems: set(&["x86_64-linux", "i686-linux"]), features: set(&["kvm", "big-parallel"]) };
        can_run(&machine, &Requirement { system: system.into(), features: set(features) })
    }

    #[test]
    fn any_of_the_systems_and_all_of_the_features() {
        assert_eq!(ask("i686-linux", &["kvm"]), Ok(()));
        assert_eq!(ask("builtin", &[]), Ok(()));
        assert!(matches!(ask("aarch64-linux", &[]), Err(Refusal::System { .. })));
        assert_eq!(ask("x86_64-linux", &["kvm", "gpu"]), Err(Refusal::Features { missing: set(&["gpu"]) }));
    }
}
