//! `shoal demo`: a node in a temporary directory, with everything a client needs to try it.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::{Global, Outcome, output};
use crate::clients;
use crate::config::{Config, ConfigFlags};
use crate::door::authorized_keys::Role;
use crate::door::host_key;
use crate::serve::ready::Ready;
use crate::serve::{self, Start};

#[derive(Args)]
pub struct Demo {
    /// Use this new directory and leave it there, instead of a temporary one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    flags: ConfigFlags,
}

/// Removed with all that is in it when the demo ends.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = shoal_sandbox::remove_tree(&self.0) {
            tracing::warn!(%error, "cannot remove {}", self.0.display());
        }
    }
}

impl Demo {
    pub fn run(&self, global: &Global) -> Outcome {
        let dir = match &self.dir {
            Some(dir) => std::path::absolute(dir)?,
            None => std::env::temp_dir().join(format!("shoal-demo-{}", std::process::id())),
        };
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let _temporary = self.dir.is_none().then(|| Temporary(dir.clone()));
        let data = dir.join("node");
        let defaults = ConfigFlags::default()
            .with("name", "demo")
            .with("ssh", "127.0.0.1:0")
            .with("http", "127.0.0.1:0")
            .with("mesh", "127.0.0.1:0")
            .with("data-dir", data.to_string_lossy())
            .with("log-level", "warn");
        let flags = self.flags.given.iter().fold(defaults, |flags, (key, values)| {
            values.iter().fold(flags, |flags, value| flags.with(key.flag, value))
        });
        let config = global.load_here(flags.clone())?.config;
        let key = dir.join("client-key");
        let public = host_key::create(&key).context("cannot make an ssh key")?;
        fs::create_dir(&data)?;
        clients::add(&config.authorized_keys, public.public_key(), Role::Admin, None)?;
        serve::run(Start {
            verbose: global.verbose,
            coloured: output::coloured(io::stderr().is_terminal()),
            reload: Box::new(move || Ok(global.load_here(flags.clone())?.config)),
            on_ready: Box::new({
                let config = config.clone();
                let dir = dir.clone();
                let kept = self.dir.is_some();
                move |ready, _| announce(&dir, kept, &config, ready)
            }),
            config,
        })
        .map(drop)
    }
}

/// Writes the client's settings where a shell can source them, and says how to use them.
fn announce(dir: &Path, kept: bool, config: &Config, ready: &Ready) -> Result<()> {
    let ssh = ready.ssh.context("a demo needs its ssh door")?;
    let host_key = fs::read_to_string(config.data_dir.join(host_key::FILE_NAME).with_extension("pub"))?;
    let known_hosts = dir.join("known_hosts");
    fs::write(&known_hosts, format!("[{}]:{} {host_key}", ssh.ip(), ssh.port()))?;
    let signing_key =
        crate::keys::signing_keys(config)?.first().map(|key| key.public().to_string()).unwrap_or_default();
    let env = dir.join("env");
    let text = format!(
        "export NIX_SSHOPTS='-p {} -i {} -F none -o IdentitiesOnly=yes -o UserKnownHostsFile={}'\n\
         export DEMO_STORE=ssh-ng://nix@{}\n\
         export DEMO_SOCKET=unix://{}\n\
         export DEMO_KEY={signing_key}\n",
        ssh.port(),
        dir.join("client-key").display(),
        known_hosts.display(),
        ssh.ip(),
        ready.socket.display(),
    );
    fs::write(&env, text)?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "A node runs in {dir}. In another terminal:\n\n  \
         . {env}\n  \
         nix-build --store $DEMO_STORE <expression>            # build on it over ssh\n  \
         nix copy --to $DEMO_STORE <path>                      # upload\n  \
         nix copy --from $DEMO_STORE --option extra-trusted-public-keys $DEMO_KEY <path>\n  \
         nix build --eval-store auto --store $DEMO_SOCKET <installable>   # through its socket\n  \
         shoal status --data-dir {data}\n\n\
         Ctrl-C ends it{and}.",
        dir = dir.display(),
        env = env.display(),
        data = config.data_dir.display(),
        and = if kept { "" } else { " and removes the directory" },
    )?;
    Ok(out.flush()?)
}
