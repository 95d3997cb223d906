//! Members that say of builds what is not true, or say it in other versions, over the real protocol: nothing of it counts, the
//! log names who lied, and the others build.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_mesh::builds::Answer;
use shoal_tests::command::wait_for;
use shoal_tests::liar::{self, Shelf};
use shoal_tests::{Cmd, Liar, Machine, Mesh, Nix, Node, Remote, built, shapes};
use shoal_wire::mesh::builds::{BuildFrame, Offer};
use shoal_wire::nix::store_path::StorePath;

use crate::grid::has_built;

const PATIENCE: Duration = Duration::from_secs(120);
/// Of so many derivations some are offered to whoever has more places than the honest executor.
const REQUEST: [&str; 6] = ["many.0", "many.1", "many.2", "many.3", "many.4", "many.5"];
/// Of no NAR at all.
const WRONG_HASH: [u8; 32] = [9; 32];

/// An entry that builds nothing, and an executor.
fn start(machine: &Machine) -> Mesh {
    let mut mesh = Mesh { nodes: Vec::new() };
    mesh.add(&[machine], &["--no-build"]);
    mesh.add(&[machine], &["--max-jobs", "1"]);
    mesh.wait_until_whole();
    mesh
}

fn build(machine: &Machine, mesh: &Mesh, salt: &str) -> Cmd {
    shapes::build_command(machine, &mesh[0], Remote::SshNg, salt, &REQUEST).patience(PATIENCE)
}

/// All of a request is built by the honest one, `why` is in the entry's log beside the liar's name, and the mesh goes on
/// without it. `is_shunned`: it is asked for nothing more.
fn is_caught(why: &str, is_shunned: bool, lie: impl Fn(&Offer, &Shelf, &Answer) + Send + Sync + 'static) {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = start(&machine);
    let liar = Liar::join(&mesh[0], "liar", lie);
    let finished = build(&machine, &mesh, "").ok();
    println!("{} derivations with a liar, asked for {}: {:?}", REQUEST.len(), liar.offers(), finished.took);
    assert!(liar.offers() > 0, "it was asked for nothing: {finished}");
    assert_eq!(built(&finished).len(), REQUEST.len(), "{finished}");
    assert!(has_built(&mesh[1]) >= REQUEST.len(), "{finished}");
    for path in built(&finished) {
        let hashes: BTreeSet<String> = mesh.nodes.iter().filter_map(|node| node.nar_hash(&path)).collect();
        assert!(mesh[1].nar_hash(&path).is_some() && hashes.len() == 1, "{path}: {hashes:?}");
    }
    let log = mesh[0].log();
    assert!(log.lines().any(|line| line.contains("\"liar\"") && line.contains(why)), "{why}");
    if is_shunned {
        let offers = liar.offers();
        build(&machine, &mesh, "again").ok();
        assert_eq!(liar.offers(), offers, "it is asked again");
    }
    liar.leave(&mesh[0]);
    mesh.wait_until_whole();
    build(&machine, &mesh, "after").ok();
}

fn says_built(shelf: &Shelf, answer: &Answer, outputs: Vec<(String, StorePath)>) {
    answer.say(BuildFrame::Accepted);
    answer.say(BuildFrame::Started { at: None });
    answer.say(shelf.built(outputs, WRONG_HASH));
}

#[test]
fn who_says_that_it_built_what_it_does_not_have_is_caught() {
    is_caught("does not have it", true, |offer, shelf, answer| says_built(shelf, answer, shelf.outputs(offer)));
}

/// What it has under the name is not looked for again either.
#[test]
fn who_has_something_else_than_it_says_is_caught() {
    is_caught("it has another", false, |offer, shelf, answer| {
        let outputs = shelf.outputs(offer);
        shelf.has(outputs.iter().map(|(_, path)| shelf.makes(path, b"something else")).collect());
        says_built(shelf, answer, outputs);
    });
}

