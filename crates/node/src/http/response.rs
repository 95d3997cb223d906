//! What is answered.

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};

use super::Body;

/// When a client should come back that got no turn.
pub const RETRY_SECONDS: &str = "5";

pub type Response = http::Response<Body>;

/// For what may become true at any moment: nobody keeps it.
pub const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// For what is named by its contents.
pub const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// For what changes seldom, and may be old without harm.
pub const AN_HOUR: HeaderValue = HeaderValue::from_static("public, max-age=3600");

pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// 200 with a body of a type that may be kept for as long as `caching` says.
pub fn ok(content_type: HeaderValue, caching: HeaderValue, body: Body) -> Response {
    with_status(StatusCode::OK, content_type, caching, body)
}

pub fn with_status(status: StatusCode, content_type: HeaderValue, caching: HeaderValue, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.reserve(8);
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, caching);
    finish(response)
}

/// A line of text for people. It is never kept.
pub fn status(status: StatusCode, text: &str) -> Response {
    with_status(status, TEXT, NO_STORE, Body::whole(format!("{text}\n")))
}

pub fn not_found() -> Response {
    with_status(StatusCode::NOT_FOUND, TEXT, NO_STORE, Body::whole("404 not found\n"))
}

/// For what fits as soon as others have gone.
pub fn later() -> Response {
    let text = "too many answers are waiting for their clients; try again later";
    let mut response = status(StatusCode::SERVICE_UNAVAILABLE, text);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
    response
}

/// For whom showing a token is what opens the cache: no cache that others use may keep the answer.
pub fn keep_private(response: &mut Response) {
    let caching = response.headers().get(CACHE_CONTROL).and_then(|caching| caching.to_str().ok());
    let private = caching.and_then(|caching| caching.strip_prefix("public")).map(|rest| format!("private{rest}"));
    if let Some(Ok(private)) = private.map(HeaderValue::try_from) {
        response.headers_mut().insert(CACHE_CONTROL, private);
    }
}

/// `allowed`: the methods that the path knows.
pub fn method_not_allowed(allowed: &str) -> Response {
    let mut response = status(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed");
    if let Ok(allowed) = HeaderValue::from_str(allowed) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// What a client hears of an error of ours: that there is one. The log has the rest. Nix would come back for a 5xx five
/// times and may give up on the whole cache, where for a 404 it asks the next one.
pub fn unreadable(what: &str, error: &dyn std::fmt::Display) -> Response {
    tracing::error!("cannot serve {what}: {error}");
    not_found()
}

/// States the body's length. Without it the end of an answer to HEAD, or of one cut off, could not be told.
fn finish(mut response: Response) -> Response {
    let len = response.body().len();
    response.headers_mut().insert(CONTENT_LENGTH, len.into());
    response
}
