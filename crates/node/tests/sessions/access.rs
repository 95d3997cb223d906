//! Who may do what, and what the answers are.

use std::collections::BTreeSet;
use std::io::Write;

use shoal_node::door::Role;
use shoal_wire::nix::content_address::{CaMethod, CaMethodAlgo};
use shoal_wire::nix::derivation::Output;
use shoal_wire::nix::derived_path::{DerivedPath, OutputsSpec, SingleDerivedPath};
use shoal_wire::nix::hash::HashAlgo;
use shoal_wire::nix::nar::NarSink;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::proto::Feature;
use shoal_wire::nix::realisation::{DrvOutput, Realisation};
use shoal_wire::nix::worker::ops::*;
use shoal_wire::nix::worker::{BuildStatus, CallError, StderrMessage, Trust};

use super::lab::{Lab, WorkerClient, addressed, derivation, path, refusal, silent, text_file, unsigned};

fn add(client: &mut WorkerClient, (info, nar): &(PathInfo, Vec<u8>)) {
    let request = AddToStoreNar { info: info.clone(), repair: false, dont_check_sigs: true };
    client.call_with_upload(&request, |frames| frames.write_all(nar), silent).unwrap();
}

fn outputs_of(drv: &PathInfo) -> DerivedPath {
    let drv = Box::new(SingleDerivedPath::Opaque(drv.path.clone()));
    DerivedPath::Built { drv, outputs: OutputsSpec::All }
}

#[test]
fn the_truth_about_trust_is_told() {
    let lab = Lab::new();
    assert_eq!(lab.client(Role::Admin).server().trust, Trust::Trusted);
    for role in [Role::Read, Role::Push, Role::Build] {
        assert_eq!(lab.client(role).server().trust, Trust::NotTrusted);
    }
    let old = lab.client_at(Role::Admin, 34, &BTreeSet::new());
    assert_eq!((old.server().trust, old.dialect().minor), (Trust::Unknown, 34));
    let new = lab.client_at(Role::Admin, 38, &Feature::ALL.into());
    assert_eq!(new.dialect().features, BTreeSet::from([Feature::RealisationWithPath]));
}

#[test]
fn a_reader_only_reads() {
    let lab = Lab::new();
    let stored = addressed("stored", b"x");
    add(&mut lab.client(Role::Push), &stored);
    let mut reader = lab.client(Role::Read);
    assert!(reader.call(&IsValidPath { path: stored.0.path.clone() }, silent).unwrap());
    let info = reader.call(&QueryPathInfo { path: stored.0.path.clone() }, silent).unwrap().unwrap();
    assert_eq!(info.nar_hash, stored.0.nar_hash);

    let (info, nar) = addressed("new", b"y");
    let request = AddToStoreNar { info: info.clone(), repair: false, dont_check_sigs: false };
    let text = refusal(reader.call_with_upload(&request, |frames| frames.write_all(&nar), silent));
    assert!(text.contains("it takes the role 'push', your key has 'read'"), "{text}");
    let method = CaMethodAlgo { method: CaMethod::Text, algo: HashAlgo::Sha256 };
    let request = AddToStore { name: "t".into(), method, references: BTreeSet::new(), repair: false };
    refusal(reader.call_with_upload(&request, |frames| frames.write_all(b"t"), silent));
    refusal(reader.call(&AddIndirectRoot { link: b"/tmp/x".to_vec() }, silent));
    let signatures = BTreeSet::new();
    refusal(reader.call(&AddSignatures { path: stored.0.path.clone(), signatures }, silent));
    // The connection has lived through all of it.
    assert!(!reader.call(&IsValidPath { path: info.path }, silent).unwrap());
}

#[test]
fn only_an_admin_deletes_logs_and_registers() {
    let lab = Lab::new();
    let collect =
        |action| CollectGarbage { action, paths: GcPaths::Whole, ignore_liveness: false, max_freed: u64::MAX };
    let realisation = Realisation::new(DrvOutput { drv_hash: [1; 32], output: "out".into() }, path("x"));
    let mut client = lab.client(Role::Build);
    let text = refusal(client.call(&collect(GcAction::DeleteDead), silent));
    assert!(text.contains("it takes the role 'admin'"), "{text}");
    client.call(&collect(GcAction::ReturnDead), silent).unwrap();
    let log = AddBuildLog { drv: path("x.drv") };
    let text = refusal(client.call_with_upload(&log, |frames| frames.write_all(&[b'x'; 1 << 20]), silent));
    assert_eq!(text, "you are not privileged to add logs");
    let text = refusal(client.call(&RegisterDrvOutput::ByHash(realisation), silent));
    assert!(text.contains("lacks a signature by a trusted key"), "{text}");
    let text = refusal(client.call(&VerifyStore { check_contents: false, repair: true }, silent));
    assert_eq!(text, "you are not privileged to repair paths");
    assert!(!client.call(&VerifyStore { check_contents: true, repair: false }, silent).unwrap());

    let mut admin = lab.client(Role::Admin);
    admin.call_with_upload(&log, |frames| frames.write_all(b"said\n"), silent).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut lab.store.log(&path("x.drv")).unwrap().unwrap(), &mut text).unwrap();
    assert_eq!(text, "said\n");
    admin.call(&collect(GcAction::DeleteDead), silent).unwrap();
    let forced = CollectGarbage { ignore_liveness: true, ..collect(GcAction::DeleteDead) };
    assert!(refusal(admin.call(&forced, silent)).contains("not allowed"));
}

