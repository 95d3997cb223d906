//! Vectors that were confirmed with real Nix.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shoal_wire::nix::content_address::{CaMethod, ContentAddress};
use shoal_wire::nix::derivation::{BasicDerivation, Derivation, DerivedOutputs, Output};
use shoal_wire::nix::derived_path::{Separator, SingleDerivedPath};
use shoal_wire::nix::hash::{Hash, HashAlgo, sha256};
use shoal_wire::nix::hash_modulo::HashModulo;
use shoal_wire::nix::invariants::{check_added, check_outputs};
use shoal_wire::nix::make_path::CaReferences;
use shoal_wire::nix::narinfo::NarInfo;
use shoal_wire::nix::resolve::resolve;
use shoal_wire::nix::signature::{PublicKey, SecretKey, TrustedKeys};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::{aterm, base32, base64, placeholder};

fn dir() -> StoreDir {
    StoreDir::default()
}

fn path(full: &str) -> StorePath {
    dir().parse(full).expect("store path")
}

fn hex(digits: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    base64::decode_hex_into(digits.as_bytes(), &mut bytes).expect("base 16");
    bytes
}

#[test]
fn nix32_of_known_hashes() {
    assert_eq!(base32::encode(&sha256(b"")), "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
    let hello = Hash::of(HashAlgo::Sha256, b"hello\n");
    assert_eq!(hello.to_base16(), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
    assert_eq!(hello.to_nix32(), "00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq");
    assert_eq!(Hash::of(HashAlgo::Sha1, b"hello\n").to_base16(), "f572d396fae9206628714fb2ce00f72e94f2258f");
    assert_eq!(Hash::of(HashAlgo::Md5, b"hello\n").to_base16(), "b1946ac92492d2347c6235b4d2611184");
    let lengths = HashAlgo::ALL.map(|algo| Hash::of(algo, b"").to_nix32().len());
    assert_eq!(lengths, [26, 32, 52, 103]);
}

#[test]
fn one_file_has_another_path_under_every_method() {
    let nar = hex("1c37d01af40be2e80691de3cc3df44377a699afbb17c68f080964b2fd071fc13");
    let ca = |method, hash| ContentAddress { method, hash };
    let sha1 = |digits| Hash::parse(digits, HashAlgo::Sha1).expect("sha1");
    let hello = sha256(b"hello\n");
    let cases = [
        (ca(CaMethod::Text, Hash::sha256(hello)), "qa1w9gdfrba6jl2r57mb3c43863gqywp-hello.txt"),
        (ca(CaMethod::Nar, Hash::sha256(nar)), "i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt"),
        (ca(CaMethod::Flat, Hash::sha256(hello)), "gy454w1cxaq731grqwylhzf4pp9r5izh-hello.txt"),
        (
            ca(CaMethod::Flat, sha1("f572d396fae9206628714fb2ce00f72e94f2258f")),
            "svdva85yi507g9vncgsaxvnd1r808h4w-hello.txt",
        ),
        (
            ca(CaMethod::Nar, sha1("0deb52c2735eb38d360f976b7b3823c4ad05cce7")),
            "hzq8n5jpi3g2d0xhlvqd8q1gx5c9s6i3-hello.txt",
        ),
    ];
    for (ca, expected) in cases {
        let made = dir().make_ca_path(&ca, &CaReferences::none(), "hello.txt").expect("path");
        assert_eq!(made.base_name(), expected, "{ca}");
    }
}

#[test]
fn self_reference_is_part_of_the_type() {
    let references = CaReferences { others: BTreeSet::new(), itself: true };
    let cases = [
        ("0a5izsw3pcnb9gc46hiz6skaf5m98ad10ywz8725b8nmws32yw79", "16x5nv11xasiih5zrz5jynzqzh2rsqap-catop"),
        ("0i06m1088fqkwig07bc734a4jyxi713vbnv376xjxa53k49gp86n", "57spsn4j2ibd6k036akg5ipq99rvw9rx-catop"),
    ];
    for (hash, expected) in cases {
        let ca: ContentAddress = format!("fixed:r:sha256:{hash}").parse().expect("content address");
        let made = dir().make_ca_path(&ca, &references, "catop").expect("path");
        assert_eq!(made.base_name(), expected);
    }
}

#[test]
fn placeholders() {
    assert_eq!(placeholder::own("out"), "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9");
    assert_eq!(placeholder::own("dev"), "/02qcpld1y6xhs5gz9bchpxaw0xdhmsp5dv88lh25r2ss44kh8dxz");
    let drv = path("/nix/store/75ab7clqiky0wln3gqsdj9r59dgi0d9m-casimple.drv");
    let upstream = |output| placeholder::upstream(&drv, output);
    assert_eq!(upstream("out"), "/10md8vs01x8ahdfghk3ry8r7k1fbhqmxhf3bx2mlz5vfmkwbzmwy");
    assert_eq!(upstream("dev"), "/0d9j3mqvdvhd505yag3adv61vsc5glbs4qxc80ycmakpfjmyp1c3");
    let derived = |text: &str| {
        let path = SingleDerivedPath::parse(&dir(), text, Separator::Wire).expect("path");
        placeholder::derived(&path)
    };
    let foo = "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo";
    let known = derived(&format!("{foo}.drv!out"));
    assert_eq!(known.as_deref(), Some("/0c6rn30q4frawknapgwq386zq358m8r6msvywcvc89n6m5p2dgbz"));
    let dynamic = derived(&format!("{foo}.drv.drv!out!out"));
    assert_eq!(dynamic.as_deref(), Some("/0gn6agqxjyyalf0dpihgyf49xq5hqxgw100f0wydnj6yqrhqsb3w"));
    assert_eq!(derived(foo), None);
}

const SIMPLE: &str = "i5xvchlm36jash0k9ndh3vya563ls965-simple";
const FOD: &str = "rcz8aqa9lzcygdcn1q53xz03vc3svrcp-fod";
const TOP: &str = "7q62vlpsnjxg7pnsfww1jm6r4vqgbsgp-top";
const TEXT: &str = "qa1w9gdfrba6jl2r57mb3c43863gqywp-hello.txt";

fn derivation(name: &str, out: Output, args: [&str; 2], env: &[(&str, &str)]) -> Derivation {
    let bytes = |text: &str| text.as_bytes().to_vec();
    let mut drv = BasicDerivation {
        name: name.to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), out)]),
        input_srcs: BTreeSet::new(),
        system: "x86_64-linux".to_owned(),
        builder: bytes("/bin/sh"),
        args: args.map(bytes).to_vec(),
        env: env.iter().map(|(key, value)| (bytes(key), bytes(value))).collect(),
    };
    let common = [("builder", "/bin/sh"), ("name", name), ("system", "x86_64-linux")];
    drv.env.extend(common.map(|(key, value)| (bytes(key), bytes(value))));
    drv.into_derivation()
}

