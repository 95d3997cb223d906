//! From a node to the store of this machine.
//!
//! What each path is made of is asked first, level by level of the closure. Then, in groups of [`GROUP_BYTES`], chunks
//! that paths of nearly the same name have here are taken from these, the others come over several connections into the
//! [`Spool`]; meanwhile the paths are handed to Nix in order, which checks hash and signatures.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use shoal_store::{Decoder, NarCutter};
use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::mesh::transfer::Entry;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

use super::local::{Connection, LocalStore};
use super::remote::Remote;
use super::spool::{Spool, Spooled};
use super::{Progress, Report, batches, sorted};
use crate::dump;

/// NAR bytes whose chunks may lie in the spool at a time, unless one path has more.
const GROUP_BYTES: u64 = 1 << 30;
/// Questions for paths, and requests for chunks, that are under way at once.
const IN_FLIGHT: usize = 8;
/// Bytes of chunks asked for at once: what a connection that breaks costs, for each request in flight.
const REQUEST_BYTES: u64 = 1 << 20;
/// Chunks asked for at once: as many as a batch takes.
const REQUEST_CHUNKS: usize = 1024;
/// Paths here that are searched for chunks of one that comes: versions before it.
const RELATIVES_MAX: usize = 3;
/// What is smaller is fetched sooner than searched for.
const SEARCHED_FROM: u64 = 256 << 10;

/// Where from and where to.
pub struct Pull<'a> {
    pub local: &'a LocalStore,
    pub remote: &'a Remote,
    /// Where chunks are kept on their way.
    pub spool_dir: &'a Path,
    /// Whether paths need the signature of a key that the local Nix trusts. Only who Nix trusts may go without.
    pub check_sigs: bool,
    pub progress: &'a dyn Progress,
}

/// What was done, by all threads.
#[derive(Default)]
struct Tally {
    chunks_moved: AtomicU64,
    moved_bytes: AtomicU64,
    /// Before they were compressed.
    moved_nar_bytes: AtomicU64,
}

/// Chunks of one path, by their numbers.
struct Wanted<'a> {
    entry: &'a Entry,
    numbers: Vec<u32>,
}

