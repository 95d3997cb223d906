//! One node of a demo.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::{check_apart, is_for_all};
use crate::cli::Global;
use crate::config::key::Set;
use crate::config::{Config, ConfigFlags};
use crate::serve::ready::{self, Ready};

const NAMES: [&str; super::NODES_MAX as usize] =
    ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];

/// What a node is started with.
pub struct Plan {
    pub config: Config,
    flags: ConfigFlags,
    file: Option<std::path::PathBuf>,
    verbose: u8,
}

/// A node that runs, or did.
pub struct Member {
    pub config: Config,
    process: Child,
}

impl Plan {
    /// The `number`th of `nodes`, counted from 1. Flags that cannot be shared are for the first.
    pub fn new(global: &Global, given: &ConfigFlags, dir: &Path, number: u8, nodes: u8) -> Result<Plan> {
        let data = dir.join(format!("node-{number}"));
        let own = ConfigFlags::default()
            .with("name", NAMES[usize::from(number) - 1])
            .with("ssh", "127.0.0.1:0")
            .with("http", "127.0.0.1:0")
            .with("mesh", "127.0.0.1:0")
            .with("socket", data.join("daemon.sock").to_string_lossy())
            .with("authorized-keys", data.join("authorized_keys").to_string_lossy())
            // A demo is left when there is nothing more to see.
            .with("drain-timeout", "0s")
            .with("log-level", "warn")
            .with("data-dir", data.to_string_lossy());
        let mut flags = own;
        for (key, values) in &given.given {
            let values = values.iter().filter(|value| number == 1 || is_for_all(key.flag, value));
            flags = values.fold(flags, |flags, value| flags.with(key.flag, value));
        }
        let config = global.load_here(flags.clone())?.config;
        check_apart(&config, nodes)?;
        Ok(Plan { config, flags, file: global.config.clone(), verbose: global.verbose })
    }

    /// Starts it, in the mesh of the `ticket` in a file where there is one. It dies with this thread.
    pub fn start(&self, ticket: Option<&Path>) -> io::Result<Member> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(file) = &self.file {
            command.arg("--config").arg(file);
        }
        command.args((0..self.verbose).map(|_| "-v"));
        for (nth, (key, values)) in self.flags.given.iter().enumerate() {
            let is_replaced = self.flags.given[nth + 1..].iter().any(|(later, _)| later.flag == key.flag);
            if is_replaced && !matches!(key.set, Set::Many(..)) {
                continue;
            }
            command.args(values.iter().map(|value| format!("--{}={value}", key.flag)));
        }
        command.args(ticket.map(|ticket| format!("--join={}", ticket.display())));
        // SAFETY: prctl is async-signal-safe, and nothing of this process's memory is touched.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        Ok(Member { config: self.config.clone(), process: command.spawn()? })
    }
}

impl Member {
    /// What it says of itself once it listens.
    pub fn ready(&self) -> Option<Ready> {
        let text = fs::read_to_string(ready::path(&self.config.data_dir)).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    pub fn stop(&mut self) {
        if !self.has_ended() {
            // Whoever does not stop is killed later.
            let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        }
    }
}
