//! Reading options from the environment or from structured attributes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{DerivationOptions, OptionsError, OutputCheck, OutputChecks, Reference};
use crate::nix::derivation::{ByteString, STRUCTURED_ATTRS};
use crate::nix::store_path::StorePathError;
use crate::nix::structured::StructuredAttrs;

fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', '\t', '\n', '\r']).filter(|token| !token.is_empty())
}

/// The two places where attributes stand.
pub(super) struct Attrs<'a> {
    env: &'a BTreeMap<ByteString, ByteString>,
    pub(super) structured: Option<BTreeMap<String, Value>>,
}

impl<'a> Attrs<'a> {
    pub(super) fn of(env: &'a BTreeMap<ByteString, ByteString>) -> Result<Self, OptionsError> {
        let structured = match env.get(STRUCTURED_ATTRS) {
            Some(text) => Some(StructuredAttrs::parse(text)?.values()?),
            None => None,
        };
        Ok(Self { env, structured })
    }

    fn variable(&self, name: &str) -> Result<Option<&'a str>, OptionsError> {
        let text =
            |value: &'a ByteString| std::str::from_utf8(value).map_err(|_| OptionsError::NotUtf8(name.to_owned()));
        self.env.get(name.as_bytes()).map(text).transpose()
    }

    fn string(&self, name: &str) -> Result<Option<String>, OptionsError> {
        match &self.structured {
            Some(attrs) => attrs.get(name).map(|value| string(name, value).map(str::to_owned)).transpose(),
            None => Ok(self.variable(name)?.map(str::to_owned)),
        }
    }

    fn bool(&self, name: &str, default: bool) -> Result<bool, OptionsError> {
        match &self.structured {
            Some(attrs) => attrs.get(name).map_or(Ok(default), |value| boolean(name, value)),
            None => Ok(self.variable(name)?.map_or(default, |value| value == "1")),
        }
    }

    pub(super) fn set(&self, name: &str) -> Result<Option<BTreeSet<String>>, OptionsError> {
        match &self.structured {
            Some(attrs) => attrs.get(name).map(|value| string_set(name, value)).transpose(),
            None => Ok(self.variable(name)?.map(|value| tokens(value).map(str::to_owned).collect())),
        }
    }
}

/// Reads a path of an input: the input, and whether the text is nothing but that path.
pub(super) type ToInput<'a, P> = &'a dyn Fn(&str) -> Result<(P, bool), StorePathError>;

pub(super) fn parse<P: Ord>(attrs: &Attrs<'_>, to_input: ToInput<'_, P>) -> Result<DerivationOptions<P>, OptionsError> {
    let set = |name| attrs.set(name).map(Option::unwrap_or_default);
    Ok(DerivationOptions {
        output_checks: match &attrs.structured {
            Some(structured) => OutputChecks::PerOutput(checks_per_output(structured, to_input)?),
            None => OutputChecks::All(check_for_all(attrs, to_input)?),
        },
        unsafe_discard_references: match &attrs.structured {
            Some(structured) => discard_references(structured)?,
            None => BTreeMap::new(),
        },
        pass_as_file: match &attrs.structured {
            Some(_) => BTreeSet::new(),
            None => set("passAsFile")?,
        },
        export_references_graph: match &attrs.structured {
            Some(structured) => structured_graph(structured, to_input)?,
            None => unstructured_graph(attrs, to_input)?,
        },
        additional_sandbox_profile: attrs.string("__sandboxProfile")?.unwrap_or_default(),
        no_chroot: attrs.bool("__noChroot", false)?,
        impure_host_deps: set("__impureHostDeps")?,
        impure_env_vars: set("impureEnvVars")?,
        allow_local_networking: attrs.bool("__darwinAllowLocalNetworking", false)?,
        required_system_features: set("requiredSystemFeatures")?,
        prefer_local_build: attrs.bool("preferLocalBuild", false)?,
        allow_substitutes: attrs.bool("allowSubstitutes", true)?,
    })
}

fn references<P: Ord>(names: BTreeSet<String>, to_input: ToInput<'_, P>) -> BTreeSet<Reference<P>> {
    let reference = |name: String| match to_input(&name) {
        Ok((input, true)) => Reference::Input(input),
        _ => Reference::Output(name),
    };
    names.into_iter().map(reference).collect()
}

fn check_for_all<P: Ord>(attrs: &Attrs<'_>, to_input: ToInput<'_, P>) -> Result<OutputCheck<P>, OptionsError> {
    let set = |name| Ok::<_, OptionsError>(attrs.set(name)?.map(|names| references(names, to_input)));
    Ok(OutputCheck {
        ignore_self_refs: true,
        max_size: None,
        max_closure_size: None,
        allowed_references: set("allowedReferences")?,
        disallowed_references: set("disallowedReferences")?.unwrap_or_default(),
        allowed_requisites: set("allowedRequisites")?,
        disallowed_requisites: set("disallowedRequisites")?.unwrap_or_default(),
    })
}

