//! An S3 server that keeps its objects as files: the real protocol, with signatures, and faults on demand.

use std::fs;
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3ServiceBuilder, SharedS3Service};
use s3s_fs::FileSystem;
use tokio::runtime::Runtime;

use crate::place::Place;

const BUCKET: &str = "cold";
const KEY_ID: &str = "the-node";
const SECRET: &str = "its-secret";
/// Connections of a test's end.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// What the server does with requests.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    Up,
    /// Connections break as soon as something is asked.
    Down,
    /// What is asked of objects with this in their name is never answered.
    Stalled(String),
}

/// Serves one bucket until dropped.
pub struct S3 {
    place: Place,
    address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
    runtime: Option<Runtime>,
}

impl S3 {
    pub fn start() -> S3 {
        let place = Place::new("s");
        fs::create_dir(place.join(BUCKET)).unwrap_or_else(|error| panic!("bucket: {error}"));
        let files = FileSystem::new(place.path()).unwrap_or_else(|error| panic!("S3 server: {error:?}"));
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = builder.build().into_shared();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("runtime: {error}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        });
        let (address, listener) = listener.unwrap_or_else(|error| panic!("no port: {error}"));
        let mode = Arc::new(Mutex::new(Mode::Up));
        runtime.spawn(accept(listener, service, mode.clone()));
        S3 { place, address, mode, runtime: Some(runtime) }
    }

    /// Flags of a node that uses the bucket.
    pub fn flags(&self) -> Vec<String> {
        let file = self.place.join("credentials");
        let text = format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
        fs::write(&file, text).unwrap_or_else(|error| panic!("credentials: {error}"));
        let (url, endpoint) = (format!("s3://{BUCKET}/mesh"), format!("http://{}", self.address));
        let flags = ["--cold", &url, "--cold-endpoint", &endpoint, "--cold-credentials-file"].map(String::from);
        flags.into_iter().chain([file.display().to_string()]).collect()
    }

    /// Files of the objects in a directory of the mesh's, in order.
    pub fn objects(&self, dir: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.place.join(BUCKET).join("mesh").join(dir)).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        files.sort();
        files
    }

    pub fn set_up(&self) {
        self.set(Mode::Up);
    }

    pub fn set_down(&self) {
        self.set(Mode::Down);
    }

    /// Leaves requests for objects with this in their name unanswered.
    pub fn stall(&self, part: &str) {
        self.set(Mode::Stalled(part.into()));
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(STOP_PATIENCE);
        }
    }
}

async fn accept(listener: TcpListener, service: SharedS3Service, mode: Arc<Mutex<Mode>>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap_or_else(|error| panic!("listen: {error}"));
    while let Ok((stream, _)) = listener.accept().await {
        let (service, mode) = (service.clone(), mode.clone());
        let answer = service_fn(move |request| answer(request, service.clone(), mode.clone()));
        tokio::spawn(async move {
            // Who asks may go at any time.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

/// An error ends the connection.
async fn answer(
    request: Request<Incoming>,
    service: SharedS3Service,
    mode: Arc<Mutex<Mode>>,
) -> Result<Response<Body>, std::io::Error> {
    let mode = mode.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match mode {
        Mode::Up => {}
        Mode::Down => return Err(std::io::ErrorKind::ConnectionReset.into()),
        Mode::Stalled(part) if request.uri().path().contains(&part) => pending().await,
        Mode::Stalled(_) => {}
    }
    service.call(request).await.map_err(|error| std::io::Error::other(error.to_string()))
}
