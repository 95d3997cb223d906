//! One request for chunks: frames as they come, verified and written beside.

use super::asking::{self, broke, read_broke};
use super::engine::Engine;
use super::error::AskError;
use super::flight::Flight;
use iroh::endpoint::{ReadExactError, RecvStream};
use shoal_grid::transfer::{FetchId, Outcome, RequestId};
use shoal_store::{Arrivals, ChunkError};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::{Ask, PART_LEN, Part, PartLimits, Urgency};
use shoal_wire::mesh::manifest::ChunkRef;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// What came is verified and written at least so often, so that others see it and the peer's speed is known.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// How often the peer is said not to be silent.
const HEARD_EVERY: Duration = Duration::from_millis(200);

pub struct Asked {
    pub request: RequestId,
    pub fetch: FetchId,
    pub peer: NodeKey,
    pub urgency: Urgency,
    pub chunks: Vec<ChunkRef>,
    pub flight: Arc<Flight>,
}

/// Until all has come, or until `cancelled` ends.
pub async fn run(engine: Arc<Engine>, asked: Asked, cancelled: oneshot::Receiver<()>) {
    let ended = receive(&engine, &asked, cancelled).await;
    engine.ended(asked.request, asked.fetch, ended.err());
}

async fn receive(engine: &Arc<Engine>, asked: &Asked, mut cancelled: oneshot::Receiver<()>) -> Result<(), AskError> {
    let hashes = asked.chunks.iter().map(|chunk| chunk.hash).collect();
    let ask = Ask::Chunks { urgency: asked.urgency, hashes };
    let stream = tokio::select! {
        stream = asking::ask(&*engine.dial, asked.peer, &ask) => stream?,
        _ = &mut cancelled => return Ok(()),
    };
    let mut receiver = Receiver {
        engine: engine.clone(),
        asked,
        stream,
        limits: ask.limits(),
        arrivals: engine.store.arrivals()?,
        is_filling: false,
        outcomes: Vec::new(),
        since: Instant::now(),
        heard: Instant::now(),
        writing: None,
    };
    let read = tokio::select! {
        read = receiver.read_all() => Some(read),
        _ = &mut cancelled => None,
    };
    // What came whole counts, also where the rest does not come.
    if receiver.is_filling {
        receiver.arrivals.undo();
    }
    let Some(read) = read else {
        // The stream is ended now, the rest need not come.
        drop(receiver.stream);
        return found(engine, &asked.flight, receiver.writing, receiver.arrivals).await;
    };
    let written = match receiver.write().await {
        Ok(()) => receiver.written().await,
        refused => refused,
    };
    written.and(read)
}

/// Stores what came of a request that was cancelled, as far as somebody may still want it.
async fn found(
    engine: &Arc<Engine>,
    flight: &Arc<Flight>,
    writing: Option<JoinHandle<Result<(), AskError>>>,
    arrivals: Arrivals,
) -> Result<(), AskError> {
    if let Some(writing) = writing {
        // Whatever came of it, nobody is told any more.
        let _ = writing.await;
    }
    let is_wanted = flight.hold().is_some_and(|hold| arrivals.chunks().any(|chunk| !hold.is_here(&chunk.hash)));
    if is_wanted {
        let (engine, flight) = (engine.clone(), flight.clone());
        let stored = spawn_blocking(move || {
            let verified = arrivals.verify()?;
            let names: Vec<[u8; 32]> = verified.names().copied().collect();
            flight.keep(verified)?;
            engine.found(&names);
            Ok::<_, AskError>(())
        });
        stored.await.unwrap_or(Ok(()))?;
    }
    Ok(())
}

struct Receiver<'a> {
    engine: Arc<Engine>,
    asked: &'a Asked,
    stream: RecvStream,
    limits: PartLimits,
    arrivals: Arrivals,
    /// Whether the last of them is not whole.
    is_filling: bool,
    /// Of the parts that came since the last write.
    outcomes: Vec<Outcome>,
    since: Instant,
    heard: Instant,
    /// The write before.
    writing: Option<JoinHandle<Result<(), AskError>>>,
}

