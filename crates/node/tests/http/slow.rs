//! Clients that send or take next to nothing, for ever. Each is cut off by the bound that is meant for it, and others
//! notice nothing. The bounds are short here; how long anything takes is not looked at.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shoal_node::http::Limits;

use crate::lab::{Lab, PATIENCE, Wanted, answer, file_nar, nar_url, noise};

const SHORT: Duration = Duration::from_millis(300);

fn lab(limits: Limits) -> Lab {
    Lab::with(Wanted { limits, takes_uploads: true, ..Wanted::default() })
}

/// Sends byte after byte, with a little rest after each, until the server has hung up; what it said before.
fn dribble(lab: &Lab, mut stream: TcpStream, bytes: &[u8]) -> Option<u16> {
    let ended = AtomicBool::new(false);
    let deadline = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        let mut sends = stream.try_clone().unwrap();
        let ended = &ended;
        scope.spawn(move || {
            for byte in bytes.iter().cycle() {
                if ended.load(Ordering::SeqCst) || sends.write_all(&[*byte]).is_err() {
                    return;
                }
                assert!(Instant::now() < deadline, "still listened to");
                std::thread::sleep(SHORT / 30);
            }
        });
        assert_eq!(lab.get("/healthz").status, 200);
        let mut first = [0];
        let said = stream.read(&mut first).unwrap_or(0);
        ended.store(true, Ordering::SeqCst);
        let _ = stream.shutdown(Shutdown::Write);
        (said == 1).then(|| answer(first.chain(stream), false)).flatten().map(|answer| answer.status)
    })
}

fn is_over(lab: &Lab) {
    let deadline = Instant::now() + PATIENCE;
    while lab.server.unanswered() > 0 {
        assert!(Instant::now() < deadline, "{} requests stay", lab.server.unanswered());
        std::thread::yield_now();
    }
    assert_eq!(lab.get("/healthz").status, 200);
}

#[test]
fn heads_that_dribble_in() {
    let lab = lab(Limits { idle: SHORT, ..Limits::USUAL });
    let mut stream = lab.connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nX: ").unwrap();
    // Hyper may say that it waited too long, or nothing.
    assert!(matches!(dribble(&lab, stream, b"y"), None | Some(408)));
    is_over(&lab);
}

#[test]
fn uploads_that_dribble_in() {
    let lab = lab(Limits { silence: SHORT, ..Limits::USUAL });
    let nar = file_nar(&noise(1 << 20));
    for path in ["/nar/x.nar", "/nix-cache-info", "/00000000000000000000000000000000.narinfo"] {
        let mut stream = lab.connect();
        stream.write_all(lab.put_head(path, 60_000).as_bytes()).unwrap();
        // What it still sends when the server closes may cost it the answer.
        assert!(matches!(dribble(&lab, stream, &nar[..50_000]), None | Some(408)), "{path}");
        is_over(&lab);
    }
}

#[test]
fn uploads_that_fall_silent() {
    let lab = lab(Limits { silence: SHORT, ..Limits::USUAL });
    let nar = file_nar(&noise(1 << 20));
    let silent: Vec<_> = ["/nar/x.nar", "/nix-cache-info", "/log/00000000000000000000000000000000-x.drv"]
        .iter()
        .map(|path| {
            let mut stream = lab.connect();
            stream.write_all(lab.put_head(path, 60_000).as_bytes()).unwrap();
            stream.write_all(&nar[..1000]).unwrap();
            stream
        })
        .collect();
    assert_eq!(lab.put("/nar/other.nar", &nar).status, 200);
    for stream in silent {
        assert_eq!(answer(stream, false).unwrap().status, 408);
    }
    is_over(&lab);
}

/// Nothing is taken: the socket is full.
#[test]
fn readers_that_fall_silent() {
    let lab = lab(Limits { stall: SHORT, ..Limits::USUAL });
    let nar = file_nar(&noise(64 << 20));
    let url = nar_url(&lab, &lab.add("large", &nar));
    let readers: Vec<_> = (0..8).map(|_| lab.begin_reading(&url)).collect();
    assert!(lab.get(&url).body == nar);
    is_over(&lab);
    for mut reader in readers {
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest);
        assert!(rest.len() < nar.len(), "all of it came");
    }
}

/// A NAR that is begun holds memory, whether it is taken or not: beyond a bound no more are begun.
#[test]
fn nars_that_nobody_takes_hold_no_more_than_there_is_room_for() {
    let lab = Lab::with(Wanted { begun_bytes: 2 << 20, ..Wanted::default() });
    let (large, small) = (file_nar(&noise(64 << 20)), file_nar(&noise(100_000)));
    let (large_url, small_url) = (nar_url(&lab, &lab.add("large", &large)), nar_url(&lab, &lab.add("small", &small)));
    let readers: Vec<_> = (0..3).map(|_| lab.begin_reading(&large_url)).collect();
    let refused = lab.get(&large_url);
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")), "{refused:?}");
    assert!(lab.get(&small_url).body == small);
    assert_eq!(lab.ask("HEAD", &large_url, "").status, 200);
    drop(readers);
    is_over(&lab);
    assert!(lab.get(&large_url).body == large);
}

/// Who takes nothing holds no thread, of however few there are.
#[test]
fn readers_that_fall_silent_hold_no_thread() {
    let lab = Lab::with(Wanted { blocking_threads: 4, ..Wanted::default() });
    let nar = file_nar(&noise(16 << 20));
    let info = lab.add("large", &nar);
    let file = format!("/serve/{}", info.path.base_name());
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = lab.connect();
            stream.write_all(format!("GET {file} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes()).unwrap();
            stream.read_exact(&mut [0; 100]).unwrap();
            stream
        })
        .collect();
    assert!(lab.get(&file).body == noise(16 << 20));
    drop(readers);
}

/// A few bytes are taken now and then, as slowly as the bound for silence allows.
#[test]
fn readers_that_dribble() {
    let lab = lab(Limits { piece: SHORT, ..Limits::USUAL });
    let url = nar_url(&lab, &lab.add("large", &file_nar(&noise(64 << 20))));
    let mut stream = lab.connect();
    stream.write_all(format!("GET {url} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    // The kernel holds a few MiB for who reads so slowly; they do not end in this time.
    while lab.server.unanswered() > 0 || Instant::now() < deadline - PATIENCE + SHORT {
        assert!(Instant::now() < deadline, "still served");
        stream.read_exact(&mut [0; 10]).unwrap();
        std::thread::sleep(SHORT / 30);
    }
    is_over(&lab);
}
