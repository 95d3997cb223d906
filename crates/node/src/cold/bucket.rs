//! Objects of one bucket, for threads that may wait: each call has a bound, and ends soon when the node stops.

use std::future::Future;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, Error, GetOptions, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutPayload, RetryConfig,
};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::location::{Credentials, Location};
use crate::upstream::Refusal;

/// Until there is a connection, TLS included.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// From question to answer, for what is small. Who waits for it waits less; the next who asks has the answer.
const ASK_PATIENCE: Duration = Duration::from_secs(5);
/// Without any byte, in the middle of an object.
const STALL_PATIENCE: Duration = Duration::from_secs(10);
/// For one span, or a record with very many chunks: nobody needs a bucket that is slower than a modem.
const GET_PATIENCE: Duration = Duration::from_secs(60);
/// For one pack, up a line of 30 KB/s.
const PUT_PATIENCE: Duration = Duration::from_secs(600);
/// A server that closed a kept connection just when it was used is asked once more; for all else there are the breaker and
/// the backoff.
const RETRIES_MAX: usize = 1;
const RETRY_TIME: Duration = Duration::from_secs(5);
/// Connections kept for the next request.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// How often a thread that waits looks whether the node stops.
const POLL: Duration = Duration::from_millis(50);
/// Objects of one page of a listing.
pub const PAGE_MAX: usize = 1000;

const DEFAULT_REGION: &str = "us-east-1";

/// Whom to ask, and as whom.
#[derive(Clone)]
pub struct Options {
    pub location: Location,
    /// `None`: AWS's own.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// `None`: what the environment says, else the machine's role.
    pub credentials: Option<Credentials>,
    /// `AWS_*` variables.
    pub environment: Vec<(String, String)>,
    /// Certificates in PEM that vouch for the server, besides the machine's.
    pub authorities: Option<Vec<u8>>,
}

pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    url: String,
    identity: String,
    runtime: Handle,
    is_stopping: AtomicBool,
}

/// An answer on its way. Dropped, it is not waited for, and comes no more.
pub struct Pending<T> {
    told: Receiver<Result<T, Refusal>>,
    task: AbortHandle,
}

/// A part of a listing.
#[derive(Default)]
pub struct Page {
    /// Names of those that lie in the directory itself, in order, and their lengths.
    pub objects: Vec<(String, u64)>,
    /// Where the next page begins; `None`: there is none.
    pub last: Option<Path>,
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bucket {
    /// Asks nobody anything yet. `runtime`: what requests run on.
    pub fn open(options: &Options, runtime: Handle) -> Result<Bucket> {
        let location = &options.location;
        let store = client(options).with_context(|| format!("cannot use the bucket {}", location.url()))?;
        let named = options.environment.iter().filter(|(name, _)| name.to_ascii_uppercase().contains("ENDPOINT"));
        let endpoints: Vec<&str> = options.endpoint.iter().chain(named.map(|(_, value)| value)).map(|s| &**s).collect();
        Ok(Bucket::on(Arc::new(store), location, &endpoints.join(" "), runtime))
    }

    pub(super) fn on(store: Arc<dyn ObjectStore>, location: &Location, endpoint: &str, runtime: Handle) -> Bucket {
        let (prefix, url) = (location.prefix.clone(), location.url());
        let identity = format!("{endpoint} {url}");
        Bucket { store, prefix, url, identity, runtime, is_stopping: AtomicBool::new(false) }
    }

    /// What requests run on.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Differs where other objects are meant.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// From now on nothing is waited for.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    fn path(&self, object: &str) -> Path {
        match self.prefix.is_empty() {
            true => Path::from(object),
            false => Path::from(format!("{}/{object}", self.prefix)),
        }
    }

    /// All of an object of at most `len_max` bytes; a longer one is missing.
    pub fn get(&self, object: &str, len_max: usize) -> Result<Bytes, Refusal> {
        self.ask(object, len_max).wait(self)
    }

    /// Begins to get it.
    pub fn ask(&self, object: &str, len_max: usize) -> Pending<Bytes> {
        let (store, path) = (self.store.clone(), self.path(object));
        self.begin(GET_PATIENCE, async move {
            // An answer that does not begin is none; one that has begun may be long.
            let got = timeout(ASK_PATIENCE, store.get(&path)).await.map_err(|_| late(ASK_PATIENCE))?;
            let got = got.map_err(refusal)?;
            // As wrong as any other contents, and not a bucket that fails.
            let too_long = || {
                tracing::warn!(object = %path, len_max, "an object of the bucket is too long; it counts as missing");
                Refusal::Missing
            };
            if got.meta.size > len_max as u64 {
                return Err(too_long());
            }
            collect(got, len_max).await?.ok_or_else(too_long)
        })
    }

    /// Begins to get a part of an object. It is missing where the object is shorter.
    pub fn get_range(&self, object: &str, range: Range<u64>) -> Pending<Bytes> {
        let (store, path) = (self.store.clone(), self.path(object));
        self.begin(GET_PATIENCE, async move {
            let len = range.end - range.start;
            let options = GetOptions { range: Some(range.clone().into()), ..GetOptions::default() };
            let got = match store.get_opts(&path, options).await {
                Ok(got) => got,
                // Servers have several words for a range that is not there.
                Err(error) => match store.head(&path).await {
                    Ok(meta) if meta.size < range.end => return Err(Refusal::Missing),
                    _ => return Err(refusal(error)),
                },
            };
            if got.range != range {
                return Err(Refusal::Missing);
            }
            match collect(got, len as usize).await? {
                Some(bytes) if bytes.len() as u64 == len => Ok(bytes),
                _ => Err(Refusal::Missing),
            }
        })
    }

