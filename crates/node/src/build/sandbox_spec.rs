//! From a prepared derivation to what the sandbox needs to know.

use std::path::{Path, PathBuf};

use shoal_sandbox::{BuildFile, Input, Limits, Personality, Program, Scratch, Spec};
use shoal_wire::nix::derivation::DerivationKind;
use shoal_wire::nix::worker::BuildStatus;

use super::environment::{self, Environment};
use super::failure::Failure;
use super::prepare::Prepared;
use super::request::BuildOptions;
use super::service::BuildService;
use crate::builtin;
use crate::inputs::Given;

/// Systems whose programs run on this machine's kernel only in 32-bit mode.
const SYSTEMS_OF_32_BITS: [&str; 4] = ["i686-linux", "armv5tel-linux", "armv6l-linux", "armv7l-linux"];

/// The feature that gives a build `/dev/kvm`.
const KVM: &str = "kvm";

/// Where distributions keep the certificate authorities to trust.
pub(crate) const CA_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Whether the programs of a system are of 32 bits.
pub(super) fn is_narrow(system: &str) -> bool {
    SYSTEMS_OF_32_BITS.contains(&system)
}

pub(super) fn make(
    service: &BuildService,
    prepared: &Prepared,
    scratch: &Scratch,
    given: &Given,
    environment: Environment,
    options: &BuildOptions,
) -> Result<Spec, Failure> {
    let program = program(service, prepared, &environment.variables)?;
    let input = |path: &shoal_wire::nix::store_path::StorePath| Input {
        name: path.base_name().to_string(),
        tree: service.inputs.trees().path(path),
    };
    let mut spec = Spec::new(scratch.path(), program);
    spec.env = environment.variables;
    spec.files = environment.files.into_iter().map(|(name, bytes)| BuildFile { name, bytes, mode: 0o644 }).collect();
    spec.files.extend(host_files(prepared));
    match given {
        Given::View(view) => spec.view = Some(view.dir().clone()),
        Given::Trees(_) => spec.inputs = prepared.inputs.iter().map(input).collect(),
    }
    spec.binds_inputs = service.inputs.are_bound();
    spec.store_dir = PathBuf::from(service.dir.as_str());
    spec.network = needs_network(prepared);
    spec.system_shell = service.config.sandbox_shell.clone();
    spec.kvm = prepared.options.required_system_features.contains(KVM);
    spec.limits = limits(service, options);
    spec.cgroups = service.config.cgroups.clone();
    if is_narrow(&prepared.derivation.system) {
        spec.personality = Personality::Linux32;
    }
    Ok(spec)
}

/// Fixed outputs may come from anywhere.
pub(super) fn needs_network(prepared: &Prepared) -> bool {
    matches!(prepared.kind, DerivationKind::Fixed | DerivationKind::Impure)
}

pub(super) fn limits(service: &BuildService, options: &BuildOptions) -> Limits {
    let defaults = &service.config.defaults;
    Limits {
        timeout: options.timeout.or(defaults.timeout),
        max_silent: options.max_silent.or(defaults.max_silent),
        max_log_bytes: options.max_log_bytes.or(defaults.max_log_bytes),
    }
}

type Variables = [(Vec<u8>, Vec<u8>)];

fn program(service: &BuildService, prepared: &Prepared, variables: &Variables) -> Result<Program, Failure> {
    let derivation = &prepared.derivation;
    if !derivation.is_builtin() {
        let base = derivation.builder.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_vec();
        let argv = std::iter::once(base).chain(derivation.args.iter().cloned()).collect();
        return Ok(Program::Exec { path: derivation.builder.clone(), argv });
    }
    let name = String::from_utf8_lossy(&derivation.builder).into_owned();
    if !builtin::is_known(&name) {
        let text = format!("unsupported builtin builder '{name}'; this node has fetchurl, buildenv and unpack-channel");
        return Err(Failure::new(BuildStatus::InputRejected, text));
    }
    let outputs = prepared.scratch_outputs.iter();
    let outputs = outputs.map(|(output, path)| (output.clone(), PathBuf::from(service.dir.print(path)))).collect();
    let env = variables.iter().cloned().collect();
    let build_dir = Path::new(environment::BUILD_DIR);
    let payload = builtin::Payload::new(&derivation.name, &derivation.outputs, env, outputs, build_dir);
    Ok(Program::Builtin { name, payload: builtin::encode(&payload) })
}

/// What a builtin builder that fetches needs of the host: the certificate authorities to trust.
fn host_files(prepared: &Prepared) -> Vec<BuildFile> {
    if !builtin::needs_network(&String::from_utf8_lossy(&prepared.derivation.builder)) {
        return Vec::new();
    }
    let named = std::env::var_os("NIX_SSL_CERT_FILE").or_else(|| std::env::var_os("SSL_CERT_FILE"));
    let bundles = named.map(PathBuf::from).into_iter().chain(CA_BUNDLES.map(PathBuf::from));
    let found = bundles.into_iter().find_map(|bundle| std::fs::read(bundle).ok());
    let file = |bytes| BuildFile { name: builtin::CA_FILE.to_string(), bytes, mode: 0o600 };
    found.map(file).into_iter().collect()
}
