//! What a client of the worker protocol hears between its request and the reply.

use shoal_wire::nix::proto::{Dialect, Writer};
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::worker::{RemoteError, StderrMessage};

use crate::build::feed::BuildEvent;
use crate::door::PipeWriter;
use crate::session::activities::{ActivityIds, Narrator, Weight};
use crate::session::builds::Audience;
use crate::session::fault::{Fault, gone};
use crate::session::substitution::FetchEvent;

pub struct Outlet {
    writer: Writer<PipeWriter>,
    ids: ActivityIds,
}

impl Outlet {
    pub fn new(output: PipeWriter, dialect: Dialect) -> Self {
        Outlet { writer: Writer::new(output, dialect), ids: ActivityIds::new() }
    }

    pub fn writer(&mut self) -> &mut Writer<PipeWriter> {
        &mut self.writer
    }

    pub fn flush(&mut self) -> Result<(), Fault> {
        self.writer.flush().map_err(gone)
    }

    /// The request was done; its reply follows. Not flushed, so that both travel together.
    pub fn last(&mut self) -> Result<(), Fault> {
        self.writer.put(&StderrMessage::Last).map_err(gone)
    }

    /// The request was not done; no reply follows.
    pub fn error(&mut self, text: &str) -> Result<(), Fault> {
        self.send(&StderrMessage::Error(RemoteError::new(text)))?;
        self.flush()
    }

    /// One or more lines for people.
    pub fn say(&mut self, text: &str) -> Result<(), Fault> {
        self.send(&line(text))?;
        self.flush()
    }

    /// One of many lines: not flushed, and left out when the client reads too slowly.
    pub fn remark(&mut self, text: &str) -> Result<(), Fault> {
        if self.writer.inner_mut().is_congested() {
            return Ok(());
        }
        self.send(&line(text))
    }

    pub fn warn(&mut self, text: &str) -> Result<(), Fault> {
        self.say(&format!("\x1b[35;1mwarning:\x1b[0m {text}"))
    }

    /// Runs `build` and tells the client of it by activities.
    pub fn narrate<T>(
        &mut self,
        dir: &StoreDir,
        build: impl FnOnce(&mut Live<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let (narrator, begun) = Narrator::begin(dir, &mut self.ids);
        let mut live = Live { writer: &mut self.writer, narrator };
        live.send_all(begun)?;
        let built = build(&mut live);
        let ended = live.narrator.end();
        for (_, message) in ended {
            self.writer.put(&message).map_err(gone)?;
        }
        built
    }

    fn send(&mut self, message: &StderrMessage) -> Result<(), Fault> {
        self.writer.put(message).map_err(gone)
    }
}

fn line(text: &str) -> StderrMessage {
    StderrMessage::Next(format!("{}\n", text.trim_end_matches('\n')).into_bytes())
}

/// A build that is being told.
pub struct Live<'a> {
    writer: &'a mut Writer<PipeWriter>,
    narrator: Narrator<'a>,
}

impl Live<'_> {
    fn send_all(&mut self, said: Vec<(Weight, StderrMessage)>) -> Result<(), Fault> {
        let congested = self.writer.inner_mut().is_congested();
        for (weight, message) in said {
            if weight == Weight::Kept || !congested {
                self.writer.put(&message).map_err(gone)?;
            }
        }
        Ok(())
    }
}

impl Audience for Live<'_> {
    fn tell(&mut self, event: BuildEvent) -> Result<(), Fault> {
        let said = self.narrator.tell(event);
        self.send_all(said)
    }

    fn fetching(&mut self, event: FetchEvent<'_>) -> Result<(), Fault> {
        let said = self.narrator.fetching(event);
        self.send_all(said)
    }

    fn still_alive(&mut self) -> Result<(), Fault> {
        let said = self.narrator.still_alive();
        self.send_all(said)
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.writer.flush().map_err(gone)
    }
}
