//! A session of the worker protocol: `nix-daemon --stdio`, and the unix socket.
//!
//! - A reply is written only after the request was read to its end, upload included: clients from 2.25 on abort when
//!   they see `LAST` while they send.
//! - A refused request leaves the connection usable; what is not understood ends it, because nobody knows where the
//!   next request begins.

use std::collections::BTreeSet;

use shoal_wire::nix::proto::{Dialect, Done, Feature, Reader, Writer};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::ops::{BuildPaths, BuildPathsWithResults, CollectGarbage, GcAction, SetOptions};
use shoal_wire::nix::worker::{
    KeyedBuildResult, MAJOR, MINOR_MIN, Offer, RemoteError, Reply, Request, SERVER_MAGIC, StderrMessage, Trust,
    handshake,
};

use super::builds;
use super::fault::{Fault, gone};
use super::{Client, VERSION, settings};
use crate::door::{PipeReader, PipeWriter};
use outlet::Outlet;

mod answers;
mod outlet;
mod uploads;

type Input = Reader<PipeReader>;

struct Worker {
    client: Client,
    input: Input,
    outlet: Outlet,
}

/// Runs the session to its end and returns the exit status.
pub fn serve(client: Client, input: PipeReader, output: PipeWriter) -> u32 {
    // What is read and written before the peers agreed has the same layout in every version.
    let dialect = Dialect::new(client.dir().clone(), MINOR_MIN);
    let input = Reader::new(input, dialect.clone());
    let mut worker = Worker { client, input, outlet: Outlet::new(output, dialect) };
    match worker.run() {
        Ok(()) | Err(Fault::Gone) => 0,
        Err(Fault::Refused(text) | Fault::Fatal(text)) => {
            tracing::debug!("session of {} ended: {text}", worker.client.peer.from);
            // The client may be gone too.
            let _ = worker.outlet.error(&text);
            1
        }
    }
}

/// What a client reads as an error in its handshake.
pub fn refusal(dir: &StoreDir, text: &str) -> Vec<u8> {
    // The lowest version has nothing between the server's version and the error.
    let mut writer = Writer::new(Vec::new(), Dialect::new(dir.clone(), MINOR_MIN));
    let words = [SERVER_MAGIC, MAJOR << 8 | u64::from(MINOR_MIN)];
    let written = words.iter().try_for_each(|word| writer.u64(*word));
    let written = written.and_then(|()| writer.put(&StderrMessage::Error(RemoteError::new(text))));
    // A vector takes everything.
    debug_assert!(written.is_ok());
    writer.into_inner()
}

