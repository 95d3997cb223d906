//! The serve protocol: `ssh://` stores, nix-copy-closure, Hydra.

use std::collections::BTreeSet;
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::net::UnixStream;

use shoal_node::door::{Program, Role};
use shoal_wire::nix::derived_path::{DerivedPath, OutputsSpec, SingleDerivedPath};
use shoal_wire::nix::nar::{NarError, NarSink};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::serve::commands::{BuildDerivation, BuildPaths, QueryClosure, QueryPathInfos, QueryValidPaths};
use shoal_wire::nix::serve::{self, BuildOptions, BuildPathsReply, ExportEntry, ExportWriter, commands};
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::worker::BuildStatus;

use super::lab::{Ended, Lab, derivation, path, text_file, unsigned};

type Client = serve::Client<BufReader<UnixStream>, BufWriter<UnixStream>>;

struct Session {
    client: Client,
    ended: Ended,
}

impl Session {
    fn open(lab: &Lab, write: bool, role: Role) -> Session {
        let (stream, ended) = lab.open(Program::Serve { write }, role);
        let (reader, writer) = (BufReader::new(stream.try_clone().unwrap()), BufWriter::new(stream));
        let client = serve::Client::connect(reader, writer, StoreDir::default(), serve::MINOR_MAX).unwrap();
        Session { client, ended }
    }

    fn add(&mut self, (info, nar): &(PathInfo, Vec<u8>)) -> Result<(), ()> {
        self.client.add_to_store(info.clone(), |writer| writer.write_all(nar)).map(drop).map_err(drop)
    }

    /// Exit status and what the client's terminal shows.
    fn end(self) -> (Option<u32>, String) {
        drop(self.client);
        let (status, terminal) = self.ended.join().unwrap();
        (status, String::from_utf8(terminal).unwrap())
    }
}

struct Contents(Vec<u8>);

impl NarSink for Contents {
    type Error = NarError;

    fn contents(&mut self, bytes: &[u8], _offset: u64) -> Result<(), NarError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[test]
fn paths_go_in_and_come_out() {
    let lab = Lab::new();
    let mut session = Session::open(&lab, true, Role::Admin);
    let first = text_file("first", b"1", BTreeSet::new());
    let second = text_file("second", b"2", BTreeSet::from([first.0.path.clone()]));
    for entry in [&first, &second, &first] {
        session.add(entry).unwrap();
    }
    let both = BTreeSet::from([first.0.path.clone(), second.0.path.clone()]);
    let asked = &both | &BTreeSet::from([path("absent")]);
    let request = QueryValidPaths { lock: true, substitute: true, paths: asked.clone() };
    assert_eq!(session.client.call(&request).unwrap(), both);
    let closure = QueryClosure { include_outputs: false, paths: BTreeSet::from([second.0.path.clone()]) };
    assert_eq!(session.client.call(&closure).unwrap(), both);
    let infos = session.client.call(&QueryPathInfos { paths: asked }).unwrap().0;
    assert_eq!(infos.len(), 2);
    assert!(infos.iter().any(|info| info.nar_hash == second.0.nar_hash && info.ca == second.0.ca));
    assert_eq!(session.client.dump(&second.0.path, Contents(Vec::new())).unwrap().0, b"2");
    assert_eq!(session.end(), (Some(0), String::new()));
}

#[test]
fn an_untrusted_client_needs_a_signature_here_too() {
    let lab = Lab::new();
    let mut session = Session::open(&lab, true, Role::Build);
    session.add(&text_file("proof", b"1", BTreeSet::new())).unwrap();
    assert!(session.add(&unsigned("claim", b"2")).is_err());
    let (status, terminal) = session.end();
    assert!(terminal.contains("lacks a signature by a trusted key"), "{terminal}");
    assert_eq!(status, Some(1));
}

#[test]
fn nothing_is_written_without_permission() {
    let lab = Lab::new();
    let mut session = Session::open(&lab, false, Role::Admin);
    assert!(session.add(&unsigned("x", b"x")).is_err());
    let (status, terminal) = session.end();
    assert!(terminal.contains("without --write"), "{terminal}");
    assert_eq!((status, lab.store.paths().unwrap().len()), (Some(1), 0));
}

#[test]
fn failed_builds_are_numbers_that_clients_take_for_failures() {
    let lab = Lab::new();
    let mut session = Session::open(&lab, true, Role::Admin);
    let (info, nar, drv) = derivation("d", |_| ());
    session.add(&(info.clone(), nar)).unwrap();
    let built = Box::new(SingleDerivedPath::Opaque(info.path.clone()));
    let paths = vec![DerivedPath::Built { drv: built, outputs: OutputsSpec::All }];
    let reply = session.client.call(&BuildPaths { paths, options: BuildOptions::default() }).unwrap();
    let BuildPathsReply::Failure { status: 9, message } = reply else { panic!("{reply:?}") };
    assert!(String::from_utf8_lossy(&message).contains("test-system"));
    let request = BuildDerivation { path: info.path, drv: drv.to_basic(), options: BuildOptions::default() };
    let result = session.client.call(&request).unwrap().0;
    assert_eq!(result.status, BuildStatus::PermanentFailure);
    assert_eq!(session.end().0, Some(0));
}

#[test]
fn an_export_comes_in_whole() {
    let lab = Lab::new();
    let mut session = Session::open(&lab, true, Role::Admin);
    let (first, first_nar) = unsigned("first", &vec![1; 3 << 20]);
    let (second, second_nar) = unsigned("second", b"2");
    let entries = [(&first, &first_nar, BTreeSet::new()), (&second, &second_nar, BTreeSet::from([first.path.clone()]))];
    let imported = session.client.call_with_data(&commands::ImportPaths {}, |writer| {
        let mut export = ExportWriter::new(writer);
        for (info, nar, references) in entries {
            export.nar()?.write_all(nar)?;
            export.entry(&ExportEntry { path: info.path.clone(), references, deriver: None })?;
        }
        export.finish()
    });
    imported.unwrap();
    assert_eq!(session.end().0, Some(0));
    assert_eq!(lab.store.path_info(&first.path).unwrap().unwrap().nar_hash, first.nar_hash);
    let references = lab.store.path_info(&second.path).unwrap().unwrap().references;
    assert_eq!(references, BTreeSet::from([first.path]));
}
