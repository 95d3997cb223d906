//! Graphs of derivations that do nothing, so that all a build costs is what it costs beside the building.

use shoal_tests::{Cmd, Nix, place};

#[derive(Clone, Copy)]
pub struct Graph {
    /// As `graphs.nix` calls it.
    pub shape: &'static str,
    pub nodes: usize,
}

impl Graph {
    /// A graph that nobody has built when nobody had the salt.
    pub fn args(&self, nix: &Nix, salt: &str) -> Vec<String> {
        let file = place::repository().join("benches/graphs.nix");
        let mut args = vec![file.display().to_string()];
        let mut name = |kind: &str, name: &str, value: String| args.extend([kind.into(), name.into(), value]);
        name("--argstr", "shape", self.shape.into());
        name("--argstr", "salt", salt.into());
        name("--arg", "nodes", self.nodes.to_string());
        name("--arg", "busybox", nix.busybox().display().to_string());
        args
    }

    /// `cmd` with this graph to build.
    pub fn on(&self, cmd: Cmd, nix: &Nix, salt: &str) -> Cmd {
        cmd.args(self.args(nix, salt))
    }
}