#[test]
fn repairs_and_permanent_roots_of_the_untrusted_end_the_connection() {
    let lab = Lab::new();
    let repair = BuildPathsWithResults { paths: vec![DerivedPath::Opaque(path("x"))], mode: BuildMode::Repair };
    let mut client = lab.client(Role::Build);
    refusal(client.call(&repair, silent));
    assert!(matches!(client.call(&IsValidPath { path: path("x") }, silent), Err(CallError::Proto(_))));
    let mut client = lab.client(Role::Build);
    refusal(client.call(&AddPermRoot { path: path("x"), link: b"/tmp/x".to_vec() }, silent));
    assert!(matches!(client.call(&IsValidPath { path: path("x") }, silent), Err(CallError::Proto(_))));
}

/// `nix copy --from` begins with this.
#[test]
fn plain_paths_are_wanted_and_valid_or_not() {
    let lab = Lab::new();
    let (drv, nar, _) = derivation("d", |_| ());
    add(&mut lab.client(Role::Push), &(drv.clone(), nar));
    let stored = addressed("stored", b"x");
    add(&mut lab.client(Role::Push), &stored);
    let wanted: Vec<_> =
        [&drv.path, &path("missing"), &stored.0.path].map(|path| DerivedPath::Opaque(path.clone())).into();
    let request = BuildPathsWithResults { paths: wanted.clone(), mode: BuildMode::Normal };
    let results = lab.client(Role::Read).call(&request, silent).unwrap();
    assert_eq!(results.iter().map(|keyed| keyed.path.clone()).collect::<Vec<_>>(), wanted);
    let statuses: Vec<_> = results.iter().map(|keyed| keyed.result.status).collect();
    assert_eq!(statuses[0], BuildStatus::AlreadyValid);
    assert!(!statuses[1].is_success());
    assert_eq!(statuses[2], BuildStatus::AlreadyValid);

    let text = refusal(lab.client(Role::Read).call(&BuildPaths { paths: wanted, mode: BuildMode::Normal }, silent));
    assert!(text.contains("missing"), "{text}");
    let mut client = lab.client(Role::Read);
    client.call(&EnsurePath { path: stored.0.path }, silent).unwrap();
    let text = refusal(client.call(&EnsurePath { path: path("missing") }, silent));
    assert!(text.ends_with("does not exist and cannot be created"), "{text}");
}

#[test]
fn a_build_that_fails_is_a_status_for_one_operation_and_an_error_for_the_other() {
    let lab = Lab::new();
    let (drv, nar, derivation) = derivation("d", |_| ());
    add(&mut lab.client(Role::Push), &(drv.clone(), nar));
    let paths = vec![outputs_of(&drv)];
    let mut reader = lab.client(Role::Read);
    let request = BuildPathsWithResults { paths: paths.clone(), mode: BuildMode::Normal };
    assert!(refusal(reader.call(&request, silent)).contains("it takes the role 'build'"));

    let mut client = lab.client(Role::Build);
    let missing = client.call(&QueryMissing { paths: paths.clone() }, silent).unwrap();
    assert_eq!(missing.will_build, BTreeSet::from([drv.path.clone()]));
    let mut said = Vec::new();
    let results = client.call(&request, |message| said.push(message)).unwrap();
    let [keyed] = &results[..] else { panic!("{results:?}") };
    assert_eq!(keyed.path, paths[0]);
    assert_eq!(keyed.result.status, BuildStatus::PermanentFailure);
    assert!(String::from_utf8_lossy(&keyed.result.error_msg).contains("test-system"));
    assert!(said.iter().any(|message| matches!(message, StderrMessage::StartActivity(_))));
    let text = refusal(client.call(&BuildPaths { paths, mode: BuildMode::Normal }, silent));
    assert!(text.contains("test-system"), "{text}");

    let map = client.call(&QueryDerivationOutputMap { path: drv.path }, silent).unwrap();
    let out = derivation.output_path(&Default::default(), "out");
    assert_eq!(map, [("out".into(), out)].into());
}

