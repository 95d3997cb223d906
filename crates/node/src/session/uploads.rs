//! Paths that clients send: taken in, judged, made valid.

use std::collections::{BTreeSet, HashSet};
use std::io::BufRead;
use std::time::{SystemTime, UNIX_EPOCH};

use shoal_store::{CommitError, Ingested};
use shoal_wire::nix::content_address::{CaMethod, CaMethodAlgo, ContentAddress};
use shoal_wire::nix::make_path::CaReferences;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::{DRV_EXTENSION, StorePath};

use super::Client;
use super::ca_check::CaHasher;
use super::fault::Fault;
use super::spool::{Spool, SpoolError};
use crate::build::derivations::PendingDerivations;
use committer::Committer;
pub use intake::{DRV_LEN_MAX, source_fault};
use intake::{Intake, Taken, cannot_add};

mod committer;
pub(crate) mod intake;

/// Bytes of NAR after which what came in so far is made valid, while more comes in.
const BATCH_BYTES_MAX: u64 = 64 << 20;
/// The same, in paths: a closure of derivations has many small ones.
const BATCH_PATHS_MAX: usize = 512;

/// A path that came in and is not valid yet.
type Entry = (PathInfo, Ingested);

/// Takes in the paths of one request. What was added before an error stays.
pub struct Uploader<'a> {
    client: &'a Client,
    /// Whether an input-addressed path needs a trusted signature.
    must_be_signed: bool,
    batch: Vec<Entry>,
    batch_bytes: u64,
    /// Derivations of the batch, and of the one that is being committed.
    pending: PendingDerivations,
    committing: PendingDerivations,
    /// Paths of this upload, valid or about to be.
    added: HashSet<StorePath>,
    committer: Option<Committer>,
    /// What the client is to be told of when it is on as many nodes as it should be. Empty while there are no others.
    to_acknowledge: Vec<PathInfo>,
}

impl<'a> Uploader<'a> {
    /// `check_sigs` is what the client asked for; one that is not trusted gets the check in any case.
    pub fn new(client: &'a Client, check_sigs: bool) -> Self {
        Uploader {
            client,
            must_be_signed: check_sigs || !client.is_trusted(),
            batch: Vec::new(),
            batch_bytes: 0,
            pending: PendingDerivations::new(),
            committing: PendingDerivations::new(),
            added: HashSet::new(),
            committer: None,
            to_acknowledge: Vec::new(),
        }
    }

    /// Takes in the path whose NAR is all of `nar`. Where the path is valid already, `nar` is not read.
    pub fn add(&mut self, mut info: PathInfo, nar: &mut impl BufRead) -> Result<(), Fault> {
        let client = self.client;
        client.temp_roots.add(&info.path);
        if self.added.contains(&info.path) {
            return Ok(());
        }
        if let Some(known) = client.store().path_info(&info.path)? {
            // Whoever brought it may still wait for its copies.
            self.note(&known);
            return Ok(());
        }
        let admission = &client.services.admission;
        admission.check_claim(&info, self.must_be_signed)?;
        let itself = info.references.contains(&info.path).then_some(&info.path);
        let ca = info.ca.map(|ca| CaHasher::new(ca.method_algo(), itself));
        let full = client.dir().print(&info.path);
        let mut intake = Intake::new(client.store(), ca, info.path.is_derivation());
        intake.take(nar, &full)?;
        let Taken { ingested, ca, text } = intake.finish(&full)?;
        admission.check_contents(&info, &ingested, ca)?;
        info.nar_size = ingested.nar_size;
        if client.is_trusted() {
            admission.vouch(&mut info);
        }
        self.enter(info, ingested, text)
    }

    /// Judges the derivation, if it is one, and puts the path on the list.
    fn enter(&mut self, mut info: PathInfo, ingested: Ingested, text: Option<Vec<u8>>) -> Result<(), Fault> {
        if info.path.is_derivation() {
            // It is judged by the derivations that it takes inputs from.
            self.bring_references(std::iter::once(&info));
            let pending = [&self.pending, &self.committing];
            let derivation = self.client.services.admission.check_derivation(&info, text, &pending)?;
            self.pending.insert(info.path.clone(), derivation);
        }
        info.registration_time = now();
        self.note(&info);
        self.batch_bytes += ingested.nar_size;
        self.added.insert(info.path.clone());
        self.batch.push((info, ingested));
        if self.batch_bytes >= BATCH_BYTES_MAX || self.batch.len() >= BATCH_PATHS_MAX {
            self.commit_beside()?;
        }
        Ok(())
    }

