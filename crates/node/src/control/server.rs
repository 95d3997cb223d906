//! The node's side of the control socket: a thread that accepts, and one for each request.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use shoal_store::{GcAction, GcRequest, Store};
use shoal_wire::nix::base64;
use shoal_wire::nix::hash::Hash;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use super::builds::BuildControl;
use super::mesh::{MeshControl, demand_item};
use super::{LINE_BYTES_MAX, Reply, Request};
use crate::build::service::BuildService;
use crate::cli::{Exit, Failure};
use crate::cold::Cold;
use crate::door::{Hangup, Sessions};
use crate::mount::Mounts;
use crate::scrub::Scrubber;
use crate::serve::ready::Ready;
use crate::upstream::{CLIENT_BUDGET, Upstreams};

/// People and scripts ask a few questions at a time.
const REQUESTS_MAX: usize = 64;
/// A client that connects says at once what it wants.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// A pager may hold the answer for a while.
const REPLY_PATIENCE: Duration = Duration::from_secs(600);
/// After `accept` failed for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How often it is looked whether a mount is still wanted, and there.
const MOUNT_LOOK: Duration = Duration::from_millis(100);
/// Piece of a log in one line.
const LOG_PIECE_BYTES: usize = 64 << 10;

/// What requests are answered from.
pub struct NodeState {
    pub ready: Ready,
    pub dir: StoreDir,
    pub store: Store,
    pub builds: Arc<BuildService>,
    pub upstreams: Upstreams,
    pub sessions: Sessions,
    pub scrubber: Arc<Scrubber>,
    pub cold: Option<Arc<Cold>>,
    pub mounts: Arc<Mounts>,
    pub mesh: MeshControl,
    pub requests: Arc<BuildControl>,
    pub started: Instant,
}

/// Listens until dropped.
pub struct ControlSocket {
    path: PathBuf,
}

impl ControlSocket {
    /// Listens at `path`. The data directory is locked by this process, so a socket that is there is a dead one.
    pub fn open(path: &Path, state: NodeState) -> Result<ControlSocket> {
        let listening = || -> io::Result<UnixListener> {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = listening().with_context(|| format!("cannot listen at {}", path.display()))?;
        let state = Arc::new(state);
        thread::Builder::new().name("control".into()).spawn(move || accept(&listener, &state))?;
        Ok(ControlSocket { path: path.to_path_buf() })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The next start removes it.
        let _ = fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, state: &Arc<NodeState>) {
    let running = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a command");
                thread::sleep(ACCEPT_RETRY);
                continue;
            }
        };
        let place = Place::take(&running);
        let state = state.clone();
        let spawned = thread::Builder::new().name("command".into()).spawn(move || {
            if let Err(error) = serve(&stream, &state, place) {
                tracing::debug!(%error, "a command went away");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "cannot start a thread for a command");
        }
    }
}

/// One of [`REQUESTS_MAX`] places.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(running: &Arc<AtomicUsize>) -> Option<Place> {
        let place = Place(running.clone());
        (running.fetch_add(1, Ordering::AcqRel) < REQUESTS_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve(stream: &UnixStream, state: &NodeState, place: Option<Place>) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_PATIENCE))?;
    stream.set_write_timeout(Some(REPLY_PATIENCE))?;
    let mut out = io::BufWriter::new(stream);
    let mut line = Vec::new();
    BufReader::new(stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    let hangup = Hangup::default();
    let answered = match (place, serde_json::from_slice::<Request>(&line)) {
        (None, _) => Err(anyhow::anyhow!("the node answers {REQUESTS_MAX} commands already; try again")),
        (_, Err(_)) => Err(anyhow::anyhow!("the node is of another version of shoal and does not know this command")),
        (Some(_), Ok(request)) => {
            let is_live = request.is_live();
            if is_live {
                watch_for_end(stream, &hangup)?;
            }
            state.answer(&request, &hangup, &mut |item| {
                send(&mut out, &Reply::Item(item))?;
                if is_live {
                    out.flush()?;
                }
                Ok(())
            })
        }
    };
    let last = match answered {
        Ok(()) => Reply::End,
        Err(error) if Exit::of(&error) == Exit::TryAgain => Reply::Busy(format!("{error:#}")),
        Err(error) => Reply::Error(format!("{error:#}")),
    };
    send(&mut out, &last)?;
    out.flush()?;
    // Whoever watches for the client's end has nothing to watch for any more; the client may have gone first.
    let _ = stream.shutdown(Shutdown::Both);
    Ok(())
}

