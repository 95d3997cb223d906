//! `shoal client`: who may use the node over ssh.

use std::fs;
use std::io::{self, Read};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use russh::keys::PublicKey;
use serde_json::json;

use super::{Global, Outcome, ReadArgs, output};
use crate::clients;
use crate::config::ConfigFlags;
use crate::door::authorized_keys::Role;

/// More than any list of keys for one command.
const INPUT_BYTES_MAX: u64 = 1 << 20;

#[derive(Subcommand)]
pub enum Client {
    /// Let a key in
    Add(Add),
    /// Show the keys that may use the node
    List(ReadArgs),
    /// Lock a key out
    Remove(Remove),
}

#[derive(Args)]
pub struct Add {
    /// A public key, a file of public keys, or - for stdin
    key: String,
    /// What it may do: read, push (also upload what it can prove), build, or admin (is believed)
    #[arg(long, default_value = "build", value_parser = role)]
    role: Role,
    /// Whom it belongs to
    #[arg(long)]
    tenant: Option<String>,
}

#[derive(Args)]
pub struct Remove {
    /// A key's comment, its SHA256: fingerprint, or the key itself
    key: String,
}

pub(super) fn role(text: &str) -> Result<Role, String> {
    text.parse().map_err(|()| "a role is read, push, build or admin".into())
}

impl Client {
    pub fn run(&self, global: &Global) -> Outcome {
        let file = global.load(ConfigFlags::default())?.config.authorized_keys;
        match self {
            Client::Add(add) => {
                for key in add.keys()? {
                    clients::add(&file, &key, add.role, add.tenant.as_deref())?;
                }
            }
            Client::Remove(Remove { key }) => {
                for client in clients::remove(&file, key)? {
                    println!("removed {} {}", client.fingerprint(), client.grant.who);
                }
            }
            Client::List(read) => {
                let clients = clients::list(&file)?;
                if read.json {
                    let rows = clients.iter().map(|client| {
                        json!({
                            "fingerprint": client.fingerprint(),
                            "role": client.grant.role.to_string(),
                            "tenant": client.grant.tenant,
                            "comment": client.grant.who,
                        })
                    });
                    return Ok(output::json(&rows.collect::<Vec<_>>())?);
                }
                let rows = clients.iter().map(|client| {
                    let tenant = client.grant.tenant.clone().unwrap_or_else(|| "-".into());
                    vec![client.fingerprint(), client.grant.role.to_string(), tenant, client.grant.who.clone()]
                });
                output::table(&rows.collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }
}

impl Add {
    fn keys(&self) -> Result<Vec<PublicKey>> {
        let text = match self.key.as_str() {
            "-" => {
                let mut text = String::new();
                io::stdin().take(INPUT_BYTES_MAX).read_to_string(&mut text)?;
                text
            }
            key if PublicKey::from_openssh(key).is_ok() => key.to_string(),
            file => fs::read_to_string(file).with_context(|| format!("'{file}' is neither a public key nor a file"))?,
        };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys =
            lines.map(|line| PublicKey::from_openssh(line).with_context(|| format!("'{line}' is no public key")));
        let keys: Vec<PublicKey> = keys.collect::<Result<_>>()?;
        anyhow::ensure!(!keys.is_empty(), "'{}' holds no public key", self.key);
        Ok(keys)
    }
}
