//! The paths that are still to be pushed: a log on disk, so that whatever ends the process loses nothing.
//!
//! A line is a sign and a path: `+` it is to be pushed, `-` there is nothing to do for it (any more), `x` it is not in
//! the store any more. What was queued is on disk before anything else is done. A torn line is none, and its path is met
//! again as a new one. The log is written anew when it is opened.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use shoal_wire::nix::base64::encode_hex;
use shoal_wire::nix::hash::sha256;
use shoal_wire::nix::store_path::StorePath;

use crate::files;

const LOG: &str = "queue";
const LOCK: &str = "lock";
/// Of a node's address, in the name of a directory.
const READABLE_LEN_MAX: usize = 64;

pub struct Queue {
    log: File,
    path: PathBuf,
    /// Of each path whether, and as the how-manieth, it was queued.
    known: BTreeMap<StorePath, Option<u64>>,
    next: u64,
    _lock: File,
}

/// The name of the directory for what goes from the store in `store` to the node at `url`: readable, and its own.
pub fn dir_name(store: &Path, url: &str) -> String {
    let pair = format!("{}\n{url}", store.display());
    let digest = encode_hex(&sha256(pair.as_bytes())[..8]);
    let readable = url.split_once("://").map_or(url, |(_, rest)| rest).rsplit('@').next().unwrap_or_default();
    let readable = readable.chars().map(|c| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '_' });
    format!("{}-{digest}", readable.take(READABLE_LEN_MAX).collect::<String>().trim_start_matches('.'))
}

impl Queue {
    /// Opens the queue in a directory. `existing` is asked the first time, for paths that need not be pushed.
    pub fn open(dir: &Path, existing: impl FnOnce() -> Result<BTreeSet<StorePath>>) -> Result<Queue> {
        let cannot = || format!("cannot keep a queue in {}", dir.display());
        fs::create_dir_all(dir).with_context(cannot)?;
        let lock = File::create(dir.join(LOCK)).with_context(cannot)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => bail!("another process works on the queue in {}", dir.display()),
            Err(error) => return Err(error).with_context(cannot),
        }
        let path = dir.join(LOG);
        let (known, next) = match fs::read(&path) {
            Ok(log) => replay(&log),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (existing()?.into_iter().map(|path| (path, None)).collect(), 0)
            }
            Err(error) => return Err(error).with_context(cannot),
        };
        files::replace(&path, files::SECRET, text(&known).as_bytes()).with_context(cannot)?;
        let log = OpenOptions::new().append(true).open(&path).with_context(cannot)?;
        Ok(Queue { log, path, known, next, _lock: lock })
    }

    /// Queues what of `valid`, which is all that the store has, is new; returns how much that is.
    pub fn note(&mut self, valid: &BTreeSet<StorePath>) -> Result<usize> {
        let new: Vec<StorePath> = valid.iter().filter(|path| !self.known.contains_key(path)).cloned().collect();
        let gone: Vec<StorePath> = self.known.keys().filter(|path| !valid.contains(path)).cloned().collect();
        self.append(new.iter().map(|path| ('+', path)).chain(gone.iter().map(|path| ('x', path))))?;
        gone.iter().for_each(|path| _ = self.known.remove(path));
        let count = new.len();
        for path in new {
            self.known.insert(path, Some(self.next));
            self.next += 1;
        }
        Ok(count)
    }

    /// The paths that were queued first.
    pub fn first(&self, count: usize) -> Vec<StorePath> {
        let mut queued: Vec<(u64, &StorePath)> =
            self.known.iter().filter_map(|(path, number)| Some(((*number)?, path))).collect();
        queued.sort_unstable();
        queued.into_iter().take(count).map(|(_, path)| path.clone()).collect()
    }

    pub fn len(&self) -> usize {
        self.known.values().flatten().count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// There is nothing to do for these any more.
    pub fn settle(&mut self, paths: &[StorePath]) -> Result<()> {
        self.append(paths.iter().map(|path| ('-', path)))?;
        paths.iter().for_each(|path| _ = self.known.insert(path.clone(), None));
        Ok(())
    }

    fn append<'a>(&mut self, lines: impl Iterator<Item = (char, &'a StorePath)>) -> Result<()> {
        let mut text = String::new();
        lines.for_each(|(sign, path)| line(&mut text, sign, path));
        if text.is_empty() {
            return Ok(());
        }
        let written = self.log.write_all(text.as_bytes()).and_then(|()| self.log.sync_data());
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn line(text: &mut String, sign: char, path: &StorePath) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{sign} {path}");
}

