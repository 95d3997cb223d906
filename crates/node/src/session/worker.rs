//! A session of the worker protocol: `nix-daemon --stdio`, and the unix socket.
//!
//! - A reply is written only after the request was read to its end, upload included: clients from 2.25 on abort when
//!   they see `LAST` while they send.
//! - A refused request leaves the connection usable; what is not understood ends it, because nobody knows where the
//!   next request begins.

use std::collections::BTreeSet;
use std::io::{BufReader, Write};

use shoal_wire::nix::proto::{Dialect, Done, Feature, FramedReader, Reader};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::ops::{
    AddBuildLog, AddMultipleToStore, AddTextToStore, AddToStore, AddToStoreNar, BuildPaths, BuildPathsWithResults,
    GcAction, SetOptions,
};
use shoal_wire::nix::worker::{
    KeyedBuildResult, MINOR_MIN, Offer, Reply, Request, SERVER_MAGIC, Trust, UploadEntries, handshake,
};

use super::builds;
use super::fault::{Fault, gone};
use super::uploads::{NewObject, Uploader, add_object};
use super::{Client, VERSION, settings};
use crate::door::{PipeReader, PipeWriter, Role};
use outlet::Outlet;

mod outlet;

/// Bytes of input read at once. NARs pass through this buffer.
const INPUT_BUFFER: usize = 256 << 10;

type Input = Reader<BufReader<PipeReader>>;

struct Worker {
    client: Client,
    input: Input,
    outlet: Outlet,
}

