//! The builders that are part of Nix itself: `builtin:fetchurl`, `builtin:buildenv`, `builtin:unpack-channel`.
//!
//! [`run`] is process 1 of a finished sandbox, with the builder's own lack of rights. All it knows is the [`Payload`];
//! what it prints on stderr is the build's log. Behaviour: `libstore/builtins/*.cc` of NixOS/nix.

mod buildenv;
mod decompress;
mod fetchurl;
mod unpack_channel;
mod untar;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_wire::nix::content_address::CaMethod;
use shoal_wire::nix::derivation::{DerivationKind, Output, kind_of};
use shoal_wire::nix::hash::Hash;

const FETCHURL: &str = "builtin:fetchurl";
const BUILDENV: &str = "builtin:buildenv";
const UNPACK_CHANNEL: &str = "builtin:unpack-channel";

/// Name of the file in the build directory that holds the certificate authorities to trust, in PEM.
pub const CA_FILE: &str = "ca-certificates.crt";
/// Name of the file in the build directory that holds the node's netrc.
pub const NETRC_FILE: &str = "netrc";

/// Everything a builtin builder gets to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Without `.drv`.
    pub drv_name: String,
    /// The builder's environment, placeholders replaced.
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Output name to where it must appear, inside the sandbox.
    pub outputs: BTreeMap<String, PathBuf>,
    /// Whether the derivation is fixed-output or impure: the kinds that may fetch.
    pub fixed_output: bool,
    /// The expected hash of a flat fixed output. Mirrors are asked by it.
    pub flat_hash: Option<Hash>,
    /// URLs that serve files as `<mirror>/<algo>/<base 16>`, tried in this order before the derivation's own URL.
    pub hashed_mirrors: Vec<String>,
    /// PEM certificates to trust; a missing file only matters to `https`.
    pub ca_file: PathBuf,
    /// May be missing.
    pub netrc_file: PathBuf,
}

impl Payload {
    /// For a derivation that declares `declared`, built in `build_dir` with `env`, its outputs at `outputs`.
    pub fn new(
        drv_name: &str,
        declared: &BTreeMap<String, Output>,
        env: BTreeMap<Vec<u8>, Vec<u8>>,
        outputs: BTreeMap<String, PathBuf>,
        build_dir: &Path,
    ) -> Self {
        let flat_hash = match declared.get("out") {
            Some(Output::Fixed { ca }) if ca.method == CaMethod::Flat => Some(ca.hash),
            _ => None,
        };
        Payload {
            drv_name: drv_name.to_owned(),
            env,
            outputs,
            fixed_output: matches!(kind_of(declared), Ok(DerivationKind::Fixed | DerivationKind::Impure)),
            flat_hash,
            hashed_mirrors: Vec::new(),
            ca_file: build_dir.join(CA_FILE),
            netrc_file: build_dir.join(NETRC_FILE),
        }
    }

    /// An attribute that must be there.
    fn attribute(&self, name: &str) -> Result<&[u8], Failure> {
        self.optional(name).ok_or_else(|| failure(format!("attribute '{name}' missing")))
    }

    fn optional(&self, name: &str) -> Option<&[u8]> {
        self.env.get(name.as_bytes()).map(Vec::as_slice)
    }

    /// Whether an attribute is `1`: how derivations spell true.
    fn flag(&self, name: &str) -> bool {
        self.optional(name) == Some(b"1")
    }

    fn out(&self, builder: &str) -> Result<&Path, Failure> {
        let out = self.outputs.get("out").map(PathBuf::as_path);
        out.ok_or_else(|| failure(format!("'{builder}' requires an 'out' output")))
    }
}

/// Why a builtin builder failed, as its log shall say.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(String);

fn failure(text: impl Into<String>) -> Failure {
    Failure(text.into())
}

/// Makes a failure of an error, with what was tried.
fn cannot(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let tried = format!("{what} '{}'", path.display());
    move |error| Failure(format!("{tried}: {}", reason(&error)))
}

/// An error as the system words it, without the number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(code) => text.trim_end_matches(&format!(" (os error {code})")).to_owned(),
        None => text,
    }
}

/// The form in which a payload goes to the sandbox (postcard). Of paths that are not UTF-8, which no store has, it is
/// empty, and [`run`] refuses it.
pub fn encode(payload: &Payload) -> Vec<u8> {
    postcard::to_stdvec(payload).unwrap_or_default()
}

/// Whether there is a builtin builder of that name, which is the derivation's `builder` in full.
pub fn is_known(name: &str) -> bool {
    matches!(name, FETCHURL | BUILDENV | UNPACK_CHANNEL)
}

/// Whether the builder is of no use without the host's network.
pub fn needs_network(name: &str) -> bool {
    name == FETCHURL
}

/// Runs a builtin builder to its end and gives its exit code. `payload` is what [`encode`] made.
pub fn run(name: &str, payload: &[u8]) -> i32 {
    let done = match postcard::from_bytes::<Payload>(payload) {
        Ok(payload) => build(name, &payload),
        Err(error) => Err(failure(format!("cannot decode the instructions for '{name}': {error}"))),
    };
    match done {
        Ok(()) => 0,
        Err(failure) => {
            log(&format!("error: {failure}"));
            1
        }
    }
}

fn build(name: &str, payload: &Payload) -> Result<(), Failure> {
    match name {
        FETCHURL => fetchurl::build(payload),
        BUILDENV => buildenv::build(payload),
        UNPACK_CHANNEL => unpack_channel::build(payload),
        _ => Err(failure(format!("unsupported builtin builder '{}'", name.trim_start_matches("builtin:")))),
    }
}

fn warn(text: &str) {
    log(&format!("warning: {text}"));
}

/// Writes a line to the build's log, whose reader may be gone.
fn log(line: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(line.as_bytes()).and_then(|()| stderr.write_all(b"\n"));
}
