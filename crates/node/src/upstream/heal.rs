//! Brings back what this node found damaged in its own store, from another node or whichever upstream has it.
//!
//! The record of a path says which bytes it had. An upstream whose NAR has that hash is believed, whoever signed it, and
//! only chunks that are damaged are stored again.

use std::io::Write;

use shoal_mesh::fetcher::Urgency;
use shoal_store::{Ingested, Store};
use shoal_wire::nix::narinfo::NarInfo;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

use super::asks::Query;
use super::engine::Engine;
use super::flight::Flight;
use super::offer::{CacheFile, Source};
use super::source::Trouble;
use super::web::Refusal;
use super::{Upstreams, decode};

/// Damaged paths, and of each whether it is valid again or why not, for people.
pub type Healed = Vec<(StorePath, Result<(), String>)>;

impl Upstreams {
    /// Has every damaged path of `store` stored again that an upstream has, for as long as `go_on` says.
    pub fn heal_all(&self, store: &Store, go_on: &dyn Fn() -> bool) -> shoal_store::Result<Healed> {
        let mut healed = Healed::new();
        for info in store.damaged_paths()?.into_iter().take_while(|_| go_on()) {
            // A chunk that another path brought back may have been all that it lacked.
            let outcome = if store.is_valid(&info.path)? { Ok(()) } else { self.heal(&info) };
            healed.push((info.path, outcome));
        }
        Ok(healed)
    }

    /// Stores a recorded path again. Error: why no upstream could help, for people.
    fn heal(&self, info: &PathInfo) -> Result<(), String> {
        let Some(engine) = &self.0 else { return Err("this node has no upstream caches".into()) };
        let mut why = match heal_from_mesh(engine, info) {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        for (upstream, narinfo) in engine.asks.narinfos(info.path.hash_part()) {
            let base = engine.asks.caches[upstream].base();
            let NarInfo { info: theirs, url, compression, file_hash, file_size } = narinfo;
            if theirs.path != info.path || theirs.nar_hash != info.nar_hash || theirs.nar_size != info.nar_size {
                why = format!("'{base}' has other contents for it");
                continue;
            }
            if !decode::is_known(compression) {
                why = format!("'{base}' has it in a compression that is not known here, '{}'", compression.name());
                continue;
            }
            let file = CacheFile { upstream, url, compression, file_hash, file_size };
            match bring(engine, info, &file) {
                Ok(()) => return Ok(()),
                Err(error) => why = format!("'{base}': {error}"),
            }
        }
        Err(why)
    }
}

/// Other nodes have the path whole, or one chunk of it as well as another.
fn heal_from_mesh(engine: &Engine, info: &PathInfo) -> Result<(), String> {
    if engine.asks.neighbours.is_alone() {
        return Err("no upstream has it".into());
    }
    let offer = engine.asks.find_in_mesh(&[Query::Path(&info.path)]).pop().flatten();
    let Some(offer) = offer else { return Err("no other node and no upstream has it".into()) };
    if offer.info.nar_hash != info.nar_hash || offer.info.nar_size != info.nar_size {
        return Err("other nodes have other contents for it".into());
    }
    let Source::Mesh(held) = &offer.source else { return Err("no other node has it".into()) };
    let flight = Flight::new(offer.clone(), engine.store.temp_roots(), Urgency::Replication, None);
    let ingested = engine.asks.neighbours.fetch(held, &flight, true)?;
    keep(engine, info, ingested)
}

fn bring(engine: &Engine, info: &PathInfo, file: &CacheFile) -> Result<(), String> {
    let ingested = match download(engine, info, file) {
        Ok(ingested) => ingested,
        Err(Trouble::Here(why)) => return Err(why),
        Err(Trouble::Upstream(Refusal::Missing)) => return Err("its NAR is gone".into()),
        Err(Trouble::Upstream(Refusal::Failed(why))) => {
            engine.asks.failed(file.upstream, &why);
            return Err(why);
        }
    };
    if ingested.nar_hash != info.nar_hash {
        return Err("its NAR has not the hash that its narinfo says".into());
    }
    keep(engine, info, ingested)
}

fn keep(engine: &Engine, info: &PathInfo, ingested: Ingested) -> Result<(), String> {
    engine.store.commit(vec![(info.clone(), ingested)]).map_err(|error| error.to_string())?;
    match engine.store.is_valid(&info.path) {
        Ok(true) => Ok(()),
        Ok(false) => Err("it was damaged again at once; check the disk".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn download(engine: &Engine, info: &PathInfo, file: &CacheFile) -> Result<Ingested, Trouble> {
    let mut ingest = engine.store.ingest();
    engine.asks.caches[file.upstream].read(&info.path, file, info.nar_size, Default::default(), |bytes| {
        ingest.write_all(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => {
                Trouble::Upstream(Refusal::Failed(format!("what it sends is no NAR: {error}")))
            }
            _ => Trouble::Here(error.to_string()),
        })
    })?;
    ingest.finish().map_err(|error| Trouble::Here(error.to_string()))
}
