//! What this crate logs from the level of information on, for tests of what people are told.
//!
//! There is one log for all tests of the process: a line is known by the peer and the reason that it names.

use crate::fixture::until;
use crate::links::short;
use shoal_wire::mesh::NodeKey;
use std::fmt::{Debug, Write};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static START: Once = Once::new();

fn lines() -> MutexGuard<'static, Vec<String>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines from where it was begun on.
pub struct Log {
    from: usize,
}

impl Log {
    pub fn begin() -> Log {
        START.call_once(|| tracing::subscriber::set_global_default(Collector).unwrap());
        Log { from: lines().len() }
    }

    /// How many lines name this node and say this.
    pub fn count(&self, node: &NodeKey, what: &str) -> usize {
        let node = short(node);
        lines()[self.from..].iter().filter(|line| line.contains(&node) && line.contains(what)).count()
    }

    /// Waits for such a line.
    pub async fn tells(&self, node: &NodeKey, what: &str) {
        until(&format!("a line of {} about {what:?}", short(node)), || self.count(node, what) > 0).await;
    }
}

struct Collector;

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("shoal_mesh") && *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        lines().push(line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.0, " {field}={value}");
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}
