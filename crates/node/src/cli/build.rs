//! `shoal build` and `shoal cancel`: builds by a running node and its mesh, without a Nix client.

use std::io::{self, Write};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::{Exit, Failure, Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
use crate::control::builds::Order;
use crate::control::{Request, client};

#[derive(Args)]
pub struct Build {
    /// Derivations, if need be with the outputs that are wanted (….drv^out,dev), or store paths to be fetched
    #[arg(value_name = "DRV", required = true)]
    wanted: Vec<String>,
    /// Return at once; the node builds on, and `shoal builds` tells how it goes
    #[arg(long)]
    detach: bool,
    /// After a failure, build what does not need it
    #[arg(short, long)]
    keep_going: bool,
    /// Build again what is built, and compare
    #[arg(long)]
    check: bool,
    /// Publish nothing that is not the same on so many nodes; less than the node's `build-quorum` changes nothing
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=shoal_grid::ballot::VOTES_MAX as i64))]
    quorum: Option<u32>,
    /// Do not print what builders say
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Args)]
pub struct Cancel {
    /// The number of a request that nobody waits for, or a derivation that is being built
    #[arg(value_name = "WHAT")]
    what: String,
}

impl Build {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let Build { keep_going, check, quorum, .. } = *self;
        let order = Order { wanted: self.wanted.clone(), keep_going, check, quorum };
        let request = Request::Build { order, detach: self.detach };
        if self.detach {
            let begun = client::ask_one(&config.data_dir, &request)?;
            return match self.read.json {
                true => Ok(output::json(&begun)?),
                false => Ok(output::line(&begun["id"].to_string())?),
            };
        }
        let mut results = Vec::new();
        client::ask(&config.data_dir, &request, |mut item| {
            match item["result"].take() {
                Value::Null if self.quiet => {}
                Value::Null => say(&item)?,
                result => results.push(result),
            }
            Ok(())
        })?;
        self.report(&results)
    }

    fn report(&self, results: &[Value]) -> Outcome {
        if self.read.json {
            output::json(&json!(results))?;
        } else {
            let outputs = results.iter().filter_map(|result| result["outputs"].as_object());
            for path in outputs.flat_map(|outputs| outputs.values()).filter_map(Value::as_str) {
                output::line(path)?;
            }
        }
        let failed: Vec<&str> = results.iter().filter_map(|result| result["error"].as_str()).collect();
        match failed.is_empty() {
            true => Ok(()),
            false => Err(Failure::new(Exit::Failed, failed.join("\n")).into()),
        }
    }
}

/// One event, as a line on stderr.
fn say(item: &Value) -> io::Result<()> {
    let mut err = io::stderr().lock();
    let text = |name: &str| item[name].as_str();
    // Without the directory and the hash, as Nix does.
    let name = |path: &str| {
        let base = path.rsplit('/').next().unwrap_or(path);
        base.split_once('-').map_or(base, |(_, name)| name).trim_end_matches(".drv").to_string()
    };
    if let Some(drv) = text("started") {
        let on = text("at").map(|node| format!(" on '{node}'")).unwrap_or_default();
        writeln!(err, "building '{drv}'{on}...")
    } else if let Some(path) = text("fetching") {
        writeln!(err, "fetching '{path}' from {}...", text("from").unwrap_or("another node"))
    } else if let Some(line) = text("line") {
        writeln!(err, "{}> {line}", text("drv").map(name).unwrap_or_default())
    } else if let Some(message) = text("message") {
        write!(err, "{message}")
    } else {
        Ok(())
    }
}

impl Cancel {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        client::ask(&config.data_dir, &Request::Cancel { what: self.what.clone() }, |_| Ok(()))
            .with_context(|| format!("cannot cancel {}", self.what))
    }
}
