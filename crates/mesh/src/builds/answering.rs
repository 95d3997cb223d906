//! The executor's end: who asks, how many, and what is said to each.

use super::{ALIVE_PERIOD, BROKEN, CANCELLED, ReadFailure, SILENCE_MAX, read, write};
use crate::dial::{BoxFuture, Offence, ServeBuilds};
use crate::links::bucket::Bucket;
use iroh::endpoint::{Connection, ReadError, RecvStream, SendStream, WriteError};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame, Reason};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a peer may take to say what it wants.
const ASK_TIME: Duration = Duration::from_secs(10);
/// Requests of one peer that are open at a time; more are refused for now.
pub const OPEN_MAX: usize = 256;
/// Requests of one peer in a second: more than the largest machine begins builds.
const ASKS_A_S: u64 = 200;
/// How many it may save up: a wide graph that is asked for, and refused for now, all at once.
const ASKS_BURST: u64 = 4_000;
/// What was said and is not sent yet. Lines are dropped before they come here when the asker is slow.
const FRAMES_WAITING_MAX: usize = 64;
/// When a peer that has too many open may ask again.
const RETRY_AFTER_MS: u32 = 1_000;

/// Builds what is asked for.
pub trait Execute: Send + Sync + 'static {
    /// Called on a task of the runtime, so that it must not wait: the answer is given from elsewhere.
    fn asked(&self, peer: NodeKey, ask: BuildAsk, answer: Answer);
}

/// Why nobody listens any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// The build is not wanted any more.
    Cancelled,
    /// The asker died, or cannot be reached.
    Lost,
}

type Waker = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Asker {
    gone: Mutex<(Option<Gone>, Option<Arc<Waker>>)>,
}

impl Asker {
    fn lock(&self) -> MutexGuard<'_, (Option<Gone>, Option<Arc<Waker>>)> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found first counts.
    fn is_gone(&self, how: Gone) {
        let mut gone = self.lock();
        gone.0.get_or_insert(how);
        let waker = gone.1.clone();
        drop(gone);
        if let Some(waker) = waker {
            waker();
        }
    }
}

/// Where one request is answered. Dropping it without an end breaks the answer off.
pub struct Answer {
    frames: mpsc::Sender<BuildFrame>,
    asker: Arc<Asker>,
}

impl Answer {
    /// Says something, from a thread that may wait. Whether somebody may still hear it.
    pub fn say(&self, frame: BuildFrame) -> bool {
        self.frames.blocking_send(frame).is_ok()
    }

    /// The same where nothing may wait; `false` where there is no room either.
    pub fn say_at_once(&self, frame: BuildFrame) -> bool {
        self.frames.try_send(frame).is_ok()
    }

    pub fn gone(&self) -> Option<Gone> {
        self.asker.lock().0
    }

    /// `wake` is called when the asker is gone, at once if it is.
    pub fn watch(&self, wake: impl Fn() + Send + Sync + 'static) {
        let waker: Arc<Waker> = Arc::new(Box::new(wake));
        let mut gone = self.asker.lock();
        gone.1 = Some(waker.clone());
        let is_gone = gone.0.is_some();
        drop(gone);
        if is_gone {
            waker();
        }
    }
}

/// Lets an asker count as lost when its task ends in whatever way.
struct LostInTheEnd(Arc<Asker>);

impl Drop for LostInTheEnd {
    fn drop(&mut self) {
        self.0.is_gone(Gone::Lost);
    }
}

/// Answers members that ask for builds. Cheap to clone.
#[derive(Clone)]
pub struct BuildServer(Arc<dyn Execute>);

impl BuildServer {
    pub fn new(executor: Arc<dyn Execute>) -> BuildServer {
        BuildServer(executor)
    }
}

impl ServeBuilds for BuildServer {
    fn serve(&self, peer: NodeKey, connection: Connection) -> BoxFuture<'static, Option<Offence>> {
        let executor = self.0.clone();
        Box::pin(serve(executor, peer, connection))
    }
}

async fn serve(executor: Arc<dyn Execute>, peer: NodeKey, connection: Connection) -> Option<Offence> {
    let places = Arc::new(Semaphore::new(OPEN_MAX));
    let mut asks = Bucket::full(ASKS_A_S, ASKS_BURST, Instant::now());
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok(_) if !asks.take(1, Instant::now()) => return Some("asked for builds more often than it may".into()),
                Ok((send, recv)) => {
                    let (executor, places) = (executor.clone(), places.clone());
                    answers.spawn(async move { answer(&*executor, peer, &places, send, recv).await });
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection for builds has ended");
                    return None;
                }
            },
            Some(answered) = answers.join_next() => {
                if let Ok(Err(offence)) = answered {
                    return Some(offence);
                }
            }
        }
    }
}

/// One request. An error is something that no member sends by accident.
async fn answer(
    executor: &dyn Execute,
    peer: NodeKey,
    places: &Semaphore,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), Offence> {
    let ask = match read::<BuildAsk>(&mut recv, ASK_TIME).await {
        Ok(ask) => ask,
        Err(ReadFailure::Bad(error)) => return Err(error.to_string()),
        // It may be gone already.
        Err(_) => return Ok(_ = send.reset(BROKEN)),
    };
    let Ok(_place) = places.try_acquire() else {
        let text = format!("{OPEN_MAX} builds that this node asked for are open");
        let refused = BuildFrame::Refused { reason: Reason::Full, text, retry_after_ms: RETRY_AFTER_MS };
        if let Some(Ok(())) = write(&mut send, &refused).await {
            let _ = send.finish();
        }
        return Ok(());
    };
    let (frames, said) = mpsc::channel(FRAMES_WAITING_MAX);
    let asker = Arc::new(Asker::default());
    let _lost = LostInTheEnd(asker.clone());
    executor.asked(peer, ask, Answer { frames, asker: asker.clone() });
    tokio::select! {
        gone = until_gone(&mut recv) => gone.map(|gone| asker.is_gone(gone)),
        gone = pass_on(said, &mut send) => {
            if let Some(gone) = gone {
                asker.is_gone(gone);
            }
            Ok(())
        }
    }
}

/// Waits until the asker is gone.
async fn until_gone(recv: &mut RecvStream) -> Result<Gone, String> {
    match recv.read(&mut [0]).await {
        Err(ReadError::Reset(code)) if code == CANCELLED => Ok(Gone::Cancelled),
        Err(_) => Ok(Gone::Lost),
        Ok(_) => Err("it says more than what it asks".into()),
    }
}

/// Sends what is said until the end of it; says who is gone where that shows.
async fn pass_on(mut said: mpsc::Receiver<BuildFrame>, send: &mut SendStream) -> Option<Gone> {
    loop {
        let frame = match timeout(ALIVE_PERIOD, said.recv()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                let _ = send.reset(BROKEN);
                return None;
            }
            Err(_) => BuildFrame::Alive,
        };
        match write(send, &frame).await {
            Some(Ok(())) if frame.is_last() => {
                let _ = send.finish();
                // What is on its way is not cut off by the end of this task.
                let _ = timeout(SILENCE_MAX, send.stopped()).await;
                return None;
            }
            Some(Ok(())) => {}
            Some(Err(WriteError::Stopped(code))) if code == CANCELLED => return Some(Gone::Cancelled),
            _ => return Some(Gone::Lost),
        }
    }
}
