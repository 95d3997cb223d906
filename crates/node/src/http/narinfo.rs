//! `/<hash part>.narinfo`.

use std::sync::Arc;

use http::HeaderValue;
use shoal_wire::nix::narinfo::{Compression, NarInfo};
use shoal_wire::nix::path_info::PathInfo;

use super::frames::{Form, FramedNar};
use super::nar::NarName;
use super::{Body, Cache, Found, Request, Response, response};

const NARINFO: HeaderValue = HeaderValue::from_static("text/x-nix-narinfo");

pub async fn get(cache: Arc<Cache>, request: Request) -> Response {
    let found = match cache.lookup(&request.capture).await {
        Ok(Found::Here(info)) => {
            let compression = cache.offer.compression(request.client.round_trip);
            describe(&cache, *info, compression)
        }
        // Frames that are not here yet have no length.
        Ok(Found::Elsewhere(info)) => describe(&cache, *info, Compression::None),
        Ok(Found::Absent) => return response::not_found(),
        Err(error) => Err(error),
    };
    match found {
        Ok(Some(narinfo)) => response::ok(NARINFO, response::AN_HOUR, Body::whole(narinfo.print(&cache.dir))),
        Ok(None) => response::not_found(),
        Err(error) => response::unreadable(&request.path, &error),
    }
}

/// The narinfo of a path. A hash of the compressed file is left out: no client checks it.
fn describe(cache: &Cache, info: PathInfo, compression: Compression) -> Result<Option<NarInfo>, shoal_store::Error> {
    let url = NarName::new(&info, compression).url();
    let mut file_size = info.nar_size;
    if compression == Compression::Zstd {
        let Some(frames) = cache.store.stored_frames(&info.path, 0..info.nar_size)? else { return Ok(None) };
        file_size = FramedNar::new(frames, Form::Frames).size();
    }
    Ok(Some(NarInfo { info, url, compression, file_hash: None, file_size: Some(file_size) }))
}
