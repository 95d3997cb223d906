//! Nix's golden files of derivations: ATerm, JSON, hashes modulo, invariants, resolution, options.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use shoal_wire::nix::derivation::{BasicDerivation, Derivation, DerivedOutputs, Output};
use shoal_wire::nix::derived_path::SingleDerivedPath;
use shoal_wire::nix::hash_modulo::HashModulo;
use shoal_wire::nix::invariants::{check_outputs, fill_outputs};
use shoal_wire::nix::options::{DerivationOptions, OutputCheck, OutputChecks, Reference};
use shoal_wire::nix::resolve::resolve;
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::{aterm, drv_json};

use crate::nix_names::single_derived_path;
use crate::shared::{golden, golden_json};

fn dir() -> StoreDir {
    StoreDir::default()
}

fn none(path: &StorePath) -> Result<Arc<Derivation>, String> {
    Err(format!("no {path}"))
}

#[test]
fn aterm_and_json_are_the_same_derivation() {
    let test = "aterm_and_json_are_the_same_derivation";
    let hash_modulo = ["source", "intermediate"].map(|stem| [format!("{stem}-first"), format!("{stem}-second")]);
    let hash_modulo = hash_modulo.into_iter().flatten().chain(["parent-joined".into(), "parent-split".into()]);
    let stems = ["simple-derivation", "dyn-dep-derivation"].map(str::to_owned).into_iter();
    for stem in stems.chain(hash_modulo.map(|stem| format!("hash-modulo/{stem}"))) {
        let Some(text) = golden(test, &format!("derivation/{stem}.drv")) else { return };
        let Some(json) = golden_json(test, &format!("derivation/{stem}.json")) else { return };
        let drv = drv_json::from_json(&json).expect("derivation");
        assert_eq!(aterm::parse(&dir(), &text, &drv.name).as_ref(), Ok(&drv), "{stem}");
        assert!(aterm::print(&dir(), &drv) == text, "{stem} is not written as it was read");
        assert_eq!(drv_json::to_json(&drv).expect("JSON"), json, "{stem}");
    }
}

#[test]
fn path_of_a_derivation_in_a_recorded_store() {
    let Some(store) = golden_json("path_of_a_derivation_in_a_recorded_store", "dummy-store/one-derivation.json") else {
        return;
    };
    let derivations = store["derivations"].as_object().expect("object");
    for (path, json) in derivations {
        let drv = drv_json::from_json(json).expect("derivation");
        assert_eq!(drv.drv_path(&dir()).expect("path").base_name(), path);
    }
    assert_eq!(derivations.len(), 1);
}

#[test]
fn real_derivations_that_nix_benchmarks_with() {
    let test = "real_derivations_that_nix_benchmarks_with";
    for stem in ["hello", "firefox"] {
        let Some(text) = golden(test, &format!("derivation/{stem}.drv")) else { return };
        let drv = aterm::parse(&dir(), &text, stem).expect("parses");
        let printed = aterm::print(&dir(), &drv);
        // Hash parts were masked in these, so their inputs are not in order. The rest is the same.
        assert_eq!(printed.len(), text.len());
        assert_eq!(aterm::parse(&dir(), &printed, stem).expect("parses"), drv);
    }
}

