//! A session of the serve protocol: `nix-store --serve [--write]` (`ssh://`, `nix-copy-closure`, Hydra).
//!
//! The protocol has no way to say that a command failed, but for the two that build: the reason goes to the client's
//! terminal and the session ends with status 1. Builders' output goes there too, and nothing else, because the build
//! hook keeps it as the log.

use std::collections::BTreeSet;
use std::io::{BufReader, Read, Write};

use shoal_wire::nix::nar::{Discard, NarLimits};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::proto::{Dialect, Done, Reader, Writer};
use shoal_wire::nix::serve::commands::{
    AddToStoreNar, BuildDerivation, BuildPaths, PathInfos, QueryPathInfos, QueryValidPaths,
};
use shoal_wire::nix::serve::{
    BuildOptions as ServeOptions, BuildPathsReply, ExportReader, MINOR_MIN, Reply, Request, ServeBuildResult, handshake,
};
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::ops::{self, BuildMode};
use shoal_wire::nix::worker::{BuildResult, BuildStatus};

use super::builds::{self, Audience};
use super::fault::{Fault, gone};
use super::spool::{Spool, SpoolError};
use super::uploads::{Uploader, source_fault};
use super::{Client, settings};
use crate::build::feed::BuildEvent;
use crate::build::request::BuildOptions;
use crate::door::pipe::Lane;
use crate::door::{PipeReader, PipeWriter, Role};

type Input = Reader<PipeReader>;

struct Server {
    client: Client,
    write: bool,
    input: Input,
    output: Writer<PipeWriter>,
    terminal: Terminal,
}

/// Runs the session to its end and returns the exit status.
pub fn serve(client: Client, write: bool, input: PipeReader, output: PipeWriter) -> u32 {
    let dialect = Dialect::new(client.dir().clone(), MINOR_MIN);
    let terminal = Terminal(output.with_lane(Lane::Stderr));
    let input = Reader::new(input, dialect.clone());
    let mut server = Server { client, write, input, output: Writer::new(output, dialect), terminal };
    match server.run() {
        Ok(()) | Err(Fault::Gone) => 0,
        Err(Fault::Refused(text) | Fault::Fatal(text)) => {
            tracing::debug!("session of {} ended: {text}", server.client.peer.from);
            // The client may be gone too.
            let _ = server.terminal.say(format!("error: {text}\n").as_bytes());
            1
        }
    }
}

impl Server {
    fn run(&mut self) -> Result<(), Fault> {
        handshake::accept(&mut self.input, &mut self.output).map_err(|error| match error {
            handshake::HandshakeError::Proto(error) => error.into(),
            error => Fault::Fatal(error.to_string()),
        })?;
        while let Some(request) = Request::read_next(&mut self.input)? {
            self.perform(request)?;
        }
        Ok(())
    }

    fn perform(&mut self, request: Request) -> Result<(), Fault> {
        let reply = match request {
            Request::QueryValidPaths(request) => Reply::QueryValidPaths(self.valid_paths(&request)?),
            Request::QueryPathInfos(request) => Reply::QueryPathInfos(self.path_infos(&request)?),
            Request::DumpStorePath(request) => return self.dump(&request.path),
            Request::ImportPaths(_) => Reply::ImportPaths(self.import()?),
            Request::BuildPaths(request) => Reply::BuildPaths(self.build_paths(request)?),
            Request::QueryClosure(request) => {
                Reply::QueryClosure(self.client.closure(request.paths, request.include_outputs)?)
            }
            Request::BuildDerivation(request) => Reply::BuildDerivation(self.build_derivation(request)?),
            Request::AddToStoreNar(request) => Reply::AddToStoreNar(self.add(request)?),
        };
        reply.write(&mut self.output).map_err(gone)?;
        self.output.flush().map_err(gone)
    }

    fn require_write(&self, role: Role, what: &str) -> Result<(), Fault> {
        match self.write {
            true => self.client.require(role, what),
            false => Err(Fault::refused(format!("you cannot {what}: this session was opened without --write"))),
        }
    }

    fn valid_paths(&mut self, request: &QueryValidPaths) -> Result<BTreeSet<StorePath>, Fault> {
        if request.lock && self.write {
            request.paths.iter().for_each(|path| self.client.temp_roots.add(path));
        }
        if request.substitute && self.write {
            self.client.substitute_paths(&request.paths, &mut self.terminal)?;
        }
        self.client.valid_of(&request.paths)
    }

    fn path_infos(&self, request: &QueryPathInfos) -> Result<PathInfos, Fault> {
        Ok(PathInfos(self.client.known_of(&request.paths)?))
    }

    fn dump(&mut self, path: &StorePath) -> Result<(), Fault> {
        self.client.nar(path)?.write_to(&mut self.output).map_err(gone)?.map_err(source_fault)?;
        self.output.flush().map_err(gone)
    }

