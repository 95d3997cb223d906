//! What comes in over HTTP: the files of a binary cache by PUT, and chunks ([`chunks`]).
//!
//! A NAR is taken in as it streams and waits, not valid, for the narinfo that says what path it is ([`held`]). It is
//! judged by the same admission as what comes over ssh, and nothing is visible before it is whole and judged. What waits
//! is bounded in number, bytes and time. Everything here blocks.

use std::collections::BTreeSet;
use std::io::{self, BufRead};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use shoal_store::{CommitError, Ingested};
use shoal_wire::nix::derivation::Derivation;
use shoal_wire::nix::path_info::PathInfo;

use super::ca_check::{CaHasher, CaHashes, FileReader};
use super::fault::Fault;
use super::uploads::DRV_LEN_MAX;
use super::{Client, Services};
use crate::build::derivations::PendingDerivations;
use crate::build::request::BuildOptions;
use crate::door::{Grant, Hangup, Peer, Role};

pub mod chunks;
pub mod files;
pub mod held;
pub mod nars;

/// Why something was not taken in: a status of HTTP, and a line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub text: String,
}

impl Refusal {
    fn new(status: u16, text: impl Into<String>) -> Refusal {
        Refusal { status, text: text.into() }
    }

    /// What was sent is not what it should be.
    fn bad(text: impl Into<String>) -> Refusal {
        Refusal::new(400, text)
    }

    fn forbidden(text: impl Into<String>) -> Refusal {
        Refusal::new(403, text)
    }

    /// It may work later.
    fn busy(text: impl Into<String>) -> Refusal {
        Refusal::new(503, text)
    }

    fn of_fault(status: u16, fault: Fault) -> Refusal {
        match fault {
            Fault::Refused(text) | Fault::Fatal(text) => Refusal::new(status, text),
            Fault::Gone => Refusal::bad("the connection broke"),
        }
    }

    /// An error while a body was read, or written to the store.
    pub fn of_io(error: &io::Error) -> Refusal {
        let store = error.get_ref().and_then(|inner| inner.downcast_ref::<shoal_store::Error>());
        match store {
            Some(error) => error.clone().into(),
            None if error.kind() == io::ErrorKind::StorageFull => Refusal::new(507, error.to_string()),
            None if error.kind() == io::ErrorKind::TimedOut => Refusal::new(408, error.to_string()),
            None => Refusal::bad(error.to_string()),
        }
    }
}

impl From<shoal_store::Error> for Refusal {
    fn from(error: shoal_store::Error) -> Self {
        match error.is_full() {
            true => Refusal::new(507, error.to_string()),
            false => {
                tracing::error!("an upload failed: {error}");
                Refusal::new(500, "this node cannot store it; its log says why")
            }
        }
    }
}

impl From<shoal_store::IngestError> for Refusal {
    fn from(error: shoal_store::IngestError) -> Self {
        match error {
            shoal_store::IngestError::Store(error) => error.into(),
            error => Refusal::bad(error.to_string()),
        }
    }
}

type Outcome<T = ()> = Result<T, Refusal>;

/// What all HTTP uploads of a node share.
pub struct Deposits {
    services: Arc<Services>,
    held: held::HeldNars,
    uploads: chunks::Uploads,
}

impl Deposits {
    pub fn new(services: Arc<Services>) -> Deposits {
        Deposits { services, held: held::HeldNars::default(), uploads: chunks::Uploads::default() }
    }

    /// Lets go of what waited too long. To be called every now and then.
    pub fn tidy(&self) {
        self.held.tidy(Instant::now());
        self.uploads.tidy(Instant::now());
    }

    /// Bytes of the file `nar/<file>` that waits for its narinfo.
    pub fn held_file_size(&self, file: &str) -> Option<u64> {
        self.held.get(file, Instant::now()).map(|nar| nar.file_size)
    }

    /// NARs that wait for their narinfo, and their bytes.
    pub fn held_counts(&self) -> (u64, u64) {
        self.held.counts()
    }

    fn client(&self, grant: Grant) -> Client {
        let from = format!("http {}", grant.who);
        Client {
            services: self.services.clone(),
            peer: Peer { grant, from },
            temp_roots: self.services.store.temp_roots(),
            hangup: Hangup::default(),
            options: BuildOptions::default(),
        }
    }

    /// A client that may upload.
    fn uploader(&self, grant: Grant) -> Outcome<Client> {
        let client = self.client(grant);
        match client.may(Role::Push) {
            true => Ok(client),
            false => Err(Refusal::forbidden(format!(
                "adding to this node takes the role 'push', your token has '{}'",
                client.peer.grant.role
            ))),
        }
    }
}

