//! One answer to one URL, redirects followed.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shoal_wire::nix::base64;
use ureq::config::{AutoHeaderValue, Config};
use ureq::http::header::{self, HeaderMap, HeaderName};
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, DefaultConnector};
use ureq::{Agent, Body, Proxy};

use super::connect::{Fixed, Watch};
use super::fault::{Fault, Pace};
use super::proxy::Proxies;
use super::url::Url;
use crate::netrc::Netrc;

/// As many as Nix lets curl follow.
const REDIRECTS_MAX: usize = 10;

/// Bytes of a response's status line and headers.
const RESPONSE_HEADER_BYTES_MAX: usize = 64 << 10;

/// What is read from a connection at once.
const INPUT_BUFFER_BYTES: usize = 256 << 10;

/// An error page up to this many bytes is shown, as in Nix.
const SHOWN_BODY_BYTES_MAX: usize = 1024;

const USER_AGENT: &str = concat!("shoal/", env!("CARGO_PKG_VERSION"));

/// How long a connection may take to do something.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until there is a connection, TLS included.
    pub connect: Duration,
    /// Without any byte.
    pub stalled: Duration,
}

impl Patience {
    /// Nix's `connect-timeout` and `stalled-download-timeout`.
    pub const DEFAULT: Patience = Patience { connect: Duration::from_secs(15), stalled: Duration::from_secs(300) };
}

/// What requests are made with.
pub struct Client {
    pub patience: Patience,
    pub authorities: Authorities,
    pub netrc: Netrc,
    pub proxies: Proxies,
}

/// The certificates that vouch for servers.
#[derive(Clone, Debug, Default)]
pub struct Authorities(Vec<Certificate<'static>>);

impl Authorities {
    /// Reads a PEM bundle. A missing file holds none; what is no certificate is skipped.
    pub fn read(bundle: &Path) -> io::Result<Authorities> {
        let pem = match std::fs::read(bundle) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Authorities::default()),
            pem => pem?,
        };
        let certificates = parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        Ok(Authorities(certificates.collect()))
    }
}

/// A body that has begun to arrive.
pub struct Answer {
    pub body: Box<dyn Read>,
    /// Where in the whole `body` begins: where it was asked to, or at 0.
    pub offset: u64,
    /// Bytes that `body` will give, if the server said so.
    pub length: Option<u64>,
    /// Whether the server would send the same body from a later byte on.
    pub resumable: bool,
}

impl Client {
    /// Asks for the bytes of `url` from `offset` on.
    pub fn get(&self, url: &Url, offset: u64) -> Result<Answer, Fault> {
        let mut url = url.clone();
        for hop in 0..=REDIRECTS_MAX {
            match url.scheme.as_str() {
                "http" | "https" => {}
                // As in curl, nothing on the network may lead to a file.
                "file" if hop == 0 => return open_file(&url, offset),
                other => return Err(Fault::permanent(format!("protocol '{other}' is not supported"))),
            }
            let response = self.request(&url, offset)?;
            match redirect(&response) {
                Some(location) => url = url.join(&location).map_err(Fault::permanent)?,
                None => return answer(response, offset),
            }
        }
        Err(Fault::permanent(format!("more than {REDIRECTS_MAX} redirects")))
    }

    fn request(&self, url: &Url, offset: u64) -> Result<Response<Body>, Fault> {
        let uri: Uri =
            url.request_uri().parse().map_err(|error| Fault::permanent(format!("malformed URL: {error}")))?;
        if url.scheme == "https" && self.authorities.0.is_empty() {
            return Err(Fault::permanent("there are no CA certificates to check the server's with"));
        }
        let proxy = self.proxies.choose(url);
        let forwarded = proxy.as_deref().filter(|proxy| url.scheme == "http" && proxy.starts_with("http://"));
        let (agent, proxy_login) = match (forwarded, &proxy) {
            (Some(proxy), _) => {
                let proxy = Url::parse(proxy).map_err(|error| Fault::permanent(format!("malformed proxy: {error}")))?;
                (self.forwarding_agent(url, &proxy)?, proxy.user.map(|user| (user, proxy.password.unwrap_or_default())))
            }
            (None, Some(proxy)) => {
                let proxy = Proxy::new(proxy).map_err(|error| Fault::permanent(format!("malformed proxy: {error}")))?;
                (self.agent(Some(proxy)), None)
            }
            (None, None) => (self.agent(None), None),
        };
        let mut request = agent.get(uri);
        if let Some((user, password)) = self.login(url) {
            request = request.header(header::AUTHORIZATION, basic(&user, &password));
        }
        if let Some((user, password)) = proxy_login {
            request = request.header(header::PROXY_AUTHORIZATION, basic(&user, &password));
        }
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        request.call().map_err(|error| Fault::of_request(error, &self.patience))
    }

