//! `/<hash part>.ls`: what a path's NAR holds, and where in it.

use std::sync::Arc;

use super::{Cache, Found, Request, Response, response};

pub async fn get(cache: Arc<Cache>, request: Request) -> Response {
    let record = match cache.lookup(&request.capture).await {
        Ok(Found::Here(record)) => record,
        // Who has the NAR elsewhere may have a listing too; it is made here once the path is here.
        Ok(_) => return response::not_found(),
        Err(error) => return response::unreadable(&request.path, &error),
    };
    let make = move |cache: &Cache| {
        let index = cache.store.index(&record.info.path)?;
        // JSON cannot hold the names of some paths. Listings are optional.
        let listing = index.and_then(|index| index.listing().ok());
        let whole = |listing: String| cache.whole(response::JSON, response::AN_HOUR, listing.into());
        Ok(listing.map_or_else(response::not_found, whole))
    };
    cache.made(&request.path, make).await
}
