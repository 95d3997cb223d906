//! What comes into the store, and what does not.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use shoal_node::door::Role;
use shoal_wire::nix::content_address::{CaMethod, CaMethodAlgo, ContentAddress};
use shoal_wire::nix::derivation::Output;
use shoal_wire::nix::hash::{HashAlgo, sha256};
use shoal_wire::nix::make_path::CaReferences;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::proto::{Dialect, FramedReader, FramedWriter};
use shoal_wire::nix::references::HashModulo;
use shoal_wire::nix::signature::SecretKey;
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::worker::CallError;
use shoal_wire::nix::worker::ops::{
    AddMultipleToStore, AddTempRoot, AddToStore, AddToStoreNar, IsValidPath, QueryPathInfo, QueryValidPaths,
};
use shoal_wire::nix::worker::upload::UploadWriter;

use super::lab::{Lab, WorkerClient, addressed, derivation, file_nar, path, refusal, silent, text_file, unsigned};

fn add(client: &mut WorkerClient, info: &PathInfo, nar: &[u8]) -> Result<(), CallError> {
    let request = AddToStoreNar { info: info.clone(), repair: false, dont_check_sigs: true };
    client.call_with_upload(&request, |frames| frames.write_all(nar), silent)
}

fn add_all(client: &mut WorkerClient, entries: &[(PathInfo, Vec<u8>)]) -> Result<(), CallError> {
    let request = AddMultipleToStore { repair: false, dont_check_sigs: true };
    let payload = payload(client.dialect().clone(), entries);
    client.call_with_upload(&request, |frames| frames.write_all(&payload), silent)
}

/// Count, infos and NARs, without the frames around them.
fn payload(dialect: Dialect, entries: &[(PathInfo, Vec<u8>)]) -> Vec<u8> {
    let mut framed = Vec::new();
    let mut upload = UploadWriter::new(FramedWriter::new(&mut framed), dialect, entries.len() as u64).unwrap();
    for (info, nar) in entries {
        upload.entry(info).unwrap().write_all(nar).unwrap();
    }
    upload.finish().unwrap();
    let mut payload = Vec::new();
    FramedReader::new(&framed[..]).read_to_end(&mut payload).unwrap();
    payload
}

fn is_valid(client: &mut WorkerClient, info: &PathInfo) -> bool {
    client.call(&IsValidPath { path: info.path.clone() }, silent).unwrap()
}

fn sign(info: &mut PathInfo, key: &SecretKey) {
    info.sign(&StoreDir::default(), key).unwrap();
}

#[test]
fn an_untrusted_client_needs_a_signature_by_a_trusted_key() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Build);
    let (mut info, nar) = unsigned("claimed", b"whatever");
    let lacks = "because it lacks a signature by a trusted key";
    assert!(refusal(add(&mut client, &info, &nar)).contains(lacks));
    assert!(refusal(add_all(&mut client, &[(info.clone(), nar.clone())])).contains(lacks));

    sign(&mut info, &SecretKey::from_seed("stranger-1", [1; 32]).unwrap());
    assert!(refusal(add(&mut client, &info, &nar)).contains(lacks));
    sign(&mut info, &SecretKey::from_seed("lab-1", [2; 32]).unwrap());
    assert!(refusal(add(&mut client, &info, &nar)).contains(lacks));
    assert!(!is_valid(&mut client, &info));

    sign(&mut info, &lab.key);
    add(&mut client, &info, &nar).unwrap();
    let known = client.call(&QueryPathInfo { path: info.path.clone() }, silent).unwrap().unwrap();
    assert_eq!((known.signatures, known.ultimate), (info.signatures, false));
}

#[test]
fn a_trusted_client_may_skip_the_check_and_nobody_else() {
    let lab = Lab::new();
    let (info, nar) = unsigned("mine", b"mine");
    add(&mut lab.client(Role::Admin), &info, &nar).unwrap();
    let names = |info: &PathInfo| -> Vec<String> {
        let known = lab.store.path_info(&info.path).unwrap().unwrap();
        assert_eq!(known.count_valid_signatures(&StoreDir::default(), &lab.trusted), known.signatures.len());
        known.signatures.iter().map(|signature| signature.key_name().to_owned()).collect()
    };
    // The node answers for it now; it does not add its name to what others answer for.
    assert_eq!(names(&info), ["node-1"]);
    let (mut info, nar) = unsigned("signed", b"signed");
    sign(&mut info, &lab.key);
    add(&mut lab.client(Role::Admin), &info, &nar).unwrap();
    assert_eq!(names(&info), ["lab-1"]);

    let (info, nar) = unsigned("careful", b"careful");
    let request = AddToStoreNar { info, repair: false, dont_check_sigs: false };
    let result = lab.client(Role::Admin).call_with_upload(&request, |frames| frames.write_all(&nar), silent);
    assert!(refusal(result).contains("lacks a signature"));
}

