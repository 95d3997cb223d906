//! Whole members in one process, with endpoints of their own: how long a lookup takes, and how soon everybody knows what
//! happened to one of many.

use crate::parts::{Report, process_cpu, runtime};
use crate::sample::setting;
use shoal_mesh::builds::{Answer, BuildServer, Execute};
use shoal_mesh::chunk_server::{ChunkServer, ServerLimits};
use shoal_mesh::clock::wall_s;
use shoal_mesh::handle::{Located, Mesh, Options};
use shoal_mesh::identity::Identity;
use shoal_store::Store;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::BuildAsk;
use shoal_wire::mesh::path_record::PathKey;
use shoal_wire::nix::signature::SecretKey;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Nobody waits longer for anything here.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// How long a mesh in which nothing happens is watched.
const QUIET: Duration = Duration::from_secs(20);
const LOOKUPS: usize = 2_000;
/// Misses after a node froze, while it is suspected.
const FROZEN_LOOKUPS: usize = 500;

struct Member {
    _dir: TempDir,
    mesh: Mesh,
}

fn key(kind: u8, number: u32) -> SecretKey {
    let mut seed = [kind; 32];
    seed[..4].copy_from_slice(&number.to_le_bytes());
    SecretKey::from_seed("bench", seed).expect("any seed makes a key")
}

/// Builds nothing.
struct Nobody;

impl Execute for Nobody {
    fn asked(&self, _peer: NodeKey, _ask: BuildAsk, _answer: Answer) {}
}

async fn start(number: u32, contacts: Vec<(NodeKey, Vec<SocketAddr>)>) -> Member {
    let dir = tempfile::tempdir().expect("a directory");
    let identity = Identity::with_secret(&dir.path().join("mesh"), key(2, number), key(1, 0), wall_s());
    let store_options = shoal_store::Options { index_cache_bytes: 1 << 20, ..Default::default() };
    let store = Store::open(&dir.path().join("store"), store_options).expect("a store");
    let limits = ServerLimits { upload_bytes_per_s: None };
    let options = Options {
        identity: Arc::new(identity.expect("an identity")),
        chunks: Arc::new(ChunkServer::new(store.clone(), Arc::new(key(2, number)), limits)),
        builds: Arc::new(BuildServer::new(Arc::new(Nobody))),
        store,
        bind: SocketAddr::from(([127, 0, 0, 1], 0)),
        contacts,
        announced: Vec::new(),
        copies: 2,
        describe: Box::new(move |own| own.name = format!("node-{number}")),
    };
    let (mesh, orders) = Mesh::open(options).await.expect("a member");
    // Nothing is stored, so nothing is ordered; a closed queue would only be refused.
    std::mem::forget(orders);
    Member { _dir: dir, mesh }
}

/// Seconds until `holds`.
async fn until(what: &str, holds: impl Fn() -> bool) -> f64 {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(POLL).await;
    }
    since.elapsed().as_secs_f64()
}

fn contact(member: &Member) -> Vec<(NodeKey, Vec<SocketAddr>)> {
    vec![(member.mesh.me(), vec![member.mesh.local_addr()])]
}

fn all_see(members: &[Member], count: usize) -> bool {
    members.iter().all(|member| member.mesh.roster().live().count() == count)
}

fn path_key(number: usize) -> PathKey {
    let mut key = PathKey::default();
    key[..20].copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..20]);
    key
}

