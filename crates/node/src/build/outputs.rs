//! From what a builder left in its scratch store to valid store paths.
//!
//! Each output is read once for its references, SHA-256 and chunks together (content-addressed ones again, since their
//! own path is part of what is hashed). Nothing is visible before all outputs of a derivation are accepted: they are
//! committed in one transaction. What a check builds is accepted as strictly, and kept as [`variants`]. Source of the rules: `registerOutputs` and `checkOutputs` in Nix.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use shoal_sandbox::Scratch;
use shoal_store::{Ingest, Ingested};
use shoal_wire::nix::content_address::{CaMethod, ContentAddress};
use shoal_wire::nix::derivation::Output;
use shoal_wire::nix::hash::{Hash, HashAlgo};
use shoal_wire::nix::make_path::{CaReferences, output_path_name};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::references::{HashModulo, HashPart, Rewriter, Scanner};
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::BuildStatus;
use shoal_wire::nix::worker::ops::BuildMode;

use super::checks;
use super::derivations::DRV_BYTES_MAX;
use super::execute::KillSwitch;
use super::failure::{Failure, Texts};
use super::prepare::Prepared;
use super::service::BuildService;
use super::variants::{self, Source};
use crate::dump::DumpError;
use crate::session::ca_check::CaHasher;

/// One accepted output.
pub(super) struct Accepted {
    pub output: String,
    pub info: PathInfo,
    nar: Ingested,
    /// Where the finished tree lies, if it has the contents of the store path as they are.
    tree: Option<PathBuf>,
}

/// Why outputs were not taken.
pub(super) enum Rejected {
    Failure(Failure),
    /// This node's disk or store, not the builder.
    Infrastructure(anyhow::Error),
}

impl From<Failure> for Rejected {
    fn from(failure: Failure) -> Self {
        Rejected::Failure(failure)
    }
}

impl From<anyhow::Error> for Rejected {
    fn from(error: anyhow::Error) -> Self {
        Rejected::Infrastructure(error)
    }
}

impl From<DumpError> for Rejected {
    fn from(error: DumpError) -> Self {
        match error {
            DumpError::TooDeep(_) | DumpError::UnsupportedType(_) => {
                Rejected::Failure(Failure::new(BuildStatus::OutputRejected, error.to_string()))
            }
            _ => Rejected::Infrastructure(error.into()),
        }
    }
}

/// Takes the outputs of a builder that exited well. Returns output name to store path, in a check to that of the variant.
/// `arrive` waits until paths that outputs refer to are valid.
pub(super) fn take(
    service: &BuildService,
    prepared: &Prepared,
    scratch: &Scratch,
    uid: u32,
    kill: &KillSwitch,
    arrive: impl FnOnce(&BTreeSet<StorePath>) -> anyhow::Result<()>,
) -> Result<BTreeMap<String, StorePath>, Rejected> {
    let found = find(service, prepared, scratch, uid)?;
    let tree = |(output, tree): (&String, &PathBuf)| (output.clone(), Source::Tree(tree.clone()));
    let accepted = match prepared.is_floating() {
        false => read_addressed(service, prepared, &found.iter().map(tree).collect(), kill)?,
        true => read_floating(service, prepared, &found, kill)?,
    };
    arrive(&accepted.iter().flat_map(|one| one.info.references.iter().cloned()).collect())?;
    let sources = found.into_iter().map(|(output, tree)| (output, Source::Tree(tree))).collect();
    accept(service, prepared, accepted, &sources)
}

/// Makes what several nodes built, and kept as `agreed`, the outputs. Returns output name to store path.
pub(super) fn publish(
    service: &BuildService,
    prepared: &Prepared,
    agreed: &BTreeMap<String, StorePath>,
    kill: &KillSwitch,
) -> Result<BTreeMap<String, StorePath>, Rejected> {
    if prepared.is_floating() || !agreed.keys().eq(prepared.scratch_outputs.keys()) {
        let text = "what nodes agreed on are other outputs than those of the derivation";
        return Err(Failure::new(BuildStatus::InputRejected, text).into());
    }
    let sources = variants::sources(agreed);
    let accepted = read_addressed(service, prepared, &sources, kill)?;
    accept(service, prepared, accepted, &sources)
}

