//! All that is in the bucket, looked through: whether it is right, or to have it back.

use std::collections::{BTreeSet, HashMap};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use shoal_store::Store;
use shoal_wire::mesh::cold::{ColdRecord, PACK_LEN_MAX, PackName, pack_object, record_object};
use shoal_wire::nix::base64::decode_hex_into;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

use super::Cold;
use crate::upstream::{BUILD_BUDGET, Refusal, Upstreams};

/// Paths that are brought back together.
const TOGETHER_MAX: usize = 256;

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
    pub damaged: Vec<Finding>,
    /// Damaged paths that are here and are written again.
    pub rewritten: u64,
    /// Paths that were brought back.
    pub restored: u64,
    pub not_restored: Vec<Finding>,
}

/// Told how far it is; whether to go on.
pub type GoOn<'a> = &'a mut dyn FnMut(&Report) -> bool;

impl Cold {
    /// Reads packs and records and compares them with each other and with their names. `quick`: packs are not read, only
    /// their lengths compared. What is damaged and here is written again. `believes`: whether a record's signatures do.
    pub fn verify(
        &self,
        store: &Store,
        quick: bool,
        believes: &dyn Fn(&PathInfo) -> Result<(), String>,
        go_on: GoOn<'_>,
    ) -> Result<Report> {
        let mut report = Report::default();
        let mut packs: HashMap<PackName, u64> = HashMap::new();
        self.each("packs", &mut |name, len| {
            report.packs += 1;
            report.bytes += len;
            match self.check_pack(name, len, quick) {
                Ok(pack) => drop(packs.insert(pack, len)),
                Err(why) => report.damaged.push(Finding { object: format!("packs/{name}"), why }),
            }
            go_on(&report)
        })?;
        self.each("paths", &mut |hash_part, _| {
            report.paths += 1;
            if let Err(why) = self.check_record(hash_part, &packs, believes) {
                report.damaged.push(Finding { object: record_object(hash_part), why });
                report.rewritten += u64::from(self.write_again(store, hash_part));
            }
            go_on(&report)
        })?;
        Ok(report)
    }

    /// Error: what is wrong with a pack.
    fn check_pack(&self, name: &str, len: u64, quick: bool) -> Result<PackName, String> {
        let mut pack = PackName::default();
        decode_hex_into(name.as_bytes(), &mut pack).map_err(|_| "it has the name of no pack")?;
        let forget = |why: String| {
            if let Err(error) = self.notes.forget_pack(&pack) {
                tracing::warn!("{error:#}");
            }
            why
        };
        if len > PACK_LEN_MAX as u64 {
            return Err(forget(format!("it has {len} bytes, more than any pack")));
        }
        if quick {
            return Ok(pack);
        }
        let bytes = self.bucket.get(&pack_object(&pack), PACK_LEN_MAX).map_err(|refusal| forget(text(refusal)))?;
        match *blake3::hash(&bytes).as_bytes() == pack {
            true => Ok(pack),
            false => Err(forget("it has other bytes than its name says".into())),
        }
    }

    /// Error: what is wrong with a record, or with what it names.
    fn check_record(
        &self,
        hash_part: &str,
        packs: &HashMap<PackName, u64>,
        believes: &dyn Fn(&PathInfo) -> Result<(), String>,
    ) -> Result<(), String> {
        let record = self.record(hash_part).map_err(text)?;
        believes(&record.info())?;
        for packed in &record.chunks {
            let Some(pack) = record.packs.get(packed.pack as usize) else { continue };
            if packs.get(pack).is_none_or(|len| packed.end() > *len) {
                if let Err(error) = self.notes.forget_pack(pack) {
                    tracing::warn!("{error:#}");
                }
                return Err(format!("it takes '{}', which is missing or damaged", pack_object(pack)));
            }
        }
        Ok(())
    }

    /// Has a path that is here written again; whether it is.
    fn write_again(&self, store: &Store, hash_part: &str) -> bool {
        self.doubt(hash_part);
        let Ok(Some(path)) = store.path_from_hash_part(hash_part) else { return false };
        if let Err(error) = self.notes.undo(&path) {
            tracing::warn!("{error:#}");
        }
        self.backlog().add(path);
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
                    report.not_restored.push(Finding { object: record_object(hash_part), why: error.to_string() });
                    return go_on(&report);
                }
            }
            match self.record(hash_part) {
                Ok(ColdRecord { path, .. }) => drop(wanted.insert(path)),
                Err(refusal) => {
                    report.not_restored.push(Finding { object: record_object(hash_part), why: text(refusal) })
                }
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
        let mut after: Option<String> = None;
        loop {
            let page = self.bucket.list(dir, after.as_deref()).map_err(|refusal| {
                anyhow::anyhow!("cannot list '{dir}' of the bucket {}: {}", self.bucket.url(), text(refusal))
            })?;
            for (name, len) in &page {
                if !see(name, *len) || self.bucket.is_stopping() {
                    return Ok(());
                }
            }
            match page.into_iter().next_back() {
                Some((last, _)) => after = Some(last),
                None => return Ok(()),
            }
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
            _ => report.not_restored.push(Finding { object: record_object(path.hash_part()), why: why.clone() }),
        }
    }
}

fn text(refusal: Refusal) -> String {
    match refusal {
        Refusal::Missing => "it is missing, or not what was written; the node's log says more".into(),
        Refusal::Failed(why) => why,
    }
}
