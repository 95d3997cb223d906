//! The answers, one function for each kind of request.

use super::Inner;
use super::outbox::{Peer, SendError};
use super::turn::TURN_TIME;
use bytes::Bytes;
use iroh::endpoint::SendStream;
use shoal_store::{FramesRead, LooseFrames, Store};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::{Ask, LOG_LEN_MAX, PART_LEN, Part, REALISATION_LEN_MAX, RealisationKey, Urgency};
use shoal_wire::mesh::path_record::{PathKey, PathRecord, hash_part};
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::nix::signature::SecretKey;
use shoal_wire::nix::store_path::StorePath;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Bytes read from segments at once: enough that handing them between threads costs little.
pub const READ_LEN: usize = 512 << 10;

/// Requests of one urgency after which their order begins anew: many times more than can be open.
const PRIORITIES: u32 = 1 << 24;
/// Records that are in memory for one request: some are long, and whoever asks may read slowly.
const RECORDS_AT_ONCE: usize = 64;

pub async fn answer(server: &Arc<Inner>, peer: &Peer, send: &mut SendStream, ask: Ask) -> Result<(), SendError> {
    let urgency = match &ask {
        Ask::Chunks { urgency, .. } => *urgency,
        // Small, and always the beginning of something bigger.
        _ => Urgency::Client,
    };
    // One answer after the other: streams that take turns cost whoever reads them a third more. The stream is there: it
    // was just accepted.
    let number = peer.asked.fetch_add(1, Ordering::Relaxed) % PRIORITIES;
    let _ = send.set_priority(-((urgency as u32 * PRIORITIES + number) as i32));
    match ask {
        Ask::Chunks { hashes, urgency } => chunks(server, peer, send, urgency, hashes).await,
        Ask::Log(drv) => log(server, peer, send, drv).await,
        Ask::Records(keys) => {
            for keys in keys.chunks(RECORDS_AT_ONCE) {
                let (inner, keys) = (server.clone(), keys.to_vec());
                let made = move || keys.iter().map(|path| record(&inner.store, &inner.key, path)).collect();
                let parts = spawn_blocking(made).await;
                whole(server, peer, send, parts.unwrap_or_default()).await?;
            }
            Ok(())
        }
        Ask::Manifest(root) => {
            let store = server.store.clone();
            let part = spawn_blocking(move || store.packed_manifest(&root)).await;
            let found = part.ok().and_then(|found| noted(found, "a manifest")).flatten();
            whole(server, peer, send, vec![Ok(found)]).await
        }
        Ask::Realisations(keys) => {
            let store = server.store.clone();
            let parts = spawn_blocking(move || keys.iter().map(|key| Ok(realisation(&store, key))).collect()).await;
            whole(server, peer, send, parts.unwrap_or_default()).await
        }
    }
}

/// The index cannot be read: what it has is not known.
struct Unread;

/// A whole thing and the length of its contents, if it is here.
type Found = Option<(Vec<u8>, usize)>;

/// What was found, or a line in the log.
fn noted<T>(found: shoal_store::Result<T>, what: &str) -> Option<T> {
    found.map_err(|error| tracing::warn!(%error, "cannot give {what} to a peer")).ok()
}

/// The record of the path with this key, with this node as its author.
fn record(store: &Store, key: &SecretKey, path: &PathKey) -> Result<Found, Unread> {
    let Some(hash_part) = hash_part(path) else { return Ok(None) };
    let Some(path) = noted(store.path_from_hash_part(&hash_part), "a record").ok_or(Unread)? else { return Ok(None) };
    let Some((info, content_root)) = noted(store.path_and_root(&path), "a record").ok_or(Unread)? else {
        return Ok(None);
    };
    let author: NodeKey = *key.public().bytes();
    let record = PathRecord {
        author,
        path: info.path,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references,
        content_root,
        deriver: info.deriver,
        ca: info.ca,
        signatures: info.signatures,
    };
    // One that is outside the limits of records cannot be told of.
    let sealed = Sealed::seal(record, key).ok();
    Ok(sealed.map(|sealed| (sealed.bytes().to_vec(), sealed.bytes().len())))
}

fn realisation(store: &Store, key: &RealisationKey) -> Found {
    let json = match key {
        RealisationKey::Output(id) => noted(store.realisation(id), "a realisation")??.to_json(),
        RealisationKey::Trace(key) => noted(store.build_trace(key), "a realisation")??.value.to_json(),
    };
    let len = json.len();
    (len <= REALISATION_LEN_MAX).then(|| (json.into_bytes(), len))
}

/// Answers with whole things, each with the length of its contents.
async fn whole(
    server: &Inner,
    peer: &Peer,
    send: &mut SendStream,
    parts: Vec<Result<Found, Unread>>,
) -> Result<(), SendError> {
    for part in parts {
        let Ok(found) = part else {
            // Who is told that it is absent would believe that.
            server.counts.busy.fetch_add(1, Ordering::Relaxed);
            peer.send(send, Bytes::copy_from_slice(&Part::Busy.encode())).await?;
            continue;
        };
        let Some((bytes, len)) = found else {
            peer.send(send, Bytes::copy_from_slice(&Part::Absent.encode())).await?;
            continue;
        };
        // What is longer than 4 GiB is in nobody's limits.
        let (Ok(len), Ok(count)) = (u32::try_from(len), u32::try_from(bytes.len())) else {
            peer.send(send, Bytes::copy_from_slice(&Part::Absent.encode())).await?;
            continue;
        };
        if !may_send(server, peer, Urgency::Client, u64::from(count)).await {
            server.counts.busy.fetch_add(1, Ordering::Relaxed);
            peer.send(send, Bytes::copy_from_slice(&Part::Busy.encode())).await?;
            continue;
        }
        let head = Part::Here { len, bytes: count, hasty: false };
        server.counts.bytes.fetch_add(u64::from(count), Ordering::Relaxed);
        peer.send_all(send, &mut [Bytes::copy_from_slice(&head.encode()), Bytes::from(bytes)]).await?;
    }
    Ok(())
}

