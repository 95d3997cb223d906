//! Nix's golden files of the worker and serve protocols: every one decodes to what the JSON beside it says
//! and encodes to the same bytes.

mod json;
mod sessions;

use crate::shared;
use serde_json::{Value, json};
use shoal_wire::nix::content_address::ContentAddress;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::proto::{Codec, Dialect, Feature, Reader, Writer};
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation};
use shoal_wire::nix::serve::commands::{BuildOptions, ServeBuildResult, read_path_info, write_path_info};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::ops::BuildMode;
use shoal_wire::nix::worker::{BuildResult, KeyedBuildResult, Trust, UnkeyedPathInfo};
use std::collections::BTreeSet;

fn minor(minor: u8) -> Dialect {
    Dialect::new(StoreDir::default(), minor)
}

/// The newest worker protocol with realisations by path.
fn by_path() -> Dialect {
    Dialect { features: BTreeSet::from([Feature::RealisationWithPath]), ..minor(38) }
}

fn decode<T: Codec>(bytes: &[u8], dialect: &Dialect) -> Vec<T> {
    let mut reader = Reader::new(bytes, dialect.clone());
    let mut values = Vec::new();
    while !reader.inner_mut().is_empty() {
        values.push(reader.get().expect("golden value"));
    }
    values
}

fn encode<T: Codec>(values: &[T], dialect: &Dialect) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), dialect.clone());
    values.iter().for_each(|value| writer.put(value).expect("golden value"));
    writer.into_inner()
}

/// `<path>.bin` holds values one after the other; `<path>.json` has them in a list, or the only one alone.
fn check<T: Codec + PartialEq + std::fmt::Debug>(path: &str, dialect: &Dialect, to_json: impl Fn(&T) -> Value) {
    let Some(values) = check_meaning(path, dialect, to_json) else {
        return;
    };
    let bytes = shared::golden(path, &format!("{path}.bin"));
    assert_eq!(Some(encode(&values, dialect)), bytes, "{path}");
}

/// As [`check`] for JSON inside a value, whose spelling is free: only the meaning survives encoding.
fn check_meaning<T: Codec + PartialEq + std::fmt::Debug>(
    path: &str,
    dialect: &Dialect,
    to_json: impl Fn(&T) -> Value,
) -> Option<Vec<T>> {
    let bytes = shared::golden(path, &format!("{path}.bin"))?;
    let golden = shared::golden_json(path, &format!("{path}.json"))?;
    let values: Vec<T> = decode(&bytes, dialect);
    let meaning: Vec<Value> = values.iter().map(to_json).collect();
    let golden = if golden.is_array() { golden } else { json!([golden]) };
    assert_eq!(Value::Array(meaning), golden, "{path}");
    assert_eq!(decode::<T>(&encode(&values, dialect), dialect), values, "{path}");
    Some(values)
}

const PROTOCOLS: [&str; 3] = ["common-protocol", "worker-protocol", "serve-protocol"];

#[test]
fn common_values() {
    for protocol in PROTOCOLS {
        let dialect = if protocol == "serve-protocol" { minor(7) } else { minor(38) };
        let file = |name: &str| format!("{protocol}/{name}");
        check(&file("string"), &dialect, |text: &String| json!(text));
        check(&file("store-path"), &dialect, |path: &StorePath| json!(path));
        check(&file("optional-store-path"), &dialect, |path: &Option<StorePath>| json!(path));
        check(&file("content-address"), &dialect, json::content_address);
        check(&file("optional-content-address"), &dialect, |ca: &Option<ContentAddress>| {
            ca.as_ref().map_or(Value::Null, json::content_address)
        });
        check(&file("drv-output"), &dialect, |id: &DrvOutput| json!(id));
        // Signatures are objects in one golden text and strings in the other.
        check_meaning(&file("realisation"), &dialect, json::realisation_with_objects);
        check(&file("realisation-with-deps"), &dialect, |realisation: &Realisation| json!(realisation));
    }
}

