//! One NAR on its way into the store, with what else must be known of its bytes.

use std::io::{self, BufRead, Write};

use shoal_store::{Ingest, IngestError, Ingested, Store};
use shoal_wire::nix::proto::ProtoError;

use crate::session::ca_check::{CaHasher, CaHashes, FileReader};
use crate::session::fault::Fault;

/// A longer `.drv` is refused; real ones reach a few hundred KiB.
pub const DRV_LEN_MAX: usize = 64 << 20;

pub struct Intake {
    ingest: Ingest,
    ca: Option<CaHasher>,
    text: Option<FileReader>,
}

/// A whole NAR, and what was asked of its bytes.
pub struct Taken {
    pub ingested: Ingested,
    /// `None` also where the contents have no such address.
    pub ca: Option<CaHashes>,
    /// The contents, if it is a plain file and they were asked for.
    pub text: Option<Vec<u8>>,
}

impl Intake {
    pub fn new(store: &Store, ca: Option<CaHasher>, is_derivation: bool) -> Self {
        let text = is_derivation.then(|| FileReader::new(DRV_LEN_MAX));
        Intake { ingest: store.ingest(), ca, text }
    }

    /// Reads `source` to its end, which must be the NAR's. `name` is what to call it in messages.
    pub fn take(&mut self, source: &mut impl BufRead, name: &str) -> Result<(), Fault> {
        loop {
            let bytes = match source.fill_buf() {
                Ok([]) => return Ok(()),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(source_fault(error)),
            };
            let n = bytes.len();
            self.write_all(bytes).map_err(|error| cannot_add(name, &error))?;
            source.consume(n);
        }
    }

    pub fn finish(self, name: &str) -> Result<Taken, Fault> {
        let ingested = self.ingest.finish().map_err(|error| cannot_add(name, &error))?;
        let ca = self.ca.and_then(|ca| ca.finish(ingested.nar_hash));
        Ok(Taken { ca, text: self.text.and_then(FileReader::finish), ingested })
    }
}

impl Write for Intake {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let used = self.ingest.feed(bytes)?;
        if used == 0 && !bytes.is_empty() {
            return Err(IngestError::Trailing(bytes.len() as u64).into());
        }
        let seen = &bytes[..used];
        if let Some(ca) = &mut self.ca {
            ca.update(seen);
        }
        if let Some(text) = &mut self.text {
            text.update(seen);
        }
        Ok(used)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The client's stream failed: it is gone, or not understood any more.
pub fn source_fault(error: io::Error) -> Fault {
    ProtoError::from(error).into()
}

pub fn cannot_add(name: &str, error: &dyn std::fmt::Display) -> Fault {
    Fault::refused(format!("cannot add '{name}': {error}"))
}
