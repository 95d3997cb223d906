//! Structured attributes: the JSON in `__json`, and the `.attrs.json` and `.attrs.sh` made of it.
//! Source: `libstore/parsed-derivations.cc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use thiserror::Error;

use super::content_address::ContentAddress;

/// Bytes of `__json` that are read at most; a derivation is not larger either.
const JSON_LEN_MAX: usize = super::aterm::ATERM_LEN_MAX;

/// `__json` is not a JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("cannot process __json attribute: {0}")]
pub struct StructuredError(pub String);

impl From<serde_json::Error> for StructuredError {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

/// Attributes by name. The text of each value is kept as it came, so that numbers print as they were written.
#[derive(Debug, Clone)]
pub struct StructuredAttrs(BTreeMap<String, Box<RawValue>>);

/// What `exportReferencesGraph` says of one path. Field order is that of the JSON keys, sorted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GraphEntry {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<ContentAddress>,
    /// Bytes of the NARs of the closure.
    pub closure_size: u64,
    /// `sha256:<nix32>`
    pub nar_hash: String,
    pub nar_size: u64,
    /// Full path.
    pub path: String,
    /// Full paths.
    pub references: BTreeSet<String>,
    /// Always true.
    pub valid: bool,
}

impl StructuredAttrs {
    /// From the text of `__json`.
    pub fn parse(text: &[u8]) -> Result<Self, StructuredError> {
        if text.len() > JSON_LEN_MAX {
            return Err(StructuredError(format!("{} bytes are more than {JSON_LEN_MAX}", text.len())));
        }
        let text = std::str::from_utf8(text).map_err(|error| StructuredError(error.to_string()))?;
        Ok(Self(serde_json::from_str(text)?))
    }

    /// The attributes as values, objects sorted by key. Deep nesting is refused.
    pub fn values(&self) -> Result<BTreeMap<String, Value>, StructuredError> {
        self.0.iter().map(|(name, raw)| Ok((name.clone(), value_of(raw)?))).collect()
    }

    /// What is given to the build: the attributes, `outputs` (name to path or placeholder), and an array under
    /// each key of `exportReferencesGraph`.
    pub fn prepare(
        &self,
        outputs: &BTreeMap<String, String>,
        graphs: &BTreeMap<String, Vec<GraphEntry>>,
    ) -> Result<Self, StructuredError> {
        let mut attrs = self.0.clone();
        attrs.insert("outputs".to_owned(), to_raw_value(outputs)?);
        for (key, graph) in graphs {
            attrs.insert(key.clone(), to_raw_value(graph)?);
        }
        Ok(Self(attrs))
    }

    /// The text of `.attrs.json`: compact, keys sorted.
    pub fn to_json(&self) -> String {
        let mut text = String::from("{");
        for (index, (name, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(text, "{comma}{}:{}", Value::from(name.as_str()), value.get());
        }
        text.push('}');
        text
    }

    /// The text of `.attrs.sh`: a Bash declaration for every attribute that has a shell name and is not nested
    /// deeper than Bash can say.
    pub fn to_shell(&self) -> Result<String, StructuredError> {
        let mut text = String::new();
        for (name, raw) in self.0.iter().filter(|(name, _)| is_shell_name(name)) {
            declare(name, &value_of(raw)?, &mut text);
        }
        Ok(text)
    }
}

fn value_of(raw: &RawValue) -> Result<Value, StructuredError> {
    let mut value: Value = serde_json::from_str(raw.get())?;
    value.sort_all_objects();
    Ok(value)
}

/// `[A-Za-z_][A-Za-z0-9_]*`
fn is_shell_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn declare(name: &str, value: &Value, text: &mut String) {
    let declared = match value {
        Value::Array(items) => items.iter().map(|item| Some(format!("{} ", simple(item)?))).collect(),
        Value::Object(items) => {
            items.iter().map(|(key, item)| Some(format!("[{}]={} ", quote(key), simple(item)?))).collect()
        }
        _ => simple(value),
    };
    let Some(declared) = declared else { return };
    // Writing to a String cannot fail.
    let _ = match value {
        Value::Array(_) => writeln!(text, "declare -a {name}=({declared})"),
        Value::Object(_) => writeln!(text, "declare -A {name}=({declared})"),
        _ => writeln!(text, "declare {name}={declared}"),
    };
}

fn simple(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(quote(text)),
        Value::Number(number) => integral(number).map(|number| number.to_string()),
        Value::Null => Some("''".to_owned()),
        Value::Bool(true) => Some("1".to_owned()),
        Value::Bool(false) => Some(String::new()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// Nix decides in single precision whether a number is whole, and prints it as a C `int`: integers wrap
/// around, floats out of range become the least one. Builds have come to depend on what that gives.
fn integral(number: &serde_json::Number) -> Option<i32> {
    if let Some(integer) = number.as_i64() {
        return Some(integer as i32);
    }
    if let Some(integer) = number.as_u64() {
        return Some(integer as i32);
    }
    let float = number.as_f64()?;
    let single = float as f32;
    if single.ceil() != single {
        return None;
    }
    let in_range = float > f64::from(i32::MIN) - 1.0 && float < f64::from(i32::MAX) + 1.0;
    Some(if in_range { float as i32 } else { i32::MIN })
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Text of an unstructured `exportReferencesGraph` file: for each path the path, an empty deriver, the number
/// of references, and these. Full paths; `closure` is sorted by path.
pub fn references_graph<'a>(closure: impl IntoIterator<Item = (&'a str, &'a BTreeSet<String>)>) -> String {
    let mut text = String::new();
    for (path, references) in closure {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{path}\n\n{}", references.len());
        for reference in references {
            let _ = writeln!(text, "{reference}");
        }
    }
    text
}

/// File name of an attribute in `passAsFile`.
pub fn pass_as_file_name(attribute: &str) -> String {
    let hash = super::base32::encode(&super::hash::sha256(attribute.as_bytes()));
    format!(".attr-{hash}")
}