fn simple() -> Derivation {
    let out = Output::InputAddressed(SIMPLE.parse().expect("path"));
    derivation("simple", out, ["-c", "echo hi > $out"], &[("out", &format!("/nix/store/{SIMPLE}"))])
}

fn fod() -> Derivation {
    let hash = Hash::of(HashAlgo::Sha256, b"hello\n");
    let env = [
        ("out", &*format!("/nix/store/{FOD}")),
        ("outputHash", &hash.to_base16()),
        ("outputHashAlgo", "sha256"),
        ("outputHashMode", "flat"),
    ];
    let out = Output::Fixed { ca: ContentAddress { method: CaMethod::Flat, hash } };
    derivation("fod", out, ["-c", "echo hello > $out"], &env)
}

fn top() -> Derivation {
    let env = [
        ("out", &*format!("/nix/store/{TOP}")),
        ("dep", &format!("/nix/store/{SIMPLE}")),
        ("fod", &format!("/nix/store/{FOD}")),
        ("src", &format!("/nix/store/{TEXT}")),
    ];
    let out = Output::InputAddressed(TOP.parse().expect("path"));
    let mut drv = derivation("top", out, ["-c", "cat $dep $fod $src > $out"], &env);
    drv.input_srcs.insert(TEXT.parse().expect("path"));
    for input in [simple(), fod()] {
        let path = input.drv_path(&dir()).expect("drv path");
        drv.input_drvs.insert(path, DerivedOutputs::of(["out"]));
    }
    drv
}

fn cadep() -> Derivation {
    let env = [("out", &*placeholder::own("out")), ("outputHashAlgo", "sha256"), ("outputHashMode", "recursive")];
    let out = Output::Floating { method: CaMethod::Nar, algo: HashAlgo::Sha256 };
    derivation("cadep", out, ["-c", "echo cd > $out"], &env)
}

fn lookup(path: &StorePath) -> Result<Arc<Derivation>, String> {
    let known = [simple(), fod(), top(), cadep()];
    let found = known.into_iter().find(|drv| drv.drv_path(&dir()).as_ref() == Ok(path));
    found.map(Arc::new).ok_or_else(|| format!("no {path}"))
}