impl Client {
    /// Judges a path by what is said of it, before its contents are looked at.
    fn judge_claim(&self, info: &PathInfo) -> Outcome {
        self.temp_roots.add(&info.path);
        let judged = self.services.admission.check_claim(info, !self.is_trusted());
        judged.map_err(|fault| Refusal::of_fault(403, fault))
    }

    /// Judges a path that was taken in, and completes what is known of it. `pending`: derivations that become valid
    /// with it. Returns the derivation that it is, if it is one.
    fn judge_contents(
        &self,
        info: &mut PathInfo,
        ingested: &Ingested,
        pending: &PendingDerivations,
    ) -> Outcome<Option<Arc<Derivation>>> {
        let bad = |fault| Refusal::of_fault(400, fault);
        let admission = &self.services.admission;
        let (ca, text) = self.look_again(info, ingested)?;
        admission.check_contents(info, ingested, ca).map_err(bad)?;
        info.nar_size = ingested.nar_size;
        info.registration_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        info.ultimate = false;
        if self.is_trusted() {
            admission.vouch(info);
        }
        match info.path.is_derivation() {
            true => Ok(Some(admission.check_derivation(info, text, &[pending]).map_err(bad)?)),
            false => Ok(None),
        }
    }

    /// The content address, and a derivation's text, of a NAR that came before it was known what to look for.
    fn look_again(&self, info: &PathInfo, ingested: &Ingested) -> Outcome<(Option<CaHashes>, Option<Vec<u8>>)> {
        let itself = info.references.contains(&info.path).then_some(&info.path);
        let mut ca = info.ca.map(|ca| CaHasher::new(ca.method_algo(), itself));
        let mut text = info.path.is_derivation().then(|| FileReader::new(DRV_LEN_MAX));
        if text.is_some() || !matches!(ca, None | Some(CaHasher::NarHash)) {
            let mut nar = self.store().uncommitted_nar(ingested)?;
            loop {
                let bytes = nar.fill_buf().map_err(|error| Refusal::of_io(&error))?;
                if bytes.is_empty() {
                    break;
                }
                ca.iter_mut().for_each(|ca| ca.update(bytes));
                text.iter_mut().for_each(|text| text.update(bytes));
                let n = bytes.len();
                nar.consume(n);
            }
        }
        Ok((ca.and_then(|ca| ca.finish(ingested.nar_hash)), text.and_then(FileReader::finish)))
    }

    /// Makes paths valid, and waits until they are on as many nodes as they should be.
    fn commit(&self, batch: Vec<(PathInfo, Ingested)>) -> Outcome {
        let infos: Vec<PathInfo> = batch.iter().map(|(info, _)| info.clone()).collect();
        self.store().commit(batch).map_err(|error| self.refusal(error))?;
        self.acknowledge(&infos).map_err(|fault| Refusal::of_fault(503, fault))
    }

    fn refusal(&self, error: CommitError) -> Refusal {
        match error {
            CommitError::Reference { path, reference } => {
                let (path, reference) = (self.dir().print(&path), self.dir().print(&reference));
                Refusal::new(409, format!("cannot add '{path}': it refers to '{reference}', which is not valid here"))
            }
            // It is known by now, so that it is lacking when it is asked for again.
            CommitError::Damaged { .. } => Refusal::new(409, error.to_string()),
            CommitError::Contents { .. } => Refusal::bad(error.to_string()),
            CommitError::Store(error) => error.into(),
        }
    }

    /// For a path that is valid already: it stays as it is, but for signatures that somebody adds. Those of keys that
    /// are trusted here, unless the client is.
    fn add_to_valid(&self, known: &PathInfo, said: &PathInfo) -> Outcome {
        if known.nar_hash != said.nar_hash || known.references != said.references {
            return Ok(());
        }
        let mut new = PathInfo { signatures: BTreeSet::new(), ..known.clone() };
        for signature in said.signatures.difference(&known.signatures) {
            new.signatures = BTreeSet::from([signature.clone()]);
            let keys = self.services.admission.trusted_keys();
            if self.is_trusted() || new.count_valid_signatures(self.dir(), keys) > 0 {
                let added = self.add_signatures(&known.path, vec![signature.clone()]);
                added.map_err(|fault| Refusal::of_fault(400, fault))?;
            }
        }
        Ok(())
    }
}