/// Fires when the client goes: it says nothing after its request.
fn watch_for_end(stream: &UnixStream, hangup: &Hangup) -> io::Result<()> {
    stream.set_read_timeout(None)?;
    let (mut stream, hangup) = (stream.try_clone()?, hangup.clone());
    thread::Builder::new().name("command's end".into()).spawn(move || {
        let _ = stream.read(&mut [0]);
        hangup.fire();
    })?;
    Ok(())
}

fn send(out: &mut impl Write, reply: &Reply) -> io::Result<()> {
    serde_json::to_writer(&mut *out, reply)?;
    out.write_all(b"\n")
}

pub(super) type OnItem<'a> = &'a mut dyn FnMut(Value) -> Result<()>;

impl NodeState {
    fn answer(&self, request: &Request, hangup: &Hangup, on_item: OnItem<'_>) -> Result<()> {
        match request {
            Request::Status => on_item(self.status()?),
            Request::Paths { paths } => self.paths(paths, on_item),
            Request::Builds => {
                self.builds(on_item)?;
                self.requests.list(on_item)
            }
            Request::Explain { what } => self.explain(what.as_deref(), on_item),
            Request::Trace { what } => self.trace(what.as_deref(), on_item),
            Request::Build { order, detach: true } => self.requests.detach(order, on_item),
            Request::Build { order, detach: false } => self.requests.build(order, hangup.clone(), on_item),
            Request::Cancel { what } => self.requests.cancel(what),
            Request::Log { path, follow } => self.log(path, follow.then_some(hangup), on_item),
            Request::Usage { paths, closure } => on_item(self.usage(paths, *closure)?),
            Request::Gc { dry_run, max_freed } => on_item(self.gc(*dry_run, *max_freed)?),
            Request::Pins => self.pins(on_item),
            Request::Pin { paths, name, ttl_seconds } => self.pin(paths, name.as_deref(), *ttl_seconds, on_item),
            Request::Unpin { names } => self.unpin(names),
            Request::Scrub { rate } => self.scrub(*rate, on_item),
            Request::Cold { restore, quick } => self.cold(*restore, *quick, on_item),
            Request::Mount { dir, overlay } => self.mount(dir, *overlay, hangup, on_item),
            Request::Peers
            | Request::MeshInvite { .. }
            | Request::MeshJoin { .. }
            | Request::MeshLeave
            | Request::MeshRevoke { .. }
            | Request::Drain => self.mesh.answer(request, on_item),
        }
    }

    fn status(&self) -> Result<Value> {
        let mut status = serde_json::to_value(&self.ready)?;
        let stats = self.store.stats()?;
        let builds = self.builds.overview();
        status["version"] = env!("CARGO_PKG_VERSION").into();
        status["uptime_seconds"] = self.started.elapsed().as_secs().into();
        status["sessions"] = self.sessions.running().into();
        status["store"] = json!({
            "paths": stats.paths,
            "chunks": stats.chunks,
            "live_bytes": stats.live_bytes,
            "disk_bytes": stats.segment_bytes,
            "damaged": stats.damaged,
        });
        status["builds"] = json!({
            "running": builds.running.iter().map(|build| self.dir.print(&build.drv_path)).collect::<Vec<_>>(),
            "waiting": builds.waiting,
            "max_jobs": builds.max_jobs,
            "draining": builds.draining,
            "demand": demand_item(self.builds.wanted().demand()),
        });
        status["upstreams"] = serde_json::to_value(self.upstreams.status())?;
        status["cold"] = serde_json::to_value(self.cold.as_ref().map(|cold| cold.status()))?;
        status["mounts"] = self.mounts.status();
        status["inputs"] = self.builds.inputs().status();
        status["membership"] = self.mesh.summary();
        status["last_scrub"] = serde_json::to_value(self.scrubber.last())?;
        let (downloading, waiting) = self.upstreams.counts();
        status["fetches"] = json!({ "downloading": downloading, "waiting": waiting });
        Ok(status)
    }