    fn login(&self, url: &Url) -> Option<(String, String)> {
        if let (Some(user), Some(password)) = (&url.user, &url.password) {
            return Some((user.clone(), password.clone()));
        }
        let found = self.netrc.login(url.host(), url.user.as_deref());
        let found = found.map(|(user, password)| (user.to_owned(), password.to_owned()));
        found.or_else(|| Some((url.user.clone()?, String::new())))
    }

    fn agent(&self, proxy: Option<Proxy>) -> Agent {
        let connector = DefaultConnector::new().chain(Watch { request_prefix: String::new() });
        Agent::with_parts(self.config(proxy), connector, DefaultResolver::default())
    }

    /// An agent that asks `proxy` for `url`.
    fn forwarding_agent(&self, url: &Url, proxy: &Url) -> Result<Agent, Fault> {
        let uri = proxy.origin().parse().map_err(|error| Fault::permanent(format!("malformed proxy: {error}")))?;
        let connector = DefaultConnector::new().chain(Watch { request_prefix: url.origin() });
        Ok(Agent::with_parts(self.config(None), connector, Fixed { uri, inner: DefaultResolver::default() }))
    }

    fn config(&self, proxy: Option<Proxy>) -> Config {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::new_with_certs(&self.authorities.0))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .build();
        Config::builder()
            .tls_config(tls)
            .proxy(proxy)
            .user_agent(USER_AGENT)
            .accept_encoding(AutoHeaderValue::None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(0)
            .max_response_header_size(RESPONSE_HEADER_BYTES_MAX)
            .input_buffer_size(INPUT_BUFFER_BYTES)
            .timeout_connect(Some(self.patience.connect))
            .timeout_per_read(Some(self.patience.stalled))
            .timeout_per_write(Some(self.patience.stalled))
            .build()
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::encode(format!("{user}:{password}").as_bytes()))
}

fn open_file(url: &Url, offset: u64) -> Result<Answer, Fault> {
    use std::io::{Seek, SeekFrom};
    use std::os::unix::ffi::OsStrExt;
    let path = url.file_path().map_err(Fault::permanent)?;
    let path = Path::new(std::ffi::OsStr::from_bytes(&path));
    let opened = || -> io::Result<Answer> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        file.seek(SeekFrom::Start(offset))?;
        Ok(Answer { body: Box::new(file), offset, length: metadata.len().checked_sub(offset), resumable: true })
    };
    opened()
        .map_err(|error| Fault::permanent(format!("Could not open file {}: {}", path.display(), super::reason(&error))))
}

/// Where a response leads, if it is a redirect.
fn redirect(response: &Response<Body>) -> Option<String> {
    let followed = matches!(response.status().as_u16(), 300..=303 | 307 | 308);
    let location = response.headers().get(header::LOCATION).filter(|_| followed)?;
    Some(String::from_utf8_lossy(location.as_bytes()).trim().to_owned())
}

fn answer(response: Response<Body>, offset: u64) -> Result<Answer, Fault> {
    let headers = response.headers();
    let stored = header_text(headers, header::CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
    let resumable = stored && header_text(headers, header::ACCEPT_RANGES).is_some_and(|unit| unit == "bytes");
    let length = header_text(headers, header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    match response.status() {
        StatusCode::PARTIAL_CONTENT if !continues_at(headers, offset) => {
            Err(Fault::permanent("the server sent another range than it was asked for"))
        }
        StatusCode::PARTIAL_CONTENT => Ok(Answer { body: body(response), offset, length, resumable }),
        StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT => {
            Ok(Answer { body: body(response), offset: 0, length, resumable })
        }
        status => Err(refusal(status, response)),
    }
}

fn body(response: Response<Body>) -> Box<dyn Read> {
    Box::new(response.into_body().into_reader())
}

fn header_text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?.trim().to_ascii_lowercase();
    (!value.is_empty()).then_some(value)
}

fn continues_at(headers: &HeaderMap, offset: u64) -> bool {
    let range = header_text(headers, header::CONTENT_RANGE);
    let start = range.as_deref().and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    start == Some(offset)
}

fn refusal(status: StatusCode, response: Response<Body>) -> Fault {
    let wait = header_text(response.headers(), header::RETRY_AFTER);
    let wait = wait.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let mut text = format!("HTTP error {}", status.as_u16());
    let mut body = Vec::new();
    let read = response.into_body().into_reader().take(SHOWN_BODY_BYTES_MAX as u64).read_to_end(&mut body);
    if read.is_ok() && !body.is_empty() && body.len() < SHOWN_BODY_BYTES_MAX {
        text += &format!("\n\nresponse body:\n\n{}", String::from_utf8_lossy(&body).trim_end());
    }
    match status.as_u16() {
        429 | 503 => Fault { text, retry: Some(Pace::Slow(wait)) },
        501 | 505 | 511 => Fault::permanent(text),
        408 | 500.. => Fault { text, retry: Some(Pace::Quick(wait)) },
        _ => Fault::permanent(text),
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tls_tests;
