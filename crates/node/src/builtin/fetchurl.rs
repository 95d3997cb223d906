//! `builtin:fetchurl`: the file or NAR behind a URL.
//!
//! The body goes to disk as it arrives and is never decoded, whatever its `Content-Encoding`: the derivation's hash is
//! of the bytes that were sent. Behaviour and texts: `libstore/builtins/fetchurl.cc`, `filetransfer.cc`.

mod client;
mod connect;
mod download;
mod fault;
mod progress;
mod proxy;
mod restore;
mod url;

use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::netrc::Netrc;
use client::{Authorities, Client, Patience};
use download::{Download, Retries};
use proxy::Proxies;
use restore::restore;
use url::Url;

use super::{Failure, Payload, cannot, decompress, failure, reason};

/// What goes to disk at once.
const COPY_BYTES: usize = 256 << 10;

/// A netrc is a few lines; anything larger is something else.
const NETRC_BYTES_MAX: u64 = 1 << 20;

pub(super) fn build(payload: &Payload) -> Result<(), Failure> {
    build_with(payload, Patience::DEFAULT, Retries::DEFAULT)
}

fn build_with(payload: &Payload, patience: Patience, retries: Retries) -> Result<(), Failure> {
    let out = payload.out("builtin:fetchurl")?;
    if !payload.fixed_output {
        return Err(failure("'builtin:fetchurl' must be a fixed-output or impure derivation"));
    }
    let main = std::str::from_utf8(payload.attribute("url")?).map_err(|_| failure("attribute 'url' is not UTF-8"))?;
    let client = Client {
        patience,
        authorities: Authorities::read(&payload.ca_file).map_err(cannot("reading file", &payload.ca_file))?,
        netrc: read_netrc(&payload.netrc_file).map_err(cannot("reading file", &payload.netrc_file))?,
        proxies: Proxies::from_env(|name| payload.optional(name)),
    };
    let fetch = Fetch {
        client: &client,
        retries,
        out,
        form: match payload.flag("unpack") {
            true => Form::Nar { xz: main.ends_with(".xz") },
            false => Form::File,
        },
        executable: payload.flag("executable"),
    };
    let by_hash = payload.flat_hash.iter().map(|hash| format!("{}/{}", hash.algo().name(), hash.to_base16()));
    for by_hash in by_hash {
        for mirror in &payload.hashed_mirrors {
            if fetch.fetch(&format!("{}/{by_hash}", mirror.trim_end_matches('/'))).is_ok() {
                return Ok(());
            }
        }
    }
    fetch.fetch(main)
}

fn read_netrc(path: &Path) -> io::Result<Netrc> {
    let mut text = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(NETRC_BYTES_MAX).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(Netrc::parse(&String::from_utf8_lossy(&text)))
}

/// What becomes of a body.
#[derive(Clone, Copy)]
enum Form {
    File,
    Nar { xz: bool },
}

struct Fetch<'a> {
    client: &'a Client,
    retries: Retries,
    out: &'a Path,
    form: Form,
    executable: bool,
}

impl Fetch<'_> {
    /// Makes the output of what `url` gives. After a failure there is no output.
    fn fetch(&self, url: &str) -> Result<(), Failure> {
        let parsed = Url::parse(url).map_err(|error| failure(format!("unable to download '{url}': {error}")))?;
        let mut download = Download::new(self.client, self.retries, parsed);
        while let Err(error) = self.store(&mut download) {
            self.discard();
            if !download.restart() {
                return Err(download.into_fault().map_or(error, failure));
            }
        }
        // A symlink has no mode of its own.
        if self.executable && !self.out.is_symlink() {
            fs::set_permissions(self.out, Permissions::from_mode(0o755))
                .map_err(cannot("changing mode of", self.out))?;
        }
        Ok(())
    }

    fn store(&self, download: &mut Download) -> Result<(), Failure> {
        match self.form {
            Form::File => self.copy(download),
            Form::Nar { xz } => {
                let body = BufReader::with_capacity(COPY_BYTES, download);
                let restored = match xz {
                    true => decompress::xz(body)
                        .and_then(|nar| restore(BufReader::with_capacity(COPY_BYTES, nar), self.out)),
                    false => restore(body, self.out),
                };
                restored.map_err(cannot("unable to unpack the download into", self.out))
            }
        }
    }

    fn copy(&self, download: &mut Download) -> Result<(), Failure> {
        let mut file = File::create_new(self.out).map_err(cannot("opening file", self.out))?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let n = download.read(&mut buffer).map_err(|error| failure(reason(&error)))?;
            if n == 0 {
                return Ok(());
            }
            file.write_all(&buffer[..n]).map_err(cannot("writing to file", self.out))?;
        }
    }

    fn discard(&self) {
        // What cannot be removed is no output either: the build has failed.
        let _ = match self.out.is_dir() && !self.out.is_symlink() {
            true => fs::remove_dir_all(self.out),
            false => fs::remove_file(self.out),
        };
    }
}

#[cfg(test)]
#[path = "fetchurl_tests.rs"]
mod tests;
