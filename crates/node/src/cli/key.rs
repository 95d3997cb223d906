//! `shoal key`: the keys that sign what is built here.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
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
                let keys = keys::existing_signing_keys(&config)?;
                let public: Vec<String> = keys.iter().map(|key| key.public().to_string()).collect();
                match read.json {
                    true => output::json(&json!({ "public_keys": public }))?,
                    false => println!("{}", public.join("\n")),
                }
            }
        }
        Ok(())
    }
}