    /// A path as people write it: in full, or its base name.
    pub(super) fn parse(&self, text: &str) -> Result<StorePath> {
        match text.contains('/') {
            true => Ok(self.dir.parse_prefix(text)?.0),
            false => Ok(StorePath::from_base_name(text)?),
        }
    }

    fn paths(&self, named: &[String], on_item: OnItem<'_>) -> Result<()> {
        let paths = match named {
            [] => self.store.paths()?,
            named => named.iter().map(|text| self.parse(text)).collect::<Result<_>>()?,
        };
        let pins = self.store.pinned()?;
        for path in paths {
            match self.store.path_info(&path)? {
                Some(info) => {
                    let mut item = self.path_item(&info);
                    let names = pins.iter().filter(|pin| pin.paths.binary_search(&path).is_ok()).map(|pin| &pin.name);
                    item["pins"] = json!(names.collect::<Vec<_>>());
                    if !named.is_empty() {
                        let own = std::iter::once(self.ready.name.clone());
                        item["nodes"] = json!(own.chain(self.holders(&path)).collect::<Vec<_>>());
                    }
                    on_item(item)?;
                }
                // Deleted since the list was made.
                None if named.is_empty() => {}
                None => match self.upstreams.in_mesh([&path]).pop() {
                    Some(offer) => {
                        let mut item = self.path_item(&offer.info);
                        item["nodes"] = json!(self.holders(&path));
                        on_item(item)?;
                    }
                    None => bail!("{} is not valid here, nor at another node", self.dir.print(&path)),
                },
            }
        }
        Ok(())
    }

    /// Names of other nodes that have a path.
    fn holders(&self, path: &StorePath) -> Vec<String> {
        let neighbours = self.upstreams.neighbours();
        let found = neighbours.find(&[path.hash_part()]).pop().flatten();
        found.iter().flat_map(|held| &held.holders).map(|node| neighbours.name(node)).collect()
    }

    /// In the words of `nix path-info --json`.
    fn path_item(&self, info: &PathInfo) -> Value {
        json!({
            "path": self.dir.print(&info.path),
            "narHash": Hash::sha256(info.nar_hash).to_sri(),
            "narSize": info.nar_size,
            "references": info.references.iter().map(|path| self.dir.print(path)).collect::<Vec<_>>(),
            "deriver": info.deriver.as_ref().map(|path| self.dir.print(path)),
            "registrationTime": info.registration_time,
            "ultimate": info.ultimate,
            "signatures": info.signatures.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "ca": info.ca.as_ref().map(ToString::to_string),
        })
    }

    fn builds(&self, on_item: OnItem<'_>) -> Result<()> {
        let overview = self.builds.overview();
        for build in overview.running {
            let drv_path = self.dir.print(&build.drv_path);
            on_item(json!({ "state": "running", "seconds": build.seconds, "drv_path": drv_path, "at": build.at }))?;
        }
        for build in overview.recent {
            let state = if build.failure.is_some() { "failed" } else { "built" };
            on_item(json!({
                "state": state,
                "seconds": build.seconds,
                "drv_path": self.dir.print(&build.drv_path),
                "ended": build.ended,
                "failure": build.failure,
            }))?;
        }
        Ok(())
    }

