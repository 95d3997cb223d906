//! The environment variables of a builder and the files it finds in its build directory.
//!
//! The order of precedence is Nix's (`initEnv`): a derivation may override PATH, HOME, NIX_STORE and NIX_BUILD_CORES,
//! but not where its temporary files go.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use shoal_wire::nix::derivation::{DerivationKind, STRUCTURED_ATTRS};
use shoal_wire::nix::hash::Hash;
use shoal_wire::nix::placeholder::{self, Rewrites};
use shoal_wire::nix::structured::{GraphEntry, StructuredAttrs, pass_as_file_name, references_graph};
use shoal_wire::nix::worker::BuildStatus;

use super::failure::Failure;
use super::prepare::Prepared;
use super::references_graph::{self as graphs, ReferencesGraph};
use super::service::BuildService;

/// The build directory as the builder sees it.
pub(super) const BUILD_DIR: &str = "/build";

type Variables = BTreeMap<Vec<u8>, Vec<u8>>;

pub(super) struct Environment {
    pub variables: Vec<(Vec<u8>, Vec<u8>)>,
    /// Name and contents.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Makes both. `cores` is NIX_BUILD_CORES.
pub(super) fn make(service: &BuildService, prepared: &Prepared, cores: u64) -> Result<Environment, Failure> {
    let reject = |error: anyhow::Error| Failure::new(BuildStatus::InputRejected, format!("{error:#}"));
    let graphs = graphs::graphs(service, prepared).map_err(reject)?;
    let mut variables = Variables::new();
    set(&mut variables, "PATH", "/path-not-set");
    set(&mut variables, "HOME", "/homeless-shelter");
    set(&mut variables, "NIX_STORE", service.dir.as_str());
    set(&mut variables, "NIX_BUILD_CORES", &cores.to_string());
    let rewrites = own_rewrites(service, prepared);
    let files = match prepared.derivation.env.get(STRUCTURED_ATTRS) {
        Some(text) => structured(service, prepared, text, &graphs, &rewrites, &mut variables),
        None => plain(service, prepared, &graphs, &rewrites, &mut variables),
    };
    let files = files.map_err(reject)?;
    for name in ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"] {
        set(&mut variables, name, BUILD_DIR);
    }
    if prepared.kind == DerivationKind::Fixed {
        set(&mut variables, "NIX_OUTPUT_CHECKED", "1");
    }
    if matches!(prepared.kind, DerivationKind::Fixed | DerivationKind::Impure) {
        for name in &prepared.options.impure_env_vars {
            set(&mut variables, name, &std::env::var(name).unwrap_or_default());
        }
    }
    set(&mut variables, "NIX_LOG_FD", "2");
    set(&mut variables, "TERM", "xterm-256color");
    Ok(Environment { variables: variables.into_iter().collect(), files })
}

fn set(variables: &mut Variables, name: &str, value: &str) {
    variables.insert(name.as_bytes().to_vec(), value.as_bytes().to_vec());
}

/// Placeholders of the derivation's own outputs, and where these are built.
fn own_rewrites(service: &BuildService, prepared: &Prepared) -> Rewrites {
    let mut rewrites = Rewrites::default();
    for (output, path) in &prepared.scratch_outputs {
        rewrites.insert(&placeholder::own(output), &service.dir.print(path));
    }
    rewrites
}

fn plain(
    service: &BuildService,
    prepared: &Prepared,
    graphs: &BTreeMap<String, ReferencesGraph>,
    rewrites: &Rewrites,
    variables: &mut Variables,
) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for (name, value) in &prepared.derivation.env {
        let value = rewrites.apply(value);
        let as_file = std::str::from_utf8(name).ok().filter(|name| prepared.options.pass_as_file.contains(*name));
        match as_file {
            Some(name) => {
                let file = pass_as_file_name(name);
                set(variables, &format!("{name}Path"), &format!("{BUILD_DIR}/{file}"));
                files.push((file, value));
            }
            None => drop(variables.insert(rewrites.apply(name), value)),
        }
    }
    for (output, path) in prepared.scratch_outputs.iter().filter(|_| prepared.is_floating()) {
        set(variables, output, &service.dir.print(path));
    }
    for (name, graph) in graphs {
        let printed: Vec<(String, _)> = graph
            .values()
            .map(|info| (service.dir.print(&info.path), info.references.iter().map(|r| service.dir.print(r)).collect()))
            .collect();
        let text = references_graph(printed.iter().map(|(path, references)| (path.as_str(), references)));
        files.push((name.clone(), text.into_bytes()));
    }
    Ok(files)
}

fn structured(
    service: &BuildService,
    prepared: &Prepared,
    text: &[u8],
    graphs: &BTreeMap<String, ReferencesGraph>,
    rewrites: &Rewrites,
    variables: &mut Variables,
) -> Result<Vec<(String, Vec<u8>)>> {
    let attrs = StructuredAttrs::parse(&rewrites.apply(text)).context("structured attributes (__json)")?;
    let outputs = prepared.scratch_outputs.iter().map(|(output, path)| (output.clone(), service.dir.print(path)));
    let mut entries = BTreeMap::new();
    for (key, graph) in graphs {
        let list = graph.values().map(|info| graph_entry(service, graph, info)).collect::<Result<_>>()?;
        entries.insert(key.clone(), list);
    }
    let attrs = attrs.prepare(&outputs.collect(), &entries)?;
    let files = vec![
        (".attrs.sh".to_string(), attrs.to_shell()?.into_bytes()),
        (".attrs.json".to_string(), attrs.to_json().into_bytes()),
    ];
    set(variables, "NIX_ATTRS_SH_FILE", &format!("{BUILD_DIR}/.attrs.sh"));
    set(variables, "NIX_ATTRS_JSON_FILE", &format!("{BUILD_DIR}/.attrs.json"));
    Ok(files)
}

fn graph_entry(
    service: &BuildService,
    graph: &ReferencesGraph,
    info: &shoal_wire::nix::path_info::PathInfo,
) -> Result<GraphEntry> {
    let closure = super::closure::closure(&service.store, [&info.path])?;
    Ok(GraphEntry {
        path: service.dir.print(&info.path),
        nar_hash: Hash::sha256(info.nar_hash).to_string(),
        nar_size: info.nar_size,
        references: info.references.iter().map(|path| service.dir.print(path)).collect(),
        closure_size: closure.iter().filter_map(|path| graph.get(path)).map(|info| info.nar_size).sum(),
        ca: info.ca,
        valid: true,
    })
}
