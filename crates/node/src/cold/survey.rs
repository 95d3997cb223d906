//! All that is in the bucket, looked through: whether it is right, or to have it back.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use shoal_store::Store;
use shoal_wire::mesh::cold::{ColdRecord, PACK_LEN_MAX, PackName, pack_object, record_object};
use shoal_wire::nix::base64::decode_hex_into;
use shoal_wire::nix::hash::{Hash, HashAlgo, Hasher};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

use super::{Cold, Item, Unpacking};
use crate::upstream::source::Trouble;
use crate::upstream::{BUILD_BUDGET, Refusal, Upstreams};

/// Paths that are brought back together.
const TOGETHER_MAX: usize = 256;
/// Findings that are named; the rest is counted. An answer of some 100 KiB.
const FINDINGS_MAX: usize = 1000;

/// An object, and what is wrong with it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Finding {
    pub object: String,
    pub why: String,
}

/// What was found in the bucket, and what became of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Report {
    pub paths: u64,
    pub packs: u64,
    /// Bytes of packs.
    pub bytes: u64,
    pub damaged: Findings,
    /// What the bucket did not give now; it may be right.
    pub not_checked: Findings,
    /// Damaged paths that are here and are written again.
    pub rewritten: u64,
    /// Paths that were brought back.
    pub restored: u64,
    pub not_restored: Findings,
}

/// How many, and the first of them: a bucket that lost all has as many as paths.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Findings {
    pub count: u64,
    pub first: Vec<Finding>,
}

impl Findings {
    fn push(&mut self, object: String, why: String) {
        self.count += 1;
        if self.first.len() < FINDINGS_MAX {
            self.first.push(Finding { object, why });
        }
    }
}

/// What keeps an object from being right.
enum Fault {
    Damaged(String),
    /// It cannot be said: the bucket failed.
    Unknown(String),
}

impl From<&str> for Fault {
    fn from(why: &str) -> Fault {
        Fault::Damaged(why.into())
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Fault {
        match refusal {
            Refusal::Missing => Fault::Damaged(text(Refusal::Missing)),
            Refusal::Failed(why) => Fault::Unknown(why),
        }
    }
}

impl Report {
    /// Whether it is damaged.
    fn note(&mut self, object: String, fault: Fault) -> bool {
        match fault {
            Fault::Damaged(why) => self.damaged.push(object, why),
            Fault::Unknown(why) => {
                self.not_checked.push(object, why);
                return false;
            }
        }
        true
    }
}

/// Told how far it is; whether to go on.
pub type GoOn<'a> = &'a mut dyn FnMut(&Report) -> bool;

impl Cold {
    /// Reads packs, records and what records give, and compares them with each other, with their names and with hashes of
    /// NARs. `quick`: only records are read, and lengths compared. What is damaged and here is written again. `believes`:
    /// whether a record's signatures do.
    pub fn verify(
        &self,
        store: &Store,
        quick: bool,
        believes: &dyn Fn(&PathInfo) -> Result<(), String>,
        go_on: GoOn<'_>,
    ) -> Result<Report> {
        let mut report = Report::default();
        let mut packs = HashMap::new();
        self.each("packs", &mut |name, len| {
            report.packs += 1;
            report.bytes += len;
            let mut pack = PackName::default();
            let fault = match decode_hex_into(name.as_bytes(), &mut pack) {
                Ok(()) => self.check_pack(&pack, len, quick).err(),
                Err(_) => Some("it has the name of no pack".into()),
            };
            if let Some(fault) = fault {
                let is_damaged = report.note(format!("packs/{name}"), fault);
                packs.insert(pack, if is_damaged { 0 } else { len });
            } else {
                packs.insert(pack, len);
            }
            go_on(&report)
        })?;
        self.each("paths", &mut |hash_part, len| {
            report.paths += 1;
            let is_right = self.check_record(hash_part, len, &mut packs, believes);
            if let Err(fault) = is_right.and_then(|record| if quick { Ok(()) } else { self.check_nar(&record) })
                && report.note(record_object(hash_part), fault)
            {
                report.rewritten += u64::from(self.write_again(store, hash_part));
            }
            go_on(&report)
        })?;
        Ok(report)
    }

    /// Error: what is wrong with a pack.
    fn check_pack(&self, pack: &PackName, len: u64, quick: bool) -> Result<(), Fault> {
        let check = || -> Result<(), Fault> {
            if len > PACK_LEN_MAX as u64 {
                return Err(Fault::Damaged(format!("it has {len} bytes, more than any pack")));
            }
            if quick || *blake3::hash(&self.bucket.get(&pack_object(pack), PACK_LEN_MAX)?).as_bytes() == *pack {
                return Ok(());
            }
            Err("it has other bytes than its name says".into())
        };
        check().inspect_err(|fault| {
            if matches!(fault, Fault::Damaged(_)) {
                self.forget(pack);
                self.found_wrong(pack);
            }
        })?;
        if !quick {
            self.found_right(pack);
        }
        Ok(())
    }

