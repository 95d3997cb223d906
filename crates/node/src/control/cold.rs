//! The bucket, looked through for whoever waits.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::server::{NodeState, OnItem};

/// Who waits is told of progress at most so often.
const TELL_PERIOD: Duration = Duration::from_millis(200);

impl NodeState {
    pub(super) fn cold(&self, restore: bool, quick: bool, on_item: OnItem<'_>) -> Result<()> {
        let cold = self.cold.as_ref().context("this node has no bucket; name one with `cold` in its configuration")?;
        let mut told = Instant::now();
        // Who does not listen any more has gone.
        let mut is_gone = false;
        let mut go_on = |seen: &crate::cold::Report| {
            if told.elapsed() >= TELL_PERIOD {
                told = Instant::now();
                let progress = json!({ "paths": seen.paths, "packs": seen.packs, "restored": seen.restored });
                is_gone |= on_item(json!({ "progress": progress })).is_err();
            }
            !is_gone
        };
        let report = match restore {
            true => cold.restore(&self.store, &self.upstreams, &mut go_on)?,
            false => cold.verify(&self.store, quick, &|info| self.upstreams.believes(info), &mut go_on)?,
        };
        on_item(json!({ "report": report }))
    }
}
