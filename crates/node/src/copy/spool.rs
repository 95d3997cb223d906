//! Chunks that came in before the paths they belong to: a file that outlives its process, so that a copy that is cut off
//! goes on where it was.
//!
//! Record: BLAKE3, length (u32, little-endian), bytes. What was torn or is not what its name says is cut off when the
//! file is opened again. One process has a spool at a time.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use shoal_wire::mesh::manifest::{CHUNK_LEN_MAX, ChunkRef};

const HEAD_LEN: usize = 32 + 4;
/// Copies of one user at a time that can be taken up again.
const SPOOLS_MAX: usize = 8;
const READ_BYTES: usize = 1 << 20;

pub struct Spool {
    file: File,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    /// Where the bytes of each chunk begin.
    known: HashMap<ChunkRef, u64>,
    end: u64,
    /// No chunk comes any more.
    is_over: bool,
}

impl Spool {
    /// The first spool in a directory that nobody has, with what is in it.
    pub fn open(dir: &Path) -> Result<Spool> {
        let cannot = || format!("cannot keep chunks in {}", dir.display());
        fs::create_dir_all(dir).with_context(cannot)?;
        for number in 0..SPOOLS_MAX {
            let path = dir.join(format!("pull-{number}.chunks"));
            let mut options = OpenOptions::new();
            let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
            let file = opened.with_context(cannot)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Spool::recovered(file).with_context(cannot),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error).with_context(cannot),
            }
        }
        bail!("{SPOOLS_MAX} copies to this machine are under way; try again when one has ended")
    }

    fn recovered(file: File) -> io::Result<Spool> {
        let mut reader = BufReader::with_capacity(READ_BYTES, &file);
        let (mut state, mut bytes) = (State::default(), Vec::new());
        while let Some(chunk) = read_record(&mut reader, &mut bytes)? {
            state.known.insert(chunk, state.end + HEAD_LEN as u64);
            state.end += HEAD_LEN as u64 + u64::from(chunk.len);
        }
        file.set_len(state.end)?;
        Ok(Spool { file, state: Mutex::new(state), arrived: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn has(&self, chunk: &ChunkRef) -> bool {
        self.state().known.contains_key(chunk)
    }

    /// Keeps a chunk; `bytes` are what it says.
    pub fn put(&self, chunk: ChunkRef, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        if state.known.contains_key(&chunk) {
            return Ok(());
        }
        let record = [&chunk.hash[..], &chunk.len.to_le_bytes(), bytes].concat();
        self.file.write_all_at(&record, state.end)?;
        let at = state.end + HEAD_LEN as u64;
        state.known.insert(chunk, at);
        state.end += record.len() as u64;
        self.arrived.notify_all();
        Ok(())
    }

    /// Chunks come from now on, until [`Spool::end`].
    pub fn begin(&self) {
        self.state().is_over = false;
    }

    /// No chunk comes any more: nobody waits for one in vain.
    pub fn end(&self) {
        self.state().is_over = true;
        self.arrived.notify_all();
    }

    /// Replaces `out` by a chunk's bytes, once it has come.
    pub fn wait_for(&self, chunk: &ChunkRef, out: &mut Vec<u8>) -> io::Result<()> {
        let is_awaited = |state: &mut State| !state.known.contains_key(chunk) && !state.is_over;
        let state = self.arrived.wait_while(self.state(), is_awaited).unwrap_or_else(PoisonError::into_inner);
        let at = state.known.get(chunk).copied();
        drop(state);
        let at = at.ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, "a chunk does not come"))?;
        out.resize(chunk.len as usize, 0);
        self.file.read_exact_at(out, at)
    }

    /// Forgets everything.
    pub fn clear(&self) -> io::Result<()> {
        let mut state = self.state();
        *state = State::default();
        self.file.set_len(0)
    }
}

