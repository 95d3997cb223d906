//! The NAR of one path for a client, from this store or as it comes from another node.

use std::io::{self, Read, Write};

use shoal_store::Export;
use shoal_wire::nix::store_path::StorePath;

use super::Client;
use super::fault::Fault;
use crate::upstream::NarStream;

/// Copied at once of a NAR that is on its way here.
const PIECE_BYTES: usize = 128 << 10;

/// A NAR that is there to be sent.
pub enum Nar {
    Here(Box<Export>),
    Coming(Box<NarStream>),
}

impl Client {
    /// Looks here, then at the other nodes. One that comes from there is stored meanwhile.
    pub(super) fn nar(&self, path: &StorePath) -> Result<Nar, Fault> {
        self.temp_roots.add(path);
        if let Some(export) = self.store().export(path)? {
            return Ok(Nar::Here(Box::new(export)));
        }
        match self.upstreams().in_mesh([path]).is_empty() {
            true => Err(self.not_valid(path)),
            false => match self.upstreams().nar(path)? {
                Some(stream) => Ok(Nar::Coming(Box::new(stream))),
                None => Err(self.not_valid(path)),
            },
        }
    }
}

impl Nar {
    /// Writes all of it. Outer error: `out` failed; inner error: the NAR did, and what was written is not all of it.
    pub fn write_to(self, out: &mut impl Write) -> io::Result<Result<(), io::Error>> {
        match self {
            Nar::Here(mut export) => loop {
                let bytes = match export.fill_buf() {
                    Ok([]) => return Ok(Ok(())),
                    Ok(bytes) => bytes,
                    Err(error) => return Ok(Err(io::Error::other(error))),
                };
                let n = bytes.len();
                out.write_all(bytes)?;
                export.consume(n);
            },
            Nar::Coming(mut stream) => {
                let mut piece = vec![0; PIECE_BYTES];
                loop {
                    match stream.read(&mut piece) {
                        Ok(0) => return Ok(Ok(())),
                        Ok(n) => out.write_all(&piece[..n])?,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Ok(Err(error)),
                    }
                }
            }
        }
    }
}
