//! Builds that several nodes must agree on, while somebody waits for what others vote on, nodes stop, and voters die.

use std::time::Duration;

use shoal_tests::command::wait_for;
use shoal_tests::{Machine, Mesh, Nix, Node, Remote, built, shapes};

use crate::grid::has_built;

const PATIENCE: Duration = Duration::from_secs(90);
const QUORUM: [&str; 2] = ["--build-quorum", "2"];
/// Voters that one derivation may take with it.
const LOSSES_MAX: usize = 5;

fn mesh(machine: &Machine, flags: &[&[&str]]) -> Mesh {
    let mut mesh = Mesh { nodes: Vec::new() };
    flags.iter().for_each(|flags| mesh.add(&[machine], flags));
    mesh.wait_until_whole();
    mesh
}

fn state(node: &Node, drv: &str) -> String {
    let told = node.shoal("explain --json").arg(drv).run();
    if told.status.code() != Some(0) {
        return String::new();
    }
    told.json()[0]["state"].as_str().unwrap_or_default().to_owned()
}

fn sum(mesh: &Mesh) -> usize {
    mesh.nodes.iter().map(has_built).sum()
}

/// Nodes on which a builder runs.
fn voting(mesh: &Mesh) -> Vec<usize> {
    (0..mesh.nodes.len()).filter(|node| mesh[*node].runs() && !mesh[*node].builders().is_empty()).collect()
}

/// One voter is done and the other is not when the second client asks.
#[test]
fn who_asks_while_others_vote_follows_the_vote() {
    let machine = Machine::new(&Nix::newest());
    let flags = |cores| [&QUORUM[..], &["--cores", cores]].concat();
    let mesh = mesh(&machine, &[&flags("1"), &flags("2"), &flags("2")]);
    let client = shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &["paced"]).start();
    wait_for("the first vote", PATIENCE, || (has_built(&mesh[0]) == 1 && !voting(&mesh).is_empty()).then_some(()));
    let drv = shapes::instantiate_on(&machine, &mesh[2], Remote::SshNg, "paced");
    let follower = shapes::build_command(&machine, &mesh[2], Remote::SshNg, "", &["paced"]).start();
    wait_for("one that follows, or an end", PATIENCE, || {
        (state(&mesh[2], &drv) == "follows" || sum(&mesh) > 1).then_some(())
    });
    let paths = [client, follower].map(|client| built(&client.finish(PATIENCE).expect_code(0)));
    assert_eq!(paths[0], paths[1]);
    assert_eq!(sum(&mesh), 2, "it was voted on once");
}

#[test]
fn a_node_that_stops_votes_on_what_its_clients_wait_for_and_is_followed_meanwhile() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = mesh(&machine, &[&QUORUM, &QUORUM]);
    let client = shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &["afterLeisurely"]).start();
    wait_for("two voters", PATIENCE, || (voting(&mesh).len() == 2).then_some(()));
    mesh[0].signal(rustix::process::Signal::TERM);
    wait_for("a node that drains", PATIENCE, || mesh[0].log().contains("a second signal stops at once").then_some(()));
    let follower = shapes::build_command(&machine, &mesh[1], Remote::SshNg, "", &["leisurely"]).start();
    follower.finish(PATIENCE).expect_code(0);
    let finished = client.finish(PATIENCE).expect_code(0);
    assert_eq!((built(&finished).len(), has_built(&mesh[1])), (1, 2), "{finished}");
    wait_for("the end of the first node", PATIENCE, || mesh[0].has_ended().then_some(()));
}

#[test]
fn what_is_too_long_to_be_sent_is_built_where_it_is_and_never_with_fewer_votes() {
    let machine = Machine::new(&Nix::newest());
    let mesh = mesh(&machine, &[&[], &[]]);
    let drv = shapes::instantiate_on(&machine, &mesh[0], Remote::SshNg, "long");
    let failed = mesh[0].shoal("build --quorum 2").arg(&drv).fails();
    for part in ["2 nodes must agree on it, and 1 can build it", "too long to be sent"] {
        assert!(failed.stderr.contains(part), "{part}: {failed}");
    }
    shapes::build_on(&machine, &mesh[0], Remote::SshNg, &["long"]);
    assert!(has_built(&mesh[0]) > 0 && has_built(&mesh[1]) == 0);
}

