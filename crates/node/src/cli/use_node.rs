//! `shoal use`: points a machine's Nix at this node.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use super::{Exit, Failure, Global, Outcome, ReadArgs, output};
use crate::client_setup::{Place, Setup};
use crate::config::{Config, ConfigFlags};
use crate::door::host_key;
use crate::keys;
use crate::serve::ready::{self, Ready};

#[derive(Args)]
pub struct Use {
    /// Name or address by which clients reach this node
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Put the lines into this machine's files: the system's as root, else your own
    #[arg(long)]
    write: bool,
    /// With --write: your own files, also as root
    #[arg(long, requires = "write")]
    user: bool,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Serialize)]
struct Written {
    files: Vec<PathBuf>,
}

impl Use {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let setup = setup(&config, &running(&config)?, self.host.as_deref())?;
        if !self.write {
            return match self.read.json {
                true => Ok(output::json(&setup)?),
                false => {
                    print!("{}", setup.text());
                    Ok(())
                }
            };
        }
        let place = if self.user { Place::User } else { Place::of_this_user() };
        let files = setup.write(&place.files(&setup.alias)?)?;
        match self.read.json {
            true => output::json(&Written { files })?,
            false => files.iter().for_each(|file| println!("wrote {}", file.display())),
        }
        Ok(())
    }
}

/// What the running node says of itself.
pub fn running(config: &Config) -> Result<Ready> {
    let path = ready::path(&config.data_dir);
    let text = fs::read_to_string(&path).map_err(|error| {
        Failure::new(
            Exit::Unreachable,
            format!(
                "no node runs in {} ({}: {error})\nstart one with `shoal serve`, or name its directory with --data-dir",
                config.data_dir.display(),
                path.display()
            ),
        )
    })?;
    serde_json::from_str(&text).with_context(|| format!("{} is not of this version of shoal", path.display()))
}

/// What clients of the node need to know. `host`: how they reach it; by default its host name.
pub fn setup(config: &Config, ready: &Ready, host: Option<&str>) -> Result<Setup> {
    let ssh = ready.ssh.context("this node has no ssh door (it was started with --ssh none)")?;
    let host_of = |address: SocketAddr| match (host, address.ip()) {
        (Some(host), _) => host.to_owned(),
        (None, ip) if ip.is_unspecified() => crate::config::detect::host_name(),
        (None, ip) => ip.to_string(),
    };
    let public_key_file = config.data_dir.join(host_key::FILE_NAME).with_extension("pub");
    let host_key =
        fs::read_to_string(&public_key_file).with_context(|| format!("cannot read {}", public_key_file.display()))?;
    let public_keys = keys::existing_signing_keys(config)?.iter().map(|key| key.public().to_string()).collect();
    Ok(Setup {
        alias: format!("shoal-{}", ready.name),
        host: host_of(ssh),
        cache: ready.http.map(|http| cache_url(ready.http_tls, &host_of(http), http.port())),
        needs_token: ready.http_needs_token,
        port: ssh.port(),
        host_key: host_key.split_whitespace().take(2).collect::<Vec<_>>().join(" "),
        public_keys,
        systems: config.system.clone(),
        features: config.feature.clone(),
        max_jobs: config.max_jobs,
    })
}

/// A literal IPv6 address stands in brackets.
pub fn cache_url(is_encrypted: bool, host: &str, port: u16) -> String {
    let scheme = if is_encrypted { "https" } else { "http" };
    match host.contains(':') && !host.starts_with('[') {
        true => format!("{scheme}://[{host}]:{port}"),
        false => format!("{scheme}://{host}:{port}"),
    }
}
