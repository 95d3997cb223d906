//! What a mesh keeps while its nodes come, go and are killed.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use shoal_tests::command::wait_for;
use shoal_tests::mesh::{invite, is_live, peers};
use shoal_tests::random::Random;
use shoal_tests::{Machine, Mesh, Nix, Node, Remote, built, is_full, shapes};

use crate::keeping::damage;
use crate::mesh::substitute;

const ROUNDS: u32 = 4;
const ROUNDS_FULL: u32 = 30;
/// A kill falls anywhere into what a round does.
const KILL_AFTER_MS_MAX: u64 = 1_200;
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);
/// Longer than it takes to add a derivation, shorter than until two that are silent are taken for dead.
const COPIES_STUCK: Duration = Duration::from_secs(2);
/// A repair begins after half a minute, and a busy machine takes its time.
const REPAIR_PATIENCE: Duration = Duration::from_secs(120);
/// Until all know what happened.
const HEARD_PATIENCE: Duration = Duration::from_secs(40);

fn serves(node: &Node, path: &str) -> bool {
    node.shoal(&format!("paths --json {path}")).run().status.success()
}

/// Any node is killed at any moment while a client pushes to any node.
#[test]
fn what_was_acknowledged_survives_any_kill_and_is_on_two_nodes_again() {
    let machine = Machine::new(&Nix::newest());
    let mut random = Random::seeded();
    let mut mesh = Mesh::start(3, &[&machine]);
    let mut promised = BTreeSet::new();
    for round in 0..if is_full() { ROUNDS_FULL } else { ROUNDS } {
        let file = machine.path(&format!("upload-{round}"));
        let len = ((random.below(12) + 1) << 21) as usize;
        std::fs::write(&file, random.noise(len)).unwrap();
        let path = machine.local("nix-store").arg("--add").arg(&file).ok().text().to_string();
        std::fs::remove_file(&file).unwrap();
        let (entry, victim) = (random.below(3) as usize, random.below(3) as usize);
        let store = machine.store(&mesh[entry], Remote::SshNg);
        let client = machine.near("nix", &mesh[entry]).args(["copy", "--to", &store, &path]).start();
        thread::sleep(Duration::from_millis(random.below(KILL_AFTER_MS_MAX)));
        mesh[victim].kill();
        let finished = client.finish(CLIENT_PATIENCE);
        if finished.status.success() {
            promised.insert(path.clone());
        }
        for path in &promised {
            for node in mesh.nodes.iter().filter(|node| node.runs()) {
                assert!(serves(node, path), "round {round}: {path} is lost after node {victim} was killed");
            }
        }
        mesh[victim].start_again();
        mesh.wait_until_whole();
    }
    let promised: Vec<String> = promised.into_iter().collect();
    wait_for("two copies of each path", REPAIR_PATIENCE, || {
        promised.iter().all(|path| mesh.holders(path) >= 2).then_some(())
    });
    let key = mesh[0].key();
    mesh.nodes.iter().for_each(|node| substitute(&Nix::newest(), node, &key, &promised));
}

/// Clients add derivations one by one, and some add nothing after the last.
#[test]
fn a_derivation_that_was_acknowledged_survives_the_node_that_took_it() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh::start(3, &[&machine]);
    let add = |mesh: &Mesh, salt: &str| {
        let args = shapes::args(&machine, salt, &["hello"]);
        machine.remote("nix-instantiate", &mesh[0], Remote::SshNg).args(args)
    };
    for salt in ["a", "b"] {
        let drv = add(&mesh, salt).ok().text().to_owned();
        mesh[0].kill();
        assert!(serves(&mesh[1], &drv) && serves(&mesh[2], &drv), "{drv} is lost with the node that acknowledged it");
        mesh[0].start_again();
        mesh.wait_until_whole();
    }
    // Nobody can have a copy before it is said that there is one.
    [1, 2].iter().for_each(|node| mesh[*node].signal(Signal::STOP));
    let client = add(&mesh, "c").start();
    thread::sleep(COPIES_STUCK);
    mesh[0].kill();
    [1, 2].iter().for_each(|node| mesh[*node].signal(Signal::CONT));
    let added = client.finish(CLIENT_PATIENCE);
    if added.status.success() {
        let drv = added.text().to_owned();
        assert!(serves(&mesh[1], &drv) && serves(&mesh[2], &drv), "{drv} was acknowledged without a copy");
    }
}

