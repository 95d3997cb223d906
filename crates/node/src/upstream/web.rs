//! HTTP and HTTPS as a cache's client needs them: small documents whole and within a time, files as streams.

use std::fmt;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_wire::nix::base64;
use ureq::Agent;
use ureq::config::{AutoHeaderValue, Config};
use ureq::http::{HeaderMap, HeaderName, Response, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use super::decode;

/// As many as Nix lets curl follow.
const REDIRECTS_MAX: u32 = 10;
/// Connections kept for the next request; as many as there are requests to one upstream at once.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// Bytes of a response's status line and headers.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// What is read from a connection at once.
const INPUT_BUFFER_BYTES: usize = 128 << 10;
/// The body of a refusal is read so that its connection can be used again, unless it is longer.
const REFUSAL_BYTES_MAX: u64 = 64 << 10;
/// Or takes longer: another connection costs less than that.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(1);
/// A refusal is mostly a line or a page.
const REFUSAL_PIECE_BYTES: usize = 8 << 10;

const USER_AGENT: &str = concat!("shoal/", env!("CARGO_PKG_VERSION"));

/// How long an upstream may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From question to answer, for small documents.
    pub ask: Duration,
    /// Until there is a connection, TLS included.
    pub connect: Duration,
    /// Until the first byte of a file.
    pub first_byte: Duration,
    /// Without any byte, in the middle of a file.
    pub stall: Duration,
}

impl Patience {
    /// `ask` is more than anybody waits, so that a slow answer is still of use to the next who asks. A cache in front
    /// of slow storage takes a while for a first byte.
    pub const DEFAULT: Patience = Patience {
        ask: Duration::from_secs(5),
        connect: Duration::from_secs(5),
        first_byte: Duration::from_secs(15),
        stall: Duration::from_secs(20),
    };
}

