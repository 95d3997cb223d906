//! Starts a node, keeps it running, and stops it.
//!
//! Order of a start: data directory locked, keys, store, builds, doors, control socket; then the node says that it is
//! ready. Order of a stop: no new clients, running builds end (or the wait does), clients are hung up on. A build that
//! is cut off by the stop goes on under its supervisor, and the next start takes it up.

use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shoal_grid::can_run::Machine;
use shoal_mesh::handle::Mesh;
use shoal_store::Store;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::{PublicKey, TrustedKeys};
use shoal_wire::nix::store_path::StoreDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::build::remote::{self, Grid};
use crate::build::service::{self, BuildService, Defaults};
use crate::cold::{Cold, LastCopies, Means, Signers, Writer};
use crate::config::{Config, HttpRead};
use crate::control;
use crate::control::builds::BuildControl;
use crate::control::mesh::MeshControl;
use crate::control::server::{ControlSocket, NodeState};
use crate::door::{AuthorizedKeys, SESSIONS_MAX, Sessions, SshDoor, SshOptions, UnixDoor, host_key};
use crate::http::put;
use crate::http::tls::Identity;
use crate::http::{Cache, HttpOptions, HttpServer, Limits};
use crate::inputs::Inputs;
use crate::mesh::seek::{self, Card};
use crate::mesh::{self, Opened, departure, load, place};
use crate::mount::{Mounts, NodeSource};
use crate::neighbours::Neighbours;
use crate::neighbours::orders::Orders;
use crate::scrub::Scrubber;
use crate::session::deposit::Deposits;
use crate::session::{Services, SessionHost};
use crate::tokens::{self, Tokens};
use crate::trees::Trees;
use crate::upstream::{Authorities, HEDGE, Location, Options, Patience, Upstreams};
use crate::{clients, keys, logging};
use passed::Passed;
use ready::{Ready, ReadyFile};

mod cold;
pub mod lock;
pub mod notify;
pub mod passed;
pub mod quota;
pub mod ready;
pub mod settle;

/// Bridges between doors and sessions copy bytes and encrypt; more threads than this only take turns.
const RUNTIME_THREADS_MAX: usize = 4;
/// After the builds ended, clients hear of it and go. Who stays longer has nothing to wait for.
const SESSION_GRACE: Duration = Duration::from_secs(5);
/// What still runs on threads when everything else has ended may take this long.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How often uploads that wait are looked through; they wait for an hour.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
const SESSION_POLL: Duration = Duration::from_millis(20);

/// Told where the node listens, and how many SSH keys may use it where that is known.
pub type OnReady<'a> = Box<dyn FnOnce(&Ready, Option<usize>) -> Result<()> + 'a>;

/// What to run, and whom to tell.
pub struct Start<'a> {
    pub config: Config,
    pub verbose: u8,
    pub coloured: bool,
    /// Reads the configuration again, for SIGHUP.
    pub reload: Box<dyn Fn() -> Result<Config> + 'a>,
    /// Called once, when everything listens. The number: SSH keys let in because this is the first start.
    pub on_ready: OnReady<'a>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Stopped,
    /// The node is to start again, in another mesh than it was in.
    Restart,
}

