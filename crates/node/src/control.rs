//! How commands talk to a running node: JSON lines over `<data-dir>/control.sock`.
//!
//! A client sends one [`Request`] a connection; the node answers with any number of [`Reply::Item`]s and one
//! [`Reply::End`] or [`Reply::Error`]. Who may open the socket may do all of it: its directory is the node's own.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub mod builds;
pub mod client;
mod cold;
mod explain;
pub mod mesh;
mod pins;
pub mod server;
mod trace;

/// A line longer than this is not read: no request or item comes near it.
const LINE_BYTES_MAX: u64 = 16 << 20;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// One item: the node, its store and its builds in numbers.
    Status,
    /// An item for each path, or for each of the named ones.
    Paths { paths: Vec<String> },
    /// An item for each running and recent build.
    Builds,
    /// An item for each derivation. `what`: one of them, or the number of a request that nobody waits for; all that wait or
    /// run where it is left out. An item `{"more": …}` counts those for which there is no room.
    Explain { what: Option<String> },
    /// An item for the build, then one for each derivation of it. `what`: as for `Explain`; the newest where it is left out.
    Trace { what: Option<String> },
    /// Items of what happens, then `{"result": …}` for each that is wanted; with `detach` one item with a number, at once.
    Build {
        #[serde(flatten)]
        order: builds::Order,
        detach: bool,
    },
    /// Nothing. `what`: the number of a request that nobody waits for, or a derivation that is built.
    Cancel { what: String },
    /// Items are pieces of the log, base64. `path`: a derivation or an output. With `follow` of a build that runs to its
    /// end.
    Log { path: String, follow: bool },
    /// One item: sizes of the store, or of the named paths, or of their closures.
    Usage { paths: Vec<String>, closure: bool },
    /// One item: what was freed, or would be.
    Gc { dry_run: bool, max_freed: Option<u64> },
    /// An item for each pin that keeps something.
    Pins,
    /// An item for each pin that was made: one of this name, or one for each path. `ttl_seconds`: for ever without.
    Pin { paths: Vec<String>, name: Option<String>, ttl_seconds: Option<u64> },
    /// Nothing; the request fails if one of them is not there.
    Unpin { names: Vec<String> },
    /// Items of progress (`{"progress": …}`), then what was found (`{"report": …}`). `rate`: bytes a second.
    Scrub { rate: Option<u64> },
    /// Items of progress (`{"progress": …}`), then what was found (`{"report": …}`). `restore`: to have all back; else
    /// whether all is right, without reading packs if `quick`.
    Cold { restore: bool, quick: bool },
    /// One item once the store is mounted at `dir`, which it is until whoever asked goes. `overlay`: what is there goes
    /// on being shown.
    Mount { dir: PathBuf, overlay: bool },
    /// An item for each node that is known.
    Peers,
    /// One item: a ticket. `roles`: of the nodes that come by it.
    MeshInvite { reusable: bool, roles: Vec<String>, ttl_seconds: u64, membership_seconds: u64 },
    /// One item, after which the node starts again as a member.
    MeshJoin { ticket: String },
    /// Items of progress, then one at the end, after which the node starts again in a mesh of its own.
    MeshLeave,
    /// One item. `node`: a name or the beginning of a key.
    MeshRevoke { node: String },
    /// Items of progress.
    Drain,
}

impl Request {
    /// Whether its items are told as they come, and it ends when whoever asked goes.
    fn is_live(&self) -> bool {
        match self {
            Request::Build { .. }
            | Request::Scrub { .. }
            | Request::Cold { .. }
            | Request::Mount { .. }
            | Request::MeshLeave
            | Request::Drain => true,
            Request::Log { follow, .. } => *follow,
            _ => false,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Item(Value),
    End,
    /// The request failed; the text is for people.
    Error(String),
    /// It may work later.
    Busy(String),
}

pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}