#[test]
fn bad_derivations_are_refused() {
    let errors = [
        (
            "bad-ca-fixed-path",
            "derivation output 'out' has path '/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-fixed', \
             which does not match its content address",
        ),
        ("bad-old-version-dyn-deps", "expected string '[' at byte 67"),
        ("bad-version", "Unknown derivation ATerm format version 'invalid-version'"),
    ];
    for (stem, expected) in errors {
        let Some(text) = golden("bad_derivations_are_refused", &format!("derivation/{stem}.drv")) else { return };
        let error = aterm::parse(&dir(), &text, "fixed").expect_err(stem);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn outputs_in_json() {
    // `output-inputAddressed` names a path that its derivation has nothing to do with; only its form counts.
    let kinds = ["caFixedFlat", "caFixedNAR", "caFixedText", "caFloating", "deferred", "impure", "inputAddressed"];
    for kind in kinds {
        let Some(json) = golden_json("outputs_in_json", &format!("derivation/output-{kind}.json")) else { return };
        let output = drv_json::output_from_json(&json).expect("output");
        assert_eq!(drv_json::output_to_json(&output), json);
        let fields = output.to_fields(&dir(), "drv-name", "output-name");
        let strings = (&*fields.path, &*fields.hash_algo, &*fields.hash);
        let read = Output::from_fields(&dir(), "drv-name", "output-name", strings);
        assert_eq!(read, Ok(output), "{kind}: {fields:?}");
    }
    assert!(drv_json::output_from_json(&json!({ "path": "x", "hash": "y" })).is_err());
}

#[test]
fn hash_modulo_merges_inputs_that_differ_in_provenance_only() {
    let test = "hash_modulo_merges_inputs_that_differ_in_provenance_only";
    let mut known = BTreeMap::new();
    let read = |stem: &str| {
        let json = golden_json(test, &format!("derivation/hash-modulo/{stem}.json"))?;
        Some(drv_json::from_json(&json).expect("derivation"))
    };
    for stem in ["source-first", "source-second", "intermediate-first", "intermediate-second"] {
        let Some(drv) = read(stem) else { return };
        known.insert(drv.drv_path(&dir()).expect("path"), Arc::new(drv));
    }
    let mut lookup = |path: &StorePath| known.get(path).cloned().ok_or(format!("no {path}"));
    let mut modulo = HashModulo::new(dir());
    for stem in ["intermediate-first", "intermediate-second", "parent-joined", "parent-split"] {
        let Some(drv) = read(stem) else { return };
        let Some(expected) = golden(test, &format!("derivation/hash-modulo/{stem}-modulo.drv")) else { return };
        let text = modulo.masked_text(&drv, &mut lookup).expect("inputs are known").expect("not deferred");
        assert!(text == expected, "{stem}: {}", String::from_utf8_lossy(&text));
    }
}

fn invariant(stem: &str) -> Option<Derivation> {
    let json = golden_json("invariants", &format!("derivation/invariants/{stem}.json"))?;
    Some(drv_json::from_json(&json).expect("derivation"))
}

#[test]
fn invariants_of_output_paths() {
    let mut modulo = HashModulo::new(dir());
    let mut check = |drv: &Derivation| {
        let warnings = check_outputs(&mut modulo, drv, &mut none);
        warnings.map(|warnings| warnings.len()).map_err(|error| error.to_string())
    };
    let fill = |drv: Derivation| {
        let mut basic = drv.to_basic();
        fill_outputs(&dir(), &mut basic).map(|()| basic.into_derivation()).map_err(|error| error.to_string())
    };
    for stem in ["filled-in-deferred-empty-env-var", "filled-in-deferred-no-env-var"] {
        let Some(before) = invariant(&format!("{stem}-pre")) else { return };
        let Some(after) = invariant(&format!("{stem}-post")) else { return };
        assert_eq!(check(&before), Ok(1), "{stem} need not be deferred");
        assert_eq!(fill(before).as_ref(), Ok(&after));
        // Whether the variable exists is part of the hash: a derivation that had none before it was filled in
        // does not have the path that it should have with it. Nix has it so too.
        match stem.contains("no-env-var") {
            true => assert!(check(&after).is_err()),
            false => assert_eq!(check(&after), Ok(0)),
        }
    }
    let Some(filled) = invariant("filled-in-idempotent") else { return };
    assert_eq!(check(&filled), Ok(0));
    assert_eq!(fill(filled.clone()), Ok(filled));
    let Some(bad_path) = invariant("bad-path") else { return };
    let error = "derivation has incorrect output '/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-wrong-name', should be '";
    assert!(check(&bad_path).expect_err("bad path").starts_with(error));
    assert!(fill(bad_path).expect_err("bad path").starts_with(error));
    // A wrong variable beside a deferred output is put right, for derivations of older Nix.
    let Some(bad_env) = invariant("bad-env-var") else { return };
    assert_eq!(check(&fill(bad_env).expect("is filled in")), Ok(0));
}

#[test]
fn outputs_of_dependants_of_floating_derivations_stay_deferred() {
    // The dependency as the test that wrote these files made it.
    let dependency = json!({
        "version": 4, "name": "dependency", "system": "x86_64-linux", "builder": "/bin/sh", "args": [],
        "env": { "out": "" }, "inputs": { "srcs": [], "drvs": {} },
        "outputs": { "out": { "method": "nar", "hashAlgo": "sha256" } },
    });
    let dependency = Arc::new(drv_json::from_json(&dependency).expect("derivation"));
    let path = dependency.drv_path(&dir()).expect("path");
    let mut lookup = |wanted: &StorePath| (*wanted == path).then(|| dependency.clone()).ok_or("unknown");
    let mut modulo = HashModulo::new(dir());
    let Some(deferred) = invariant("depends-on-drv-pre") else { return };
    assert!(check_outputs(&mut modulo, &deferred, &mut lookup).expect("valid").is_empty());
    let Some(bad) = invariant("bad-depends-on-drv-pre") else { return };
    let error = check_outputs(&mut modulo, &bad, &mut lookup).expect_err("should be deferred");
    let expected = "derivation has incorrect output '/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-wrong-name', \
                    should be deferred";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn invariants_of_the_environment() {
    let Some(filled) = invariant("filled-in-idempotent") else { return };
    let mut modulo = HashModulo::new(dir());
    let mut check = |change: &dyn Fn(&mut Derivation)| {
        let mut drv = filled.clone();
        change(&mut drv);
        check_outputs(&mut modulo, &drv, &mut none).expect_err("refused").to_string()
    };
    // Whether the variable exists is part of the hash, so without it the path is another.
    let missing = check(&|drv| drop(drv.env.remove(b"out".as_slice())));
    assert!(missing.starts_with("derivation has incorrect output '"), "{missing}");
    let wrong = check(&|drv| drop(drv.env.insert(b"out".to_vec(), b"/x".to_vec())));
    let expected = "derivation has incorrect environment variable 'out', should be \
                    '/nix/store/w4bk7hpyxzgy2gx8fsa8f952435pll3i-filled-in-already' but is actually '/x'";
    assert_eq!(wrong, expected);
    let rpc = check(&|drv| drop(drv.env.insert(b"requiredSystemFeatures".to_vec(), b"x builder-rpc-v0".to_vec())));
    assert!(rpc.contains("may only be used with content-addressing derivations"), "{rpc}");
    let ca = json!({ "method": "nar", "hash": "sha256-iUUXyRY8iW7DGirb0zwGgf1fRbLA7wimTJKgP7l/OQ8=" });
    let fixed = drv_json::output_from_json(&ca).expect("output");
    let missing = check(&|drv| {
        drv.outputs.insert("out".to_owned(), fixed.clone());
        drv.env.remove(b"out".as_slice());
    });
    assert!(missing.starts_with("derivation has missing environment variable 'out', should be '"), "{missing}");
    let floating = drv_json::output_from_json(&json!({ "method": "nar", "hashAlgo": "sha256" })).expect("output");
    let mixed = check(&|drv| drop(drv.outputs.insert("dev".to_owned(), floating.clone())));
    assert_eq!(mixed, "can't mix derivation output types");
    assert_eq!(check(&|drv| drv.outputs.clear()), "must have at least one output");
}

fn build_trace(stem: &str) -> Option<BTreeMap<SingleDerivedPath, StorePath>> {
    let json = golden_json("try_resolve", &format!("derivation/try-resolve/{stem}-buildTrace.json"))?;
    let entries = json.as_array().expect("array").iter();
    let entry =
        |entry: &Value| (single_derived_path(&entry[0]), entry[1].as_str().expect("path").parse().expect("store path"));
    Some(entries.map(entry).collect())
}

fn unresolved(stem: &str) -> Option<Derivation> {
    let json = golden_json("try_resolve", &format!("derivation/try-resolve/{stem}-before.json"))?;
    Some(drv_json::from_json(&json).expect("derivation"))
}

fn resolved(stem: &str, suffix: &str) -> Option<BasicDerivation> {
    let json = golden_json("try_resolve", &format!("derivation/try-resolve/{stem}-{suffix}.json"))?;
    Some(drv_json::basic_from_json(&json).expect("derivation"))
}

#[test]
fn resolution() {
    let after = [
        ("no-inputs", "after"),
        ("with-inputs", "after"),
        ("export-ref-subpath", "resolved"),
        ("export-ref-subpath-sa", "resolved"),
    ];
    for (stem, suffix) in after {
        let Some(before) = unresolved(stem) else { return };
        let Some(trace) = build_trace(stem) else { return };
        let Some(expected) = resolved(stem, suffix) else { return };
        let basic = resolve(&dir(), &before, &mut |input| trace.get(input).cloned()).expect("resolves");
        assert_eq!(basic, expected, "{stem}");
    }
    let Some(before) = unresolved("resolution-failure") else { return };
    let error = resolve(&dir(), &before, &mut |_| None).expect_err("unknown output");
    let expected =
        "output of unbuilt derivation '/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-dep.drv^out' is not known";
    assert_eq!(error.to_string(), expected);
}

/// Nix's JSON of options, to compare with.
trait ToJson {
    fn to_json(&self) -> Value;
}

impl ToJson for StorePath {
    fn to_json(&self) -> Value {
        json!(self)
    }
}

impl ToJson for SingleDerivedPath {
    fn to_json(&self) -> Value {
        match self {
            Self::Opaque(path) => path.to_json(),
            Self::Built { drv, output } => json!({ "drvPath": drv.to_json(), "output": output }),
        }
    }
}

impl<P: ToJson> ToJson for Reference<P> {
    fn to_json(&self) -> Value {
        match self {
            Self::Output(output) => json!({ "drvPath": "self", "output": output }),
            Self::Input(input) => input.to_json(),
        }
    }
}

fn set<P: ToJson>(items: &BTreeSet<P>) -> Value {
    items.iter().map(ToJson::to_json).collect()
}

impl<P: ToJson> ToJson for OutputCheck<P> {
    fn to_json(&self) -> Value {
        json!({
            "allowedReferences": self.allowed_references.as_ref().map(set),
            "allowedRequisites": self.allowed_requisites.as_ref().map(set),
            "disallowedReferences": set(&self.disallowed_references),
            "disallowedRequisites": set(&self.disallowed_requisites),
            "ignoreSelfRefs": self.ignore_self_refs,
            "maxClosureSize": self.max_closure_size,
            "maxSize": self.max_size,
        })
    }
}

impl<P: ToJson> ToJson for DerivationOptions<P> {
    fn to_json(&self) -> Value {
        let checks = match &self.output_checks {
            OutputChecks::All(check) => json!({ "forAllOutputs": check.to_json() }),
            OutputChecks::PerOutput(checks) => {
                let checks: BTreeMap<_, _> = checks.iter().map(|(name, check)| (name, check.to_json())).collect();
                json!({ "perOutput": checks })
            }
        };
        let graph = self.export_references_graph.iter();
        let graph: BTreeMap<_, _> = graph.map(|(name, paths)| (name, set(paths))).collect();
        json!({
            "additionalSandboxProfile": self.additional_sandbox_profile,
            "allowLocalNetworking": self.allow_local_networking,
            "allowSubstitutes": self.allow_substitutes,
            "exportReferencesGraph": graph,
            "impureEnvVars": self.impure_env_vars,
            "impureHostDeps": self.impure_host_deps,
            "noChroot": self.no_chroot,
            "outputChecks": checks,
            "passAsFile": self.pass_as_file,
            "preferLocalBuild": self.prefer_local_build,
            "requiredSystemFeatures": self.required_system_features,
            "unsafeDiscardReferences": self.unsafe_discard_references,
        })
    }
}

/// Sets are ordered differently on the two sides where an output name and a path stand together.
fn sorted(mut value: Value) -> Value {
    match &mut value {
        Value::Array(items) => {
            items.iter_mut().for_each(|item| *item = sorted(item.take()));
            items.sort_by_key(Value::to_string);
        }
        Value::Object(map) => map.values_mut().for_each(|item| *item = sorted(item.take())),
        _ => {}
    }
    value
}

#[test]
fn options_of_derivations() {
    let test = "options_of_derivations";
    let cases = [
        ("advanced-attributes-defaults", "defaults"),
        ("advanced-attributes", "all_set"),
        ("advanced-attributes-structured-attrs-defaults", "structuredAttrs_defaults"),
        ("advanced-attributes-structured-attrs", "structuredAttrs_all_set"),
    ];
    for kind in ["ia", "ca"] {
        for (stem, options) in cases {
            // Options at their defaults do not depend on the kind, and are recorded once.
            let options_kind = if options.ends_with("defaults") { "ia" } else { kind };
            let Some(json) = golden_json(test, &format!("derivation/{kind}/{stem}.json")) else { return };
            let file = format!("derivation/{options_kind}/derivation-options/{options}.json");
            let Some(expected) = golden_json(test, &file) else { return };
            let drv = drv_json::from_json(&json).expect("derivation");
            let options = DerivationOptions::of(&dir(), &drv).expect("options");
            assert_eq!(sorted(options.to_json()), sorted(expected), "{kind}/{stem}");
            // The .drv files beside the JSON are links out of the recorded tree; the text still round-trips.
            let text = aterm::print(&dir(), &drv);
            assert_eq!(aterm::parse(&dir(), &text, &drv.name).as_ref(), Ok(&drv));
            assert_eq!(drv_json::to_json(&drv).expect("JSON"), json, "{kind}/{stem}");
        }
    }
    let Some(json) = golden_json(test, "derivation/ca/self-contained.json") else { return };
    let drv = drv_json::from_json(&json).expect("derivation");
    assert_eq!(drv_json::to_json(&drv).expect("JSON"), json);
}

#[test]
fn options_are_resolved_with_the_derivation() {
    for stem in ["export-ref-subpath", "export-ref-subpath-sa"] {
        let Some(before) = unresolved(stem) else { return };
        let Some(trace) = build_trace(stem) else { return };
        let Some(basic) = resolved(stem, "resolved") else { return };
        let golden = |suffix| {
            golden_json(
                "options_are_resolved_with_the_derivation",
                &format!("derivation/try-resolve/{stem}-{suffix}.json"),
            )
        };
        let Some(expected_before) = golden("before-options") else { return };
        let Some(expected) = golden("resolved-options") else { return };
        let options = DerivationOptions::of(&dir(), &before).expect("options");
        assert_eq!(sorted(options.to_json()), sorted(expected_before), "{stem}");
        let by_options = options.resolve(&mut |input| trace.get(input).cloned()).expect("known");
        assert_eq!(sorted(by_options.to_json()), sorted(expected), "{stem}");
        let by_derivation = DerivationOptions::of_basic(&dir(), &basic).expect("options");
        assert_eq!(by_derivation, by_options, "{stem}");
        assert_eq!(options.resolve(&mut |_| None), None);
    }
}

#[test]
fn derivation_that_depends_on_itself_is_refused() {
    let Some(mut drv) = invariant("filled-in-idempotent") else { return };
    let path: StorePath = "c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-loop.drv".parse().expect("path");
    drv.input_drvs.insert(path.clone(), DerivedOutputs::of(["out"]));
    let drv = Arc::new(drv);
    let mut lookup = |_: &StorePath| Ok::<_, String>(drv.clone());
    let error = HashModulo::new(dir()).input_hash(&path, &mut lookup).expect_err("a cycle");
    assert_eq!(error.to_string(), format!("derivation '{path}' depends on itself"));
}
