//! `/nar/<hash part>-<NAR hash>.nar`, and the same with `.zst`.

use std::io;
use std::sync::Arc;

use http::HeaderValue;
use http::header::{CONTENT_ENCODING, RANGE, VARY};
use shoal_wire::nix::base32;
use shoal_wire::nix::narinfo::Compression;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::HASH_PART_LEN;

use super::frames::{Form, FramedNar, HELD_BYTES_MAX};
use super::range::Ranged;
use super::{Body, Cache, Found, Request, Response, link, put, response};

const NAR: HeaderValue = HeaderValue::from_static("application/x-nix-nar");
const ZST: HeaderValue = HeaderValue::from_static("application/zstd");

/// The name of a NAR's file. It holds the path, so that it can be found, and the contents, so that it never means others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarName {
    hash_part: String,
    nar_hash: [u8; 32],
    pub compression: Compression,
}

impl NarName {
    pub fn new(info: &PathInfo, compression: Compression) -> NarName {
        NarName { hash_part: info.path.hash_part().to_owned(), nar_hash: info.nar_hash, compression }
    }

    /// As narinfo has it: relative to the root of the cache.
    pub fn url(&self) -> String {
        let extension = if self.compression == Compression::Zstd { ".zst" } else { "" };
        format!("nar/{}-{}.nar{extension}", self.hash_part, base32::encode(&self.nar_hash))
    }

    /// From the last component of a URL; `None` where it is not a name of ours.
    pub fn parse(text: &str) -> Option<NarName> {
        let (name, compression) = match text.strip_suffix(".nar.zst") {
            Some(name) => (name, Compression::Zstd),
            None => (text.strip_suffix(".nar")?, Compression::None),
        };
        let (hash_part, nar_hash) = name.split_once('-')?;
        if hash_part.len() != HASH_PART_LEN {
            return None;
        }
        let mut bytes = [0; 32];
        base32::decode_into(nar_hash.as_bytes(), &mut bytes).ok()?;
        Some(NarName { hash_part: hash_part.to_owned(), nar_hash: bytes, compression })
    }
}

pub async fn get(cache: Arc<Cache>, request: Request) -> Response {
    let Some(name) = NarName::parse(&request.capture) else { return put::held(&cache, &request) };
    let found = match find(&cache, &name).await {
        Ok(Found::Here(record)) if record.info.nar_hash == name.nar_hash => {
            stored(&cache, &request, &record.info, name.compression)
        }
        Ok(Found::Elsewhere(info)) if info.nar_hash == name.nar_hash => {
            return passed_on(&cache, &request, &info).await;
        }
        Ok(_) => return response::not_found(),
        Err(error) => Err(error),
    };
    let begun = match found {
        Ok(response) => begun(&cache, response).await,
        Err(error) => Err(error.into()),
    };
    begun.unwrap_or_else(|error| response::unreadable(&request.path, &error))
}

/// Where the NAR is. Its compressed form is made of frames, so a path that only others have is fetched for it first.
async fn find(cache: &Cache, name: &NarName) -> Result<Found, shoal_store::Error> {
    match cache.lookup(&name.hash_part).await? {
        Found::Elsewhere(info) if name.compression != Compression::None && info.nar_hash == name.nar_hash => {
            cache.fetched(&info).await
        }
        found => Ok(found),
    }
}

/// A NAR that comes from elsewhere and goes on to the client meanwhile.
async fn passed_on(cache: &Cache, request: &Request, info: &PathInfo) -> Response {
    if request.is_head() {
        return response::ok(NAR, response::IMMUTABLE, Body::untold(info.nar_size));
    }
    let Some(elsewhere) = &cache.elsewhere else { return response::not_found() };
    let Some(nar) = elsewhere.nar(info).await else { return response::not_found() };
    // While others are fetched before it, it holds nothing.
    nar.ready().await;
    let body = Body::arriving(info.nar_size, nar, cache.arrivals.clone());
    begun(cache, response::ok(NAR, response::IMMUTABLE, body)).await.unwrap_or_else(|error| {
        tracing::warn!(path = info.path.base_name(), %error, "a NAR that was offered does not come");
        response::not_found()
    })
}

/// Makes the first piece before anything is sent: damage found there, or a NAR that is gone elsewhere, is a clean 404.
/// From then on the answer holds memory, whether its client takes it or not.
async fn begun(cache: &Cache, response: Response) -> io::Result<Response> {
    if !response.body().is_to_begin() {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let Some(room) = cache.begun.room(body.len().min(HELD_BYTES_MAX) as usize).await else {
        return Ok(response::later());
    };
    Ok(Response::from_parts(head, body.begun(room).await?))
}

fn stored(
    cache: &Cache,
    request: &Request,
    info: &PathInfo,
    compression: Compression,
) -> Result<Response, shoal_store::Error> {
    let is_compressed = compression == Compression::Zstd;
    // A client that asks for plain bytes and is far by now gets fewer, if it can decode them.
    let is_encoded = !is_compressed
        && !request.headers.contains_key(RANGE)
        && cache.offer.compression(request.client.round_trip) == Compression::Zstd
        && link::takes_zstd(request);
    let form = if is_compressed || is_encoded { Form::Frames } else { Form::Contents };
    let Some(frames) = cache.store.stored_frames(&info.path, 0..info.nar_size)? else {
        return Ok(response::not_found());
    };
    let framed = FramedNar::new(frames, form);
    let etag = match form {
        Form::Contents => format!("\"{}\"", base32::encode(&info.nar_hash)),
        Form::Frames => format!("\"{}-zstd\"", base32::encode(&framed.fingerprint())),
    };
    let content_type = if is_compressed { ZST } else { NAR };
    // Nix would resume what it takes for plain with a range of the plain bytes, and does not compare etags.
    let has_parts = !is_encoded && (form == Form::Contents || !framed.is_hasty());
    let nar = Ranged { etag, len: framed.size(), content_type, caching: response::IMMUTABLE, has_parts };
    let mut response = nar.answer(request, |range| Ok::<_, shoal_store::Error>(framed.body(range)))?;
    if !is_compressed {
        response.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    }
    if is_encoded {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("zstd"));
    }
    Ok(response)
}