/// Runs a node until it is told to stop.
pub fn run(start: Start<'_>) -> Result<End> {
    logging::start(&start.config.log, start.verbose, start.coloured);
    let runtime = runtime()?;
    // Before anything is told, so that no signal from now on goes unheard.
    let mut signals = runtime.block_on(async { Signals::new() })?;
    let config = &start.config;
    let passed = Passed::take(config)?;
    let _lock = lock::lock(&config.data_dir)?;
    ready::remove_stale(&config.data_dir)?;
    let imported = clients::import(&config.authorized_keys)?;
    let marks = quota::Watermarks::of(config)?;
    let node = runtime.block_on(Node::open(config, marks))?;
    let doors = runtime.block_on(Doors::open(config, &node, passed))?;
    let ready = doors.ready(config, &node)?;
    let scrubber = node.scrubber(config);
    let restart = Arc::new(Notify::new());
    let members = node.mesh_control(config, runtime.handle(), &restart);
    let state = node.state(ready.clone(), &doors, scrubber.clone(), members);
    let control = ControlSocket::open(&control::socket(&config.data_dir), state)?;
    if let Some(dir) = &config.mount {
        node.mounts.mount_to_keep(dir, config.mount_overlay, &config.data_dir, config.mount_keep)?;
    }
    let ready_file = ReadyFile::write(&config.data_dir, &ready).context("cannot write ready.json")?;
    (start.on_ready)(&ready, imported)?;
    notify::notify("READY=1");
    tracing::info!(name = %ready.name, ssh = ready.ssh.map(tracing::field::display), http = ready.http.map(tracing::field::display), socket = %ready.socket.display(), "ready");

    runtime.spawn(quota::watch(node.store.clone(), node.builds.clone(), node.mounts.clone(), marks));
    let http = doors.http.as_ref().map(HttpServer::metrics);
    runtime.spawn(settle::watch(node.store.clone(), node.builds.clone(), doors.sessions(), http));
    node.take_part(config, &runtime, &ready);

    scrub_by_schedule(&scrubber, config.scrub_interval)?;
    let writer = node.write_behind(config)?;

    let mut current = config.clone();
    let end = runtime.block_on(async {
        loop {
            let wish = tokio::select! {
                wish = signals.next() => wish,
                () = restart.notified() => break End::Restart,
            };
            if wish == Wish::Stop {
                break End::Stopped;
            }
            notify::notify("RELOADING=1");
            reload(&mut current, &*start.reload, start.verbose, &doors);
            notify::notify("READY=1");
        }
    });
    notify::notify(if end == End::Restart { "RELOADING=1" } else { "STOPPING=1" });
    scrubber.stop();
    drop(ready_file);
    doors.stop_accepting();
    // What runs at a restart goes on under its supervisors, and is taken up again.
    let patience = if end == End::Restart { Duration::ZERO } else { config.drain_timeout };
    runtime.block_on(drain(&node.builds, patience, &doors, &mut signals));
    drop(control);
    node.mounts.stop();
    doors.close();
    // What builds needed to their end may have been there.
    node.cold.iter().for_each(|cold| cold.stop());
    drop(writer);
    if let Some(mesh) = node.neighbours.mesh() {
        runtime.block_on(mesh.stop());
    }
    // Downloads and other work that waits for others is not waited for.
    runtime.shutdown_timeout(STOP_PATIENCE);
    tracing::info!("stopped");
    Ok(end)
}

fn runtime() -> Result<Runtime> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(RUNTIME_THREADS_MAX);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).thread_name("door").enable_all().build().context("cannot start the runtime")
}

/// Store and builds of a node, without its doors.
struct Node {
    dir: StoreDir,
    store: Store,
    builds: Arc<BuildService>,
    neighbours: Neighbours,
    upstreams: Upstreams,
    mounts: Arc<Mounts>,
    cold: Option<Arc<Cold>>,
}

impl Node {
    async fn open(config: &Config, marks: quota::Watermarks) -> Result<Node> {
        let place = place::find(config).await?;
        let dir = StoreDir::default();
        let store = Store::open(&config.data_dir.join("store"), marks.store_options())
            .with_context(|| format!("cannot open the store in {}", config.data_dir.display()))?;
        let trees = Trees::open(store.clone(), &config.data_dir)?;
        let opened = mesh::open(config, &store, place).await?;
        let neighbours = opened.as_ref().map(|opened| opened.neighbours.clone()).unwrap_or_default();
        let source = Arc::new(NodeSource::new(store.clone(), neighbours.clone(), marks.read_bytes_max()));
        let inputs = Arc::new(Inputs::new(config.inputs, trees, source.clone(), &config.data_dir));
        let mounts = Mounts::new(store.clone(), source, inputs.views().cloned(), config.mount.is_some())?;
        let builds = BuildService::start(store.clone(), dir.clone(), inputs, builds_config(config)?)?;
        let cold = cold::open(config)?;
        let options = upstream_options(config, cold.clone())?;
        let upstreams = Upstreams::open(store.clone(), dir.clone(), builds.derivations(), neighbours.clone(), options);
        if let Some(Opened { mesh, orders, host, .. }) = opened {
            if let Some(cold) = cold.clone().filter(|_| config.cold_last_copies) {
                let signers = Signers::new(dir.clone(), &keys::signing_keys(config)?);
                mesh.rely_on(Arc::new(LastCopies::new(cold, store.clone(), signers)));
            }
            let runtime = Handle::current();
            let (neighbours, upstreams) = (neighbours.clone(), upstreams.clone());
            builds.join_grid(Grid {
                neighbours: neighbours.clone(),
                upstreams: upstreams.clone(),
                runtime: runtime.clone(),
            });
            host.set(&builds);
            let copies = Orders {
                neighbours: neighbours.clone(),
                upstreams: upstreams.clone(),
                store: store.clone(),
                mesh,
                runtime,
            };
            copies.start(orders).context("cannot start a thread")?;
        }
        Ok(Node { dir, store, builds, neighbours, upstreams, mounts, cold })
    }

