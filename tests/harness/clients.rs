//! Real Nix clients of several versions.

use std::path::PathBuf;
use std::time::Duration;

use crate::command::Cmd;
use crate::place;

/// The oldest and the newest that distributions ship, and one between.
pub const VERSIONS: [&str; 3] = ["2.8", "2.26", "2.34"];
pub const NEWEST: &str = "2.34";
/// The first time a client's packages are fetched.
const FETCH_PATIENCE: Duration = Duration::from_secs(600);

#[derive(Clone, Debug)]
pub struct Nix {
    pub version: &'static str,
    dir: PathBuf,
}

impl Nix {
    /// The client of that version, fetched if it is not there yet.
    pub fn get(version: &'static str) -> Nix {
        let dir = place::kept().join(version);
        let script = place::repository().join("tests/nix-clients/get-nix");
        Cmd::new(script).arg(version).arg(&dir).patience(FETCH_PATIENCE).ok();
        Nix { version, dir }
    }

    pub fn newest() -> Nix {
        Nix::get(NEWEST)
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    /// A static busybox, for a node's sandbox shell.
    pub fn busybox(&self) -> PathBuf {
        self.dir.join("bin/busybox")
    }

    pub fn is_before(&self, version: &str) -> bool {
        let number = |version: &str| version.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
        number(self.version) < number(version)
    }
}
