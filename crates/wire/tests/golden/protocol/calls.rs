//! Every operation, from our client to a server that decodes it and gives a reply of its kind.

use super::dialect;
use crate::nar_trees::{Record, Tree, nar_of};
use shoal_wire::nix::content_address::{CaMethod, CaMethodAlgo, ContentAddress};
use shoal_wire::nix::derivation::{BasicDerivation, Output};
use shoal_wire::nix::derived_path::DerivedPath;
use shoal_wire::nix::hash::{Hash, HashAlgo};
use shoal_wire::nix::nar::{Discard, NarLimits};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::proto::{Call, Codec, Done, Feature, Reader, Writer};
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation, UnkeyedRealisation};
use shoal_wire::nix::serve::{self, ExportEntry, ExportReader, ExportWriter, Request as Command};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::handshake::accept;
use shoal_wire::nix::worker::ops::*;
use shoal_wire::nix::worker::{
    BuildResult, BuildStatus, CallError, Client, KeyedBuildResult, Offer, RemoteError, StderrMessage, Trust,
    UnkeyedPathInfo,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io::{BufReader, BufWriter, PipeReader, PipeWriter, Read, Write};
use std::thread::JoinHandle;

fn path(name: &str) -> StorePath {
    StorePath::from_base_name(&format!("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-{name}")).expect("path")
}

fn info(name: &str) -> PathInfo {
    let hash = Hash::of(HashAlgo::Sha256, name.as_bytes());
    PathInfo {
        deriver: Some(path("x.drv")),
        references: BTreeSet::from([path("a"), path(name)]),
        registration_time: 5,
        ultimate: true,
        signatures: BTreeSet::from([format!("k-1:{}==", "A".repeat(86)).parse().expect("signature")]),
        ca: Some(ContentAddress { method: CaMethod::Nar, hash }),
        ..PathInfo::new(path(name), [9; 32], 120)
    }
}

fn drv() -> BasicDerivation {
    let outputs = BTreeMap::from([
        ("dev".to_owned(), Output::InputAddressed(path("x-dev"))),
        ("out".to_owned(), Output::Floating { method: CaMethod::Nar, algo: HashAlgo::Sha256 }),
    ]);
    BasicDerivation {
        name: "x".into(),
        outputs,
        input_srcs: BTreeSet::from([path("src")]),
        system: "x86_64-linux".into(),
        builder: b"/bin/\xff".to_vec(),
        args: vec![b"-c".to_vec(), b"".to_vec()],
        env: BTreeMap::from([(b"__json".to_vec(), b"{}".to_vec())]),
    }
}

fn result() -> BuildResult {
    let id = DrvOutput { drv_hash: [0; 32], output: "out".into() };
    BuildResult {
        times_built: 1,
        start_time: 2,
        stop_time: 3,
        cpu_user: Some(-4),
        built_outputs: BTreeMap::from([("out".into(), Realisation::new(id, path("x")))]),
        ..BuildResult::new(BuildStatus::Built, "")
    }
}

type TestClient = Client<BufReader<PipeReader>, BufWriter<PipeWriter>>;
type Duplex = (BufReader<PipeReader>, BufWriter<PipeWriter>);

fn duplex() -> (Duplex, Duplex) {
    let ((r1, w1), (r2, w2)) = (std::io::pipe().expect("pipe"), std::io::pipe().expect("pipe"));
    ((BufReader::new(r1), BufWriter::new(w2)), (BufReader::new(r2), BufWriter::new(w1)))
}

/// A client and its server; the server knows the reply to every operation, and echoes uploads into the log.
fn connected(features: &[Feature], replies: Vec<Reply>) -> (TestClient, JoinHandle<Vec<Request>>) {
    let features: BTreeSet<Feature> = features.iter().copied().collect();
    let offer = Offer {
        store_dir: StoreDir::default(),
        features: features.clone(),
        nix_version: "2.34.8".into(),
        trust: Trust::NotTrusted,
    };
    let ((server_in, server_out), (client_in, client_out)) = duplex();
    let server = std::thread::spawn(move || {
        let (mut r, mut w) = (Reader::new(server_in, dialect()), Writer::new(server_out, dialect()));
        accept(&mut r, &mut w, &offer).expect("client");
        w.put(&StderrMessage::Next(b"welcome\n".to_vec())).expect("log");
        w.put(&StderrMessage::Last).expect("last");
        w.flush().expect("flush");
        let mut requests = Vec::new();
        for reply in replies {
            let request = Request::read_next(&mut r).expect("request").expect("one more");
            if request.op().is_framed() {
                let mut upload = Vec::new();
                r.frames().read_to_end(&mut upload).expect("upload");
                w.put(&StderrMessage::Next(upload)).expect("log");
            }
            w.put(&StderrMessage::Last).expect("last");
            reply.write(&mut w).expect("reply");
            w.flush().expect("flush");
            requests.push(request);
        }
        assert!(matches!(Request::read_next(&mut r), Ok(None)), "the client closed");
        requests
    });
    let client = Client::connect(client_in, client_out, StoreDir::default(), 38, &features).expect("server");
    assert_eq!(client.server().trust, Trust::NotTrusted);
    assert_eq!(client.server().messages, [StderrMessage::Next(b"welcome\n".to_vec())]);
    (client, server)
}

/// One call: what arrives is what was sent, both ways.
fn exchange<C: Call<Reply: PartialEq + Debug> + Clone>(
    features: &[Feature],
    request: C,
    reply: C::Reply,
    to_request: fn(C) -> Request,
    to_reply: fn(C::Reply) -> Reply,
) where
    C::Reply: Clone,
{
    let (mut client, server) = connected(features, vec![to_reply(reply.clone())]);
    let mut log = Vec::new();
    let wrapped = to_request(request.clone());
    assert_eq!(C::NUMBER, wrapped.op().number());
    let upload = b"uploaded".repeat(20_000);
    let received = match wrapped.op().is_framed() {
        true => client.call_with_upload(&request, |frames| frames.write_all(&upload), |message| log.push(message)),
        false => client.call(&request, |message| log.push(message)),
    };
    assert_eq!(received.expect("reply"), reply);
    drop(client);
    let echoed = if wrapped.op().is_framed() { vec![StderrMessage::Next(upload)] } else { vec![] };
    assert_eq!(log, echoed);
    assert_eq!(server.join().expect("server"), [wrapped]);
}

/// `exchange` for one line of the table of operations.
macro_rules! exchanges {
    ($features:expr; $($op:ident $fields:tt -> $reply:expr;)*) => {{
        $(exchange($features, exchanges!(@request $op $fields), $reply, Request::$op, Reply::$op);)*
        [$(Op::$op),*]
    }};
    (@request $op:ident { $($fields:tt)* }) => { $op { $($fields)* } };
    (@request $op:ident ($value:expr)) => { $value };
}

fn set() -> BTreeSet<StorePath> {
    BTreeSet::from([path("a"), path("b")])
}

fn built() -> DerivedPath {
    let text = "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-x.drv!dev,out";
    DerivedPath::parse(&StoreDir::default(), text).expect("derived path")
}

fn substitutable() -> SubstitutableInfo {
    SubstitutableInfo { deriver: None, references: set(), download_size: 1, nar_size: 2 }
}

fn drv_output() -> DrvOutput {
    DrvOutput { drv_hash: [3; 32], output: "out".into() }
}

fn collect_garbage(paths: GcPaths) -> CollectGarbage {
    CollectGarbage { action: GcAction::DeleteSpecific, paths, ignore_liveness: false, max_freed: u64::MAX }
}

fn options() -> SetOptions {
    SetOptions {
        keep_failed: true,
        keep_going: false,
        try_fallback: true,
        verbosity: 3,
        max_build_jobs: 4,
        max_silent_time: 5,
        verbose_build: true,
        build_cores: 6,
        use_substitutes: false,
        overrides: BTreeMap::from([(b"timeout".to_vec(), b"7".to_vec())]),
    }
}

fn queries() -> Vec<Op> {
    exchanges! { &[];
        IsValidPath { path: path("a") } -> true;
        HasSubstitutes { path: path("a") } -> false;
        QueryReferrers { path: path("a") } -> set();
        FindRoots {} -> vec![Root { link: b"/x".to_vec(), target: path("a") }];
        QueryDeriver { path: path("a") } -> None;
        QuerySubstitutablePathInfo { path: path("a") } -> Some(substitutable());
        QueryDerivationOutputs { path: path("a") } -> set();
        QueryAllValidPaths {} -> set();
        QueryPathInfo { path: path("a") } -> Some(UnkeyedPathInfo::from(info("a")));
        QueryDerivationOutputNames { path: path("a") } -> BTreeSet::from(["out".to_owned()]);
        QueryPathFromHashPart { hash_part: "g1w7".into() } -> Some(path("a"));
        QuerySubstitutablePathInfos { paths: BTreeMap::from([(path("a"), info("a").ca), (path("b"), None)]) }
            -> vec![SubstitutablePathInfo { path: path("a"), info: substitutable() }];
        QueryValidPaths { paths: set(), substitute: true } -> set();
        QuerySubstitutablePaths { paths: set() } -> set();
        QueryValidDerivers { path: path("a") } -> set();
        QueryMissing { paths: vec![built(), DerivedPath::Opaque(path("y.drv"))] } -> Missing {
            will_build: set(),
            will_substitute: BTreeSet::new(),
            unknown: set(),
            download_size: 3,
            nar_size: 4,
        };
        QueryDerivationOutputMap { path: path("x.drv") }
            -> BTreeMap::from([("dev".to_owned(), None), ("out".to_owned(), Some(path("x")))]);
        QueryRealisation(QueryRealisation::ByHash(drv_output()))
            -> RealisationReply::ByHash(Some(Realisation::new(drv_output(), path("x"))));
    }
    .into()
}

fn actions() -> Vec<Op> {
    let method = CaMethodAlgo { method: CaMethod::Git, algo: HashAlgo::Sha1 };
    let paths = GcPaths::Paths { paths: set(), delete_referrers: false };
    let realisation = RegisterDrvOutput::ByHash(Realisation::new(drv_output(), path("x")));
    exchanges! { &[];
        AddToStore { name: "n".into(), method, references: set(), repair: true } -> info("a");
        AddTextToStore { name: "n".into(), text: b"\xff".to_vec(), references: set() } -> path("n");
        BuildPaths { paths: vec![built()], mode: BuildMode::Check } -> Done;
        EnsurePath { path: path("a") } -> Done;
        AddTempRoot { path: path("a") } -> Done;
        AddIndirectRoot { link: b"/tmp/\xff".to_vec() } -> Done;
        SyncWithGc {} -> Done;
        SetOptions(options()) -> ();
        CollectGarbage(collect_garbage(paths)) -> Collected { paths: vec![path("b"), path("a")], bytes_freed: 8 };
        OptimiseStore {} -> Done;
        VerifyStore { check_contents: true, repair: false } -> true;
        BuildDerivation { path: path("x.drv"), drv: drv(), mode: BuildMode::Repair } -> result();
        AddSignatures { path: path("a"), signatures: info("a").signatures } -> Done;
        AddToStoreNar { info: info("a"), repair: false, dont_check_sigs: true } -> ();
        RegisterDrvOutput(realisation) -> ();
        AddMultipleToStore { repair: true, dont_check_sigs: false } -> ();
        AddBuildLog { drv: path("x.drv") } -> Done;
        BuildPathsWithResults { paths: vec![built()], mode: BuildMode::Normal }
            -> vec![KeyedBuildResult { path: built(), result: result() }];
        AddPermRoot { path: path("a"), link: b"/r".to_vec() } -> b"/r".to_vec();
    }
    .into()
}

#[test]
fn every_operation_goes_both_ways() {
    // The reply to NarFromPath is a NAR, which has a test of its own.
    let tested: BTreeSet<Op> = queries().into_iter().chain(actions()).chain([Op::NarFromPath]).collect();
    assert_eq!(tested, Op::ALL.iter().copied().collect(), "an operation without a test");
}

#[test]
fn features_change_layouts() {
    let key = || BuildTraceKey { drv_path: path("x.drv"), output: "out".into() };
    let value = || UnkeyedRealisation { out_path: path("x"), signatures: info("a").signatures };
    let some = GcPaths::Paths { paths: BTreeSet::from([path("a")]), delete_referrers: true };
    exchanges! { &Feature::ALL;
        RegisterDrvOutput(RegisterDrvOutput::ByPath(BuildTrace { key: key(), value: value() })) -> ();
        QueryRealisation(QueryRealisation::ByPath(key())) -> RealisationReply::ByPath(Some(value()));
        QueryRealisation(QueryRealisation::ByPath(key())) -> RealisationReply::ByPath(None);
        CollectGarbage(collect_garbage(some)) -> Collected { paths: vec![], bytes_freed: 0 };
        CollectGarbage(collect_garbage(GcPaths::Whole)) -> Collected { paths: vec![], bytes_freed: 0 };
        BuildDerivation { path: path("x.drv"), drv: drv(), mode: BuildMode::Normal } -> result();
    };
    // Without the feature there is no way to say it.
    let referrers = GcPaths::Paths { paths: BTreeSet::new(), delete_referrers: true };
    let mut w = Writer::new(Vec::new(), dialect());
    assert!(collect_garbage(referrers).write(&mut w).is_err());
    assert!(QueryRealisation::ByPath(key()).write(&mut w).is_err());
}

#[test]
fn a_nar_follows_its_reply_and_the_connection_goes_on() {
    let ((server_in, server_out), (client_in, client_out)) = duplex();
    let nar = nar_of(&Tree::File { executable: false, contents: b"hello\n".to_vec() });
    let sent = nar.clone();
    let server = std::thread::spawn(move || {
        let (mut r, mut w) = (Reader::new(server_in, dialect()), Writer::new(server_out, dialect()));
        let offer = Offer {
            store_dir: StoreDir::default(),
            features: BTreeSet::new(),
            nix_version: "x".into(),
            trust: Trust::Trusted,
        };
        accept(&mut r, &mut w, &offer).expect("client");
        w.put(&StderrMessage::Last).expect("last");
        w.flush().expect("flush");
        while let Some(request) = Request::read_next(&mut r).expect("request") {
            match request {
                Request::NarFromPath(_) => {
                    w.put(&StderrMessage::Last).expect("last");
                    w.write_all(&sent).expect("NAR");
                }
                _ => w.put(&StderrMessage::Error(RemoteError::new("no such path"))).expect("error"),
            }
            w.flush().expect("flush");
        }
    });
    let mut client = Client::connect(client_in, client_out, StoreDir::default(), 38, &BTreeSet::new()).expect("server");
    for _ in 0..2 {
        let failed = client.call(&EnsurePath { path: path("a") }, |_| ());
        assert!(matches!(&failed, Err(CallError::Remote(error)) if error.msg == b"no such path"), "{failed:?}");
        let record = client.nar_from_path(&path("a"), Record::default(), |_| ()).expect("NAR");
        assert_eq!(record.0.len(), 3);
    }
    drop(client);
    server.join().expect("server");
}

/// A server of the serve protocol to which everything is `nar` and `entry`; counts the commands.
fn serve_one_nar(io: Duplex, nar: &[u8], entry: &ExportEntry) -> usize {
    let (mut r, mut w) = (Reader::new(io.0, dialect()), Writer::new(io.1, dialect()));
    serve::handshake::accept(&mut r, &mut w).expect("client");
    let mut commands = 0;
    while let Some(command) = Command::read_next(&mut r).expect("command") {
        commands += 1;
        match command {
            Command::AddToStoreNar(request) => {
                assert_eq!(request.info.path, entry.path);
                let mut received = vec![0; request.info.nar_size as usize];
                r.read_exact(&mut received).expect("NAR");
                assert!(received == nar);
                w.put(&Done).expect("reply");
            }
            Command::ImportPaths(_) => {
                let mut import = ExportReader::new(&mut r);
                while let Some(mut exported) = import.next_nar(NarLimits::STRICT, Discard).expect("word") {
                    let mut received = Vec::new();
                    exported.read_to_end(&mut received).expect("NAR");
                    assert!(received == nar);
                    assert_eq!(import.entry().expect("entry"), *entry);
                }
                w.put(&Done).expect("reply");
            }
            Command::DumpStorePath(_) => w.write_all(nar).expect("NAR"),
            other => panic!("{other:?}"),
        }
        w.flush().expect("flush");
    }
    commands
}

#[test]
fn serve_commands_go_both_ways() {
    let nar = nar_of(&Tree::File { executable: true, contents: vec![1; 100_000] });
    let entry = ExportEntry { path: path("a"), references: BTreeSet::from([path("b")]), deriver: None };
    let added = PathInfo { nar_size: nar.len() as u64, ..info("a") };
    let (at_server, (client_in, client_out)) = duplex();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve_one_nar(at_server, &nar, &entry));
        let mut client = serve::Client::connect(client_in, client_out, StoreDir::default(), 7).expect("server");
        client.add_to_store(added, |w| w.write_all(&nar)).expect("added");
        let imported = client.call_with_data(&serve::commands::ImportPaths {}, |w| {
            let mut export = ExportWriter::new(w);
            for _ in 0..2 {
                export.nar()?.write_all(&nar)?;
                export.entry(&entry)?;
            }
            export.finish()
        });
        imported.expect("imported");
        client.dump(&path("a"), Record::default()).expect("NAR");
        drop(client);
        assert_eq!(server.join().expect("server"), 3);
    });
}