impl Receiver<'_> {
    async fn read_all(&mut self) -> Result<(), AskError> {
        for chunk in &self.asked.chunks {
            if self.outcomes.is_empty() {
                self.since = Instant::now();
            }
            let outcome = self.read_one(chunk).await?;
            self.outcomes.push(outcome);
            if self.arrivals.is_full() || self.since.elapsed() > WRITE_EVERY {
                self.write().await?;
            }
        }
        Ok(())
    }

    async fn read_one(&mut self, chunk: &ChunkRef) -> Result<Outcome, AskError> {
        let mut head = [0; PART_LEN];
        fill(&mut self.stream, &mut self.heard, &self.engine, self.asked, &mut head).await?;
        let lied = |why: String| AskError::Lied(why);
        let (len, bytes, hasty) = match Part::decode(&head, self.limits).map_err(|error| lied(error.to_string()))? {
            Part::Absent => return Ok(Outcome::Absent),
            Part::Busy => return Ok(Outcome::Busy),
            Part::Here { len, bytes, hasty } => (len, bytes, hasty),
        };
        if len != chunk.len {
            return Err(lied(format!("it has {len} bytes for a chunk of {}", chunk.len)));
        }
        let slot = self.arrivals.slot(*chunk, hasty, bytes as usize).map_err(|error| lied(error.to_string()))?;
        self.is_filling = true;
        fill(&mut self.stream, &mut self.heard, &self.engine, self.asked, slot).await?;
        self.is_filling = false;
        Ok(Outcome::Here)
    }

    /// Has what came verified and written, once the write before has ended.
    async fn write(&mut self) -> Result<(), AskError> {
        self.written().await?;
        if self.outcomes.is_empty() {
            return Ok(());
        }
        if self.arrivals.is_empty() {
            self.engine.settle(self.asked.request, &std::mem::take(&mut self.outcomes));
            return Ok(());
        }
        let permit = self.engine.verifying.clone().acquire_owned().await;
        let arrivals = std::mem::replace(&mut self.arrivals, self.engine.store.arrivals()?);
        let outcomes = std::mem::take(&mut self.outcomes);
        let (engine, flight, request) = (self.engine.clone(), self.asked.flight.clone(), self.asked.request);
        self.writing = Some(spawn_blocking(move || {
            let _permit = permit;
            store(&engine, &flight, request, arrivals, &outcomes)
        }));
        Ok(())
    }

    /// Waits for the write before. The peer is not silent meanwhile.
    async fn written(&mut self) -> Result<(), AskError> {
        while let Some(writing) = &mut self.writing {
            match timeout(HEARD_EVERY, writing).await {
                Err(_) => self.engine.heard(self.asked.request),
                Ok(written) => {
                    self.writing = None;
                    return written.unwrap_or_else(|_| Err(AskError::Broke("what came was not stored".into())));
                }
            }
        }
        Ok(())
    }
}

/// Reads all of `out`, however slowly it comes; whether that is too slow is decided elsewhere.
async fn fill(
    stream: &mut RecvStream,
    heard: &mut Instant,
    engine: &Engine,
    asked: &Asked,
    out: &mut [u8],
) -> Result<(), AskError> {
    let mut at = 0;
    while at < out.len() {
        match stream.read(&mut out[at..]).await.map_err(read_broke)? {
            Some(n) => at += n,
            None => return Err(broke(ReadExactError::FinishedEarly(at))),
        }
        if heard.elapsed() > HEARD_EVERY {
            *heard = Instant::now();
            engine.heard(asked.request);
        }
    }
    asked.flight.moved(out.len() as u64);
    Ok(())
}

/// Verifies and writes what came, and tells what became of each, up to the first that is wrong.
fn store(
    engine: &Engine,
    flight: &Flight,
    request: RequestId,
    arrivals: Arrivals,
    outcomes: &[Outcome],
) -> Result<(), AskError> {
    let verified = arrivals.verify()?;
    let refused = verified.refused().map(ChunkError::to_string);
    let mut here = verified.len();
    let right = outcomes.iter().take_while(|outcome| match outcome {
        Outcome::Here => here.checked_sub(1).inspect(|left| here = *left).is_some(),
        Outcome::Absent | Outcome::Busy => true,
    });
    let right = right.count();
    flight.keep(verified)?;
    engine.settle(request, &outcomes[..right]);
    match refused {
        Some(why) => Err(AskError::Lied(why)),
        None => Ok(()),
    }
}
