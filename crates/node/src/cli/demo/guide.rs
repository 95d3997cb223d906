//! What somebody who tries a demo is told, and the settings that a shell sources.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};

use super::member::Member;
use crate::cli::use_node::cache_url;
use crate::door::host_key;
use crate::serve::ready::Ready;
use crate::{files, keys};

/// Writes what clients need into `dir`, and says how to use it. `ready`: of each of the `members`.
pub fn announce(dir: &Path, kept: bool, members: &[Member], ready: &[Ready]) -> Result<()> {
    let (mut known_hosts, mut ssh_config) = (String::new(), String::new());
    let mut env = format!("export NIX_SSHOPTS='-F {}'\n", dir.join("ssh_config").display());
    for (number, (member, ready)) in (1..).zip(members.iter().zip(ready)) {
        let ssh = reached(ready.ssh.context("a demo needs its ssh door")?);
        let data = &member.config.data_dir;
        let host_key = fs::read_to_string(data.join(host_key::FILE_NAME).with_extension("pub"))?;
        write!(known_hosts, "[{}]:{} {host_key}", ssh.ip(), ssh.port())?;
        write!(ssh_config, "Host demo-{number}\n  HostName {}\n  Port {}\n", ssh.ip(), ssh.port())?;
        writeln!(env, "export DEMO_STORE_{number}=ssh-ng://demo-{number}")?;
        if let Some(http) = ready.http.map(reached) {
            let url = cache_url(ready.http_tls, &http.ip().to_string(), http.port());
            writeln!(env, "export DEMO_HTTP_{number}={url}")?;
        }
        writeln!(env, "export DEMO_DIR_{number}={}\nexport DEMO_PID_{number}={}", data.display(), ready.pid)?;
    }
    let first = ready.first().context("a demo needs a node")?;
    let config = members.first().context("a demo needs a node")?;
    let key = keys::signing_keys(&config.config)?.first().map(|key| key.public().to_string()).unwrap_or_default();
    write!(env, "export DEMO_STORE=$DEMO_STORE_1\nexport DEMO_SOCKET=unix://{}\n", first.socket.display())?;
    writeln!(env, "export DEMO_KEY={key}")?;
    let known_hosts_file = dir.join("known_hosts");
    write!(
        ssh_config,
        "Host demo-*\n  User nix\n  IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  \
         StrictHostKeyChecking yes\n",
        dir.join("client-key").display(),
        known_hosts_file.display(),
    )?;
    fs::write(known_hosts_file, known_hosts)?;
    fs::write(dir.join("ssh_config"), ssh_config)?;
    // Last, and whole: who waits for it finds all the rest.
    files::replace(&dir.join("env"), files::PUBLIC, env.as_bytes())?;
    let mut out = io::stdout().lock();
    out.write_all(text(dir, kept, ready).as_bytes())?;
    Ok(out.flush()?)
}

/// An address of this machine where it listens on all.
fn reached(listens: SocketAddr) -> SocketAddr {
    match listens.ip().is_unspecified() {
        true => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listens.port()),
        false => listens,
    }
}

fn text(dir: &Path, kept: bool, ready: &[Ready]) -> String {
    let last = ready.len();
    let is_cache = ready.last().is_some_and(|ready| ready.http.is_some());
    let from = if is_cache { format!("$DEMO_HTTP_{last}") } else { format!("$DEMO_STORE_{last}") };
    let names: Vec<&str> = ready.iter().map(|ready| ready.name.as_str()).collect();
    let what = match last {
        1 => "A node runs".to_owned(),
        _ => format!("{last} nodes ({}) run as one store", names.join(", ")),
    };
    let mut text = format!(
        "{what} in {dir}. In another terminal:\n\n  \
         . {dir}/env\n  \
         NIX_REMOTE=$DEMO_STORE nix-build <expression>        # builds on {first}\n  \
         nix copy --from {from} --option extra-trusted-public-keys $DEMO_KEY <path>    # comes from {name}\n  \
         nix copy --to $DEMO_STORE_{last} <path>                    # uploads\n  \
         nix build --eval-store auto --store $DEMO_SOCKET <installable>   # through a socket\n  \
         shoal status --data-dir $DEMO_DIR_1\n",
        dir = dir.display(),
        first = names[0],
        name = names[last - 1],
    );
    if last > 1 {
        text.push_str(
            "  shoal peers --data-dir $DEMO_DIR_1                   # who is there\n  \
             kill -9 $DEMO_PID_2                                  # see it in 'shoal peers', and fetch again\n",
        );
    }
    text + if kept { "\nCtrl-C ends it.\n" } else { "\nCtrl-C ends it and removes the directory.\n" }
}
