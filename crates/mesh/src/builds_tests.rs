use super::*;
use crate::clock::wall_s;
use crate::dial::{DialBuilds, DialError};
use crate::fetcher::AskError;
use crate::fixture::*;
use crate::identity::{Identity, MEMBERSHIP_S};
use crate::links::{Incoming, Links, LinksOptions};
use crate::log_lab::Log;
use crate::protocol::Close;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame, Reason};
use shoal_wire::nix::store_path::StorePath;
use std::sync::Arc;
use std::sync::Mutex;
use tokio::sync::mpsc;

/// Hands each request to the test.
struct Host(mpsc::UnboundedSender<(NodeKey, BuildAsk, Answer)>);

impl Execute for Host {
    fn asked(&self, peer: NodeKey, ask: BuildAsk, answer: Answer) {
        let _ = self.0.send((peer, ask, answer));
    }
}

struct Member {
    links: Links,
    asked: mpsc::UnboundedReceiver<(NodeKey, BuildAsk, Answer)>,
    _events: mpsc::Receiver<Incoming>,
    _dir: tempfile::TempDir,
}

impl Member {
    async fn new(seed: u8) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::with_secret(dir.path(), key(seed), key(MESH), wall_s()).unwrap();
        Member::of(dir, identity).await
    }

    async fn of(dir: tempfile::TempDir, identity: Identity) -> Member {
        let ((events, _events), (asks, asked)) = (mpsc::channel(64), mpsc::unbounded_channel());
        let server = Arc::new(BuildServer::new(Arc::new(Host(asks))));
        let options = LinksOptions { identity: Arc::new(identity), bind: loopback() };
        let links = Links::open(options, events, Arc::new(Echo), server).await.unwrap();
        Member { links, asked, _events, _dir: dir }
    }

    async fn asked(&mut self) -> (NodeKey, BuildAsk, Answer) {
        within(self.asked.recv()).await.unwrap()
    }
}

async fn pair() -> (Member, Member) {
    let (a, b) = (Member::new(1).await, Member::new(2).await);
    a.links.learn_addresses(b.links.node(), &b.links.addresses());
    (a, b)
}

fn follow() -> BuildAsk {
    let drv_path = StorePath::from_base_name("dd2s755w68andyyr5makbwzidf6whr5d-a.drv").unwrap();
    BuildAsk::Follow { drv_path, quorum: 1 }
}

fn refused_frame() -> BuildFrame {
    BuildFrame::Refused { reason: Reason::Unknown, text: "no".into(), retry_after_ms: 0 }
}

async fn heard(building: &mut Building) -> BuildFrame {
    loop {
        match within(building.next()).await.unwrap() {
            BuildFrame::Alive => {}
            frame => return frame,
        }
    }
}

/// What becomes of the asker.
async fn gone(answer: &Answer) -> Gone {
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = Mutex::new(Some(tell));
    answer.watch(move || _ = tell.lock().unwrap().take().map(|tell| tell.send(())));
    within(told).await.unwrap();
    answer.gone().unwrap()
}

#[tokio::test]
async fn what_an_executor_says_arrives_in_order_and_silence_is_filled() {
    let (a, mut b) = pair().await;
    let mut building = within(ask(&a.links, b.links.node(), &follow())).await.unwrap();
    let (from, asked, answer) = b.asked().await;
    assert_eq!((from, asked), (a.links.node(), follow()));
    assert!(answer.say_at_once(BuildFrame::Accepted) && answer.say_at_once(BuildFrame::Phase("build".into())));
    assert_eq!(heard(&mut building).await, BuildFrame::Accepted);
    assert_eq!(heard(&mut building).await, BuildFrame::Phase("build".into()));
    assert_eq!(within(building.next()).await.unwrap(), BuildFrame::Alive);
    assert!(answer.say_at_once(refused_frame()));
    assert_eq!(heard(&mut building).await, refused_frame());
}