impl Pull<'_> {
    /// Copies the closures of `roots`.
    pub fn run(&self, roots: &[StorePath]) -> Result<Report> {
        let mut connection = self.local.connect()?;
        self.remote.check_store_dir(&self.local.dir)?;
        let (entries, paths_present) = self.closure(&mut connection, roots)?;
        let nar_bytes = entries.iter().map(|entry| entry.info.nar_size).sum();
        self.progress.begins(entries.len(), nar_bytes);
        let mut report = Report {
            paths: entries.iter().map(|entry| self.local.dir.print(&entry.info.path)).collect(),
            paths_present,
            chunks: entries.iter().map(|entry| entry.chunks.len() as u64).sum(),
            nar_bytes,
            ..Report::default()
        };
        if entries.is_empty() {
            return Ok(report);
        }
        let spool = Spool::open(self.spool_dir)?;
        let tally = Tally::default();
        let relatives = Relatives::new(connection.paths()?);
        for group in batches(entries, usize::MAX, GROUP_BYTES, |entry: &Entry| entry.info.nar_size) {
            self.group(&mut connection, &spool, &relatives, &group, &tally)?;
            spool.clear().context("cannot clear the spool of chunks")?;
        }
        report.chunks_moved = tally.chunks_moved.into_inner();
        report.moved_bytes = tally.moved_bytes.into_inner();
        report.skipped_bytes = report.nar_bytes.saturating_sub(tally.moved_nar_bytes.into_inner());
        Ok(report)
    }

    /// What the missing paths of a closure are made of, each after what it refers to; and how many were met that are
    /// here, with all that they refer to.
    fn closure(&self, connection: &mut Connection, roots: &[StorePath]) -> Result<(Vec<Entry>, usize)> {
        let mut entries: BTreeMap<StorePath, Entry> = BTreeMap::new();
        let (mut seen, mut present) = (HashSet::new(), 0);
        // Each with who wants it.
        let mut level: Vec<(StorePath, Option<StorePath>)> = roots.iter().map(|root| (root.clone(), None)).collect();
        while !level.is_empty() {
            let mut missing = Vec::new();
            for (path, referrer) in level.drain(..).filter(|(path, _)| seen.insert(path.clone())) {
                connection.keep(&path)?;
                match connection.is_valid(&path)? {
                    true => present += 1,
                    false => missing.push((path, referrer)),
                }
            }
            for entry in self.entries(&missing)? {
                let referrer = &entry.info.path;
                level.extend(entry.info.references.iter().map(|path| (path.clone(), Some(referrer.clone()))));
                entries.insert(referrer.clone(), entry);
            }
        }
        let infos = entries.iter().map(|(path, entry)| (path.clone(), entry.info.clone())).collect();
        let order = sorted(infos).into_iter().filter_map(|info| entries.remove(&info.path));
        Ok((order.collect(), present))
    }

    fn entries(&self, paths: &[(StorePath, Option<StorePath>)]) -> Result<Vec<Entry>> {
        let ask = |(path, referrer): &(StorePath, Option<StorePath>)| {
            let full = || self.local.dir.print(path);
            match self.remote.entry(path.hash_part())? {
                Some(entry) if entry.info.path == *path => Ok(entry),
                Some(entry) => bail!("{} has {} in place of {}", self.remote.url(), entry.info.path, full()),
                None => match referrer {
                    Some(referrer) => bail!("{} does not have {}, which {referrer} needs", self.remote.url(), full()),
                    None => bail!("{} does not have {}", self.remote.url(), full()),
                },
            }
        };
        let next = AtomicUsize::new(0);
        let ask_some = || {
            let mut answers = Vec::new();
            while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                answers.push(ask(path)?);
            }
            anyhow::Ok(answers)
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..IN_FLIGHT.min(paths.len())).map(|_| scope.spawn(ask_some)).collect();
            let mut all = Vec::new();
            for thread in threads {
                all.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok(all)
        })
    }

    fn group(
        &self,
        connection: &mut Connection,
        spool: &Spool,
        relatives: &Relatives,
        group: &[Entry],
        tally: &Tally,
    ) -> Result<()> {
        self.search(spool, relatives, group)?;
        let requests = requests(group, spool);
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        spool.begin();
        let fetch_some = || {
            let fetch_all = || {
                let mut decoder = Decoder::new().context("cannot prepare to decompress")?;
                while let Some(wanted) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    self.fetch(wanted, spool, &mut decoder, tally)?;
                }
                Ok(())
            };
            let fetched: Result<()> = fetch_all();
            if fetched.is_err() {
                stop.store(true, Ordering::Relaxed);
                spool.end();
            }
            fetched
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..IN_FLIGHT.min(requests.len())).map(|_| scope.spawn(fetch_some)).collect();
            if threads.is_empty() {
                spool.end();
            }
            let added = self.add(connection, spool, group);
            stop.store(true, Ordering::Relaxed);
            for thread in threads {
                // Why chunks do not come is why a path could not be added.
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            added
        })
    }

    fn add(&self, connection: &mut Connection, spool: &Spool, group: &[Entry]) -> Result<()> {
        for entry in group {
            let info = PathInfo { registration_time: 0, ultimate: false, ..entry.info.clone() };
            connection.add(&info, &mut Spooled::new(spool, &entry.chunks), self.check_sigs)?;
            self.progress.passed(info.nar_size);
        }
        Ok(())
    }

    fn fetch(&self, wanted: &Wanted, spool: &Spool, decoder: &mut Decoder, tally: &Tally) -> Result<()> {
        let path = &wanted.entry.info.path;
        let (mut numbers, mut bytes) = (&wanted.numbers[..], Vec::new());
        while !numbers.is_empty() {
            let batch = self.remote.chunks(path.hash_part(), numbers.to_vec())?;
            let batch = batch.with_context(|| format!("{} cannot give the contents of {path}", self.remote.url()))?;
            let chunk_of = |number: &u32| wanted.entry.chunks.get(*number as usize).copied();
            let asked: Vec<ChunkRef> = numbers.iter().filter_map(chunk_of).collect();
            let chunks = self.remote.decoded(&batch, &asked)?;
            for (chunk, frame) in &chunks {
                let decoded = decoder.decode(frame, chunk.len as usize, &mut bytes);
                if decoded.is_err() || ChunkRef::of(&bytes) != *chunk {
                    bail!("{} sent wrong bytes for a chunk of {path}", self.remote.url());
                }
                spool.put(*chunk, &bytes).context("cannot keep a chunk that came")?;
                tally.chunks_moved.fetch_add(1, Ordering::Relaxed);
                tally.moved_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
                tally.moved_nar_bytes.fetch_add(u64::from(chunk.len), Ordering::Relaxed);
            }
            numbers = &numbers[chunks.len()..];
        }
        Ok(())
    }

    /// Takes chunks from paths here that may have them.
    fn search(&self, spool: &Spool, relatives: &Relatives, group: &[Entry]) -> Result<()> {
        let mut searched = HashSet::new();
        for entry in group.iter().filter(|entry| entry.info.nar_size >= SEARCHED_FROM) {
            let mut missing: HashSet<ChunkRef> =
                entry.chunks.iter().filter(|chunk| !spool.has(chunk)).copied().collect();
            for relative in relatives.of(&entry.info.path) {
                let real = self.local.real_path(relative);
                // Only where that is quick, and once.
                if missing.is_empty() || real.symlink_metadata().is_err() || !searched.insert(relative.clone()) {
                    continue;
                }
                let search = Search { cutter: NarCutter::default(), missing: &mut missing, spool };
                // It only saves moving: what cannot be read here is fetched.
                if let Err(error) = dump::dump(&real, search) {
                    tracing::debug!("cannot search {}: {error}", real.display());
                }
            }
        }
        Ok(())
    }
}

