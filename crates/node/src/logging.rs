//! Where the node's own log goes: stderr, as text on a terminal and as JSON lines otherwise.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

static LEVELS: OnceLock<Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging. `verbose` raises the level: once to debug, twice to trace.
pub fn start(log: &Log, verbose: u8, coloured: bool) {
    let (levels, handle) = reload::Layer::new(targets(log, verbose));
    let text = match log.format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let registry = tracing_subscriber::registry().with(levels);
    let started = match text {
        true => {
            let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(coloured).with_target(false);
            registry.with(layer).try_init()
        }
        false => {
            let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).json().flatten_event(true);
            registry.with(layer).try_init()
        }
    };
    if started.is_ok() {
        // Only the first start in a process sets it.
        let _ = LEVELS.set(handle);
    }
}

/// Changes what is logged from now on.
pub fn set_level(log: &Log, verbose: u8) {
    if let Some(handle) = LEVELS.get()
        && let Err(error) = handle.reload(targets(log, verbose))
    {
        tracing::warn!(%error, "cannot change the log level");
    }
}

fn targets(log: &Log, verbose: u8) -> Targets {
    let text = match verbose {
        0 => log.level.as_str(),
        1 => "debug",
        _ => "trace",
    };
    text.parse().unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO))
}