    /// Reads the NAR to its end whatever comes of it.
    fn add(&mut self, request: AddToStoreNar) -> Result<Done, Fault> {
        self.require_write(Role::Push, "add to this store")?;
        let mut info = request.info;
        info.ultimate = false;
        let mut uploader = Uploader::new(&self.client, false);
        let mut nar = self.input.inner_mut().take(info.nar_size);
        uploader.add(info, &mut nar)?;
        std::io::copy(&mut nar, &mut std::io::sink()).map_err(source_fault)?;
        if nar.limit() > 0 {
            return Err(Fault::Gone);
        }
        uploader.finish()?;
        Ok(Done)
    }

    /// An export says neither hashes nor sizes before its NARs, and has no signatures: only a trusted client can send
    /// one. Each NAR is kept until its path is known.
    fn import(&mut self) -> Result<Done, Fault> {
        self.require_write(Role::Admin, "import paths without signatures")?;
        let spool_dir = self.client.store().dir().join("tmp");
        let mut uploader = Uploader::new(&self.client, false);
        let mut export = ExportReader::new(&mut self.input);
        while let Some(nar) = export.next_nar(NarLimits::ANY_RELEASE, Discard)? {
            let mut spool = Spool::fill(&mut BufReader::new(nar), &spool_dir).map_err(|error| match error {
                SpoolError::Source(error) => source_fault(error),
                SpoolError::Disk(error) => Fault::refused(format!("cannot keep a NAR for a moment: {error}")),
            })?;
            let entry = export.entry()?;
            let mut info = PathInfo::new(entry.path, spool.sha256().map_err(source_fault)?, spool.len());
            (info.references, info.deriver) = (entry.references, entry.deriver);
            uploader.add(info, &mut spool.into_reader())?;
        }
        uploader.finish()?;
        Ok(Done)
    }

    fn build_paths(&mut self, request: BuildPaths) -> Result<BuildPathsReply, Fault> {
        self.require_write(Role::Build, "build")?;
        let options = self.options(&request.options)?;
        let wanted = request.paths;
        let client = &self.client;
        let results = client.build(&wanted, BuildMode::Normal, options, &mut self.terminal)?;
        let Some((before, text)) = builds::failure(client.dir(), &wanted, &results) else {
            return Ok(BuildPathsReply::Success);
        };
        before.iter().try_for_each(|text| self.terminal.say(format!("error: {text}\n").as_bytes()))?;
        Ok(BuildPathsReply::Failure { status: BuildStatus::MiscFailure.number(), message: text.into_bytes() })
    }

    fn build_derivation(&mut self, request: BuildDerivation) -> Result<ServeBuildResult, Fault> {
        self.require_write(Role::Build, "build")?;
        let options = self.options(&request.options)?;
        let BuildDerivation { path, drv, .. } = request;
        let request = ops::BuildDerivation { path, drv, mode: BuildMode::Normal };
        Ok(ServeBuildResult(match self.client.build_derivation(request, options, &mut self.terminal) {
            Err(Fault::Refused(text)) => BuildResult::new(BuildStatus::MiscFailure, text),
            result => result?,
        }))
    }

    fn options(&self, options: &ServeOptions) -> Result<BuildOptions, Fault> {
        if options.repeats != 0 {
            return Err(Fault::refused("repeated builds are not supported; use 'nix build --rebuild' to compare"));
        }
        Ok(BuildOptions {
            keep_failed: Some(options.keep_failed),
            timeout: settings::seconds(options.build_timeout),
            max_silent: settings::seconds(options.max_silent_time),
            // As with op 19, only trusted clients set it.
            max_log_bytes: Some(options.max_log_size).filter(|&bytes| bytes > 0 && self.client.is_trusted()),
            ..self.client.options.clone()
        })
    }
}

/// The client's terminal: the standard error of its ssh.
struct Terminal(PipeWriter);

impl Terminal {
    fn say(&mut self, text: &[u8]) -> Result<(), Fault> {
        self.0.write_all(text).and_then(|()| self.0.flush()).map_err(gone)
    }
}

impl Audience for Terminal {
    fn tell(&mut self, event: BuildEvent) -> Result<(), Fault> {
        match event {
            BuildEvent::Line { mut line, .. } if !self.0.is_congested() => {
                line.push(b'\n');
                self.0.write_all(&line).map_err(gone)
            }
            BuildEvent::Message(text) | BuildEvent::Said(text) => self.0.write_all(text.as_bytes()).map_err(gone),
            _ => Ok(()),
        }
    }

    /// Whatever were said would stand in the log.
    fn still_alive(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.0.flush().map_err(gone)
    }
}
