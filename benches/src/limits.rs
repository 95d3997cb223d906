//! What one core, the disk and the loopback of this machine can do at all: no number beside these means anything
//! without them.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use sha2::Digest;
use shoal_tests::Place;

use crate::Plan;
use crate::report::Report;

const NOISE_BYTES: usize = 64 << 20;
const LOOPBACK_BYTES: usize = 1 << 30;
const BLOCK: usize = 64 << 10;
/// OpenSSH's packets.
const PACKET: usize = 32 << 10;
const SYNCS: usize = 50;
const STARTS: usize = 50;

const HERE: &str = "this machine";

pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let noise = noise(plan.scaled(NOISE_BYTES, 4 << 20));
    let place = Place::new("l");
    for _ in 0..plan.reps {
        hashes(report, &noise)?;
        ciphers(report, &noise)?;
        copies(report, &noise)?;
        loopback(report, plan.scaled(LOOPBACK_BYTES, 64 << 20))?;
        report.add("fdatasync of 4 KiB appended", HERE, "ms", fdatasync(&place)?)?;
        report.add("start of a process", HERE, "ms", process_start()?)?;
    }
    Ok(())
}

/// MiB/s of `run` over `bytes`.
fn speed(bytes: usize, run: impl FnOnce()) -> f64 {
    let since = Instant::now();
    run();
    bytes as f64 / f64::from(1 << 20) / since.elapsed().as_secs_f64()
}

fn hashes(report: &mut Report, noise: &[u8]) -> Result<()> {
    let mut add = |what: &str, run: &dyn Fn()| report.add(what, HERE, "MiB/s", speed(noise.len(), run));
    add("SHA-256, aws-lc-rs", &|| _ = black_box(digest(&SHA256, noise)))?;
    add("SHA-256, sha2", &|| _ = black_box(sha2::Sha256::digest(noise)))?;
    add("BLAKE3, 64 KiB at a time", &|| noise.chunks(BLOCK).for_each(|block| _ = black_box(blake3::hash(block))))
}

fn ciphers(report: &mut Report, noise: &[u8]) -> Result<()> {
    let ciphers: [(&str, &'static Algorithm); 2] =
        [("ChaCha20-Poly1305", &CHACHA20_POLY1305), ("AES-256-GCM", &AES_256_GCM)];
    for (name, algorithm) in ciphers {
        let key = UnboundKey::new(algorithm, &[7; 32]).map_err(|_| anyhow!("{name}: no key"))?;
        let key = LessSafeKey::new(key);
        let mut data = noise.to_vec();
        let seal = |packet: &mut [u8]| {
            let nonce = Nonce::assume_unique_for_key([0; 12]);
            key.seal_in_place_separate_tag(nonce, Aad::empty(), packet).map(|tag| _ = black_box(tag))
        };
        let mut sealed = Ok(());
        let mib_s = speed(noise.len(), || sealed = data.chunks_mut(PACKET).try_for_each(seal));
        sealed.map_err(|_| anyhow!("{name}: cannot encrypt"))?;
        report.add(&format!("{name}, 32 KiB packets"), HERE, "MiB/s", mib_s)?;
    }
    Ok(())
}

fn copies(report: &mut Report, noise: &[u8]) -> Result<()> {
    let mut to = vec![0; noise.len()];
    report.add("memcpy", HERE, "MiB/s", speed(noise.len(), || black_box(&mut to).copy_from_slice(black_box(noise))))?;
    let text = words(noise.len());
    let mut packed = Ok(Vec::new());
    report.add("zstd 1, text", HERE, "MiB/s", speed(text.len(), || packed = zstd::bulk::compress(&text, 1)))?;
    let (packed, mut plain) = (packed?, Ok(Vec::new()));
    let mib_s = speed(text.len(), || plain = zstd::bulk::decompress(&packed, text.len()));
    plain?;
    report.add("zstd 1 decoded, text", HERE, "MiB/s", mib_s)
}

/// One sender, one receiver, one connection, with no encryption.
fn loopback(report: &mut Report, bytes: usize) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let to = listener.local_addr()?;
    let sender = thread::spawn(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(to)?;
        let block = vec![0; 4 * BLOCK];
        (0..bytes / block.len()).try_for_each(|_| stream.write_all(&block))
    });
    let (mut stream, _) = listener.accept()?;
    let mut block = vec![0; 4 * BLOCK];
    let mut received = Ok(());
    let mib_s = speed(bytes, || {
        received = loop {
            match stream.read(&mut block) {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        }
    });
    received?;
    sender.join().map_err(|_| anyhow!("the sender panicked"))??;
    report.add("loopback TCP, one connection", HERE, "MiB/s", mib_s)
}

/// Mean ms of an append that is on the disk when it returns.
fn fdatasync(place: &Place) -> Result<f64> {
    let mut file = File::options().create(true).append(true).open(place.join("synced"))?;
    let since = Instant::now();
    for _ in 0..SYNCS {
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
    }
    Ok(since.elapsed().as_secs_f64() * 1e3 / SYNCS as f64)
}

/// Mean ms until `true` has run.
fn process_start() -> Result<f64> {
    let since = Instant::now();
    for _ in 0..STARTS {
        Command::new("true").status().context("true")?;
    }
    Ok(since.elapsed().as_secs_f64() * 1e3 / STARTS as f64)
}

/// Bytes that nothing compresses, the same each time.
pub fn noise(len: usize) -> Vec<u8> {
    let mut next = numbers(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Text of random words: compresses about as source code does.
pub fn words(len: usize) -> Vec<u8> {
    const WORDS: &[u8] = b"the store holds a path until nobody asks for its closure; return if (size < limit) \
        { buffer[offset++] = value; } else static const struct node *next = list->head; \n\
        #include <stdint.h> /* see the manual */ void build(unsigned long count) for while do";
    let mut next = numbers(len as u64 | 1);
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        let number = next();
        let (start, size) = (number as usize % (WORDS.len() - 10), (number >> 32 & 7) as usize + 2);
        bytes.extend_from_slice(&WORDS[start..start + size]);
    }
    bytes.truncate(len);
    bytes
}

/// Xorshift numbers from a seed that is not 0.
fn numbers(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// CPU seconds of this thread so far.
pub fn thread_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