/// The node that is killed does not come back: the others make the copies that it had.
#[test]
fn what_a_dead_node_had_is_on_two_nodes_again() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh::start(3, &[&machine]);
    let paths: BTreeSet<String> = (0..3)
        .flat_map(|entry| {
            let salt = entry.to_string();
            built(&shapes::build_command(&machine, &mesh[entry], Remote::SshNg, &salt, &["chain", "outputs"]).ok())
        })
        .collect();
    assert!(paths.iter().all(|path| mesh.holders(path) >= 2), "acknowledged on one node only");
    let victim = Random::seeded().below(3) as usize;
    mesh[victim].kill();
    assert!(paths.iter().any(|path| mesh.holders(path) < 2), "it had nothing that another lacks: {paths:?}");
    wait_for("two live copies of each path", REPAIR_PATIENCE, || {
        paths.iter().all(|path| mesh.holders(path) >= 2).then_some(())
    });
    let (key, paths) = (mesh[0].key(), Vec::from_iter(paths));
    let live = mesh.nodes.iter().filter(|node| node.runs());
    live.for_each(|node| substitute(&Nix::newest(), node, &key, &paths));
}

/// No cache is behind this mesh.
#[test]
fn what_a_disk_damages_is_healed_by_another_node() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh::start(2, &[&machine]);
    let key = mesh[0].key();
    let path = shapes::build_on(&machine, &mesh[0], Remote::SshNg, &["large"]).remove(0);
    assert_eq!(mesh.holders(&path), 2);
    mesh[0].stop();
    damage(&mesh[0], 0);
    mesh[0].start_again();
    mesh.wait_until_whole();
    let scrubbed = mesh[0].shoal("scrub").ok();
    assert!(
        scrubbed.stdout.contains(&format!("damaged: {path}")) && scrubbed.stdout.contains(&format!("healed: {path}")),
        "{scrubbed}"
    );
    assert_eq!(mesh[0].shoal("status --json").ok().json()["store"]["damaged"], 0);
    mesh[1].kill();
    substitute(&Nix::newest(), &mesh[0], &key, &[path]);
}

#[test]
fn who_leaves_hands_over_what_only_it_has() {
    let machine = Machine::new(&Nix::newest());
    let mesh = Mesh::start_with(3, &[&machine], &["--copies", "1"]);
    let path = shapes::build_on(&machine, &mesh[1], Remote::SshNg, &["hello"]).remove(0);
    assert_eq!(mesh.holders(&path), 1);
    let configured = mesh[1].shoal("mesh leave").fails();
    assert!(configured.stderr.contains("join"), "its configuration would bring it back: {configured}");
    let alone = mesh[1].shoal("drain").ok();
    assert!(alone.stdout.contains("paths are on other nodes"), "{alone}");
    let others = [&mesh[0], &mesh[2]];
    assert!(others.iter().any(|node| node.valid().contains(&path)), "nobody else has it");
}

/// A node that says nothing still counts as alive for some seconds. Who adds derivations goes on at another node meanwhile.
#[test]
fn a_derivation_that_a_silent_node_alone_has_is_not_called_valid() {
    let machine = Machine::new(&Nix::newest());
    let mesh = Mesh::start_with(2, &[&machine], &["--copies", "1"]);
    let add = machine.remote("nix-instantiate", &mesh[0], Remote::SshNg).args(shapes::args(&machine, "", &["hello"]));
    let drv = add.ok().text().to_owned();
    let check = || machine.remote("nix-store", &mesh[1], Remote::SshNg).args(["--check-validity", &drv]).run();
    wait_for("the other node to hear of it", HEARD_PATIENCE, || check().status.success().then_some(()));
    assert_eq!(mesh.holders(&drv), 1);
    mesh[0].signal(Signal::STOP);
    let silent = check();
    let live = peers(&mesh[1]).values().filter(|state| is_live(state)).count();
    mesh[0].signal(Signal::CONT);
    assert!(!silent.status.success(), "{silent}");
    assert_eq!(live, 2, "it was taken for dead by then, and this tried nothing");
}

