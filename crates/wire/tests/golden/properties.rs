//! Whatever the value: what is written is read back, and means the same.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use shoal_wire::nix::content_address::{CaMethod, CaMethodAlgo, ContentAddress};
use shoal_wire::nix::derivation::{Derivation, DerivedOutputs, Output};
use shoal_wire::nix::derived_path::{DerivedPath, OutputsSpec, Separator, SingleDerivedPath};
use shoal_wire::nix::hash::{Hash, HashAlgo};
use shoal_wire::nix::make_path::CaReferences;
use shoal_wire::nix::narinfo::NarInfo;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation, UnkeyedRealisation};
use shoal_wire::nix::signature::{SecretKey, Signature, TrustedKeys};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::{aterm, base32, base64, drv_json};

fn dir() -> StoreDir {
    StoreDir::default()
}

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]{0,40}"
}

fn store_path() -> impl Strategy<Value = StorePath> {
    (any::<[u8; 20]>(), name()).prop_map(|(hash, name)| StorePath::from_parts(&hash, &name).expect("name"))
}

fn drv_path() -> impl Strategy<Value = StorePath> {
    (any::<[u8; 20]>(), name())
        .prop_map(|(hash, name)| StorePath::from_parts(&hash, &format!("{name}.drv")).expect("name"))
}

fn algo() -> impl Strategy<Value = HashAlgo> {
    select(&HashAlgo::ALL[..])
}

fn method() -> impl Strategy<Value = CaMethod> {
    select(vec![CaMethod::Text, CaMethod::Flat, CaMethod::Nar, CaMethod::Git])
}

fn hash() -> impl Strategy<Value = Hash> {
    (algo(), any::<[[u8; 32]; 2]>())
        .prop_map(|(algo, bytes)| Hash::new(algo, &bytes.concat()[..algo.digest_len()]).expect("length"))
}

fn content_address() -> impl Strategy<Value = ContentAddress> {
    (method(), hash()).prop_map(|(method, hash)| ContentAddress { method, hash })
}

/// A content address that a path can be made of.
fn fixed() -> impl Strategy<Value = ContentAddress> {
    content_address().prop_filter("possible", |ca| dir().make_fixed_path(ca, "x").is_ok())
}

fn signature() -> impl Strategy<Value = Signature> {
    (name(), any::<[[u8; 32]; 2]>())
        .prop_map(|(name, bytes)| Signature::new(&name, bytes.concat().try_into().expect("64 bytes")).expect("name"))
}

fn output() -> impl Strategy<Value = Output> {
    let pair = || (method(), algo());
    prop_oneof![
        store_path().prop_map(Output::InputAddressed),
        fixed().prop_map(|ca| Output::Fixed { ca }),
        pair().prop_map(|(method, algo)| Output::Floating { method, algo }),
        Just(Output::Deferred),
        pair().prop_map(|(method, algo)| Output::Impure { method, algo }),
    ]
}

fn derived_outputs() -> impl Strategy<Value = DerivedOutputs> {
    let leaf = btree_set(name(), 1..3).prop_map(DerivedOutputs::of);
    leaf.prop_recursive(3, 8, 2, |child| {
        (btree_set(name(), 1..3), btree_map(name(), child, 0..2))
            .prop_map(|(outputs, dynamic)| DerivedOutputs { outputs, dynamic })
    })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..24), r#"[a-z"\\\n\r\t$/{]{0,24}"#.prop_map(String::into_bytes)]
}

fn derivation() -> impl Strategy<Value = Derivation> {
    let inputs = (btree_map(drv_path(), derived_outputs(), 0..3), btree_set(store_path(), 0..3));
    let program = ("[a-z0-9_-]{1,12}", bytes(), vec(bytes(), 0..4), btree_map(bytes(), bytes(), 0..5));
    (name(), btree_map(name(), output(), 0..4), inputs, program).prop_map(
        |(name, outputs, (input_drvs, input_srcs), (system, builder, args, env))| Derivation {
            name,
            outputs,
            input_drvs,
            input_srcs,
            system,
            builder,
            args,
            env,
        },
    )
}

fn single_derived_path() -> impl Strategy<Value = SingleDerivedPath> {
    (drv_path(), vec(name(), 0..4)).prop_map(|(path, outputs)| {
        outputs.into_iter().fold(SingleDerivedPath::Opaque(path), |drv, output| SingleDerivedPath::Built {
            drv: Box::new(drv),
            output,
        })
    })
}