impl Worker {
    fn run(&mut self) -> Result<(), Fault> {
        let trust = if self.client.is_trusted() { Trust::Trusted } else { Trust::NotTrusted };
        let offer = Offer {
            store_dir: self.client.dir().clone(),
            features: BTreeSet::from([Feature::RealisationWithPath]),
            nix_version: VERSION.into(),
            trust,
        };
        handshake::accept(&mut self.input, self.outlet.writer(), &offer)?;
        self.outlet.last()?;
        self.outlet.flush()?;
        while let Some(request) = Request::read_next(&mut self.input)? {
            match self.perform(request) {
                Ok(()) => {}
                Err(Fault::Refused(text)) => self.outlet.error(&text)?,
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    fn perform(&mut self, request: Request) -> Result<(), Fault> {
        match request {
            Request::AddToStore(request) => self.add_to_store(request),
            Request::AddToStoreNar(request) => self.add_to_store_nar(request),
            Request::AddMultipleToStore(request) => self.add_multiple_to_store(&request),
            Request::AddBuildLog(request) => self.add_build_log(&request),
            Request::NarFromPath(request) => self.nar_from_path(&request.path),
            other => {
                let reply = self.answer(other)?;
                self.reply(&reply)
            }
        }
    }

    fn reply(&mut self, reply: &Reply) -> Result<(), Fault> {
        self.outlet.last()?;
        reply.write(self.outlet.writer()).map_err(gone)?;
        self.outlet.flush()
    }

    /// Requests of which there is something to tell before the reply.
    fn answer(&mut self, request: Request) -> Result<Reply, Fault> {
        match request {
            Request::SetOptions(r) => self.set_options(&r),
            Request::CollectGarbage(r) => self.collect_garbage(r),
            Request::VerifyStore(r) => {
                let (lines, is_damaged) = self.client.verify(r.check_contents, r.repair)?;
                lines.iter().try_for_each(|line| self.outlet.say(line))?;
                Ok(Reply::VerifyStore(is_damaged))
            }
            Request::BuildPaths(r) => self.build_paths(&r),
            Request::BuildPathsWithResults(r) => self.build_paths_with_results(r),
            Request::BuildDerivation(r) => {
                let (client, options) = (&self.client, self.client.options.clone());
                let result =
                    self.outlet.narrate(client.dir(), |audience| client.build_derivation(r, options, audience))?;
                Ok(Reply::BuildDerivation(result))
            }
            Request::EnsurePath(r) => {
                let client = &self.client;
                self.outlet.narrate(client.dir(), |audience| client.ensure(&r.path, audience))?;
                Ok(Reply::EnsurePath(Done))
            }
            Request::QueryValidPaths(r) if r.substitute && self.client.substitutes() => {
                let client = &self.client;
                self.outlet.narrate(client.dir(), |audience| client.substitute_paths(&r.paths, audience))?;
                Ok(Reply::QueryValidPaths(client.valid_of(&r.paths)?))
            }
            other => answers::answer(&self.client, other),
        }
    }

    fn collect_garbage(&mut self, request: CollectGarbage) -> Result<Reply, Fault> {
        let deletes = matches!(request.action, GcAction::DeleteDead | GcAction::DeleteSpecific);
        self.outlet.say("finding garbage collector roots...")?;
        let collected = self.client.collect(request)?;
        for path in collected.paths.iter().filter(|_| deletes) {
            self.outlet.remark(&format!("deleting '{}'", self.client.dir().print(path)))?;
        }
        Ok(Reply::CollectGarbage(collected))
    }

    fn set_options(&mut self, set: &SetOptions) -> Result<Reply, Fault> {
        let (options, warnings) = settings::apply(set, self.client.is_trusted());
        self.client.options = options;
        warnings.iter().try_for_each(|text| self.outlet.warn(text))?;
        Ok(Reply::SetOptions(()))
    }

    fn build_paths(&mut self, request: &BuildPaths) -> Result<Reply, Fault> {
        let BuildPaths { paths, mode } = request;
        let client = &self.client;
        let options = client.options.clone();
        let results = self.outlet.narrate(client.dir(), |audience| client.build(paths, *mode, options, audience))?;
        match builds::failure(client.dir(), paths, &results) {
            None => Ok(Reply::BuildPaths(Done)),
            Some((before, text)) => {
                before.iter().try_for_each(|text| self.outlet.say(&format!("\x1b[31;1merror:\x1b[0m {text}")))?;
                Err(Fault::Refused(text))
            }
        }
    }

    fn build_paths_with_results(&mut self, request: BuildPathsWithResults) -> Result<Reply, Fault> {
        let BuildPathsWithResults { paths, mode } = request;
        let client = &self.client;
        let options = client.options.clone();
        let results = self.outlet.narrate(client.dir(), |audience| client.build(&paths, mode, options, audience))?;
        let keyed = paths.into_iter().zip(results).map(|(path, result)| KeyedBuildResult { path, result });
        Ok(Reply::BuildPathsWithResults(keyed.collect()))
    }

    /// The bare NAR follows `LAST`; an error can then only be shown by hanging up.
    fn nar_from_path(&mut self, path: &StorePath) -> Result<(), Fault> {
        let nar = self.client.nar(path)?;
        self.outlet.last()?;
        nar.write_to(self.outlet.writer()).map_err(gone)?.map_err(|error| {
            tracing::error!("cannot send '{path}': {error}");
            Fault::Gone
        })?;
        self.outlet.flush()
    }
}