#[test]
fn a_reader_has_nothing_built_again() {
    let lab = Lab::new();
    let (drv, nar, derivation) = derivation("d", |_| ());
    add(&mut lab.client(Role::Push), &(drv.clone(), nar));
    let (info, out_nar) = unsigned("any", b"out");
    let path = derivation.output_path(&Default::default(), "out").unwrap();
    add(&mut lab.client(Role::Admin), &(PathInfo { path, ..info }, out_nar));
    let mut reader = lab.client(Role::Read);
    let paths = vec![outputs_of(&drv)];
    let valid = BuildPathsWithResults { paths: paths.clone(), mode: BuildMode::Normal };
    assert_eq!(reader.call(&valid, silent).unwrap()[0].result.status, BuildStatus::AlreadyValid);
    let again = BuildPathsWithResults { paths, mode: BuildMode::Check };
    assert!(refusal(reader.call(&again, silent)).contains("it takes the role 'build'"));
}

#[test]
fn an_untrusted_client_cannot_plant_an_output() {
    let lab = Lab::new();
    let (info, _, drv) = derivation("d", |_| ());
    let request = BuildDerivation { path: info.path, drv: drv.to_basic(), mode: BuildMode::Normal };
    let text = refusal(lab.client(Role::Build).call(&request, silent));
    assert_eq!(text, "you are not privileged to build input-addressed derivations");
    let result = lab.client(Role::Admin).call(&request, silent).unwrap();
    assert_eq!(result.status, BuildStatus::PermanentFailure);

    let mut floating = request.clone();
    let output = Output::Floating { method: CaMethod::Nar, algo: HashAlgo::Sha256 };
    floating.drv.outputs.insert("out".into(), output);
    // Refused for its system only, so it was let through to the builds.
    let result = lab.client(Role::Build).call(&floating, silent).unwrap();
    assert!(String::from_utf8_lossy(&result.error_msg).contains("test-system"));
}

#[test]
fn missing_inputs_are_a_result_in_words() {
    let lab = Lab::new();
    let (info, _, drv) = derivation("d", |drv| {
        drv.input_srcs.insert(path("absent"));
        drv.system = "builtin".into();
    });
    let request = BuildDerivation { path: info.path, drv: drv.to_basic(), mode: BuildMode::Normal };
    let result = lab.client(Role::Admin).call(&request, silent).unwrap();
    assert!(!result.status.is_success());
    assert!(!result.error_msg.is_empty());
}

#[test]
fn a_path_in_use_is_not_deleted_and_the_message_is_nixs() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Admin);
    let used = text_file("used", b"x", BTreeSet::new());
    let user = text_file("user", b"y", BTreeSet::from([used.0.path.clone()]));
    add(&mut client, &used);
    add(&mut client, &user);
    drop(client);
    let delete = |paths: &[&PathInfo]| CollectGarbage {
        action: GcAction::DeleteSpecific,
        paths: GcPaths::Paths { paths: paths.iter().map(|info| info.path.clone()).collect(), delete_referrers: false },
        ignore_liveness: false,
        max_freed: u64::MAX,
    };
    let mut client = lab.client(Role::Admin);
    let text = refusal(client.call(&delete(&[&used.0]), silent));
    assert!(text.starts_with("Cannot delete path '/nix/store/") && text.contains("since it is still alive"), "{text}");
    let referrers = client.call(&QueryReferrers { path: used.0.path.clone() }, silent).unwrap();
    assert_eq!(referrers, BTreeSet::from([user.0.path.clone()]));
    let start = std::time::Instant::now();
    loop {
        // The client that added them may still be on its way out.
        match client.call(&delete(&[&used.0, &user.0]), silent) {
            Ok(collected) => break assert_eq!(collected.paths.len(), 2),
            Err(_) => assert!(start.elapsed() < super::lab::PATIENCE),
        }
    }
}

#[test]
fn roots_of_others_are_not_shown() {
    let lab = Lab::new();
    let stored = addressed("stored", b"x");
    let mut admin = lab.client(Role::Admin);
    add(&mut admin, &stored);
    lab.store.add_root("important", &stored.0.path).unwrap();
    let roots = admin.call(&FindRoots {}, silent).unwrap();
    assert!(roots.iter().any(|root| root.link == b"important"));
    let roots = lab.client(Role::Build).call(&FindRoots {}, silent).unwrap();
    assert!(!roots.is_empty() && roots.iter().all(|root| root.link == b"{censored}"));
}

