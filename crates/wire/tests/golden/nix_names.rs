//! Nix's golden files of names, hashes, addresses, keys, path infos and realisations.
//!
//! Most of these are Nix's JSON forms. Where shoal does not speak a JSON form (content addresses as objects,
//! derived paths, path infos, narinfos), a helper here reads it into the value, and what is checked is that the
//! value survives the text form that shoal does speak.

use std::collections::BTreeSet;

use serde_json::Value;
use shoal_wire::nix::content_address::{CaMethod, ContentAddress};
use shoal_wire::nix::derived_path::{DerivedPath, OutputsSpec, Separator, SingleDerivedPath};
use shoal_wire::nix::hash::Hash;
use shoal_wire::nix::narinfo::NarInfo;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::realisation::{BuildTrace, DrvOutput, Realisation, UnkeyedRealisation};
use shoal_wire::nix::signature::{SecretKey, Signature, TrustedKeys};
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use crate::shared::{find, golden, golden_json};

/// The published key of Nix's own unit tests.
const TEST_KEY: &str =
    "test-key:tU7tTvLcScf8pmz/eTV0BEtLmRsPpZfKaRcd0nCN+pysBZPHSeg61/u2oc7mIOewfuAY1V1BiX32homTaDJ2Jw==";

fn dir() -> StoreDir {
    StoreDir::default()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("string")
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("array").iter()
}

pub fn content_address(value: &Value) -> ContentAddress {
    match value {
        Value::String(text) => text.parse().expect("content address"),
        object => ContentAddress {
            method: CaMethod::from_name(text(&object["method"])).expect("method"),
            hash: Hash::parse_any(text(&object["hash"])).expect("hash"),
        },
    }
}

pub fn single_derived_path(value: &Value) -> SingleDerivedPath {
    match value {
        Value::String(path) => SingleDerivedPath::Opaque(path.parse().expect("path")),
        object => SingleDerivedPath::Built {
            drv: Box::new(single_derived_path(&object["drvPath"])),
            output: text(&object["output"]).to_owned(),
        },
    }
}

fn outputs_spec(value: &Value) -> OutputsSpec {
    let names: Vec<&str> = array(value).map(text).collect();
    names.join(",").parse().expect("outputs")
}

#[test]
fn hashes_in_sri_form() {
    // blake3 is an experimental feature of Nix that shoal does not have.
    for name in ["sha256", "sha512"] {
        let Some(path) = find("hashes_in_sri_form", &format!("conformance/nix/libutil/hash/{name}.json")) else {
            return;
        };
        let value: Value = serde_json::from_slice(&std::fs::read(path).expect("file")).expect("JSON");
        let hash: Hash = serde_json::from_value(value.clone()).expect("hash");
        assert_eq!(serde_json::to_value(hash).expect("JSON"), value);
        assert_eq!(Hash::parse_any(&hash.to_string()), Ok(hash));
    }
    let blake3 = Hash::parse_any("blake3-nnDuFEmWX7YtBJBAoe0G7Dd0MNpuwTFz58T//NKL6YA=");
    assert_eq!(blake3.expect_err("unknown").to_string(), "unknown hash algorithm 'blake3'");
}

#[test]
fn content_addresses() {
    for (name, method) in [("nar", CaMethod::Nar), ("text", CaMethod::Text)] {
        let Some(value) = golden_json("content_addresses", &format!("content-address/{name}.json")) else {
            return;
        };
        let ca = content_address(&value);
        assert_eq!(ca.method, method);
        assert_eq!(ca.to_string().parse(), Ok(ca));
        assert_eq!(ca.hash.to_sri(), text(&value["hash"]));
    }
}

#[test]
fn store_paths() {
    let Some(value) = golden_json("store_paths", "store-path/simple.json") else { return };
    let path: StorePath = serde_json::from_value(value.clone()).expect("store path");
    assert_eq!(serde_json::to_value(&path).expect("JSON"), value);
    assert_eq!((path.name(), path.derivation_name()), ("foo.drv", Some("foo")));
    assert_eq!(dir().parse(&dir().print(&path)), Ok(path));
}