/// It takes as many nodes with it as anything may, however many follow.
#[test]
fn a_vote_that_is_given_up_is_given_up_for_who_follows_too() {
    let (machine, other) = (Machine::new(&Nix::newest()), Machine::new(&Nix::newest()));
    let entry = [&QUORUM[..], &["--no-build"]].concat();
    let executor = ["--max-jobs", "1"];
    let mut mesh = Mesh { nodes: Vec::new() };
    [&entry[..], &entry, &executor, &executor, &executor].iter().for_each(|flags| mesh.add(&[&machine, &other], flags));
    mesh.wait_until_whole();
    let mut client = shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &["silent"]).start();
    wait_for("two voters", PATIENCE, || (voting(&mesh).len() == 2).then_some(()));
    let drv = shapes::instantiate_on(&other, &mesh[1], Remote::SshNg, "silent");
    let follower = shapes::build_command(&other, &mesh[1], Remote::SshNg, "", &["silent"]).start();
    wait_for("one that follows", PATIENCE, || (state(&mesh[1], &drv) == "follows").then_some(()));
    let mut kills = 0;
    loop {
        let voters = wait_for("two voters, or the end", PATIENCE, || {
            let voters = voting(&mesh);
            if client.has_ended() { Some(Vec::new()) } else { Some(voters).filter(|voters| voters.len() == 2) }
        });
        let Some(victim) = voters.first() else { break };
        kills += 1;
        assert!(kills <= LOSSES_MAX, "it is tried once more");
        mesh[*victim].crash();
        mesh[*victim].start_again();
    }
    for client in [client, follower] {
        let finished = client.finish(PATIENCE);
        assert!(!finished.status.success() && finished.stderr.contains("was given up"), "{finished}");
    }
    assert_eq!((kills, voting(&mesh)), (LOSSES_MAX, vec![]));
}

/// The first vote is there, and who could give the second has no place, when somebody wants a third.
#[test]
fn who_wants_more_votes_gets_them_of_a_vote_that_waits_at_another_node() {
    let machine = Machine::new(&Nix::newest());
    let one = ["--max-jobs", "1"];
    let with = |feature| [&one[..], &["--feature", feature]].concat();
    let mesh = mesh(&machine, &[&one, &with("alpha"), &with("beta"), &["--no-build"]]);
    let busy = ["alphaSleeps", "betaSleeps"]
        .map(|attribute| shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &[attribute]).start());
    wait_for("two nodes that are busy", PATIENCE, || (voting(&mesh) == [1, 2]).then_some(()));
    let drvs = [0, 3].map(|node: usize| shapes::instantiate_on(&machine, &mesh[node], Remote::SshNg, "hello"));
    let first = mesh[0].shoal("build --quorum 2").arg(&drvs[0]).start();
    wait_for("the first vote", PATIENCE, || (has_built(&mesh[0]) == 1).then_some(()));
    // Who wants more than there can be is refused, and the others' vote goes on.
    for node in [0, 3] {
        let failed = mesh[node].shoal("build --quorum 4").arg(&drvs[node / 3]).fails();
        assert!(failed.stderr.contains("4 nodes must agree on it, and 3 can build it"), "{failed}");
    }
    let second = mesh[3].shoal("build --quorum 3").arg(&drvs[1]).start();
    wait_for("one that follows", PATIENCE, || (state(&mesh[3], &drvs[1]) == "follows").then_some(()));
    drop(busy);
    for client in [first, second] {
        client.finish(PATIENCE).expect_code(0);
    }
    let hello = |node: &Node| {
        let builds = node.shoal("builds --json").ok().json();
        let is_hello = |build: &&serde_json::Value| build["drv_path"].to_string().contains("-hello.drv");
        builds.as_array().into_iter().flatten().filter(is_hello).filter(|build| build["state"] == "built").count()
    };
    assert_eq!(mesh.nodes.iter().map(hello).sum::<usize>(), 3);
}
