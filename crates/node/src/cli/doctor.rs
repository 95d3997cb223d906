//! `shoal doctor`

use std::io::{self, IsTerminal};

use clap::Args;

use super::{Exit, Failure, Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
use crate::doctor::{Check, Verdict, examine};

#[derive(Args)]
pub struct Doctor {
    #[command(flatten)]
    flags: ConfigFlags,
    #[command(flatten)]
    read: ReadArgs,
}

impl Doctor {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(self.flags.clone())?.config;
        let running = super::use_node::running(&config).is_ok();
        let checks = examine(&config, running);
        match self.read.json {
            true => output::json(&checks)?,
            false => print(&checks, output::coloured(io::stdout().is_terminal()))?,
        }
        match checks.iter().filter(|check| check.verdict == Verdict::Fail).count() {
            0 => Ok(()),
            n => Err(Failure::new(Exit::Failed, format!("{n} of {} checks failed", checks.len())).into()),
        }
    }
}

fn print(checks: &[Check], coloured: bool) -> io::Result<()> {
    let word = |verdict| match (verdict, coloured) {
        (Verdict::Ok, true) => "\x1b[32mok\x1b[0m  ",
        (Verdict::Warn, true) => "\x1b[33mwarn\x1b[0m",
        (Verdict::Fail, true) => "\x1b[31mfail\x1b[0m",
        (Verdict::Ok, false) => "ok",
        (Verdict::Warn, false) => "warn",
        (Verdict::Fail, false) => "fail",
    };
    let mut rows = Vec::new();
    for check in checks {
        rows.push(vec![word(check.verdict).to_string(), check.name.to_string(), check.found.clone()]);
        if !check.fix.is_empty() {
            let indent = if coloured { "    " } else { "" };
            rows.push(vec![indent.into(), String::new(), format!("-> {}", check.fix)]);
        }
    }
    output::table(&rows)
}