fn derived_path() -> impl Strategy<Value = DerivedPath> {
    let outputs = prop_oneof![Just(OutputsSpec::All), btree_set(name(), 1..4).prop_map(OutputsSpec::Names)];
    let built =
        (single_derived_path(), outputs).prop_map(|(drv, outputs)| DerivedPath::Built { drv: Box::new(drv), outputs });
    prop_oneof![store_path().prop_map(DerivedPath::Opaque), built]
}

fn path_info() -> impl Strategy<Value = PathInfo> {
    let ids = (store_path(), option::of(drv_path()), btree_set(store_path(), 0..4));
    let trust = (btree_set(signature(), 0..3), option::of(content_address()));
    (ids, any::<[u8; 32]>(), 1..u64::MAX, trust).prop_map(
        |((path, deriver, references), hash, size, (signatures, ca))| PathInfo {
            deriver,
            references,
            signatures,
            ca,
            ..PathInfo::new(path, hash, size)
        },
    )
}

proptest! {
    #[test]
    fn base_encodings_are_inverse(value in vec(any::<u8>(), 0..80)) {
        prop_assert_eq!(base32::decode(&base32::encode(&value)), Ok(value.clone()));
        prop_assert_eq!(base64::decode(&base64::encode(&value)), Ok(value.clone()));
        let unpadded = base64::encode(&value).trim_end_matches('=').to_owned();
        prop_assert_eq!(base64::decode_unpadded(&unpadded), Ok(value.clone()));
        let mut decoded = vec![0; value.len()];
        base64::decode_hex_into(base64::encode_hex(&value).as_bytes(), &mut decoded).expect("base 16");
        prop_assert_eq!(decoded, value);
    }

    #[test]
    fn base_32_and_64_have_one_text_a_value(text in "[0-9a-z]{0,40}", padded in "[A-Za-z0-9+/]{0,40}={0,2}") {
        if let Ok(value) = base32::decode(&text) {
            prop_assert_eq!(base32::encode(&value), text);
        }
        if let Ok(value) = base64::decode(&padded) {
            prop_assert_eq!(base64::encode(&value), padded);
        }
    }

    #[test]
    fn hashes_are_read_in_every_form(hash in hash()) {
        let algo = hash.algo();
        let base64 = base64::encode(hash.digest());
        for digits in [hash.to_base16(), hash.to_nix32(), base64] {
            prop_assert_eq!(Hash::parse_digits(&digits, algo), Ok(hash));
            prop_assert_eq!(Hash::parse(&digits, algo), Ok(hash));
            let prefixed = format!("{algo}:{digits}");
            prop_assert_eq!(Hash::parse_any(&prefixed), Ok(hash));
            prop_assert!(Hash::parse_any(&digits).is_err());
            for other in HashAlgo::ALL.into_iter().filter(|other| *other != algo) {
                prop_assert!(Hash::parse(&prefixed, other).is_err());
            }
        }
        prop_assert_eq!(Hash::parse_any(&hash.to_sri()), Ok(hash));
        prop_assert_eq!(Hash::parse_any(hash.to_sri().trim_end_matches('=')), Ok(hash));
    }

    #[test]
    fn store_paths_are_read_back(path in store_path()) {
        prop_assert_eq!(&path.base_name().parse::<StorePath>(), &Ok(path.clone()));
        let full = dir().print(&path);
        prop_assert_eq!(&dir().parse(&full), &Ok(path.clone()));
        for noncanonical in [format!("{full}/"), format!("/{full}"), full.replacen('/', "//", 2)] {
            prop_assert!(dir().parse(&noncanonical).is_err());
        }
        let below = format!("{full}/bin/sh");
        prop_assert_eq!(dir().parse_prefix(&below), Ok((path, "/bin/sh")));
    }

    #[test]
    fn content_addresses_are_read_back(ca in content_address()) {
        prop_assert_eq!(ca.to_string().parse(), Ok(ca));
        let method = ca.method_algo();
        prop_assert_eq!(method.to_string().parse(), Ok(method));
        prop_assert_eq!(CaMethodAlgo::from_output_form(&method.to_output_form()), Ok(method));
    }

    #[test]
    fn only_text_and_nar_may_refer(ca in content_address(), other in store_path(), itself: bool) {
        let references = CaReferences { others: BTreeSet::from([other]), itself };
        let sha256 = ca.hash.algo() == HashAlgo::Sha256;
        let allowed = sha256 && (ca.method == CaMethod::Nar || ca.method == CaMethod::Text && !itself);
        prop_assert_eq!(dir().make_ca_path(&ca, &references, "x").is_ok(), allowed);
    }

    #[test]
    fn derivations_are_read_back(drv in derivation()) {
        let text = aterm::print(&dir(), &drv);
        prop_assert_eq!(aterm::parse(&dir(), &text, &drv.name), Ok(drv));
    }

    #[test]
    fn derivations_survive_json(mut drv in derivation()) {
        // JSON has no bytes that are not text.
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned().into_bytes();
        drv.builder = text(&drv.builder);
        drv.args = drv.args.iter().map(text).collect();
        drv.env = drv.env.iter().map(|(key, value)| (text(key), text(value))).collect();
        let json = drv_json::to_json(&drv).expect("text");
        prop_assert_eq!(drv_json::from_json(&json).expect("derivation"), drv);
    }

    #[test]
    fn cut_or_lengthened_derivations_are_refused(drv in derivation(), cut in 0.0..1.0, extra: u8) {
        let mut text = aterm::print(&dir(), &drv);
        let len = (text.len() as f64 * cut) as usize;
        prop_assert!(aterm::parse(&dir(), &text[..len], &drv.name).is_err());
        text.push(extra);
        prop_assert!(aterm::parse(&dir(), &text, &drv.name).is_err());
    }

    #[test]
    fn derived_paths_are_read_back(path in derived_path(), single in single_derived_path()) {
        prop_assert_eq!(DerivedPath::parse(&dir(), &path.print(&dir())), Ok(path.clone()));
        if let Ok(text) = path.print_pre_30(&dir()) {
            prop_assert_eq!(DerivedPath::parse_pre_30(&dir(), &text), Ok(path));
        }
        for separator in [Separator::Wire, Separator::Cli] {
            let text = single.print(&dir(), separator);
            prop_assert_eq!(SingleDerivedPath::parse(&dir(), &text, separator), Ok(single.clone()));
        }
    }

    #[test]
    fn realisations_are_read_back(
        drv_hash: [u8; 32], output in name(), out_path in store_path(), drv in drv_path(),
        signatures in btree_set(signature(), 0..3), dependent in option::of(store_path()),
    ) {
        let id = DrvOutput { drv_hash, output: output.clone() };
        prop_assert_eq!(id.to_string().parse(), Ok(id.clone()));
        let dependent: BTreeMap<_, _> = dependent.into_iter().map(|path| (id.clone(), path)).collect();
        let (out, sigs) = (out_path.clone(), signatures.clone());
        let old = Realisation { dependent, id, out_path: out, signatures: sigs };
        prop_assert_eq!(Realisation::from_json(old.to_json().as_bytes()).expect("realisation"), old);
        let value = UnkeyedRealisation { out_path, signatures };
        let new = BuildTrace { key: BuildTraceKey { drv_path: drv, output }, value };
        prop_assert_eq!(BuildTrace::from_json(new.to_json().as_bytes()).expect("build trace"), new);
    }

    #[test]
    fn narinfos_are_read_back(
        info in path_info(), url in "[!-~]{1,40}", file_hash in option::of(hash()), size in 1..u64::MAX,
    ) {
        let compression = "zstd".parse().expect("compression");
        let narinfo = NarInfo { info, url, compression, file_hash, file_size: Some(size) };
        let text = narinfo.print(&dir());
        prop_assert_eq!(NarInfo::parse(&dir(), text.as_bytes()), Ok(narinfo));
    }

    #[test]
    fn path_infos_survive_storage(info in path_info()) {
        let json = serde_json::to_vec(&info).expect("JSON");
        prop_assert_eq!(&serde_json::from_slice::<PathInfo>(&json).expect("path info"), &info);
        let packed = postcard::to_stdvec(&info).expect("postcard");
        prop_assert_eq!(&postcard::from_bytes::<PathInfo>(&packed).expect("path info"), &info);
    }

    #[test]
    fn signatures_are_of_one_key_and_one_text(mut info in path_info(), seed: [u8; 32], other: [u8; 32]) {
        prop_assume!(seed != other);
        let key = SecretKey::from_seed("k-1", seed).expect("key");
        let stranger = SecretKey::from_seed("k-1", other).expect("key");
        info.signatures.clear();
        info.sign(&dir(), &key).expect("size is known");
        prop_assert_eq!(info.count_valid_signatures(&dir(), &TrustedKeys::from_iter([key.public()])), 1);
        prop_assert_eq!(info.count_valid_signatures(&dir(), &TrustedKeys::from_iter([stranger.public()])), 0);
        info.references.insert("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-new".parse().expect("path"));
        prop_assert_eq!(info.count_valid_signatures(&dir(), &TrustedKeys::from_iter([key.public()])), 0);
    }
}