/// Milliseconds that each of these misses took, in order of size.
async fn misses(mesh: &Mesh, numbers: std::ops::Range<usize>) -> Vec<f64> {
    let mut times = Vec::with_capacity(numbers.len());
    for number in numbers {
        let since = Instant::now();
        let located = mesh.look_up(&[path_key(number)]).await;
        times.push(since.elapsed().as_secs_f64() * 1e3);
        assert!(!matches!(located[0], Located::Held(_)), "nobody has it");
    }
    times.sort_by(f64::total_cmp);
    times
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// Lookups in a mesh of five, of which one freezes in the end.
pub fn lookups(report: &mut Report) {
    let runtime = runtime();
    let (frozen, freeze) = freezing();
    runtime.block_on(async {
        let mut members = vec![start(0, Vec::new()).await];
        for number in 1..4 {
            members.push(start(number, contact(&members[0])).await);
        }
        frozen.send(contact(&members[0])).expect("the one that will freeze is there");
        until("all see each other", || all_see(&members, 5)).await;
        let mesh = &members[0].mesh;
        // The links are opened by the first.
        misses(mesh, 0..100).await;
        let rtt_ms = mesh.open_links().into_iter().filter_map(|link| link.rtt).map(|rtt| rtt.as_secs_f64() * 1e3);
        let rtt_ms = rtt_ms.fold(0.0, f64::max);
        let times = misses(mesh, 100..100 + LOOKUPS).await;
        let name = format!("lookup at owners of four others, p50 and p99 (QUIC's own round trip: {rtt_ms:.2} ms)");
        let value = format!("{:.2} ms, {:.2} ms", quantile(&times, 0.5), quantile(&times, 0.99));
        report.add(&name, value, &format!("<= {:.2}", rtt_ms + 1.0));
        freeze.send(()).expect("it is there");
        let suspected = |mesh: &Mesh| mesh.roster().peers.iter().any(|peer| format!("{:?}", peer.standing) != "Alive");
        let seconds = until("it is suspected", || suspected(mesh)).await;
        let times = misses(mesh, 10_000..10_000 + FROZEN_LOOKUPS).await;
        let name = format!("miss while one of five is frozen and suspected (after {seconds:.1} s), p99");
        report.add(&name, format!("{:.2} ms", quantile(&times, 0.99)), "<= 50");
    });
}

type Contacts = Vec<(NodeKey, Vec<SocketAddr>)>;

/// A fifth member on a thread of its own, which freezes with all its tasks when it is told to. It never comes back.
fn freezing() -> (std::sync::mpsc::Sender<Contacts>, tokio::sync::oneshot::Sender<()>) {
    let (contacts, told) = std::sync::mpsc::channel();
    let (freeze, frozen) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let Ok(contacts) = told.recv() else { return };
            let _member = start(4, contacts).await;
            let _ = frozen.await;
            loop {
                std::thread::park();
            }
        });
    });
    (contacts, freeze)
}

/// Many members: how soon all know each other, a newcomer, and a death, and what a quiet mesh costs.
pub fn many(report: &mut Report) {
    let count: usize = setting("SHOAL_BENCH_MEMBERS", 200);
    runtime().block_on(async {
        let since = Instant::now();
        let mut members = vec![start(0, Vec::new()).await];
        for number in 1..count {
            members.push(start(number as u32, contact(&members[0])).await);
        }
        until("all see each other", || all_see(&members, count)).await;
        let value = format!("{:.1} s", since.elapsed().as_secs_f64());
        report.add(&format!("{count} members start one after the other and all know all"), value, "told");
        tokio::time::sleep(QUIET).await;
        let sent = |members: &[Member]| -> u64 {
            members.iter().flat_map(|member| member.mesh.open_links()).map(|link| link.sent_bytes).sum()
        };
        let (cpu, bytes) = (process_cpu(), sent(&members));
        let mut mistaken = 0;
        for _ in 0..QUIET.as_secs() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            mistaken += members.iter().filter(|member| member.mesh.roster().live().count() < count).count();
        }
        let a_node_s = count as f64 * QUIET.as_secs_f64();
        let cpu = (process_cpu() - cpu) / a_node_s * 1e3;
        let kb = sent(&members).saturating_sub(bytes) as f64 / a_node_s / 1e3;
        report.add(&format!("a member of {count} in a quiet mesh: sent, all of UDP"), format!("{kb:.1} KB/s"), "<= 40");
        report.add(&format!("a member of {count} in a quiet mesh: CPU"), format!("{cpu:.1} ms/s"), "told");
        let links: Vec<usize> = members.iter().map(|member| member.mesh.open_links().len()).collect();
        let (mean, most) = (links.iter().sum::<usize>() as f64 / count as f64, links.iter().max().unwrap_or(&0));
        report.add("… connections that it holds, and the most", format!("{mean:.1}, {most}"), "told");
        report.add("… looks at the members in which one was missing", mistaken.to_string(), "0");
        let newcomer = start(count as u32, contact(&members[count / 2])).await;
        let sees = until("it sees all", || newcomer.mesh.roster().live().count() == count + 1).await;
        let seen = until("all see it", || all_see(&members, count + 1)).await;
        report.add("a newcomer sees all", format!("{sees:.1} s"), "<= 20");
        report.add("all see a newcomer", format!("{:.1} s", sees + seen), "<= 20");
        newcomer.mesh.links().close().await;
        let died = until("all know it", || all_see(&members, count)).await;
        report.add("all know a death", format!("{died:.1} s"), "<= 20");
    });
}