#[test]
fn derivations_have_the_paths_and_hashes_that_nix_gives_them() {
    let mut modulo = HashModulo::new(dir());
    let cases = [
        (simple(), "cxl3gdvrylxaanfsn3n3a8lhnh2jfrc5-simple.drv"),
        (fod(), "3mk786rjnkjac12azzzj3fdjg40gm7nb-fod.drv"),
        (top(), "nzxlwmsm6apzzmvngy45gg9lgamkxzz8-top.drv"),
        (cadep(), "xsyh5jrasn0za9mn2v6rr8pp1czkb678-cadep.drv"),
    ];
    for (drv, expected) in cases {
        let path = drv.drv_path(&dir()).expect("path");
        assert_eq!(path.base_name(), expected);
        let text = aterm::print(&dir(), &drv);
        let parsed = check_added(&mut modulo, &path, &text, &drv.references(), &mut lookup).expect("valid");
        assert_eq!(parsed, drv);
    }
    let own = |modulo: &mut HashModulo, drv| modulo.own_hash(&drv, &mut lookup).expect("hash").expect("known");
    let simple_hash = hex("595072af4f49a7e6e3c199450fd82e69e589fd048130ced35ea820a92858d271");
    assert_eq!(own(&mut modulo, simple()), simple_hash);
    let top_hash = hex("a7cabe4941ff3934351fbe5f5b98752a08aca8aaa68a72b9f625a100e4f5b803");
    assert_eq!(own(&mut modulo, top()), top_hash);
    let input = |modulo: &mut HashModulo, drv: Derivation| {
        let path = drv.drv_path(&dir()).expect("path");
        modulo.input_hash(&path, &mut lookup).expect("hash")
    };
    let simple_input = input(&mut modulo, simple());
    assert_eq!(simple_input.hash, hex("808797a7494f84efd608ff97f9c3eab7a591a6b9adcf4a48ac02b349d1a46670"));
    assert!(!simple_input.fixed && !simple_input.deferred);
    let fod_input = input(&mut modulo, fod());
    assert_eq!(fod_input.hash, hex("ec3379b85eb3c32824b1aee3fb9c7ce6247153d2332d23e70327ef21f3882cd4"));
    assert!(fod_input.fixed);
    let ca_input = input(&mut modulo, cadep());
    assert_eq!(ca_input.hash, hex("99fe85e58298dca5e599a64055947339aebc8c2a4998a1aebaf815adc77c57e7"));
    assert!(ca_input.deferred);
}

#[test]
fn masked_text_of_top() {
    let text = HashModulo::new(dir()).masked_text(&top(), &mut lookup).expect("inputs").expect("known");
    let expected = concat!(
        r#"Derive([("out","","","")],[("808797a7494f84efd608ff97f9c3eab7a591a6b9adcf4a48ac02b349d1a46670",["out"]),"#,
        r#"("ec3379b85eb3c32824b1aee3fb9c7ce6247153d2332d23e70327ef21f3882cd4",["out"])],"#,
        r#"["/nix/store/qa1w9gdfrba6jl2r57mb3c43863gqywp-hello.txt"],"x86_64-linux","/bin/sh","#,
        r#"["-c","cat $dep $fod $src > $out"],[("builder","/bin/sh"),"#,
        r#"("dep","/nix/store/i5xvchlm36jash0k9ndh3vya563ls965-simple"),"#,
        r#"("fod","/nix/store/rcz8aqa9lzcygdcn1q53xz03vc3svrcp-fod"),("name","top"),("out",""),"#,
        r#"("src","/nix/store/qa1w9gdfrba6jl2r57mb3c43863gqywp-hello.txt"),("system","x86_64-linux")])"#,
    );
    assert_eq!(String::from_utf8(text).expect("text"), expected);
}

#[test]
fn old_realisation_ids() {
    let mut modulo = HashModulo::new(dir());
    let id = hex("ad3d62e64b41a4a1d7e575f7463fceb81c12b4099b8bb5d8b08c7826d64b6c3b");
    assert_eq!(modulo.output_ids(&cadep(), &mut lookup).expect("ids"), BTreeMap::from([("out".into(), id)]));
    assert_eq!(modulo.output_ids_basic(&cadep().to_basic()).expect("ids")["out"], id);
    let simple_id = modulo.output_ids(&simple(), &mut lookup).expect("ids")["out"];
    assert_eq!(simple_id, hex("595072af4f49a7e6e3c199450fd82e69e589fd048130ced35ea820a92858d271"));
    let fod_id = modulo.output_ids(&fod(), &mut lookup).expect("ids")["out"];
    assert_eq!(fod_id, hex("ec3379b85eb3c32824b1aee3fb9c7ce6247153d2332d23e70327ef21f3882cd4"));
}