/// The chunks that have to be fetched, each once, in the order in which they are needed.
fn requests<'a>(group: &'a [Entry], spool: &Spool) -> Vec<Wanted<'a>> {
    let mut requests = Vec::new();
    let mut asked = HashSet::new();
    for entry in group {
        let (mut numbers, mut bytes) = (Vec::new(), 0);
        for (number, chunk) in (0..).zip(&entry.chunks) {
            if spool.has(chunk) || !asked.insert(*chunk) {
                continue;
            }
            if bytes + u64::from(chunk.len) > REQUEST_BYTES || numbers.len() >= REQUEST_CHUNKS {
                requests.push(Wanted { entry, numbers: std::mem::take(&mut numbers) });
                bytes = 0;
            }
            bytes += u64::from(chunk.len);
            numbers.push(number);
        }
        if !numbers.is_empty() {
            requests.push(Wanted { entry, numbers });
        }
    }
    requests
}

/// The paths that are here, by what they are called without a version.
struct Relatives(HashMap<String, Vec<StorePath>>);

impl Relatives {
    fn new(paths: impl IntoIterator<Item = StorePath>) -> Relatives {
        let mut by_stem: HashMap<String, Vec<StorePath>> = HashMap::new();
        for path in paths {
            by_stem.entry(stem(path.name()).to_owned()).or_default().push(path);
        }
        // Of the versions, the last.
        by_stem.values_mut().for_each(|paths| {
            paths.sort_by(|a, b| b.name().cmp(a.name()));
            paths.truncate(RELATIVES_MAX);
        });
        Relatives(by_stem)
    }

    fn of(&self, path: &StorePath) -> impl Iterator<Item = &StorePath> {
        self.0.get(stem(path.name())).into_iter().flatten()
    }
}

/// A name up to its version, as Nix tells them apart: the first dash that a digit follows.
fn stem(name: &str) -> &str {
    let is_version = |(at, _): &(usize, &str)| name.as_bytes().get(at + 1).is_some_and(u8::is_ascii_digit);
    name.match_indices('-').find(is_version).map_or(name, |(at, _)| &name[..at])
}

/// Takes a NAR and keeps its chunks that are missing.
struct Search<'a> {
    cutter: NarCutter,
    missing: &'a mut HashSet<ChunkRef>,
    spool: &'a Spool,
}

