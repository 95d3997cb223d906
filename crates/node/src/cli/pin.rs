//! `shoal pin` and `shoal unpin`: what a running node keeps whatever else happens.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::{Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
use crate::config::units::{parse_duration, show_duration};
use crate::control::{Request, client};

#[derive(Args)]
pub struct Pin {
    /// Store paths to keep, with all they refer to; lists what is kept if none is named
    #[arg(value_name = "PATH")]
    paths: Vec<String>,
    /// Keep them under this name, in the place of what was kept under it; each under its own by default
    #[arg(long, requires = "paths")]
    name: Option<String>,
    /// For how long, like 30d; for ever by default
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "paths")]
    ttl: Option<Duration>,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Args)]
pub struct Unpin {
    /// Names of pins, or paths that were pinned without a name
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

impl Pin {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let request = match self.paths.is_empty() {
            true => Request::Pins,
            false => {
                let ttl_seconds = self.ttl.map(|ttl| ttl.as_secs());
                Request::Pin { paths: self.paths.clone(), name: self.name.clone(), ttl_seconds }
            }
        };
        let mut pins = Vec::new();
        client::ask(&config.data_dir, &request, |pin| {
            pins.push(pin);
            Ok(())
        })?;
        if self.read.json {
            return Ok(output::json(&pins)?);
        }
        let rows = pins.iter().flat_map(rows).collect::<Vec<_>>();
        Ok(output::table(&rows)?)
    }
}

/// A line for each path of a pin.
fn rows(pin: &Value) -> Vec<Vec<String>> {
    let name = pin["name"].as_str().unwrap_or_default();
    let end = match pin["seconds_left"].as_u64() {
        Some(left) => format!("for {}", show_duration(Duration::from_secs(left))),
        None => "for ever".into(),
    };
    let paths = pin["paths"].as_array().into_iter().flatten().filter_map(Value::as_str);
    paths.map(|path| vec![name.to_owned(), end.clone(), path.to_owned()]).collect()
}

impl Unpin {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        client::ask(&config.data_dir, &Request::Unpin { names: self.names.clone() }, |_| Ok(()))
    }
}