#[test]
fn dependants_of_floating_outputs_are_deferred_until_resolved() {
    let cadep_drv = cadep().drv_path(&dir()).expect("path");
    let stand_in = placeholder::upstream(&cadep_drv, "out");
    let mut user = derivation("user", Output::Deferred, ["-c", "cat $dep > $out"], &[("out", ""), ("dep", &stand_in)]);
    user.input_drvs.insert(cadep_drv, DerivedOutputs::of(["out"]));
    let mut modulo = HashModulo::new(dir());
    assert_eq!(modulo.own_hash(&user, &mut lookup).expect("hash"), None);
    assert!(check_outputs(&mut modulo, &user, &mut lookup).expect("deferred is right").is_empty());
    let built = path("/nix/store/bhzpfrj7sfvkcbr3v3rfn4g0pjy8hv9i-cadep");
    let resolved = resolve(&dir(), &user, &mut |_| Some(built.clone())).expect("resolves");
    assert_eq!(resolved.env[b"dep".as_slice()], dir().print(&built).into_bytes());
    assert_eq!(resolved.input_srcs, BTreeSet::from([built]));
    let out = resolved.output_path(&dir(), "out").expect("no longer deferred");
    assert_eq!(resolved.env[b"out".as_slice()], dir().print(&out).into_bytes());
    assert!(check_outputs(&mut modulo, &resolved.into_derivation(), &mut lookup).expect("valid").is_empty());
}

const NARINFO: &str = "\
StorePath: /nix/store/dd2s755w68andyyr5makbwzidf6whr5d-ht
URL: nar/07k7zp3ndc4q51sx71nv1pk9rnfss7m53aqc6n2wpaigr575l9fa.nar.zst
Compression: zstd
FileHash: sha256:07k7zp3ndc4q51sx71nv1pk9rnfss7m53aqc6n2wpaigr575l9fa
FileSize: 164
NarHash: sha256:053k1rpayya5izjglj5s6p9pninafsa0v88znjq0pmzf192md7af
NarSize: 208
References: dd2s755w68andyyr5makbwzidf6whr5d-ht p739rmdv0wi5lbnnwrw9kfmw0r3mxr64-hd
Deriver: rjyiv4awyr89c4jhbbmcmvinzxjrn41k-ht.drv
Sig: t-1:rvrzq/wDb+XZLCwq2Psz49730auSwV2yTjeXdNjws5r6OFQP8jW+4qTFkI6il63mDkL2WxHZusyDgwejnEjbAg==
";

#[test]
fn narinfo_written_and_signed_by_nix() {
    let parsed = NarInfo::parse(&dir(), NARINFO.as_bytes()).expect("narinfo");
    assert_eq!(parsed.print(&dir()), NARINFO);
    let fingerprint = concat!(
        "1;/nix/store/dd2s755w68andyyr5makbwzidf6whr5d-ht;",
        "sha256:053k1rpayya5izjglj5s6p9pninafsa0v88znjq0pmzf192md7af;208;",
        "/nix/store/dd2s755w68andyyr5makbwzidf6whr5d-ht,/nix/store/p739rmdv0wi5lbnnwrw9kfmw0r3mxr64-hd",
    );
    assert_eq!(parsed.info.fingerprint(&dir()).expect("size is known"), fingerprint);
    let key: PublicKey = "t-1:95Vql72n/zvAPKBrSq+B6gDJROmekp+SAAxqEsX0ZsQ=".parse().expect("key");
    let trusted = TrustedKeys::from_iter([key]);
    assert_eq!(parsed.info.count_valid_signatures(&dir(), &trusted), 1);
    let mut changed = parsed.info.clone();
    changed.nar_size += 1;
    assert_eq!(changed.count_valid_signatures(&dir(), &trusted), 0);
}

