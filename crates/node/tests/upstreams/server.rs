//! A small HTTP server that does as it is told, wrong things too. It ends with its value.

use std::collections::BTreeMap;
use std::io::{Error, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use shoal_wire::nix::base64;

/// Between two bytes of [`Reply::Dripping`].
pub const DRIP_TIME: Duration = Duration::from_millis(100);

/// Of every file.
const ETAG: &str = "\"the-file\"";

/// What is done with a request.
#[derive(Clone)]
pub enum Reply {
    Body(Vec<u8>),
    /// The same, with these headers and `Content-Encoding` among them if need be.
    With(Vec<u8>, Vec<(&'static str, String)>),
    Status(u16),
    /// A status with a body of so many bytes, which come one by one with a rest after each.
    Dripping(u16, usize),
    Redirect(String),
    /// Says nothing until the server ends.
    Stall,
    /// Hangs up without a word.
    Nothing,
    /// The body, and then hangs up without having said so.
    HangUp(Vec<u8>),
    /// Announces all and sends so many bytes of it; ranges are served whole, to who names the file by its etag.
    Cut(Vec<u8>, usize),
    /// The same, but no range is offered or served.
    CutForGood(Vec<u8>, usize),
    /// Sends so many bytes, then waits for [`Server::open_gate`] before the rest.
    Gated(Vec<u8>, usize),
    /// Sends this over and over, with no length.
    Endless(Vec<u8>),
}

#[derive(Default)]
struct Shared {
    site: Mutex<BTreeMap<String, Reply>>,
    /// Paths in the order in which they were asked for.
    asked: Mutex<Vec<String>>,
    streams: Mutex<Vec<TcpStream>>,
    gate: (Mutex<bool>, Condvar),
    stop: AtomicBool,
}

pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    /// The certificate, where it speaks TLS as `localhost`.
    pub certificate: Option<String>,
}

impl Server {
    pub fn start() -> Server {
        Server::start_with(None, None)
    }

    /// With a certificate that nobody knows.
    pub fn start_tls() -> Server {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
        let pem = base64::encode(cert.der());
        let certificate = format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n");
        Server::start_with(Some(Arc::new(config)), Some(certificate))
    }

    fn start_with(tls: Option<Arc<ServerConfig>>, certificate: Option<String>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepted = shared.clone();
        let accepting = std::thread::spawn(move || {
            let mut serving = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if accepted.stop.load(Ordering::SeqCst) {
                    break;
                }
                accepted.streams.lock().unwrap().push(stream.try_clone().unwrap());
                let whole = stream.try_clone().unwrap();
                let (shared, tls) = (accepted.clone(), tls.clone());
                // A client that goes away, or does not believe the certificate, is none of the server's business.
                serving.push(std::thread::spawn(move || {
                    drop(match tls {
                        None => serve(stream, &shared),
                        Some(tls) => ServerConnection::new(tls)
                            .map_err(Error::other)
                            .and_then(|connection| serve(StreamOwned::new(connection, stream), &shared)),
                    });
                    // The list of all streams would hold it open.
                    let _ = whole.shutdown(Shutdown::Both);
                }));
            }
            accepted.streams.lock().unwrap().iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
            serving.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Server { address, shared, accepting: Some(accepting), certificate }
    }

    pub fn url(&self) -> String {
        match self.certificate {
            None => format!("http://{}", self.address),
            Some(_) => format!("https://localhost:{}", self.address.port()),
        }
    }

    pub fn put(&self, path: &str, reply: Reply) {
        self.shared.site.lock().unwrap().insert(path.to_string(), reply);
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> usize {
        self.shared.asked.lock().unwrap().iter().filter(|asked| *asked == path).count()
    }

    pub fn requests(&self) -> usize {
        self.shared.asked.lock().unwrap().len()
    }

    pub fn open_gate(&self) {
        *self.shared.gate.0.lock().unwrap() = true;
        self.shared.gate.1.notify_all();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.open_gate();
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Serves one connection, which ends with the stream.
fn serve(mut stream: impl Read + Write, shared: &Shared) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_string();
        let path = head.split(' ').nth(1).unwrap_or_default().to_string();
        let lower = head.to_ascii_lowercase();
        let range = lower.lines().find_map(|line| line.strip_prefix("range: bytes="));
        // What is not named may be other bytes by now: all of it is sent.
        let is_named = lower.lines().any(|line| line == format!("if-range: {ETAG}"));
        let from = range.filter(|_| is_named).and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0);
        shared.asked.lock().unwrap().push(path.clone());
        let reply = shared.site.lock().unwrap().get(&path).cloned().unwrap_or(Reply::Status(404));
        let again = answer(reply, from, &mut stream, shared)?;
        stream.flush()?;
        if !again {
            return Ok(());
        }
    }
}

/// Whether the connection can be used again.
fn answer(reply: Reply, from: usize, out: &mut impl Write, shared: &Shared) -> std::io::Result<bool> {
    let head = |out: &mut dyn Write, len: usize, more: &str| {
        write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n{more}\r\n")
    };
    let ranges = format!("Accept-Ranges: bytes\r\nETag: {ETAG}\r\n");
    match reply {
        Reply::Body(body) => {
            head(out, body.len(), "")?;
            out.write_all(&body)?;
        }
        Reply::Nothing => return Ok(false),
        Reply::HangUp(body) => {
            head(out, body.len(), "")?;
            out.write_all(&body)?;
            return Ok(false);
        }
        Reply::With(body, headers) => {
            let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            head(out, body.len(), &more)?;
            out.write_all(&body)?;
        }
        Reply::Status(status) => write!(out, "HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n")?,
        Reply::Dripping(status, len) => {
            write!(out, "HTTP/1.1 {status} So\r\nContent-Length: {len}\r\n\r\n")?;
            for _ in 0..len {
                out.write_all(b".")?;
                out.flush()?;
                std::thread::sleep(DRIP_TIME);
            }
        }
        Reply::Redirect(to) => write!(out, "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")?,
        Reply::Stall => {
            let mut open = shared.gate.0.lock().unwrap();
            while !*open {
                open = shared.gate.1.wait(open).unwrap();
            }
            return Ok(false);
        }
        Reply::Cut(body, _) if from > 0 => {
            let (len, end, all) = (body.len() - from, body.len() - 1, body.len());
            write!(
                out,
                "HTTP/1.1 206 Partial\r\nContent-Length: {len}\r\nContent-Range: bytes {from}-{end}/{all}\r\n{ranges}\r\n"
            )?;
            out.write_all(&body[from..])?;
        }
        Reply::Cut(body, after) => {
            head(out, body.len(), &ranges)?;
            out.write_all(&body[..after])?;
            return Ok(false);
        }
        Reply::CutForGood(body, after) => {
            head(out, body.len(), "")?;
            out.write_all(&body[..after])?;
            return Ok(false);
        }
        Reply::Gated(body, after) => {
            head(out, body.len(), "")?;
            out.write_all(&body[..after])?;
            let mut open = shared.gate.0.lock().unwrap();
            while !*open {
                open = shared.gate.1.wait(open).unwrap();
            }
            out.write_all(&body[after..])?;
        }
        Reply::Endless(piece) => {
            write!(out, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            loop {
                out.write_all(&piece)?;
            }
        }
    }
    Ok(true)
}
