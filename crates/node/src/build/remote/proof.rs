//! Whether outputs are where another node says that they were built. Clients are told of a success, and dependants are placed
//! beside it, so a word that is not true is found out before it counts.
//!
//! Invariants:
//! - outputs that are valid here cost nothing, and others that are where they should be one question to one node;
//! - who is accused was offered the build by this node, promised on that stream that it built it and has it, and said itself,
//!   twice and some time apart and in one life, that it does not have it, when nobody else had it either. Who promises that
//!   keeps its outputs for longer than this takes ([`HELD`](super::serve::HELD)), so no honest node ever says so; one of an
//!   earlier version, which keeps nothing, promises nothing;
//! - whatever else cannot be proved is built again, and is nobody's fault: who only tells of another's build, who says
//!   nothing, who has another version of it by now.

use std::thread;
use std::time::Duration;

use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuiltOutput, Outcome};
use shoal_wire::mesh::path_record::{PathKey, path_key};
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::BuildStatus;

use super::Grid;
use super::stand_in::incarnation;
use crate::build::service::BuildService;
use crate::upstream::Held;

/// Between two looks for outputs: owners hear of a fresh one some moments after it is there.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What a node that tells of a build has to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Teller {
    /// It was offered it, and answers that.
    Executor,
    /// It is followed, was asked to publish, or is this node: others may have built it.
    Other,
}

/// What is known of the outputs of an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    There,
    /// Nobody can say where; for people.
    Nowhere(String),
}

/// Why what a node said is not believed; for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Offence {
    /// No member of this version says it by accident.
    CannotBe(String),
    /// It denies what it said before.
    Lie(String),
}

/// What came of looking for outputs once; the path is one that was not found as it was told of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Look {
    There,
    /// Who should have it says that it has not, and others do not either.
    Denied(StorePath),
    /// Who tells of it has something else under the name.
    Another(StorePath),
    /// Who should have it does not say, and others do not have it.
    Unsaid(StorePath),
}

/// Whether the node that tells of it had all of it in its own store: who tells of what lies elsewhere knows no size.
fn has_it(outcome: &Outcome) -> bool {
    outcome.outputs.values().all(|output| output.nar_size > 0)
}

/// Whether the node that tells of it promises that it built it and has it.
fn is_promised(outcome: &Outcome, from: NodeKey, teller: Teller) -> bool {
    let is_built = outcome.status == BuildStatus::Built as u8 && outcome.at == Some(from);
    teller == Teller::Executor && is_built && has_it(outcome)
}

impl BuildService {
    /// Asks the node that should have them, and where it does not say so all others; a moment later again.
    pub(super) fn prove(
        &self,
        grid: &Grid,
        outcome: &Outcome,
        from: NodeKey,
        teller: Teller,
    ) -> Result<Proof, Offence> {
        let life = incarnation(grid, &from);
        let first = self.look(grid, outcome, from);
        let last = match &first {
            Look::Denied(_) | Look::Unsaid(_) => {
                thread::sleep(LOOK_AGAIN);
                self.look(grid, outcome, from)
            }
            Look::There | Look::Another(_) => first.clone(),
        };
        let is_denied = matches!((&first, &last), (Look::Denied(_), Look::Denied(_)));
        let is_one_life = life.is_some() && incarnation(grid, &from) == life;
        match last {
            Look::There => Ok(Proof::There),
            Look::Denied(path) if is_denied && is_one_life && is_promised(outcome, from, teller) => {
                Err(Offence::Lie(format!("it says that it built '{}', and does not have it", self.dir.print(&path))))
            }
            Look::Another(path) => {
                let text = format!("it has another '{}' than it says", self.dir.print(&path));
                grid.neighbours.disbelieve(from, path);
                Ok(Proof::Nowhere(text))
            }
            Look::Denied(path) | Look::Unsaid(path) => {
                Ok(Proof::Nowhere(format!("nobody says who has '{}', which was built", self.dir.print(&path))))
            }
        }
    }

    fn look(&self, grid: &Grid, outcome: &Outcome, from: NodeKey) -> Look {
        let outputs = outcome.outputs.values();
        // Where this cannot be read the others are asked for all.
        let valid = self.store.valid_of(outputs.clone().map(|output| &output.path)).unwrap_or_default();
        let lacking = outputs.filter(|output| !valid.contains(&output.path));
        let wanted: Vec<(&BuiltOutput, PathKey)> =
            lacking.filter_map(|output| Some((output, path_key(output.path.hash_part())?))).collect();
        if wanted.is_empty() {
            return Look::There;
        }
        let asked = if has_it(outcome) { from } else { outcome.at.unwrap_or(from) };
        let keys: Vec<PathKey> = wanted.iter().map(|(_, key)| *key).collect();
        let said = if asked == grid.me() { None } else { grid.neighbours.said_by(asked, &keys) };
        let mut open = Vec::new();
        for (number, (output, _)) in wanted.iter().enumerate() {
            match said.as_ref().and_then(|records| records.get(number)?.as_ref()) {
                None => open.push(&output.path),
                // Who tells of another's knows no hash of it.
                Some(record) if asked == from && output.nar_size > 0 && record.nar_hash != output.nar_hash => {
                    return Look::Another(output.path.clone());
                }
                Some(_) => {}
            }
        }
        let parts: Vec<&str> = open.iter().map(|path| path.hash_part()).collect();
        let found = if parts.is_empty() { Vec::new() } else { grid.neighbours.find(&parts) };
        let has = |node: &NodeKey, path| {
            let denies = said.is_some() && *node == asked;
            !denies && !grid.neighbours.is_quiet(node) && !grid.neighbours.is_disbelieved(node, path)
        };
        let is_held = |held: &Option<Held>, path| {
            held.as_ref().is_some_and(|held| held.holders.iter().any(|node| has(node, path)))
        };
        let missing = open.iter().zip(&found).find(|(path, held)| !is_held(held, path));
        match missing.map(|(path, _)| StorePath::clone(path)) {
            None => Look::There,
            Some(path) if said.is_some() => Look::Denied(path),
            Some(path) => Look::Unsaid(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::remote::lab::told;

    /// All others may tell in good faith of what they do not have.
    #[test]
    fn only_who_was_offered_a_build_and_promises_that_it_built_and_has_it_can_be_accused() {
        const NODE: NodeKey = [1; 32];
        let built = told(BuildStatus::Built as u8, &[("out", "out", 1), ("dev", "dev", 1)]);
        let promised = Outcome { at: Some(NODE), ..built.clone() };
        assert!(is_promised(&promised, NODE, Teller::Executor));
        assert!(!is_promised(&promised, NODE, Teller::Other));
        let found = Outcome { status: BuildStatus::AlreadyValid as u8, ..promised.clone() };
        let elsewhere = Outcome { at: Some([2; 32]), ..built.clone() };
        let mut unknown = promised;
        unknown.outputs.values_mut().take(1).for_each(|output| output.nar_size = 0);
        for outcome in [built, found, elsewhere, unknown] {
            assert!(!is_promised(&outcome, NODE, Teller::Executor), "{outcome:?}");
        }
    }
}