#[tokio::test]
async fn who_does_not_want_a_build_any_more_is_told_from_who_is_lost() {
    let (a, mut b) = pair().await;
    let building = within(ask(&a.links, b.links.node(), &follow())).await.unwrap();
    let (_, _, answer) = b.asked().await;
    drop(building);
    assert_eq!(gone(&answer).await, Gone::Cancelled);
    let _building = within(ask(&a.links, b.links.node(), &follow())).await.unwrap();
    let (_, _, answer) = b.asked().await;
    a.links.close().await;
    assert_eq!(gone(&answer).await, Gone::Lost);
}

#[tokio::test]
async fn an_answer_without_an_end_is_no_end() {
    let (a, mut b) = pair().await;
    let mut building = within(ask(&a.links, b.links.node(), &follow())).await.unwrap();
    drop(b.asked().await);
    assert!(matches!(within(building.next()).await, Err(AskError::Broke(_))));
}

/// A member misbehaves on its connection: it is cut off with `offence`, which is logged, and others are heard.
async fn offends(offence: &str, how: impl AsyncFn(&iroh::endpoint::Connection)) {
    let (a, mut b) = pair().await;
    let good = Member::new(3).await;
    good.links.learn_addresses(b.links.node(), &b.links.addresses());
    let log = Log::begin();
    let connection = within(a.links.builds(b.links.node())).await.unwrap();
    how(&connection).await;
    match within(connection.closed()).await {
        iroh::endpoint::ConnectionError::ApplicationClosed(closed) => {
            assert_eq!(closed.error_code, Close::Malformed.code());
            let reason = String::from_utf8_lossy(&closed.reason);
            assert!(reason.contains(offence), "{reason}");
        }
        other => panic!("{other}"),
    }
    log.tells(&a.links.node(), offence).await;
    assert_eq!(b.links.counts().cut_off, 1);
    let refused = within(a.links.builds(b.links.node())).await.unwrap_err();
    assert!(matches!(&refused, DialError::Refused(why) if why.contains(offence)), "{refused}");
    let mut building = within(ask(&good.links, b.links.node(), &follow())).await.unwrap();
    let answer = loop {
        let (from, _, answer) = b.asked().await;
        if from == good.links.node() {
            break answer;
        }
    };
    assert!(answer.say_at_once(refused_frame()));
    assert_eq!(heard(&mut building).await, refused_frame());
}

#[tokio::test]
async fn who_sends_garbage_is_cut_off_and_others_are_heard() {
    let cut_short = [1, 0, 0, 0, <BuildAsk as shoal_wire::mesh::format::Format>::VERSION];
    for (garbage, offence) in [(&[255; 8][..], "long"), (&[3, 0, 0, 0, 9, 9, 9], "version"), (&cut_short, "decode")] {
        offends(offence, async |connection| {
            let (mut send, _recv) = connection.open_bi().await.unwrap();
            send.write_all(garbage).await.unwrap();
            connection.closed().await;
        })
        .await;
    }
}

#[tokio::test]
async fn who_floods_with_requests_for_builds_is_cut_off_and_others_are_heard() {
    offends("asked for builds more often than it may", async |connection| {
        while let Ok((mut send, _recv)) = connection.open_bi().await {
            // Given up at once, so that the next may be opened.
            let _ = send.reset(CANCELLED);
        }
    })
    .await;
}

#[tokio::test]
async fn a_node_whose_certificate_does_not_say_that_it_builds_neither_asks_nor_is_asked() {
    let a = Member::new(1).await;
    let dir = tempfile::tempdir().unwrap();
    let stores_only = certificate(MESH, 2, wall_s(), wall_s() + MEMBERSHIP_S);
    std::fs::write(dir.path().join("certificate"), shoal_wire::mesh::format::encode(&stores_only)).unwrap();
    let identity = Identity::open(dir.path(), key(2)).unwrap().unwrap();
    let b = Member::of(dir, identity).await;
    b.links.learn_addresses(a.links.node(), &a.links.addresses());
    a.links.learn_addresses(b.links.node(), &b.links.addresses());
    let why = "the certificate is of a node that does not build".to_owned();
    assert_eq!(within(b.links.builds(a.links.node())).await.unwrap_err(), DialError::Refused(why));
    assert!(within(a.links.builds(b.links.node())).await.is_err());
}
