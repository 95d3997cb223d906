//! kill -9 at any moment: what was acknowledged is there and right, and nothing is half there.

use crate::support::{Rng, Tree, export, info, path, small_options};
use shoal_store::{GcAction, GcRequest, Store};
use shoal_wire::nix::hash::{Hash, sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ROUNDS: u64 = 32;

/// Until a victim has opened its store, on a busy machine.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// Set for the process that is to be killed: the store's directory.
const VICTIM_DIR: &str = "SHOAL_TEST_VICTIM_DIR";
const VICTIM_SEED: &str = "SHOAL_TEST_VICTIM_SEED";

/// What a victim said it did.
#[derive(Default)]
struct Acknowledged {
    /// By base name: the NAR's hash in base 16.
    rooted: BTreeMap<String, String>,
    committed: BTreeMap<String, String>,
    /// Whether a collection had begun, which may take what has no root.
    collecting: bool,
}

/// Works until killed: ingests beside each other, roots for some, collections of the rest.
#[test]
fn victim() {
    let (Ok(dir), Ok(seed)) = (std::env::var(VICTIM_DIR), std::env::var(VICTIM_SEED)) else {
        println!("skipped: only runs as a child of the crash test");
        return;
    };
    let seed: u64 = seed.parse().expect("a number");
    let store = Store::open(Path::new(&dir), small_options()).expect("open after a crash");
    let mut rng = Rng(seed);
    let shared: Vec<Vec<u8>> = (0..4).map(|n| Tree::random(&mut Rng(n), 1 << 20).nar()).collect();
    say("ready");
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (store, shared, mut rng) = (&store, &shared, Rng(rng.next()));
            scope.spawn(move || {
                for n in 0.. {
                    work(store, shared, &mut rng, &format!("{seed} {thread} {n}"));
                }
            });
        }
        loop {
            std::thread::sleep(Duration::from_millis(20 + rng.below(100)));
            say("collect");
            store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect");
        }
    });
}

fn work(store: &Store, shared: &[Vec<u8>], rng: &mut Rng, name: &str) {
    let nar = match rng.below(4) {
        0 => shared[rng.below(shared.len() as u64) as usize].clone(),
        1 => Tree::random(rng, 2 << 20).nar(),
        _ => Tree::random(rng, 30_000).nar(),
    };
    let me = path(name);
    let roots = store.temp_roots();
    roots.add(&me);
    let mut ingest = store.ingest();
    ingest.write_all(&nar).expect("ingest");
    if rng.below(10) == 0 {
        return;
    }
    let ingested = ingest.finish().expect("finish");
    let hash = Hash::sha256(ingested.nar_hash).to_base16();
    store.commit(vec![(info(&me, &ingested), ingested)]).expect("commit");
    say(&format!("committed {me} {hash}"));
    if rng.below(2) == 0 {
        store.add_root(name, &me).expect("add root");
        say(&format!("rooted {me} {hash}"));
    }
}

fn say(line: &str) {
    println!("victim: {line}");
    std::io::stdout().flush().expect("stdout");
}

fn start(dir: &Path, seed: u64) -> Child {
    let mut victim = Command::new(std::env::current_exe().expect("this program"));
    victim.args(["--exact", "crash::victim", "--nocapture"]);
    victim.env(VICTIM_DIR, dir).env(VICTIM_SEED, seed.to_string()).stdout(Stdio::piped());
    victim.spawn().expect("start the victim")
}

/// When a victim is killed.
enum Moment {
    /// So long after its start, whatever it does then.
    Started(Duration),
    /// So long after it began to work.
    AtWork(Duration),
}

/// Lets a victim work for a while and kills it. Returns what it had said.
fn run_and_kill(dir: &Path, seed: u64, moment: &Moment) -> Acknowledged {
    let mut child = start(dir, seed);
    let stdout = child.stdout.take().expect("stdout");
    let (ready, is_ready) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut said = Acknowledged::default();
        // A last line that was cut by the kill is not said.
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let Some((_, line)) = line.split_once("victim: ") else {
                continue;
            };
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next()) {
                // Nobody may wait for it.
                (Some("ready"), ..) => drop(ready.send(())),
                (Some("collect"), ..) => said.collecting = true,
                (Some(what), Some(path), Some(hash)) if hash.len() == 64 => {
                    let list = if what == "rooted" { &mut said.rooted } else { &mut said.committed };
                    list.insert(path.to_owned(), hash.to_owned());
                }
                _ => {}
            }
        }
        said
    });
    let delay = match moment {
        Moment::Started(delay) => delay,
        Moment::AtWork(delay) => {
            is_ready.recv_timeout(READY_PATIENCE).expect("a victim that opens its store");
            delay
        }
    };
    std::thread::sleep(*delay);
    child.kill().expect("kill");
    let status = child.wait().expect("wait");
    assert!(!status.success(), "the victim ended by itself");
    reader.join().expect("reader")
}

#[test]
fn killed_at_any_moment() {
    let mut rng = Rng::seeded("killed_at_any_moment");
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut rooted: BTreeMap<String, String> = BTreeMap::new();
    let mut total = 0;
    for round in 0..ROUNDS {
        // Most die at work; some while they recover from the round before.
        let moment = match rng.below(5) {
            0 => Moment::Started(Duration::from_millis(rng.below(60))),
            _ => Moment::AtWork(Duration::from_millis(rng.below(400))),
        };
        let said = run_and_kill(dir.path(), rng.next(), &moment);
        rooted.extend(said.rooted.clone());
        total += said.committed.len();
        let store = Store::open(dir.path(), small_options()).expect("open after a kill");
        let valid: BTreeSet<String> = store.paths().expect("paths").iter().map(|p| p.base_name().to_owned()).collect();
        for path in rooted.keys() {
            assert!(valid.contains(path), "round {round}: {path} was rooted and is gone");
        }
        if !said.collecting {
            let lost: Vec<_> = said.committed.keys().filter(|path| !valid.contains(*path)).collect();
            assert!(lost.is_empty(), "round {round}: committed and gone: {lost:?}");
        }
        check_all(&store, &said, &rooted);
        if round % 8 == 7 {
            for (path, _) in std::mem::take(&mut rooted) {
                let root = store.roots().expect("roots").into_iter().find(|(_, p)| p.base_name() == path);
                if let Some((shoal_store::Root::Named(name), _)) = root {
                    store.remove_root(&name).expect("remove root");
                }
            }
        }
    }
    assert!(total > 50, "only {total} commits in all rounds: no test");
}

/// Whatever is valid, acknowledged or not, is whole.
fn check_all(store: &Store, said: &Acknowledged, rooted: &BTreeMap<String, String>) {
    let report = store.verify(true).expect("verify");
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    for path in store.paths().expect("paths") {
        let nar = export(store, &path);
        let hash = sha256(&nar);
        assert_eq!(store.path_info(&path).expect("path info").expect("valid").nar_hash, hash);
        let told = said.committed.get(path.base_name()).or_else(|| rooted.get(path.base_name()));
        if let Some(told) = told {
            assert_eq!(&Hash::sha256(hash).to_base16(), told);
        }
    }
}
