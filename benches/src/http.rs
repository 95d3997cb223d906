//! A stock client over HTTP: what it takes from a node beside what it takes from nginx with plain and with compressed
//! files, next door and behind a slow link; and what it puts there, beside the same over ssh-ng.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, bail};
use shoal_tests::machine::Remote;
use shoal_tests::web::Web;
use shoal_tests::{Cmd, Machine, Nix, Node, Place};

use crate::Plan;
use crate::closure::Closure;
use crate::link::{self, Link};
use crate::report::{Bar, Report};
use crate::serve::{filled, statics};

/// Of one copy; half a minute on a quiet machine over the slow link.
const COPY_PATIENCE: Duration = Duration::from_secs(900);
/// NAR bytes that are put with Nix's default compression, xz: a client compresses some MiB/s.
const XZ_BYTES: u64 = 32 << 20;
const LOOPBACK: &str = "127.0.0.1";
/// So that the far side of a link reaches it too.
const ANYWHERE: &str = "0.0.0.0";

const SHOAL: &str = "shoal";
const SSH: &str = "shoal ssh-ng";
const FILES: &str = "file://";
const PLAIN: &str = "nginx plain";
const ZSTD: &str = "nginx zstd";
const BEST: &str = "best of nginx";

const NEAR: &str = "pull on loopback";
const FAR: &str = "pull at 100 Mbit/s, 20 ms";
const PUT: &str = "put, not compressed";
const PUT_XZ: &str = "put as by default, xz";

pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let nix = Nix::newest();
    let closure = Closure::get(&nix, plan)?;
    report.note(format!("{} paths, {:.0} MiB of NAR: {}", closure.paths, closure.nar_mib, closure.kind));
    pulls(plan, &nix, &closure, report)?;
    let few = few(&closure);
    for _ in 0..plan.reps {
        put(&nix, &closure, report)?;
        put_few(&nix, &closure, &few, report)?;
    }
    report.hold_ratio(PUT, SHOAL, SSH, Bar::AtMost(1.1));
    report.hold_ratio(PUT_XZ, SHOAL, FILES, Bar::AtMost(1.1));
    Ok(())
}

fn pulls(plan: &Plan, nix: &Nix, closure: &Closure, report: &mut Report) -> Result<()> {
    let (plain, zstd) = (statics(nix, closure, "none")?, statics(nix, closure, "zstd")?);
    let link = match Link::start() {
        Ok(link) => Some(link),
        Err(why) => {
            report.note(format!("{FAR}: not measured: {why:#}"));
            None
        }
    };
    let ip = if link.is_some() { ANYWHERE } else { LOOPBACK };
    let node = filled(nix, closure, &["--http", &format!("{ip}:0")])?;
    let (plain, zstd) = (Web::start_fast(plain.path(), ip), Web::start_fast(zstd.path(), ip));
    let http = &node.ready().http;
    let mut servers = [(SHOAL, http.clone()), (PLAIN, plain.url()), (ZSTD, zstd.url())];
    for _ in 0..plan.reps {
        for (what, link) in [(NEAR, None), (FAR, link.as_ref())] {
            if what == FAR && link.is_none() {
                continue;
            }
            let mut best = f64::INFINITY;
            for (who, url) in &servers {
                let port = url.rsplit(':').next().unwrap_or_default();
                let host = if what == FAR { link::HERE } else { LOOPBACK };
                let seconds = pull(nix, closure, link, &format!("http://{host}:{port}"))?;
                report.add(what, who, "s", seconds)?;
                best = if *who == SHOAL { best } else { best.min(seconds) };
            }
            report.add(what, BEST, "s", best)?;
        }
        servers.rotate_left(1);
    }
    report.hold_ratio(NEAR, SHOAL, BEST, Bar::AtMost(1.05));
    report.hold_ratio(FAR, SHOAL, BEST, Bar::AtMost(1.05));
    Ok(())
}

/// Seconds of a copy into an empty root, by a client that remembers nothing.
fn pull(nix: &Nix, closure: &Closure, link: Option<&Link>, from: &str) -> Result<f64> {
    let (client, empty) = (Machine::new(nix), Place::new("e"));
    let to = format!("local?root={}", empty.path().display());
    let nix = nix.program("nix");
    let cmd = match link {
        Some(link) => link.beyond(&nix),
        None => Cmd::new(&nix),
    };
    let cmd = cmd.env("HOME", client.home()).env("NIX_CLIENT_ROOT", empty.path()).env("LC_ALL", "C.UTF-8");
    timed(cmd.args(["copy", "--no-check-sigs", "--stdin", "--from", from, "--to", &to]), closure.stdin()?)
}

fn timed(cmd: Cmd, stdin: Stdio) -> Result<f64> {
    // The file system's debts of the run before are not this run's.
    rustix::fs::sync();
    let finished = cmd.stdin(stdin).patience(COPY_PATIENCE).run();
    match finished.status.success() {
        true => Ok(finished.took.as_secs_f64()),
        false => bail!("{finished}"),
    }
}

/// Small paths that come to [`XZ_BYTES`].
fn few(closure: &Closure) -> String {
    let mut infos = closure.infos.clone();
    infos.sort_by_key(|(_, size)| *size);
    let mut left = XZ_BYTES;
    let mut fits = |size: u64| left.checked_sub(size).map(|rest| left = rest).is_some();
    infos.iter().filter(|(_, size)| fits(*size)).map(|(path, _)| format!("{path}\n")).collect()
}

/// A client with a token for a node that is empty.
fn writer(nix: &Nix) -> Result<(Machine, Node)> {
    let client = Machine::new(nix);
    let node = Node::start(&[&client]);
    let token = node.shoal("token create --role admin").ok();
    fs::write(client.path("netrc"), format!("machine 127.0.0.1 login any password {}\n", token.text()))?;
    Ok((client, node))
}

fn copy(client: &Machine, cmd: Cmd, closure: &Closure, to: &str, stdin: Stdio) -> Result<f64> {
    let cmd = cmd.env("NIX_CLIENT_ROOT", &closure.root).arg("--netrc-file").arg(client.path("netrc"));
    timed(cmd.args(["copy", "--no-check-sigs", "--stdin", "--to", to]), stdin)
}

fn put(nix: &Nix, closure: &Closure, report: &mut Report) -> Result<()> {
    let (client, node) = writer(nix)?;
    let to = format!("{}?compression=none", node.ready().http);
    report.add(PUT, SHOAL, "s", copy(&client, client.local("nix"), closure, &to, closure.stdin()?)?)?;
    let (client, node) = writer(nix)?;
    let to = client.store(&node, Remote::SshNg);
    report.add(PUT, SSH, "s", copy(&client, client.near("nix", &node), closure, &to, closure.stdin()?)?)
}

/// The client's own compression is most of it: the same to files shows how much.
fn put_few(nix: &Nix, closure: &Closure, few: &str, report: &mut Report) -> Result<()> {
    let (client, node) = writer(nix)?;
    let list = client.path("few");
    fs::write(&list, few)?;
    let stdin = || Ok::<_, anyhow::Error>(Stdio::from(fs::File::open(&list)?));
    let http = &node.ready().http;
    report.add(PUT_XZ, SHOAL, "s", copy(&client, client.local("nix"), closure, http, stdin()?)?)?;
    let place = Place::new("f");
    let to = format!("file://{}", place.path().display());
    report.add(PUT_XZ, FILES, "s", copy(&client, client.local("nix"), closure, &to, stdin()?)?)
}
