//! `/nar/<hash part>-<NAR hash>.nar`, and the same with `.zst`.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use shoal_wire::nix::base32;
use shoal_wire::nix::narinfo::Compression;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::HASH_PART_LEN;

use super::{Body, Cache, Found, Request, Response, put, response};

const NAR: HeaderValue = HeaderValue::from_static("application/x-nix-nar");
/// Bytes handed to the connection at a time.
const PIECE_BYTES: usize = 256 << 10;

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
    match cache.lookup(&name.hash_part).await {
        Ok(Found::Here(info)) if info.nar_hash == name.nar_hash => match whole(&cache, &info) {
            Ok(Some(body)) => response::ok(NAR, response::IMMUTABLE, body),
            Ok(None) => response::not_found(),
            Err(error) => response::unreadable(&request.path, &error),
        },
        Ok(Found::Elsewhere(info)) if info.nar_hash == name.nar_hash && name.compression == Compression::None => {
            passed_on(&cache, &request, &info).await
        }
        Ok(_) => response::not_found(),
        Err(error) => response::unreadable(&request.path, &error),
    }
}

/// A NAR that comes from elsewhere and goes on to the client meanwhile.
async fn passed_on(cache: &Cache, request: &Request, info: &PathInfo) -> Response {
    if request.is_head() {
        return response::ok(NAR, response::IMMUTABLE, Body::blocking(info.nar_size, || Ok(None)));
    }
    let Some(elsewhere) = &cache.elsewhere else { return response::not_found() };
    match elsewhere.nar(info).await {
        Some(nar) => response::ok(NAR, response::IMMUTABLE, in_pieces(info.nar_size, nar)),
        None => response::not_found(),
    }
}

fn in_pieces(len: u64, mut nar: impl Read + Send + 'static) -> Body {
    Body::blocking(len, move || {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        nar.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
        Ok((!piece.is_empty()).then(|| Bytes::from(piece)))
    })
}

fn whole(cache: &Cache, info: &PathInfo) -> Result<Option<Body>, shoal_store::Error> {
    Ok(cache.store.export(&info.path)?.map(|export| in_pieces(export.size(), export)))
}
