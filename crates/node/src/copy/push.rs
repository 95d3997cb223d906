//! From the store of this machine to a node.
//!
//! The paths that the node lacks are cut in order, each after what it refers to, in groups that become valid together.
//! While one thread cuts, some ask for each window of chunks which of them are lacking and bring those, and the group
//! before is committed. Bounds: [`WINDOW_BYTES`] for each window, and one more window than there are threads.

use std::collections::HashSet;
use std::io::{self, Write};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result, bail};
use shoal_store::{Effort, Encoder, NarCutter};
use shoal_wire::mesh::manifest::{ChunkRef, content_root};
use shoal_wire::mesh::transfer::{ChunkBatch, Commit, Entry};
use shoal_wire::nix::base64::encode_hex;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

use super::local::{Connection, LocalStore};
use super::remote::{Remote, RemoteError};
use super::{Progress, Report, batches, closure};

/// NAR bytes that one question is about: some hundred chunks, so that asking costs little beside moving.
const WINDOW_BYTES: usize = 8 << 20;
/// Chunks of one question: small paths have small chunks.
const WINDOW_CHUNKS: usize = 4096;
/// Bytes of frames brought with one request: what a connection that breaks costs, for each window in flight.
const BATCH_BYTES: usize = 1 << 20;
/// Windows that are asked about and brought at once, so that compressing and waiting overlap.
const IN_FLIGHT: usize = 3;
/// What becomes valid together: a round trip and a sync of the node's disk are shared.
const GROUP_PATHS: usize = 512;
const GROUP_BYTES: u64 = 256 << 20;
/// A group is brought again if the node lost chunks of it, which happens when it is started again meanwhile.
const ROUNDS_MAX: u32 = 4;
/// zstd's: what a node does to its own chunks.
const LEVEL: i32 = 1;

/// Copies the closures of `roots`, or only `roots` themselves.
pub fn push(
    local: &LocalStore,
    remote: &Remote,
    roots: &[StorePath],
    with_closure: bool,
    progress: &dyn Progress,
) -> Result<Report> {
    let mut connection = local.connect()?;
    remote.check_store_dir(&local.dir)?;
    let mut infos = closure(roots, |path| {
        connection.keep(path)?;
        let info = connection.path_info(path)?;
        info.with_context(|| format!("{} is not valid in the local store", local.dir.print(path)))
    })?;
    if !with_closure {
        infos.retain(|info| roots.contains(&info.path));
    }
    let paths: Vec<StorePath> = infos.iter().map(|info| info.path.clone()).collect();
    let mut lacking = remote.lacks_paths(&paths)?.into_iter();
    infos.retain(|_| lacking.next().unwrap_or(true));
    progress.begins(infos.len(), infos.iter().map(|info| info.nar_size).sum());
    let report = Report {
        paths: infos.iter().map(|info| local.dir.print(&info.path)).collect(),
        paths_present: paths.len() - infos.len(),
        ..Report::default()
    };
    let push = Push { remote, progress, tally: Tally::default() };
    push.all(&mut connection, infos)?;
    Ok(push.tally.report(report))
}

/// What was done, by all threads.
#[derive(Default)]
struct Tally {
    chunks: AtomicU64,
    nar_bytes: AtomicU64,
    chunks_moved: AtomicU64,
    moved_bytes: AtomicU64,
    /// Of what was moved, before it was compressed.
    moved_nar_bytes: AtomicU64,
}

impl Tally {
    fn report(&self, report: Report) -> Report {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let nar_bytes = get(&self.nar_bytes);
        Report {
            chunks: get(&self.chunks),
            nar_bytes,
            chunks_moved: get(&self.chunks_moved),
            moved_bytes: get(&self.moved_bytes),
            skipped_bytes: nar_bytes.saturating_sub(get(&self.moved_nar_bytes)),
            ..report
        }
    }
}

struct Push<'a> {
    remote: &'a Remote,
    progress: &'a dyn Progress,
    tally: Tally,
}

/// Chunks of a group, with their bytes.
#[derive(Default)]
struct Window {
    chunks: Vec<ChunkRef>,
    bytes: Vec<u8>,
}

/// Paths that become valid together.
struct Group {
    infos: Vec<PathInfo>,
    upload: String,
}

impl Group {
    fn new(infos: Vec<PathInfo>) -> Group {
        let names: String = infos.iter().map(|info| info.path.base_name()).collect();
        // So that who begins again comes back to what is held.
        Group { infos, upload: encode_hex(&content_root(names.as_bytes())) }
    }
}

