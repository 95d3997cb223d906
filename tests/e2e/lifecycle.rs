//! How a node starts, says that it is ready, reloads and stops.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use shoal_tests::command::{Running, wait_for};
use shoal_tests::node::program;
use shoal_tests::{Cmd, Machine, Nix, Node, Place, Remote, shapes};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn ready_json_says_where_the_node_listens_and_goes_with_it() {
    let mut node = Node::start(&[]);
    let ready = node.ready().json.clone();
    let data = node.data_dir();
    assert_eq!(ready["socket"], data.join("daemon.sock").to_str().unwrap());
    assert_eq!(ready["node_id"].as_str().map(str::len), Some(64), "{ready}");
    assert!(ready["ssh"].as_str().is_some_and(|ssh| ssh.starts_with("127.0.0.1:")), "{ready}");
    node.stop();
    for gone in ["ready.json", "daemon.sock", "control.sock"] {
        assert!(!data.join(gone).exists(), "{gone} is still there");
    }
    node.start_again();
    assert_eq!(node.ready().json["node_id"], ready["node_id"], "a node keeps its identity");
}

#[test]
fn a_data_directory_has_one_node() {
    let node = Node::start(&[]);
    let second = node.shoal("serve --ssh 127.0.0.1:0").fails();
    assert!(second.stderr.contains(&format!("pid {}", node.ready().pid)), "{second}");
    node.shoal("status").ok();
}

#[test]
fn the_service_manager_hears_of_start_reload_and_stop() {
    let place = Place::new("s");
    let heard = UnixDatagram::bind(place.join("notify")).unwrap();
    heard.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = || {
        let mut text = [0; 64];
        let n = heard.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..n]).into_owned()
    };
    let serve = Cmd::new(program())
        .args(["serve", "--ssh", "127.0.0.1:0", "--http", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--data-dir"])
        .arg(place.join("data"));
    let running = serve.env("NOTIFY_SOCKET", place.join("notify")).env("HOME", place.path()).start();
    assert_eq!(next(), "READY=1");
    running.signal(Signal::HUP);
    assert!(next().starts_with("RELOADING=1"));
    assert_eq!(next(), "READY=1");
    running.signal(Signal::TERM);
    assert_eq!(next(), "STOPPING=1");
    running.finish(PATIENCE).expect_code(0);
}

/// Told to stop, a node finishes what it builds and its client hears of it.
#[test]
fn a_node_that_is_told_to_stop_finishes_its_builds() {
    let machine = Machine::new(&Nix::newest());
    let mut node = Node::start(&[&machine]);
    let client = shapes::build_command(&machine, &node, Remote::SshNg, "", &["brief"]).start();
    wait_for("a build that runs", PATIENCE, || (!node.builders().is_empty()).then_some(()));
    node.stop();
    client.finish(PATIENCE).expect_code(0);
    node.start_again();
    assert!(node.paths().iter().any(|path| path["path"].as_str().is_some_and(|path| path.ends_with("-brief"))));
}

#[test]
fn a_second_signal_stops_at_once() {
    let machine = Machine::new(&Nix::newest());
    let mut node = Node::start(&[&machine]);
    let _client = shapes::build_command(&machine, &node, Remote::SshNg, "", &["sleeps"]).start();
    wait_for("a build that runs", PATIENCE, || (!node.builders().is_empty()).then_some(()));
    node.signal(Signal::TERM);
    wait_for("a node that drains", PATIENCE, || node.log().contains("a second signal stops at once").then_some(()));
    assert!(!node.has_ended());
    node.signal(Signal::TERM);
    wait_for("the end", PATIENCE, || node.has_ended().then_some(()));
}

#[test]
fn keys_of_the_user_are_let_in_on_the_first_start() {
    let machine = Machine::new(&Nix::newest());
    let ssh = machine.home().join(".ssh");
    std::fs::create_dir(&ssh).unwrap();
    std::fs::write(ssh.join("id_ed25519.pub"), machine.public_key()).unwrap();
    let data = machine.path("data");
    let serve = Cmd::new(program())
        .args(["serve", "--ssh", "127.0.0.1:0", "--http", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--data-dir"])
        .arg(&data);
    let running = serve.env("HOME", machine.home()).start();
    wait_for("a node that is ready", PATIENCE, || data.join("ready.json").exists().then_some(()));
    let clients = Cmd::new(program()).args(["client", "list", "--json", "--data-dir"]).arg(&data).ok().json();
    assert_eq!(clients[0]["role"], "admin", "{clients}");
    running.signal(Signal::TERM);
    let finished = running.finish(PATIENCE).expect_code(0);
    assert!(finished.stdout.contains("extra-trusted-public-keys = "), "{finished}");
    assert!(finished.stdout.contains("Your SSH key may use it"), "{finished}");
}

/// A node that builds nothing still is a store.
#[test]
fn a_node_that_builds_nothing_still_serves() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start_with(&[&machine], &["--no-build"]);
    let refused = shapes::build_command(&machine, &node, Remote::SshNg, "", &["hello"]).fails();
    assert!(refused.stderr.contains("platform mismatch"), "{refused}");
    let path = shapes::build_locally(&machine, &["hello"]).remove(0);
    let store = machine.store(&node, Remote::SshNg);
    machine.near("nix", &node).args(["copy", "--no-check-sigs", "--to", &store, &path]).ok();
    assert!(node.paths().iter().any(|known| known["path"] == path.as_str()));
}

/// Sockets as a service manager passes them: named after their door, or with its port.
fn lent() -> (Place, Vec<OwnedFd>, [String; 3]) {
    let place = Place::new("p");
    let ssh = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(place.join("lent.sock")).unwrap();
    let at = [
        ssh.local_addr().unwrap().to_string(),
        http.local_addr().unwrap().to_string(),
        place.join("lent.sock").display().to_string(),
    ];
    (place, vec![ssh.into(), http.into(), unix.into()], at)
}

/// `LISTEN_PID` is of the process that the shell becomes.
fn serve_lent(place: &Place, sockets: Vec<OwnedFd>, flags: &[&str]) -> Cmd {
    let count = sockets.len().to_string();
    let shell = Cmd::new("/bin/sh").args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]).arg(program()).arg("serve");
    let serve = shell.args(["--mesh", "127.0.0.1:0", "--data-dir"]).arg(place.join("data")).args(flags);
    serve.passing(sockets).env("HOME", place.path()).env("LISTEN_FDS", count)
}

