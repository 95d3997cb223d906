//! `shoal paths`, `shoal log` and `shoal gc`: the store of a running node.

use std::io::{self, Write};

use anyhow::Context;
use clap::Args;
use serde_json::Value;
use shoal_wire::nix::base64;

use super::{Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
use crate::config::units::{parse_size, size_text};
use crate::control::{Request, client};

#[derive(Args)]
pub struct Paths {
    /// Store paths; all of them if none is named
    #[arg(value_name = "PATH")]
    paths: Vec<String>,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Args)]
pub struct Log {
    /// A derivation, or a path that was built here
    #[arg(value_name = "PATH")]
    path: String,
    /// Where it is being built, print what it says until it ends
    #[arg(short, long)]
    follow: bool,
}

#[derive(Args)]
pub struct Gc {
    /// Print what would be deleted, delete nothing
    #[arg(long)]
    dry_run: bool,
    /// Stop after freeing this much, like 10GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_freed: Option<u64>,
    #[command(flatten)]
    read: ReadArgs,
}

impl Paths {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let mut out = io::BufWriter::new(io::stdout().lock());
        let json = self.read.json;
        let mut first = true;
        // One path at a time: a store may hold more of them than fit on a screen, or in memory.
        client::ask(&config.data_dir, &Request::Paths { paths: self.paths.clone() }, |item| {
            match json {
                true => write!(out, "{}{item}", if first { "[\n" } else { ",\n" })?,
                false => writeln!(out, "{}", item["path"].as_str().unwrap_or_default())?,
            }
            first = false;
            Ok(())
        })?;
        if json {
            writeln!(out, "{}", if first { "[]" } else { "\n]" })?;
        }
        Ok(out.flush()?)
    }
}

impl Log {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let mut out = io::stdout().lock();
        client::ask(&config.data_dir, &Request::Log { path: self.path.clone(), follow: self.follow }, |item| {
            let piece = item.as_str().context("the node's answer is of another version of shoal")?;
            out.write_all(&base64::decode(piece)?)?;
            if self.follow {
                out.flush()?;
            }
            Ok(())
        })?;
        Ok(out.flush()?)
    }
}

impl Gc {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let report =
            client::ask_one(&config.data_dir, &Request::Gc { dry_run: self.dry_run, max_freed: self.max_freed })?;
        if self.read.json {
            return Ok(output::json(&report)?);
        }
        let paths = report["paths"].as_array().map(Vec::as_slice).unwrap_or_default();
        for path in paths.iter().filter_map(Value::as_str) {
            println!("{path}");
        }
        let verb = if self.dry_run { "would be deleted" } else { "deleted" };
        let freed = size_text(report["freed_bytes"].as_u64().unwrap_or(0));
        println!("{} paths {verb}, {freed} freed", paths.len());
        let kept = &report["kept_last_copies"];
        if let Some(paths) = kept["paths"].as_u64() {
            println!("{paths} paths stay that no other node has: {}", kept["why"].as_str().unwrap_or_default());
        }
        Ok(())
    }
}
