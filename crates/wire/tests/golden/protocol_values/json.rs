//! Values as Nix's golden JSON has them.

use serde_json::{Map, Value, json};
use shoal_wire::nix::content_address::ContentAddress;
use shoal_wire::nix::derived_path::{DerivedPath, OutputsSpec};
use shoal_wire::nix::hash::Hash;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::realisation::{DrvOutput, Realisation, UnkeyedRealisation};
use shoal_wire::nix::signature::Signature;
use shoal_wire::nix::worker::{BuildResult, BuildStatus};
use std::collections::BTreeSet;

pub fn content_address(ca: &ContentAddress) -> Value {
    json!({"hash": ca.hash.to_sri(), "method": ca.method.name()})
}

/// As objects.
fn signatures(signatures: &BTreeSet<Signature>) -> Value {
    let object = |signature: &Signature| {
        let text = signature.to_string();
        let (_, sig) = text.split_once(':').expect("a signature has a name");
        json!({"keyName": signature.key_name(), "sig": sig})
    };
    signatures.iter().map(object).collect()
}

pub fn derived_path(path: &DerivedPath) -> Value {
    match path {
        DerivedPath::Opaque(path) => json!(path),
        DerivedPath::Built { drv, outputs } => {
            let outputs = match outputs {
                OutputsSpec::All => json!(["*"]),
                OutputsSpec::Names(names) => json!(names),
            };
            json!({"drvPath": drv.base_path(), "outputs": outputs})
        }
    }
}

pub fn path_info(info: &PathInfo, keyed: bool) -> Value {
    let mut value = json!({
        "ca": info.ca.as_ref().map(content_address),
        "deriver": info.deriver,
        "narHash": Hash::sha256(info.nar_hash).to_sri(),
        "narSize": info.nar_size,
        "references": info.references,
        "registrationTime": info.registration_time,
        "signatures": signatures(&info.signatures),
        "storeDir": "/nix/store",
        "ultimate": info.ultimate,
        "version": 3,
    });
    if keyed {
        value["path"] = json!(info.path);
    }
    value
}

pub fn unkeyed_realisation(realisation: &UnkeyedRealisation) -> Value {
    json!({"outPath": realisation.out_path, "signatures": signatures(&realisation.signatures)})
}

pub fn realisation_with_objects(realisation: &Realisation) -> Value {
    let mut value = json!(realisation);
    value["signatures"] = signatures(&realisation.signatures);
    value
}

/// Whether built outputs are given with their ids.
#[derive(Clone, Copy)]
pub enum Outputs {
    Full,
    Short,
}

pub fn build_result(result: &BuildResult, outputs: Outputs) -> Value {
    let mut value = json!({
        "startTime": result.start_time,
        "status": format!("{:?}", result.status),
        "stopTime": result.stop_time,
        "success": result.status.is_success(),
        "timesBuilt": result.times_built,
    });
    if result.status.is_success() {
        let output = |(name, realisation): (&String, &Realisation)| {
            let value = match outputs {
                Outputs::Full => json!(realisation),
                Outputs::Short => {
                    json!({"outPath": realisation.out_path, "signatures": signatures(&realisation.signatures)})
                }
            };
            (name.clone(), value)
        };
        value["builtOutputs"] = Value::Object(result.built_outputs.iter().map(output).collect::<Map<_, _>>());
    } else {
        value["errorMsg"] = json!(String::from_utf8_lossy(&result.error_msg));
        value["isNonDeterministic"] = json!(result.is_non_deterministic);
    }
    for (key, time) in [("cpuUser", result.cpu_user), ("cpuSystem", result.cpu_system)] {
        if let Some(time) = time {
            value[key] = json!(time);
        }
    }
    value
}

pub fn parse_build_result(value: &Value) -> BuildResult {
    let status = (0..).map_while(BuildStatus::from_number).find(|status| value["status"] == format!("{status:?}"));
    let error = value["errorMsg"].as_str().unwrap_or_default();
    let mut result = BuildResult::new(status.expect("a status with this name"), error);
    result.times_built = value["timesBuilt"].as_u64().expect("number");
    result.is_non_deterministic = value["isNonDeterministic"].as_bool().unwrap_or(false);
    result.start_time = value["startTime"].as_u64().expect("number");
    result.stop_time = value["stopTime"].as_u64().expect("number");
    result.cpu_user = value["cpuUser"].as_i64();
    result.cpu_system = value["cpuSystem"].as_i64();
    for (name, output) in value["builtOutputs"].as_object().into_iter().flatten() {
        let id = DrvOutput { drv_hash: [0; 32], output: name.clone() };
        let path = output["outPath"].as_str().and_then(|base| base.parse().ok()).expect("path");
        result.built_outputs.insert(name.clone(), Realisation::new(id, path));
    }
    result
}