#[test]
fn derived_paths() {
    const FOO: &str = "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo.drv";
    let singles =
        [("opaque", FOO.to_owned()), ("built", format!("{FOO}!bar")), ("built_built", format!("{FOO}!bar!baz"))];
    for (name, expected) in singles {
        let Some(value) = golden_json("derived_paths", &format!("derived-path/single_{name}.json")) else { return };
        let path = single_derived_path(&value);
        assert_eq!(path.print(&dir(), Separator::Wire), expected);
        assert_eq!(SingleDerivedPath::parse(&dir(), &expected, Separator::Wire), Ok(path));
    }
    let multis = [
        ("multi_opaque", FOO.to_owned()),
        ("mutli_built", format!("{FOO}!bar,baz")),
        ("multi_built_built", format!("{FOO}!bar!baz,quux")),
        ("multi_built_built_wildcard", format!("{FOO}!bar!*")),
    ];
    for (name, expected) in multis {
        let Some(value) = golden_json("derived_paths", &format!("derived-path/{name}.json")) else { return };
        let path = match value.get("outputs") {
            None => DerivedPath::from(single_derived_path(&value)),
            Some(outputs) => DerivedPath::Built {
                drv: Box::new(single_derived_path(&value["drvPath"])),
                outputs: outputs_spec(outputs),
            },
        };
        assert_eq!(path.print(&dir()), expected);
        assert_eq!(DerivedPath::parse(&dir(), &expected), Ok(path));
    }
}

#[test]
fn derived_paths_before_1_30() {
    const FOO: &str = "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo";
    let drv = format!("{FOO}.drv");
    let all = DerivedPath::parse(&dir(), &format!("{drv}!*")).expect("path");
    assert_eq!(DerivedPath::parse_pre_30(&dir(), &drv), Ok(all.clone()));
    assert_eq!(all.print_pre_30(&dir()).as_ref(), Ok(&drv));
    let plain = DerivedPath::parse(&dir(), FOO).expect("path");
    assert_eq!(DerivedPath::parse_pre_30(&dir(), FOO), Ok(plain.clone()));
    assert_eq!(plain.print_pre_30(&dir()).as_deref(), Ok(FOO));
    let named = format!("{drv}!dev,out");
    assert_eq!(DerivedPath::parse_pre_30(&dir(), &named).expect("path").print_pre_30(&dir()), Ok(named));
    for inexpressible in [drv.clone(), format!("{drv}!out!dev"), format!("{FOO}!*")] {
        let path = DerivedPath::parse(&dir(), &inexpressible).expect("path");
        assert!(path.print_pre_30(&dir()).is_err(), "{inexpressible}");
    }
}

#[test]
fn outputs_specs() {
    // The extended form is of installables on Nix's command line; where it is not null it is the plain form.
    for name in ["all", "name", "names", "extended/all", "extended/name", "extended/names"] {
        let Some(value) = golden_json("outputs_specs", &format!("outputs-spec/{name}.json")) else { return };
        let spec = outputs_spec(&value);
        assert_eq!(spec.to_string().parse(), Ok(spec.clone()));
        assert_eq!(spec == OutputsSpec::All, name.ends_with("all"));
    }
    for bad in ["", "a,", ",a", "a,,b", "*,a", "a b", "a!b"] {
        assert!(bad.parse::<OutputsSpec>().is_err(), "{bad}");
    }
}

/// Machines of the same name make keys of the same name.
#[test]
fn all_trusted_keys_of_a_name_count() {
    let keys: Vec<SecretKey> = [1, 2, 3].map(|seed| SecretKey::from_seed("host-1", [seed; 32]).expect("key")).into();
    let trusted = TrustedKeys::from_iter([keys[0].public(), keys[1].public(), keys[0].public()]);
    assert_eq!(trusted.iter().count(), 2);
    let is_trusted = |key: &SecretKey| trusted.verify(b"data", &key.sign(b"data"));
    assert_eq!(keys.iter().map(is_trusted).collect::<Vec<_>>(), [true, true, false]);
    assert!(!trusted.verify(b"other", &keys[0].sign(b"data")));
}