/// Judges what was read, and commits it.
fn accept(
    service: &BuildService,
    prepared: &Prepared,
    mut accepted: Vec<Accepted>,
    sources: &BTreeMap<String, Source>,
) -> Result<BTreeMap<String, StorePath>, Rejected> {
    let texts = Texts { dir: &service.dir, drv_path: &prepared.drv_path };
    check_derivations(service, &accepted, sources)?;
    if let Some(failure) = wrong_fixed_output(prepared, &texts, &accepted) {
        // The content is what it is: kept under its true path, so that a corrected derivation need not run again.
        if accepted.iter().all(|one| one.info.references.is_empty()) {
            commit(service, accepted)?;
        }
        return Err(failure.into());
    }
    let infos: BTreeMap<&str, &PathInfo> = accepted.iter().map(|one| (one.output.as_str(), &one.info)).collect();
    checks::check_outputs(service, prepared, &texts, &infos)?;
    if prepared.mode == BuildMode::Check {
        let own: BTreeSet<&StorePath> = prepared.scratch_outputs.values().collect();
        for one in &mut accepted {
            one.info = variants::variant(&service.dir, &one.info, &own)?;
            one.tree = None;
        }
    }
    let paths = accepted.iter().map(|one| (one.output.clone(), one.info.path.clone())).collect();
    commit(service, accepted)?;
    Ok(paths)
}

/// The trees of all outputs, in canonical form.
fn find(
    service: &BuildService,
    prepared: &Prepared,
    scratch: &Scratch,
    uid: u32,
) -> Result<BTreeMap<String, PathBuf>, Rejected> {
    let texts = Texts { dir: &service.dir, drv_path: &prepared.drv_path };
    let mut found = BTreeMap::new();
    for (output, path) in &prepared.scratch_outputs {
        let tree = scratch.output(path.base_name());
        if tree.symlink_metadata().is_err() {
            return Err(texts.missing_output(output, &service.dir.print(path)).into());
        }
        found.insert(output.clone(), tree);
    }
    for (output, tree) in &found {
        shoal_sandbox::canonicalise(tree, uid).map_err(|error| match error {
            shoal_sandbox::OutputError::Io { .. } => Rejected::Infrastructure(error.into()),
            _ => {
                // Where this node keeps it means nothing to the client.
                let path = service.dir.print(&prepared.scratch_outputs[output]);
                let text = error.to_string().replace(&tree.display().to_string(), &path);
                Failure::new(
                    BuildStatus::OutputRejected,
                    format!("{text} for output '{output}'; rejecting this build output"),
                )
                .into()
            }
        })?;
    }
    Ok(found)
}