    fn mesh_control(&self, config: &Config, runtime: &Handle, restart: &Arc<Notify>) -> MeshControl {
        MeshControl::new(config, self.neighbours.clone(), self.builds.clone(), runtime.clone(), restart.clone())
    }

    /// What this node does for its mesh by itself, for as long as the runtime is there.
    fn take_part(&self, config: &Config, runtime: &Runtime, ready: &Ready) {
        let Some(mesh) = self.neighbours.mesh() else { return };
        runtime.spawn(load::tell(mesh.clone(), self.builds.clone(), config.data_dir.clone()));
        runtime.spawn(departure::obey(mesh.clone(), self.builds.clone()));
        runtime.spawn(remote::keep_in_step(self.builds.clone(), mesh.clone()));
        runtime.spawn(remote::compare_notes(self.builds.clone(), mesh.clone()));
        runtime.spawn(mesh::stay_certified(mesh.clone()));
        if config.mdns {
            runtime.spawn(seek::nearby(mesh.clone()));
        }
        runtime.spawn(seek::seek(mesh.clone(), config.peer_dns.clone(), ready.http.map(|http| http.port())));
    }

    fn scrubber(&self, config: &Config) -> Arc<Scrubber> {
        let (store, upstreams, dir) = (self.store.clone(), self.upstreams.clone(), self.dir.clone());
        Arc::new(Scrubber::new(store, upstreams, dir, &config.data_dir, config.scrub_rate))
    }

    /// Writes to the bucket what the store has, where there is one that may be written to.
    fn write_behind(&self, config: &Config) -> Result<Option<Writer>> {
        let Some(cold) = self.cold.clone().filter(|_| !config.cold_read_only) else { return Ok(None) };
        let (store, dir, neighbours) = (self.store.clone(), self.dir.clone(), self.neighbours.clone());
        let keys = keys::signing_keys(config)?;
        let (upstreams, rate) = (self.upstreams.clone(), config.cold_upload_rate);
        let believes = Box::new(move |info: &PathInfo| upstreams.believes(info));
        Writer::start(Means { cold, store, dir, neighbours, keys, believes, rate }).map(Some)
    }

    fn state(&self, ready: Ready, doors: &Doors, scrubber: Arc<Scrubber>, mesh: MeshControl) -> NodeState {
        let Node { dir, store, builds, upstreams, mounts, cold, .. } = self;
        let requests = Arc::new(BuildControl::new(doors.services.clone()));
        let see_to: Weak<BuildControl> = Arc::downgrade(&requests);
        builds.stand_in_with(see_to);
        NodeState {
            ready,
            dir: dir.clone(),
            store: store.clone(),
            builds: builds.clone(),
            upstreams: upstreams.clone(),
            sessions: doors.sessions(),
            requests,
            scrubber,
            cold: cold.clone(),
            mounts: mounts.clone(),
            mesh,
            started: Instant::now(),
        }
    }
}

/// On a thread that nobody waits for: it may be in the middle of a download when the node stops.
fn scrub_by_schedule(scrubber: &Arc<Scrubber>, interval: Option<Duration>) -> Result<()> {
    if let Some(interval) = interval {
        let scrubber = scrubber.clone();
        let run = move || scrubber.run_by_schedule(interval);
        std::thread::Builder::new().name("scrub".into()).spawn(run).context("cannot start a thread")?;
    }
    Ok(())
}

/// How builds are metered and limited.
fn cgroups(config: &Config) -> shoal_sandbox::Cgroups {
    let cgroups = shoal_sandbox::cgroups().limited(config.build_memory_max);
    if cgroups.memory_max() != config.build_memory_max {
        tracing::warn!(
            "build-memory-max has no effect: there is no memory control group to be had; see 'shoal doctor'"
        );
    }
    cgroups
}

fn builds_config(config: &Config) -> Result<service::Config> {
    let systems = if config.no_build { Vec::new() } else { config.system.clone() };
    Ok(service::Config {
        data_dir: config.data_dir.clone(),
        machine: Machine { systems: systems.into_iter().collect(), features: config.feature.iter().cloned().collect() },
        max_jobs: config.max_jobs as usize,
        defaults: Defaults {
            keep_going: config.keep_going,
            keep_failed: config.keep_failed,
            timeout: config.timeout,
            max_silent: config.max_silent_time,
            max_log_bytes: config.max_build_log_size,
            cores: u64::from(config.cores),
        },
        sandbox_shell: config.sandbox_shell.clone(),
        cgroups: cgroups(config),
        memory_mib: crate::mesh::load::memory_mib().0,
        quorum: config.build_quorum,
        signing_keys: keys::signing_keys(config)?.into_iter().map(Arc::new).collect(),
    })
}

