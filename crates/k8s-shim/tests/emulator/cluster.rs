//! An emulated API server, a mesh of nodes that say what they are told to, and operators.

use serde_json::{Value, json};
use shoal_mesh::chunk_server::{ChunkServer, ServerLimits};
use shoal_mesh::dial::{BoxFuture, Offence, ServeBuilds};
use shoal_mesh::handle::{Mesh, Options};
use shoal_mesh::identity::{Identity, Invitation};
use shoal_store::Store;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::certificate::Roles;
use shoal_wire::mesh::demand::{Amount, Demand, Kind, Work};
use shoal_wire::mesh::departure::{DrainOrders, Remaining};
use shoal_wire::mesh::node_record::Presence;
use shoal_wire::mesh::ticket::Contact;
use shoal_wire::nix::signature::SecretKey;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(50);
/// After what was changed has been heard, one turn decides and one more would have; a third hears of late gossip.
const TURNS: u64 = 3;
const NAMESPACE: &str = "grid";
const SYSTEM: &str = "x86_64-linux";

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Operator {
    process: Process,
    listen: SocketAddr,
    log: PathBuf,
}

impl Operator {
    pub async fn get(&self, path: &str) -> String {
        request(self.listen, "GET", path, None).await.expect("the operator answers").1
    }

    pub fn resident_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }

    async fn turns(&self) -> u64 {
        let metrics = self.get("/metrics").await;
        let turns = metrics.lines().find_map(|line| line.strip_prefix("shoal_k8s_turns_total "));
        turns.and_then(|turns| turns.parse().ok()).expect("it counts its turns")
    }

    /// A counter of its metrics, by its whole name; zero where it was never counted.
    pub async fn counted(&self, name: &str) -> u64 {
        let metrics = self.get("/metrics").await;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a counter is a number"))
    }

    /// Lines of its log that contain a text.
    pub fn said(&self, text: &str) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// As a machine that is switched off.
    pub fn kill(self) {}
}

pub struct Cluster {
    dir: TempDir,
    api: SocketAddr,
    emulator: Process,
    secret: SecretKey,
    nodes: BTreeMap<u32, (Mesh, TempDir)>,
    /// Which have said that they have nothing left.
    empty: BTreeSet<u32>,
}

struct NoBuilds;

impl ServeBuilds for NoBuilds {
    fn serve(&self, _: NodeKey, _: iroh::endpoint::Connection) -> BoxFuture<'static, Option<Offence>> {
        Box::pin(async { None })
    }
}

fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = std::env::var_os("SHOAL_KMOCK").map_or(root.join("target/kmock/bin/python"), PathBuf::from);
    python.exists().then_some(python)
}

