//! `shoal du`: what the store of a running node holds, and what chunking and compression save.

use clap::Args;

use super::{Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
use crate::config::units::size_text;
use crate::control::{Request, client};

#[derive(Args)]
pub struct Du {
    /// Store paths; the whole store if none is named
    #[arg(value_name = "PATH")]
    paths: Vec<String>,
    /// Count what they refer to as well
    #[arg(long, requires = "paths")]
    closure: bool,
    #[command(flatten)]
    read: ReadArgs,
}

impl Du {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let request = Request::Usage { paths: self.paths.clone(), closure: self.closure };
        let usage = client::ask_one(&config.data_dir, &request)?;
        if self.read.json {
            return Ok(output::json(&usage)?);
        }
        let size = |key: &str| match usage[key].as_i64().unwrap_or(0) {
            saved @ 0.. => size_text(saved as u64),
            // Headers of chunks that do not compress.
            lost => format!("-{}", size_text(lost.unsigned_abs())),
        };
        let row = |name: &str, key: &str| vec![name.to_owned(), size(key)];
        output::table(&[
            vec!["paths".into(), usage["paths"].to_string()],
            row("NARs", "nar_bytes"),
            row("saved by chunking", "saved_by_chunking_bytes"),
            row("saved by compression", "saved_by_compression_bytes"),
            row("stored", "stored_bytes"),
        ])?;
        Ok(())
    }
}
