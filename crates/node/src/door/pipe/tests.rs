use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use super::*;

fn may_read(gate: &Gate) -> bool {
    gate.poll_open(&mut Context::from_waker(Waker::noop())) == Poll::Ready(Ok(()))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

#[test]
fn what_came_before_the_end_is_read_then_zero() {
    let (mut session, door) = pipe(Arc::default());
    door.feed.push(b"last words");
    door.feed.end();
    assert!(session.hangup.is_gone());
    let mut text = String::new();
    session.input.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
}

#[test]
fn a_client_that_ended_its_side_still_gets_answers() {
    let (mut session, mut door) = pipe(Arc::default());
    door.feed.end();
    session.output.write_all(b"answer").unwrap();
    session.output.flush().unwrap();
    session.end.finish(3);
    runtime().block_on(async {
        assert_eq!(door.drain.next().await, Some(Outgoing::Piece(Lane::Data, b"answer".to_vec())));
        assert_eq!(door.drain.next().await, Some(Outgoing::End(3)));
    });
}

#[test]
fn the_gate_is_shut_while_too_much_lies_unread() {
    let gate = Arc::<Gate>::default();
    let (mut session, door) = pipe(gate.clone());
    door.feed.push(&vec![1; INPUT_MAX - 1]);
    assert!(may_read(&gate));
    door.feed.push(&[2; 10]);
    assert!(!may_read(&gate));
    // The session has all of it in hand then, and the door as much again at most.
    session.input.read_exact(&mut [0; 1]).unwrap();
    assert!(may_read(&gate));
    door.feed.push(&vec![3; INPUT_MAX]);
    assert!(!may_read(&gate));
    session.input.read_exact(&mut vec![0; INPUT_MAX + 8]).unwrap();
    assert!(!may_read(&gate));
    session.input.read_exact(&mut [0; 1]).unwrap();
    assert!(may_read(&gate));
}

#[test]
fn a_session_that_ends_leaves_the_gate_open() {
    let gate = Arc::<Gate>::default();
    let (session, door) = pipe(gate.clone());
    door.feed.push(&vec![1; INPUT_MAX]);
    assert!(!may_read(&gate));
    drop(session);
    assert!(may_read(&gate));
    door.feed.push(&vec![1; INPUT_MAX]);
    assert!(may_read(&gate));
}

#[test]
fn a_writer_waits_for_room_and_fails_when_the_client_goes() {
    let (mut session, door) = pipe(Arc::default());
    let (passed, expected) = (Arc::new(AtomicUsize::new(0)), OUTPUT_MAX);
    let counter = passed.clone();
    let writer = thread::spawn(move || {
        loop {
            match session.output.write(&[7; 1024]) {
                Ok(n) => counter.fetch_add(n, Ordering::Relaxed),
                Err(error) => return (error.kind(), session.output.is_congested()),
            };
        }
    });
    while passed.load(Ordering::Relaxed) < expected {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(20));
    assert!(passed.load(Ordering::Relaxed) <= OUTPUT_MAX + 2 * PIECE);
    drop(door.drain);
    assert_eq!(writer.join().unwrap(), (io::ErrorKind::BrokenPipe, true));
}

#[test]
fn hanging_up_runs_the_watches_that_are_left() {
    let (session, door) = pipe(Arc::default());
    let fired = Arc::new(AtomicUsize::new(0));
    let add = |n: usize| {
        let fired = fired.clone();
        move || {
            fired.fetch_add(n, Ordering::Relaxed);
        }
    };
    let _kept = session.hangup.watch(add(1));
    drop(session.hangup.watch(add(10)));
    drop(door.feed);
    assert_eq!(fired.load(Ordering::Relaxed), 1);
    let _late = session.hangup.watch(add(100));
    assert_eq!(fired.load(Ordering::Relaxed), 101);
}

#[test]
fn lanes_keep_their_order() {
    let (mut session, mut door) = pipe(Arc::default());
    let mut stderr = session.output.with_lane(Lane::Stderr);
    stderr.write_all(b"log").unwrap();
    stderr.flush().unwrap();
    session.output.write_all(b"data").unwrap();
    session.output.flush().unwrap();
    runtime().block_on(async {
        assert_eq!(door.drain.next().await, Some(Outgoing::Piece(Lane::Stderr, b"log".to_vec())));
        assert_eq!(door.drain.next().await, Some(Outgoing::Piece(Lane::Data, b"data".to_vec())));
    });
}
