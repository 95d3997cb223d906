//! What no client should send.

use std::io::{Read, Write};
use std::time::Duration;

use crate::lab::{Lab, file_nar, nar_url, noise};

/// The server still answers, and the file outside was not reached.
fn is_well(lab: &Lab) {
    assert_eq!(lab.get("/healthz").status, 200);
}

#[test]
fn odd_paths_are_absent() {
    let lab = Lab::new();
    let odd = [
        "/../../etc/passwd",
        "/nar/../../../etc/passwd",
        "/nar/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/nar/%",
        "/nar/%00.nar",
        "//nix-cache-info",
        "/serve/",
        "/serve/%ff%fe/x",
        "/serve/..%2f..%2fetc/passwd",
        "/log/../../etc/passwd",
        "/log/%2e%2e%2fetc",
        "/realisations/sha256:zz!out.doi",
        "/realisations/sha256:%21.doi",
        "/build-trace-v2/x/y/z.doi",
        "/.narinfo",
        "/0000000000000000000000000000000u.narinfo",
        "/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee.narinfo",
        "/%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC%C3%A9.narinfo",
    ];
    for path in odd {
        assert_eq!(lab.get(path).status, 404, "{path}");
    }
    let long = format!("/{}.narinfo", "0".repeat(8000));
    assert_eq!(lab.get(&long).status, 404);
}

#[test]
fn methods_that_a_path_has_not_are_named() {
    let lab = Lab::new();
    let answer = lab.ask("DELETE", "/nix-cache-info", "");
    assert_eq!(answer.status, 405);
    assert!(answer.header("allow").unwrap().contains("GET"), "{}", answer.head);
    assert_eq!(lab.ask("BREW", "/coffee", "").status, 404);
}

#[test]
fn heads_that_are_too_large_or_no_heads_are_refused() {
    let lab = Lab::new();
    let huge = format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(10_000));
    let split = "GET /healthz HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello";
    for bad in [
        huge.as_bytes(),
        many.as_bytes(),
        split.as_bytes(),
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        &noise(5000),
    ] {
        let answer = lab.send_and_end(bad);
        assert!(answer.is_none_or(|answer| (400..500).contains(&answer.status)), "{:?}", &bad[..bad.len().min(40)]);
        is_well(&lab);
    }
}

/// As the kernel would for a client that dies: half a request, then nothing.
#[test]
fn half_requests_hold_nobody_up() {
    let lab = Lab::new();
    let whole = b"GET /nix-cache-info HTTP/1.1\r\nHost: here\r\n\r\n";
    let halves: Vec<_> = (1..whole.len())
        .map(|cut| {
            let mut stream = lab.connect();
            stream.write_all(&whole[..cut]).unwrap();
            stream
        })
        .collect();
    is_well(&lab);
    drop(halves);
    is_well(&lab);
}

#[test]
fn thousands_of_idle_connections_make_room_for_those_that_ask() {
    let lab = Lab::new();
    let most = shoal_node::http::server::CONNECTIONS_MAX;
    // Both ends are in this process.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    assert!(limit > 2 * most as u64 + 200, "the limit on open files is {limit}");
    let idle: Vec<_> = (0..most + 50).map(|_| lab.connect()).collect();
    is_well(&lab);
    // Who came first and asked nothing was hung up on.
    let mut first = &idle[0];
    assert_eq!(first.read(&mut [0]).unwrap_or(0), 0);
}

/// A client that takes nothing holds a bounded part of a large NAR in memory, and others are served meanwhile.
#[test]
fn a_slow_reader_holds_up_only_itself() {
    let lab = Lab::new();
    let nar = file_nar(&noise(64 << 20));
    let info = lab.add("huge", &nar);
    let url = nar_url(&lab, &info);
    let before = resident_bytes();
    let slow: Vec<_> = (0..16).map(|_| lab.begin_reading(&url)).collect();
    is_well(&lab);
    assert!(lab.get(&url).body == nar);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 200 << 20, "{} MiB more for 16 clients that do not read", grown >> 20);
    drop(slow);
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_stopping_server_ends_what_is_under_way_and_takes_nothing_new() {
    let lab = Lab::new();
    let nar = file_nar(&noise(16 << 20));
    let info = lab.add("huge", &nar);
    let url = nar_url(&lab, &info);
    let mut stream = lab.connect();
    stream.write_all(format!("GET {url} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes()).unwrap();
    let mut all = vec![0; 1000];
    stream.read_exact(&mut all).unwrap();
    lab.server.stop_accepting();
    stream.read_to_end(&mut all).unwrap();
    assert!(all.ends_with(&nar[nar.len() - 1000..]));
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while lab.server.unanswered() > 0 {
        assert!(std::time::Instant::now() < deadline, "still {} unanswered", lab.server.unanswered());
        std::thread::yield_now();
    }
}