    /// With `follow` also of a build that runs, until it ends or `follow` fires.
    fn log(&self, text: &str, follow: Option<&Hangup>, on_item: OnItem<'_>) -> Result<()> {
        let path = self.parse(text)?;
        let mut derivations = vec![path.clone()];
        if !path.is_derivation() {
            derivations = match self.store.path_info(&path)? {
                Some(info) => info.deriver.into_iter().collect(),
                // Another node built it and has it, or the bucket.
                None => {
                    let offers = self.upstreams.offers(&BTreeSet::from([path.clone()]), CLIENT_BUDGET);
                    offers.iter().filter_map(|offer| offer.info.deriver.clone()).collect()
                }
            };
            derivations.extend(self.store.valid_derivers(&path)?);
        }
        let asked = derivations.clone();
        for (derivation, hangup) in asked.iter().flat_map(|derivation| follow.map(|hangup| (derivation, hangup))) {
            let line = |line: &[u8]| on_item(base64::encode(&[line, b"\n"].concat()).into());
            if self.requests.follow(derivation, hangup, line)? {
                return Ok(());
            }
        }
        for derivation in derivations {
            let Some(mut log) = self.store.log(&derivation)? else { continue };
            loop {
                let mut piece = Vec::new();
                log.by_ref().take(LOG_PIECE_BYTES as u64).read_to_end(&mut piece)?;
                if piece.is_empty() {
                    return Ok(());
                }
                on_item(base64::encode(&piece).into())?;
            }
        }
        for derivation in &asked {
            if let Some(log) = self.upstreams.log(derivation, CLIENT_BUDGET) {
                return log.chunks(LOG_PIECE_BYTES).try_for_each(|piece| on_item(base64::encode(piece).into()));
            }
        }
        bail!("no log of {} is kept here, at another node or in a cache", self.dir.print(&path))
    }

    fn usage(&self, named: &[String], closure: bool) -> Result<Value> {
        let mut paths = named.iter().map(|text| self.parse(text)).collect::<Result<Vec<_>>>()?;
        if let Some(path) = paths.iter().find(|path| !self.store.is_valid(path).unwrap_or(false)) {
            bail!("{} is not valid here", self.dir.print(path));
        }
        if closure {
            paths = self.store.closure(&paths)?;
        }
        let usage = if named.is_empty() { self.store.usage()? } else { self.store.usage_of(&paths)? };
        Ok(json!({
            "paths": usage.paths,
            "nar_bytes": usage.nar_bytes,
            "chunks": usage.chunks,
            "unique_bytes": usage.unique_bytes,
            "stored_bytes": usage.stored_bytes,
            "saved_by_chunking_bytes": usage.nar_bytes as i64 - usage.unique_bytes as i64,
            "saved_by_compression_bytes": usage.unique_bytes as i64 - usage.stored_bytes as i64,
        }))
    }

    fn scrub(&self, rate: Option<u64>, on_item: OnItem<'_>) -> Result<()> {
        let scrubbed = self.scrubber.run_now(rate, |progress| on_item(json!({ "progress": progress })).is_ok());
        let busy = || Failure::new(Exit::TryAgain, "somebody scrubs the store already; wait for that to end");
        on_item(json!({ "report": scrubbed.ok_or_else(busy)?? }))
    }

    /// Until the command goes, or somebody else unmounts it.
    fn mount(&self, dir: &Path, is_overlay: bool, hangup: &Hangup, on_item: OnItem<'_>) -> Result<()> {
        self.mounts.mount(dir, is_overlay)?;
        let told = on_item(json!({ "dir": dir }));
        while told.is_ok() && !hangup.is_gone() && self.mounts.is_mounted(dir) {
            thread::park_timeout(MOUNT_LOOK);
        }
        self.mounts.unmount(dir).and(told)
    }

    fn gc(&self, dry_run: bool, max_freed: Option<u64>) -> Result<Value> {
        let mut request = GcRequest::new(GcAction::DeleteDead);
        if let Some(max_freed) = max_freed {
            request.max_freed = max_freed;
        }
        let last_copies = || self.cold.as_ref().map(|cold| cold.last_copies_kept()).unwrap_or_default();
        let (before, _) = last_copies();
        let report = if dry_run { self.store.plan(&request)? } else { self.builds.collect(&request)? };
        let paths: Vec<String> = report.paths.iter().map(|path| self.dir.print(path)).collect();
        let mut told = json!({ "paths": paths, "freed_bytes": report.freed });
        let (after, why) = last_copies();
        if after > before {
            told["kept_last_copies"] = json!({ "paths": after - before, "why": why });
        }
        Ok(told)
    }
}