/// Everything one reading of a NAR is for.
struct Reader {
    scanner: Scanner,
    ingest: Ingest,
    ca_hasher: Option<CaHasher>,
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.scanner.update(bytes);
        if let Some(hasher) = &mut self.ca_hasher {
            hasher.update(bytes);
        }
        self.ingest.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Input-addressed and fixed outputs: built under their final names.
///
/// The bytes that are hashed are the bytes that are stored. The tree of a builder that had the host's network is not
/// used further: with another such builder's help it may have left somebody who can still write to it.
fn read_addressed(
    service: &BuildService,
    prepared: &Prepared,
    sources: &BTreeMap<String, Source>,
    kill: &KillSwitch,
) -> Result<Vec<Accepted>, Rejected> {
    let mut accepted = Vec::new();
    for (output, source) in sources {
        let fixed = match prepared.derivation.outputs.get(output) {
            Some(Output::Fixed { ca }) => Some(ca),
            _ => None,
        };
        let reader = Reader {
            scanner: Scanner::new(prepared.reference_candidates()),
            ingest: service.store.ingest(),
            ca_hasher: fixed.map(|ca| CaHasher::new(ca.method_algo(), None)),
        };
        let Reader { scanner, ingest, ca_hasher } = source.read(&service.store, reader, kill)?;
        let nar = ingest.finish().context("cannot store an output")?;
        let mut path = prepared.scratch_outputs[output].clone();
        let mut ca = None;
        if let (Some(wanted), Some(hasher)) = (fixed, ca_hasher) {
            let hashes = hasher.finish(nar.nar_hash).ok_or_else(|| not_a_plain_file(&service.dir.print(&path)))?;
            let got = ContentAddress { method: wanted.method, hash: hashes.first() };
            path = ca_path(service, prepared, output, &got, &CaReferences::none())?;
            ca = Some(got);
        }
        let mut references = scanner.finish();
        if prepared.discards_references(output) {
            references.clear();
        }
        let mut info = PathInfo { references, ca, ..PathInfo::new(path, nar.nar_hash, nar.nar_size) };
        complete(service, prepared, &mut info)?;
        let tree = source.tree().filter(|_| fixed.is_none()).map(Path::to_path_buf);
        accepted.push(Accepted { output: output.clone(), info, nar, tree });
    }
    let graph = accepted.iter().map(|one| (one.output.clone(), one.info.references.clone())).collect();
    order(service, prepared, &graph)?;
    Ok(accepted)
}

/// Floating content-addressed outputs: their names follow from their contents.
fn read_floating(
    service: &BuildService,
    prepared: &Prepared,
    found: &BTreeMap<String, PathBuf>,
    kill: &KillSwitch,
) -> Result<Vec<Accepted>, Rejected> {
    let mut scanned = BTreeMap::new();
    for (output, tree) in found {
        let scanner = Scanner::new(prepared.reference_candidates());
        let tree = Source::Tree(tree.clone());
        let Tap(scanner, _) = tree.read(&service.store, Tap(scanner, Scanner::update), kill)?;
        scanned.insert(output.clone(), scanner.finish());
    }
    let mut final_paths: BTreeMap<StorePath, StorePath> = BTreeMap::new();
    let mut accepted = Vec::new();
    for output in order(service, prepared, &scanned)? {
        let Some(Output::Floating { method, algo } | Output::Impure { method, algo }) =
            prepared.derivation.outputs.get(&output)
        else {
            return Err(anyhow::anyhow!("output '{output}' is not content-addressed").into());
        };
        let (tree, own) = (Source::Tree(found[&output].clone()), &prepared.scratch_outputs[&output]);
        let others = rewrites(&final_paths)?;
        let hash = hash_floating(service, (*method, *algo), &tree, own, &others, kill)?;
        let ca = ContentAddress { method: *method, hash };
        let refers_to_self = scanned[&output].contains(own);
        let others_referred = scanned[&output].iter().filter(|path| *path != own);
        let mut references: BTreeSet<StorePath> =
            others_referred.map(|path| final_paths.get(path).unwrap_or(path).clone()).collect();
        if prepared.discards_references(&output) {
            references.clear();
        }
        let ca_references = CaReferences { others: references.clone(), itself: refers_to_self };
        let path = ca_path(service, prepared, &output, &ca, &ca_references)?;
        if refers_to_self {
            references.insert(path.clone());
        }
        final_paths.insert(own.clone(), path.clone());
        let rewriter = Rewriter::new(service.store.ingest(), rewrites(&final_paths)?);
        let (ingest, _) = tree.read(&service.store, rewriter, kill)?.finish().context("cannot store an output")?;
        let nar = ingest.finish().context("cannot store an output")?;
        let mut info = PathInfo { references, ca: Some(ca), ..PathInfo::new(path, nar.nar_hash, nar.nar_size) };
        complete(service, prepared, &mut info)?;
        accepted.push(Accepted { output, info, nar, tree: None });
    }
    Ok(accepted)
}

/// The hash that names a floating output: over its contents with other outputs' final paths in place and its own blanked.
fn hash_floating(
    service: &BuildService,
    (method, algo): (CaMethod, HashAlgo),
    tree: &Source,
    own: &StorePath,
    others: &BTreeMap<HashPart, HashPart>,
    kill: &KillSwitch,
) -> Result<Hash, Rejected> {
    let modulo = HashModulo::new(algo, hash_part(own)?);
    let rewriter = Rewriter::new(Tap(modulo, HashModulo::update), others.clone());
    let rewriter = match method {
        CaMethod::Nar => tree.read(&service.store, rewriter, kill)?,
        _ => copy_contents(method, tree.tree().context("no tree")?, rewriter)?,
    };
    let (Tap(modulo, _), _) = rewriter.finish().context("cannot hash an output")?;
    let hashes = modulo.finish().context("cannot hash an output that refers to itself millions of times")?;
    if hashes.occurrences > 0 && method != CaMethod::Nar {
        let text = "a content-addressed output that is hashed as a flat file cannot refer to itself";
        return Err(Failure::new(BuildStatus::OutputRejected, text).into());
    }
    // The form of Nix 2.17 to 2.34: what today's clients verify.
    Ok(hashes.without_offsets)
}

/// What takes bytes and keeps a sum of them, as a writer.
struct Tap<T>(T, fn(&mut T, &[u8]));

impl<T> Write for Tap<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.1)(&mut self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hash_part(path: &StorePath) -> Result<HashPart, Rejected> {
    let part = path.hash_part().as_bytes().try_into();
    part.map_err(|_| anyhow::anyhow!("a store path without a hash part: {path}").into())
}

fn rewrites(paths: &BTreeMap<StorePath, StorePath>) -> Result<BTreeMap<HashPart, HashPart>, Rejected> {
    paths.iter().map(|(from, to)| Ok((hash_part(from)?, hash_part(to)?))).collect()
}

/// The contents of an output that is hashed as a plain file.
fn copy_contents<W: Write>(method: CaMethod, tree: &Path, mut writer: W) -> Result<W, Rejected> {
    if method == CaMethod::Git {
        let text = "outputs hashed as git trees (outputHashMode = \"git\") are not supported by this node";
        return Err(Failure::new(BuildStatus::OutputRejected, text).into());
    }
    let meta = tree.symlink_metadata().context("cannot read an output")?;
    if !meta.is_file() || meta.permissions().mode() & 0o100 != 0 {
        return Err(not_a_plain_file(&tree.display().to_string()).into());
    }
    io::copy(&mut File::open(tree).context("cannot read an output")?.take(meta.len()), &mut writer)
        .context("cannot read an output")?;
    Ok(writer)
}

fn not_a_plain_file(path: &str) -> Failure {
    let text = format!(
        "output path '{path}' should be a non-executable regular file since recursive hashing is not enabled \
         (one of outputHashMode={{flat,text}} is true)"
    );
    Failure::new(BuildStatus::OutputRejected, text)
}

fn ca_path(
    service: &BuildService,
    prepared: &Prepared,
    output: &str,
    ca: &ContentAddress,
    references: &CaReferences,
) -> Result<StorePath, Rejected> {
    let name = output_path_name(&prepared.derivation.name, output);
    let path = service.dir.make_ca_path(ca, references, &name);
    path.map_err(|error| Failure::new(BuildStatus::OutputRejected, error.to_string()).into())
}

/// Outputs with those they refer to first; a cycle is the builder's failure.
fn order(
    service: &BuildService,
    prepared: &Prepared,
    references: &BTreeMap<String, BTreeSet<StorePath>>,
) -> Result<Vec<String>, Failure> {
    let by_path: BTreeMap<&StorePath, &String> =
        prepared.scratch_outputs.iter().map(|(output, path)| (path, output)).collect();
    let mut waits_for: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
    for (output, paths) in references {
        let others = paths.iter().filter_map(|path| by_path.get(path).copied()).filter(|other| *other != output);
        waits_for.insert(output, others.collect());
    }
    let mut sorted = Vec::new();
    while !waits_for.is_empty() {
        let next = waits_for.iter().find(|(_, others)| others.is_empty()).map(|(output, _)| *output);
        let Some(next) = next else {
            let texts = Texts { dir: &service.dir, drv_path: &prepared.drv_path };
            let (output, from) = in_cycle(&waits_for);
            return Err(texts.cycle(output, from));
        };
        waits_for.remove(next);
        waits_for.values_mut().for_each(|others| {
            others.remove(next);
        });
        sorted.push(next.clone());
    }
    Ok(sorted)
}

/// Two neighbours on a cycle of what is left.
fn in_cycle<'a>(waits_for: &BTreeMap<&'a String, BTreeSet<&'a String>>) -> (&'a str, &'a str) {
    let mut seen = BTreeSet::new();
    let mut at = waits_for.keys().next().copied();
    while let Some(output) = at {
        let next = waits_for.get(output).and_then(|others| others.iter().next().copied());
        if !seen.insert(output) {
            return (output, next.unwrap_or(output));
        }
        at = next;
    }
    ("out", "out")
}

