//! The binary cache of a node beside nginx on a static cache of the same paths, once of plain NARs and once of
//! compressed ones. All have as many workers as there are cores, and wrk has one thread on the same cores.

use std::time::Duration;

use anyhow::{Context, Result};
use shoal_store::{Options, Store};
use shoal_tests::machine::Remote;
use shoal_tests::web::Web;
use shoal_tests::{Machine, Nix, Node, Place};

use crate::Plan;
use crate::closure::Closure;
use crate::limits::thread_cpu_s;
use crate::report::{Bar, Report};
use crate::wrk::{Server, Wrk, ask};

const COPY_PATIENCE: Duration = Duration::from_secs(600);
const CONNECTIONS: [usize; 2] = [1, 16];
const SECONDS: f64 = 3.0;
/// NARs that are asked for as small ones.
const SMALL_BYTES_MAX: u64 = 1 << 20;
const MISSES: usize = 1000;
const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;

const HERE: &str = "127.0.0.1";

const SHOAL: &str = "shoal";
const NGINX: &str = "nginx";
const LIMIT: &str = "zstd itself";

/// Who serves the closure, and how long each is asked.
struct Contenders {
    wrk: Wrk,
    seconds: u32,
    shoal: Server,
    nginx_plain: Server,
    nginx_zstd: Server,
}

/// NARs that are asked for in turn.
struct Set {
    name: &'static str,
    /// Store paths with the bytes of their NARs.
    infos: Vec<(String, u64)>,
}

/// One server's form of a set.
struct Served {
    paths: Vec<String>,
    /// Bytes of the NARs, and of the answers' bodies.
    nar_bytes: f64,
    sent_bytes: f64,
}

pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let nix = Nix::newest();
    let closure = Closure::get(&nix, plan)?;
    report.note(format!("{} paths, {:.0} MiB of NAR: {}", closure.paths, closure.nar_mib, closure.kind));
    let node = filled(&nix, &closure, &[])?;
    let (plain, zstd) = (statics(&nix, &closure, "none")?, statics(&nix, &closure, "zstd")?);
    let (plain_web, zstd_web) = (Web::start_fast(plain.path(), HERE), Web::start_fast(zstd.path(), HERE));
    let web = |web: &Web| Server { who: NGINX, url: web.url(), pid: web.pid() };
    let contenders = Contenders {
        wrk: Wrk::get(),
        seconds: (SECONDS * plan.scale).ceil() as u32,
        shoal: Server { who: SHOAL, url: node.ready().http.clone(), pid: node.ready().pid },
        nginx_plain: web(&plain_web),
        nginx_zstd: web(&zstd_web),
    };
    for _ in 0..plan.reps {
        narinfos(&contenders, &closure, report)?;
        for set in sets(&closure)? {
            nars(&contenders, &set, report)?;
        }
    }
    hold_narinfos(report);
    hold_nars(report);
    Ok(())
}

/// A node that has the closure, and has had time to compress it.
pub fn filled(nix: &Nix, closure: &Closure, flags: &[&str]) -> Result<Node> {
    let client = Machine::new(nix);
    let mut node = Node::start_with(&[&client], flags);
    let copy = client.near("nix", &node).env("NIX_CLIENT_ROOT", &closure.root);
    let copy = copy.args(["copy", "--no-check-sigs", "--stdin", "--to", &client.store(&node, Remote::SshNg)]);
    copy.stdin(closure.stdin()?).patience(COPY_PATIENCE).ok();
    node.stop();
    let store = Store::open(&node.data_dir().join("store"), Options::default())?;
    // What an idle node does within a quarter of a minute.
    store.recompress(u64::MAX, &|| true)?;
    drop(store);
    node.start_again();
    Ok(node)
}

/// The closure as files of a binary cache.
pub fn statics(nix: &Nix, closure: &Closure, compression: &str) -> Result<Place> {
    let (client, place) = (Machine::new(nix), Place::new("f"));
    let to = format!("file://{}?compression={compression}", place.path().display());
    let copy = client.local("nix").env("NIX_CLIENT_ROOT", &closure.root);
    let copy = copy.args(["copy", "--no-check-sigs", "--stdin", "--to", &to]);
    copy.stdin(closure.stdin()?).patience(COPY_PATIENCE).ok();
    Ok(place)
}

fn hash_part(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.split('-').next().unwrap_or_default()
}

fn narinfos(contenders: &Contenders, closure: &Closure, report: &mut Report) -> Result<()> {
    let name = |hash_part: &str| format!("/{hash_part}.narinfo");
    let hits: Vec<String> = closure.infos.iter().map(|(path, _)| name(hash_part(path))).collect();
    let misses: Vec<String> = (0..MISSES).map(|number| name(&format!("{number:032}"))).collect();
    for (kind, paths, is_found) in [("hit", &hits, true), ("miss", &misses, false)] {
        for connections in CONNECTIONS {
            for server in [&contenders.shoal, &contenders.nginx_plain] {
                let load = contenders.wrk.run(server, paths, connections, contenders.seconds, is_found)?;
                let what = narinfo(kind, connections);
                report.add(&what, server.who, "req/s", load.requests / load.seconds)?;
                report.add(&format!("{what}, p50"), server.who, "us", load.p50_us)?;
                report.add(&format!("{what}, CPU"), server.who, "us/request", load.cpu_s / load.requests * 1e6)?;
            }
        }
    }
    Ok(())
}

fn narinfo(kind: &str, connections: usize) -> String {
    format!("narinfo {kind}, {connections} connection{}", if connections == 1 { "" } else { "s" })
}