/// Runs the session to its end and returns the exit status.
pub fn serve(client: Client, input: PipeReader, output: PipeWriter) -> u32 {
    // What is read and written before the peers agreed has the same layout in every version.
    let dialect = Dialect::new(client.dir().clone(), MINOR_MIN);
    let input = Reader::new(BufReader::with_capacity(INPUT_BUFFER, input), dialect.clone());
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
    use shoal_wire::nix::proto::Writer;
    use shoal_wire::nix::worker::{MAJOR, RemoteError, StderrMessage};
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

    /// Requests that are whole once they are read.
    fn answer(&mut self, request: Request) -> Result<Reply, Fault> {
        let client = &self.client;
        let store = client.store();
        Ok(match request {
            Request::IsValidPath(r) => Reply::IsValidPath(store.is_valid(&r.path)?),
            Request::HasSubstitutes(_) => Reply::HasSubstitutes(false),
            Request::QueryReferrers(r) => Reply::QueryReferrers(store.referrers(&r.path)?.into_iter().collect()),
            Request::AddTextToStore(r) => Reply::AddTextToStore(add_text(client, r)?),
            Request::BuildPaths(r) => self.build_paths(&r)?,
            Request::EnsurePath(r) => Reply::EnsurePath(client.ensure(&r.path).map(|()| Done)?),
            Request::AddTempRoot(r) => {
                client.temp_roots.add(&r.path);
                Reply::AddTempRoot(Done)
            }
            Request::AddIndirectRoot(r) => Reply::AddIndirectRoot(client.add_indirect_root(&r.link).map(|()| Done)?),
            Request::SyncWithGc(_) => Reply::SyncWithGc(Done),
            Request::FindRoots(_) => Reply::FindRoots(client.roots()?),
            Request::QueryDeriver(r) => Reply::QueryDeriver(client.valid_path_info(&r.path)?.deriver),
            Request::SetOptions(r) => self.set_options(&r)?,
            Request::CollectGarbage(r) => {
                let deletes = matches!(r.action, GcAction::DeleteDead | GcAction::DeleteSpecific);
                self.outlet.say("finding garbage collector roots...")?;
                let collected = client.collect(r)?;
                for path in collected.paths.iter().filter(|_| deletes) {
                    self.outlet.remark(&format!("deleting '{}'", client.dir().print(path)))?;
                }
                Reply::CollectGarbage(collected)
            }
            Request::QuerySubstitutablePathInfo(_) => Reply::QuerySubstitutablePathInfo(None),
            Request::QueryDerivationOutputs(r) => {
                Reply::QueryDerivationOutputs(client.output_map(&r.path)?.into_values().flatten().collect())
            }
            Request::QueryAllValidPaths(_) => Reply::QueryAllValidPaths(store.paths()?.into_iter().collect()),
            Request::QueryPathInfo(r) => Reply::QueryPathInfo(store.path_info(&r.path)?.map(Into::into)),
            Request::QueryDerivationOutputNames(r) => {
                Reply::QueryDerivationOutputNames(client.output_map(&r.path)?.into_keys().collect())
            }
            Request::QueryPathFromHashPart(r) => Reply::QueryPathFromHashPart(store.path_from_hash_part(&r.hash_part)?),
            Request::QuerySubstitutablePathInfos(_) => Reply::QuerySubstitutablePathInfos(Vec::new()),
            Request::QueryValidPaths(r) => Reply::QueryValidPaths(client.valid_of(&r.paths)?),
            Request::QuerySubstitutablePaths(_) => Reply::QuerySubstitutablePaths(BTreeSet::new()),
            Request::QueryValidDerivers(r) => Reply::QueryValidDerivers(client.valid_derivers(&r.path)?),
            // Equal contents are kept once already.
            Request::OptimiseStore(_) => Reply::OptimiseStore(Done),
            Request::VerifyStore(r) => {
                let damage = client.verify(r.check_contents, r.repair)?;
                damage.iter().try_for_each(|line| self.outlet.say(line))?;
                Reply::VerifyStore(!damage.is_empty())
            }
            Request::BuildDerivation(r) => {
                let options = client.options.clone();
                let result =
                    self.outlet.narrate(client.dir(), |audience| client.build_derivation(r, options, audience))?;
                Reply::BuildDerivation(result)
            }
            Request::AddSignatures(r) => {
                client.add_signatures(&r.path, r.signatures.into_iter().collect())?;
                Reply::AddSignatures(Done)
            }
            Request::QueryMissing(r) => Reply::QueryMissing(client.missing(&r.paths)?),
            Request::QueryDerivationOutputMap(r) => Reply::QueryDerivationOutputMap(client.output_map(&r.path)?),
            Request::RegisterDrvOutput(r) => Reply::RegisterDrvOutput(client.register(&r)?),
            Request::QueryRealisation(r) => Reply::QueryRealisation(client.realisation(&r)?),
            Request::BuildPathsWithResults(r) => self.build_paths_with_results(r)?,
            Request::AddPermRoot(r) => Reply::AddPermRoot(client.add_perm_root(r)?),
            Request::AddToStore(_)
            | Request::AddToStoreNar(_)
            | Request::AddMultipleToStore(_)
            | Request::AddBuildLog(_)
            | Request::NarFromPath(_) => return Err(Fault::fatal("this request is answered elsewhere")),
        })
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
        self.client.temp_roots.add(path);
        let Some(mut export) = self.client.store().export(path)? else { return Err(self.client.not_valid(path)) };
        self.outlet.last()?;
        loop {
            let bytes = export.fill_buf().map_err(|error| {
                tracing::error!("cannot send '{path}': {error}");
                Fault::Gone
            })?;
            if bytes.is_empty() {
                break;
            }
            let n = bytes.len();
            self.outlet.writer().write_all(bytes).map_err(gone)?;
            export.consume(n);
        }
        self.outlet.flush()
    }

    fn add_to_store(&mut self, request: AddToStore) -> Result<(), Fault> {
        let AddToStore { name, method, references, repair: _ } = request;
        self.upload(|client, frames| {
            client.require(Role::Push, "add to this store")?;
            let object = NewObject { name, method, references };
            Ok(Reply::AddToStore(add_object(client, object, frames)?))
        })
    }

    fn add_to_store_nar(&mut self, request: AddToStoreNar) -> Result<(), Fault> {
        let AddToStoreNar { mut info, repair: _, dont_check_sigs } = request;
        self.upload(|client, frames| {
            client.require(Role::Push, "add to this store")?;
            info.ultimate &= client.is_trusted();
            let mut uploader = Uploader::new(client, !dont_check_sigs);
            uploader.add(info, frames)?;
            uploader.finish()?;
            Ok(Reply::AddToStoreNar(()))
        })
    }

    fn add_build_log(&mut self, request: &AddBuildLog) -> Result<(), Fault> {
        self.upload(|client, frames| {
            if !client.is_trusted() {
                return Err(Fault::refused("you are not privileged to add logs"));
            }
            client.store().put_log_durably(&request.drv, frames)?;
            Ok(Reply::AddBuildLog(Done))
        })
    }

    /// Takes a framed upload to its end, whatever `take` leaves of it, and replies. An error is told at once, so that
    /// the client stops sending.
    fn upload(
        &mut self,
        take: impl FnOnce(&Client, &mut FramedReader<&mut BufReader<PipeReader>>) -> Result<Reply, Fault>,
    ) -> Result<(), Fault> {
        let mut frames = self.input.frames();
        let result = take(&self.client, &mut frames);
        finish_upload(&mut self.outlet, frames, result)?.map_or(Ok(()), |reply| self.reply(&reply))
    }

    fn add_multiple_to_store(&mut self, request: &AddMultipleToStore) -> Result<(), Fault> {
        let dialect = self.input.dialect().clone();
        let mut entries = UploadEntries::new(self.input.frames(), dialect)?;
        let result = take_entries(&self.client, !request.dont_check_sigs, &mut entries);
        let frames = entries.into_frames();
        let result = match result {
            // Nothing was lost but the client's own thread.
            Err(Fault::Gone) if frames.is_ended() => {
                Err(Fault::refused("the upload ended before all paths that it announced"))
            }
            Err(Fault::Fatal(text)) => Err(Fault::Refused(text)),
            result => result.map(|()| Reply::AddMultipleToStore(())),
        };
        finish_upload(&mut self.outlet, frames, result)?.map_or(Ok(()), |reply| self.reply(&reply))
    }
}

