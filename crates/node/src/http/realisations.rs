//! `/realisations/<id>.doi` (Nix up to 2.34) and `/build-trace-v2/<derivation>/<output>.doi` (from 2.35).

use std::sync::Arc;

use shoal_wire::nix::realisation::{BuildTraceKey, DrvOutput};
use shoal_wire::nix::store_path::{StorePath, check_name};

use super::{Body, Cache, Request, Response, response};

pub async fn get_old(cache: Arc<Cache>, request: Request) -> Response {
    let Ok(id) = request.capture.parse::<DrvOutput>() else { return response::not_found() };
    let found = match (cache.store.realisation(&id), &cache.elsewhere) {
        (Ok(None), Some(elsewhere)) => elsewhere.realisation(&id).await,
        (Ok(found), _) => found,
        (Err(error), _) => return response::unreadable(&request.path, &error),
    };
    answer(found.map(|realisation| realisation.to_json()))
}

pub async fn get_new(cache: Arc<Cache>, request: Request) -> Response {
    let key = request.capture.split_once('/').and_then(|(derivation, output)| {
        let drv_path = StorePath::from_base_name(derivation).ok()?;
        check_name(output).ok()?;
        Some(BuildTraceKey { drv_path, output: output.to_owned() })
    });
    let Some(key) = key else { return response::not_found() };
    let found = match (cache.store.build_trace(&key), &cache.elsewhere) {
        (Ok(None), Some(elsewhere)) => elsewhere.build_trace(&key).await,
        (Ok(found), _) => found,
        (Err(error), _) => return response::unreadable(&request.path, &error),
    };
    answer(found.map(|trace| trace.value.to_json()))
}

/// A later build of what is not deterministic may come out as another path.
fn answer(json: Option<String>) -> Response {
    match json {
        Some(json) => response::ok(response::JSON, response::NO_STORE, Body::whole(json)),
        None => response::not_found(),
    }
}