#[test]
fn a_content_addressed_path_is_its_own_proof() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Push);
    let (info, nar) = addressed("ca", b"contents");
    add(&mut client, &info, &nar).unwrap();
    assert!(is_valid(&mut client, &info));

    let (liar, nar) = unsigned("liar", b"other");
    let liar = PathInfo { ca: info.ca, ..liar };
    assert!(refusal(add(&mut client, &liar, &nar)).contains("claims to be content-addressed but isn't"));

    // Right path for the address, wrong contents for both.
    let (mut swapped, _) = addressed("swapped", b"promised");
    let nar = file_nar(b"delivered");
    (swapped.nar_hash, swapped.nar_size) = (sha256(&nar), nar.len() as u64);
    assert!(refusal(add(&mut client, &swapped, &nar)).contains("ca hash mismatch importing path"));
    assert!(!is_valid(&mut client, &swapped));
}

#[test]
fn flat_and_executable_files_are_told_apart() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Push);
    let contents = b"#!/bin/sh\n";
    let ca = ContentAddress { method: CaMethod::Flat, hash: shoal_wire::nix::hash::Hash::of(HashAlgo::Sha1, contents) };
    let at = StoreDir::default().make_fixed_path(&ca, "script").unwrap();
    let info = |nar: &[u8]| PathInfo { ca: Some(ca), ..PathInfo::new(at.clone(), sha256(nar), nar.len() as u64) };
    let mut executable = Vec::new();
    let mut writer = NarWriter::new(&mut executable);
    writer.regular(b"", true, contents.len() as u64).unwrap();
    writer.contents(contents).unwrap();
    writer.finish().unwrap();
    assert!(refusal(add(&mut client, &info(&executable), &executable)).contains("ca hash mismatch"));
    let plain = file_nar(contents);
    add(&mut client, &info(&plain), &plain).unwrap();
}

/// Releases of Nix hash a NAR that refers to itself in two ways; both must come in.
#[test]
fn self_references_of_both_eras_are_accepted() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Push);
    let dir = StoreDir::default();
    for era in 0..2 {
        // Its own hash part is not known before the hash, which is taken with NULs in its place.
        let blank = file_nar(&[&[0; 32][..], b" is me"].concat());
        let mut hash = HashModulo::new(HashAlgo::Sha256, [0; 32]);
        hash.update(&blank);
        let hashes = hash.finish().unwrap();
        let hash = if era == 0 { hashes.with_offsets } else { hashes.without_offsets };
        let ca = ContentAddress { method: CaMethod::Nar, hash };
        let itself = CaReferences { others: BTreeSet::new(), itself: true };
        let at = dir.make_ca_path(&ca, &itself, &format!("self-{era}")).unwrap();
        let nar = file_nar(&[at.hash_part().as_bytes(), b" is me"].concat());
        let mut info = PathInfo::new(at.clone(), sha256(&nar), nar.len() as u64);
        (info.ca, info.references) = (Some(ca), BTreeSet::from([at]));
        add(&mut client, &info, &nar).unwrap();
        assert!(is_valid(&mut client, &info));
    }
}

#[test]
fn contents_that_differ_from_their_description_stay_out_and_the_connection_lives() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Admin);
    let (info, nar) = unsigned("x", b"contents of x");
    let cases: [(&str, PathInfo, Vec<u8>); 5] = [
        ("hash mismatch importing path", PathInfo { nar_hash: [1; 32], ..info.clone() }, nar.clone()),
        ("size mismatch importing path", PathInfo { nar_size: 1, ..info.clone() }, nar.clone()),
        ("before it is complete", info.clone(), nar[..nar.len() - 8].to_vec()),
        ("follow the end of the NAR", info.clone(), [&nar[..], b"12345678"].concat()),
        ("not a NAR", info.clone(), b"rubbish, and lots of it".repeat(100_000)),
    ];
    for (expected, info, nar) in cases {
        let text = refusal(add(&mut client, &info, &nar));
        assert!(text.contains(expected), "{text}");
        assert!(!is_valid(&mut client, &info));
    }
    let dangling = PathInfo { references: BTreeSet::from([path("nowhere")]), ..info.clone() };
    let text = refusal(add(&mut client, &dangling, &nar));
    assert!(text.contains("refers to") && text.contains("nowhere"), "{text}");
    add(&mut client, &info, &nar).unwrap();
    assert!(is_valid(&mut client, &info));
}