#[test]
fn lists_and_sets() {
    for protocol in PROTOCOLS {
        for kind in ["vector", "set"] {
            let path = format!("{protocol}/{kind}");
            let (bytes, golden) = match (
                shared::golden(&path, &format!("{path}.bin")),
                shared::golden_json(&path, &format!("{path}.json")),
            ) {
                (Some(bytes), Some(golden)) => (bytes, golden),
                _ => return,
            };
            let mut reader = Reader::new(bytes.as_slice(), minor(38));
            let mut writer = Writer::new(Vec::new(), minor(38));
            let meaning = match kind {
                "vector" => {
                    let flat: [Vec<String>; 3] = std::array::from_fn(|_| reader.get().expect("list"));
                    let nested: Vec<Vec<String>> = reader.get().expect("list of lists");
                    flat.iter().for_each(|list| writer.put(list).expect("list"));
                    writer.put(&nested).expect("list of lists");
                    json!([flat[0], flat[1], flat[2], nested])
                }
                _ => {
                    let flat: [BTreeSet<String>; 3] = std::array::from_fn(|_| reader.get().expect("set"));
                    let nested: BTreeSet<BTreeSet<String>> = reader.get().expect("set of sets");
                    flat.iter().for_each(|set| writer.put(set).expect("set"));
                    writer.put(&nested).expect("set of sets");
                    json!([flat[0], flat[1], flat[2], nested])
                }
            };
            assert_eq!(meaning, golden, "{path}");
            assert_eq!(writer.into_inner(), bytes, "{path}");
        }
    }
}

#[test]
fn worker_values() {
    check("worker-protocol/build-mode", &minor(38), |mode: &BuildMode| json!(mode.number()));
    check("worker-protocol/optional-trusted-flag", &minor(38), |trust: &Trust| match trust {
        Trust::Unknown => Value::Null,
        trust => json!(*trust == Trust::Trusted),
    });
    for version in [29, 30] {
        let path = format!("worker-protocol/derived-path-1.{version}");
        check(&path, &minor(version), json::derived_path);
    }
    for version in [15, 16] {
        let path = format!("worker-protocol/valid-path-info-1.{version}");
        check(&path, &minor(version), |info: &PathInfo| json::path_info(info, true));
    }
    check("worker-protocol/unkeyed-valid-path-info-1.15", &minor(15), |info: &UnkeyedPathInfo| {
        let path = StorePath::from_base_name("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-x").expect("path");
        json::path_info(&info.clone().with_path(path), false)
    });
}

#[test]
fn worker_build_results() {
    for version in [27, 28, 29, 37] {
        let path = format!("worker-protocol/build-result-1.{version}");
        check(&path, &minor(version), |result: &BuildResult| json::build_result(result, json::Outputs::Full));
    }
    let short = |result: &BuildResult| json::build_result(result, json::Outputs::Short);
    check("worker-protocol/build-result-realisation-with-path-not-hash", &by_path(), short);
    // Leaves out what old clients do not read.
    check_meaning("worker-protocol/build-result-1.29-compat", &minor(29), short);
    check("worker-protocol/keyed-build-result-1.29", &minor(29), |keyed: &KeyedBuildResult| {
        let mut value = json::build_result(&keyed.result, json::Outputs::Full);
        value["path"] = json::derived_path(&keyed.path);
        value
    });
}

#[test]
fn realisations_by_path() {
    let suffix = "realisation-with-path-not-hash";
    for (protocol, dialect, suffix) in [("worker-protocol", by_path(), suffix), ("serve-protocol", minor(8), "2.8")] {
        let file = |name: &str| format!("{protocol}/{name}-{suffix}");
        check(&file("drv-output"), &dialect, |key: &BuildTraceKey| json!(key));
        check(&file("unkeyed-realisation"), &dialect, json::unkeyed_realisation);
        check(
            &file("realisation"),
            &dialect,
            |trace: &BuildTrace| json!({"key": trace.key, "value": json::unkeyed_realisation(&trace.value)}),
        );
    }
}

