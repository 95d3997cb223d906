//! A store and a simple model of it, driven by the same random operations.
//!
//! The model knows which paths are recorded, what they hold and what keeps them. What the disk did to their bytes it
//! does not know: a recorded path is valid and right to the last byte, or damaged and a miss, and never anything else.

use crate::support::{Rng, TestStore, Tree, directory, export, file, info, ingest, path, small_options};
use shoal_store::{GcAction, GcError, GcRequest, Ingested, Options, Pin, Store, TempRoots};
use shoal_wire::nix::store_path::StorePath;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

const ROUNDS: u64 = 6;
const OPERATIONS: u64 = 120;
const NARS: u64 = 14;
const NAMES: u64 = 24;

static NOW: AtomicU64 = AtomicU64::new(1);

fn options() -> Options {
    Options { clock: || NOW.load(Ordering::Relaxed), ..small_options() }
}

struct Recorded {
    nar: usize,
    references: BTreeSet<StorePath>,
}

struct Model {
    t: TestStore,
    nars: Vec<Vec<u8>>,
    recorded: BTreeMap<StorePath, Recorded>,
    roots: BTreeMap<String, StorePath>,
    pins: BTreeMap<String, (StorePath, u64)>,
    temporary: Option<(StorePath, TempRoots)>,
    /// Taken in and not committed.
    waiting: Vec<(usize, Ingested)>,
    /// Whether a bit was ever flipped since all was healed.
    flipped: bool,
}

impl Model {
    fn new(rng: &mut Rng) -> Model {
        let parts: Vec<Vec<u8>> =
            (0..6).map(|n| if n % 2 == 0 { rng.noise(90_000) } else { rng.text(150_000) }).collect();
        let nars = (0..NARS).map(|_| {
            let part = |rng: &mut Rng| file(parts[rng.below(6) as usize].clone());
            let (a, b) = (part(rng), part(rng));
            directory([("a", a), ("b", b), ("own", Tree::random(rng, 60_000))]).nar()
        });
        Model {
            nars: nars.collect(),
            t: TestStore::with(options()),
            recorded: BTreeMap::new(),
            roots: BTreeMap::new(),
            pins: BTreeMap::new(),
            temporary: None,
            waiting: Vec::new(),
            flipped: false,
        }
    }

    fn store(&self) -> &Store {
        &self.t.store
    }

    fn any_name(&self, rng: &mut Rng) -> StorePath {
        path(&rng.below(NAMES).to_string())
    }

    /// What roots of all kinds reach.
    fn alive(&self) -> BTreeSet<StorePath> {
        let now = NOW.load(Ordering::Relaxed);
        let pins = self.pins.values().filter(|(_, until)| now < *until).map(|(path, _)| path);
        let temporary = self.temporary.iter().map(|(path, _)| path);
        let mut open: Vec<StorePath> = self.roots.values().chain(pins).chain(temporary).cloned().collect();
        let mut alive = BTreeSet::new();
        while let Some(path) = open.pop() {
            if let Some(recorded) = self.recorded.get(&path)
                && alive.insert(path)
            {
                open.extend(recorded.references.iter().cloned());
            }
        }
        alive
    }

    fn step(&mut self, rng: &mut Rng) -> String {
        match rng.below(17) {
            0..4 => self.add(rng),
            4 => {
                let nar = rng.below(NARS) as usize;
                self.waiting.push((nar, ingest(self.store(), &self.nars[nar])));
                format!("take in {nar}")
            }
            5 => self.drop_half_way(rng),
            6 => {
                let (name, path) = (rng.below(5).to_string(), self.any_name(rng));
                self.store().add_root(&name, &path).expect("root");
                self.roots.insert(name, path.clone());
                format!("root {path}")
            }
            7 => {
                let name = rng.below(5).to_string();
                assert_eq!(self.store().remove_root(&name).expect("unroot"), self.roots.remove(&name).is_some());
                format!("unroot {name}")
            }
            8 => {
                let (name, path) = (rng.below(3).to_string(), self.any_name(rng));
                let until = NOW.fetch_add(1, Ordering::Relaxed) + 1 + rng.below(12);
                self.store()
                    .pin(&Pin { name: name.clone(), paths: vec![path.clone()], until: Some(until) })
                    .expect("pin");
                self.pins.insert(name, (path.clone(), until));
                format!("pin {path} until {until}")
            }
            9 => {
                let path = self.any_name(rng);
                let roots = self.store().temp_roots();
                roots.add(&path);
                self.temporary = Some((path, roots));
                "a temporary root".into()
            }
            10 | 11 => self.collect(rng),
            12 => self.delete(rng),
            13 => {
                self.store().recompress(u64::MAX, &|| true).expect("recompress");
                "recompress".into()
            }
            14 => self.flip(rng),
            15 => self.heal(),
            _ => self.open_again(rng.below(2) == 0),
        }
    }

