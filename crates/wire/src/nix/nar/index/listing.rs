//! The `.ls` file of a binary cache: JSON, version 1.

use super::{Entry, NarIndex, Node};
use std::fmt::Write;
use thiserror::Error;

/// JSON cannot hold this name or target.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not UTF-8: {:?}", String::from_utf8_lossy(.0))]
pub struct NotUtf8(pub Vec<u8>);

impl NarIndex {
    /// The listing of the whole tree, as `write-nar-listing` stores it at `<hash part>.ls`.
    pub fn listing(&self) -> Result<String, NotUtf8> {
        let mut out = String::from("{\"root\":");
        let mut depth = 0;
        let mut first = true;
        for (entry_depth, entry) in self.walk() {
            for _ in entry_depth..depth {
                out.push_str("},\"type\":\"directory\"}");
                first = false;
            }
            depth = entry_depth;
            if depth > 0 {
                if !first {
                    out.push(',');
                }
                json_string(&mut out, &entry.name)?;
                out.push(':');
            }
            first = open_node(&mut out, entry)?;
            if first {
                depth += 1;
            }
        }
        for _ in 0..depth {
            out.push_str("},\"type\":\"directory\"}");
        }
        out.push_str(",\"version\":1}");
        Ok(out)
    }
}

/// Writes `entry` up to its end, or up to its first child; says which by `true`.
fn open_node(out: &mut String, entry: &Entry) -> Result<bool, NotUtf8> {
    match &entry.node {
        Node::Directory { .. } => {
            out.push_str("{\"entries\":{");
            return Ok(true);
        }
        Node::Regular { executable, size, offset } => {
            // Writing to a String cannot fail.
            let _ = write!(
                out,
                "{{\"executable\":{executable},\"narOffset\":{offset},\"size\":{size},\"type\":\"regular\"}}"
            );
        }
        Node::Symlink { target } => {
            out.push_str("{\"target\":");
            json_string(out, target)?;
            out.push_str(",\"type\":\"symlink\"}");
        }
    }
    Ok(false)
}

fn json_string(out: &mut String, bytes: &[u8]) -> Result<(), NotUtf8> {
    let text = std::str::from_utf8(bytes).map_err(|_| NotUtf8(bytes.to_vec()))?;
    out.push_str(&serde_json::Value::from(text).to_string());
    Ok(())
}
