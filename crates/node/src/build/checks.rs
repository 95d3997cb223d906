//! What a derivation says its outputs may and may not refer to. Source: `derivation-check.cc` in Nix.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use shoal_wire::nix::options::{OutputCheck, OutputChecks, Reference};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::BuildStatus;

use super::failure::{Failure, Texts};
use super::outputs::Rejected;
use super::prepare::Prepared;
use super::service::BuildService;

/// Checks all new outputs. They are not in the store yet; everything they refer to is.
pub(super) fn check_outputs(
    service: &BuildService,
    prepared: &Prepared,
    texts: &Texts<'_>,
    outputs: &BTreeMap<&str, &PathInfo>,
) -> Result<(), Rejected> {
    let new: BTreeMap<&StorePath, &PathInfo> = outputs.values().map(|info| (&info.path, *info)).collect();
    let checks = Checks { service, texts, outputs, new };
    for (output, info) in outputs {
        match &prepared.options.output_checks {
            OutputChecks::All(check) => checks.check(info, check)?,
            OutputChecks::PerOutput(by_output) => {
                if let Some(check) = by_output.get(*output) {
                    checks.check(info, check)?;
                }
            }
        }
    }
    Ok(())
}

struct Checks<'a> {
    service: &'a BuildService,
    texts: &'a Texts<'a>,
    outputs: &'a BTreeMap<&'a str, &'a PathInfo>,
    new: BTreeMap<&'a StorePath, &'a PathInfo>,
}

impl Checks<'_> {
    fn check(&self, info: &PathInfo, check: &OutputCheck) -> Result<(), Rejected> {
        let reject = |text: String| Failure::new(BuildStatus::OutputRejected, text);
        let path = || self.service.dir.print(&info.path);
        if let Some(max) = check.max_size.filter(|max| info.nar_size > *max) {
            let size = info.nar_size;
            return Err(reject(format!("path '{}' is too large at {size} bytes; limit is {max} bytes", path())).into());
        }
        let closure = self.closure(info)?;
        if let Some(max) = check.max_closure_size {
            let size: u64 = closure.values().sum();
            if size > max {
                let text = format!("closure of path '{}' is too large at {size} bytes; limit is {max} bytes", path());
                return Err(reject(text).into());
            }
        }
        let own = |path: &&StorePath| !check.ignore_self_refs || **path != info.path;
        let references: BTreeSet<StorePath> = info.references.iter().filter(own).cloned().collect();
        let requisites: BTreeSet<StorePath> = closure.keys().filter(own).cloned().collect();
        self.allowed(info, &references, check.allowed_references.as_ref(), "refer to the following paths")?;
        self.allowed(info, &requisites, check.allowed_requisites.as_ref(), "refer to the following paths")?;
        self.disallowed(info, &references, &check.disallowed_references)?;
        self.disallowed(info, &requisites, &check.disallowed_requisites)
    }

    /// All paths reachable from an output, itself included, with their sizes.
    fn closure(&self, info: &PathInfo) -> Result<BTreeMap<StorePath, u64>, Rejected> {
        let mut sizes = BTreeMap::new();
        let mut open = vec![info.path.clone()];
        while let Some(path) = open.pop() {
            if sizes.contains_key(&path) {
                continue;
            }
            let stored;
            let info = match self.new.get(&path) {
                Some(info) => *info,
                None => {
                    let known = self.service.store.path_info(&path).context("cannot read the store")?;
                    stored = known.with_context(|| format!("an output refers to '{path}', which is not valid"))?;
                    &stored
                }
            };
            open.extend(info.references.iter().cloned());
            sizes.insert(path, info.nar_size);
        }
        Ok(sizes)
    }

    fn allowed(
        &self,
        info: &PathInfo,
        found: &BTreeSet<StorePath>,
        allowed: Option<&BTreeSet<Reference>>,
        what: &str,
    ) -> Result<(), Rejected> {
        let Some(allowed) = allowed else { return Ok(()) };
        let allowed = self.named(allowed)?;
        self.refuse(info, found.difference(&allowed), what)
    }

    fn disallowed(
        &self,
        info: &PathInfo,
        found: &BTreeSet<StorePath>,
        disallowed: &BTreeSet<Reference>,
    ) -> Result<(), Rejected> {
        let disallowed = self.named(disallowed)?;
        self.refuse(info, found.intersection(&disallowed), "refer to the following paths")
    }

    fn refuse<'a>(
        &self,
        info: &PathInfo,
        bad: impl Iterator<Item = &'a StorePath>,
        what: &str,
    ) -> Result<(), Rejected> {
        let bad: Vec<StorePath> = bad.cloned().collect();
        if bad.is_empty() {
            return Ok(());
        }
        Err(self.texts.references_refused(&info.path, &format!("is not allowed to {what}"), &bad).into())
    }

    /// The paths that a check names, outputs of this derivation by their new paths.
    fn named(&self, references: &BTreeSet<Reference>) -> Result<BTreeSet<StorePath>, Rejected> {
        let path = |reference: &Reference| match reference {
            Reference::Input(path) => Ok(path.clone()),
            Reference::Output(output) => match self.outputs.get(output.as_str()) {
                Some(info) => Ok(info.path.clone()),
                None => {
                    let known: Vec<&str> = self.outputs.keys().copied().collect();
                    let text = format!(
                        "an output check names '{output}', which is neither a store path nor an output ({})",
                        known.join(", ")
                    );
                    Err(Failure::new(BuildStatus::OutputRejected, text).into())
                }
            },
        };
        references.iter().map(path).collect()
    }
}
