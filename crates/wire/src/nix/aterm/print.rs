//! The writer, also of the intermediate forms that hashes modulo are taken of.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use crate::nix::base64::encode_hex_into;
use crate::nix::derivation::{BasicDerivation, ByteString, Derivation, DerivedOutputs, Output};
use crate::nix::store_path::{StoreDir, StorePath};

/// The text of a derivation: the unversioned format, unless it has dynamic inputs.
pub fn print(dir: &StoreDir, drv: &Derivation) -> Vec<u8> {
    print_parts(dir, &drv.into(), &drv.input_drvs, false)
}

/// What stands where an input derivation's path does.
pub(crate) trait InputKey {
    fn write(&self, dir: &StoreDir, out: &mut Vec<u8>);
}

impl InputKey for StorePath {
    fn write(&self, dir: &StoreDir, out: &mut Vec<u8>) {
        path(dir, self, out);
    }
}

/// Written in base 16.
impl InputKey for [u8; 32] {
    fn write(&self, _: &StoreDir, out: &mut Vec<u8>) {
        out.push(b'"');
        encode_hex_into(self, out);
        out.push(b'"');
    }
}

/// What a derivation and a basic derivation have in common.
pub(crate) struct Parts<'a> {
    pub name: &'a str,
    pub outputs: &'a BTreeMap<String, Output>,
    pub input_srcs: &'a BTreeSet<StorePath>,
    pub system: &'a str,
    pub builder: &'a [u8],
    pub args: &'a [ByteString],
    pub env: &'a BTreeMap<ByteString, ByteString>,
}

impl<'a> From<&'a Derivation> for Parts<'a> {
    fn from(drv: &'a Derivation) -> Self {
        let Derivation { name, outputs, input_drvs: _, input_srcs, system, builder, args, env } = drv;
        Self { name, outputs, input_srcs, system, builder, args, env }
    }
}

impl<'a> From<&'a BasicDerivation> for Parts<'a> {
    fn from(drv: &'a BasicDerivation) -> Self {
        let BasicDerivation { name, outputs, input_srcs, system, builder, args, env } = drv;
        Self { name, outputs, input_srcs, system, builder, args, env }
    }
}

/// Writes with `inputs` for the input derivations. `masked`: output paths and the environment variables named
/// after outputs are written empty.
pub(crate) fn print_parts<K: InputKey, D: Borrow<DerivedOutputs>>(
    dir: &StoreDir,
    drv: &Parts<'_>,
    inputs: &BTreeMap<K, D>,
    masked: bool,
) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(estimate(dir, drv, inputs.len()));
    let out = &mut buffer;
    match inputs.values().any(|node| !node.borrow().dynamic.is_empty()) {
        true => out.extend_from_slice(b"DrvWithVersion(\"xp-dyn-drv\","),
        false => out.extend_from_slice(b"Derive("),
    }
    list(out, drv.outputs, |(name, output), out| outputs_entry(dir, drv.name, (name, output), masked, out));
    out.push(b',');
    list(out, inputs, |(key, node), out| {
        out.push(b'(');
        key.write(dir, out);
        out.push(b',');
        derived_outputs(node.borrow(), out);
        out.push(b')');
    });
    out.push(b',');
    list(out, drv.input_srcs, |source, out| path(dir, source, out));
    for text in [drv.system.as_bytes(), drv.builder] {
        out.push(b',');
        string(text, out);
    }
    out.push(b',');
    list(out, drv.args, |arg, out| string(arg, out));
    out.push(b',');
    list(out, drv.env, |(name, value), out| {
        let is_output = || std::str::from_utf8(name).is_ok_and(|name| drv.outputs.contains_key(name));
        let value = if masked && is_output() { &[] } else { value.as_slice() };
        tuple(out, [name, value]);
    });
    out.push(b')');
    buffer
}

fn estimate(dir: &StoreDir, drv: &Parts<'_>, inputs: usize) -> usize {
    // Quotes, brackets, a typical base name, and some escapes.
    let path = dir.as_str().len() + 72;
    let env: usize = drv.env.iter().map(|(name, value)| name.len() + value.len() * 17 / 16 + 8).sum();
    let args: usize = drv.args.iter().map(|arg| arg.len() + 8).sum();
    256 + env + args + path * (inputs + drv.input_srcs.len() + drv.outputs.len())
}

fn list<I: IntoIterator>(out: &mut Vec<u8>, items: I, item: impl Fn(I::Item, &mut Vec<u8>)) {
    out.push(b'[');
    for (index, entry) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        item(entry, out);
    }
    out.push(b']');
}

fn tuple<const N: usize>(out: &mut Vec<u8>, fields: [&[u8]; N]) {
    out.push(b'(');
    for (index, field) in fields.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        string(field, out);
    }
    out.push(b')');
}

fn outputs_entry(dir: &StoreDir, drv_name: &str, (name, output): (&String, &Output), masked: bool, out: &mut Vec<u8>) {
    let mut fields = output.to_fields(dir, drv_name, name);
    if masked {
        fields.path.clear();
    }
    let fields = [name, &fields.path, &fields.hash_algo, &fields.hash].map(|field| field.as_bytes());
    tuple(out, fields);
}

/// Recursion is bounded, because nodes are never deeper than [`crate::nix::derivation::DYNAMIC_DEPTH_MAX`].
fn derived_outputs(node: &DerivedOutputs, out: &mut Vec<u8>) {
    if node.dynamic.is_empty() {
        return list(out, &node.outputs, |name, out| string(name.as_bytes(), out));
    }
    out.push(b'(');
    list(out, &node.outputs, |name, out| string(name.as_bytes(), out));
    out.push(b',');
    list(out, &node.dynamic, |(name, child), out| {
        out.push(b'(');
        string(name.as_bytes(), out);
        out.push(b',');
        derived_outputs(child, out);
        out.push(b')');
    });
    out.push(b')');
}

fn path(dir: &StoreDir, path: &StorePath, out: &mut Vec<u8>) {
    // Neither has characters that are escaped.
    out.push(b'"');
    out.extend_from_slice(dir.as_str().as_bytes());
    out.push(b'/');
    out.extend_from_slice(path.base_name().as_bytes());
    out.push(b'"');
}

fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text;
    let escape = |byte: u8| match byte {
        b'"' | b'\\' => Some(byte),
        b'\n' => Some(b'n'),
        b'\r' => Some(b'r'),
        b'\t' => Some(b't'),
        _ => None,
    };
    while let Some(plain) = rest.iter().position(|&byte| escape(byte).is_some()) {
        out.extend_from_slice(&rest[..plain]);
        out.push(b'\\');
        out.extend(escape(rest[plain]));
        rest = &rest[plain + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}