/// Keys whose signatures make a path believable: the configured ones and the node's own.
fn trusted_keys(config: &Config) -> Result<TrustedKeys> {
    let mut trusted = TrustedKeys::default();
    for key in &config.trusted_public_key {
        trusted.insert(key.parse::<PublicKey>().with_context(|| format!("'{key}' is no public key"))?);
    }
    keys::signing_keys(config)?.iter().for_each(|key| trusted.insert(key.public()));
    trusted.insert(keys::own_signing_key(config)?.public());
    Ok(trusted)
}

fn upstream_options(config: &Config, cold: Option<Arc<Cold>>) -> Result<Options> {
    let location = |url: &String| Location::parse(url).map_err(anyhow::Error::msg);
    let locations: Vec<Location> = config.upstream.iter().map(location).collect::<Result<_>>()?;
    let bundle = config.upstream_ca_file.as_deref();
    let unreadable = || format!("cannot read the certificates in {}", bundle.unwrap_or(Path::new("")).display());
    let authorities = Authorities::find(bundle).with_context(unreadable)?;
    if authorities.is_empty() && config.upstream.iter().any(|url| url.starts_with("https:")) {
        tracing::warn!(
            "no certificates are found to check https upstreams with; name a bundle with --upstream-ca-file"
        );
    }
    let (patience, hedge, trusted_keys) = (Patience::DEFAULT, HEDGE, trusted_keys(config)?);
    Ok(Options { locations, authorities, patience, hedge, trusted_keys, require_sigs: config.require_sigs, cold })
}

struct Doors {
    ssh: Option<SshDoor>,
    unix: UnixDoor,
    http: Option<HttpServer>,
    identity: Option<Arc<Identity>>,
    sessions: Sessions,
    services: Arc<Services>,
    keys: Arc<AuthorizedKeys>,
}

impl Doors {
    async fn open(config: &Config, node: &Node, passed: Passed) -> Result<Doors> {
        let host =
            SessionHost::new(node.store.clone(), node.builds.clone(), trusted_keys(config)?, config.require_sigs)
                .signing_with(keys::signing_keys(config)?.into_iter().map(Arc::new).collect())
                .behind(node.upstreams.clone());
        let services = host.services();
        let deposits = Arc::new(Deposits::new(services.clone()));
        let sessions = Sessions::new(Arc::new(host), SESSIONS_MAX);
        let keys = Arc::new(AuthorizedKeys::open(config.authorized_keys.clone()));
        let ssh = Self::open_ssh(config, passed.ssh, &keys, &sessions).await?;
        let unix = match passed.socket {
            Some((listener, path)) => UnixDoor::on(lent(listener, UnixListener::from_std)?, &path, sessions.clone()),
            None => UnixDoor::open(&config.socket, sessions.clone())
                .with_context(|| format!("cannot listen at {}", config.socket.display()))?,
        };
        let identity = match (&config.http_certificate, &config.http_key) {
            (Some(certificate), Some(key)) => Some(Arc::new(Identity::open(certificate, key)?)),
            _ => None,
        };
        let cache = Self::cache(config, node, deposits);
        let open =
            |listen| HttpOptions { listen, identity: identity.clone(), http3: config.http3, limits: Limits::USUAL };
        let http = match (passed.http, config.http) {
            (Some(listener), listen) => {
                let options = open(listen.unwrap_or(listener.local_addr()?));
                Some(HttpServer::on(lent(listener, TcpListener::from_std)?, passed.http_udp, &options, cache)?)
            }
            (None, Some(listen)) => Some(HttpServer::open(&open(listen), cache)?),
            (None, None) => None,
        };
        Ok(Doors { ssh, unix, http, identity, sessions, services, keys })
    }

    async fn open_ssh(
        config: &Config,
        passed: Option<std::net::TcpListener>,
        keys: &Arc<AuthorizedKeys>,
        sessions: &Sessions,
    ) -> Result<Option<SshDoor>> {
        let at = passed.as_ref().map(std::net::TcpListener::local_addr).transpose()?;
        let Some(listen) = at.or(config.ssh) else { return Ok(None) };
        let host_key = host_key::load_or_create(&config.data_dir)?;
        let options = SshOptions { listen, host_key, keys: keys.clone(), node: config.name.clone() };
        let door = match passed {
            Some(listener) => SshDoor::on(lent(listener, TcpListener::from_std)?, options, sessions.clone()),
            None => SshDoor::open(options, sessions.clone()).await,
        };
        Ok(Some(door.with_context(|| format!("cannot listen on {listen}; choose another address with --ssh"))?))
    }

