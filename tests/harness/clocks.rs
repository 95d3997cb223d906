//! Nodes whose clocks are wrong.

use std::fs;

use crate::command::Cmd;
use crate::node::Node;
use crate::place;

/// A node whose wall clock is so many seconds ahead from its next start on. `None` where there is no C compiler.
pub fn ahead(node: Node, seconds: i64) -> Option<Node> {
    let library = place::kept().join("clock.so");
    let made = library.with_extension(std::process::id().to_string());
    let source = place::repository().join("tests/harness/clock.c");
    let compiled =
        Cmd::new("sh").args(["-c", "cc -O1 -shared -fPIC -o \"$1\" \"$2\"", "sh"]).arg(&made).arg(source).run();
    // Into its place at once: other tests may be using it.
    if !compiled.status.success() || fs::rename(&made, &library).is_err() {
        return None;
    }
    Some(node.with_env("LD_PRELOAD", &library.display().to_string()).with_env("CLOCK_OFFSET_S", &seconds.to_string()))
}