async fn may_send(server: &Inner, peer: &Peer, urgency: Urgency, bytes: u64) -> bool {
    match &server.turns {
        Some(turns) => turns.take(peer.key, urgency, bytes).await,
        None => true,
    }
}

async fn chunks(
    server: &Arc<Inner>,
    peer: &Peer,
    send: &mut SendStream,
    urgency: Urgency,
    hashes: Vec<[u8; 32]>,
) -> Result<(), SendError> {
    let count = hashes.len();
    let store = server.store.clone();
    let found = spawn_blocking(move || store.loose_frames(hashes)).await;
    let Some(frames) = found.ok().and_then(|found| noted(found, "chunks")) else {
        return peer.send(send, Part::Absent.encode().repeat(count).into()).await;
    };
    let frames = Arc::new(frames);
    let len_max = server.turns.as_ref().map_or(READ_LEN, |turns| turns.piece_len(READ_LEN));
    let mut next = 0;
    while next < count {
        let Some((read, _room)) = read_next(server, peer, urgency, &frames, next, len_max).await else {
            server.counts.busy.fetch_add(1, Ordering::Relaxed);
            return peer.send(send, Part::Busy.encode().repeat(count - next).into()).await;
        };
        let (mut pieces, read_count) = parts_of(&frames, next, read);
        if read_count == 0 {
            // It cannot be read: whoever asks finds it elsewhere.
            return peer.send(send, Part::Absent.encode().repeat(count - next).into()).await;
        }
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        peer.send_all(send, &mut pieces).await?;
        server.counts.chunks.fetch_add(read_count as u64, Ordering::Relaxed);
        server.counts.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        next += read_count;
    }
    Ok(())
}

/// The next frames, when there is room for them and it is their turn; `None`: not soon enough.
async fn read_next(
    server: &Arc<Inner>,
    peer: &Peer,
    urgency: Urgency,
    frames: &Arc<LooseFrames>,
    next: usize,
    len_max: usize,
) -> Option<(FramesRead, OwnedSemaphorePermit)> {
    let room = timeout(TURN_TIME, server.buffers.clone().acquire_owned()).await.ok()?.ok()?;
    let read = noted(read(frames, next, len_max).await, "chunks").unwrap_or_default();
    may_send(server, peer, urgency, read.bytes.len() as u64).await.then_some((read, room))
}

/// From memory at once, as a thread that must be woken costs more than that; by a thread where the disk is waited for.
async fn read(frames: &Arc<LooseFrames>, next: usize, len_max: usize) -> shoal_store::Result<FramesRead> {
    if let Some(read) = frames.read_cached(next, len_max)? {
        return Ok(read);
    }
    let reader = frames.clone();
    let read = spawn_blocking(move || reader.read(next, len_max)).await;
    read.unwrap_or_else(|_| Ok(FramesRead::default()))
}

/// Heads and frames as they are sent, and how many chunks that is. A head is laid over the end of the record's header,
/// which lies before its frame, so that each chunk is one piece.
fn parts_of(frames: &LooseFrames, first: usize, read: FramesRead) -> (Vec<Bytes>, usize) {
    let FramesRead { mut bytes, frames: found } = read;
    let count = found.len();
    let mut ranges = Vec::with_capacity(count);
    for (number, range) in found.into_iter().enumerate() {
        let place = frames.get(first + number);
        let (Some(range), Some(place)) = (range, place) else {
            ranges.push(None);
            continue;
        };
        let head = Part::Here { len: place.chunk_len, bytes: place.frame_len, hasty: place.hasty };
        let from = range.start - PART_LEN;
        bytes[from..range.start].copy_from_slice(&head.encode());
        ranges.push(Some(from..range.end));
    }
    let bytes = Bytes::from_owner(bytes);
    let absent = Bytes::copy_from_slice(&Part::Absent.encode());
    let pieces = ranges.into_iter().map(|range| range.map_or_else(|| absent.clone(), |range| bytes.slice(range)));
    (pieces.collect(), count)
}

async fn log(server: &Inner, peer: &Peer, send: &mut SendStream, drv: StorePath) -> Result<(), SendError> {
    let store = server.store.clone();
    let found = spawn_blocking(move || store.packed_log(&drv)).await;
    let found = found.ok().and_then(|found| noted(found, "a log")).flatten();
    let Some((mut file, len)) = found.filter(|(_, len)| (1..=LOG_LEN_MAX as u64).contains(len)) else {
        return peer.send(send, Bytes::copy_from_slice(&Part::Absent.encode())).await;
    };
    let head = Part::Here { len: 0, bytes: len as u32, hasty: false };
    peer.send(send, Bytes::copy_from_slice(&head.encode())).await?;
    let mut left = len;
    while left > 0 {
        let (back, piece) = match spawn_blocking(move || read_piece(file, left)).await {
            Ok(Some(read)) => read,
            // What was announced cannot be kept: the asker sees a stream that ends too early.
            _ => return Err(SendError::Gone),
        };
        (file, left) = (back, left - piece.len() as u64);
        server.counts.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        peer.send(send, piece.into()).await?;
    }
    Ok(())
}

fn read_piece(mut file: File, left: u64) -> Option<(File, Vec<u8>)> {
    let mut piece = vec![0; left.min(READ_LEN as u64) as usize];
    file.read_exact(&mut piece).ok()?;
    Some((file, piece))
}