fn checks_per_output<P: Ord>(
    attrs: &BTreeMap<String, Value>,
    to_input: ToInput<'_, P>,
) -> Result<BTreeMap<String, OutputCheck<P>>, OptionsError> {
    let Some(checks) = attrs.get("outputChecks") else {
        return Ok(BTreeMap::new());
    };
    let one = |(output, check): (&String, &Value)| {
        let check = object(&format!("outputChecks.{output}"), check)?;
        let name = |attr: &str| format!("outputChecks.{output}.{attr}");
        let set = |attr: &str| {
            let names = check.get(attr).map(|value| string_set(&name(attr), value)).transpose()?;
            Ok::<_, OptionsError>(names.map(|names| references(names, to_input)))
        };
        let size = |attr: &str| {
            let wrong = || wrong_type(&name(attr), "an unsigned integer");
            check.get(attr).map(|value| value.as_u64().ok_or_else(wrong)).transpose()
        };
        let parsed = OutputCheck {
            ignore_self_refs: false,
            max_size: size("maxSize")?,
            max_closure_size: size("maxClosureSize")?,
            allowed_references: set("allowedReferences")?,
            disallowed_references: set("disallowedReferences")?.unwrap_or_default(),
            allowed_requisites: set("allowedRequisites")?,
            disallowed_requisites: set("disallowedRequisites")?.unwrap_or_default(),
        };
        Ok((output.clone(), parsed))
    };
    object("outputChecks", checks)?.iter().map(one).collect()
}

fn discard_references(attrs: &BTreeMap<String, Value>) -> Result<BTreeMap<String, bool>, OptionsError> {
    const NAME: &str = "unsafeDiscardReferences";
    let Some(outputs) = attrs.get(NAME) else {
        return Ok(BTreeMap::new());
    };
    let one = |(output, value): (&String, &Value)| Ok((output.clone(), boolean(NAME, value)?));
    object(NAME, outputs)?.iter().map(one).collect()
}

fn unstructured_graph<P: Ord>(
    attrs: &Attrs<'_>,
    to_input: ToInput<'_, P>,
) -> Result<BTreeMap<String, BTreeSet<P>>, OptionsError> {
    let text = attrs.variable("exportReferencesGraph")?.unwrap_or_default();
    let words: Vec<&str> = tokens(text).collect();
    let (pairs, odd) = words.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(OptionsError::OddGraph(text.to_owned()));
    }
    let mut graph = BTreeMap::new();
    for [file, path] in pairs {
        if !is_graph_file_name(file) {
            return Err(OptionsError::GraphName((*file).to_owned()));
        }
        graph.insert((*file).to_owned(), BTreeSet::from([to_input(path)?.0]));
    }
    Ok(graph)
}

/// `[A-Za-z_][A-Za-z0-9_.-]*`
fn is_graph_file_name(name: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.bytes().all(rest)
}

fn structured_graph<P: Ord>(
    attrs: &BTreeMap<String, Value>,
    to_input: ToInput<'_, P>,
) -> Result<BTreeMap<String, BTreeSet<P>>, OptionsError> {
    // Nix ignores what is no object.
    let Some(Value::Object(graph)) = attrs.get("exportReferencesGraph") else {
        return Ok(BTreeMap::new());
    };
    let one = |(key, value): (&String, &Value)| {
        let mut paths = BTreeSet::new();
        flatten(value, &mut |text| {
            paths.insert(to_input(text)?.0);
            Ok(())
        })?;
        Ok((key.clone(), paths))
    };
    graph.iter().map(one).collect()
}

/// Recursion is bounded, because the JSON reader bounds nesting.
fn flatten(value: &Value, each: &mut dyn FnMut(&str) -> Result<(), OptionsError>) -> Result<(), OptionsError> {
    match value {
        Value::String(text) => each(text),
        Value::Array(values) => values.iter().try_for_each(|value| flatten(value, each)),
        _ => Err(wrong_type("exportReferencesGraph", "an array or a string")),
    }
}

fn wrong_type(name: &str, expected: &'static str) -> OptionsError {
    OptionsError::Type { name: name.to_owned(), expected }
}

fn object<'a>(name: &str, value: &'a Value) -> Result<&'a serde_json::Map<String, Value>, OptionsError> {
    value.as_object().ok_or_else(|| wrong_type(name, "an object"))
}

fn string<'a>(name: &str, value: &'a Value) -> Result<&'a str, OptionsError> {
    value.as_str().ok_or_else(|| wrong_type(name, "a string"))
}

fn boolean(name: &str, value: &Value) -> Result<bool, OptionsError> {
    value.as_bool().ok_or_else(|| wrong_type(name, "a boolean"))
}

fn string_set(name: &str, value: &Value) -> Result<BTreeSet<String>, OptionsError> {
    let items = value.as_array().ok_or_else(|| wrong_type(name, "an array of strings"))?;
    items.iter().map(|item| string(name, item).map(str::to_owned)).collect()
}
