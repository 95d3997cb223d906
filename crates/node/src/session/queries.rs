//! Questions about paths.

use std::collections::BTreeSet;

use shoal_wire::nix::realisation::{BuildTraceKey, UnkeyedRealisation};
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::ops::{QueryRealisation, RealisationReply, RegisterDrvOutput};

use super::Client;
use super::builds::Audience;
use super::fault::Fault;

impl Client {
    /// Makes a path valid here, if it is not, from other nodes or caches.
    pub(super) fn ensure(&self, path: &StorePath, audience: &mut impl Audience) -> Result<(), Fault> {
        self.temp_roots.add(path);
        if self.store().is_valid(path)? {
            return Ok(());
        }
        self.substitute_paths(&BTreeSet::from([path.clone()]), audience)?;
        if self.store().is_valid(path)? {
            return Ok(());
        }
        Err(Fault::refused(format!("path '{}' does not exist and cannot be created", self.dir().print(path))))
    }

    /// All paths that `paths` refer to, directly or not, and they themselves; with `outputs` also the valid outputs of
    /// the derivations among them.
    pub(super) fn closure(&self, paths: BTreeSet<StorePath>, outputs: bool) -> Result<BTreeSet<StorePath>, Fault> {
        let mut closure = BTreeSet::new();
        let mut open: Vec<StorePath> = paths.into_iter().collect();
        while let Some(path) = open.pop() {
            if closure.contains(&path) {
                continue;
            }
            open.extend(self.valid_path_info(&path)?.references);
            if outputs && path.is_derivation() {
                let known: BTreeSet<_> = self.output_map(&path)?.into_values().flatten().collect();
                open.extend(self.store().valid_of(&known)?);
            }
            closure.insert(path);
        }
        Ok(closure)
    }

    /// Valid derivations that have `path` as an output.
    pub(super) fn valid_derivers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>, Fault> {
        Ok(self.store().valid_derivers(path)?.into_iter().collect())
    }

    /// Where an output came out. Both keys are answered, whichever of them it was stored under.
    pub(super) fn realisation(&self, query: &QueryRealisation) -> Result<RealisationReply, Fault> {
        Ok(match query {
            QueryRealisation::ByHash(id) => {
                let here = self.store().realisation(id)?;
                RealisationReply::ByHash(here.or_else(|| self.upstreams().neighbours().realisation(id)))
            }
            QueryRealisation::ByPath(key) => RealisationReply::ByPath(self.build_trace(key)?),
        })
    }

    fn build_trace(&self, key: &BuildTraceKey) -> Result<Option<UnkeyedRealisation>, Fault> {
        if let Some(trace) = self.store().build_trace(key)? {
            return Ok(Some(trace.value));
        }
        if !self.store().is_valid(&key.drv_path)? {
            return Ok(self.upstreams().neighbours().build_trace(key).map(|trace| trace.value));
        }
        let known = self.output_map(&key.drv_path)?.remove(&key.output).flatten();
        let valid = known.map(|path| Ok::<_, Fault>(self.store().is_valid(&path)?.then_some(path))).transpose()?;
        Ok(valid.flatten().map(|out_path| UnkeyedRealisation { out_path, signatures: BTreeSet::new() }))
    }

    /// Keeps what a client says of where an output came out, if it is trusted or can prove it.
    pub(super) fn register(&self, output: &RegisterDrvOutput) -> Result<(), Fault> {
        let keys = self.services.admission.trusted_keys();
        let (name, out_path, signatures) = match output {
            RegisterDrvOutput::ByHash(realisation) => {
                (realisation.id.to_string(), &realisation.out_path, realisation.count_valid_signatures(keys))
            }
            RegisterDrvOutput::ByPath(trace) => {
                let name = format!("{}^{}", self.dir().print(&trace.key.drv_path), trace.key.output);
                (name, &trace.value.out_path, trace.count_valid_signatures(keys))
            }
        };
        if !self.is_trusted() && signatures == 0 {
            let text = format!("cannot register realisation '{name}' because it lacks a signature by a trusted key");
            return Err(Fault::refused(text));
        }
        if !self.store().is_valid(out_path)? {
            return Err(self.not_valid(out_path));
        }
        match output {
            RegisterDrvOutput::ByHash(realisation) => self.store().add_realisation(realisation)?,
            RegisterDrvOutput::ByPath(trace) => self.store().add_build_trace(trace)?,
        }
        Ok(())
    }
}