#[test]
fn build_traces_and_their_signatures() {
    let test = "build_traces_and_their_signatures";
    let key: SecretKey = TEST_KEY.parse().expect("key");
    let trusted = TrustedKeys::from_iter([key.public()]);
    for name in ["simple", "with-signature"] {
        let Some(json) = golden(test, &format!("realisation/{name}.json")) else { return };
        let Some(fingerprint) = golden(test, &format!("realisation/{name}-fingerprint.txt")) else { return };
        let Some(signature) = golden(test, &format!("realisation/{name}-sig.json")) else { return };
        let mut trace = BuildTrace::from_json(&json).expect("build trace");
        assert_eq!(BuildTrace::from_json(trace.to_json().as_bytes()).expect("round trip"), trace);
        assert_eq!(trace.fingerprint().into_bytes(), fingerprint);
        assert_eq!(trace.count_valid_signatures(&trusted), 0);
        trace.sign(&key);
        let signature: Signature = serde_json::from_slice(&signature).expect("signature");
        assert!(trace.value.signatures.contains(&signature), "signed as Nix does");
        assert_eq!(trace.count_valid_signatures(&trusted), 1);
    }
    let slash = r#"{"key":{"drvPath":"g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-bar.drv","outputName":"../x"},"value":{"outPath":"g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo"}}"#;
    assert!(BuildTrace::from_json(slash.as_bytes()).is_err(), "output names are checked");
    let Some(object) = golden(test, "realisation/with-signature.json") else { return };
    let Some(string) = golden(test, "realisation/with-signature-unstructured.json") else { return };
    let trace = BuildTrace::from_json(&object).expect("signature as object");
    assert_eq!(trace, BuildTrace::from_json(&string).expect("signature as string"));
    // Written with strings, which every Nix reads.
    let value: Value = serde_json::from_slice(&string).expect("JSON");
    assert_eq!(trace.to_json(), value.to_string());
}

#[test]
fn unkeyed_realisations() {
    for name in ["unkeyed-simple", "unkeyed-with-signature"] {
        let Some(json) = golden("unkeyed_realisations", &format!("realisation/{name}.json")) else { return };
        let value = UnkeyedRealisation::from_json(&json).expect("realisation");
        assert_eq!(value.signatures.len(), usize::from(name.ends_with("signature")));
        assert_eq!(UnkeyedRealisation::from_json(value.to_json().as_bytes()).expect("round trip"), value);
    }
}

