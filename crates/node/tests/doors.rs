//! The doors by themselves: sessions that echo, clients that misbehave.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use russh::client;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, ChannelReadHalf};
use shoal_node::door::{AuthorizedKeys, Call, Host, Program, Sessions, SshDoor, SshOptions, UnixDoor, host_key};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A session does what the client's first byte says.
#[derive(Default)]
struct Script {
    hung_up: AtomicUsize,
    held_up: AtomicUsize,
}

impl Script {
    fn hung_up(&self) -> usize {
        self.hung_up.load(Ordering::Acquire)
    }

    fn held_up(&self) -> usize {
        self.held_up.load(Ordering::Acquire)
    }
}

impl Host for Script {
    fn serve(&self, mut call: Call) -> u32 {
        let mut first = [0];
        if call.input.read_exact(&mut first).is_err() {
            return 1;
        }
        match first[0] {
            b'e' => echo(&mut call),
            // Busy with something else than its client, until that one goes.
            b'b' => {
                let (sender, receiver) = mpsc::channel();
                let _watch = call.hangup.watch(move || sender.send(()).unwrap_or_default());
                let heard = receiver.recv_timeout(PATIENCE).is_ok();
                self.hung_up.fetch_add(usize::from(heard), Ordering::AcqRel);
                3
            }
            // Writes for ever.
            b'w' => {
                while !call.output.is_congested() && call.output.write_all(&[7; 4096]).is_ok() {}
                self.held_up.fetch_add(1, Ordering::AcqRel);
                while call.output.write_all(&[7; 4096]).is_ok() {}
                self.hung_up.fetch_add(1, Ordering::AcqRel);
                4
            }
            _ => 5,
        }
    }

    fn refusal(&self, _program: Program, text: &str) -> Vec<u8> {
        text.as_bytes().to_vec()
    }
}

fn echo(call: &mut Call) -> u32 {
    let mut buffer = [0; 4096];
    loop {
        match call.input.read(&mut buffer) {
            Ok(0) => return 0,
            Ok(n) if call.output.write_all(&buffer[..n]).and_then(|()| call.output.flush()).is_ok() => {}
            _ => return 6,
        }
    }
}

struct Lab {
    dir: tempfile::TempDir,
    script: Arc<Script>,
    sessions: Sessions,
    ssh: SshDoor,
    unix: UnixDoor,
    key: PrivateKey,
}

impl Lab {
    async fn new(sessions_max: usize) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&[9; 32]));
        std::fs::write(dir.path().join("keys"), host_key::public_line(&key)).unwrap();
        let script = Arc::<Script>::default();
        let sessions = Sessions::new(script.clone(), sessions_max);
        let options = SshOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            host_key: host_key::load_or_create(dir.path()).unwrap(),
            keys: Arc::new(AuthorizedKeys::open(dir.path().join("keys"))),
            node: "lab".into(),
        };
        let ssh = SshDoor::open(options, sessions.clone()).await.unwrap();
        let unix = UnixDoor::open(&dir.path().join("sock"), sessions.clone()).unwrap();
        Lab { dir, script, sessions, ssh, unix, key }
    }

    async fn connection(&self) -> client::Handle<Anyone> {
        log_in(self.ssh.local_addr(), &self.key).await.unwrap()
    }

    async fn socket(&self) -> UnixStream {
        UnixStream::connect(self.unix.path()).await.unwrap()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Lab) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < PATIENCE, "never happened: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

struct Anyone;

impl client::Handler for Anyone {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

async fn log_in(address: SocketAddr, key: &PrivateKey) -> Option<client::Handle<Anyone>> {
    let mut connection = client::connect(Arc::default(), address, Anyone).await.unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key.clone()), None);
    connection.authenticate_publickey("whoever", key).await.unwrap().success().then_some(connection)
}

async fn run(connection: &client::Handle<Anyone>, command: &str, input: &[u8]) -> Channel<client::Msg> {
    let channel = connection.channel_open_session().await.unwrap();
    channel.exec(true, command).await.unwrap();
    channel.data(input).await.unwrap();
    channel
}

/// Everything that a channel says: standard output, standard error, exit status.
async fn hear(reader: &mut ChannelReadHalf) -> (Vec<u8>, String, Option<u32>) {
    let (mut stdout, mut stderr, mut status) = (Vec::new(), Vec::new(), None);
    while let Some(message) = tokio::time::timeout(PATIENCE, reader.wait()).await.unwrap() {
        match message {
            ChannelMsg::Data { data } => stdout.extend_from_slice(&data),
            ChannelMsg::ExtendedData { data, .. } => stderr.extend_from_slice(&data),
            ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            _ => {}
        }
    }
    (stdout, String::from_utf8(stderr).unwrap(), status)
}

async fn echoes_over_ssh(connection: &client::Handle<Anyone>) {
    let channel = run(connection, "nix-daemon --stdio", b"eyes").await;
    channel.eof().await.unwrap();
    assert_eq!(hear(&mut channel.split().0).await, (b"yes".to_vec(), String::new(), Some(0)));
}

