//! A web server for a directory of files: nginx where the machine has it, otherwise a small one of our own.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::command::{Cmd, Running, wait_for};
use crate::place::Place;

/// From start to the first answer.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Where Debian's nginx is, which is not in every user's PATH.
const NGINX: &str = "/usr/sbin/nginx";

/// Serves until dropped.
pub struct Web {
    address: SocketAddr,
    _server: Server,
}

enum Server {
    Nginx { _running: Running, _place: Place },
    Own { _own: Own },
}

impl Web {
    pub fn start(dir: &Path) -> Web {
        match Path::new(NGINX).exists() {
            true => nginx(dir),
            false => {
                let own = Own::start(dir);
                Web { address: own.address, _server: Server::Own { _own: own } }
            }
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn nginx(dir: &Path) -> Web {
    let place = Place::new("w");
    // Free when this was asked, and asked for again at once.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.unwrap_or_else(|error| panic!("no port: {error}"));
    let own = place.path().display().to_string();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {own}/{kind};"))
        .collect();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let config = format!(
        "daemon off; {user} pid {own}/pid; error_log {own}/error.log; events {{}} \
         http {{ access_log off; {temporary} server {{ listen {address}; root {}; }} }}",
        dir.display()
    );
    let file = place.join("nginx.conf");
    fs::write(&file, config).unwrap_or_else(|error| panic!("nginx.conf: {error}"));
    let mut running = Cmd::new(NGINX).arg("-c").arg(&file).start_into(Stdio::null(), Stdio::null());
    wait_for("nginx that listens", START_PATIENCE, || {
        assert!(!running.has_ended(), "{}", fs::read_to_string(place.join("error.log")).unwrap_or_default());
        TcpStream::connect(address).ok()
    });
    Web { address, _server: Server::Nginx { _running: running, _place: place } }
}

/// GET and HEAD of whole files over connections that are kept.
struct Own {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Own {
    fn start(dir: &Path) -> Own {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("no port: {error}"));
        let address = listener.local_addr().unwrap_or_else(|error| panic!("no address: {error}"));
        let (stop, streams) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, kept, dir) = (stop.clone(), streams.clone(), dir.to_path_buf());
        let accepting = thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(copy) = stream.try_clone() else { continue };
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
                let dir = dir.clone();
                // A client may go away at any time.
                thread::spawn(move || drop(serve(stream, &dir)));
            }
        });
        Own { address, stop, streams, accepting: Some(accepting) }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn serve(stream: TcpStream, dir: &Path) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut header = String::from("-");
        while !header.trim().is_empty() {
            header.clear();
            reader.read_line(&mut header)?;
        }
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let body = inside(dir, path).and_then(|file| fs::read(file).ok());
        let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
        let body = body.unwrap_or_default();
        write!(out, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len())?;
        if method == "GET" {
            out.write_all(&body)?;
        }
    }
}

/// The file that a URL's path names, if it is below `dir`.
fn inside(dir: &Path, path: &str) -> Option<PathBuf> {
    let path = path.split('?').next()?.trim_start_matches('/').replace("%21", "!");
    let below = Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)));
    (below && !path.is_empty()).then(|| dir.join(path))
}