#[test]
fn what_went_in_comes_out_and_the_small_questions_are_answered() {
    struct Bytes(Vec<u8>);
    impl NarSink for Bytes {
        type Error = shoal_wire::nix::nar::NarError;
        fn contents(&mut self, bytes: &[u8], _offset: u64) -> Result<(), Self::Error> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }
    let lab = Lab::new();
    let mut client = lab.client(Role::Admin);
    let contents: Vec<u8> = (0..5_000_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let stored = unsigned("stored", &contents);
    add(&mut client, &stored);
    let at = stored.0.path;
    let back = client.nar_from_path(&at, Bytes(Vec::new()), silent).unwrap();
    assert!(back.0 == contents);
    let hash_part = at.hash_part().to_owned();
    assert_eq!(client.call(&QueryPathFromHashPart { hash_part }, silent).unwrap(), Some(at.clone()));
    assert_eq!(client.call(&QueryAllValidPaths {}, silent).unwrap(), BTreeSet::from([at.clone()]));
    assert_eq!(client.call(&QueryPathInfo { path: path("x") }, silent).unwrap(), None);
    assert_eq!(client.call(&QueryDeriver { path: at.clone() }, silent).unwrap(), None);
    assert!(!client.call(&HasSubstitutes { path: at.clone() }, silent).unwrap());
    client.call(&QuerySubstitutablePaths { paths: BTreeSet::from([at.clone()]) }, silent).unwrap();
    client.call(&OptimiseStore {}, silent).unwrap();
    client.call(&SyncWithGc {}, silent).unwrap();
    let signature = lab.key.sign(b"anything");
    let signatures = BTreeSet::from([signature.clone()]);
    client.call(&AddSignatures { path: at.clone(), signatures }, silent).unwrap();
    let info = client.call(&QueryPathInfo { path: at }, silent).unwrap().unwrap();
    assert!(info.signatures.contains(&signature));
}

#[test]
fn realisations_are_kept_and_found_under_both_keys() {
    let lab = Lab::new();
    let stored = addressed("stored", b"x");
    let mut client = lab.client(Role::Admin);
    add(&mut client, &stored);
    let (drv, nar, derivation) = derivation("d", |_| ());
    add(&mut client, &(drv.clone(), nar));
    let id = DrvOutput { drv_hash: [3; 32], output: "out".into() };
    let realisation = Realisation::new(id.clone(), stored.0.path.clone());
    client.call(&RegisterDrvOutput::ByHash(realisation.clone()), silent).unwrap();
    let found = client.call(&QueryRealisation::ByHash(id), silent).unwrap();
    assert_eq!(found, RealisationReply::ByHash(Some(realisation)));
    let absent = DrvOutput { drv_hash: [4; 32], output: "out".into() };
    let found = client.call(&QueryRealisation::ByHash(absent), silent).unwrap();
    assert_eq!(found, RealisationReply::ByHash(None));

    let mut new = lab.client_at(Role::Admin, 38, &Feature::ALL.into());
    let key = shoal_wire::nix::realisation::BuildTraceKey { drv_path: drv.path, output: "out".into() };
    let found = new.call(&QueryRealisation::ByPath(key.clone()), silent).unwrap();
    assert_eq!(found, RealisationReply::ByPath(None));
    let out = derivation.output_path(&Default::default(), "out").unwrap();
    let nar = super::lab::file_nar(b"built");
    let info = PathInfo::new(out.clone(), shoal_wire::nix::hash::sha256(&nar), nar.len() as u64);
    add(&mut client, &(info, nar));
    let found = new.call(&QueryRealisation::ByPath(key), silent).unwrap();
    assert!(matches!(found, RealisationReply::ByPath(Some(found)) if found.out_path == out));
}

#[test]
fn settings_are_taken_and_unknown_ones_warned_of() {
    let lab = Lab::new();
    let set = SetOptions {
        keep_failed: false,
        keep_going: true,
        try_fallback: false,
        verbosity: 3,
        max_build_jobs: 1,
        max_silent_time: 0,
        verbose_build: true,
        build_cores: 0,
        use_substitutes: true,
        overrides: [(b"sandbox".to_vec(), b"false".to_vec())].into(),
    };
    let mut said = Vec::new();
    let mut client = lab.client(Role::Build);
    client.call(&set, |message| said.push(message)).unwrap();
    let [StderrMessage::Next(warning)] = &said[..] else { panic!("{said:?}") };
    assert!(String::from_utf8_lossy(warning).contains("ignoring the client-specified setting 'sandbox'"));
    lab.client(Role::Admin).call(&set, |message| panic!("{message:?}")).unwrap();
}
