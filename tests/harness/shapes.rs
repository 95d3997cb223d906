//! `tests/nix/shapes.nix`: small derivations for tests that are about something else than what is built.

use crate::command::Cmd;
use crate::machine::{Machine, Remote};
use crate::node::Node;
use crate::place;

/// Arguments that name attributes of the set.
pub fn args(machine: &Machine, salt: &str, attributes: &[&str]) -> Vec<String> {
    let expression = place::repository().join("tests/nix/shapes.nix").display().to_string();
    let busybox = machine.nix.busybox().display().to_string();
    let mut args = vec![expression, "--arg".into(), "busybox".into(), busybox, "--argstr".into(), "salt".into()];
    args.push(salt.into());
    args.extend(attributes.iter().flat_map(|attribute| ["-A".to_string(), attribute.to_string()]));
    args
}

/// `nix-build` of attributes in the machine's own store.
pub fn build_locally(machine: &Machine, attributes: &[&str]) -> Vec<String> {
    paths(machine.local("nix-build").arg("--no-out-link").args(args(machine, "", attributes)))
}

/// `nix-build` of attributes on a node.
pub fn build_on(machine: &Machine, node: &Node, remote: Remote, attributes: &[&str]) -> Vec<String> {
    paths(build_command(machine, node, remote, "", attributes))
}

pub fn build_command(machine: &Machine, node: &Node, remote: Remote, salt: &str, attributes: &[&str]) -> Cmd {
    machine.remote("nix-build", node, remote).arg("--no-out-link").args(args(machine, salt, attributes))
}

/// The path of an attribute's derivation, which is put into the node's store.
pub fn instantiate_on(machine: &Machine, node: &Node, remote: Remote, attribute: &str) -> String {
    let cmd = machine.remote("nix-instantiate", node, remote).args(args(machine, "", &[attribute]));
    cmd.ok().text().to_string()
}

fn paths(cmd: Cmd) -> Vec<String> {
    cmd.ok().lines().into_iter().map(String::from).collect()
}