fn complete(service: &BuildService, prepared: &Prepared, info: &mut PathInfo) -> Result<(), Rejected> {
    info.deriver = Some(prepared.drv_path.clone());
    info.ultimate = true;
    info.registration_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Nobody is to have a signature of what a check came to.
    let keys = service.config.signing_keys.iter().filter(|_| prepared.mode != BuildMode::Check);
    for key in keys {
        info.sign(&service.dir, key).context("cannot sign an output")?;
    }
    Ok(())
}

/// An output that is itself a derivation is judged as one that is uploaded: else a builder could write one that names
/// another's output paths, and whoever has it built would choose what they hold.
fn check_derivations(
    service: &BuildService,
    accepted: &[Accepted],
    sources: &BTreeMap<String, Source>,
) -> Result<(), Rejected> {
    for Accepted { output, info, .. } in accepted.iter().filter(|one| one.info.path.is_derivation()) {
        let text = sources[output].read_file(&service.store, DRV_BYTES_MAX)?.ok_or_else(|| {
            let text = format!("an output named as a derivation is no plain file of at most {DRV_BYTES_MAX} bytes");
            Failure::new(BuildStatus::OutputRejected, text)
        })?;
        let reject = |error: anyhow::Error| Failure::new(BuildStatus::OutputRejected, format!("{error:#}"));
        service.derivations.check_added(info, &text, &[]).map_err(reject)?;
    }
    Ok(())
}

/// A fixed output that is not what the derivation promised.
fn wrong_fixed_output(prepared: &Prepared, texts: &Texts<'_>, accepted: &[Accepted]) -> Option<Failure> {
    for one in accepted {
        let Some(Output::Fixed { ca: wanted }) = prepared.derivation.outputs.get(&one.output) else { continue };
        let got = one.info.ca.as_ref()?;
        if got.hash != wanted.hash {
            return Some(texts.hash_mismatch(&wanted.hash.to_sri(), &got.hash.to_sri()));
        }
        if let Some(example) = one.info.references.first() {
            return Some(texts.fixed_output_refers(one.info.references.len(), example));
        }
    }
    None
}

fn commit(service: &BuildService, accepted: Vec<Accepted>) -> Result<(), Rejected> {
    let mut trees = Vec::new();
    let mut batch = Vec::new();
    for Accepted { info, nar, tree, .. } in accepted {
        trees.extend(tree.map(|tree| (info.path.clone(), tree, info.nar_size)));
        batch.push((info, nar));
    }
    service.store.commit(batch).context("cannot record the outputs of a build")?;
    for (path, tree, nar_size) in trees {
        service.inputs.trees().adopt(&path, &tree, nar_size);
    }
    Ok(())
}
