//! `/healthz`: the process answers. `/readyz`: it can serve what it has. `/api/v1/node`: who it is to other nodes.

use std::sync::Arc;

use http::StatusCode;

use super::{Body, Cache, Response, response};

pub async fn healthz() -> Response {
    response::ok(response::TEXT, response::NO_STORE, Body::whole("ok\n"))
}

pub async fn readyz(cache: Arc<Cache>) -> Response {
    match cache.store.path_from_hash_part("00000000000000000000000000000000") {
        Ok(_) => response::ok(response::TEXT, response::NO_STORE, Body::whole("ready\n")),
        Err(error) => response::status(StatusCode::SERVICE_UNAVAILABLE, &format!("the store cannot be read: {error}")),
    }
}

pub async fn node(cache: Arc<Cache>) -> Response {
    match cache.card.as_ref().map(serde_json::to_vec) {
        Some(Ok(card)) => response::ok(response::JSON, response::NO_STORE, Body::whole(card)),
        _ => response::not_found(),
    }
}
