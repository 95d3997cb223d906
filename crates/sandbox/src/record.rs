//! A small file that is there whole or not at all when its writer is killed, and is used again and again.
//!
//! A file system takes long to make and delete files, so a record is cleared and not deleted: its length comes
//! first, as a little-endian `u32`, is written last, and is 0 where there is none. A machine that stops may
//! leave any mixture; whoever reads records must know that it did not.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const LENGTH_BYTES: usize = 4;

/// Fills a record that is not there or was cleared.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).map_err(io::Error::other)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.write_all_at(content, LENGTH_BYTES as u64)?;
    file.write_all_at(&length.to_le_bytes(), 0)
}

/// The record, if there is one.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    let content = rest.get(..length).filter(|content| !content.is_empty());
    Ok(content.map(<[u8]>::to_vec))
}

/// There is no record any more.
pub(crate) fn clear(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => file.write_all_at(&[0; LENGTH_BYTES], 0),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_record_hides_all_of_a_longer_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert_eq!(read(&path).unwrap(), None);
        clear(&path).unwrap();
        write(&path, b"a long one").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"a long one"[..]));
        clear(&path).unwrap();
        write(&path, b"short").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"short"[..]));
        clear(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        std::fs::write(&path, [9, 0, 0, 0, b'x']).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }
}
