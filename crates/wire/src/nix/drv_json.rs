//! Derivations as Nix's JSON, format version 4: `nix derivation show` from 2.33 on.
//! Source: `libstore/derivation/json.cc`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::content_address::{CaMethod, ContentAddress, ContentAddressError};
use super::derivation::{
    BasicDerivation, ByteString, DYNAMIC_DEPTH_MAX, Derivation, DerivedOutputs, Output, STRUCTURED_ATTRS,
};
use super::hash::{Hash, HashAlgo, HashError};
use super::store_path::{NameError, StorePath, StorePathError, check_name};

/// The only version that is read and written.
pub const VERSION: u64 = 4;

/// Why a value is no derivation, or a derivation has no JSON.
#[derive(Debug, Error)]
pub enum DrvJsonError {
    #[error("Expected JSON value '{0}' to be of another type or present")]
    Missing(&'static str),
    #[error("Unsupported derivation JSON format version {0}, only format version {VERSION} is currently supported.")]
    Version(u64),
    #[error("invalid JSON for derivation output")]
    Output,
    #[error("dynamic outputs nest deeper than {DYNAMIC_DEPTH_MAX}")]
    TooDeep,
    #[error("'{0}' is not UTF-8, which JSON must be")]
    NotUtf8(String),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Path(#[from] StorePathError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Method(#[from] ContentAddressError),
    #[error(transparent)]
    Hash(#[from] HashError),
}

type Result<T> = std::result::Result<T, DrvJsonError>;

/// The JSON of a derivation.
pub fn to_json(drv: &Derivation) -> Result<Value> {
    let drvs: Map<String, Value> =
        drv.input_drvs.iter().map(|(path, node)| (path.to_string(), outputs_to_json(node))).collect();
    with_inputs(&drv.to_basic(), json!({ "srcs": drv.input_srcs, "drvs": drvs }))
}

/// The JSON of a derivation whose inputs are all store paths.
pub fn basic_to_json(drv: &BasicDerivation) -> Result<Value> {
    with_inputs(drv, json!(drv.input_srcs))
}

/// Reads the JSON of a derivation.
pub fn from_json(value: &Value) -> Result<Derivation> {
    let inputs = field(value, "inputs")?;
    let mut drv = without_inputs(value)?.into_derivation();
    drv.input_srcs = paths(field(inputs, "srcs")?)?;
    for (path, node) in object(field(inputs, "drvs")?, "drvs")? {
        drv.input_drvs.insert(path.parse()?, outputs_from_json(node, 0)?);
    }
    Ok(drv)
}

/// Reads the JSON of a derivation whose inputs are all store paths.
pub fn basic_from_json(value: &Value) -> Result<BasicDerivation> {
    let mut drv = without_inputs(value)?;
    drv.input_srcs = paths(field(value, "inputs")?)?;
    Ok(drv)
}

/// The JSON of one output. It has no path where that follows from the rest.
pub fn output_to_json(output: &Output) -> Value {
    match output {
        Output::InputAddressed(path) => json!({ "path": path }),
        Output::Fixed { ca } => json!({ "method": ca.method, "hash": ca.hash }),
        Output::Floating { method, algo } => json!({ "method": method, "hashAlgo": algo.name() }),
        Output::Deferred => json!({}),
        Output::Impure { method, algo } => {
            json!({ "method": method, "hashAlgo": algo.name(), "impure": true })
        }
    }
}

/// Reads the JSON of one output. Unknown sets of keys are refused.
pub fn output_from_json(value: &Value) -> Result<Output> {
    let map = object(value, "outputs")?;
    let mut keys: Vec<&str> = map.keys().map(String::as_str).collect();
    keys.sort_unstable();
    let method = || Ok::<CaMethod, DrvJsonError>(CaMethod::from_name(text(value, "method")?)?);
    let algo = || Ok::<HashAlgo, DrvJsonError>(text(value, "hashAlgo")?.parse()?);
    match keys.as_slice() {
        [] => Ok(Output::Deferred),
        ["path"] => Ok(Output::InputAddressed(text(value, "path")?.parse()?)),
        ["hash", "method"] => {
            let hash = Hash::parse_any(text(value, "hash")?)?;
            Ok(Output::Fixed { ca: ContentAddress { method: method()?, hash } })
        }
        ["hashAlgo", "method"] => Ok(Output::Floating { method: method()?, algo: algo()? }),
        ["hashAlgo", "impure", "method"] => Ok(Output::Impure { method: method()?, algo: algo()? }),
        _ => Err(DrvJsonError::Output),
    }
}

fn with_inputs(drv: &BasicDerivation, inputs: Value) -> Result<Value> {
    let outputs: Map<String, Value> =
        drv.outputs.iter().map(|(name, output)| (name.clone(), output_to_json(output))).collect();
    let args = drv.args.iter().map(|arg| utf8(arg)).collect::<Result<Vec<_>>>()?;
    let mut env = Map::new();
    let mut structured = None;
    for (name, value) in &drv.env {
        if name == STRUCTURED_ATTRS {
            structured = Some(serde_json::from_slice::<Map<String, Value>>(value)?);
        } else {
            env.insert(utf8(name)?.to_owned(), utf8(value)?.into());
        }
    }
    let mut value = json!({
        "version": VERSION,
        "name": drv.name,
        "outputs": outputs,
        "inputs": inputs,
        "system": drv.system,
        "builder": utf8(&drv.builder)?,
        "args": args,
        "env": env,
    });
    if let (Some(structured), Some(map)) = (structured, value.as_object_mut()) {
        map.insert("structuredAttrs".to_owned(), structured.into());
    }
    Ok(value)
}

fn without_inputs(value: &Value) -> Result<BasicDerivation> {
    let version = field(value, "version")?.as_u64().ok_or(DrvJsonError::Missing("version"))?;
    if version != VERSION {
        return Err(DrvJsonError::Version(version));
    }
    let name = text(value, "name")?;
    check_name(name)?;
    let mut outputs = BTreeMap::new();
    for (output, value) in object(field(value, "outputs")?, "outputs")? {
        check_name(output)?;
        outputs.insert(output.clone(), output_from_json(value)?);
    }
    let args = field(value, "args")?.as_array().ok_or(DrvJsonError::Missing("args"))?;
    let mut env: BTreeMap<ByteString, ByteString> = BTreeMap::new();
    for (name, value) in object(field(value, "env")?, "env")? {
        let value = value.as_str().ok_or(DrvJsonError::Missing("env"))?;
        env.insert(name.clone().into_bytes(), value.to_owned().into_bytes());
    }
    if let Some(structured) = value.get("structuredAttrs") {
        let mut structured = structured.clone();
        structured.sort_all_objects();
        object(&structured, "structuredAttrs")?;
        env.insert(STRUCTURED_ATTRS.to_vec(), structured.to_string().into_bytes());
    }
    let bytes = |value: &Value| value.as_str().map(|arg| arg.to_owned().into_bytes());
    Ok(BasicDerivation {
        name: name.to_owned(),
        outputs,
        input_srcs: BTreeSet::new(),
        system: text(value, "system")?.to_owned(),
        builder: text(value, "builder")?.to_owned().into_bytes(),
        args: args.iter().map(bytes).collect::<Option<_>>().ok_or(DrvJsonError::Missing("args"))?,
        env,
    })
}

/// Recursion is bounded, because nodes are never deeper than [`DYNAMIC_DEPTH_MAX`].
fn outputs_to_json(node: &DerivedOutputs) -> Value {
    let dynamic: Map<String, Value> =
        node.dynamic.iter().map(|(name, child)| (name.clone(), outputs_to_json(child))).collect();
    json!({ "outputs": node.outputs, "dynamicOutputs": dynamic })
}

fn outputs_from_json(value: &Value, depth: usize) -> Result<DerivedOutputs> {
    if depth > DYNAMIC_DEPTH_MAX {
        return Err(DrvJsonError::TooDeep);
    }
    let names = field(value, "outputs")?.as_array().ok_or(DrvJsonError::Missing("outputs"))?;
    let mut node = DerivedOutputs::default();
    for name in names {
        let name = name.as_str().ok_or(DrvJsonError::Missing("outputs"))?;
        check_name(name)?;
        node.outputs.insert(name.to_owned());
    }
    for (name, child) in object(field(value, "dynamicOutputs")?, "dynamicOutputs")? {
        check_name(name)?;
        node.dynamic.insert(name.clone(), outputs_from_json(child, depth + 1)?);
    }
    Ok(node)
}

fn field<'a>(value: &'a Value, name: &'static str) -> Result<&'a Value> {
    value.get(name).ok_or(DrvJsonError::Missing(name))
}

fn text<'a>(value: &'a Value, name: &'static str) -> Result<&'a str> {
    field(value, name)?.as_str().ok_or(DrvJsonError::Missing(name))
}

fn object<'a>(value: &'a Value, name: &'static str) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or(DrvJsonError::Missing(name))
}

fn paths(value: &Value) -> Result<BTreeSet<StorePath>> {
    let paths = value.as_array().ok_or(DrvJsonError::Missing("inputs"))?;
    let path = |value: &Value| Ok(value.as_str().ok_or(DrvJsonError::Missing("inputs"))?.parse()?);
    paths.iter().map(path).collect()
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| DrvJsonError::NotUtf8(bytes.escape_ascii().to_string()))
}