impl Push<'_> {
    fn all(&self, connection: &mut Connection, infos: Vec<PathInfo>) -> Result<()> {
        thread::scope(|scope| {
            let mut before: Option<(Group, ScopedJoinHandle<Result<(), RemoteError>>)> = None;
            for infos in batches(infos, GROUP_PATHS, GROUP_BYTES, |info: &PathInfo| info.nar_size) {
                let group = Group::new(infos);
                let commit = self.bring(connection, &group)?;
                self.settle(connection, before.take())?;
                let upload = group.upload.clone();
                before = Some((group, scope.spawn(move || self.remote.commit(&upload, &commit))));
            }
            self.settle(connection, before.take())
        })
    }

    /// Waits for a commit, and brings the group again where the node lacks some of it by now.
    fn settle(
        &self,
        connection: &mut Connection,
        committing: Option<(Group, ScopedJoinHandle<Result<(), RemoteError>>)>,
    ) -> Result<()> {
        let Some((group, committing)) = committing else { return Ok(()) };
        let mut outcome = committing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        for _ in 1..ROUNDS_MAX {
            let Err(RemoteError::Conflict { .. }) = &outcome else { break };
            let commit = self.bring(connection, &group)?;
            outcome = self.remote.commit(&group.upload, &commit);
        }
        outcome.with_context(|| match &group.infos[..] {
            [info] => format!("cannot push {}", info.path),
            infos => format!("cannot push {} paths", infos.len()),
        })
    }

    /// Brings the chunks of a group that the node lacks; returns what it is committed with.
    fn bring(&self, connection: &mut Connection, group: &Group) -> Result<Commit> {
        thread::scope(|scope| {
            let (windows, waiting) = sync_channel(1);
            // Held by the threads alone: when the last has ended, nobody waits for it to take a window.
            let waiting = Arc::new(Mutex::new(waiting));
            let threads: Vec<_> = (0..IN_FLIGHT)
                .map(|_| {
                    let waiting = waiting.clone();
                    scope.spawn(move || self.bring_windows(&group.upload, &waiting))
                })
                .collect();
            drop(waiting);
            let cut = self.cut(connection, group, windows);
            for thread in threads {
                // Why a thread ended is why nobody takes windows any more.
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            cut
        })
    }

    fn cut(&self, connection: &mut Connection, group: &Group, windows: SyncSender<Window>) -> Result<Commit> {
        let mut cutting = Cutting { windows, window: Window::default(), chunks: Vec::new() };
        let mut entries = Vec::new();
        for info in &group.infos {
            let cutter = NarCutter::default();
            let writer = connection.nar(&info.path, CutNar { cutter, cutting: &mut cutting })?;
            let size = writer.cutter.finish(|chunk| writer.cutting.push(chunk))?;
            if size != info.nar_size {
                bail!("{} has {size} bytes of NAR and should have {}; is it damaged?", info.path, info.nar_size);
            }
            let info = PathInfo { registration_time: 0, ultimate: false, ..info.clone() };
            entries.push(Entry { info, chunks: mem::take(&mut cutting.chunks) });
        }
        cutting.flush()?;
        let count = |entry: &Entry| entry.chunks.len() as u64;
        self.tally.chunks.fetch_add(entries.iter().map(count).sum(), Ordering::Relaxed);
        self.tally.nar_bytes.fetch_add(entries.iter().map(|entry| entry.info.nar_size).sum(), Ordering::Relaxed);
        Ok(Commit(entries))
    }

    fn bring_windows(&self, upload: &str, waiting: &Mutex<Receiver<Window>>) -> Result<()> {
        let mut encoder = Encoder::new(LEVEL).context("cannot prepare to compress")?;
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        while let Ok(window) = next() {
            self.bring_window(upload, &window, &mut encoder)?;
            self.progress.passed(window.bytes.len() as u64);
        }
        Ok(())
    }

    fn bring_window(&self, upload: &str, window: &Window, encoder: &mut Encoder) -> Result<()> {
        let lacking = self.remote.lacks_chunks(upload, window.chunks.iter().map(|chunk| chunk.hash).collect())?;
        let (mut batch, mut batch_bytes) = (ChunkBatch::default(), 0);
        let (mut frame, mut at) = (Vec::new(), 0);
        let mut sent = HashSet::new();
        for (chunk, lacks) in window.chunks.iter().zip(lacking) {
            let bytes = &window.bytes[at..at + chunk.len as usize];
            at += bytes.len();
            if !lacks || !sent.insert(chunk.hash) {
                continue;
            }
            frame.clear();
            encoder.encode(bytes, Effort::Level, &mut frame).context("cannot compress a chunk")?;
            if !batch.has_room(frame.len()) || batch_bytes + frame.len() > BATCH_BYTES {
                self.remote.put_chunks(upload, mem::take(&mut batch))?;
                batch_bytes = 0;
            }
            batch.push(chunk, &frame);
            batch_bytes += frame.len();
            self.tally.chunks_moved.fetch_add(1, Ordering::Relaxed);
            self.tally.moved_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
            self.tally.moved_nar_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        match batch.is_empty() {
            true => Ok(()),
            false => Ok(self.remote.put_chunks(upload, batch)?),
        }
    }
}

/// Chunks on their way to those who bring them.
struct Cutting {
    windows: SyncSender<Window>,
    window: Window,
    /// Of the path that is being cut.
    chunks: Vec<ChunkRef>,
}

impl Cutting {
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        let chunk = ChunkRef::of(bytes);
        self.chunks.push(chunk);
        self.window.chunks.push(chunk);
        self.window.bytes.extend_from_slice(bytes);
        match self.window.bytes.len() >= WINDOW_BYTES || self.window.chunks.len() >= WINDOW_CHUNKS {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let window = mem::take(&mut self.window);
        let sent = window.chunks.is_empty() || self.windows.send(window).is_ok();
        if sent { Ok(()) } else { Err(io::Error::other("chunks are not brought any more")) }
    }
}

/// Takes a NAR and cuts it.
struct CutNar<'a> {
    cutter: NarCutter,
    cutting: &'a mut Cutting,
}

impl Write for CutNar<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.cutter.feed(bytes, |chunk| self.cutting.push(chunk))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