    /// Ingest, or duplicate ingest, and commit; what was damaged heals by it.
    fn add(&mut self, rng: &mut Rng) -> String {
        let me = self.any_name(rng);
        let known = self.recorded.get(&me).map(|recorded| recorded.nar);
        let waiting = (rng.below(2) == 0).then(|| self.waiting.pop()).flatten();
        // A path that is recorded has its contents for good.
        let (nar, ingested) = match (known, waiting) {
            (Some(nar), _) => (nar, ingest(self.store(), &self.nars[nar])),
            (None, Some((nar, ingested))) => (nar, ingested),
            (None, None) => {
                let nar = rng.below(NARS) as usize;
                (nar, ingest(self.store(), &self.nars[nar]))
            }
        };
        let mut info = info(&me, &ingested);
        match self.recorded.get(&me) {
            Some(recorded) => info.references = recorded.references.clone(),
            None => {
                let candidates: Vec<&StorePath> = self.recorded.keys().collect();
                let count = (candidates.len() as u64).min(rng.below(3));
                info.references =
                    (0..count).map(|_| candidates[rng.below(candidates.len() as u64) as usize].clone()).collect();
            }
        }
        let references = info.references.clone();
        self.store().commit(vec![(info, ingested)]).expect("commit");
        self.recorded.insert(me.clone(), Recorded { nar, references });
        format!("add {me} with {nar}")
    }

    fn drop_half_way(&mut self, rng: &mut Rng) -> String {
        let nar = &self.nars[rng.below(NARS) as usize];
        let mut ingest = self.store().ingest();
        let len = rng.below(nar.len() as u64) as usize;
        ingest.write_all(&nar[..len]).expect("ingest");
        format!("drop an ingest after {len} bytes")
    }

    fn collect(&mut self, rng: &mut Rng) -> String {
        let compact_below = [0, 75, 100][rng.below(3) as usize];
        let request = GcRequest { compact_below, ..GcRequest::new(GcAction::DeleteDead) };
        let plan = self.store().plan(&request).expect("plan");
        let report = self.store().collect(&request).expect("collect");
        assert_eq!((&plan.paths, plan.freed), (&report.paths, report.freed));
        let alive = self.alive();
        let gone: BTreeSet<StorePath> = self.recorded.keys().filter(|path| !alive.contains(path)).cloned().collect();
        assert_eq!(report.paths.into_iter().collect::<BTreeSet<_>>(), gone);
        self.recorded.retain(|path, _| alive.contains(path));
        format!("collect, rewriting below {compact_below} %")
    }

    fn delete(&mut self, rng: &mut Rng) -> String {
        let me = self.any_name(rng);
        let request = GcRequest { paths: vec![me.clone()], ..GcRequest::new(GcAction::DeleteSpecific) };
        let referred = self.recorded.iter().any(|(other, recorded)| *other != me && recorded.references.contains(&me));
        let stays = self.recorded.contains_key(&me) && (referred || self.alive().contains(&me));
        match self.store().collect(&request) {
            Ok(report) => {
                assert!(!stays, "{me} was deleted");
                assert_eq!(report.paths, self.recorded.remove(&me).map(|_| me.clone()).into_iter().collect::<Vec<_>>());
            }
            Err(GcError::Alive(path)) => assert!(stays && path == me, "{me} was not deleted"),
            Err(error) => panic!("{error}"),
        }
        format!("delete {me}")
    }

