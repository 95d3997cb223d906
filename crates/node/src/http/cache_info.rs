//! `/nix-cache-info`.

use std::sync::Arc;

use super::{Body, Cache, Response, response};

/// Before cache.nixos.org, which says 40: a node on the way there is nearer and may have it too.
const PRIORITY: u32 = 30;

pub async fn get(cache: Arc<Cache>) -> Response {
    let content_type = http::HeaderValue::from_static("text/x-nix-cache-info");
    response::ok(content_type, response::AN_HOUR, Body::whole(text(&cache)))
}

/// A missing `Priority` would mean 0, before everybody; a missing `WantMassQuery` that `nix-env -qas` does not ask.
fn text(cache: &Cache) -> String {
    format!("StoreDir: {}\nWantMassQuery: 1\nPriority: {PRIORITY}\n", cache.dir)
}