#[test]
fn a_path_that_is_valid_already_is_read_past() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Admin);
    let (info, nar) = unsigned("twice", &vec![9; 3 << 20]);
    for _ in 0..2 {
        add(&mut client, &info, &nar).unwrap();
        add_all(&mut client, &[(info.clone(), nar.clone()), (info.clone(), nar.clone())]).unwrap();
    }
    assert!(is_valid(&mut client, &info));
}

#[test]
fn many_paths_come_in_one_stream_and_those_before_a_bad_one_stay() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Admin);
    add_all(&mut client, &[]).unwrap();
    let (first, first_nar) = unsigned("first", b"1");
    let (mut second, second_nar) = unsigned("second", b"2");
    second.references = BTreeSet::from([first.path.clone(), second.path.clone()]);
    let (bad, mut bad_nar) = unsigned("bad", b"3");
    bad_nar[40] ^= 1;
    let (never, never_nar) = unsigned("never", b"4");
    let entries =
        [(first.clone(), first_nar), (second.clone(), second_nar), (bad.clone(), bad_nar), (never.clone(), never_nar)];
    refusal(add_all(&mut client, &entries));
    let all: BTreeSet<_> = entries.iter().map(|(info, _)| info.path.clone()).collect();
    let valid = client.call(&QueryValidPaths { paths: all, substitute: false }, silent).unwrap();
    assert_eq!(valid, BTreeSet::from([first.path, second.path]));
}

#[test]
fn a_large_upload_is_committed_in_batches_that_depend_on_each_other() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Admin);
    let mut entries: Vec<(PathInfo, Vec<u8>)> = Vec::new();
    for n in 0..1500 {
        let (mut info, nar) = unsigned(&format!("chain-{n}"), format!("{n}").as_bytes());
        info.references.extend(entries.last().map(|(before, _)| before.path.clone()));
        entries.push((info, nar));
    }
    add_all(&mut client, &entries).unwrap();
    let all: BTreeSet<_> = entries.iter().map(|(info, _)| info.path.clone()).collect();
    let valid = client.call(&QueryValidPaths { paths: all.clone(), substitute: true }, silent).unwrap();
    assert_eq!(valid, all);
}

#[test]
fn derivations_must_be_what_their_path_and_outputs_say() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Push);
    let (info, nar, _) = derivation("good", |_| ());
    add_all(&mut client, &[(info.clone(), nar)]).unwrap();
    assert!(is_valid(&mut client, &info));

    let (wrong, nar, _) = derivation("wrong", |drv| {
        let out = path("elsewhere");
        drv.env.insert(b"out".to_vec(), StoreDir::default().print(&out).into_bytes());
        drv.outputs.insert("out".into(), Output::InputAddressed(out));
    });
    let text = refusal(add(&mut client, &wrong, &nar));
    assert!(text.contains("has incorrect output"), "{text}");

    let (lying, nar, _) = derivation("env", |drv| {
        drv.env.insert(b"out".to_vec(), b"/nix/store/elsewhere".to_vec());
    });
    let text = refusal(add(&mut client, &lying, &nar));
    assert!(text.contains("incorrect environment variable 'out'"), "{text}");

    let (garbage, nar) = text_file("garbage.drv", b"Derive(", BTreeSet::new());
    assert!(refusal(add(&mut client, &garbage, &nar)).contains("garbage.drv"));

    // A trusted client cannot put a derivation elsewhere either.
    let (mut moved, nar, _) = derivation("moved", |_| ());
    (moved.path, moved.ca) = (path("moved.drv"), None);
    let text = refusal(add(&mut lab.client(Role::Admin), &moved, &nar));
    assert!(text.contains("ca hash mismatch importing path"), "{text}");
}

