//! `shoal cold`: the bucket behind the mesh.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Exit, Failure, Global, Outcome, ReadArgs, output};
use crate::cold::{Findings, Report};
use crate::config::ConfigFlags;
use crate::config::units::size_text;
use crate::control::{Request, client};

#[derive(Subcommand)]
pub enum Cold {
    /// Show what is to be written to the bucket, and what was
    Status(Status),
    /// Compare what is in the bucket with its names, and have what is damaged written again if it is here
    Verify(Verify),
    /// Fetch every path that the bucket has
    Restore(Restore),
}

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Args)]
pub struct Verify {
    /// Compare lengths only, and read no packs
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Args)]
pub struct Restore {
    #[command(flatten)]
    read: ReadArgs,
}

impl Cold {
    pub fn run(&self, global: &Global) -> Outcome {
        match self {
            Cold::Status(command) => command.run(global),
            Cold::Verify(command) => command.run(global),
            Cold::Restore(command) => command.run(global),
        }
    }
}

impl Status {
    fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let status = client::ask_one(&config.data_dir, &Request::Status)?;
        let cold = &status["cold"];
        if self.read.json {
            return Ok(output::json(cold)?);
        }
        if cold.is_null() {
            return Err(Failure::new(Exit::Failed, "this node has no bucket").into());
        }
        let rows = [
            ("bucket", text(cold)),
            ("written", written(cold)),
            ("last copies", last_copies(cold)),
            ("last error", last_error(cold)),
        ];
        Ok(output::table(&rows.map(|(name, value)| vec![name.to_string(), value]))?)
    }
}

/// The bucket in one line.
pub fn text(cold: &Value) -> String {
    let number = |name: &str| cold[name].as_u64().unwrap_or(0);
    let url = cold["url"].as_str().unwrap_or_default();
    if cold["writes"] != true {
        return format!("{url}, only read");
    }
    let more = if cold["backlog_is_partial"] == true { " or more" } else { "" };
    let failed = match number("failed_writes") {
        0 => String::new(),
        failed => format!(", {failed} writes failed"),
    };
    format!("{url}, {} paths in it, {}{more} to be written{failed}", number("kept_paths"), number("backlog"))
}

fn written(cold: &Value) -> String {
    let number = |name: &str| cold[name].as_u64().unwrap_or(0);
    format!(
        "{} paths, {} packs ({}), {} chunks that were there, {} logs, {} realisations, {} paths left to other nodes",
        number("written_paths"),
        number("written_packs"),
        size_text(number("written_bytes")),
        number("shared_chunks"),
        number("written_logs"),
        number("written_realisations"),
        number("elsewhere")
    )
}

/// Those that collections let go of, where they may.
fn last_copies(cold: &Value) -> String {
    let number = |name: &str| cold[name].as_u64().unwrap_or(0);
    let why = cold["kept_why"].as_str().map(|why| format!(", at last since {why}")).unwrap_or_default();
    format!("{} left to the bucket, {} kept{why}", number("freed_last_copies"), number("kept_last_copies"))
}

fn last_error(cold: &Value) -> String {
    cold["last_error"].as_str().unwrap_or("none").to_string()
}

impl Verify {
    fn run(&self, global: &Global) -> Outcome {
        let report = ask(global, &Request::Cold { restore: false, quick: self.quick })?;
        if self.read.json {
            output::json(&report)?;
        } else {
            name("damaged", &report.damaged);
            name("not checked", &report.not_checked);
            let (bytes, rewritten) = (size_text(report.bytes), report.rewritten);
            println!("{} paths and {} packs ({bytes}), {rewritten} paths written again", report.paths, report.packs);
        }
        let why = match (report.damaged.count, report.not_checked.count) {
            (0, 0) => return Ok(()),
            (0, failed) => format!("{failed} objects of the bucket could not be checked; try again later"),
            (damaged, 0) => format!("{damaged} objects of the bucket are damaged"),
            (damaged, failed) => {
                format!("{damaged} objects of the bucket are damaged, and {failed} could not be checked")
            }
        };
        Err(Failure::new(Exit::Failed, why).into())
    }
}

impl Restore {
    fn run(&self, global: &Global) -> Outcome {
        let report = ask(global, &Request::Cold { restore: true, quick: false })?;
        if self.read.json {
            output::json(&report)?;
        } else {
            name("not restored", &report.not_restored);
            println!("{} of {} paths were brought here", report.restored, report.paths);
        }
        match report.not_restored.count {
            0 => Ok(()),
            left => Err(Failure::new(Exit::Failed, format!("{left} paths could not be brought here")).into()),
        }
    }
}

fn name(what: &str, findings: &Findings) {
    for finding in &findings.first {
        println!("{what}: {}: {}", finding.object, finding.why);
    }
    let more = findings.count.saturating_sub(findings.first.len() as u64);
    if more > 0 {
        println!("{what}: and {more} more");
    }
}

fn ask(global: &Global, request: &Request) -> anyhow::Result<Report> {
    let config = global.load(ConfigFlags::default())?.config;
    let mut last = Value::Null;
    client::ask(&config.data_dir, request, |item| {
        if item["progress"].is_null() {
            last = item["report"].clone();
        }
        Ok(())
    })?;
    Ok(serde_json::from_value(last)?)
}
