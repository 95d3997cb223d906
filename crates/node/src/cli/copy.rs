//! `shoal push` and `shoal pull`: copies between this machine's Nix store and a node.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use shoal_wire::nix::base64;
use shoal_wire::nix::store_path::StorePath;

use super::use_node::{cache_url, running};
use super::{Exit, Failure, Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
use crate::config::detect::{cache_dir, host_name};
use crate::config::units::size_text;
use crate::copy::local::LocalStore;
use crate::copy::remote::{Remote, RemoteError};
use crate::copy::{self, Progress, Report};
use crate::netrc::Netrc;
use crate::upstream::Authorities;

/// Where Nix has its logins.
const NETRC: &str = "/etc/nix/netrc";
/// A token is a line, and a netrc a few.
const SECRET_BYTES_MAX: u64 = 1 << 20;
/// How often progress is shown anew.
const REFRESH: Duration = Duration::from_millis(100);

/// The two ends of a copy.
#[derive(Args)]
pub struct Ends {
    /// The node's HTTP address, like http://node:8080 [default: the node that runs in --data-dir]
    #[arg(long, value_name = "URL")]
    node: Option<String>,
    /// The Nix store: the directory it is rooted in, or as in NIX_REMOTE [default: the one that Nix uses]
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// Show this file's token to the node
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Without a token: show the node's login in this file [default: /etc/nix/netrc]
    #[arg(long, value_name = "FILE")]
    netrc_file: Option<PathBuf>,
    /// Check https with the certificates in this PEM file [default: the machine's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Push {
    /// Store paths, or links that lead to some
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<String>,
    /// Only these paths and not what they refer to
    #[arg(long)]
    no_closure: bool,
    #[command(flatten)]
    ends: Ends,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Args)]
pub struct Pull {
    /// Store paths
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<String>,
    /// Take also what no key has signed that this machine's Nix trusts; for users that it trusts
    #[arg(long)]
    no_check_sigs: bool,
    #[command(flatten)]
    ends: Ends,
    #[command(flatten)]
    read: ReadArgs,
}

impl Ends {
    pub fn local(&self) -> LocalStore {
        LocalStore::find(self.store.as_deref(), |name| std::env::var(name).ok())
    }

    pub fn remote(&self, global: &Global) -> Result<Remote> {
        let url = match &self.node {
            Some(url) => url.clone(),
            None => {
                let ready = running(&global.load(ConfigFlags::default())?.config)?;
                let http = ready.http.context("the node has no HTTP port (it was started with --http none)")?;
                match ready.http_tls {
                    // A certificate is for names.
                    true => cache_url(true, &host_name(), http.port()),
                    false => cache_url(false, &reachable(http).to_string(), http.port()),
                }
            }
        };
        let unreadable = |file: &Path| format!("cannot read the certificates in {}", file.display());
        let authorities = Authorities::find(self.ca_file.as_deref())
            .with_context(|| unreadable(self.ca_file.as_deref().unwrap_or(Path::new(""))))?;
        Ok(Remote::new(&url, self.authorization(&url)?, &authorities))
    }

    /// The header that says who asks.
    fn authorization(&self, url: &str) -> Result<Option<String>> {
        if let Some(file) = &self.token_file {
            return Ok(Some(format!("Bearer {}", secret(file)?.trim())));
        }
        let netrc = match &self.netrc_file {
            Some(file) => secret(file)?,
            // It may not be there, or not for this user.
            None => fs::read_to_string(NETRC).unwrap_or_default(),
        };
        let netrc = Netrc::parse(&netrc);
        let login = netrc.login(host(url), None);
        Ok(login.map(|(user, password)| format!("Basic {}", base64::encode(format!("{user}:{password}").as_bytes()))))
    }
}

/// The address of this machine that connections to `listening` arrive at.
fn reachable(listening: SocketAddr) -> IpAddr {
    match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// The host of a URL, without brackets.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match authority.strip_prefix('[') {
        Some(literal) => literal.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn secret(file: &Path) -> Result<String> {
    let read = || {
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(fs::File::open(file)?, SECRET_BYTES_MAX), &mut text)?;
        io::Result::Ok(text)
    };
    read().with_context(|| format!("cannot read {}", file.display()))
}

