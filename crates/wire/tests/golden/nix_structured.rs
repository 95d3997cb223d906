//! Structured attributes and the other files that are made for a build, and malformed attributes.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use expect_test::expect;
use proptest::prelude::*;
use shoal_wire::nix::derivation::{BasicDerivation, DerivationKind};
use shoal_wire::nix::options::{DerivationOptions, OutputChecks, Reference, ineffective_attributes};
use shoal_wire::nix::placeholder::{self, Rewrites};
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::structured::{GraphEntry, StructuredAttrs, pass_as_file_name, references_graph};

/// After Nix's own functional test of structured attributes, with more numbers.
const ATTRS: &str = r#"{"1foobar":"BAD","_ok":"'","big":4294967297,"boolFalse":false,"boolTrue":true,"#;
const MORE: &str = concat!(
    r#""buildInputs":["a","b","c",123,"'","\"",null],"deep":[[1]],"dest":"line\nbreak $HOME","exp":1e30,"#,
    r#""float":123.456,"foo bar":"BAD","foo$":"BAD","hardening":{"format":true,"fortify":false,"it's":"x"},"#,
    r#""int":-123456789,"nothing":null,"outer":{"inner":[1,2,3]},"whole":2.0}"#,
);

fn attrs() -> StructuredAttrs {
    StructuredAttrs::parse(format!("{ATTRS}{MORE}").as_bytes()).expect("object")
}

