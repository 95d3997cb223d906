//! The two package sets: the project's own, and the larger one beside the repository.

use std::path::PathBuf;
use std::time::Duration;

use crate::command::Cmd;
use crate::place;

const FETCH_PATIENCE: Duration = Duration::from_secs(900);

/// A Nix expression and the directory of what it compiles.
#[derive(Clone, Debug)]
pub struct PackageSet {
    pub expression: PathBuf,
    pub sources: PathBuf,
}

/// `examples/software`.
pub fn examples() -> PackageSet {
    let expression = place::repository().join("examples/software");
    let sources = place::kept().join("examples");
    Cmd::new(expression.join("fetch")).arg(&sources).patience(FETCH_PATIENCE).ok();
    PackageSet { expression, sources }
}

/// `mini`: 150 outputs of real software and of awkward derivations, with what a real Nix made of them. `None` where
/// it is not beside this repository.
pub fn mini() -> Option<PackageSet> {
    let expression = place::shared()?.join("nix-clients/mini");
    let sources = place::kept().join("sources");
    let mut fetch = Cmd::new(expression.join("fetch-sources")).arg(&sources).patience(FETCH_PATIENCE);
    for name in ["HOME", "CARGO_HOME", "RUSTUP_HOME"] {
        if let Some(value) = std::env::var_os(name) {
            fetch = fetch.env(name, value);
        }
    }
    fetch.ok();
    Some(PackageSet { expression, sources })
}

impl PackageSet {
    /// Arguments that name the set for `nix-build` and its kin.
    pub fn args(&self) -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        vec![path(&self.expression), "--arg".into(), "sources".into(), path(&self.sources)]
    }

    pub fn expected(&self) -> PathBuf {
        self.expression.join("expected.tsv")
    }
}
