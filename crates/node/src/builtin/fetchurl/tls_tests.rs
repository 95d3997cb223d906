//! Downloads over TLS, from servers with certificates of the test's own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::super::tests::{FEW, Lab, head};
use super::*;

/// What a server does before TLS begins.
type Prelude = fn(&mut TcpStream) -> io::Result<()>;

struct Server {
    address: SocketAddr,
    certificate: Vec<u8>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// For `localhost`. Answers with `answer` and hangs up, with a goodbye in TLS or without.
    fn new(answer: &'static str, goodbye: bool, prelude: Prelude) -> Server {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let seen = connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                seen.fetch_add(1, Ordering::Relaxed);
                // The client may refuse the certificate.
                let _ = serve(stream.unwrap(), &config, answer, goodbye, prelude);
            }
        });
        Server { address, certificate: cert.der().to_vec(), connections }
    }

    fn url(&self, host: &str) -> String {
        format!("https://{host}:{}/", self.address.port())
    }

    fn fetch(&self, env: &[(&str, &str)], trusted: &[u8]) -> Result<Vec<u8>, String> {
        let lab = Lab::new(env);
        let pem = base64::encode(trusted);
        let bundle = format!("# Some CA\n-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n");
        std::fs::write(&lab.payload.ca_file, bundle).unwrap();
        lab.build().map(|()| std::fs::read(lab.out()).unwrap())
    }
}

fn serve(
    mut stream: TcpStream,
    config: &Arc<ServerConfig>,
    answer: &str,
    goodbye: bool,
    prelude: Prelude,
) -> io::Result<()> {
    use std::io::Write;
    prelude(&mut stream)?;
    let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).map_err(io::Error::other)?, stream);
    head(&mut tls);
    tls.write_all(answer.as_bytes())?;
    if goodbye {
        tls.conn.send_close_notify();
    }
    tls.flush()
}

fn straight(_: &mut TcpStream) -> io::Result<()> {
    Ok(())
}

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret";
const ANSWER_TO_THE_END: &str = "HTTP/1.1 200 OK\r\n\r\nsecret";

#[test]
fn a_server_that_the_bundle_vouches_for_is_believed() {
    for (answer, goodbye) in [(ANSWER, true), (ANSWER, false), (ANSWER_TO_THE_END, true)] {
        let server = Server::new(answer, goodbye, straight);
        let fetched = server.fetch(&[("url", &server.url("localhost"))], &server.certificate);
        assert_eq!(fetched.unwrap(), b"secret");
    }
}

#[test]
fn others_are_not_and_are_not_asked_again() {
    let server = Server::new(ANSWER, true, straight);
    let other = Server::new(ANSWER, true, straight);
    let error = server.fetch(&[("url", &server.url("localhost"))], &other.certificate).unwrap_err();
    assert!(error.contains("TLS: invalid peer certificate: "), "{error}");
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
    let error = server.fetch(&[("url", &server.url("127.0.0.1"))], &server.certificate).unwrap_err();
    assert!(error.contains("TLS: invalid peer certificate: certificate not valid for name \"127.0.0.1\""), "{error}");
}

#[test]
fn a_body_that_ends_without_goodbye_may_be_cut_off() {
    let server = Server::new(ANSWER_TO_THE_END, false, straight);
    let error = server.fetch(&[("url", &server.url("localhost"))], &server.certificate).unwrap_err();
    assert!(error.contains("peer closed connection without sending TLS close_notify"), "{error}");
    assert_eq!(server.connections.load(Ordering::Relaxed), FEW.attempts as usize);
}

#[test]
fn a_proxy_is_a_tunnel() {
    fn tunnel(stream: &mut TcpStream) -> io::Result<()> {
        use std::io::Write;
        assert!(head(stream).starts_with("CONNECT localhost:443 "));
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")
    }
    let server = Server::new(ANSWER, true, tunnel);
    let proxy = server.address.to_string();
    let env = [("url", "https://localhost/"), ("https_proxy", proxy.as_str())];
    assert_eq!(server.fetch(&env, &server.certificate).unwrap(), b"secret");
}

#[test]
fn no_tls_is_no_answer() {
    let plain = Server::new("", true, |stream| std::io::Write::write_all(stream, b"HTTP/1.1 400 Bad\r\n\r\n"));
    let error = plain.fetch(&[("url", &plain.url("localhost"))], &plain.certificate).unwrap_err();
    assert!(error.contains("TLS: received corrupt message"), "{error}");
}

#[test]
fn a_bundle_may_hold_anything() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    assert!(Authorities::read(&bundle).unwrap().0.is_empty());
    std::fs::write(&bundle, b"\xff\0 junk\n-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n").unwrap();
    assert!(Authorities::read(&bundle).unwrap().0.is_empty());
    let host = Path::new("/etc/ssl/certs/ca-certificates.crt");
    match host.exists() {
        true => assert!(Authorities::read(host).unwrap().0.len() > 50),
        false => println!("skipped: this machine has no bundle of certificates"),
    }
}
