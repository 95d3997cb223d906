//! `/<hash part>.narinfo`.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use shoal_store::Lately;
use shoal_wire::nix::narinfo::{Compression, NarInfo};
use shoal_wire::nix::path_info::PathInfo;

use super::frames::{Form, FramedNar};
use super::nar::NarName;
use super::{Body, Cache, Found, Request, Response, response};

const NARINFO: HeaderValue = HeaderValue::from_static("text/x-nix-narinfo");

/// Longer ones are not kept in memory: nearly all have some hundred bytes.
const KEPT_LEN_MAX: usize = 4 << 10;

/// Narinfos that were asked for lately, by the form of NAR that they tell of.
#[derive(Default)]
pub struct Told {
    plain: Lately<Bytes>,
    compressed: Lately<Bytes>,
}

impl Told {
    fn of(&self, compression: Compression) -> &Lately<Bytes> {
        if compression == Compression::None { &self.plain } else { &self.compressed }
    }
}

pub async fn get(cache: Arc<Cache>, request: Request) -> Response {
    let compression = cache.offer.compression(request.client.round_trip);
    let told = cache.told.of(compression);
    let state = cache.store.state();
    if let Some(text) = told.get(&request.capture, state) {
        return answer(text);
    }
    let found = match cache.lookup(&request.capture).await {
        Ok(Found::Here(record)) => describe(&cache, record.info.clone(), compression).inspect(|text| {
            if let Some(text) = text.as_ref().filter(|text| text.len() <= KEPT_LEN_MAX) {
                told.put(&request.capture, state, cache.store.state(), text.clone());
            }
        }),
        // Frames that are not here yet have no length.
        Ok(Found::Elsewhere(info)) => describe(&cache, *info, Compression::None),
        Ok(Found::Absent) => return response::not_found(),
        Err(error) => Err(error),
    };
    match found {
        Ok(Some(text)) => answer(text),
        Ok(None) => response::not_found(),
        Err(error) => response::unreadable(&request.path, &error),
    }
}

fn answer(text: Bytes) -> Response {
    response::ok(NARINFO, response::AN_HOUR, Body::whole(text))
}

/// The narinfo of a path. A hash of the compressed file is left out: no client checks it.
fn describe(cache: &Cache, info: PathInfo, compression: Compression) -> Result<Option<Bytes>, shoal_store::Error> {
    let url = NarName::new(&info, compression).url();
    let mut file_size = info.nar_size;
    if compression == Compression::Zstd {
        let Some(frames) = cache.store.stored_frames(&info.path, 0..info.nar_size)? else { return Ok(None) };
        file_size = FramedNar::new(frames, Form::Frames).size();
    }
    let narinfo = NarInfo { info, url, compression, file_hash: None, file_size: Some(file_size) };
    Ok(Some(narinfo.print(&cache.dir).into()))
}