fn ready_at(place: &Place, running: &mut Running) -> serde_json::Value {
    wait_for("a node that is ready", PATIENCE, || {
        assert!(!running.has_ended(), "it ended");
        serde_json::from_slice(&std::fs::read(place.join("data/ready.json")).ok()?).ok()
    })
}

/// Clients that came before the node are served, on each door, and the sockets are there for the next node.
#[test]
fn sockets_of_the_service_manager_are_served() {
    let (place, sockets, [ssh, http, unix]) = lent();
    let kept: Vec<OwnedFd> = sockets.iter().map(|socket| socket.try_clone().unwrap()).collect();
    let mut early = TcpStream::connect(&http).unwrap();
    early.write_all(b"GET /nix-cache-info HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").unwrap();
    // The first by its port, the others by name and kind.
    let serve = serve_lent(&place, sockets, &["--ssh", &ssh, "--http", "none"]);
    let mut running = serve.env("LISTEN_FDNAMES", "shoal.socket:http:shoal.socket").start();
    let ready = ready_at(&place, &mut running);
    assert_eq!(
        (&ready["ssh"], &ready["http"], &ready["socket"]),
        (&ssh.into(), &http.clone().into(), &unix.clone().into())
    );
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("StoreDir: /nix/store"), "{answer}");
    let builds = Cmd::new(program()).args(["builds", "--json", "--data-dir"]).arg(place.join("data")).ok();
    assert_eq!(builds.json(), serde_json::json!([]));
    running.signal(Signal::TERM);
    running.finish(PATIENCE).expect_code(0);
    assert!(Path::new(&unix).exists(), "it belongs to the service manager");
    let mut next =
        serve_lent(&place, kept, &["--ssh", "none", "--http", "none"]).env("LISTEN_FDNAMES", "ssh:http:socket").start();
    assert_eq!(ready_at(&place, &mut next)["http"], http.as_str());
}

#[test]
fn a_socket_for_no_door_is_an_error_that_says_what_to_do() {
    let (place, sockets, _) = lent();
    let serve = serve_lent(&place, sockets, &["--ssh", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let finished = serve.env("LISTEN_FDNAMES", "shoal.socket").patience(PATIENCE).fails();
    assert!(finished.stderr.contains("FileDescriptorName"), "{finished}");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let serve = serve_lent(&place, vec![udp.into()], &["--ssh", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let finished = serve.env("LISTEN_FDNAMES", "http").patience(PATIENCE).fails();
    assert!(finished.stderr.contains("--http3"), "{finished}");
}