    fn note(&mut self, info: &PathInfo) {
        if !self.client.upstreams().neighbours().is_alone() {
            self.to_acknowledge.push(info.clone());
        }
    }

    /// Takes the batch, with what its paths refer to brought here.
    fn take_batch(&mut self) -> Vec<Entry> {
        let batch = std::mem::take(&mut self.batch);
        self.bring_references(batch.iter().map(|(info, _)| info));
        batch
    }

    /// Fetches what these refer to and is not here, nor part of this upload.
    fn bring_references<'b>(&self, coming: impl Iterator<Item = &'b PathInfo>) {
        let references = coming.flat_map(|info| &info.references).filter(|path| !self.added.contains(*path)).cloned();
        self.client.bring(&references.collect());
    }

    /// Commits the batch on another thread, once the batch before is valid.
    fn commit_beside(&mut self) -> Result<(), Fault> {
        let committer = match self.committer.take() {
            Some(committer) => committer,
            None => Committer::start(self.client.store().clone()).map_err(|error| {
                Fault::refused(format!("cannot start a thread to store paths ({error}); try again later"))
            })?,
        };
        if !committer.submit(self.take_batch()) {
            return committer.finish(Vec::new()).map_err(|error| self.explain(error));
        }
        self.committer = Some(committer);
        self.batch_bytes = 0;
        self.committing = std::mem::take(&mut self.pending);
        Ok(())
    }

    /// Makes everything valid. To be called also after [`Self::add`] failed, for what came before.
    pub fn finish(mut self) -> Result<(), Fault> {
        self.commit()?;
        self.client.acknowledge(&self.to_acknowledge)
    }

    fn commit(&mut self) -> Result<(), Fault> {
        let batch = self.take_batch();
        let result = match self.committer.take() {
            Some(committer) => committer.finish(batch),
            None if batch.is_empty() => Ok(()),
            None => self.client.store().commit(batch),
        };
        result.map_err(|error| self.explain(error))
    }

    fn explain(&self, error: CommitError) -> Fault {
        let dir = self.client.dir();
        match error {
            CommitError::Reference { path, reference } => {
                let why = format!("it refers to '{}', which is not valid here", dir.print(&reference));
                cannot_add(&dir.print(&path), &why)
            }
            error => Fault::refused(error.to_string()),
        }
    }
}

/// A content-addressed object before its contents.
pub struct NewObject {
    pub name: String,
    pub method: CaMethodAlgo,
    pub references: BTreeSet<StorePath>,
}

/// Adds what `source` holds under the path that follows from it: a NAR for the methods that hash trees, otherwise the
/// contents of a file.
pub fn add_object(client: &Client, object: NewObject, source: &mut impl BufRead) -> Result<PathInfo, Fault> {
    let NewObject { name, method, references } = object;
    let store = client.store();
    let mut intake = Intake::new(store, Some(CaHasher::new(method, None)), name.ends_with(DRV_EXTENSION));
    match method.method {
        CaMethod::Nar | CaMethod::Git => intake.take(source, &name)?,
        CaMethod::Text | CaMethod::Flat => {
            let spool = Spool::fill(source, &store.dir().join("tmp")).map_err(|error| match error {
                SpoolError::Source(error) => source_fault(error),
                SpoolError::Disk(error) => cannot_add(&name, &format!("cannot keep it for a moment: {error}")),
            })?;
            spool.write_nar(&mut intake).map_err(|error| cannot_add(&name, &error))?;
        }
    }
    let Taken { ingested, ca, text } = intake.finish(&name)?;
    let ca = ca.ok_or_else(|| cannot_add(&name, &format!("what came cannot be hashed by method {method}")))?;
    let ca = ContentAddress { method: method.method, hash: ca.first() };
    let of = CaReferences { others: references.clone(), itself: false };
    let path = client.dir().make_ca_path(&ca, &of, &name).map_err(|error| cannot_add(&name, &error))?;
    client.temp_roots.add(&path);
    if let Some(info) = store.path_info(&path)? {
        client.acknowledge([&info])?;
        return Ok(info);
    }
    let mut info = PathInfo::new(path.clone(), ingested.nar_hash, ingested.nar_size);
    info.references = references;
    info.ca = Some(ca);
    let mut uploader = Uploader::new(client, false);
    uploader.enter(info, ingested, text)?;
    uploader.commit()?;
    let info = store.path_info(&path)?.ok_or_else(|| client.not_valid(&path))?;
    client.acknowledge([&info])?;
    Ok(info)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