#[test]
fn who_names_outputs_of_something_else_is_caught() {
    is_caught("other outputs than those of the derivation", false, |offer, shelf, answer| {
        let other = StorePath::from_base_name(&format!("{}-other", "a".repeat(32))).expect("a path");
        let outputs = shelf.outputs(offer).into_iter().map(|(name, _)| (name, other.clone()));
        says_built(shelf, answer, outputs.collect());
    });
}

/// It lives, as its connection says each second, and says neither yes nor no.
#[test]
fn who_never_says_whether_it_builds_is_done_without() {
    is_caught("it does not answer", false, |_, _, answer| {
        let (gone, heard) = std::sync::mpsc::channel();
        answer.watch(move || _ = gone.send(()));
        // Whoever asked gives up long before.
        let _ = heard.recv_timeout(PATIENCE);
    });
}

/// The coordinator that is followed has nothing of what it tells of, nor does the one that follows.
#[test]
fn who_tells_of_what_another_node_has_is_no_liar() {
    let (machine, other) = (Machine::new(&Nix::newest()), Machine::new(&Nix::newest()));
    let mut mesh = Mesh { nodes: Vec::new() };
    for own in [&["--no-build"][..], &["--no-build"], &["--max-jobs", "1"]] {
        mesh.add(&[&machine, &other], &[own, &["--copies", "1"]].concat());
    }
    mesh.wait_until_whole();
    let build = |machine: &Machine, node: usize| {
        shapes::build_command(machine, &mesh[node], Remote::SshNg, "", &["afterLeisurely"]).start()
    };
    let client = build(&machine, 0);
    wait_for("a builder", PATIENCE, || (!mesh[2].builders().is_empty()).then_some(()));
    let follower = build(&other, 1);
    let paths = [client, follower].map(|client| built(&client.finish(PATIENCE).expect_code(0)));
    assert_eq!(paths[0], paths[1]);
    for log in mesh.nodes.iter().map(Node::log) {
        assert!(!log.contains("what cannot be") && !log.contains("distrusted"), "{log}");
    }
}

/// It says at first that it does not have what it built, as one might whose answer overtakes its own disk.
#[test]
fn who_has_what_it_built_a_moment_later_is_no_liar() {
    let machine = Machine::new(&Nix::newest());
    let mesh = start(&machine);
    let slow = Liar::join(&mesh[0], "slow", |offer, shelf, answer| {
        let (questions, outputs) = (shelf.questions(), shelf.outputs(offer));
        let made = outputs.iter().map(|(_, path)| shelf.makes(path, b"slow")).collect();
        answer.say(BuildFrame::Accepted);
        answer.say(BuildFrame::Started { at: None });
        answer.say(shelf.built(outputs.clone(), Shelf::nar_hash(b"slow")));
        wait_for("a question", PATIENCE, || (shelf.questions() > questions).then_some(()));
        shelf.has(made);
    });
    let finished = build(&machine, &mesh, "").ok();
    assert!(slow.offers() > 0, "it was asked for nothing: {finished}");
    assert_eq!(built(&finished).len(), REQUEST.len(), "{finished}");
    let log = mesh[0].log();
    assert!(!log.contains("distrusted"), "{log}");
    let offers = slow.offers();
    build(&machine, &mesh, "again").ok();
    assert!(slow.offers() > offers, "it is asked no more");
}

/// What it says of the versions that it speaks is heeded: it could not read the offer.
#[test]
fn who_speaks_of_builds_in_another_version_is_asked_for_none() {
    let machine = Machine::new(&Nix::newest());
    let mesh = start(&machine);
    for (name, version) in [("older", liar::BUILDS_VERSION - 1), ("newer", liar::BUILDS_VERSION + 1)] {
        let other = Liar::join_with(&mesh[0], name, version, |offer, shelf, answer| {
            says_built(shelf, answer, shelf.outputs(offer));
        });
        build(&machine, &mesh, name).ok();
        assert_eq!(other.offers(), 0, "{name}");
        other.leave(&mesh[0]);
    }
}