    /// The length of an object.
    pub fn size(&self, object: &str) -> Result<u64, Refusal> {
        self.ask_size(object).wait(self)
    }

    /// Begins to ask for it.
    pub fn ask_size(&self, object: &str) -> Pending<u64> {
        let (store, path) = (self.store.clone(), self.path(object));
        self.begin(ASK_PATIENCE, async move { store.head(&path).await.map(|meta| meta.size).map_err(refusal) })
    }

    pub fn put(&self, object: &str, bytes: Bytes) -> Result<(), Refusal> {
        let (store, path) = (self.store.clone(), self.path(object));
        let put = async move { store.put(&path, PutPayload::from_bytes(bytes)).await.map(drop).map_err(refusal) };
        self.begin(PUT_PATIENCE, put).wait(self)
    }

    /// The objects in `dir` that follow `after`, a page of them.
    pub fn list(&self, dir: &str, after: Option<Path>) -> Result<Page, Refusal> {
        let (store, dir) = (self.store.clone(), self.path(dir));
        let list = async move {
            let mut listed = match &after {
                Some(after) => store.list_with_offset(Some(&dir), after),
                None => store.list(Some(&dir)),
            }
            .take(PAGE_MAX);
            let (mut page, mut is_empty) = (Page::default(), true);
            while let Some(meta) = listed.next().await {
                let ObjectMeta { location, size, .. } = meta.map_err(refusal)?;
                is_empty = false;
                if after.as_ref().is_some_and(|after| location <= *after) {
                    continue;
                }
                if let Some(mut parts) = location.prefix_match(&dir)
                    && let (Some(name), None) = (parts.next(), parts.next())
                {
                    page.objects.push((name.as_ref().to_string(), size));
                }
                page.last = page.last.max(Some(location));
            }
            // Without an end to it otherwise.
            if !is_empty && page.last.is_none() {
                return Err(Refusal::Failed("the server lists the same objects again and again".into()));
            }
            page.objects.sort();
            Ok(page)
        };
        self.begin(GET_PATIENCE, list).wait(self)
    }

    fn begin<T, F>(&self, patience: Duration, asked: F) -> Pending<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
    {
        let (tell, told) = mpsc::channel();
        let task = self.runtime.spawn(async move {
            let answer = timeout(patience, asked).await.unwrap_or_else(|_| Err(late(patience)));
            // Nobody may wait for it any more.
            let _ = tell.send(answer);
        });
        Pending { told, task: task.abort_handle() }
    }
}

impl<T> Pending<T> {
    pub fn wait(self, bucket: &Bucket) -> Result<T, Refusal> {
        loop {
            match self.told.recv_timeout(POLL) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) if !bucket.is_stopping() => {}
                Err(_) => return Err(Refusal::Failed("the node is stopping".into())),
            }
        }
    }
}

/// What comes, whatever the server said that it is; `None`: more than `len_max` bytes.
async fn collect(got: GetResult, len_max: usize) -> Result<Option<Bytes>, Refusal> {
    let mut whole = Vec::with_capacity(len_max.min((got.range.end - got.range.start) as usize));
    let mut pieces = got.into_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(refusal)?;
        if piece.len() > len_max - whole.len() {
            return Ok(None);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(Some(whole.into()))
}

fn late(patience: Duration) -> Refusal {
    Refusal::Failed(format!("the bucket does not answer within {} s", patience.as_secs()))
}

fn refusal(error: Error) -> Refusal {
    match error {
        Error::NotFound { .. } => Refusal::Missing,
        error => Refusal::Failed(text(&error)),
    }
}

/// With the causes, which say more than the client's own words.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn client(options: &Options) -> Result<impl ObjectStore> {
    let mut client = ClientOptions::new()
        .with_connect_timeout(CONNECT_PATIENCE)
        .with_read_timeout(STALL_PATIENCE)
        // Each call has its own.
        .with_timeout_disabled()
        .with_pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .with_allow_http(options.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")));
    for certificate in options.authorities.iter().map(|pem| Certificate::from_pem_bundle(pem)) {
        client = certificate?.into_iter().fold(client, ClientOptions::with_root_certificate);
    }
    let retry = RetryConfig {
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIME,
        backoff: BackoffConfig { init_backoff: Duration::from_millis(100), ..BackoffConfig::default() },
    };
    let mut builder = AmazonS3Builder::new();
    for (name, value) in &options.environment {
        // Others are for other programs.
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    builder = builder.with_bucket_name(&options.location.bucket).with_client_options(client).with_retry(retry);
    let has_region = options.environment.iter().any(|(name, _)| matches!(&**name, "AWS_REGION" | "AWS_DEFAULT_REGION"));
    match &options.region {
        Some(region) => builder = builder.with_region(region),
        None if !has_region => builder = builder.with_region(DEFAULT_REGION),
        None => {}
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    if let Some(Credentials { key_id, secret, token }) = &options.credentials {
        builder = builder.with_access_key_id(key_id).with_secret_access_key(secret);
        builder = token.iter().fold(builder, |builder, token| builder.with_token(token));
    }
    Ok(builder.build()?)
}

/// The certificates in a PEM bundle.
pub fn read_authorities(bundle: &FilePath) -> Result<Vec<u8>> {
    std::fs::read(bundle).with_context(|| format!("cannot read the certificates in {}", bundle.display()))
}
