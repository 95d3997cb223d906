//! Nodes that are one mesh.

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};
use std::time::Duration;

use crate::command::wait_for;
use crate::machine::Machine;
use crate::node::Node;

/// Until all know of a node that came or went, on a busy machine.
pub const SEEN_PATIENCE: Duration = Duration::from_secs(90);

/// Nodes by number, called `n0`, `n1` and so on. The first made the mesh, the others came by tickets of it.
pub struct Mesh {
    pub nodes: Vec<Node>,
}

impl Mesh {
    /// So many nodes that see each other and let `machines` in.
    pub fn start(count: usize, machines: &[&Machine]) -> Mesh {
        Mesh::start_with(count, machines, &[])
    }

    pub fn start_with(count: usize, machines: &[&Machine], flags: &[&str]) -> Mesh {
        let mut mesh = Mesh { nodes: Vec::new() };
        (0..count).for_each(|_| mesh.add(machines, flags));
        mesh.wait_until_whole();
        mesh
    }

    /// One more, by a new ticket.
    pub fn add(&mut self, machines: &[&Machine], flags: &[&str]) {
        let name = format!("n{}", self.nodes.len());
        let ticket = self.nodes.first().map(|first| invite(first, ""));
        let mut all = vec!["--name", &name];
        all.extend(ticket.iter().flat_map(|ticket| ["--join", ticket]));
        all.extend(flags);
        self.nodes.push(Node::start_with(machines, &all));
    }

    /// Waits until each node that runs sees exactly those that run as live.
    pub fn wait_until_whole(&mut self) {
        let running: Vec<bool> = self.nodes.iter_mut().map(|node| !node.has_ended()).collect();
        let expected = |name: &str| {
            let number = name.strip_prefix('n').and_then(|number| number.parse::<usize>().ok());
            number.and_then(|number| running.get(number)).copied().unwrap_or(false)
        };
        let count = running.iter().filter(|runs| **runs).count();
        let mut seen = BTreeMap::new();
        wait_for("a mesh whose nodes see each other", SEEN_PATIENCE, || {
            self.nodes
                .iter()
                .zip(&running)
                .filter(|(_, runs)| **runs)
                .all(|(node, _)| {
                    seen = peers(node);
                    let live = || seen.iter().filter(|(_, state)| is_live(state)).map(|(name, _)| name);
                    live().count() == count && live().all(|name| expected(name))
                })
                .then_some(())
        });
    }

    /// How many running nodes have the path themselves.
    pub fn holders(&self, path: &str) -> usize {
        self.nodes.iter().filter(|node| node.runs() && node.valid().contains(path)).count()
    }
}

impl Index<usize> for Mesh {
    type Output = Node;

    fn index(&self, number: usize) -> &Node {
        &self.nodes[number]
    }
}

impl IndexMut<usize> for Mesh {
    fn index_mut(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number]
    }
}

/// A ticket; `flags` as for `shoal mesh invite`.
pub fn invite(node: &Node, flags: &str) -> String {
    node.shoal(&format!("mesh invite {flags}")).ok().text().to_string()
}

/// Members by name and what the node thinks of them: `alive`, `suspected`, `dead`, `left` and so on.
pub fn peers(node: &Node) -> BTreeMap<String, String> {
    let finished = node.shoal("peers --json").run();
    if !finished.status.success() {
        return BTreeMap::new();
    }
    let json = finished.json();
    let text = |peer: &serde_json::Value, field: &str| peer[field].as_str().unwrap_or_default().to_string();
    json.as_array().into_iter().flatten().map(|peer| (text(peer, "name"), text(peer, "state"))).collect()
}

pub fn is_live(state: &str) -> bool {
    matches!(state, "alive" | "suspected")
}
