//! Tells the node how far a download is, by the `@nix` lines that a builder may print.

use std::time::{Duration, Instant};

use serde_json::json;
use shoal_wire::nix::log::{ActivityType, ResultType};

use super::url::Url;
use crate::builtin::log;

/// Between two reports: enough for a display, and little in the log.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Nix's `lvlTalkative`.
const LEVEL: u64 = 4;

/// An activity of the log, from its start until this is dropped.
pub struct Progress {
    reported: Instant,
    bytes: u64,
    expected: u64,
}

/// There is one download at a time, so they share an id.
const ID: u64 = 1;

impl Progress {
    pub fn begin(url: &Url) -> Progress {
        let url = url.to_string();
        say(json!({
            "action": "start", "id": ID, "level": LEVEL, "parent": 0, "type": ActivityType::FILE_TRANSFER.0,
            "text": format!("downloading '{url}'"), "fields": [url],
        }));
        Progress { reported: Instant::now(), bytes: 0, expected: 0 }
    }

    /// Sets the size in bytes that is expected in all.
    pub fn expect(&mut self, bytes: Option<u64>) {
        self.expected = bytes.unwrap_or(0);
    }

    pub fn report(&mut self, bytes: u64) {
        self.bytes = bytes;
        if self.reported.elapsed() >= REPORT_INTERVAL {
            self.reported = Instant::now();
            self.print();
        }
    }

    fn print(&self) {
        let fields = [self.bytes, self.expected, 0, 0];
        say(json!({ "action": "result", "id": ID, "type": ResultType::PROGRESS.0, "fields": fields }));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.print();
        say(json!({ "action": "stop", "id": ID }));
    }
}

fn say(message: serde_json::Value) {
    log(&format!("@nix {message}"));
}
