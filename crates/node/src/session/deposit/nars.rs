//! `nar/<file>` and `<hash part>.narinfo`.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aws_lc_rs::digest;
use shoal_store::Ingested;
use shoal_wire::nix::base32;
use shoal_wire::nix::hash::Hash;
use shoal_wire::nix::narinfo::{Compression, NarInfo};

use super::held::{Full, HeldNar};
use super::{Deposits, Outcome, Refusal};
use crate::build::derivations::PendingDerivations;
use crate::door::Grant;
use crate::upstream::decode;

/// Longest name of a NAR's file: those of Nix have 60 to 70 characters.
const FILE_NAME_LEN_MAX: usize = 255;
/// Bytes handed to the store at once.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes that tell how a file is compressed: a plain NAR begins with the length of its first word.
const HEAD_LEN: usize = 8;
/// Digits of a SHA-256.
const HASH_DIGITS: usize = 52;

impl Deposits {
    /// Takes in a NAR, compressed or not; it is held until a narinfo names it, and leaves nothing if it is not whole.
    pub fn put_nar(&self, grant: Grant, file: &str, body: impl BufRead + Send + 'static) -> Outcome {
        let taken = self.take_nar(grant, file, body);
        if matches!(taken, Err(Refusal { status: 507, .. })) {
            // So that what is deleted to make room is not kept for who might name it once more.
            self.held.let_go_of_used();
        }
        taken
    }

    fn take_nar(&self, grant: Grant, file: &str, body: impl BufRead + Send + 'static) -> Outcome {
        let owner = self.uploader(grant)?.peer.grant.who;
        check_file_name(file)?;
        let io = |error: io::Error| Refusal::of_io(&error);
        let (head, body) = peek(body).map_err(io)?;
        let compression = compression(file, &head)?;
        let (ingested, file_hash, file_size) = if compression == Compression::None {
            // The file is the NAR, and has its hash.
            let ingested = self.ingest(&owner, body)?;
            let (hash, size) = (ingested.nar_hash, ingested.nar_size);
            (ingested, hash, size)
        } else {
            let body = Measured::new(body);
            let measure = body.measure.clone();
            let nar = decode::nar(compression, body).map_err(io)?;
            let ingested = self.ingest(&owner, BufReader::with_capacity(PIECE_BYTES, nar))?;
            let (hash, size) = measure.end().map_err(io)?;
            (ingested, hash, size)
        };
        if let Some(named) = named_hash(file).filter(|named| *named != file_hash) {
            let (named, hash) = (Hash::sha256(named), Hash::sha256(file_hash));
            return Err(Refusal::bad(format!("'{file}' should have the hash {named} and has {hash}")));
        }
        let nar = HeldNar { ingested, file_hash, file_size };
        let held = self.held.hold(&owner, file.to_owned(), nar, Instant::now());
        held.map_err(|full| match full {
            Full::All => Refusal::busy("too many NARs wait for their narinfo; try again later"),
            Full::Own => Refusal::busy(format!("too many NARs of '{owner}' wait for their narinfo; bring those first")),
        })
    }

    /// Takes in a NAR that ends where its bytes do. What follows a compressed stream no decoder reads.
    fn ingest(&self, owner: &str, mut nar: impl BufRead) -> Outcome<Ingested> {
        let mut ingest = self.services.store.ingest();
        loop {
            let piece = match nar.fill_buf() {
                Ok([]) => return Ok(ingest.finish()?),
                Ok(piece) => piece,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Refusal::of_io(&error)),
            };
            let n = piece.len();
            if ingest.feed(piece)? < n {
                return Err(Refusal::bad("bytes follow the end of the NAR"));
            }
            nar.consume(n);
            // What else waits for its narinfo is not given up meanwhile.
            self.held.hear(owner, Instant::now());
        }
    }

    /// Makes a path of a NAR that is held.
    pub fn put_narinfo(&self, grant: Grant, hash_part: &str, text: &[u8]) -> Outcome {
        let client = self.uploader(grant)?;
        let NarInfo { mut info, url, file_hash, file_size, .. } =
            NarInfo::parse(client.dir(), text).map_err(|error| Refusal::bad(error.to_string()))?;
        let path = client.dir().print(&info.path);
        if info.path.hash_part() != hash_part {
            return Err(Refusal::bad(format!("'{hash_part}.narinfo' is not the place of '{path}'")));
        }
        client.temp_roots.add(&info.path);
        self.held.hear(&client.peer.grant.who, Instant::now());
        let file = url.split(['?', '#']).next().and_then(|url| url.strip_prefix("nar/")).unwrap_or_default();
        if let Some(known) = client.store().path_info(&info.path)? {
            client.add_to_valid(&known, &info)?;
            self.held.used(file, Instant::now());
            // Whoever brought it may still wait for its copies, or have given up.
            return client.acknowledge([&known]).map_err(|fault| Refusal::of_fault(503, fault));
        }
        client.judge_claim(&info)?;
        let Some(nar) = self.held.get(file, Instant::now()) else {
            return Err(Refusal::bad(format!("'{path}' is in '{url}', which was not uploaded; upload it first")));
        };
        if file_hash.is_some_and(|hash| hash != Hash::sha256(nar.file_hash))
            || file_size.is_some_and(|size| size != nar.file_size)
        {
            let hash = Hash::sha256(nar.file_hash);
            return Err(Refusal::bad(format!("'{url}' has the hash {hash} and {} bytes", nar.file_size)));
        }
        let ingested = nar.ingested.clone();
        client.bring_references(std::iter::once(&info));
        client.judge_contents(&mut info, &ingested, &PendingDerivations::new())?;
        if let Err(refusal) = client.commit(vec![(info, ingested)]) {
            if refusal.status == 409 && !nar.ingested.is_here() {
                // Who tries again is to bring it, and looks first whether it is here.
                self.held.let_go_of(file);
            }
            return Err(refusal);
        }
        self.held.used(file, Instant::now());
        Ok(())
    }
}

