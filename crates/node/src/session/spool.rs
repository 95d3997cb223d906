//! A file of unknown length as a NAR: its length stands before its contents, so it is kept until it has ended.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use shoal_wire::nix::hash::{HashAlgo, Hasher};
use shoal_wire::nix::nar::write::NarWriter;

/// Longer files go to disk meanwhile.
const MEMORY_MAX: usize = 1 << 20;

/// Tells spooled files apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The contents of one file.
pub enum Spool {
    Memory(Vec<u8>),
    /// A file without a name.
    Disk(File, u64),
}

#[derive(Debug)]
pub enum SpoolError {
    /// The contents could not be read.
    Source(io::Error),
    /// They could not be kept.
    Disk(io::Error),
}

impl Spool {
    /// Reads `source` to its end. Large contents go to a file in `dir` that vanishes with the value.
    pub fn fill(source: &mut impl BufRead, dir: &Path) -> Result<Spool, SpoolError> {
        let mut memory = Vec::new();
        source.take(MEMORY_MAX as u64).read_to_end(&mut memory).map_err(SpoolError::Source)?;
        if memory.len() < MEMORY_MAX {
            return Ok(Spool::Memory(memory));
        }
        let mut file = nameless(dir).map_err(SpoolError::Disk)?;
        file.write_all(&memory).map_err(SpoolError::Disk)?;
        let mut len = memory.len() as u64;
        loop {
            let bytes = source.fill_buf().map_err(SpoolError::Source)?;
            if bytes.is_empty() {
                break;
            }
            file.write_all(bytes).map_err(SpoolError::Disk)?;
            let n = bytes.len();
            len += n as u64;
            source.consume(n);
        }
        file.seek(SeekFrom::Start(0)).map_err(SpoolError::Disk)?;
        Ok(Spool::Disk(file, len))
    }

    pub fn len(&self) -> u64 {
        match self {
            Spool::Memory(bytes) => bytes.len() as u64,
            Spool::Disk(_, len) => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn sha256(&mut self) -> io::Result<[u8; 32]> {
        let mut hasher = Hasher::new(HashAlgo::Sha256);
        self.for_each(|bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        let mut digest = [0; 32];
        digest.copy_from_slice(hasher.finish().digest());
        Ok(digest)
    }

    /// Writes it as the NAR of a plain file.
    pub fn write_nar(mut self, out: &mut impl Write) -> io::Result<()> {
        let mut nar = NarWriter::new(out);
        nar.regular(b"", false, self.len())?;
        self.for_each(|bytes| nar.contents(bytes))?;
        nar.finish().map(drop)
    }

    pub fn into_reader(self) -> Box<dyn BufRead> {
        match self {
            Spool::Memory(bytes) => Box::new(io::Cursor::new(bytes)),
            Spool::Disk(file, len) => Box::new(BufReader::with_capacity(MEMORY_MAX, file.take(len))),
        }
    }

    /// Shows all of it, from its start, and goes back there.
    fn for_each(&mut self, mut show: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Spool::Memory(bytes) => show(bytes),
            Spool::Disk(file, len) => {
                let mut reader = BufReader::with_capacity(MEMORY_MAX, (&*file).take(*len));
                loop {
                    let bytes = reader.fill_buf()?;
                    if bytes.is_empty() {
                        break;
                    }
                    show(bytes)?;
                    let n = bytes.len();
                    reader.consume(n);
                }
                file.seek(SeekFrom::Start(0)).map(drop)
            }
        }
    }
}

pub(crate) fn nameless(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!("spool-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nar_of(contents: &[u8]) -> Vec<u8> {
        let mut nar = Vec::new();
        let mut writer = NarWriter::new(&mut nar);
        writer.regular(b"", false, contents.len() as u64).unwrap();
        writer.contents(contents).unwrap();
        writer.finish().unwrap();
        nar
    }

    #[test]
    fn files_of_every_length_become_the_same_nar() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 1, MEMORY_MAX - 1, MEMORY_MAX, MEMORY_MAX + 1, 3 * MEMORY_MAX + 5] {
            let contents: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let mut nar = Vec::new();
            Spool::fill(&mut &contents[..], dir.path()).unwrap().write_nar(&mut nar).unwrap();
            assert!(nar == nar_of(&contents), "{len}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
