//! `/healthz`: the process answers. `/readyz`: it can serve what it has.

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
