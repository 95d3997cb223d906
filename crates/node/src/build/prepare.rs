//! What is settled about a derivation before its builder starts: inputs, options, where outputs will appear.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use shoal_wire::nix::derivation::{BasicDerivation, DerivationKind};
use shoal_wire::nix::make_path::output_path_name;
use shoal_wire::nix::options::DerivationOptions;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::BuildStatus;
use shoal_wire::nix::worker::ops::BuildMode;

use super::closure::closure_with;
use super::derivations::OutputHashes;
use super::failure::Failure;
use super::graph::{Task, What};
use super::remote::Coming;
use super::service::BuildService;

/// A derivation ready to run.
pub(super) struct Prepared {
    /// The derivation that was asked for.
    pub drv_path: StorePath,
    /// What runs: all inputs are paths, placeholders of inputs are replaced.
    pub derivation: BasicDerivation,
    pub kind: DerivationKind,
    pub options: DerivationOptions,
    pub mode: BuildMode,
    /// Valid paths the builder can see: inputs and all they refer to.
    pub inputs: BTreeSet<StorePath>,
    /// Output name to the path it is built under, which for floating outputs is a temporary one.
    pub scratch_outputs: BTreeMap<String, StorePath>,
    /// Under which the outputs are told to clients, and recorded where the derivation does not name their paths.
    pub output_hashes: OutputHashes,
    pub needs_realisations: bool,
}

impl Prepared {
    /// `coming`: inputs that are not valid yet.
    pub fn new(service: &BuildService, task: &Task, coming: Option<&Coming>) -> Result<Prepared, Failure> {
        let refuse = |status, error: anyhow::Error| Failure::new(status, format!("{error:#}"));
        let Resolved { derivation, output_hashes, needs_realisations } =
            resolved(service, task).map_err(|error| refuse(BuildStatus::InputRejected, error))?;
        let reject = |error: String| Failure::new(BuildStatus::InputRejected, error);
        let options =
            DerivationOptions::of_basic(&service.dir, &derivation).map_err(|error| reject(error.to_string()))?;
        if options.no_chroot {
            let drv = service.dir.print(&task.drv_path);
            return Err(reject(format!(
                "derivation '{drv}' has '__noChroot' set, but every build of this node is sandboxed"
            )));
        }
        let kind = derivation.kind().map_err(|error| reject(error.to_string()))?;
        let scratch_outputs = scratch_outputs(service, &task.drv_path, &derivation)
            .map_err(|error| refuse(BuildStatus::InputRejected, error))?;
        let elsewhere = |path: &StorePath| coming.and_then(|coming| coming.info(path)).cloned();
        let inputs = closure_with(&service.store, elsewhere, &derivation.input_srcs).map_err(|error| {
            let drv = service.dir.print(&task.drv_path);
            refuse(BuildStatus::MiscFailure, error.context(format!("some inputs of '{drv}' are missing")))
        })?;
        let (drv_path, mode) = (task.drv_path.clone(), task.mode);
        Ok(Prepared {
            drv_path,
            derivation,
            kind,
            options,
            mode,
            inputs,
            scratch_outputs,
            output_hashes,
            needs_realisations,
        })
    }

    /// Whether output paths are known only after the build.
    pub fn is_floating(&self) -> bool {
        matches!(self.kind, DerivationKind::Floating | DerivationKind::Impure)
    }

    /// Whether an output is registered without references, at its derivation's own risk.
    pub fn discards_references(&self, output: &str) -> bool {
        self.options.unsafe_discard_references.get(output).copied().unwrap_or(false)
    }

    /// Paths whose hash parts are looked for in outputs.
    pub fn reference_candidates(&self) -> impl Iterator<Item = StorePath> + '_ {
        self.inputs.iter().chain(self.scratch_outputs.values()).cloned()
    }
}

pub(super) struct Resolved {
    pub derivation: BasicDerivation,
    /// Under which the outputs are told to clients.
    pub output_hashes: OutputHashes,
    pub needs_realisations: bool,
}

/// The derivation with its input derivations replaced by their outputs.
pub(super) fn resolved(service: &BuildService, task: &Task) -> Result<Resolved> {
    Ok(match &task.what {
        What::Given(derivation) => Resolved {
            derivation: (**derivation).clone(),
            output_hashes: service.derivations.output_hashes_of_basic(derivation)?,
            needs_realisations: !derivation.kind()?.has_known_paths(),
        },
        What::Adopted(adopted) => Resolved {
            derivation: adopted.derivation.clone(),
            output_hashes: adopted.output_hashes.clone(),
            needs_realisations: adopted.needs_realisations,
        },
        What::Stored(derivation) => {
            service.derivations.check_outputs(derivation)?;
            Resolved {
                derivation: service.resolve(derivation)?,
                output_hashes: service.derivations.output_hashes(derivation)?,
                needs_realisations: !derivation.kind()?.has_known_paths(),
            }
        }
    })
}

fn scratch_outputs(
    service: &BuildService,
    drv_path: &StorePath,
    derivation: &BasicDerivation,
) -> Result<BTreeMap<String, StorePath>> {
    let drv = service.dir.print(drv_path);
    let path_of = |output: &String| {
        if let Some(path) = derivation.output_path(&service.dir, output) {
            return Ok(path);
        }
        let name = output_path_name(&derivation.name, output);
        let type_ = format!("rewrite:{drv}:name:{output}");
        service.dir.make_path(&type_, &[0; 32], &name).context("an output has an impossible name")
    };
    derivation.outputs.keys().map(|output| Ok((output.clone(), path_of(output)?))).collect()
}
