//! `shoal scrub`: reads all that a running node's store holds, and has what is damaged healed.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use serde_json::Value;

use super::{Exit, Failure, Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
use crate::config::units::{parse_size, size_text};
use crate::control::{Request, client};
use crate::scrub::{Progress, Report};

#[derive(Args)]
pub struct Scrub {
    /// Bytes to read a second, like 100MiB, instead of what the node is configured for; 0 for as fast as it can
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    rate: Option<u64>,
    #[command(flatten)]
    read: ReadArgs,
}

impl Scrub {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let mut last = Value::Null;
        let mut line = Line { shown: !self.read.json && io::stderr().is_terminal(), len: 0 };
        client::ask(&config.data_dir, &Request::Scrub { rate: self.rate }, |item| {
            match serde_json::from_value::<Progress>(item["progress"].clone()) {
                Ok(progress) => line.show(&progress_text(&progress)),
                Err(_) => last = item["report"].clone(),
            }
            Ok(())
        })?;
        line.show("");
        let report: Report = serde_json::from_value(last)?;
        match self.read.json {
            true => output::json(&report)?,
            false => print(&report),
        }
        match report.not_healed.len() {
            0 => Ok(()),
            left => Err(Failure::new(Exit::Failed, format!("{left} paths are damaged and could not be healed")).into()),
        }
    }
}

fn print(report: &Report) {
    for finding in &report.found {
        println!("damaged: {}: {}", finding.path, finding.why);
    }
    for path in &report.healed {
        println!("healed: {path}");
    }
    for finding in &report.not_healed {
        println!("not healed: {}: {}", finding.path, finding.why);
    }
    let absolved = match report.absolved {
        0 => String::new(),
        absolved => format!(", {absolved} that were taken for damaged are right"),
    };
    println!("{} paths and {} chunks ({}) read{absolved}", report.paths, report.chunks, size_text(report.bytes));
}

fn progress_text(progress: &Progress) -> String {
    let percent = (progress.bytes * 100).checked_div(progress.bytes_total).unwrap_or(100).min(100);
    let damaged = match progress.damaged {
        0 => String::new(),
        damaged => format!(", {damaged} chunks damaged"),
    };
    format!("{percent} % of {}{damaged}", size_text(progress.bytes_total))
}

/// A line on the terminal that is written over.
struct Line {
    shown: bool,
    len: usize,
}

impl Line {
    fn show(&mut self, text: &str) {
        if self.shown {
            // Progress is no reason to fail.
            let _ = write!(io::stderr(), "\r{text:<width$}\r", width = self.len);
            let _ = io::stderr().flush();
            self.len = text.len();
        }
    }
}