#[test]
fn a_closure_of_derivations_is_checked_against_those_before_it() {
    use shoal_wire::nix::derivation::DerivedOutputs;
    use shoal_wire::nix::hash_modulo::HashModulo;
    let lab = Lab::new();
    let dir = StoreDir::default();
    let (leaf_info, leaf_nar, leaf) = derivation("leaf", |_| ());
    let leaf = std::sync::Arc::new(leaf);
    let (top_info, top_nar, _) = derivation("top", |drv| {
        drv.input_drvs.insert(leaf_info.path.clone(), DerivedOutputs::of(["out"]));
        drv.env.insert(b"out".to_vec(), Vec::new());
        drv.outputs.insert("out".into(), Output::Deferred);
        let mut lookup = |_: &_| Ok::<_, std::convert::Infallible>(leaf.clone());
        let hash = HashModulo::new(dir.clone()).own_hash(drv, &mut lookup).unwrap().unwrap();
        let out = dir.make_output_path(&hash, "top", "out").unwrap();
        drv.env.insert(b"out".to_vec(), dir.print(&out).into_bytes());
        drv.outputs.insert("out".into(), Output::InputAddressed(out));
    });
    let mut client = lab.client(Role::Build);
    add_all(&mut client, &[(leaf_info, leaf_nar), (top_info.clone(), top_nar)]).unwrap();
    assert!(is_valid(&mut client, &top_info));
}

#[test]
fn objects_are_added_under_the_path_that_follows_from_them() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Push);
    let contents = vec![b'x'; 2 << 20];
    let nar = file_nar(&contents);
    for (method, algo) in [
        (CaMethod::Text, HashAlgo::Sha256),
        (CaMethod::Flat, HashAlgo::Sha256),
        (CaMethod::Flat, HashAlgo::Md5),
        (CaMethod::Nar, HashAlgo::Sha256),
        (CaMethod::Nar, HashAlgo::Sha512),
        (CaMethod::Git, HashAlgo::Sha1),
    ] {
        let method = CaMethodAlgo { method, algo };
        let bytes = if matches!(method.method, CaMethod::Text | CaMethod::Flat) { &contents } else { &nar };
        let request = AddToStore { name: "object".into(), method, references: BTreeSet::new(), repair: false };
        let mut infos = Vec::new();
        for _ in 0..2 {
            infos.push(client.call_with_upload(&request, |frames| frames.write_all(bytes), silent).unwrap());
        }
        assert_eq!(infos[0], infos[1]);
        let info = &infos[0];
        assert_eq!((info.nar_hash, info.nar_size), (sha256(&nar), nar.len() as u64));
        assert!(info.is_content_addressed(&StoreDir::default()), "{method}");
        assert_eq!(info.ca.map(|ca| ca.method_algo()), Some(method));
    }
}

#[test]
fn a_directory_has_no_flat_address_and_a_bad_name_no_path() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Push);
    let method = CaMethodAlgo { method: CaMethod::Nar, algo: HashAlgo::Sha256 };
    let request = AddToStore { name: "bad name".into(), method, references: BTreeSet::new(), repair: false };
    let nar = file_nar(b"x");
    let text = refusal(client.call_with_upload(&request, |frames| frames.write_all(&nar), silent));
    assert!(text.contains("illegal character"), "{text}");
    let request = AddToStore { name: "good".into(), ..request };
    let text = refusal(client.call_with_upload(&request, |frames| frames.write_all(b"no nar"), silent));
    assert!(text.contains("cannot add 'good'"), "{text}");
    client.call_with_upload(&request, |frames| frames.write_all(&nar), silent).unwrap();
}

#[test]
fn what_a_client_added_or_named_is_kept_until_it_goes() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Admin);
    let (info, nar) = unsigned("added", b"1");
    let (named, named_nar) = unsigned("named", b"2");
    add(&mut client, &info, &nar).unwrap();
    client.call(&AddTempRoot { path: named.path.clone() }, silent).unwrap();
    add(&mut lab.client(Role::Admin), &named, &named_nar).unwrap();
    let collect = || {
        let request = shoal_store::GcRequest::new(shoal_store::GcAction::DeleteDead);
        lab.store.collect(&request).unwrap().paths.len()
    };
    assert_eq!(collect(), 0);
    drop(client);
    let start = std::time::Instant::now();
    let mut gone = 0;
    while gone < 2 && start.elapsed() < super::lab::PATIENCE {
        gone += collect();
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(gone, 2);
}
