//! Build logs: one zstd file for each derivation, `logs/<first digit>/<rest of the base name>.zst`.

use crate::error::{Error, Result};
use crate::lore::Lore;
use crate::store::Store;
use shoal_wire::nix::store_path::StorePath;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Logs are text and read rarely.
const LEVEL: i32 = 3;

/// Tells logs that are being written apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A log, decompressed as it is read.
pub struct Log(zstd::stream::read::Decoder<'static, io::BufReader<File>>);

impl Read for Log {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

/// A log being written. It is not seen until finished, and leaves nothing when dropped before.
pub struct LogWriter {
    encoder: Option<zstd::stream::write::Encoder<'static, File>>,
    new: PathBuf,
    drv: StorePath,
    store: Store,
}

impl Store {
    /// Begins the log of a derivation.
    pub fn begin_log(&self, drv: &StorePath) -> Result<LogWriter> {
        let new = self.dir.join("tmp").join(format!("log-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&new).map_err(Error::io("create", &new))?;
        let encoder = zstd::stream::write::Encoder::new(file, LEVEL).map_err(Error::io("write", &new))?;
        Ok(LogWriter { encoder: Some(encoder), new, drv: drv.clone(), store: self.clone() })
    }

    /// Keeps the log of a derivation, in the place of an earlier one. It survives the end of the process; a machine that
    /// stops at once may lose it, which is no reason to keep builds waiting for the disk.
    pub fn put_log(&self, drv: &StorePath, log: impl Read) -> Result<()> {
        self.copy_log(drv, log)?.publish(|_| Ok(()))
    }

    /// The same for a log that somebody is told is safe.
    pub fn put_log_durably(&self, drv: &StorePath, log: impl Read) -> Result<()> {
        self.copy_log(drv, log)?.finish()
    }

    fn copy_log(&self, drv: &StorePath, mut log: impl Read) -> Result<LogWriter> {
        let mut writer = self.begin_log(drv)?;
        let copied = io::copy(&mut log, &mut writer);
        copied.map_err(Error::io("write", &writer.new))?;
        Ok(writer)
    }

    /// The log of a derivation as it lies, one zstd stream, and its length.
    pub fn packed_log(&self, drv: &StorePath) -> Result<Option<(File, u64)>> {
        let path = log_path(&self.dir, drv);
        match File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((len, file)) => Ok(Some((file, len))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open", &path)(error)),
        }
    }

    pub fn log(&self, drv: &StorePath) -> Result<Option<Log>> {
        let path = log_path(&self.dir, drv);
        match File::open(&path) {
            Ok(file) => {
                let decoder = zstd::stream::read::Decoder::new(file).map_err(Error::io("read", &path))?;
                Ok(Some(Log(decoder)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open", &path)(error)),
        }
    }
}

impl LogWriter {
    /// Makes the log visible and durable.
    pub fn finish(self) -> Result<()> {
        self.publish(|file| file.sync_data())
    }

    fn publish(mut self, sync: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
        let Some(encoder) = self.encoder.take() else {
            return Ok(());
        };
        let written = encoder.finish().and_then(|file| sync(&file));
        written.map_err(Error::io("write", &self.new))?;
        let path = log_path(&self.store.dir, &self.drv);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        fs::rename(&self.new, &path).map_err(Error::io("write", &path))?;
        self.store.tell_learned(&Lore::Log(self.drv.clone()));
        Ok(())
    }
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.encoder {
            Some(encoder) => encoder.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.encoder {
            Some(encoder) => encoder.flush(),
            None => Ok(()),
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        // Renamed away by `finish`, or half a log that nobody wants; what stays is removed at the next start.
        let _ = fs::remove_file(&self.new);
    }
}

fn log_path(dir: &Path, drv: &StorePath) -> PathBuf {
    let (first, rest) = drv.base_name().split_at(1);
    dir.join("logs").join(first).join(format!("{rest}.zst"))
}

/// Removes what a crash left in the directory for unfinished files.
pub fn empty(tmp: &Path) -> Result<()> {
    for entry in fs::read_dir(tmp).map_err(Error::io("list", tmp))? {
        let entry = entry.map_err(Error::io("list", tmp))?;
        fs::remove_file(entry.path()).map_err(Error::io("remove", &entry.path()))?;
    }
    Ok(())
}