async fn echoes(stream: &mut UnixStream) {
    stream.write_all(b"ehello").await.unwrap();
    let mut answer = [0; 5];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_over_ssh_carries_bulk_both_ways_and_ends_with_its_status() {
    let lab = Lab::new(10).await;
    let connection = lab.connection().await;
    let mut channel = run(&connection, "nix-daemon --stdio", b"e").await;
    let bulk: Vec<u8> = (0..20_000_000u32).map(|i| (i >> 3) as u8).collect();
    let mut back = Vec::new();
    // russh's client stops reading while it cannot write, so it must not be given more than fits on the way.
    for piece in bulk.chunks(64 << 10) {
        channel.data(piece).await.unwrap();
        let expected = back.len() + piece.len();
        while back.len() < expected {
            let message = tokio::time::timeout(PATIENCE, channel.wait()).await.unwrap();
            if let Some(ChannelMsg::Data { data }) = message {
                back.extend_from_slice(&data);
            }
        }
    }
    channel.eof().await.unwrap();
    let (rest, _, status) = hear(&mut channel.split().0).await;
    assert_eq!((back == bulk, rest.len(), status), (true, 0, Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_commands_and_shells_are_turned_away_in_words() {
    let lab = Lab::new(10).await;
    let connection = lab.connection().await;
    let channel = connection.channel_open_session().await.unwrap();
    channel.exec(true, "ls /").await.unwrap();
    let (stdout, stderr, status) = hear(&mut channel.split().0).await;
    assert_eq!((stdout.len(), status), (0, Some(127)));
    assert!(stderr.contains("lab serves Nix"), "{stderr}");

    let channel = connection.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    channel.request_shell(true).await.unwrap();
    let (stdout, _, status) = hear(&mut channel.split().0).await;
    assert_eq!(status, Some(1));
    assert!(String::from_utf8(stdout).unwrap().contains("shoal node lab"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_key_does_not_come_in_and_a_new_one_does() {
    let lab = Lab::new(10).await;
    let other = PrivateKey::from(Ed25519Keypair::from_seed(&[8; 32]));
    assert!(log_in(lab.ssh.local_addr(), &other).await.is_none());
    std::fs::write(lab.dir.path().join("keys"), host_key::public_line(&other)).unwrap();
    assert!(log_in(lab.ssh.local_addr(), &other).await.is_some());
    assert!(log_in(lab.ssh.local_addr(), &lab.key).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_session_hears_that_its_client_went() {
    let lab = Lab::new(10).await;
    let connection = lab.connection().await;
    let kept = run(&connection, "nix-store --serve --write", b"b").await;
    let closed = run(&connection, "nix-daemon --stdio", b"b").await;
    let mut socket = lab.socket().await;
    socket.write_all(b"b").await.unwrap();
    lab.until("three busy sessions", |lab| lab.sessions.running() == 3).await;

    closed.close().await.unwrap();
    lab.until("the closed channel was heard", |lab| lab.script.hung_up() == 1).await;
    drop(socket);
    lab.until("the closed socket was heard", |lab| lab.script.hung_up() == 2).await;
    drop((kept, closed, connection));
    lab.until("the lost connection was heard", |lab| lab.script.hung_up() == 3).await;
    lab.until("no session is left", |lab| lab.sessions.running() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_holds_up_only_itself() {
    let lab = Lab::new(10).await;
    let greedy = lab.connection().await;
    let channel = run(&greedy, "nix-daemon --stdio", b"w").await;
    let mut socket = lab.socket().await;
    socket.write_all(b"w").await.unwrap();
    lab.until("both are held up", |lab| lab.script.held_up() == 2).await;

    echoes(&mut lab.socket().await).await;
    echoes_over_ssh(&lab.connection().await).await;
    assert_eq!(lab.script.hung_up(), 0);

    drop((channel, greedy, socket));
    lab.until("both writers stopped", |lab| lab.script.hung_up() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_does_not_read_leaves_the_rest_of_its_connection_alone() {
    let lab = Lab::new(10).await;
    let connection = lab.connection().await;
    let busy = run(&connection, "nix-daemon --stdio", b"b").await;
    busy.data(&vec![0; 1 << 20][..]).await.unwrap();
    echoes_over_ssh(&connection).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_silent_connections_matter_to_nobody() {
    let lab = Lab::new(10).await;
    let mut silent = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        silent.0.push(TcpStream::connect(lab.ssh.local_addr()).await.unwrap());
        silent.1.push(lab.socket().await);
    }
    let start = Instant::now();
    echoes(&mut lab.socket().await).await;
    echoes_over_ssh(&lab.connection().await).await;
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    lab.until("only who speaks has a thread", |lab| lab.sessions.running() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_client_gets_its_answer() {
    let lab = Lab::new(10).await;
    let mut socket = lab.socket().await;
    socket.write_all(b"eall of it").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_too_many_is_refused_in_words() {
    let lab = Lab::new(1).await;
    let mut first = lab.socket().await;
    echoes(&mut first).await;
    let connection = lab.connection().await;
    let second = run(&connection, "nix-daemon --stdio", b"e").await;
    let (stdout, stderr, status) = hear(&mut second.split().0).await;
    assert!(String::from_utf8(stdout).unwrap().contains("already serves 1 sessions"));
    assert!(stderr.contains("try again later"), "{stderr}");
    assert_eq!(status, Some(75));
    drop(first);
    lab.until("there is room again", |lab| lab.sessions.running() == 0).await;
    echoes(&mut lab.socket().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_all_the_room() {
    let lab = Lab::new(4).await;
    let mut greedy = Vec::new();
    for _ in 0..3 {
        let mut socket = lab.socket().await;
        echoes(&mut socket).await;
        greedy.push(socket);
    }
    let mut refused = lab.socket().await;
    refused.write_all(b"e").await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, refused.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("already serves 3 sessions"));
    echoes_over_ssh(&lab.connection().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_nodes_socket_is_replaced_and_a_live_ones_is_not() {
    let lab = Lab::new(1).await;
    let error = UnixDoor::open(lab.unix.path(), lab.sessions.clone()).err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    let dead = lab.dir.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(dead.exists());
    let door = UnixDoor::open(&dead, lab.sessions.clone()).unwrap();
    echoes(&mut UnixStream::connect(&dead).await.unwrap()).await;
    drop(door);
    assert!(!dead.exists());
}
