//! Load on an HTTP server by wrk, and single requests.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use shoal_tests::{Cmd, Place, place};

use crate::machine::cpu_s;

/// The first time wrk is fetched.
const FETCH_PATIENCE: Duration = Duration::from_secs(600);
/// Of a single request.
const PATIENCE: Duration = Duration::from_secs(60);

/// wrk, and a place for what it shall ask.
pub struct Wrk {
    program: PathBuf,
    place: Place,
}

/// A server: who it is in the tables, where it listens, and the process whose CPU time counts.
#[derive(Clone)]
pub struct Server {
    pub who: &'static str,
    pub url: String,
    pub pid: u32,
}

/// What wrk saw.
pub struct Load {
    pub requests: f64,
    /// Bytes of answers with their heads.
    pub bytes: f64,
    pub seconds: f64,
    pub p50_us: f64,
    /// CPU seconds of the server meanwhile.
    pub cpu_s: f64,
}

/// Answer to a single request.
pub struct Answer {
    pub head: String,
    pub body: Vec<u8>,
}

impl Wrk {
    /// Debian's, fetched if it is not there yet.
    pub fn get() -> Wrk {
        let dir = place::kept().join("wrk");
        let script = place::repository().join("tests/nix-clients/get-nix");
        Cmd::new(script).arg("wrk").arg(&dir).patience(FETCH_PATIENCE).ok();
        Wrk { program: dir.join("bin/wrk"), place: Place::new("k") }
    }

    /// Asks for `paths` in turn on `connections` connections for some seconds. `is_found`: anything but 2xx is a failure.
    pub fn run(
        &self,
        server: &Server,
        paths: &[String],
        connections: usize,
        seconds: u32,
        is_found: bool,
    ) -> Result<Load> {
        let list = self.place.join("requests");
        fs::write(&list, paths.join("\n") + "\n")?;
        let before = cpu_s(server.pid);
        let wrk = Cmd::new(&self.program).args(["-t", "1", "-c", &connections.to_string()]);
        let wrk = wrk.args(["-d", &format!("{seconds}s"), "--timeout", "60s", "-s"]);
        let wrk = wrk.arg(place::repository().join("benches/wrk.lua")).arg(&server.url).arg("--").arg(&list).ok();
        let cpu_s = cpu_s(server.pid) - before;
        let line = wrk.lines().into_iter().find(|line| line.starts_with('{')).context("wrk said nothing")?;
        let told: Value = serde_json::from_str(line)?;
        let number = |key: &str| told[key].as_f64().with_context(|| format!("{key}: {line}"));
        if number("broken")? > 0.0 || (is_found && number("statuses")? > 0.0) || number("requests")? == 0.0 {
            bail!("{}: {line}", server.who);
        }
        let (requests, bytes, us, p50_us) = (number("requests")?, number("bytes")?, number("us")?, number("p50_us")?);
        Ok(Load { requests, bytes, seconds: us / 1e6, p50_us, cpu_s })
    }
}

/// `method` of a path, on a connection of its own. Anything but 200 is an error.
pub fn ask(server: &Server, method: &str, path: &str) -> Result<Answer> {
    let address = server.url.strip_prefix("http://").context("an address")?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end =
        answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("an answer without an end of its head")?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer).into_owned();
    match head.starts_with("HTTP/1.1 200 ") {
        true => Ok(Answer { head, body }),
        false => bail!("{}: {method} {path}: {}", server.who, head.lines().next().unwrap_or_default()),
    }
}

impl Answer {
    pub fn content_length(&self) -> Result<u64> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut lens = lines.filter(|(key, _)| key.eq_ignore_ascii_case("content-length")).map(|(_, len)| len);
        Ok(lens.next().context("no Content-Length")?.parse()?)
    }
}
