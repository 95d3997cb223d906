//! Where outputs came out, by what upstreams say, in both forms.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_node::http::{Cache, HttpOptions, HttpServer, Limits};
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation, UnkeyedRealisation};
use shoal_wire::nix::signature::SecretKey;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use super::lab::{Lab, cache, key};
use super::server::{Reply, Server};

const BUDGET: Duration = Duration::from_secs(3);

fn id() -> DrvOutput {
    DrvOutput { drv_hash: [3; 32], output: "out".into() }
}

fn path(name: &str) -> StorePath {
    StorePath::from_base_name(&format!("{}-{name}", "0".repeat(32))).unwrap()
}

fn realisation(signer: Option<&SecretKey>) -> Realisation {
    let mut realisation = Realisation::new(id(), path("x"));
    signer.iter().for_each(|key| realisation.sign(key));
    realisation
}

/// As it is asked for; servers decode what is after the hash.
fn url() -> String {
    format!("/realisations/{}.doi", id().to_string().replace('!', "%21"))
}

fn trace(signer: Option<&SecretKey>) -> BuildTrace {
    let key = BuildTraceKey { drv_path: path("x.drv"), output: "out".into() };
    let mut trace = BuildTrace { key, value: UnkeyedRealisation { out_path: path("x"), signatures: BTreeSet::new() } };
    signer.iter().for_each(|key| trace.sign(key));
    trace
}

fn trace_url() -> String {
    format!("/build-trace-v2/{}/out.doi", path("x.drv"))
}

fn on(server: &Server, realisation: &Realisation, trace: &BuildTrace) {
    server.put(&url(), Reply::Body(realisation.to_json().into_bytes()));
    server.put(&trace_url(), Reply::Body(trace.value.to_json().into_bytes()));
}

/// What a client of a node behind these caches is answered in each form.
fn asked_over_http(lab: &Lab) -> [(u16, String); 2] {
    ask_over_http(lab, [url(), trace_url()])
}