impl Cluster {
    /// `None` where there is no emulator.
    pub async fn start() -> Option<Cluster> {
        let Some(python) = python() else {
            println!("skipped: no Python with kmock; scripts/get-kmock makes target/kmock");
            return None;
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/serve.py");
        let mut emulator = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the emulator starts");
        let mut line = String::new();
        let out = emulator.stdout.take().expect("it is piped");
        BufReader::new(out).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().expect("the emulator prints its port");
        Some(Cluster {
            dir: tempfile::tempdir().unwrap(),
            api: SocketAddr::from(([127, 0, 0, 1], port)),
            emulator: Process(emulator),
            secret: SecretKey::generate("mesh").unwrap(),
            nodes: BTreeMap::new(),
            empty: BTreeSet::new(),
        })
    }

    fn sets(&self) -> String {
        format!("/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets")
    }

    pub async fn create_set(&self, annotations: &[(&str, &str)], replicas: u32) {
        let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
        let set = json!({
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {
                "name": "shoal", "namespace": NAMESPACE, "uid": "1",
                "labels": { "shoal.build/pool": "any" }, "annotations": annotations,
            },
            "spec": {
                "replicas": replicas, "serviceName": "shoal",
                "selector": { "matchLabels": {} }, "template": {},
            },
        });
        let (status, body) = request(self.api, "POST", &self.sets(), Some(set)).await.unwrap();
        assert_eq!(status, 200, "{body}");
    }

    pub async fn patch(&self, change: Value) {
        let path = format!("{}/shoal", self.sets());
        let (status, body) = request(self.api, "PATCH", &path, Some(change)).await.unwrap();
        assert_eq!(status, 200, "{body}");
    }

    async fn set(&self) -> Value {
        let path = format!("{}/shoal", self.sets());
        let (_, body) = request(self.api, "GET", &path, None).await.unwrap();
        serde_json::from_str(&body).expect("the emulator answers with JSON")
    }

    pub async fn replicas(&self) -> u64 {
        self.set().await["spec"]["replicas"].as_u64().expect("a set has replicas")
    }

    /// Counts what was written of the set, its making included.
    pub async fn writes(&self) -> u64 {
        self.count("/test/writes").await
    }

    /// Sizes that were written, the first one included, in their order.
    pub async fn sizes(&self) -> Vec<u64> {
        let (_, body) = request(self.api, "GET", "/test/sizes", None).await.unwrap();
        body.trim().split(',').map(|size| size.parse().expect("the emulator lists sizes")).collect()
    }

    /// Changes that wait, since the emulator is told to hold them.
    pub async fn held(&self) -> u64 {
        self.count("/test/held").await
    }

    async fn count(&self, path: &str) -> u64 {
        let (_, body) = request(self.api, "GET", path, None).await.unwrap();
        body.trim().parse().expect("the emulator counts")
    }

    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let began = Instant::now();
        while !holds().await {
            assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn until_replicas(&self, count: u64) {
        self.until(&format!("{count} replicas"), async || self.replicas().await == count).await;
    }

    pub async fn until_leader(&self, operator: &Operator) {
        self.until("it decides", async || operator.get("/metrics").await.contains("shoal_k8s_is_leader 1")).await;
    }

    /// Until it has looked at everything several times more: what it would do of what is known now, it has done.
    pub async fn until_considered(&self, operator: &Operator) {
        let turns = operator.turns().await + TURNS;
        self.until("some turns", async || operator.turns().await >= turns).await;
    }

    /// Starts the node of a pod.
    pub async fn node(&mut self, ordinal: u32) {
        let dir = tempfile::tempdir().unwrap();
        let key = || SecretKey::from_seed("node", [ordinal as u8 + 1; 32]).unwrap();
        let secret = SecretKey::from_seed("mesh", *self.secret.seed()).unwrap();
        let identity = Identity::with_secret(&dir.path().join("mesh"), key(), secret, wall_s()).unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let contact = |mesh: &Mesh| (mesh.me(), vec![mesh.local_addr()]);
        let options = Options {
            identity: Arc::new(identity),
            chunks: Arc::new(ChunkServer::new(
                store.clone(),
                Arc::new(key()),
                ServerLimits { upload_bytes_per_s: None },
            )),
            store,
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            builds: Arc::new(NoBuilds),
            contacts: self.nodes.values().map(|(mesh, _)| contact(mesh)).collect(),
            announced: Vec::new(),
            copies: 1,
            describe: Box::new(move |own| {
                own.name = format!("shoal-{ordinal}");
                own.systems.insert(SYSTEM.to_owned());
                own.capacity.slots = 2;
            }),
        };
        let (mesh, mut orders) = Mesh::open(options).await.unwrap();
        tokio::spawn(async move { while orders.recv().await.is_some() {} });
        tokio::spawn(drain_when_asked(mesh.clone()));
        self.nodes.insert(ordinal, (mesh, dir));
    }

    pub async fn stop_node(&mut self, ordinal: u32) {
        let (mesh, _dir) = self.nodes.remove(&ordinal).expect("it runs");
        mesh.stop().await;
    }

    fn first(&self) -> &Mesh {
        &self.nodes[&0].0
    }

    /// What waits at the first node from now on.
    pub async fn demand(&self, jobs: u32, slot_s: u64) {
        self.demand_of(SYSTEM, jobs, slot_s).await;
    }

    /// The same for machines of another system.
    pub async fn demand_of(&self, system: &str, jobs: u32, slot_s: u64) {
        let amount = Amount { ready: Work { jobs, slot_s }, ..Amount::default() };
        let kind = Kind { system: system.to_owned(), features: Default::default(), amount };
        let demand = Demand::new(vec![kind]);
        let busy = if demand.is_none() { 0 } else { 2 };
        let tell = move |own: &mut shoal_wire::mesh::node_record::NodeRecord| {
            own.load.running = busy;
            own.set_extension((!demand.is_none()).then_some(&demand));
        };
        self.first().update(tell).await;
    }

    /// Waits until these and no others are asked to drain.
    pub async fn until_ordered(&self, ordinals: &[u32]) {
        let holds = async || {
            let asked = asked(self.first());
            self.nodes.keys().all(|ordinal| asked(&format!("shoal-{ordinal}")) == ordinals.contains(ordinal))
        };
        self.until("nodes are asked to drain", holds).await;
    }

    /// What a cluster does by itself: new pods get their nodes, and those of pods that are gone end. Nodes that are asked to drain
    /// have nothing left a step later. Panics if one had to end that had not drained.
    pub async fn keep_up(&mut self) {
        let replicas = u32::try_from(self.replicas().await).unwrap();
        for ordinal in 0..replicas {
            if !self.nodes.contains_key(&ordinal) {
                self.node(ordinal).await;
            }
        }
        let gone: Vec<u32> = self.nodes.keys().copied().filter(|ordinal| *ordinal >= replicas).collect();
        for ordinal in gone {
            assert!(self.empty.remove(&ordinal), "node {ordinal} had not drained");
            self.stop_node(ordinal).await;
        }
        let is_asked = asked(self.first());
        for (&ordinal, (mesh, _)) in &self.nodes {
            match (is_asked(&format!("shoal-{ordinal}")), self.empty.contains(&ordinal)) {
                (true, false) => {
                    self.empty.insert(ordinal);
                    mesh.update(|own| own.set_extension(Some(&Remaining::default()))).await;
                }
                (false, true) => {
                    self.empty.remove(&ordinal);
                    mesh.update(|own| own.set_extension(None::<&Remaining>)).await;
                }
                _ => {}
            }
        }
    }

    /// How the emulator behaves from now on; see `serve.py`.
    pub async fn behave(&self, how: &str) {
        let path = format!("/test/behave{how}");
        assert_eq!(request(self.api, "GET", &path, None).await.map(|answer| answer.0), Some(200));
    }

    /// The API server's machine stands still for a while.
    pub async fn freeze_api(&self, time: Duration) {
        let signal = |name: &str| {
            let status = Command::new("kill").arg(name).arg(self.emulator.0.id().to_string()).status();
            assert!(status.expect("kill runs").success());
        };
        signal("-STOP");
        tokio::time::sleep(time).await;
        signal("-CONT");
    }

    /// A node has handed over what it has.
    pub fn drained(&self, ordinal: u32) {
        let mesh = self.nodes[&ordinal].0.clone();
        tokio::spawn(async move { mesh.update(|own| own.set_extension(Some(&Remaining::default()))).await });
    }

    pub async fn operator(&self, name: &str, more: &[&str]) -> Operator {
        let kubeconfig = self.dir.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": { "server": format!("http://{}", self.api) } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it", "namespace": NAMESPACE } }],
            "users": [{ "name": "it", "user": {} }],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        let own = Contact { node: self.first().me(), addresses: [self.first().local_addr()].into() };
        let invitation = Invitation {
            reusable: true,
            roles: Roles::OPERATE,
            ttl_s: 3_600,
            membership_s: 3_600,
            contacts: vec![own],
        };
        let ticket = self.first().identity().invite(invitation, wall_s()).unwrap().to_string();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = free.local_addr().unwrap();
        drop(free);
        let log = self.dir.path().join(format!("{name}.log"));
        let child = Command::new(env!("CARGO_BIN_EXE_shoal-k8s"))
            .env("KUBECONFIG", &kubeconfig)
            .args(["--join", &ticket, "--identity", name, "--mesh", "127.0.0.1:0"])
            .args(["--listen", &listen.to_string()])
            .arg("--data-dir")
            .arg(self.dir.path().join(name))
            .args(more)
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .expect("the operator starts");
        let operator = Operator { process: Process(child), listen, log };
        self.until("it listens", async || request(listen, "GET", "/healthz", None).await.is_some()).await;
        operator
    }

    pub async fn stop(self) {
        for (mesh, _) in self.nodes.values() {
            mesh.stop().await;
        }
    }
}

/// Whether a node of some name is asked to drain, as this node hears it.
fn asked(mesh: &Mesh) -> impl Fn(&str) -> bool + use<> {
    let roster = mesh.roster();
    move |name| {
        let orders = roster.live().filter_map(|peer| peer.record.extension::<DrainOrders>());
        orders.into_iter().any(|orders| orders.ask(name))
    }
}

/// Takes no builds while it is asked to drain. What it has left is the test's to say.
async fn drain_when_asked(mesh: Mesh) {
    let mut rosters = mesh.rosters();
    loop {
        let name = mesh.roster().get(&mesh.me()).map(|own| own.record.name.clone()).unwrap_or_default();
        let is_asked = asked(&mesh)(&name);
        let change = move |own: &mut shoal_wire::mesh::node_record::NodeRecord| {
            own.presence = if is_asked { Presence::Draining } else { Presence::Active };
        };
        mesh.update(change).await;
        if rosters.changed().await.is_err() {
            return;
        }
    }
}

fn wall_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// One request on a connection of its own: status and body. `None` where nobody listens.
async fn request(to: SocketAddr, method: &str, path: &str, body: Option<Value>) -> Option<(u16, String)> {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(to).await.ok()?;
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}
