//! A client: sends commands one by one and waits for each.

use super::commands::{AddToStoreNar, DumpStorePath};
use super::handshake::{self, HandshakeError};
use crate::nix::nar::stream::NarReader;
use crate::nix::nar::{NarLimits, NarSink};
use crate::nix::path_info::PathInfo;
use crate::nix::proto::{Call, Dialect, Done, ProtoError, Reader, Writer};
use crate::nix::store_path::{StoreDir, StorePath};
use std::io::{self, BufRead, Write};

/// A connection to a server. `W` should be buffered. After any error it is of no use.
#[derive(Debug)]
pub struct Client<R, W> {
    reader: Reader<R>,
    writer: Writer<W>,
}

impl<R: BufRead, W: Write> Client<R, W> {
    /// Shakes hands, announcing version 2.`minor`.
    pub fn connect(reader: R, writer: W, store_dir: StoreDir, minor: u8) -> Result<Self, HandshakeError> {
        let dialect = Dialect::new(store_dir, minor);
        let mut reader = Reader::new(reader, dialect.clone());
        let mut writer = Writer::new(writer, dialect);
        handshake::connect(&mut reader, &mut writer, minor)?;
        Ok(Client { reader, writer })
    }

    pub fn dialect(&self) -> &Dialect {
        self.reader.dialect()
    }

    /// Sends a command without data of its own and waits for its reply.
    pub fn call<C: Call>(&mut self, request: &C) -> Result<C::Reply, ProtoError> {
        self.call_with_data(request, |_| Ok(()))
    }

    /// Sends a path, whose NAR `nar` writes.
    pub fn add_to_store(
        &mut self,
        info: PathInfo,
        nar: impl FnOnce(&mut W) -> io::Result<()>,
    ) -> Result<Done, ProtoError> {
        self.call_with_data(&AddToStoreNar { info }, |writer| nar(writer.inner_mut()))
    }

    /// Sends a command and the data that `data` writes after it, and waits for its reply.
    pub fn call_with_data<C: Call>(
        &mut self,
        request: &C,
        data: impl FnOnce(&mut Writer<W>) -> io::Result<()>,
    ) -> Result<C::Reply, ProtoError> {
        self.writer.u64(C::NUMBER)?;
        self.writer.put(request)?;
        data(&mut self.writer)?;
        self.writer.flush()?;
        self.reader.begin();
        self.reader.get()
    }

    /// Fetches a NAR, checks its form, and shows it to `sink`.
    pub fn dump<S: NarSink<Error: Into<io::Error>>>(&mut self, path: &StorePath, sink: S) -> Result<S, ProtoError> {
        self.call(&DumpStorePath { path: path.clone() })?;
        Ok(NarReader::new(self.reader.inner_mut(), NarLimits::ANY_RELEASE, sink).finish()?)
    }
}
