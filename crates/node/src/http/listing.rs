//! `/<hash part>.ls`: what a path's NAR holds, and where in it.

use std::sync::Arc;

use super::{Cache, Found, Request, Response, response};

pub async fn get(cache: Arc<Cache>, request: Request) -> Response {
    let info = match cache.lookup(&request.capture).await {
        Ok(Found::Here(info)) => info,
        // Who has the NAR elsewhere may have a listing too; it is made here once the path is here.
        Ok(_) => return response::not_found(),
        Err(error) => return response::unreadable(&request.path, &error),
    };
    match cache.store.index(&info.path) {
        Ok(Some(index)) => match index.listing() {
            Ok(listing) => match cache.answers.body(listing.into()) {
                Some(body) => response::ok(response::JSON, response::AN_HOUR, body),
                None => response::later(),
            },
            // JSON cannot hold the names of this path. Listings are optional.
            Err(_) => response::not_found(),
        },
        Ok(None) => response::not_found(),
        Err(error) => response::unreadable(&request.path, &error),
    }
}
