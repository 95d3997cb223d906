//! `/api/v1/push` and `/api/v1/pull`: what `shoal push` and `shoal pull` ask. Formats: [`shoal_wire::mesh::transfer`].

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use shoal_store::{Store, StoredFrames};
use shoal_wire::mesh::transfer::{
    BATCH_LEN_MAX, ChunkBatch, ChunkQuery, ChunkRequest, Commit, Entry, MESSAGE_LEN_MAX, Message, PathQuery,
};
use tokio::time::timeout;

use super::{Body, Cache, Found, Request, Response, put, response};
use crate::door::Grant;
use crate::session::deposit::{Deposits, Refusal};

/// How long a message may take to come in: the longest batch at half a Mbit/s.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(150);
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");

pub async fn lacking_paths(cache: Arc<Cache>, request: Request) -> Response {
    let ask = |deposits: &Deposits, grant, body: &[u8]| {
        Ok(deposits.lacking_paths(grant, &PathQuery::decode(body)?)?.encode())
    };
    push(cache, request, MESSAGE_LEN_MAX, ask).await
}

pub async fn lacking_chunks(cache: Arc<Cache>, request: Request) -> Response {
    let upload = request.capture.clone();
    let ask = move |deposits: &Deposits, grant, body: &[u8]| {
        Ok(deposits.lacking_chunks(grant, &upload, &ChunkQuery::decode(body)?)?.encode())
    };
    push(cache, request, MESSAGE_LEN_MAX, ask).await
}

pub async fn put_chunks(cache: Arc<Cache>, request: Request) -> Response {
    let upload = request.capture.clone();
    let take = move |deposits: &Deposits, grant, body: &[u8]| {
        deposits.put_chunks(grant, &upload, body)?;
        Ok(Vec::new())
    };
    push(cache, request, BATCH_LEN_MAX, take).await
}

pub async fn commit(cache: Arc<Cache>, request: Request) -> Response {
    let upload = request.capture.clone();
    let take = move |deposits: &Deposits, grant, body: &[u8]| {
        deposits.commit_chunks(grant, &upload, Commit::decode(body)?)?;
        Ok(Vec::new())
    };
    push(cache, request, MESSAGE_LEN_MAX, take).await
}

/// Answers a message of who may write.
async fn push(
    cache: Arc<Cache>,
    request: Request,
    limit: usize,
    act: impl FnOnce(&Deposits, Grant, &[u8]) -> Result<Vec<u8>, Refusal> + Send + 'static,
) -> Response {
    let Some(writer) = &cache.writer else { return response::not_found() };
    let Some(grant) = writer.who(&request) else { return put::refuse(request.body, put::unauthorized()).await };
    let Some(turn) = writer.message_turn(&grant).await else { return put::refuse(request.body, put::busy()).await };
    let body = match message(request, limit).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let deposits = writer.deposits().clone();
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        act(&deposits, grant, &body)
    });
    match done.await {
        Ok(Ok(answer)) => response::ok(BINARY, response::NO_STORE, Body::whole(answer)),
        other => put::answer(other.map(|done| done.map(|_| ()))),
    }
}

async fn message(request: Request, limit: usize) -> Result<Vec<u8>, Response> {
    match timeout(MESSAGE_PATIENCE, request.body.whole(limit)).await {
        Ok(Ok(Some(body))) => Ok(body),
        Ok(Ok(None)) => Err(response::status(StatusCode::PAYLOAD_TOO_LARGE, "413 too long")),
        Ok(Err(error)) => Err(response::status(StatusCode::BAD_REQUEST, &error.to_string())),
        Err(_) => Err(response::status(StatusCode::REQUEST_TIMEOUT, "the message comes too slowly")),
    }
}

/// What a path is made of. One that a cache behind this node has is fetched first.
pub async fn entry(cache: Arc<Cache>, request: Request) -> Response {
    let found = match cache.lookup(&request.capture).await {
        Ok(Found::Elsewhere(info)) => cache.fetched(&info).await,
        found => found,
    };
    let record = match found {
        Ok(Found::Here(record)) => record,
        Ok(_) => return response::not_found(),
        Err(error) => return response::unreadable(&request.path, &error),
    };
    let make = move |cache: &Cache| {
        let manifest = cache.store.manifest(&record.info.path)?;
        let entry = manifest.map(|manifest| Entry { info: record.info.clone(), chunks: manifest.chunks }.encode());
        let whole = |entry| cache.whole(BINARY, response::NO_STORE, entry);
        Ok(entry.map_or_else(response::not_found, whole))
    };
    cache.made(&request.path, make).await
}

/// Chunks of a path: as many of those asked for as fit into a batch, in their order. The client asks again for the
/// rest.
pub async fn chunks(cache: Arc<Cache>, request: Request) -> Response {
    let (hash_part, path) = (request.capture.clone(), request.path.clone());
    let wanted = match message(request, ChunkRequest::LEN_MAX).await {
        Ok(body) => ChunkRequest::decode(&body),
        Err(response) => return response,
    };
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return response::status(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let Some(room) = cache.answers.room(BATCH_LEN_MAX).await else { return response::later() };
    let store = cache.store.clone();
    match tokio::task::spawn_blocking(move || Ok((batch(&store, &hash_part, &wanted)?, room))).await {
        Ok(Ok((Some(batch), room))) => response::ok(BINARY, response::NO_STORE, room.body(batch.encode())),
        Ok(Ok((None, _))) => response::not_found(),
        Ok(Err::<_, shoal_store::Error>(error)) => response::unreadable(&path, &error),
        Err(error) => response::unreadable(&path, &error),
    }
}

/// `None` where there is no such path, or not as many chunks.
fn batch(store: &Store, hash_part: &str, wanted: &ChunkRequest) -> Result<Option<ChunkBatch>, shoal_store::Error> {
    let mut batch = ChunkBatch::default();
    let (Some(&first), Some(&last)) = (wanted.0.first(), wanted.0.last()) else { return Ok(Some(batch)) };
    let Some(path) = store.path_from_hash_part(hash_part)? else { return Ok(None) };
    let Some(manifest) = store.manifest(&path)? else { return Ok(None) };
    let begins = |number: u32| {
        let before = manifest.chunks.get(..number as usize)?;
        Some(before.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>())
    };
    let (Some(from), Some(to)) = (begins(first), begins(last.saturating_add(1))) else { return Ok(None) };
    let Some(frames) = store.stored_frames(&path, from..to)? else { return Ok(None) };
    fill(&mut batch, &frames, first, wanted)?;
    Ok(Some(batch))
}

/// `first`: the number of the first frame.
fn fill(
    batch: &mut ChunkBatch,
    frames: &StoredFrames,
    first: u32,
    wanted: &ChunkRequest,
) -> Result<(), shoal_store::Error> {
    let mut wanted = wanted.0.iter().map(|number| (number - first) as usize).peekable();
    let mut frame = Vec::new();
    // Runs of one frame each.
    for (number, (run, (chunk, place))) in frames.runs(0).zip(frames.frames()).enumerate() {
        if wanted.next_if_eq(&number).is_none() {
            continue;
        }
        if !batch.has_room(place.frame_len as usize) {
            break;
        }
        frames.read(&run, &mut frame)?;
        batch.push(chunk, &frame);
    }
    Ok(())
}