    fn cache(config: &Config, node: &Node, deposits: Arc<Deposits>) -> Arc<Cache> {
        let mut cache = Cache::new(node.store.clone(), node.dir.clone()).behind(&node.upstreams);
        cache.card = node.neighbours.mesh().map(Card::of);
        cache.offer = config.http_compression;
        cache.cold = node.cold.clone();
        cache.is_closed = config.http_read == HttpRead::Token;
        let tokens = Arc::new(Tokens::open(tokens::file(&config.data_dir)));
        tokio::spawn(tidy(Arc::downgrade(&deposits)));
        cache.writer = Some(put::Writer::new(deposits, tokens));
        Arc::new(cache)
    }

    fn sessions(&self) -> Sessions {
        self.sessions.clone()
    }

    fn ready(&self, config: &Config, node: &Node) -> Result<Ready> {
        Ok(Ready {
            name: config.name.clone(),
            node_id: keys::node_id(&config.data_dir)?,
            ssh: self.ssh.as_ref().map(SshDoor::local_addr),
            http: self.http.as_ref().map(HttpServer::local_addr),
            http_tls: self.identity.is_some(),
            http_needs_token: config.http_read == HttpRead::Token,
            mesh: node.neighbours.mesh().map(Mesh::local_addr),
            socket: self.unix.path().to_path_buf(),
            pid: std::process::id(),
            public_keys: keys::signing_keys(config)?.iter().map(|key| key.public().to_string()).collect(),
        })
    }

    fn stop_accepting(&self) {
        self.ssh.iter().for_each(SshDoor::stop_accepting);
        self.unix.stop_accepting();
        self.http.iter().for_each(HttpServer::stop_accepting);
    }

    /// Clients that wait for an answer, or for the rest of one.
    fn busy(&self) -> u64 {
        self.sessions.running() as u64 + self.http.as_ref().map_or(0, HttpServer::unanswered)
    }

    fn close(&self) {
        self.ssh.iter().for_each(SshDoor::close);
        self.unix.close();
        self.http.iter().for_each(HttpServer::close);
    }
}

/// A socket of the service manager's, for the runtime.
fn lent<S, T>(socket: S, convert: impl FnOnce(S) -> io::Result<T>) -> Result<T> {
    convert(socket).context("cannot use a socket of the service manager")
}

/// Lets go of uploads that nobody goes on with, for as long as there are any to come.
async fn tidy(deposits: Weak<Deposits>) {
    while let Some(deposits) = deposits.upgrade() {
        deposits.tidy();
        drop(deposits);
        tokio::time::sleep(TIDY_INTERVAL).await;
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }

    async fn stop(&mut self) {
        while self.next().await != Wish::Stop {}
    }
}

/// Waits for running builds and for clients to hear of them, until `patience` ends or a second signal comes.
async fn drain(builds: &Arc<BuildService>, patience: Duration, doors: &Doors, signals: &mut Signals) {
    let builds = builds.clone();
    let running = builds.overview().running.len();
    if running > 0 {
        tracing::info!(builds = running, "waiting for running builds; a second signal stops at once");
    }
    let drained = async {
        let all_ended = tokio::task::spawn_blocking(move || builds.drain(patience)).await.unwrap_or(false);
        if !all_ended {
            return tracing::warn!("builds still run; the next start takes them up");
        }
        let deadline = tokio::time::Instant::now() + SESSION_GRACE;
        while doors.busy() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(SESSION_POLL).await;
        }
    };
    tokio::select! {
        () = drained => {}
        () = signals.stop() => tracing::warn!("stopping at once"),
    }
}

/// Takes over what can change while the node runs, and says what cannot.
fn reload(current: &mut Config, read: &dyn Fn() -> Result<Config>, verbose: u8, doors: &Doors) {
    doors.keys.refresh();
    doors.identity.iter().for_each(|identity| identity.reload());
    let new = match read() {
        Ok(new) => new,
        Err(error) => return tracing::error!("the configuration stays as it was: {error:#}"),
    };
    logging::set_level(&new.log, verbose);
    current.log = new.log.clone();
    if new != *current {
        tracing::warn!("settings other than the log level count from the next start on");
    }
    tracing::info!("read the configuration and the keys again");
}