fn ask_over_http<const N: usize>(lab: &Lab, urls: [String; N]) -> [(u16, String); N] {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cache = Cache::new(lab.store.clone(), StoreDir::default()).behind(&lab.upstreams);
    let options =
        HttpOptions { listen: "127.0.0.1:0".parse().unwrap(), identity: None, http3: false, limits: Limits::USUAL };
    let server = runtime.block_on(async { HttpServer::open(&options, Arc::new(cache)) }).unwrap();
    urls.map(|url| {
        let mut stream = TcpStream::connect(server.local_addr()).unwrap();
        write!(stream, "GET {url} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    })
}

#[test]
fn what_a_trusted_key_signed_is_passed_on_with_its_signature() {
    let server = cache(10);
    let (realisation, trace) = (realisation(Some(&key())), trace(Some(&key())));
    on(&server, &realisation, &trace);
    let lab = Lab::behind(&[&server]);
    assert_eq!(lab.upstreams.realisation(&id(), BUDGET).as_deref(), Some(&realisation));
    assert_eq!(lab.upstreams.build_trace(&trace.key, BUDGET).as_deref(), Some(&trace));
    assert_eq!(asked_over_http(&lab), [(200, realisation.to_json()), (200, trace.value.to_json())]);
    assert_eq!(lab.store.realisation(&id()).unwrap(), None, "what is only passed on is not kept");
}

/// Unsigned, signed by somebody else, about something else, or no realisation at all: the next cache is asked.
#[test]
fn what_nobody_trusted_signed_is_nothing() {
    let stranger = SecretKey::from_seed("cache-1", [9; 32]).unwrap();
    let mut other = realisation(Some(&key()));
    other.id.output = "doc".into();
    let mut moved = realisation(Some(&key()));
    moved.out_path = path("y");
    let mut moved_trace = trace(Some(&key()));
    moved_trace.value.out_path = path("y");
    let good = cache(90);
    on(&good, &realisation(Some(&key())), &trace(Some(&key())));
    for (lie, lying_trace) in [
        (realisation(None), trace(None)),
        (realisation(Some(&stranger)), trace(Some(&stranger))),
        (moved, moved_trace),
        (other, trace(None)),
    ] {
        let bad = cache(10);
        on(&bad, &lie, &lying_trace);
        let lab = Lab::behind(&[&bad]);
        assert_eq!(lab.upstreams.realisation(&id(), BUDGET), None, "{lie:?}");
        assert_eq!(asked_over_http(&lab).map(|answer| answer.0), [404, 404], "{lie:?}");
        let lab = Lab::behind(&[&bad, &good]);
        assert_eq!(lab.upstreams.realisation(&id(), BUDGET).unwrap().out_path, path("x"));
        assert_eq!(lab.upstreams.build_trace(&trace(None).key, BUDGET).unwrap().value.out_path, path("x"));
    }
    let page = cache(10);
    [url(), trace_url()].iter().for_each(|url| page.put(url, Reply::Body(b"<html>Welcome</html>".to_vec())));
    assert_eq!(asked_over_http(&Lab::behind(&[&page])).map(|answer| answer.0), [404, 404]);
}

#[test]
fn no_is_remembered_for_a_while() {
    let server = cache(10);
    let lab = Lab::behind(&[&server]);
    for _ in 0..5 {
        assert_eq!(lab.upstreams.realisation(&id(), BUDGET), None);
        assert_eq!(lab.upstreams.build_trace(&trace(None).key, BUDGET), None);
    }
    assert_eq!((server.count(&url()), server.count(&trace_url())), (1, 1));
}

/// One that says nothing costs no more than the budget, and nothing where another one knows.
#[test]
fn silence_is_bounded() {
    let silent = cache(10);
    [url(), trace_url()].iter().for_each(|url| silent.put(url, Reply::Stall));
    let lab = Lab::behind(&[&silent]);
    let since = Instant::now();
    assert_eq!(asked_over_http(&lab).map(|answer| answer.0), [404, 404]);
    // Two budgets and a busy machine.
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    let good = cache(90);
    on(&good, &realisation(Some(&key())), &trace(Some(&key())));
    let lab = Lab::behind(&[&silent, &good]);
    assert_eq!(asked_over_http(&lab).map(|answer| answer.0), [200, 200]);
}

/// Names that would lead elsewhere in an upstream's tree are not asked for.
#[test]
fn odd_names_are_not_passed_on() {
    let server = cache(10);
    let lab = Lab::behind(&[&server]);
    let drv = path("x.drv");
    let odd = [
        format!("/build-trace-v2/{drv}/..%2f..%2fsecret.doi"),
        format!("/build-trace-v2/{drv}/a/b.doi"),
        format!("/build-trace-v2/{drv}/%00.doi"),
        format!("/build-trace-v2/{drv}/.doi"),
        "/realisations/sha256:00!..%2f.doi".to_owned(),
        format!("/realisations/{}%2f..%2fx.doi", id()),
        format!("/log/..%2f{drv}"),
        "/log/x.drv".to_owned(),
    ];
    for (status, said) in ask_over_http(&lab, odd) {
        assert_eq!(status, 404, "{said}");
    }
    assert_eq!(server.requests(), 0);
}

/// Logs come through too, unless they are too long to be held meanwhile.
#[test]
fn logs_are_passed_on() {
    let server = cache(10);
    let url = |name: &str| format!("/log/{}", path(name));
    let log = "\u{1b}[1mbuilding\u{1b}[0m\n".repeat(1000);
    server.put(&url("short.drv"), Reply::Body(log.clone().into_bytes()));
    let encoded = zstd::encode_all(log.as_bytes(), 1).unwrap();
    server.put(&url("encoded.drv"), Reply::With(encoded, vec![("Content-Encoding", "zstd".into())]));
    server.put(&url("long.drv"), Reply::Body(vec![b'x'; (16 << 20) + 1]));
    server.put(&url("silent.drv"), Reply::Stall);
    let lab = Lab::behind(&[&server]);
    let found = (200, log);
    let asked = ["short.drv", "encoded.drv", "long.drv", "silent.drv", "absent.drv", "absent.drv"].map(url);
    let [short, encoded, rest @ ..] = ask_over_http(&lab, asked);
    assert!(short == found && encoded == found);
    assert!(rest.iter().all(|(status, _)| *status == 404), "{rest:?}");
    assert_eq!(server.count(&url("absent.drv")), 1);
}
