//! One node a data directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// Held while the node runs; the kernel lets go of it however the process ends.
pub struct DataDirLock {
    _file: File,
}

/// Makes the directory if need be and takes it.
pub fn lock(data_dir: &Path) -> Result<DataDirLock> {
    fs::create_dir_all(data_dir).with_context(|| {
        format!("cannot make the data directory {}; choose another one with --data-dir", data_dir.display())
    })?;
    let path = data_dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot write in the data directory {}", data_dir.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
            let mut pid = String::new();
            // Only for the message.
            let _ = (&file).take(32).read_to_string(&mut pid);
            bail!("another shoal (pid {}) uses {}; stop it, or choose --data-dir", pid.trim(), data_dir.display());
        }
        Err(error) => return Err(io::Error::from(error)).with_context(|| format!("cannot lock {}", path.display())),
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(DataDirLock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        let refused = lock(dir.path()).err().unwrap().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(first);
        lock(dir.path()).unwrap();
    }
}