impl Push {
    pub fn run(&self, global: &Global) -> Outcome {
        let (local, remote) = (self.ends.local(), self.ends.remote(global)?);
        let paths = self.paths.iter().map(|path| copy::store_path(&local.dir, path));
        let paths: Vec<StorePath> = paths.collect::<Result<_>>()?;
        let shown = Shown::new("pushed");
        let pushed = copy::push::push(&local, &remote, &paths, !self.no_closure, &shown);
        shown.end();
        report(&pushed.map_err(with_exit)?, "pushed", self.read)
    }
}

impl Pull {
    pub fn run(&self, global: &Global) -> Outcome {
        let (local, remote) = (self.ends.local(), self.ends.remote(global)?);
        let paths = self.paths.iter().map(|path| copy::store_path(&local.dir, path));
        let paths: Vec<StorePath> = paths.collect::<Result<_>>()?;
        let shown = Shown::new("pulled");
        let pull = copy::pull::Pull {
            local: &local,
            remote: &remote,
            spool_dir: &cache_dir(),
            check_sigs: !self.no_check_sigs,
            progress: &shown,
        };
        let pulled = pull.run(&paths);
        shown.end();
        report(&pulled.map_err(with_exit)?, "pulled", self.read)
    }
}

/// What a copy came to, for people or for programs.
fn report(report: &Report, verb: &str, read: ReadArgs) -> Outcome {
    if read.json {
        return Ok(output::json(report)?);
    }
    let mut out = io::stdout().lock();
    for path in &report.paths {
        writeln!(out, "{path}")?;
    }
    writeln!(
        out,
        "{verb} {} paths, {} were there; {} of {} chunks moved, {} for {}",
        report.paths.len(),
        report.paths_present,
        report.chunks_moved,
        report.chunks,
        size_text(report.moved_bytes),
        size_text(report.nar_bytes)
    )?;
    Ok(())
}

/// Gives what the node did not do the exit code that scripts know it by.
pub fn with_exit(error: anyhow::Error) -> anyhow::Error {
    let exit = error.chain().find_map(|cause| match RemoteError::within(cause)? {
        RemoteError::Unreachable { .. } => Some(Exit::Unreachable),
        RemoteError::Failed { status: 408 | 429 | 503, .. } => Some(Exit::TryAgain),
        _ => None,
    });
    match exit {
        Some(exit) => Failure::new(exit, format!("{error:#}")).into(),
        None => error,
    }
}

/// Shows on a terminal how far a copy is, and nowhere else.
pub struct Shown {
    verb: &'static str,
    on: bool,
    total: AtomicU64,
    passed: AtomicU64,
    last: Mutex<Option<Instant>>,
}

impl Shown {
    pub fn new(verb: &'static str) -> Shown {
        Shown {
            verb,
            on: io::stderr().is_terminal(),
            total: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            last: Mutex::default(),
        }
    }

    /// Clears the line.
    pub fn end(&self) {
        if self.on {
            // A terminal that is gone needs no clearing.
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Progress for Shown {
    fn begins(&self, paths: usize, nar_bytes: u64) {
        self.total.store(nar_bytes, Ordering::Relaxed);
        if self.on && paths > 0 {
            let _ = write!(io::stderr(), "\r\x1b[K{paths} paths, {}", size_text(nar_bytes));
        }
    }

    fn passed(&self, nar_bytes: u64) {
        let passed = self.passed.fetch_add(nar_bytes, Ordering::Relaxed) + nar_bytes;
        if !self.on {
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= REFRESH) {
            *last = Some(Instant::now());
            let total = self.total.load(Ordering::Relaxed);
            let _ = write!(io::stderr(), "\r\x1b[K{} of {} {}", size_text(passed), size_text(total), self.verb);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_urls() {
        for url in ["http://node", "http://node:8080", "https://me@node:1/x?y", "http://node/"] {
            assert_eq!(host(url), "node", "{url}");
        }
        assert_eq!(host("http://[::1]:8080/"), "::1");
    }

    #[test]
    fn exit_codes_tell_whether_to_try_again() {
        let url = || "http://node".to_owned();
        let exit = |error: anyhow::Error| {
            let error = with_exit(error.context("more"));
            error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map(|failure| failure.exit)
        };
        let unreachable = || RemoteError::Unreachable { url: url(), text: "refused".into() };
        assert_eq!(exit(unreachable().into()), Some(Exit::Unreachable));
        assert_eq!(exit(io::Error::from(unreachable()).into()), Some(Exit::Unreachable));
        let failed = |status| RemoteError::Failed { url: url(), status, text: "busy".into() };
        assert_eq!(exit(failed(503).into()), Some(Exit::TryAgain));
        assert_eq!(exit(failed(507).into()), None);
    }
}
