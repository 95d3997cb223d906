//! A web server for a directory of files: a real nginx.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::command::{Cmd, Running, wait_for};
use crate::place::{self, Place};

/// The first time nginx is fetched.
const FETCH_PATIENCE: Duration = Duration::from_secs(600);
/// From start to the first connection.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// Ports that are tried: another program may take one between the question which is free and nginx.
const PORTS_MAX: u32 = 3;

/// Serves until dropped.
pub struct Web {
    address: SocketAddr,
    running: Running,
    _place: Place,
}

impl Web {
    pub fn start(dir: &Path) -> Web {
        Web::start_with(dir, "127.0.0.1", "", "")
    }

    /// As one who wants it fast sets it up: a worker a core, files kept open, sent by the kernel.
    /// `ip`: where it listens, besides others perhaps on 127.0.0.1.
    pub fn start_fast(dir: &Path, ip: &str) -> Web {
        let http = "sendfile on; tcp_nopush on; keepalive_requests 1000000; open_file_cache max=10000;";
        Web::start_with(dir, ip, "worker_processes auto;", http)
    }

    fn start_with(dir: &Path, ip: &str, main: &str, http: &str) -> Web {
        let mut tried = Vec::new();
        for _ in 0..PORTS_MAX {
            match Web::try_start(dir, ip, main, http) {
                Ok(web) => return web,
                Err(log) => tried.push(log),
            }
        }
        panic!("nginx ended at once, each of {PORTS_MAX} times:\n{}", tried.concat());
    }

    /// The error is its log, if it has ended.
    fn try_start(dir: &Path, ip: &str, main: &str, http: &str) -> Result<Web, String> {
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
            "daemon off; {user} {main} pid {own}/pid; error_log {own}/error.log; events {{}} \
             http {{ {http} access_log off; {temporary} server {{ listen {ip}:{}; root {}; }} }}",
            address.port(),
            dir.display()
        );
        let (file, log) = (place.join("nginx.conf"), place.join("error.log"));
        fs::write(&file, config).unwrap_or_else(|error| panic!("nginx.conf: {error}"));
        let cmd = Cmd::new(nginx()).arg("-e").arg(&log).arg("-c").arg(&file);
        let mut running = cmd.start_into(Stdio::null(), Stdio::null());
        let listens = wait_for("nginx that listens", START_PATIENCE, || {
            // Its number is written when it has the port, which is a stranger's otherwise.
            let answers = place.join("pid").exists() && TcpStream::connect(address).is_ok();
            let has_ended = running.has_ended();
            (answers || has_ended).then_some(!has_ended)
        });
        match listens {
            true => Ok(Web { address, running, _place: place }),
            false => Err(fs::read_to_string(&log).unwrap_or_default()),
        }
    }

    /// Of the master; its workers are its children.
    pub fn pid(&self) -> u32 {
        self.running.pid().as_raw_nonzero().get() as u32
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Debian's nginx, fetched if it is not there yet.
fn nginx() -> PathBuf {
    let dir = place::kept().join("nginx");
    let script = place::repository().join("tests/nix-clients/get-nix");
    Cmd::new(script).arg("nginx").arg(&dir).patience(FETCH_PATIENCE).ok();
    dir.join("bin/nginx")
}
