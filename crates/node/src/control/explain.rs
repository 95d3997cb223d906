//! `shoal explain`: why derivations wait, or went where they went.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use shoal_wire::nix::store_path::StorePath;

use super::server::{NodeState, OnItem};

/// Derivations that are explained at a time: more than a person reads.
const EXPLAINED_MAX: usize = 100;

impl NodeState {
    pub(super) fn explain(&self, what: Option<&str>, on_item: OnItem<'_>) -> Result<()> {
        let derivations = match what {
            None => self.builds.unfinished(None).unwrap_or_default(),
            Some(what) => {
                let derivation = self.requests.derivation(what)?;
                let is_request = what.parse::<u64>().is_ok();
                let of_build = is_request.then(|| self.builds.unfinished(Some(&derivation))).flatten();
                of_build.unwrap_or_else(|| vec![derivation])
            }
        };
        for derivation in derivations.iter().take(EXPLAINED_MAX) {
            match self.explained(derivation)? {
                Some(item) => on_item(item)?,
                // It has ended since the list was made.
                None if what.is_none() => {}
                None => bail!(
                    "this node knows of no build of {}; ask the node that its client talked to, or build it",
                    self.dir.print(derivation)
                ),
            }
        }
        match derivations.len().saturating_sub(EXPLAINED_MAX) {
            0 => Ok(()),
            more => on_item(json!({ "more": more })),
        }
    }

    fn explained(&self, derivation: &StorePath) -> Result<Option<Value>> {
        let explained = self.builds.explain(derivation, &self.ready.name);
        Ok(explained.map(serde_json::to_value).transpose()?)
    }
}
