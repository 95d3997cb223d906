//! A NAR that may still be on its way, as a reader.

use std::io::{self, Read};
use std::sync::Arc;

use shoal_store::{Export, Store};

use super::flight::Flight;

/// The bytes of a path's NAR in order. An error in the middle means that what came before must not be used.
pub struct NarStream {
    store: Store,
    from: From,
    pub nar_size: u64,
}

enum From {
    Flight {
        flight: Arc<Flight>,
        offset: u64,
    },
    /// Not readable while it comes in.
    Afterwards(Arc<Flight>),
    Store(Box<Export>),
}

impl NarStream {
    pub(super) fn of_flight(store: Store, flight: Arc<Flight>) -> NarStream {
        let nar_size = flight.offer.info.nar_size;
        let from = match flight.has_tape() {
            true => From::Flight { flight, offset: 0 },
            false => From::Afterwards(flight),
        };
        NarStream { store, from, nar_size }
    }

    pub(super) fn of_export(store: Store, export: Export) -> NarStream {
        let nar_size = export.size();
        NarStream { store, from: From::Store(Box::new(export)), nar_size }
    }
}

impl Read for NarStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let From::Afterwards(flight) = &self.from {
            flight.wait().map_err(io::Error::other)?;
            let export = self.store.export(&flight.path)?.filter(|export| export.size() == self.nar_size);
            let export = export.ok_or_else(|| io::Error::other("it has other contents than were promised"))?;
            self.from = From::Store(Box::new(export));
        }
        match &mut self.from {
            From::Flight { flight, offset } => {
                let n = flight.read_at(buffer, *offset)?;
                *offset += n as u64;
                Ok(n)
            }
            From::Store(export) => {
                let bytes = export.fill_buf()?;
                let n = bytes.len().min(buffer.len());
                buffer[..n].copy_from_slice(&bytes[..n]);
                export.consume(n);
                Ok(n)
            }
            From::Afterwards(_) => Ok(0),
        }
    }
}
