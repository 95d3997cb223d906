//! The same over TLS: chains, choice of protocol, renewal, and clients that do not shake hands.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use shoal_node::http::Limits;
use shoal_node::http::tls::Identity;

use crate::certificates::{Authority, Files};
use crate::lab::{Answer, Lab, Wanted, answer, file_nar, noise};

pub fn identity(files: &Files) -> Option<Arc<Identity>> {
    Some(Arc::new(Identity::open(&files.certificate(), &files.key()).unwrap()))
}

/// A client that believes this authority alone and speaks one of `protocols`.
pub fn client(authority: &Authority, protocols: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.root_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

fn lab(files: &Files) -> Lab {
    Lab::with(Wanted { identity: identity(files), ..Wanted::default() })
}

/// A connection that has shaken hands, or why the client does not want it.
pub fn connect(lab: &Lab, config: &Arc<ClientConfig>) -> io::Result<Stream> {
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, lab.connect());
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

fn get(mut stream: Stream, path: &str) -> Option<Answer> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").unwrap();
    answer(stream, false)
}

/// The connection is used again: the answer has the length it says.
fn get_and_stay(stream: &mut Stream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let mut all = Vec::new();
    let mut byte = [0];
    while !all.ends_with(b"ok\n") {
        stream.read_exact(&mut byte).unwrap();
        all.push(byte[0]);
    }
    String::from_utf8(all).unwrap()
}

#[test]
fn a_client_that_knows_the_authority_reads() {
    let authority = Authority::make();
    let lab = lab(&Files::of(&authority.pair()));
    let nar = file_nar(&noise(3 << 20));
    let info = lab.add("noise", &nar);
    let reader = client(&authority, &["http/1.1"]);
    let narinfo = get(connect(&lab, &reader).unwrap(), &format!("/{}.narinfo", info.path.hash_part())).unwrap();
    let url = narinfo.text().lines().find_map(|line| line.strip_prefix("URL: ").map(str::to_owned)).unwrap();
    let answer = get(connect(&lab, &reader).unwrap(), &format!("/{url}")).unwrap();
    assert!(answer.is_whole && answer.body == nar);
    assert!(connect(&lab, &client(&Authority::make(), &[])).is_err(), "another authority's client believes it");
}

#[test]
fn the_client_chooses_the_protocol() {
    let authority = Authority::make();
    let lab = lab(&Files::of(&authority.pair()));
    for (offered, chosen) in
        [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&["http/1.1", "h2"], Some("h2"))]
    {
        let stream = connect(&lab, &client(&authority, offered)).unwrap();
        assert_eq!(stream.conn.alpn_protocol(), chosen.map(str::as_bytes), "{offered:?}");
    }
    assert!(get(connect(&lab, &client(&authority, &[])).unwrap(), "/healthz").is_some(), "a client without ALPN");
    assert!(connect(&lab, &client(&authority, &["smtp"])).is_err());
}

/// New connections get the new certificate, old ones go on, and what cannot be used changes nothing.
#[test]
fn certificates_are_renewed_under_running_connections() {
    let (first, second, third) = (Authority::make(), Authority::make(), Authority::make());
    let files = Files::of(&first.pair());
    let lab = lab(&files);
    let serves = |authority: &Authority| connect(&lab, &client(authority, &[])).is_ok();
    let mut old = connect(&lab, &client(&first, &[])).unwrap();
    assert!(get_and_stay(&mut old, "/healthz").starts_with("HTTP/1.1 200"));
    files.write(&second.pair());
    assert!(serves(&second) && !serves(&first));
    assert!(get_and_stay(&mut old, "/healthz").starts_with("HTTP/1.1 200"));
    let (other, another) = (third.pair(), third.pair());
    for (chain, key) in [
        (other.chain.as_str(), another.key.as_str()),
        (&other.chain, ""),
        ("", &other.key),
        (&other.chain[..other.chain.len() / 3], &other.key),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &other.key),
        (&"x".repeat(2 << 20), &other.key),
    ] {
        files.write_raw(chain, key);
        assert!(serves(&second), "{}", &chain[..chain.len().min(200)]);
        assert!(!serves(&third));
    }
    std::fs::remove_file(files.key()).unwrap();
    assert!(serves(&second));
    files.write(&other);
    assert!(serves(&third) && !serves(&second));
    assert!(get_and_stay(&mut old, "/healthz").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_pair_that_cannot_be_used_says_why() {
    let authority = Authority::make();
    let (one, other) = (authority.pair(), authority.pair());
    let files = Files::of(&one);
    let why = |chain: &str, key: &str| {
        files.write_raw(chain, key);
        format!("{:#}", Identity::open(&files.certificate(), &files.key()).unwrap_err())
    };
    assert!(why(&one.chain, &other.key).contains("does not go with the first certificate"));
    assert!(why(&one.key, &one.key).contains("holds no certificate"));
    assert!(why(&one.chain, &one.chain).contains("holds no private key"));
    let missing = Identity::open(&files.path().join("absent"), &files.key()).unwrap_err();
    assert!(format!("{missing:#}").contains("cannot read the certificate"), "{missing:#}");
}

/// Silence, half a handshake, another protocol: each is hung up on, and others are served meanwhile.
#[test]
fn who_does_not_shake_hands_is_hung_up_on() {
    let authority = Authority::make();
    let limits = Limits { handshake: Duration::from_secs(3), ..Limits::USUAL };
    let files = Files::of(&authority.pair());
    let lab = Lab::with(Wanted { identity: identity(&files), limits, ..Wanted::default() });
    let honest = client(&authority, &[]);
    let mut connection = ClientConnection::new(honest.clone(), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    let openings = [Vec::new(), hello[..hello.len() / 2].to_vec(), b"GET / HTTP/1.1\r\n\r\n".to_vec(), noise(3000)];
    let streams = openings.map(|opening| {
        let mut stream = lab.connect();
        stream.write_all(&opening).unwrap();
        stream
    });
    assert_eq!(get(connect(&lab, &honest).unwrap(), "/healthz").unwrap().status, 200);
    for mut stream in streams {
        let mut rest = Vec::new();
        // An alert may come before the end, or the kernel's word that the server did not want what it was sent.
        match stream.read_to_end(&mut rest) {
            Ok(_) => assert!(!rest.starts_with(b"HTTP/"), "{rest:?}"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
}