#[test]
fn shell_declarations() {
    let shell = attrs().to_shell().expect("values");
    let expected = expect![[r#"
        declare _ok=''\'''
        declare big=1
        declare boolFalse=
        declare boolTrue=1
        declare -a buildInputs=('a' 'b' 'c' 123 ''\''' '"' '' )
        declare dest='line
        break $HOME'
        declare exp=-2147483648
        declare -A hardening=(['format']=1 ['fortify']= ['it'\''s']='x' )
        declare int=-123456789
        declare nothing=''
        declare whole=2
    "#]];
    expected.assert_eq(&shell);
}

#[test]
fn json_is_kept_as_it_was_written() {
    assert_eq!(attrs().to_json(), format!("{ATTRS}{MORE}"));
}

#[test]
fn outputs_and_graphs_are_inserted_in_their_places() {
    let entry = GraphEntry {
        ca: None,
        closure_size: 288,
        nar_hash: "sha256:1r7yc43zqnzl5b0als5vnyp649gk17i37s7mj00xr8kc47rjcybk".to_owned(),
        nar_size: 288,
        path: "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-dep".to_owned(),
        references: BTreeSet::new(),
        valid: true,
    };
    let outputs = BTreeMap::from(["out", "dev"].map(|name| (name.to_owned(), format!("/{name}"))));
    let attrs = StructuredAttrs::parse(br#"{"a":1,"exportReferencesGraph":{"refs":["x"]},"z":1.50}"#).expect("object");
    let graphs = BTreeMap::from([("refs".to_owned(), vec![entry])]);
    let prepared = attrs.prepare(&outputs, &graphs).expect("prepared");
    let json = concat!(
        r#"{"a":1,"exportReferencesGraph":{"refs":["x"]},"outputs":{"dev":"/dev","out":"/out"},"#,
        r#""refs":[{"closureSize":288,"narHash":"sha256:1r7yc43zqnzl5b0als5vnyp649gk17i37s7mj00xr8kc47rjcybk","#,
        r#""narSize":288,"path":"/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-dep","references":[],"valid":true}],"#,
        r#""z":1.50}"#,
    );
    assert_eq!(prepared.to_json(), json);
    let shell = "declare a=1\ndeclare -A outputs=(['dev']='/dev' ['out']='/out' )\n";
    assert_eq!(prepared.to_shell().expect("values"), shell);
}

#[test]
fn attributes_that_are_no_object_are_refused() {
    for bad in ["", "[]", "1", "{", "{}x", "{\"a\":}", "null", "\u{0}"] {
        let error = StructuredAttrs::parse(bad.as_bytes()).expect_err(bad).to_string();
        assert!(error.starts_with("cannot process __json attribute: "), "{error}");
    }
    assert!(StructuredAttrs::parse(b"{\"a\":\"\xff\"}").is_err());
    // Deep nesting is an error, not a stack overflow.
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(StructuredAttrs::parse(deep.as_bytes()).and_then(|attrs| attrs.to_shell()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn bash_reads_back_every_string(value in "[^\0]{0,60}", key in "[^\0]{1,20}") {
        let json = serde_json::json!({ "v": value, "l": [value, ""], "m": { &key: value } });
        let attrs = StructuredAttrs::parse(json.to_string().as_bytes()).expect("object");
        let script = format!(
            "{}\nprintf '%s\\0' \"$v\" \"${{#l[@]}}\" \"${{l[0]}}\" \"${{!m[@]}}\" \"${{m[@]}}\"",
            attrs.to_shell().expect("values"),
        );
        let Ok(bash) = Command::new("bash").args(["-c", &script]).env("LC_ALL", "C").output() else {
            println!("skipped: bash_reads_back_every_string: no bash");
            return Ok(());
        };
        let expected = [&value, "2", &value, &key, &value].map(|item| format!("{item}\0")).concat();
        prop_assert_eq!(String::from_utf8_lossy(&bash.stdout), expected);
    }
}

#[test]
fn files_of_unstructured_attributes() {
    assert_eq!(pass_as_file_name("bigText"), ".attr-1df9jhyajhb0gqqsh06ln0s7kwdiigwm70jiggd8g8kchq8ygd32");
    let references = BTreeSet::from(["/nix/store/b".to_owned(), "/nix/store/a".to_owned()]);
    let graph = references_graph([("/nix/store/a", &BTreeSet::new()), ("/nix/store/b", &references)]);
    assert_eq!(graph, "/nix/store/a\n\n0\n/nix/store/b\n\n2\n/nix/store/a\n/nix/store/b\n");
}

fn with_env(env: &[(&str, &str)]) -> BasicDerivation {
    BasicDerivation {
        name: "x".to_owned(),
        outputs: BTreeMap::new(),
        input_srcs: BTreeSet::new(),
        system: "x86_64-linux".to_owned(),
        builder: b"/bin/sh".to_vec(),
        args: Vec::new(),
        env: env.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect(),
    }
}

fn options(env: &[(&str, &str)]) -> Result<DerivationOptions, String> {
    DerivationOptions::of_basic(&StoreDir::default(), &with_env(env)).map_err(|error| error.to_string())
}

#[test]
fn malformed_attributes() {
    let errors = [
        (("exportReferencesGraph", "a"), "odd number of tokens in 'exportReferencesGraph': 'a'"),
        (("exportReferencesGraph", "1a /nix/store/x"), "invalid file name '1a' in 'exportReferencesGraph'"),
        (("exportReferencesGraph", "a /tmp"), "path '/tmp' is not in the Nix store"),
        (("__json", r#"{"allowSubstitutes":1}"#), r#"while parsing attribute "allowSubstitutes": expected a boolean"#),
        (
            ("__json", r#"{"requiredSystemFeatures":"kvm"}"#),
            r#"while parsing attribute "requiredSystemFeatures": expected an array of strings"#,
        ),
        (
            ("__json", r#"{"outputChecks":{"out":{"maxSize":-1}}}"#),
            r#"while parsing attribute "outputChecks.out.maxSize": expected an unsigned integer"#,
        ),
        (
            ("__json", "[]"),
            "cannot process __json attribute: invalid type: sequence, expected a map at line 1 column 0",
        ),
    ];
    for (attribute, expected) in errors {
        assert_eq!(options(&[attribute]).expect_err(expected), expected);
    }
}

#[test]
fn references_in_checks() {
    let store_path = "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo";
    let names = format!(" out\t{store_path}\n{store_path}/bin ");
    let OutputChecks::All(check) = options(&[("allowedReferences", &names)]).expect("options").output_checks else {
        panic!("unstructured checks are for all outputs");
    };
    let below = Reference::Output(format!("{store_path}/bin"));
    let path = StoreDir::default().parse(store_path).expect("path");
    let expected = BTreeSet::from([Reference::Output("out".to_owned()), Reference::Input(path), below]);
    assert_eq!(check.allowed_references, Some(expected));
    assert_eq!(check.allowed_requisites, None);
    assert!(check.ignore_self_refs);
}

#[test]
fn structured_attributes_make_others_ineffective() {
    let structured = with_env(&[("__json", r#"{"passAsFile":["a"],"allowedReferences":[]}"#)]);
    let ignored = ineffective_attributes(&structured.env).expect("attributes");
    assert_eq!(ignored, ["allowedReferences", "passAsFile"]);
    assert!(ineffective_attributes(&with_env(&[("passAsFile", "a")]).env).expect("attributes").is_empty());
    let options = options(&[("passAsFile", "a b"), ("__json", r#"{"unsafeDiscardReferences":{"out":true}}"#)]);
    let options = options.expect("options");
    assert!(options.pass_as_file.is_empty());
    assert_eq!(options.unsafe_discard_references, BTreeMap::from([("out".to_owned(), true)]));
}

#[test]
fn unknown_paths_need_a_feature() {
    let options = options(&[("requiredSystemFeatures", "kvm")]).expect("options");
    let needed = |kind| options.needed_features(kind).into_iter().collect::<Vec<_>>();
    assert_eq!(needed(DerivationKind::InputAddressed), ["kvm"]);
    assert_eq!(needed(DerivationKind::Fixed), ["kvm"]);
    assert_eq!(needed(DerivationKind::Floating), ["ca-derivations", "kvm"]);
}

#[test]
fn placeholders_are_replaced_wherever_they_stand() {
    let out = placeholder::own("out");
    let mut rewrites = Rewrites::default();
    rewrites.insert(&out, "/nix/store/x");
    let text = format!("/{out}{out}/bin:/tmp {}", &out[..52]);
    let expected = format!("//nix/store/x/nix/store/x/bin:/tmp {}", &out[..52]);
    assert_eq!(rewrites.apply(text.as_bytes()), expected.as_bytes());
}