    fn flip(&mut self, rng: &mut Rng) -> String {
        let mut files: Vec<_> = fs::read_dir(self.t.dir.path().join("segments")).expect("list").collect();
        if files.is_empty() {
            return "nothing to damage".into();
        }
        let path = files.swap_remove(rng.below(files.len() as u64) as usize).expect("entry").path();
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        let len = file.metadata().expect("metadata").len();
        let at = rng.below(len);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ (1 << rng.below(8))], at).expect("write");
        // What waits to be committed may have been hit, and the model would not know.
        self.waiting.clear();
        self.flipped = true;
        if rng.below(2) == 0 {
            self.store().verify(true).expect("verify");
        }
        format!("flip a bit of {} at {at}", path.display())
    }

    /// Finds all damage, and brings what is damaged again.
    fn heal(&mut self) -> String {
        self.store().verify(true).expect("verify");
        let damaged = self.store().damaged_paths().expect("damaged");
        for info in &damaged {
            let nar = self.recorded[&info.path].nar;
            let ingested = ingest(self.store(), &self.nars[nar]);
            self.store().commit(vec![(info.clone(), ingested)]).expect("commit");
        }
        assert_eq!(self.store().damaged_paths().expect("damaged"), []);
        let left = self.store().verify(true).expect("verify").damage;
        assert!(left.is_empty(), "{left:?}");
        self.flipped = false;
        format!("heal {} paths", damaged.len())
    }

    /// As after a stop, or with `killed` as after a kill: from the files as they are, nothing closed.
    fn open_again(&mut self, killed: bool) -> String {
        self.temporary = None;
        if killed {
            let dir = tempfile::tempdir().expect("temporary directory");
            copy_tree(self.t.dir.path(), dir.path());
            self.waiting.clear();
            let store = Store::open(dir.path(), options()).expect("open after a kill");
            self.t = TestStore { dir, store };
            return "kill".into();
        }
        self.waiting.clear();
        let elsewhere = TestStore::with(options());
        let TestStore { dir, store } = std::mem::replace(&mut self.t, elsewhere);
        drop(store);
        let store = Store::open(dir.path(), options()).expect("open again");
        self.t = TestStore { dir, store };
        "open again".into()
    }

    fn check(&self, all: bool) {
        let valid: BTreeSet<StorePath> = self.store().paths().expect("paths").into_iter().collect();
        let damaged: BTreeSet<StorePath> =
            self.store().damaged_paths().expect("damaged").into_iter().map(|info| info.path).collect();
        assert!(valid.is_disjoint(&damaged));
        assert!(self.flipped || damaged.is_empty(), "{damaged:?}");
        let recorded: BTreeSet<StorePath> = self.recorded.keys().cloned().collect();
        assert_eq!(&valid | &damaged, recorded);
        let looked_at = valid.iter().enumerate().filter(|(n, _)| all || n % 4 == 0);
        for (_, path) in looked_at {
            self.check_path(path);
        }
    }

    fn check_path(&self, path: &StorePath) {
        let nar = &self.nars[self.recorded[path].nar];
        if !self.flipped {
            assert!(export(self.store(), path) == *nar, "{path}");
            return;
        }
        // One of the paths before may have been found damaged by what it shares with this one.
        let Some(mut reading) = self.store().export(path).expect("export") else {
            assert!(!self.store().is_valid(path).expect("is valid"));
            return;
        };
        let mut read = Vec::new();
        match reading.read_to_end(&mut read) {
            Ok(_) => assert!(read == *nar, "{path}"),
            Err(_) => {
                assert!(nar.starts_with(&read), "{path}");
                assert!(!self.store().is_valid(path).expect("is valid"), "{path}");
            }
        }
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let to = to.join(entry.file_name());
        match entry.file_type().expect("type").is_dir() {
            true => {
                fs::create_dir(&to).expect("create");
                copy_tree(&entry.path(), &to);
            }
            false => _ = fs::copy(entry.path(), to).expect("copy"),
        }
    }
}

#[test]
fn a_store_is_what_its_model_says() {
    let mut rng = Rng::seeded("a_store_is_what_its_model_says");
    for _ in 0..ROUNDS {
        let mut model = Model::new(&mut rng);
        for n in 0..OPERATIONS {
            let what = model.step(&mut rng);
            println!("{n}: {what}");
            model.check(n % 10 == 0);
        }
        model.heal();
        model.check(true);
        model.waiting.clear();
        model.temporary = None;
        for (name, _) in std::mem::take(&mut model.roots) {
            model.store().remove_root(&name).expect("unroot");
        }
        NOW.fetch_add(100, Ordering::Relaxed);
        model.store().collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect");
        let stats = model.store().stats().expect("stats");
        assert_eq!((stats.paths, stats.chunks, stats.live_bytes, stats.damaged, stats.pinned), (0, 0, 0, 0, 0));
    }
}
