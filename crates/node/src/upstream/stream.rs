//! A NAR that may still be on its way, as a reader.

use std::io::{self, Read};
use std::sync::Arc;

use shoal_store::{Export, Store};

use super::flight::Flight;
use crate::http::Arriving;
use crate::http::cache::Later;

/// The bytes of a path's NAR in order. An error in the middle means that what came before must not be used.
pub struct NarStream {
    store: Store,
    from: From,
    pub nar_size: u64,
    pub nar_hash: [u8; 32],
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
        let (nar_size, nar_hash) = (flight.offer.info.nar_size, flight.offer.info.nar_hash);
        let from = match flight.has_tape() {
            true => From::Flight { flight, offset: 0 },
            false => From::Afterwards(flight),
        };
        NarStream { store, from, nar_size, nar_hash }
    }

    pub(super) fn of_export(store: Store, export: Export, nar_hash: [u8; 32]) -> NarStream {
        let nar_size = export.size();
        NarStream { store, from: From::Store(Box::new(export)), nar_size, nar_hash }
    }

    /// The rest of a path that has become valid.
    fn rest(&self, flight: &Flight, offset: u64) -> io::Result<From> {
        let same = self.store.path_info(&flight.path)?.is_some_and(|info| info.nar_hash == self.nar_hash);
        let export = self.store.export(&flight.path)?.filter(|_| same);
        let export = export.ok_or_else(|| io::Error::other("it has other contents than were promised"))?;
        Ok(From::Store(Box::new(export.range(offset, self.nar_size - offset))))
    }
}

impl Arriving for NarStream {
    fn ready(&self) -> Later<'static, ()> {
        let (flight, offset) = match &self.from {
            From::Flight { flight, offset } => (flight.clone(), Some(*offset)),
            From::Afterwards(flight) => (flight.clone(), None),
            From::Store(_) => return Box::pin(std::future::ready(())),
        };
        Box::pin(async move { flight.ready(offset).await })
    }
}

impl Read for NarStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.from {
                From::Flight { flight, offset } => match flight.read_at(buffer, *offset)? {
                    Some(n) => {
                        *offset += n as u64;
                        return Ok(n);
                    }
                    None => {
                        let (flight, offset) = (flight.clone(), *offset);
                        self.from = self.rest(&flight, offset)?;
                    }
                },
                From::Afterwards(flight) => {
                    let flight = flight.clone();
                    flight.wait().map_err(io::Error::other)?;
                    self.from = self.rest(&flight, 0)?;
                }
                From::Store(export) => return export.read(buffer),
            }
        }
    }
}
