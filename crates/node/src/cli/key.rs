//! `shoal key`: the keys that sign what is built here.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::json;

use super::{Global, Outcome, ReadArgs, output};
use crate::config::{Config, ConfigFlags};
use crate::control::{Request, client};
use crate::keys;

#[derive(Subcommand)]
pub enum Key {
    /// Make a signing key and print its public half
    Generate(Generate),
    /// Print this node's public signing keys in Nix's form, one a line
    Show(ReadArgs),
}

#[derive(Args)]
pub struct Generate {
    /// The key's name, by convention host and number like cache.example.org-1
    name: String,
    /// Where to write the secret key; it must not exist
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

impl Key {
    pub fn run(&self, global: &Global) -> Outcome {
        match self {
            Key::Generate(args) => println!("{}", keys::make(&args.output, &args.name)?.public()),
            Key::Show(read) => {
                let config = global.load(ConfigFlags::default())?.config;
                let public = public_keys(&config)?;
                match read.json {
                    true => output::json(&json!({ "public_keys": public }))?,
                    false => println!("{}", public.join("\n")),
                }
            }
        }
        Ok(())
    }
}

/// As the node says that runs, which may have been started with other settings than files tell; else as those do.
fn public_keys(config: &Config) -> Result<Vec<String>> {
    let status = client::ask_one(&config.data_dir, &Request::Status);
    let running = status.ok().and_then(|status| Vec::<String>::deserialize(&status["public_keys"]).ok());
    if let Some(keys) = running.filter(|keys| !keys.is_empty()) {
        return Ok(keys);
    }
    let existing = keys::existing_signing_keys(config).with_context(|| {
        let dir = config.data_dir.display();
        format!("no node runs in {dir}, and its keys cannot be read: start one with `shoal serve --data-dir {dir}`, or name another --data-dir")
    });
    Ok(existing?.iter().map(|key| key.public().to_string()).collect())
}
