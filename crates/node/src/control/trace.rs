//! `shoal trace`: the timeline of a build.

use anyhow::{Result, bail};
use serde_json::json;

use super::server::{NodeState, OnItem};

impl NodeState {
    pub(super) fn trace(&self, what: Option<&str>, on_item: OnItem<'_>) -> Result<()> {
        let part = what.map(|what| self.requests.derivation(what)).transpose()?;
        let Some((build, derivations)) = self.builds.trace(part.as_ref(), &self.ready.name) else {
            match &part {
                Some(part) => bail!(
                    "this node keeps no build of {}; ask the node that its client talked to, soon after it has ended",
                    self.dir.print(part)
                ),
                None => bail!("nothing was built for clients of this node since it started"),
            }
        };
        on_item(json!({ "build": build }))?;
        derivations.iter().try_for_each(|derivation| on_item(json!({ "derivation": derivation })))
    }
}