fn text(known: &BTreeMap<StorePath, Option<u64>>) -> String {
    let mut text = String::new();
    known.iter().filter(|(_, number)| number.is_none()).for_each(|(path, _)| line(&mut text, '-', path));
    let mut queued: Vec<(u64, &StorePath)> =
        known.iter().filter_map(|(path, number)| Some(((*number)?, path))).collect();
    queued.sort_unstable();
    queued.into_iter().for_each(|(_, path)| line(&mut text, '+', path));
    text
}

fn replay(log: &[u8]) -> (BTreeMap<StorePath, Option<u64>>, u64) {
    let (mut known, mut next) = (BTreeMap::new(), 0);
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        let Some((sign, Ok(path))) = line.and_then(|line| line.split_once(' ')).map(parsed) else { continue };
        match sign {
            "+" => {
                known.insert(path, Some(next));
                next += 1;
            }
            "-" => _ = known.insert(path, None),
            "x" => _ = known.remove(&path),
            _ => {}
        }
    }
    (known, next)
}

fn parsed<'a>((sign, path): (&'a str, &str)) -> (&'a str, Result<StorePath>) {
    (sign, StorePath::from_base_name(path).map_err(Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(letter: char) -> StorePath {
        StorePath::from_base_name(&format!("{}-{letter}", letter.to_string().repeat(32))).unwrap()
    }

    fn paths(letters: &str) -> BTreeSet<StorePath> {
        letters.chars().map(path).collect()
    }

    fn open(dir: &Path) -> Queue {
        Queue::open(dir, || panic!("it is not new")).unwrap()
    }

    fn queued(queue: &Queue) -> String {
        queue.first(usize::MAX).iter().map(StorePath::name).collect()
    }

    #[test]
    fn what_is_new_is_queued_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(dir.path(), || Ok(paths("ab"))).unwrap();
        assert_eq!(queue.note(&paths("ab")).unwrap(), 0);
        assert_eq!(queue.note(&paths("abz")).unwrap(), 1);
        assert_eq!(queue.note(&paths("abcz")).unwrap(), 1);
        assert_eq!(queued(&queue), "zc");
        assert!(Queue::open(dir.path(), || Ok(BTreeSet::new())).is_err(), "two on one queue");
        queue.settle(&[path('z')]).unwrap();
        drop(queue);
        let mut queue = open(dir.path());
        assert_eq!((queued(&queue).as_str(), queue.len()), ("c", 1));
        // What was deleted and came again is new.
        assert_eq!(queue.note(&paths("bcz")).unwrap(), 0);
        assert_eq!(queue.note(&paths("abcz")).unwrap(), 1);
        assert_eq!(queued(&queue), "ca");
        assert_eq!(queue.note(&paths("abz")).unwrap(), 0);
        assert_eq!(queued(&open_again(queue, dir.path())), "a", "what is gone cannot be pushed");
    }

    #[test]
    fn every_pair_of_store_and_node_has_a_queue_of_its_own() {
        let name = |store: &str, url| dir_name(Path::new(store), url);
        let names = ["http://a:1", "https://a:1", "http://a:2", "http://a_1", "http://a:1/x", "http://../.."];
        let mut all: BTreeSet<String> = names.iter().map(|url| name("/nix/store", url)).collect();
        all.insert(name("/other/store", names[0]));
        assert_eq!(all.len(), names.len() + 1);
        assert!(all.iter().all(|name| !name.contains('/') && !name.starts_with('.')), "{all:?}");
        assert!(name("/nix/store", "http://u:secret@node.lan:8080").starts_with("node.lan_8080-"));
    }

    fn open_again(queue: Queue, dir: &Path) -> Queue {
        drop(queue);
        open(dir)
    }

    /// Whatever of the log is on disk, what it queued is queued unless it says that it was dealt with.
    #[test]
    fn a_log_that_is_cut_anywhere_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(dir.path(), || Ok(paths("a"))).unwrap();
        queue.note(&paths("abcd")).unwrap();
        queue.settle(&[path('b'), path('d')]).unwrap();
        queue.note(&paths("abcdf")).unwrap();
        drop(queue);
        let whole = fs::read(dir.path().join(LOG)).unwrap();
        for cut in 0..=whole.len() {
            fs::write(dir.path().join(LOG), &whole[..cut]).unwrap();
            let mut queue = open(dir.path());
            let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            let expected = ["", "", "b", "bc", "bcd", "cd", "c", "cf"][lines];
            assert_eq!(queued(&queue), expected, "cut at {cut}");
            queue.note(&paths("abcdf")).unwrap();
            assert!(queue.first(9).contains(&path('f')) && queue.first(9).contains(&path('c')));
        }
    }
}