#[test]
fn narinfo_that_nix_refuses_is_refused() {
    let parse = |text: &str| NarInfo::parse(&dir(), text.as_bytes()).map_err(|error| error.to_string());
    let replace = |from: &str, to: &str| parse(&NARINFO.replace(from, to));
    let drop_line = |name: &str| {
        let lines = NARINFO.split_inclusive('\n').filter(|line| !line.starts_with(name));
        parse(&lines.collect::<String>())
    };
    let errors = [
        (parse(NARINFO.trim_end()), "NAR info is corrupt: expecting '\\n' at line 10"),
        (replace("URL: ", "URL "), "NAR info is corrupt: expecting ':' at line 2"),
        (drop_line("StorePath"), "NAR info is corrupt: StorePath missing"),
        (drop_line("NarHash"), "NAR info is corrupt: NarHash missing"),
        (drop_line("URL"), "NAR info is corrupt: URL missing"),
        (drop_line("NarSize"), "NAR info is corrupt: NarSize missing or zero"),
        (replace("NarSize: 208", "NarSize: 0"), "NAR info is corrupt: NarSize missing or zero"),
        (replace("NarSize: 208", "NarSize: +208"), "NAR info is corrupt: invalid NarSize at line 7"),
        (replace("FileSize: 164", "FileSize: 1 "), "NAR info is corrupt: invalid FileSize at line 5"),
        (replace("Compression: zstd", "Compression: rot13"), "NAR info is corrupt: invalid Compression at line 3"),
        (replace("NarHash: sha256:0", "NarHash: sha256:"), "NAR info is corrupt: bad hash at line 6"),
        (replace("FileSize: 164", "References: x"), "NAR info is corrupt: 'x' is too short"),
        (parse(&format!("{NARINFO}References: {SIMPLE}\n")), "NAR info is corrupt: extra References at line 11"),
        (
            parse(&format!("{NARINFO}CA: text:sha256:{0}\nCA: text:sha256:{0}\n", "0".repeat(52))),
            "NAR info is corrupt: extra CA at line 12",
        ),
    ];
    for (result, expected) in errors {
        let error = result.expect_err(expected);
        assert!(error.starts_with(expected), "{error} is not {expected}");
    }
}

#[test]
fn narinfo_that_nix_takes_is_taken() {
    let parse = |text: String| NarInfo::parse(&dir(), text.as_bytes()).expect("narinfo");
    let plain = parse(NARINFO.to_owned());
    let mut lines: Vec<&str> = NARINFO.split_inclusive('\n').collect();
    lines.reverse();
    assert_eq!(parse(lines.concat()), plain, "order is free");
    assert_eq!(parse(format!("{NARINFO}Unknown: thing\n")), plain, "unknown names are skipped");
    let hash = "053k1rpayya5izjglj5s6p9pninafsa0v88znjq0pmzf192md7af";
    let sri = Hash::parse(hash, HashAlgo::Sha256).expect("hash").to_sri();
    assert_eq!(parse(NARINFO.replace(&format!("sha256:{hash}"), &sri)), plain, "SRI hashes are read");
    let bare = parse(NARINFO.replace("Compression: zstd\n", "").replace("FileSize: 164\n", ""));
    assert_eq!(bare.compression.name(), "bzip2");
    assert_eq!(bare.file_size, None);
    let unknown = parse(NARINFO.replace("rjyiv4awyr89c4jhbbmcmvinzxjrn41k-ht.drv", "unknown-deriver"));
    assert_eq!(unknown.info.deriver, None);
    let references =
        format!("References: {} p739rmdv0wi5lbnnwrw9kfmw0r3mxr64-hd", "dd2s755w68andyyr5makbwzidf6whr5d-ht");
    let none = parse(NARINFO.replace(&references, "References: "));
    assert!(none.info.references.is_empty());
}

#[test]
fn keys_are_written_as_they_were_read() {
    let key = SecretKey::generate("builder-1").expect("key");
    let text = key.to_secret_text();
    let again: SecretKey = format!("{text}\n").parse().expect("key file");
    assert_eq!(again.to_secret_text(), text);
    assert_eq!(again.public(), key.public());
    let signature = key.sign(b"data");
    assert!(key.public().verify(b"data", &signature));
    assert!(!key.public().verify(b"dada", &signature));
    let renamed: PublicKey = key.public().to_string().replace("builder-1", "builder-2").parse().expect("key");
    assert!(!renamed.verify(b"data", &signature), "the key's name counts");
    assert!(!format!("{key:?}").contains(&text[12..20]), "the secret is not shown");
}

#[test]
fn broken_keys_are_refused() {
    let text = SecretKey::from_seed("k", [7; 32]).expect("key").to_secret_text();
    let other = SecretKey::from_seed("k", [8; 32]).expect("key").to_secret_text();
    // The seed of one and the public half of the other.
    let mixed = format!("{}{}", &text[..2 + 40], &other[2 + 40..]);
    for bad in [&mixed, "k", ":abc", "k:", "k:AAAA", &text[..text.len() - 4], "k k:AAAA"] {
        assert!(bad.parse::<SecretKey>().is_err(), "{bad}");
        assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
    }
}
