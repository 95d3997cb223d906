//! One request for chunks: frames as they come, verified and written beside.

use super::asking::{self, broke, read_broke};
use super::engine::Engine;
use super::error::AskError;
use super::flight::Flight;
use super::writer::Writer;
use iroh::endpoint::{ReadExactError, RecvStream, VarInt};
use shoal_grid::transfer::{FetchId, Outcome, RequestId};
use shoal_store::Arrivals;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::{Ask, PART_LEN, Part, PartLimits, Urgency};
use shoal_wire::mesh::manifest::ChunkRef;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What came is verified and written at least so often, so that others see it and the peer's speed is known.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// How often the peer is said not to be silent.
const HEARD_EVERY: Duration = Duration::from_millis(200);
/// The code of an answer whose rest is not wanted.
const NOT_WANTED: VarInt = VarInt::from_u32(3);

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
    let writer = Writer::new(engine.clone(), asked.flight.clone(), asked.request);
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
        writer,
    };
    let read = tokio::select! {
        read = receiver.read_all() => Some(read),
        _ = &mut cancelled => None,
    };
    // What came whole counts, also where the rest does not come.
    if receiver.is_filling {
        receiver.arrivals.undo();
    }
    if read.is_none() {
        // The stream is ended now, the rest need not come.
        let _ = receiver.stream.stop(NOT_WANTED);
        receiver.writer.cancel();
    }
    let written = match receiver.write().await {
        Ok(()) => receiver.writer.finish().await,
        refused => refused,
    };
    match read {
        Some(read) => written.and(read),
        // Of a peer that was given up nothing is said; of this store it is.
        None => written.or_else(|error| if let AskError::Store(_) = error { Err(error) } else { Ok(()) }),
    }
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
    writer: Writer,
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

    /// Has what came verified and written.
    async fn write(&mut self) -> Result<(), AskError> {
        if self.outcomes.is_empty() {
            return Ok(());
        }
        let arrivals = std::mem::replace(&mut self.arrivals, self.engine.store.arrivals()?);
        self.writer.push(arrivals, std::mem::take(&mut self.outcomes)).await
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