#[test]
fn serve_build_results() {
    for (version, outputs) in
        [(2, json::Outputs::Full), (3, json::Outputs::Full), (6, json::Outputs::Full), (8, json::Outputs::Short)]
    {
        let path = format!("serve-protocol/build-result-2.{version}");
        check(&path, &minor(version), |result: &ServeBuildResult| json::build_result(&result.0, outputs));
    }
    check_meaning("serve-protocol/build-result-2.7-compat", &minor(7), |result: &ServeBuildResult| {
        json::build_result(&result.0, json::Outputs::Short)
    });
}

#[test]
fn serve_path_infos() {
    for version in [3, 4] {
        let path = format!("serve-protocol/unkeyed-valid-path-info-2.{version}");
        let (Some(bytes), Some(golden)) =
            (shared::golden(&path, &format!("{path}.bin")), shared::golden_json(&path, &format!("{path}.json")))
        else {
            return;
        };
        let mut reader = Reader::new(bytes.as_slice(), minor(version));
        let mut writer = Writer::new(Vec::new(), minor(version));
        let mut meaning = Vec::new();
        while !reader.inner_mut().is_empty() {
            let key = StorePath::from_base_name("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-x").expect("path");
            let info = read_path_info(key, &mut reader).expect("info");
            write_path_info(&info, &mut writer).expect("info");
            let mut value = json::path_info(&info, false);
            value["registrationTime"] = Value::Null;
            meaning.push(value);
        }
        assert_eq!(Value::Array(meaning), golden, "{path}");
        assert_eq!(writer.into_inner(), bytes, "{path}");
    }
}

#[test]
fn serve_build_options() {
    let mut expected = BuildOptions { max_silent_time: 5, build_timeout: 6, ..BuildOptions::default() };
    for version in [1, 2, 3, 7] {
        match version {
            2 => expected.max_log_size = 7,
            3 => (expected.repeats, expected.enforce_determinism) = (8, true),
            7 => (expected.enforce_determinism, expected.keep_failed) = (false, true),
            _ => {}
        }
        let path = format!("serve-protocol/build-options-2.{version}");
        let Some(bytes) = shared::golden(&path, &format!("{path}.bin")) else {
            return;
        };
        assert_eq!(decode::<BuildOptions>(&bytes, &minor(version)), [expected], "{path}");
        assert_eq!(encode(&[expected], &minor(version)), bytes, "{path}");
    }
}

#[test]
fn build_results_from_json() {
    for (name, outputs) in [
        ("not-deterministic", json::Outputs::Short),
        ("output-rejected", json::Outputs::Short),
        ("success", json::Outputs::Short),
    ] {
        let Some(golden) = shared::golden_json(name, &format!("build-result/{name}.json")) else {
            return;
        };
        let result = json::parse_build_result(&golden);
        let decoded: Vec<BuildResult> = decode(&encode(&[result], &by_path()), &by_path());
        assert_eq!(json::build_result(&decoded[0], outputs), golden, "{name}");
    }
}

/// Every golden file of these folders is read by a test here; a new one must not go unnoticed.
#[test]
fn no_golden_file_is_left_out() {
    let source = [include_str!("protocol_values.rs"), include_str!("protocol_values/sessions.rs")].concat();
    for folder in PROTOCOLS {
        let Some(dir) = shared::find("no_golden_file_is_left_out", &format!("conformance/nix/libstore/{folder}"))
        else {
            return;
        };
        for file in std::fs::read_dir(dir).expect("folder") {
            let file = file.expect("entry").path();
            let stem = file.file_stem().expect("name").to_string_lossy().into_owned();
            let plain = stem.split("-1.").next().and_then(|stem| stem.split("-2.").next()).unwrap_or_default();
            let plain = plain.trim_end_matches("-realisation-with-path-not-hash");
            assert!(source.contains(plain), "{folder}/{stem}");
        }
    }
}
