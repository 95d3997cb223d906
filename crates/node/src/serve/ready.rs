//! `<data-dir>/ready.json`: there while the node listens.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;

/// What the node says of itself once everything listens.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Ready {
    pub name: String,
    /// Public node key, hexadecimal.
    pub node_id: String,
    /// Absent when there is no ssh door.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SocketAddr>,
    /// Absent when there is no binary cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<SocketAddr>,
    /// The binary cache speaks TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub http_tls: bool,
    /// Reading from the binary cache takes a token.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub http_needs_token: bool,
    /// Absent when the node is in no mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<SocketAddr>,
    pub socket: PathBuf,
    pub pid: u32,
    /// Of the keys that sign what is built here, in Nix's form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public_keys: Vec<String>,
}

/// Removes the file when the node stops.
pub struct ReadyFile {
    path: PathBuf,
}

pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("ready.json")
}

impl ReadyFile {
    pub fn write(data_dir: &Path, ready: &Ready) -> io::Result<ReadyFile> {
        let path = path(data_dir);
        let mut text = serde_json::to_string(ready)?;
        text.push('\n');
        files::replace(&path, files::PUBLIC, text.as_bytes())?;
        Ok(ReadyFile { path })
    }
}

/// The file that a crash left, before this node is ready itself.
pub fn remove_stale(data_dir: &Path) -> io::Result<()> {
    match fs::remove_file(path(data_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        // Nobody is there to act on it; a later start removes it.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_as_long_as_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let ssh = Some("127.0.0.1:2222".parse().unwrap());
        let ready = Ready {
            name: "n".into(),
            node_id: "00".into(),
            ssh,
            http: None,
            http_tls: false,
            http_needs_token: false,
            mesh: None,
            socket: "/s".into(),
            pid: 1,
            public_keys: vec!["n-1:AA==".into()],
        };
        let guard = ReadyFile::write(dir.path(), &ready).unwrap();
        let text = fs::read_to_string(path(dir.path())).unwrap();
        assert_eq!(
            text,
            "{\"name\":\"n\",\"node_id\":\"00\",\"ssh\":\"127.0.0.1:2222\",\"socket\":\"/s\",\"pid\":1,\"public_keys\":[\"n-1:AA==\"]}\n"
        );
        drop(guard);
        assert!(!path(dir.path()).exists());
        remove_stale(dir.path()).unwrap();
    }
}
