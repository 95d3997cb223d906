use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_grid::can_run::{Machine, Requirement};
use shoal_grid::estimates::Estimate;
use shoal_store::Store;
use shoal_wire::nix::derivation::Output;
use shoal_wire::nix::store_path::StoreDir;

use super::*;
use crate::build::graph::What;
use crate::build::remote::lab::{self, path};
use crate::build::request::BuildOptions;
use crate::build::service::{Config, Defaults};
use crate::inputs::Inputs;
use crate::trees::Trees;

const LIAR: NodeKey = [9; 32];

fn service(dir: &std::path::Path) -> Arc<BuildService> {
    let store = Store::open(&dir.join("store"), shoal_store::Options::default()).unwrap();
    let inputs = Arc::new(Inputs::unpacked(Trees::open(store.clone(), dir).unwrap()));
    let config = Config {
        data_dir: dir.to_owned(),
        machine: Machine { systems: BTreeSet::new(), features: BTreeSet::new() },
        max_jobs: 1,
        defaults: Defaults::default(),
        sandbox_shell: None,
        cgroups: shoal_sandbox::cgroups(),
        memory_mib: 1 << 10,
        quorum: 1,
        signing_keys: Vec::new(),
    };
    BuildService::start(store, StoreDir::default(), inputs, config).unwrap()
}

/// Of two outputs with known paths.
fn two_outputs() -> Resolved {
    let output = |name: &str| (name.to_owned(), Output::InputAddressed(path(name)));
    let derivation = BasicDerivation {
        name: "x".into(),
        outputs: ["out", "dev"].map(output).into(),
        input_srcs: BTreeSet::new(),
        system: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: Vec::new(),
        env: BTreeMap::new(),
    };
    Resolved { derivation, output_hashes: BTreeMap::new(), needs_realisations: false }
}

fn told(status: u8, outputs: &[(&str, &str)]) -> Outcome {
    let outputs: Vec<(&str, &str, u8)> = outputs.iter().map(|&(name, of)| (name, of, 7)).collect();
    lab::told(status, &outputs)
}

/// What is said of a build is an offence where it cannot be, and a success only of the outputs that were asked for.
#[test]
fn an_executor_that_lies_about_an_outcome_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (service, resolved) = (service(dir.path()), two_outputs());
    let conclude = |outcome: &Outcome| {
        service
            .conclude(&resolved, outcome, LIAR, Teller::Executor, false)
            .map(|(ended, end)| (ended.result.status, end))
    };
    let built = BuildStatus::Built as u8;
    let lies = [
        told(99, &[]),
        told(built, &[]),
        told(built, &[("out", "out")]),
        told(built, &[("out", "out"), ("dev", "dev"), ("lib", "lib")]),
        told(built, &[("out", "dev"), ("dev", "out")]),
        told(built, &[("out", "out"), ("dev", "another")]),
        told(BuildStatus::AlreadyValid as u8, &[("out", "another"), ("dev", "dev")]),
    ];
    for lie in lies {
        assert!(conclude(&lie).is_err(), "{lie:?}");
    }
    assert_eq!(service.whereabouts(&path("another")), None);
    let whole = [("out", "out"), ("dev", "dev")];
    assert_eq!(conclude(&told(built, &whole)), Ok((BuildStatus::Built, End::Success { output_bytes: 2 << 20 })));
    // Sizes that it makes up place other builds badly, and nothing more.
    let mut endless = told(built, &whole);
    endless.outputs.values_mut().for_each(|output| output.nar_size = u64::MAX);
    assert_eq!(conclude(&endless), Ok((BuildStatus::Built, End::Success { output_bytes: u64::MAX })));
    // That it is in trouble says nothing of the derivation, whatever it adds to that.
    let transient = Outcome { given_up: true, ..told(BuildStatus::TransientFailure as u8, &whole) };
    assert_eq!(conclude(&transient), Ok((BuildStatus::TransientFailure, End::Lost)));
    let starved = Outcome { out_of_memory: true, memory_mib: u64::MAX, ..transient };
    assert_eq!(conclude(&starved), Ok((BuildStatus::TransientFailure, End::OutOfMemory { used_mib: u64::MAX })));
}

/// Nor has one whose usual time is not known, or that is only compared.
#[test]
fn what_nodes_must_agree_on_has_no_second_copy() {
    let dir = tempfile::tempdir().unwrap();
    let service = service(dir.path());
    let may = |quorum: Option<u32>, mode: BuildMode, built_s: u64| {
        let requirement = Requirement { system: "x86_64-linux".into(), features: BTreeSet::new() };
        let what = What::Given(Arc::new(two_outputs().derivation));
        let (waits_for, agreed) = Default::default();
        let task = Task { drv_path: path("x.drv"), what, mode, requirement, waits_for, agreed };
        let options = BuildOptions { quorum, ..BuildOptions::default() };
        service.may_run_twice(&task, &options, &Estimate { built_s, duration_ms: 1_000, memory_mib: 0 })
    };
    assert!(may(None, BuildMode::Normal, 1) && may(Some(1), BuildMode::Normal, 1));
    assert!(!may(Some(2), BuildMode::Normal, 1));
    assert!(!may(None, BuildMode::Check, 1) && !may(None, BuildMode::Normal, 0));
}
