//! Copying between a Nix store on this machine and a node, chunk by chunk.
//!
//! [`local`] speaks to the store of this machine, [`remote`] to the node; [`push`] and [`pull`] move between them what
//! the other side lacks; [`watch`] keeps pushing what the local store gains, from a [`queue`]. Everything here blocks, and
//! prints nothing: who calls hears of it by [`Progress`].

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::mem;

use anyhow::{Context, Result};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

pub mod local;
pub mod pull;
pub mod push;
pub mod queue;
pub mod remote;
pub mod spool;
pub mod watch;

/// Hears how a copy goes on. Called from several threads.
pub trait Progress: Sync {
    /// So many paths and bytes of NAR are to be copied.
    fn begins(&self, paths: usize, nar_bytes: u64);
    /// So many more bytes of NAR are dealt with, whether they had to be moved or not.
    fn passed(&self, nar_bytes: u64);
}

/// What a copy came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The paths that were copied, each after what it refers to.
    pub paths: Vec<String>,
    /// Paths of the closure that the other side had.
    pub paths_present: usize,
    /// Chunks of the NARs that were copied, and their bytes.
    pub chunks: u64,
    pub nar_bytes: u64,
    /// Chunks that went over the network, and their bytes there, compressed.
    pub chunks_moved: u64,
    pub moved_bytes: u64,
    /// Bytes of NAR that did not have to move.
    pub skipped_bytes: u64,
}

/// The paths of a closure, each after what it refers to. `info` gives an error for a path that is not there.
fn closure(roots: &[StorePath], mut info: impl FnMut(&StorePath) -> Result<PathInfo>) -> Result<Vec<PathInfo>> {
    let mut known: BTreeMap<StorePath, PathInfo> = BTreeMap::new();
    let mut open = roots.to_vec();
    while let Some(path) = open.pop() {
        if !known.contains_key(&path) {
            let info = info(&path)?;
            open.extend(info.references.iter().filter(|reference| !known.contains_key(reference)).cloned());
            known.insert(path, info);
        }
    }
    Ok(sorted(known))
}

/// Puts each path after those of the others that it refers to. References cannot form circles, but for a path's own.
fn sorted(mut infos: BTreeMap<StorePath, PathInfo>) -> Vec<PathInfo> {
    let mut order = Vec::with_capacity(infos.len());
    let mut seen: HashSet<StorePath> = HashSet::new();
    let roots: Vec<StorePath> = infos.keys().cloned().collect();
    for root in roots {
        // A path is on the stack twice: to look at its references, then to follow them.
        let mut stack = vec![(root, false)];
        while let Some((path, is_done)) = stack.pop() {
            if is_done {
                order.extend(infos.remove(&path));
            } else if let (true, Some(info)) = (seen.insert(path.clone()), infos.get(&path)) {
                stack.push((path, true));
                stack.extend(info.references.iter().map(|reference| (reference.clone(), false)));
            }
        }
    }
    order
}

/// Cuts a list into parts of so many items and bytes at most, but for a single item that has more.
fn batches<T>(items: Vec<T>, items_max: usize, bytes_max: u64, bytes_of: impl Fn(&T) -> u64) -> Vec<Vec<T>> {
    let mut batches = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for item in items {
        if !batch.is_empty() && (batch.len() >= items_max || bytes + bytes_of(&item) > bytes_max) {
            batches.push(mem::take(&mut batch));
            bytes = 0;
        }
        bytes += bytes_of(&item);
        batch.push(item);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// The store path that a person means: itself, something below it, or a link that leads there.
pub fn store_path(dir: &StoreDir, text: &str) -> Result<StorePath> {
    if let Ok((path, _)) = dir.parse_prefix(text) {
        return Ok(path);
    }
    let target = fs::canonicalize(text).with_context(|| format!("cannot find '{text}'"))?;
    let target = target.to_str().with_context(|| format!("'{text}' leads to a path that is not text"))?;
    let (path, _) = dir.parse_prefix(target).with_context(|| format!("'{text}' is not in the store {dir}"))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use anyhow::bail;

    /// A server that gives these answers, one after the other, whatever it is asked.
    pub fn answering(answers: Vec<(u16, Vec<u8>)>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for (status, body) in answers {
                let (stream, _) = listener.accept().unwrap();
                let mut request = BufReader::new(stream);
                let (mut line, mut len) = (String::new(), 0);
                while request.read_line(&mut line).unwrap() > 2 {
                    let lower = line.to_ascii_lowercase();
                    len = lower.strip_prefix("content-length:").map_or(len, |len| len.trim().parse().unwrap());
                    line.clear();
                }
                request.read_exact(&mut vec![0; len]).unwrap();
                let head =
                    format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let mut stream = request.into_inner();
                // Who asked may have heard enough.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        format!("http://{address}")
    }

    fn path(letter: char) -> StorePath {
        StorePath::from_base_name(&format!("{}-{letter}", letter.to_string().repeat(32))).unwrap()
    }

    fn info(of: char, references: &str) -> PathInfo {
        let mut info = PathInfo::new(path(of), [0; 32], 1);
        info.references = references.chars().map(path).collect();
        info
    }

    fn of<'a>(all: &'a [PathInfo]) -> impl FnMut(&StorePath) -> Result<PathInfo> + 'a {
        |path| match all.iter().find(|info| info.path == *path) {
            Some(info) => Ok(info.clone()),
            None => bail!("{path} is missing"),
        }
    }

    #[test]
    fn references_come_first() {
        let all = [info('a', "abcd"), info('b', "cd"), info('c', "d"), info('d', "d"), info('f', "")];
        let closure = closure(&[path('a')], of(&all)).unwrap();
        let order: Vec<&str> = closure.iter().map(|info| info.path.name()).collect();
        assert_eq!(order, ["d", "c", "b", "a"]);
    }

    #[test]
    fn batches_keep_their_order_and_limits() {
        let cut = |sizes: &[u64]| batches(sizes.to_vec(), 3, 10, |size| *size);
        assert_eq!(cut(&[]), Vec::<Vec<u64>>::new());
        assert_eq!(cut(&[1, 9, 1]), [vec![1, 9], vec![1]]);
        assert_eq!(cut(&[20, 1]), [vec![20], vec![1]]);
        assert_eq!(cut(&[1; 7]), [vec![1; 3], vec![1; 3], vec![1]]);
    }

    #[test]
    fn a_closure_with_a_hole_is_an_error() {
        let all = [info('a', "b"), info('b', "c")];
        let error = closure(&[path('a')], of(&all)).unwrap_err();
        assert!(error.to_string().contains("-c is missing"), "{error}");
    }
}
