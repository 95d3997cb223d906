//! `/<hash part>.narinfo`.

use std::sync::Arc;

use http::HeaderValue;
use shoal_wire::nix::narinfo::{Compression, NarInfo};
use shoal_wire::nix::path_info::PathInfo;

use super::nar::NarName;
use super::{Body, Cache, Found, Request, Response, response};

const NARINFO: HeaderValue = HeaderValue::from_static("text/x-nix-narinfo");

pub async fn get(cache: Arc<Cache>, request: Request) -> Response {
    match cache.lookup(&request.capture).await {
        Ok(Found::Here(info) | Found::Elsewhere(info)) => {
            let narinfo = describe(*info);
            response::ok(NARINFO, response::AN_HOUR, Body::whole(narinfo.print(&cache.dir)))
        }
        Ok(Found::Absent) => response::not_found(),
        Err(error) => response::unreadable(&request.path, &error),
    }
}

/// The narinfo of a path. A hash of the compressed file is left out: no client checks it.
fn describe(info: PathInfo) -> NarInfo {
    let compression = Compression::None;
    let url = NarName::new(&info, compression).url();
    let file_size = Some(info.nar_size);
    NarInfo { info, url, compression, file_hash: None, file_size }
}
