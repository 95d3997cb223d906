//! `shoal mount`: the lazy store at a directory, for as long as the command runs.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{Global, Outcome};
use crate::config::ConfigFlags;
use crate::control::{Request, client};

#[derive(Args)]
pub struct Mount {
    /// A directory; it shows every store path of the mesh until this command is interrupted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Go on showing what the directory has; its names go first
    #[arg(long)]
    overlay: bool,
}

impl Mount {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let dir = std::path::absolute(&self.dir).with_context(|| format!("no directory: {}", self.dir.display()))?;
        client::ask(&config.data_dir, &Request::Mount { dir: dir.clone(), overlay: self.overlay }, |_| {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{} shows the store until this is interrupted", dir.display())?;
            Ok(out.flush()?)
        })
    }
}