    /// Error: what is wrong with a record, or with what it names. `packs`: lengths of those that were found, 0 of damaged
    /// ones. What was written since they were listed is asked for.
    fn check_record(
        &self,
        hash_part: &str,
        len: u64,
        packs: &mut HashMap<PackName, u64>,
        believes: &dyn Fn(&PathInfo) -> Result<(), String>,
    ) -> Result<ColdRecord, Fault> {
        if len > ColdRecord::OBJECT_LEN_MAX as u64 {
            return Err(Fault::Damaged(format!("it has {len} bytes, more than any record")));
        }
        let record = self.record(hash_part)?;
        believes(&record.info()).map_err(Fault::Damaged)?;
        for packed in &record.chunks {
            let Some(pack) = record.packs.get(packed.pack as usize) else { continue };
            let len = match packs.get(pack) {
                Some(len) => *len,
                None => match self.bucket.size(&pack_object(pack)) {
                    Ok(len) => len,
                    Err(Refusal::Missing) => 0,
                    Err(failed) => return Err(failed.into()),
                },
            };
            packs.insert(*pack, len);
            if packed.end() > len {
                self.forget(pack);
                return Err(Fault::Damaged(format!("it takes '{}', which is missing or damaged", pack_object(pack))));
            }
        }
        Ok(record)
    }

    /// Reads a path as who lacks it would. Error: what is wrong with it, though all that it names is there.
    fn check_nar(&self, record: &ColdRecord) -> Result<(), Fault> {
        let mut hasher = Hasher::new(HashAlgo::Sha256);
        let unpacking = Unpacking { cold: self, store: None, record, file_bytes: Arc::default() };
        let read = unpacking.run(|contents| {
            hasher.update(contents);
            Ok(())
        });
        let hash = hasher.finish();
        match read {
            Ok(()) if hash == Hash::sha256(record.nar_hash) => Ok(()),
            Ok(()) => Err("its chunks are whole, but do not make the NAR of its hash".into()),
            Err(Trouble::Upstream(Refusal::Missing)) => Err("a chunk that it names is not where it says".into()),
            Err(Trouble::Upstream(Refusal::Failed(why)) | Trouble::Here(why)) => Err(Fault::Unknown(why)),
        }
    }

    /// Has a path that is here written again; whether it is.
    pub(super) fn write_again(&self, store: &Store, hash_part: &str) -> bool {
        self.doubt(hash_part);
        let Ok(Some(path)) = store.path_from_hash_part(hash_part) else { return false };
        self.backlog().add(Item::Path(path));
        self.news.notify_all();
        self.writes
    }

    /// Makes every path of the bucket valid here that can be had whole.
    pub fn restore(&self, store: &Store, upstreams: &Upstreams, go_on: GoOn<'_>) -> Result<Report> {
        let mut report = Report::default();
        let mut wanted = BTreeSet::new();
        self.each("paths", &mut |hash_part, _| {
            report.paths += 1;
            match store.path_from_hash_part(hash_part) {
                Ok(Some(_)) => return go_on(&report),
                Ok(None) => {}
                Err(error) => {
                    report.not_restored.push(record_object(hash_part), error.to_string());
                    return go_on(&report);
                }
            }
            match self.record(hash_part) {
                Ok(ColdRecord { path, .. }) => drop(wanted.insert(path)),
                Err(refusal) => report.not_restored.push(record_object(hash_part), text(refusal)),
            }
            if wanted.len() >= TOGETHER_MAX {
                bring(store, upstreams, std::mem::take(&mut wanted), &mut report);
            }
            go_on(&report)
        })?;
        bring(store, upstreams, wanted, &mut report);
        Ok(report)
    }

    /// Calls `see` with the name and length of every object in `dir`, for as long as it says to go on.
    fn each(&self, dir: &str, see: &mut dyn FnMut(&str, u64) -> bool) -> Result<()> {
        let mut after = None;
        loop {
            let page = self.bucket.list(dir, after).map_err(|refusal| {
                anyhow::anyhow!("cannot list '{dir}' of the bucket {}: {}", self.bucket.url(), text(refusal))
            })?;
            for (name, len) in &page.objects {
                if !see(name, *len) || self.bucket.is_stopping() {
                    return Ok(());
                }
            }
            if page.last.is_none() {
                return Ok(());
            }
            after = page.last;
        }
    }
}

/// Fetches paths with what they refer to, as a client would have it done.
fn bring(store: &Store, upstreams: &Upstreams, wanted: BTreeSet<StorePath>, report: &mut Report) {
    let mut why = "what it refers to is not to be had".to_string();
    match upstreams.closure(&wanted, BUILD_BUDGET) {
        Ok(closure) => {
            let fetch = upstreams.begin(&closure);
            for flight in fetch.iter().flat_map(|fetch| &fetch.flights) {
                if let Err(error) = flight.wait() {
                    why = error;
                }
            }
        }
        Err(error) => why = format!("{error:#}"),
    }
    for path in wanted {
        match store.is_valid(&path) {
            Ok(true) => report.restored += 1,
            _ => report.not_restored.push(record_object(path.hash_part()), why.clone()),
        }
    }
}

fn text(refusal: Refusal) -> String {
    match refusal {
        Refusal::Missing => "it is missing, or not what was written; the node's log says more".into(),
        Refusal::Failed(why) => why,
    }
}
