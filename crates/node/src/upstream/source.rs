//! One NAR from one upstream: resumed where the connection breaks, checked against what the narinfo says of the file,
//! decompressed, and never longer than promised.

use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_wire::nix::hash::{Hash, Hasher};

use super::cache::Cache;
use super::decode::{self, Bytes};
use super::offer::CacheFile;
use super::web::{Opened, Refusal};

/// Times that one file is taken up again where its connection broke.
const RESUMES_MAX: u32 = 3;
/// While a file is waited for, at least so much must come in each [`RATE_TIME`]: a sender that drips is as bad as one
/// that stalls, and nobody needs a cache that is slower than a modem.
const RATE_BYTES_MIN: u64 = 64 << 10;
const RATE_TIME: Duration = Duration::from_secs(60);
/// Read from the connection at once.
const FILE_BUFFER_BYTES: usize = 64 << 10;
/// Handed on at once.
const NAR_BUFFER_BYTES: usize = 128 << 10;
/// Bytes after the compressed NAR that are looked at; real files have none.
const TAIL_BYTES_MAX: u64 = 1 << 20;

/// Why a NAR did not come in.
#[derive(Debug)]
pub enum Trouble {
    /// It is the upstream's.
    Upstream(Refusal),
    /// It would fail with every upstream.
    Here(String),
}

/// Gives `take` the NAR of `nar_size` bytes that is in `offer`, piece by piece. What came is that NAR only if nothing
/// failed, here or with the NAR's hash, which the caller checks.
pub fn read(
    cache: &Arc<Cache>,
    offer: &CacheFile,
    nar_size: u64,
    file_bytes: Arc<AtomicU64>,
    mut take: impl FnMut(&[u8]) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let failed = |why: String| Trouble::Upstream(Refusal::Failed(why));
    let file = SharedFile::open(cache.clone(), offer, file_bytes).map_err(Trouble::Upstream)?;
    let mut nar = decode::nar(offer.compression, BufReader::with_capacity(FILE_BUFFER_BYTES, file.clone()))
        .map_err(|error| failed(error.to_string()))?;
    let (mut buffer, mut total) = (vec![0; NAR_BUFFER_BYTES], 0u64);
    loop {
        let n = match nar.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(format!("its NAR broke off after {total} bytes: {error}"))),
        };
        total += n as u64;
        if total > nar_size {
            return Err(failed(format!("its NAR is longer than the {nar_size} bytes it promised")));
        }
        take(&buffer[..n])?;
    }
    if total < nar_size {
        return Err(failed(format!("its NAR has {total} bytes, not the {nar_size} it promised")));
    }
    file.lock().check_end(offer).map_err(failed)
}

/// The file behind the decoder, which keeps hold of it.
#[derive(Clone)]
struct SharedFile(Arc<Mutex<File>>);

impl SharedFile {
    fn open(cache: Arc<Cache>, offer: &CacheFile, counter: Arc<AtomicU64>) -> Result<SharedFile, Refusal> {
        let url = cache.file_url(&offer.url);
        let opened = cache.web.open(&url, 0, None)?;
        if let (Some(length), Some(size)) = (opened.length, offer.file_size)
            && length != size
        {
            return Err(Refusal::Failed(format!("its file has {length} bytes, not the {size} it promised")));
        }
        counter.store(0, Ordering::Relaxed);
        let Opened { body, length, resumable, etag } = opened;
        Ok(SharedFile(Arc::new(Mutex::new(File {
            cache,
            url,
            body,
            length: length.or(offer.file_size),
            resumable,
            etag,
            resumes: 0,
            bytes: 0,
            hasher: offer.file_hash.map(|hash| (Hasher::new(hash.algo()), hash)),
            counter,
            waited: Duration::ZERO,
            recent_bytes: 0,
        }))))
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read for SharedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.lock().read(buffer)
    }
}

struct File {
    cache: Arc<Cache>,
    url: String,
    body: Bytes,
    /// Of the whole file, where that is known.
    length: Option<u64>,
    resumable: bool,
    /// Where the server named these bytes: they may be others under the same URL later.
    etag: Option<String>,
    resumes: u32,
    bytes: u64,
    hasher: Option<(Hasher, Hash)>,
    counter: Arc<AtomicU64>,
    /// Time spent in waiting since `recent_bytes` was 0.
    waited: Duration,
    recent_bytes: u64,
}

impl File {
    /// Takes up the file where it broke off, if that is possible.
    fn resume(&mut self, error: io::Error) -> io::Result<()> {
        if !self.resumable || self.resumes >= RESUMES_MAX {
            return Err(error);
        }
        self.resumes += 1;
        let opened = self.cache.web.open(&self.url, self.bytes, self.etag.as_deref()).map_err(|_| error)?;
        self.body = opened.body;
        Ok(())
    }

    fn check_rate(&mut self, waited: Duration, bytes: usize) -> io::Result<()> {
        self.waited += waited;
        self.recent_bytes += bytes as u64;
        if self.waited < RATE_TIME {
            return Ok(());
        }
        let too_slow = self.recent_bytes < RATE_BYTES_MIN;
        (self.waited, self.recent_bytes) = (Duration::ZERO, 0);
        match too_slow {
            true => Err(io::Error::new(io::ErrorKind::TimedOut, "it comes too slowly")),
            false => Ok(()),
        }
    }

    /// Reads what follows the compressed NAR, and compares the whole with what was promised.
    fn check_end(&mut self, offer: &CacheFile) -> Result<(), String> {
        let rest = io::copy(&mut self.by_ref().take(TAIL_BYTES_MAX), &mut io::sink());
        if rest.map_err(|error| error.to_string())? >= TAIL_BYTES_MAX {
            return Err("its file does not end where its NAR does".into());
        }
        if let Some(size) = offer.file_size.filter(|size| *size != self.bytes) {
            return Err(format!("its file has {} bytes, not the {size} it promised", self.bytes));
        }
        match self.hasher.take() {
            Some((hasher, promised)) => {
                let got = hasher.finish();
                (got == promised).then_some(()).ok_or_else(|| format!("its file has the hash {got}, not {promised}"))
            }
            None => Ok(()),
        }
    }
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let since = Instant::now();
            let read = self.body.read(buffer);
            let read = match read {
                Ok(0) if !buffer.is_empty() && self.length.is_some_and(|length| self.bytes < length) => {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended in the middle"))
                }
                read => read,
            };
            match read {
                Ok(n) => {
                    self.check_rate(since.elapsed(), n)?;
                    self.bytes += n as u64;
                    if self.length.is_some_and(|length| self.bytes > length) {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than it promised"));
                    }
                    self.counter.store(self.bytes, Ordering::Relaxed);
                    if let Some((hasher, _)) = &mut self.hasher {
                        hasher.update(&buffer[..n]);
                    }
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.resume(error)?,
            }
        }
    }
}
