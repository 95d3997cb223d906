//! `tests/nix/dag.nix`: a random graph of small derivations whose result follows from its seed.

use crate::command::Cmd;
use crate::machine::{Machine, Remote};
use crate::node::Node;
use crate::place;

#[derive(Clone, Copy, Debug)]
pub struct Dag {
    /// Derivations, besides the one above all of them.
    pub nodes: usize,
    pub seed: u64,
    /// How long each builder naps, in milliseconds.
    pub nap_ms: u64,
}

impl Dag {
    /// The set's file and what it is called with.
    pub fn expression(&self, machine: &Machine, salt: &str) -> Vec<String> {
        let file = place::repository().join("tests/nix/dag.nix").display().to_string();
        let (busybox, nodes) = (machine.nix.busybox().display().to_string(), self.nodes.to_string());
        let (seed, nap) = (self.seed.to_string(), format!("{}.{:03}", self.nap_ms / 1_000, self.nap_ms % 1_000));
        let named = ["--arg", "busybox", &busybox, "--arg", "nodes", &nodes, "--argstr", "seed", &seed];
        let rest = ["--argstr", "nap", &nap, "--argstr", "salt", salt];
        std::iter::once(file).chain(named.into_iter().chain(rest).map(String::from)).collect()
    }

    /// Builds it all; prints one path, which holds the same whatever the salt.
    pub fn build(&self, machine: &Machine, node: &Node, salt: &str) -> Cmd {
        machine.build(node, Remote::SshNg, &self.expression(machine, salt), &[])
    }
}