fn check_file_name(file: &str) -> Outcome {
    let fits = |c: char| c.is_ascii_alphanumeric() || "+-._=".contains(c);
    match file.len() <= FILE_NAME_LEN_MAX && file.contains(".nar") && !file.starts_with('.') && file.chars().all(fits) {
        true => Ok(()),
        false => Err(Refusal::bad("a NAR's file is called <hash>.nar, <hash>.nar.xz or the like")),
    }
}

/// The hash that the file's name says it has, where it says so as Nix does.
fn named_hash(file: &str) -> Option<[u8; 32]> {
    let (digits, _) = file.split_once('.')?;
    let mut hash = [0; 32];
    (digits.len() == HASH_DIGITS).then(|| base32::decode_into(digits.as_bytes(), &mut hash).ok())??;
    Some(hash)
}

/// The first bytes of a body, which may come one by one, and the whole of it.
fn peek<R: BufRead>(mut body: R) -> io::Result<(Vec<u8>, impl BufRead + use<R>)> {
    let mut head = Vec::with_capacity(HEAD_LEN);
    body.by_ref().take(HEAD_LEN as u64).read_to_end(&mut head)?;
    Ok((head.clone(), io::Cursor::new(head).chain(body)))
}

/// How a file is compressed, by its first bytes: Nix gives some compressions no extension. Brotli has no such bytes.
fn compression(file: &str, head: &[u8]) -> Outcome<Compression> {
    Ok(match head {
        _ if file.ends_with(".br") => Compression::Brotli,
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [b'B', b'Z', b'h', ..] => Compression::Bzip2,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        [0x0d, 0, 0, 0, 0, 0, 0, 0, ..] => Compression::None,
        _ => {
            let known = "none, xz, zstd, br, bzip2 or gzip";
            return Err(Refusal::bad(format!("'{file}' is compressed in a way not known here; use {known}")));
        }
    })
}

/// Hashes and counts what is taken from a body.
struct Measured<R: BufRead> {
    body: R,
    measure: Arc<Measure>,
}

struct Measure(Mutex<(digest::Context, u64, bool)>);

impl Measure {
    /// The hash and size of the file. An error unless it was read to its end.
    fn end(&self) -> io::Result<([u8; 32], u64)> {
        let measured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (context, size, ended) = &*measured;
        if !ended {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes follow the compressed NAR"));
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(context.clone().finish().as_ref());
        Ok((hash, *size))
    }
}

impl<R: BufRead> Measured<R> {
    fn new(body: R) -> Self {
        let measure = Measure(Mutex::new((digest::Context::new(&digest::SHA256), 0, false)));
        Measured { body, measure: Arc::new(measure) }
    }
}

impl<R: BufRead> BufRead for Measured<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.body.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        // What is consumed was just filled, so this reads nothing.
        if let Ok(bytes) = self.body.fill_buf() {
            let mut measured = self.measure.0.lock().unwrap_or_else(PoisonError::into_inner);
            measured.0.update(&bytes[..n.min(bytes.len())]);
            measured.1 += n as u64;
        }
        self.body.consume(n);
    }
}

impl<R: BufRead> Read for Measured<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let n = ready.len().min(out.len());
        out[..n].copy_from_slice(&ready[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// Some decoders stop at the end of their stream and give the body away to nobody, so its end is looked for here.
impl<R: BufRead> Drop for Measured<R> {
    fn drop(&mut self) {
        let ended = matches!(self.body.fill_buf(), Ok([]));
        self.measure.0.lock().unwrap_or_else(PoisonError::into_inner).2 = ended;
    }
}
