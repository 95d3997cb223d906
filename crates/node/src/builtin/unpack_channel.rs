//! `builtin:unpack-channel`: a channel's tarball, whose only entry gets the channel's name.
//!
//! Behaviour and texts: `libstore/builtins/unpack-channel.cc` and `libutil/tarfile.cc`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::untar::untar;
use super::{Failure, Payload, cannot, decompress, failure};

/// What is read of the tarball at once.
const READ_BYTES: usize = 256 << 10;

pub(super) fn build(payload: &Payload) -> Result<(), Failure> {
    let out = payload.out("builtin:unpack-channel")?;
    let name = OsStr::from_bytes(payload.attribute("channelName")?);
    let src = Path::new(OsStr::from_bytes(payload.attribute("src")?));
    if Path::new(name).file_name() != Some(name) {
        let name = name.display();
        return Err(failure(format!("channelName is not allowed to contain filesystem separators, got {name}")));
    }
    fs::create_dir_all(out).map_err(cannot("creating directory", out))?;

    let tarball = File::open(src).map_err(cannot("failed to open archive", src))?;
    let tarball = BufReader::with_capacity(READ_BYTES, tarball);
    let tarball = decompress::any(tarball).map_err(cannot("failed to open archive", src))?;
    untar(tarball, out)?;

    let mut entries = fs::read_dir(out).map_err(cannot("reading directory", out))?;
    let Some(entry) = entries.next() else {
        return Err(failure(format!("channel tarball '{}' is empty", src.display())));
    };
    if entries.next().is_some() {
        return Err(failure(format!("channel tarball '{}' contains more than one file", src.display())));
    }
    let entry = entry.map_err(cannot("reading directory", out))?.path();
    fs::rename(&entry, out.join(name)).map_err(cannot("failed to rename", &entry))
}

#[cfg(test)]
#[path = "unpack_channel_tests.rs"]
mod tests;
