//! `shoal watch-store`: pushes what a Nix store gains.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use shoal_wire::nix::store_path::StorePath;

use super::copy::{Ends, Shown, with_exit};
use super::{Global, Outcome};
use crate::config::ConfigFlags;
use crate::config::units::{parse_duration, show_duration};
use crate::copy::queue::{Queue, dir_name};
use crate::copy::watch::{Events, Watch};
use crate::copy::{Progress, Report};

#[derive(Args)]
pub struct WatchStore {
    /// Push what was gained since the last time, then end
    #[arg(long)]
    once: bool,
    /// The first time, push also what is in the store already
    #[arg(long)]
    existing: bool,
    /// Ask the store every so often, whatever its directory tells
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    interval: Duration,
    /// Keep the queue in this directory; one for each store and node [default: such a one in watch-store in --data-dir]
    #[arg(long, value_name = "DIR")]
    queue: Option<PathBuf>,
    #[command(flatten)]
    ends: Ends,
}

/// Says what happens: pushed paths on stdout, the rest on stderr.
struct Said(Shown);

impl WatchStore {
    pub fn run(&self, global: &Global) -> Outcome {
        let (local, remote) = (self.ends.local(), self.ends.remote(global)?);
        let dir = match &self.queue {
            Some(dir) => dir.clone(),
            None => {
                let queues = global.load(ConfigFlags::default())?.config.data_dir.join("watch-store");
                queues.join(dir_name(&local.real_dir(), remote.url()))
            }
        };
        let existing = || if self.existing { Ok(BTreeSet::new()) } else { local.connect()?.paths() };
        let queue = Queue::open(&dir, existing)?;
        let said = Said(Shown::new("pushed"));
        let mut watch = Watch { local: &local, remote: &remote, queue, events: &said, interval: self.interval };
        watch.run(self.once).map_err(with_exit)
    }
}

impl Progress for Said {
    fn begins(&self, paths: usize, nar_bytes: u64) {
        self.0.begins(paths, nar_bytes);
    }

    fn passed(&self, nar_bytes: u64) {
        self.0.passed(nar_bytes);
    }
}

impl Events for Said {
    fn pushed(&self, report: &Report) {
        self.0.end();
        let mut out = io::stdout().lock();
        // Who no longer reads does not keep paths from being pushed.
        let _ = report.paths.iter().try_for_each(|path| writeln!(out, "{path}"));
        let _ = out.flush();
    }

    fn refused(&self, path: &StorePath, error: &anyhow::Error) {
        self.0.end();
        let _ = writeln!(io::stderr(), "not pushed, and not tried again: {path}: {error:#}");
    }

    fn waits(&self, pause: Duration, error: &anyhow::Error) {
        self.0.end();
        let _ = writeln!(io::stderr(), "trying again in {}: {error:#}", show_duration(pause));
    }
}
