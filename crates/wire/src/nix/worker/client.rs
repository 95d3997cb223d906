//! A client: sends requests one by one and waits for each.

use super::handshake::{self, HandshakeError, ServerInfo};
use super::ops::NarFromPath;
use super::stderr::{RemoteError, StderrMessage};
use crate::nix::nar::stream::NarReader;
use crate::nix::nar::{NarLimits, NarSink};
use crate::nix::proto::{Call, Codec, Dialect, Feature, FramedWriter, ProtoError, Reader, Writer};
use crate::nix::store_path::{StoreDir, StorePath};
use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use thiserror::Error;

/// Why there is no reply.
#[derive(Debug, Error)]
pub enum CallError {
    /// The server could not do it; the connection can be used further.
    #[error("{0}")]
    Remote(RemoteError),
    /// The connection is of no use any more.
    #[error(transparent)]
    Proto(#[from] ProtoError),
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        CallError::Proto(error.into())
    }
}

/// A connection to a server. `W` should be buffered.
#[derive(Debug)]
pub struct Client<R, W> {
    reader: Reader<R>,
    writer: Writer<W>,
    info: ServerInfo,
}

impl<R: BufRead, W: Write> Client<R, W> {
    /// Shakes hands, announcing version 1.`minor` and `features`.
    pub fn connect(
        reader: R,
        writer: W,
        store_dir: StoreDir,
        minor: u8,
        features: &BTreeSet<Feature>,
    ) -> Result<Self, HandshakeError> {
        let dialect = Dialect::new(store_dir, minor);
        let mut reader = Reader::new(reader, dialect.clone());
        let mut writer = Writer::new(writer, dialect);
        let info = handshake::connect(&mut reader, &mut writer, minor, features)?;
        Ok(Client { reader, writer, info })
    }

    pub fn dialect(&self) -> &Dialect {
        self.reader.dialect()
    }

    /// What the server said of itself.
    pub fn server(&self) -> &ServerInfo {
        &self.info
    }

    /// Sends a request and waits for its reply; `log` receives what the server says meanwhile.
    pub fn call<C: Call>(&mut self, request: &C, log: impl FnMut(StderrMessage)) -> Result<C::Reply, CallError> {
        self.send(request)?;
        self.writer.flush()?;
        self.reply(log)
    }

    /// Sends a request with a framed upload, which `upload` writes, and waits for its reply. An error of
    /// `upload` leaves the connection of no use.
    ///
    /// Nothing is read until the upload has ended: a server that logs more meanwhile than the connection can
    /// hold waits, and so does the client.
    pub fn call_with_upload<C: Call>(
        &mut self,
        request: &C,
        upload: impl FnOnce(&mut FramedWriter<&mut W>) -> io::Result<()>,
        log: impl FnMut(StderrMessage),
    ) -> Result<C::Reply, CallError> {
        self.send(request)?;
        let mut frames = self.writer.frames();
        upload(&mut frames)?;
        frames.finish()?;
        self.writer.flush()?;
        self.reply(log)
    }

    /// Fetches a NAR, checks its form, and shows it to `sink`. An error of `sink` leaves the connection of no
    /// use.
    pub fn nar_from_path<S: NarSink<Error: Into<io::Error>>>(
        &mut self,
        path: &StorePath,
        sink: S,
        log: impl FnMut(StderrMessage),
    ) -> Result<S, CallError> {
        self.call(&NarFromPath { path: path.clone() }, log)?;
        Ok(NarReader::new(self.reader.inner_mut(), NarLimits::ANY_RELEASE, sink).finish()?)
    }

    fn send<C: Call>(&mut self, request: &C) -> io::Result<()> {
        self.writer.u64(C::NUMBER)?;
        self.writer.put(request)
    }

    fn reply<T: Codec>(&mut self, mut log: impl FnMut(StderrMessage)) -> Result<T, CallError> {
        loop {
            match self.reader.get()? {
                StderrMessage::Last => break,
                StderrMessage::Error(error) => return Err(CallError::Remote(error)),
                message => log(message),
            }
        }
        self.reader.begin();
        Ok(self.reader.get()?)
    }
}