impl Write for Search<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Search { cutter, missing, spool } = self;
        cutter.feed(bytes, |bytes| {
            let chunk = ChunkRef::of(bytes);
            match missing.remove(&chunk) {
                true => spool.put(chunk, bytes),
                false => Ok(()),
            }
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::tests::answering;
    use crate::upstream::Authorities;
    use shoal_store::{Effort, Encoder};
    use shoal_wire::mesh::transfer::ChunkBatch;

    #[test]
    fn versions_of_one_thing_are_relatives() {
        assert_eq!(stem("gcc-wrapper-13.2.0-man"), "gcc-wrapper");
        assert_eq!(stem("source"), "source");
        assert_eq!(stem("a-b-"), "a-b-");
        let path = |letter: &str, name| StorePath::from_base_name(&format!("{}-{name}", letter.repeat(32))).unwrap();
        let names = ["go-1.20", "go-1.21", "go-1.22", "go-1.23", "gopher-1"];
        let relatives = Relatives::new(["a", "b", "c", "d", "f"].iter().zip(names).map(|(l, name)| path(l, name)));
        let of: Vec<&str> = relatives.of(&path("0", "go-1.24")).map(StorePath::name).collect();
        assert_eq!(of, ["go-1.23", "go-1.22", "go-1.21"]);
    }

    /// Bytes that are not what was asked for go nowhere.
    #[test]
    fn wrong_bytes_for_a_chunk_are_an_error() {
        let chunk = ChunkRef::of(b"right");
        let info = PathInfo::new(StorePath::from_base_name(&format!("{}-x", "0".repeat(32))).unwrap(), [0; 32], 5);
        let entry = Entry { info, chunks: vec![chunk] };
        let dir = tempfile::tempdir().unwrap();
        let local = LocalStore::find(Some("/none"), |_| None);
        let fetch = |bytes: &[u8]| {
            let mut frame = Vec::new();
            Encoder::new(1).unwrap().encode(bytes, Effort::Level, &mut frame).unwrap();
            let mut batch = ChunkBatch::default();
            batch.push(&chunk, &frame);
            let remote = Remote::new(&answering(vec![(200, batch.encode())]), None, &Authorities::default());
            let pull =
                Pull { local: &local, remote: &remote, spool_dir: dir.path(), check_sigs: true, progress: &Unheard };
            let spool = Spool::open(dir.path()).unwrap();
            let wanted = Wanted { entry: &entry, numbers: vec![0] };
            let fetched = pull.fetch(&wanted, &spool, &mut Decoder::new().unwrap(), &Tally::default());
            fetched.map(|()| spool.has(&chunk)).map_err(|error| (error.to_string(), spool.has(&chunk)))
        };
        for wrong in [&b"wrong"[..], b"more than that"] {
            let (error, is_kept) = fetch(wrong).unwrap_err();
            assert!(error.contains("wrong bytes") && !is_kept, "{error}");
        }
        assert_eq!(fetch(b"right"), Ok(true));
    }

    struct Unheard;

    impl Progress for Unheard {
        fn begins(&self, _: usize, _: u64) {}
        fn passed(&self, _: u64) {}
    }

    #[test]
    fn each_missing_chunk_is_asked_for_once_and_in_order() {
        let chunk = |n: u8| ChunkRef { hash: [n; 32], len: 256 << 10 };
        let info = PathInfo::new(StorePath::from_base_name(&format!("{}-x", "0".repeat(32))).unwrap(), [0; 32], 0);
        let entry = |numbers: &[u8]| Entry { info: info.clone(), chunks: numbers.iter().map(|n| chunk(*n)).collect() };
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        spool.put(chunk(2), &[]).unwrap();
        let group = [entry(&[1, 2, 3, 1, 4, 5, 6, 7]), entry(&[7, 1]), entry(&[8])];
        let requests = requests(&group, &spool);
        let numbers: Vec<&[u32]> = requests.iter().map(|wanted| &wanted.numbers[..]).collect();
        assert_eq!(numbers, [&[0, 2, 4, 5][..], &[6, 7], &[0]]);
    }
}
