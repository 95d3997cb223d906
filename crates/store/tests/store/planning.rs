//! Pins keep what they name, for their time; and a plan says what a collection will do.

use crate::support::{Rng, TestStore, add, directory, file, ingest, path, small_options};
use shoal_store::{GcAction, GcRequest, Options, Pin, Root, Store};
use shoal_wire::nix::store_path::StorePath;
use std::sync::atomic::{AtomicU64, Ordering};

fn collect(store: &Store) -> Vec<StorePath> {
    store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect").paths
}

#[test]
fn pins_keep_a_closure_until_their_time() {
    static NOW: AtomicU64 = AtomicU64::new(1_000);
    let options = || Options { clock: || NOW.load(Ordering::Relaxed), ..small_options() };
    let t = TestStore::with(options());
    let pin = |name: &str, paths: &[&str], until| Pin {
        name: name.into(),
        paths: paths.iter().map(|name| path(name)).collect(),
        until,
    };
    add(&t.store, &path("c"), &file("c").nar(), &[]);
    add(&t.store, &path("b"), &file("b").nar(), &[&path("c")]);
    add(&t.store, &path("a"), &file("a").nar(), &[]);
    add(&t.store, &path("d"), &file("d").nar(), &[]);
    t.store.pin(&pin("ever", &["a"], None)).expect("pin");
    t.store.pin(&pin("while", &["b"], Some(1_500))).expect("pin");
    assert!(t.store.roots().expect("roots").contains(&(Root::Pin("while".into()), path("b"))));
    assert_eq!(collect(&t.store), [path("d")]);
    // They outlive the process.
    let TestStore { dir, store } = t;
    drop(store);
    let t = TestStore { store: Store::open(dir.path(), options()).expect("open"), dir };
    NOW.store(1_499, Ordering::Relaxed);
    assert_eq!(collect(&t.store), []);
    assert_eq!(t.store.pinned().expect("pinned"), [pin("ever", &["a"], None), pin("while", &["b"], Some(1_500))]);
    // Renewed in time, under the same name.
    t.store.pin(&pin("while", &["b", "b"], Some(2_000))).expect("pin");
    NOW.store(1_999, Ordering::Relaxed);
    assert_eq!(collect(&t.store), []);
    NOW.store(2_000, Ordering::Relaxed);
    assert_eq!(t.store.pinned().expect("pinned"), [pin("ever", &["a"], None)]);
    assert_eq!(collect(&t.store).len(), 2);
    assert!(!t.store.unpin("while").expect("unpin"), "a collection forgot it");
    assert!(t.store.unpin("ever").expect("unpin") && !t.store.unpin("ever").expect("unpin"));
    assert_eq!(collect(&t.store), [path("a")]);
}

/// Paths that share contents and refer to each other, some kept; what uploads that broke off left; what a crash left.
fn busy_store(rng: &mut Rng) -> TestStore {
    let mut t = TestStore::new();
    let parts: Vec<Vec<u8>> = (0..12).map(|_| rng.noise(40_000 + rng.0 as usize % 60_000)).collect();
    let part = |rng: &mut Rng| file(parts[rng.below(12) as usize].clone());
    let count = 10 + rng.below(140);
    for n in 0..count {
        let nar = match rng.below(3) {
            0 => part(rng).nar(),
            _ => directory([("a", part(rng)), ("b", file(rng.noise(3_000))), ("c", part(rng))]).nar(),
        };
        let me = path(&n.to_string());
        let mut references: Vec<StorePath> =
            (0..n.min(rng.below(3))).map(|_| path(&rng.below(n).to_string())).collect();
        references.retain(|path| t.store.is_valid(path).expect("is valid"));
        add(&t.store, &me, &nar, &references.iter().collect::<Vec<_>>());
        match rng.below(8) {
            0 => t.store.add_root(&n.to_string(), &me).expect("root"),
            1 => t.store.pin(&Pin { name: n.to_string(), paths: vec![me], until: None }).expect("pin"),
            // Wanted when its path goes, and given up afterwards: its manifest stays.
            2 => {
                let waiting = ingest(&t.store, &nar);
                let request = GcRequest { paths: vec![me], ..GcRequest::new(GcAction::DeleteDead) };
                t.store.collect(&request).expect("collect");
                drop(waiting);
            }
            // Never committed: a start finds its chunks whole.
            3 => drop(ingest(&t.store, &file(rng.noise(50_000)).nar())),
            _ => {}
        }
        if rng.below(60) == 0 {
            t = t.reopened();
        }
    }
    t
}

#[test]
fn a_plan_is_what_a_collection_does() {
    let mut rng = Rng::seeded("a_plan");
    let mut freed = 0;
    for round in 0..12 {
        let t = busy_store(&mut rng);
        let held = t.store.temp_roots();
        held.add(&path(&rng.below(10).to_string()));
        let waiting = ingest(&t.store, &file(rng.noise(50_000)).nar());
        let mut request = GcRequest::new(GcAction::DeleteDead);
        request.keep_derivations = rng.below(2) == 0;
        // The first has no limits, so that something is freed.
        if round > 0 && rng.below(2) == 0 {
            request.max_freed = rng.below(3_000_000);
        }
        if round > 0 && rng.below(3) == 0 {
            request.paths = (0..3).map(|_| path(&rng.below(100).to_string())).collect();
        }
        let before = t.store.stats().expect("stats");
        let plan = t.store.plan(&request).expect("plan");
        assert_eq!(t.store.stats().expect("stats"), before, "a plan changes nothing");
        let done = t.store.collect(&request).expect("collect");
        assert_eq!((plan.paths, plan.freed), (done.paths, done.freed), "round {round}: {request:?}");
        freed += done.freed;
        drop(waiting);
    }
    assert!(freed > 100_000, "{freed} bytes are no test");
}