fn hold_narinfos(report: &mut Report) {
    for kind in ["hit", "miss"] {
        let [one, many] = CONNECTIONS.map(|connections| narinfo(kind, connections));
        report.hold_value(&format!("{one}, p50"), SHOAL, Bar::AtMost(70.0));
        report.hold_value(&many, SHOAL, Bar::AtLeast(30_000.0));
        for what in [one, many] {
            report.hold_value(&format!("{what}, CPU"), SHOAL, Bar::AtMost(50.0));
        }
    }
}

/// A large tree, what nothing compresses, and all that is small.
fn sets(closure: &Closure) -> Result<[Set; 3]> {
    let named = |names: &[&str]| {
        let mut found = closure.infos.iter().filter(|(path, _)| names.iter().any(|name| path.ends_with(name)));
        found.next().cloned().map(|info| vec![info]).with_context(|| format!("no path is called {names:?}"))
    };
    let small = closure.infos.iter().filter(|(_, size)| *size < SMALL_BYTES_MAX).cloned().collect();
    Ok([
        Set { name: "tree", infos: named(&["-zig-0.17.1", "-compiler"])? },
        Set { name: "noise", infos: named(&["-huge"])? },
        Set { name: "small", infos: small },
    ])
}

/// What a server calls the NARs of a set in this form.
fn served(server: &Server, set: &Set, is_compressed: bool) -> Result<Served> {
    let mut served = Served { paths: Vec::new(), nar_bytes: 0.0, sent_bytes: 0.0 };
    for (path, size) in &set.infos {
        let narinfo = ask(server, "GET", &format!("/{}.narinfo", hash_part(path)))?;
        let narinfo = String::from_utf8_lossy(&narinfo.body).into_owned();
        let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).context("a narinfo without URL")?;
        // A node has both forms, whichever it names.
        let ours = if is_compressed { ".nar.zst" } else { ".nar" };
        let url = match (server.who, url.split_once(".nar")) {
            (SHOAL, Some((name, _))) => format!("/{name}{ours}"),
            _ => format!("/{url}"),
        };
        served.sent_bytes += ask(server, "HEAD", &url)?.content_length()? as f64;
        served.nar_bytes += *size as f64;
        served.paths.push(url);
    }
    Ok(served)
}

fn nars(contenders: &Contenders, set: &Set, report: &mut Report) -> Result<()> {
    let decoded = decoded(&contenders.shoal, set)?;
    for (form, nginx) in [("zstd", &contenders.nginx_zstd), ("plain", &contenders.nginx_plain)] {
        let sides = [&contenders.shoal, nginx];
        let all: Vec<Served> = sides.iter().map(|server| served(server, set, form == "zstd")).collect::<Result<_>>()?;
        for connections in CONNECTIONS {
            for (server, served) in sides.iter().zip(&all) {
                let load = contenders.wrk.run(server, &served.paths, connections, contenders.seconds, true)?;
                let what = nar(set.name, form, connections);
                let nar_bytes = load.bytes / served.sent_bytes * served.nar_bytes;
                report.add(&what, server.who, "NAR MiB/s", nar_bytes / MIB / load.seconds)?;
                report.add(&format!("{what}, CPU"), server.who, "s/GiB", load.cpu_s / (nar_bytes / GIB))?;
                if form == "plain" && server.who == SHOAL {
                    let cores = load.cpu_s / load.seconds;
                    report.add(&what, LIMIT, "NAR MiB/s", decoded * cores)?;
                }
            }
        }
    }
    let ratio = |served: Served| served.sent_bytes / served.nar_bytes;
    report.add(
        &format!("{}: sent of a NAR as zstd", set.name),
        SHOAL,
        "",
        ratio(served(&contenders.shoal, set, true)?),
    )?;
    report.add(
        &format!("{}: sent of a NAR as zstd", set.name),
        NGINX,
        "",
        ratio(served(&contenders.nginx_zstd, set, true)?),
    )
}

fn nar(set: &str, form: &str, connections: usize) -> String {
    format!("{set} as {form}, {connections} connection{}", if connections == 1 { "" } else { "s" })
}

/// MiB of NAR that one core decompresses in a second of what the server has stored.
fn decoded(server: &Server, set: &Set) -> Result<f64> {
    let frames: Vec<Vec<u8>> = served(server, set, true)?
        .paths
        .iter()
        .map(|path| Ok(ask(server, "GET", path)?.body))
        .collect::<Result<_>>()?;
    let mut decompressor = zstd::bulk::Decompressor::new()?;
    let (mut chunk, mut bytes) = (Vec::with_capacity(1 << 20), 0);
    let before = thread_cpu_s();
    for mut rest in frames.iter().map(Vec::as_slice) {
        while !rest.is_empty() {
            let len = zstd::zstd_safe::find_frame_compressed_size(rest);
            let len = len.map_err(|code| anyhow::anyhow!("no frame: {}", zstd::zstd_safe::get_error_name(code)))?;
            let (frame, after) = rest.split_at(len);
            bytes += decompressor.decompress_to_buffer(frame, &mut chunk)?;
            chunk.clear();
            rest = after;
        }
    }
    Ok(bytes as f64 / MIB / (thread_cpu_s() - before))
}

fn hold_nars(report: &mut Report) {
    for set in ["tree", "noise", "small"] {
        for connections in CONNECTIONS {
            let zstd = nar(set, "zstd", connections);
            report.hold_ratio(&zstd, SHOAL, NGINX, Bar::AtLeast(0.8));
            report.hold_ratio(&format!("{zstd}, CPU"), SHOAL, NGINX, Bar::AtMost(2.0));
            match set {
                "tree" => report.hold_ratio(&nar(set, "plain", connections), SHOAL, LIMIT, Bar::AtLeast(0.8)),
                "noise" => report.hold_ratio(&nar(set, "plain", connections), SHOAL, NGINX, Bar::AtLeast(0.8)),
                _ => {}
            }
        }
    }
}