/// The next whole record; `None` at the end, and before what is none.
fn read_record(reader: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<Option<ChunkRef>> {
    let mut head = [0; HEAD_LEN];
    if !is_whole(reader.read_exact(&mut head))? {
        return Ok(None);
    }
    let (hash, len) = head.split_at(32);
    let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]);
    if len > CHUNK_LEN_MAX {
        return Ok(None);
    }
    bytes.resize(len as usize, 0);
    let whole = is_whole(reader.read_exact(bytes))?;
    let chunk = ChunkRef::of(bytes);
    Ok((whole && chunk.hash == hash).then_some(chunk))
}

fn is_whole(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The bytes of chunks in a row, as they come.
pub struct Spooled<'a> {
    spool: &'a Spool,
    chunks: std::slice::Iter<'a, ChunkRef>,
    bytes: Vec<u8>,
    used: usize,
}

impl<'a> Spooled<'a> {
    pub fn new(spool: &'a Spool, chunks: &'a [ChunkRef]) -> Spooled<'a> {
        Spooled { spool, chunks: chunks.iter(), bytes: Vec::new(), used: 0 }
    }
}

impl Read for Spooled<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.used == self.bytes.len() {
            let Some(chunk) = self.chunks.next() else { return Ok(0) };
            self.used = 0;
            self.spool.wait_for(chunk, &mut self.bytes)?;
        }
        let n = out.len().min(self.bytes.len() - self.used);
        out[..n].copy_from_slice(&self.bytes[self.used..][..n]);
        self.used += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn bytes(spool: &Spool, chunk: &ChunkRef) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        spool.wait_for(chunk, &mut out).map(|()| out)
    }

    #[test]
    fn what_came_is_there_again_but_for_what_was_torn() {
        let dir = tempfile::tempdir().unwrap();
        let contents: Vec<Vec<u8>> = (1..6u8).map(|n| vec![n; 1000 * usize::from(n)]).collect();
        let chunks: Vec<ChunkRef> = contents.iter().map(|bytes| ChunkRef::of(bytes)).collect();
        let spool = Spool::open(dir.path()).unwrap();
        chunks.iter().zip(&contents).for_each(|(chunk, bytes)| spool.put(*chunk, bytes).unwrap());
        let len = spool.file.metadata().unwrap().len();
        spool.put(chunks[0], &contents[0]).unwrap();
        assert_eq!(spool.file.metadata().unwrap().len(), len, "a chunk is kept once");
        drop(spool);
        let file = dir.path().join("pull-0.chunks");
        let whole = fs::read(&file).unwrap();
        for cut in (0..whole.len()).step_by(97) {
            fs::write(&file, &whole[..cut]).unwrap();
            let spool = Spool::open(dir.path()).unwrap();
            let mut before = 0;
            for (chunk, contents) in chunks.iter().zip(&contents) {
                before += HEAD_LEN + contents.len();
                assert_eq!(spool.has(chunk), before <= cut, "cut at {cut}");
            }
            spool.put(chunks[4], &contents[4]).unwrap();
            assert_eq!(bytes(&spool, &chunks[4]).unwrap(), contents[4]);
        }
        let mut flipped = whole.clone();
        flipped[HEAD_LEN + 1000 + HEAD_LEN + 7] ^= 1;
        fs::write(&file, flipped).unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        assert!(spool.has(&chunks[0]) && !spool.has(&chunks[1]) && !spool.has(&chunks[2]));
    }

    #[test]
    fn each_process_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut open: Vec<Spool> = (0..SPOOLS_MAX).map(|_| Spool::open(dir.path()).unwrap()).collect();
        assert!(Spool::open(dir.path()).is_err());
        open.pop();
        assert!(Spool::open(dir.path()).is_ok());
    }

    #[test]
    fn who_waits_gets_what_comes_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let (came, never) = (ChunkRef::of(b"came"), ChunkRef::of(b"never"));
        thread::scope(|scope| {
            let waiting = [came, never].map(|chunk| {
                scope.spawn({
                    let spool = &spool;
                    move || bytes(spool, &chunk)
                })
            });
            spool.put(came, b"came").unwrap();
            spool.end();
            let [came, never] = waiting.map(|thread| thread.join().unwrap());
            assert_eq!(came.unwrap(), b"came");
            assert!(never.is_err());
        });
        spool.clear().unwrap();
        assert!(!spool.has(&came));
    }
}