#[test]
fn tickets_let_in_whom_they_are_for() {
    let mut first = Node::start(&[]);
    let join = |node: &Node, ticket: &str| node.shoal(&format!("mesh join {ticket}"));
    let mut others = [Node::start(&[]), Node::start(&[])];
    others.iter_mut().for_each(Node::stop);
    let once = invite(&first, "");
    join(&others[0], &once).ok();
    let spent = join(&others[1], &once).fails();
    assert!(spent.stderr.contains("another has used it"), "{spent}");
    let damaged = join(&others[1], &format!("{}0", &once[..once.len() - 1])).fails();
    assert!(damaged.stderr.contains("ticket"), "{damaged}");
    let dead = invite(&first, "--reusable");
    first.stop();
    let stranger = Node::start(&[]);
    let unreachable = join(&stranger, &dead).fails();
    assert!(unreachable.stderr.contains("none of the nodes in the ticket can be reached"), "{unreachable}");
}

#[test]
fn a_revoked_node_is_out_and_the_others_go_on() {
    let machine = Machine::new(&Nix::newest());
    let mesh = Mesh::start(3, &[&machine]);
    mesh[0].shoal("mesh revoke n2").ok();
    wait_for("two that know of it", HEARD_PATIENCE, || {
        let is_out = |node: &Node| !peers(node).iter().any(|(name, state)| name == "n2" && is_live(state));
        (is_out(&mesh[0]) && is_out(&mesh[1])).then_some(())
    });
    let path = built(&shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &["hello"]).ok()).remove(0);
    assert!(serves(&mesh[1], &path));
    assert!(!mesh[2].valid().contains(&path), "who is out gets no copy");
}

#[test]
fn a_collection_leaves_the_last_copy() {
    let machine = Machine::new(&Nix::newest());
    let mesh = Mesh::start(2, &[&machine]);
    let path = shapes::build_on(&machine, &mesh[0], Remote::SshNg, &["hello"]).remove(0);
    wait_for("both to have it", HEARD_PATIENCE, || (mesh.holders(&path) == 2).then_some(()));
    wait_for("one copy to be enough", HEARD_PATIENCE, || {
        mesh[0].shoal("gc").ok();
        (mesh.holders(&path) == 1).then_some(())
    });
    mesh[1].shoal("gc").ok();
    assert_eq!(mesh.holders(&path), 1, "the last copy stays");
    let holder = if mesh[0].valid().contains(&path) { &mesh[0] } else { &mesh[1] };
    let refused = machine.remote("nix-store", holder, Remote::SshNg).args(["--delete", &path]).fails();
    assert!(refused.stderr.contains("no other node of the mesh"), "{refused}");
    assert!(serves(&mesh[0], &path));
}

/// Machines that want the same of a cache behind the mesh at once, each through another node.
#[test]
fn a_path_comes_from_the_cache_behind_the_mesh_once() {
    let nix = Nix::newest();
    let machine = Machine::new(&nix);
    let upstream = Node::start(&[&machine]);
    // In full, twenty nodes that ask for five hundred.
    let (count, more): (usize, &[&str]) = if is_full() { (20, &["hundreds"]) } else { (4, &[]) };
    let attributes = [&["many", "chain", "hello", "twice"], more].concat();
    let paths = shapes::build_on(&machine, &upstream, Remote::SshNg, &attributes);
    let (url, key) = (upstream.ready().http.clone(), upstream.key());
    let mesh = Mesh::start_with(count, &[], &["--upstream", &url, "--trusted-public-key", &key]);
    thread::scope(|scope| {
        for node in &mesh.nodes {
            scope.spawn(|| substitute(&nix, node, &key, &paths));
        }
    });
    let fetched = |node: &Node| {
        let status = node.shoal("status --json").ok().json();
        status["upstreams"][0]["fetched_paths"].as_u64().unwrap()
    };
    let fetched: u64 = mesh.nodes.iter().map(fetched).sum();
    let wanted = mesh[0].valid().len() as u64;
    assert!(wanted > 10 && fetched >= wanted, "{fetched} of {wanted}");
    println!("{fetched} downloads of {wanted} paths for {count} nodes");
    assert!(fetched <= wanted + wanted.div_ceil(100), "{fetched} downloads of {wanted} paths");
}