/// The certificates that vouch for servers.
#[derive(Clone, Debug, Default)]
pub struct Authorities(Vec<Certificate<'static>>);

impl Authorities {
    /// Those in a PEM bundle; what in it is no certificate is skipped.
    pub fn read(bundle: &Path) -> std::io::Result<Authorities> {
        let pem = std::fs::read(bundle)?;
        let certificates = parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        Ok(Authorities(certificates.collect()))
    }

    /// Those of `bundle`, or else of the machine, which may have none.
    pub fn find(bundle: Option<&Path>) -> std::io::Result<Authorities> {
        match bundle {
            Some(bundle) => Authorities::read(bundle),
            None => {
                let bundles = crate::build::CA_BUNDLES.iter();
                Ok(bundles.filter_map(|bundle| Authorities::read(Path::new(bundle)).ok()).next().unwrap_or_default())
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why there is no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server says that it has none.
    Missing,
    /// Anything else: no answer, or one that is none.
    Failed(String),
}

impl Refusal {
    pub fn failed(error: impl fmt::Display) -> Refusal {
        Refusal::Failed(error.to_string())
    }
}

/// A file that has begun to arrive.
pub struct Opened {
    pub body: decode::Bytes,
    /// Bytes that `body` will give, if the server said so and did not encode them.
    pub length: Option<u64>,
    /// Whether the server would send the same from a later byte on.
    pub resumable: bool,
    /// What the server calls these very bytes.
    pub etag: Option<String>,
}

/// What of a file is asked for: its rest, if it is still the file that is known.
#[derive(Default)]
struct Part<'a> {
    offset: u64,
    etag: Option<&'a str>,
}

/// Requests to one cache, over connections that are kept.
pub struct Web {
    agent: Agent,
    /// Before the path of every URL that may see the login.
    origin: String,
    authorization: Option<String>,
}

impl Web {
    /// `login`: user and password for URLs that begin with `origin`.
    pub fn new(authorities: &Authorities, patience: Patience, origin: &str, login: Option<(&str, &str)>) -> Web {
        let authorization =
            login.map(|(user, password)| format!("Basic {}", base64::encode(format!("{user}:{password}").as_bytes())));
        Web { agent: agent(authorities, patience), origin: origin.to_string(), authorization }
    }

    /// All of a document of at most `len_max` bytes, within `budget` from connecting to its end.
    pub fn get(&self, url: &str, len_max: usize, budget: Duration) -> Result<Vec<u8>, Refusal> {
        let response = self.request(url, &Part::default(), Some(budget))?;
        let encoding = text(response.headers(), header::CONTENT_ENCODING).unwrap_or_default();
        let body = BufReader::new(response.into_body().into_reader());
        let body = decode::content(&encoding, body).map_err(Refusal::failed)?;
        let mut document = Vec::new();
        body.take(len_max as u64 + 1).read_to_end(&mut document).map_err(Refusal::failed)?;
        match document.len() > len_max {
            true => Err(Refusal::Failed(format!("more than {len_max} bytes"))),
            false => Ok(document),
        }
    }

    /// A file from `offset` on, of the bytes that have this etag.
    pub fn open(&self, url: &str, offset: u64, etag: Option<&str>) -> Result<Opened, Refusal> {
        let response = self.request(url, &Part { offset, etag }, None)?;
        let headers = response.headers();
        if offset > 0 && !(response.status().as_u16() == 206 && continues_at(headers, offset)) {
            return Err(Refusal::Failed("the server sends the whole again instead of the rest".into()));
        }
        let encoding = text(headers, header::CONTENT_ENCODING).unwrap_or_default();
        let stored = encoding.is_empty() || encoding == "identity";
        let resumable = stored && text(headers, header::ACCEPT_RANGES).is_some_and(|unit| unit == "bytes");
        let length = text(headers, header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let etag = headers.get(header::ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        // A weak one may stand for other bytes of the same meaning.
        let etag = etag.filter(|etag| etag.starts_with('"'));
        let body = BufReader::with_capacity(INPUT_BUFFER_BYTES, response.into_body().into_reader());
        let body = decode::content(&encoding, body).map_err(Refusal::failed)?;
        Ok(Opened { body, length: length.filter(|_| stored), resumable, etag })
    }

    fn request(&self, url: &str, part: &Part<'_>, budget: Option<Duration>) -> Result<Response<ureq::Body>, Refusal> {
        let response = match self.call(url, part, budget) {
            // The server may have closed a kept connection just when it was used.
            Err(error) if is_broken(&error) => self.call(url, part, budget),
            other => other,
        };
        let response = response.map_err(Refusal::failed)?;
        match response.status().as_u16() {
            200..=299 => Ok(response),
            status => {
                drain(response.into_body().into_reader().take(REFUSAL_BYTES_MAX));
                // 403 is what buckets answer for files they do not list.
                Err(if matches!(status, 403 | 404 | 410) {
                    Refusal::Missing
                } else {
                    Refusal::Failed(format!("HTTP status {status}"))
                })
            }
        }
    }

    fn call(&self, url: &str, part: &Part<'_>, budget: Option<Duration>) -> Result<Response<ureq::Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(authorization) = self.authorization.as_ref().filter(|_| url.starts_with(&self.origin)) {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if part.offset > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", part.offset));
            if let Some(etag) = part.etag {
                request = request.header(header::IF_RANGE, etag);
            }
        }
        let request = match budget {
            Some(_) => request.config().timeout_global(budget).build(),
            None => request,
        };
        request.call()
    }
}

/// Reads the body of a refusal, only for its connection: what it says is of no interest. One that comes too slowly is
/// left, at the latest when its next byte does not come.
fn drain(mut refusal: impl Read) {
    let deadline = Instant::now() + REFUSAL_PATIENCE;
    let mut piece = [0; REFUSAL_PIECE_BYTES];
    while Instant::now() < deadline && refusal.read(&mut piece).is_ok_and(|n| n > 0) {}
}

fn is_broken(error: &ureq::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error {
        ureq::Error::Io(error) => {
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        }
        _ => false,
    }
}

/// Connections that are kept, to servers that `authorities` vouch for where they speak TLS. A status is no error.
pub fn agent(authorities: &Authorities, patience: Patience) -> Agent {
    Agent::new_with_config(config(authorities, patience))
}

fn config(authorities: &Authorities, patience: Patience) -> Config {
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::new_with_certs(&authorities.0))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .build();
    Config::builder()
        .tls_config(tls)
        .user_agent(USER_AGENT)
        .accept_encoding(AutoHeaderValue::None)
        .http_status_as_error(false)
        .max_redirects(REDIRECTS_MAX)
        .max_redirects_will_error(true)
        .max_idle_connections(IDLE_CONNECTIONS_MAX)
        .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
        .max_response_header_size(HEADER_BYTES_MAX)
        .input_buffer_size(INPUT_BUFFER_BYTES)
        .timeout_connect(Some(patience.connect))
        .timeout_recv_response(Some(patience.first_byte))
        .timeout_per_read(Some(patience.stall))
        .timeout_per_write(Some(patience.stall))
        .build()
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_ascii_lowercase())
}

fn continues_at(headers: &HeaderMap, offset: u64) -> bool {
    let range = text(headers, header::CONTENT_RANGE);
    let start = range.as_deref().and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    start == Some(offset)
}