/// Tells an error, then reads the stream's end. The reply is left to be written.
fn finish_upload(
    outlet: &mut Outlet,
    mut frames: FramedReader<&mut BufReader<PipeReader>>,
    result: Result<Reply, Fault>,
) -> Result<Option<Reply>, Fault> {
    let reply = match result {
        Ok(reply) => Some(reply),
        Err(Fault::Refused(text)) => {
            outlet.error(&text)?;
            None
        }
        Err(fault) => return Err(fault),
    };
    frames.drain()?;
    Ok(reply)
}

fn take_entries(
    client: &Client,
    check_sigs: bool,
    entries: &mut UploadEntries<&mut BufReader<PipeReader>>,
) -> Result<(), Fault> {
    client.require(Role::Push, "add to this store")?;
    let mut uploader = Uploader::new(client, check_sigs);
    let taken = loop {
        match entries.next_entry() {
            Ok(None) => break Ok(()),
            Ok(Some(mut info)) => {
                info.ultimate = false;
                if let Err(fault) = uploader.add(info, entries) {
                    break Err(fault);
                }
            }
            Err(error) => break Err(error.into()),
        }
    };
    // What came before stays, as with Nix.
    uploader.finish().and(taken)
}

fn add_text(client: &Client, request: AddTextToStore) -> Result<StorePath, Fault> {
    use shoal_wire::nix::content_address::{CaMethod, CaMethodAlgo};
    use shoal_wire::nix::hash::HashAlgo;
    client.require(Role::Push, "add to this store")?;
    let AddTextToStore { name, text, references } = request;
    let method = CaMethodAlgo { method: CaMethod::Text, algo: HashAlgo::Sha256 };
    Ok(add_object(client, NewObject { name, method, references }, &mut &text[..])?.path)
}
