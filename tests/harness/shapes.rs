//! `tests/nix/shapes.nix`: small derivations for tests that are about something else than what is built.

use crate::command::Cmd;
use crate::machine::{Machine, Remote, built};
use crate::node::Node;
use crate::place;

/// The set's file and what it is called with.
pub fn expression(machine: &Machine, salt: &str) -> Vec<String> {
    let file = place::repository().join("tests/nix/shapes.nix").display().to_string();
    let busybox = machine.nix.busybox().display().to_string();
    let named = ["--arg", "busybox", &busybox, "--argstr", "salt", salt].map(String::from);
    std::iter::once(file).chain(named).collect()
}

/// Arguments that name attributes of the set.
pub fn args(machine: &Machine, salt: &str, attributes: &[&str]) -> Vec<String> {
    let attributes = attributes.iter().flat_map(|attribute| ["-A".to_string(), attribute.to_string()]);
    expression(machine, salt).into_iter().chain(attributes).collect()
}

/// `nix-build` of attributes in the machine's own store.
pub fn build_locally(machine: &Machine, attributes: &[&str]) -> Vec<String> {
    built(&machine.local("nix-build").arg("--no-out-link").args(args(machine, "", attributes)).ok())
}

/// Builds attributes on a node; the paths.
pub fn build_on(machine: &Machine, node: &Node, remote: Remote, attributes: &[&str]) -> Vec<String> {
    built(&build_command(machine, node, remote, "", attributes).ok())
}

pub fn build_command(machine: &Machine, node: &Node, remote: Remote, salt: &str, attributes: &[&str]) -> Cmd {
    machine.build(node, remote, &expression(machine, salt), attributes)
}

/// The path of an attribute's derivation, which is put into the node's store.
pub fn instantiate_on(machine: &Machine, node: &Node, remote: Remote, attribute: &str) -> String {
    let cmd = machine.remote("nix-instantiate", node, remote).args(args(machine, "", &[attribute]));
    cmd.ok().text().to_string()
}