#[test]
fn realisation_of_older_nix() {
    let id = "sha256:ad3d62e64b41a4a1d7e575f7463fceb81c12b4099b8bb5d8b08c7826d64b6c3b!out";
    let built = "bhzpfrj7sfvkcbr3v3rfn4g0pjy8hv9i-cadep";
    let json = format!(r#"{{"signatures":[],"outPath":"{built}","id":"{id}","dependentRealisations":{{}}}}"#);
    let mut realisation = Realisation::from_json(json.as_bytes()).expect("realisation");
    assert_eq!(realisation, Realisation::new(id.parse().expect("id"), built.parse().expect("path")));
    let sorted = format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{built}","signatures":[]}}"#);
    assert_eq!(realisation.to_json(), sorted);
    assert_eq!(realisation.fingerprint(), sorted.replace(r#","signatures":[]"#, ""));
    let key: SecretKey = TEST_KEY.parse().expect("key");
    realisation.sign(&key);
    assert_eq!(realisation.count_valid_signatures(&TrustedKeys::from_iter([key.public()])), 1);
    // Servers from 2.35 on write only these two.
    let short = format!(r#"{{"id":"{id}","outPath":"{built}"}}"#);
    assert!(Realisation::from_json(short.as_bytes()).expect("short form").signatures.is_empty());
    for bad in
        ["sha256:ad3d!out", "out", &id.replace("sha256", "sha1"), &id.replace("!out", "!"), &id.replace('!', "^")]
    {
        assert!(bad.parse::<DrvOutput>().is_err(), "{bad}");
    }
}

/// A path info in any of Nix's three JSON versions: full or base names, hashes and signatures in either form.
fn path_info(path: &str, value: &Value) -> PathInfo {
    let base_name = |value: &Value| text(value).rsplit('/').next().expect("name").parse().expect("store path");
    let hash = Hash::parse_any(text(&value["narHash"])).expect("hash").as_sha256().expect("SHA-256");
    let size = value["narSize"].as_u64().expect("size");
    let mut info = PathInfo::new(path.parse().expect("path"), hash, size);
    info.references = array(&value["references"]).map(base_name).collect();
    info.deriver = value.get("deriver").filter(|deriver| !deriver.is_null()).map(base_name);
    info.ca = value.get("ca").filter(|ca| !ca.is_null()).map(content_address);
    let signatures = value.get("signatures").cloned().unwrap_or(Value::Array(Vec::new()));
    info.signatures = serde_json::from_value::<BTreeSet<Signature>>(signatures).expect("signatures");
    info
}

#[test]
fn path_infos_agree_across_json_versions() {
    const PATH: &str = "n5wkd9frr45pa74if5gpz9j7mifg27fh-foo";
    for name in ["empty_pure", "empty_impure", "pure", "impure"] {
        let mut infos = Vec::new();
        for version in 1..=3 {
            let file = format!("path-info/json-{version}/{name}.json");
            let Some(value) = golden_json("path_infos_agree_across_json_versions", &file) else { return };
            infos.push(path_info(PATH, &value));
        }
        assert_eq!(infos[0], infos[1], "{name}");
        assert_eq!(infos[1], infos[2], "{name}");
        let stored = serde_json::to_string(&infos[0]).expect("JSON");
        assert_eq!(serde_json::from_str::<PathInfo>(&stored).expect("path info"), infos[0]);
        match name.starts_with("empty") {
            true => assert!(infos[0].fingerprint(&dir()).is_err(), "no size, no fingerprint"),
            false => assert!(infos[0].fingerprint(&dir()).is_ok()),
        }
    }
}

#[test]
fn narinfos_agree_across_json_versions() {
    const PATH: &str = "n5wkd9frr45pa74if5gpz9j7mifg27fh-foo";
    const TEXT: &str = "\
StorePath: /nix/store/n5wkd9frr45pa74if5gpz9j7mifg27fh-foo
URL: nar/1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3.nar.xz
Compression: xz
FileHash: sha256:09ymwqf5i9q7d4dm7x4pjjcqqj0qrcp5lnznbh42gfsci5hcbqqm
FileSize: 4029176
NarHash: sha256:09ymwqf5i9q7d4dm7x4pjjcqqj0qrcp5lnznbh42gfsci5hcbqqm
NarSize: 34878
References: g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-bar n5wkd9frr45pa74if5gpz9j7mifg27fh-foo
Deriver: g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-bar.drv
Sig: asdf:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==
Sig: qwer:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==
CA: fixed:r:sha256:1lr187v6dck1rjh2j6svpikcfz53wyl3qrlcbb405zlh13x0khhh
";
    for version in 1..=3 {
        let file = format!("nar-info/json-{version}/impure.json");
        let Some(value) = golden_json("narinfos_agree_across_json_versions", &file) else { return };
        let narinfo = NarInfo {
            info: path_info(PATH, &value),
            url: text(&value["url"]).to_owned(),
            compression: text(&value["compression"]).parse().expect("compression"),
            file_hash: Some(Hash::parse_any(text(&value["downloadHash"])).expect("hash")),
            file_size: value["downloadSize"].as_u64(),
        };
        assert_eq!(narinfo.print(&dir()), TEXT, "version {version}");
        assert_eq!(NarInfo::parse(&dir(), TEXT.as_bytes()).expect("narinfo"), narinfo);
    }
    for file in ["json-1/pure", "json-1/pure_noversion", "json-2/pure", "json-3/pure"] {
        let Some(value) = golden_json("narinfos_agree_across_json_versions", &format!("nar-info/{file}.json")) else {
            return;
        };
        let impure = NarInfo::parse(&dir(), TEXT.as_bytes()).expect("narinfo").info;
        let pure = PathInfo { deriver: None, signatures: BTreeSet::new(), ..impure };
        assert_eq!(path_info(PATH, &value), pure, "{file}");
    }
}
