//! `/log/<base name of a derivation>`.

use std::io::{self, Read};
use std::sync::Arc;

use shoal_store::Store;
use shoal_wire::nix::store_path::StorePath;

use super::{Body, Cache, Request, Response, response};
use crate::upstream::LOG_LEN_MAX;

/// A log of up to this many bytes, which is a piece of a longer one, is read once; the length of a longer one is found
/// by reading it before.
const SHORT_BYTES: u64 = 256 << 10;

pub async fn get(cache: Arc<Cache>, request: Request) -> Response {
    let Ok(derivation) = StorePath::from_base_name(&request.capture) else { return response::not_found() };
    let (store, drv_path) = (cache.store.clone(), derivation.clone());
    let read = tokio::task::spawn_blocking(move || body(&store, &drv_path)).await;
    let here = match read.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
        Ok(here) => here,
        Err(error) => return response::unreadable(&request.path, &error),
    };
    let found = match (here, &cache.elsewhere) {
        (None, Some(elsewhere)) => {
            let Some(room) = cache.answers.room(LOG_LEN_MAX).await else { return response::later() };
            elsewhere.log(&derivation).await.map(|log| room.body(Arc::unwrap_or_clone(log)))
        }
        (here, _) => here,
    };
    match found {
        // A derivation that is built again has a new log under its old name.
        Some(body) => response::ok(response::TEXT, response::NO_STORE, body),
        None => response::not_found(),
    }
}

fn body(store: &Store, derivation: &StorePath) -> io::Result<Option<Body>> {
    let Some(mut log) = store.log(derivation)? else { return Ok(None) };
    let mut short = Vec::new();
    log.by_ref().take(SHORT_BYTES).read_to_end(&mut short)?;
    let rest = io::copy(&mut log, &mut io::sink())?;
    if rest == 0 {
        return Ok(Some(Body::whole(short)));
    }
    let Some(log) = store.log(derivation)? else { return Ok(None) };
    Ok(Some(Body::reading(short.len() as u64 + rest, log)))
}
