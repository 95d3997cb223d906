//! How a node comes into a mesh.

use std::time::Duration;

use shoal_tests::command::wait_for;
use shoal_tests::mesh::{invite, peers};
use shoal_tests::{Machine, Nix, Node, Remote, shapes};

/// Two nodes that find each other, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `node` knows `count` nodes to be there, itself among them.
fn wait_for_nodes(node: &Node, count: usize) {
    wait_for("the nodes of the mesh", PATIENCE, || {
        let peers = node.shoal("peers --json").run();
        let peers: Vec<serde_json::Value> = serde_json::from_str(&peers.stdout).unwrap_or_default();
        (peers.iter().filter(|peer| peer["state"] == "alive").count() == count).then_some(())
    });
}

#[test]
fn a_node_that_was_alone_joins_by_its_configuration() {
    let first = Node::start(&[]);
    let mut second = Node::start(&[]);
    second.stop();
    let ticket = first.shoal("mesh invite").ok();
    second.use_flags(&["--join", ticket.text()]);
    second.start_again();
    wait_for_nodes(&first, 2);
    wait_for_nodes(&second, 2);
    let shown = |node: &Node| node.shoal("key show").ok().text().to_string();
    assert_eq!(shown(&first), shown(&second), "they sign with one key");
    second.stop();
    second.start_again();
    wait_for_nodes(&second, 2);
}

/// Two nodes that were alone and share a secret from now on; the second has the flags that `to_find` gives for the first.
fn join_by_secret(to_find: impl Fn(&Node) -> [String; 2]) {
    let mut nodes = [Node::start(&[]), Node::start(&[])];
    let secret = nodes[0].data_dir().with_file_name("secret");
    let secret = secret.to_str().unwrap();
    nodes[0].shoal(&format!("mesh create --secret-file {secret}")).ok();
    nodes.iter_mut().for_each(Node::stop);
    nodes[0].use_flags(&["--mesh-secret-file", secret]);
    nodes[0].start_again();
    let [flag, value] = to_find(&nodes[0]);
    nodes[1].use_flags(&["--mesh-secret-file", secret, &flag, &value]);
    nodes[1].start_again();
    nodes.iter().for_each(|node| wait_for_nodes(node, 2));
    let shown = |node: &Node| node.shoal("key show").ok().text().to_string();
    assert_eq!(shown(&nodes[0]), shown(&nodes[1]), "they sign with the secret's key, which only their flags name");
}

#[test]
fn nodes_that_were_alone_are_one_mesh_by_a_secret() {
    join_by_secret(|first| {
        let json = &first.ready().json;
        let peer = format!("{}@{}", json["node_id"].as_str().unwrap(), json["mesh"].as_str().unwrap());
        ["--peer".into(), peer]
    });
}

/// They know nothing of each other but a name that leads to all of them.
#[test]
fn nodes_find_each_other_by_a_name() {
    join_by_secret(|first| {
        let port = first.ready().http.rsplit(':').next().unwrap().to_owned();
        ["--peer-dns".into(), format!("localhost:{port}")]
    });
}

#[test]
fn a_running_node_joins_a_mesh_and_leaves_it_with_what_it_had_on_others() {
    let machine = Machine::new(&Nix::newest());
    let first = Node::start_with(&[&machine], &["--name", "stays"]);
    let mut second = Node::start_with(&[&machine], &["--name", "goes"]);
    second.shoal(&format!("mesh join {}", invite(&first, ""))).ok();
    second.wait_for_restart();
    wait_for_nodes(&first, 2);
    wait_for_nodes(&second, 2);
    let twice = second.shoal(&format!("mesh join {}", invite(&first, ""))).fails();
    assert!(twice.stderr.contains("shoal mesh leave"), "{twice}");
    let paths = shapes::build_on(&machine, &second, Remote::SshNg, &["hello", "twice"]);
    second.shoal("mesh leave").ok();
    second.wait_for_restart();
    wait_for("the other one to know of it", PATIENCE, || {
        (peers(&first).get("goes").map(String::as_str) == Some("left")).then_some(())
    });
    assert_eq!(peers(&second).into_keys().collect::<Vec<_>>(), ["goes"], "it is a mesh of its own");
    assert!(paths.iter().all(|path| first.valid().contains(path)));
    second.shoal(&format!("mesh join {}", invite(&first, ""))).ok();
    second.wait_for_restart();
    wait_for_nodes(&first, 2);
}
