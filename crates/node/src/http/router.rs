//! Who answers what. One line for each method and path.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::Method;

use super::{Cache, Request, Response, browse, cache_info, copies, health, listing, logs, metrics, nar, narinfo};
use super::{percent, put, realisations, response};

pub type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;
pub type Handler = fn(Arc<Cache>, Request) -> Answer;

/// In `path`, `{}` stands for one or more bytes without `/`, `{*}` for any.
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    pub handler: Handler,
}

const fn get(path: &'static str, handler: Handler) -> Route {
    Route { method: Method::GET, path, handler }
}

const fn put(path: &'static str, handler: Handler) -> Route {
    Route { method: Method::PUT, path, handler }
}

const fn post(path: &'static str, handler: Handler) -> Route {
    Route { method: Method::POST, path, handler }
}

/// What says how the node is, and nothing of what is in it.
const OPEN_TO_ALL: [&str; 3] = ["/healthz", "/readyz", "/api/v1/node"];

/// HEAD is answered by whoever answers GET.
pub const ROUTES: &[Route] = &[
    get("/{}.narinfo", |cache, request| Box::pin(narinfo::get(cache, request))),
    get("/nar/{}", |cache, request| Box::pin(nar::get(cache, request))),
    get("/nix-cache-info", |cache, _| Box::pin(cache_info::get(cache))),
    get("/{}.ls", |cache, request| Box::pin(listing::get(cache, request))),
    get("/log/{}", |cache, request| Box::pin(logs::get(cache, request))),
    get("/realisations/{}.doi", |cache, request| Box::pin(realisations::get_old(cache, request))),
    get("/build-trace-v2/{*}.doi", |cache, request| Box::pin(realisations::get_new(cache, request))),
    get("/serve/{*}", |cache, request| Box::pin(browse::get(cache, request))),
    get("/healthz", |_, _| Box::pin(health::healthz())),
    get("/readyz", |cache, _| Box::pin(health::readyz(cache))),
    put("/{}.narinfo", |cache, request| Box::pin(put::narinfo(cache, request))),
    put("/nar/{}", |cache, request| Box::pin(put::nar(cache, request))),
    put("/nix-cache-info", |cache, request| Box::pin(put::cache_info(cache, request))),
    put("/{}.ls", |cache, request| Box::pin(put::listing(cache, request))),
    put("/log/{}", |cache, request| Box::pin(put::log(cache, request))),
    put("/realisations/{}.doi", |cache, request| Box::pin(put::realisation(cache, request))),
    put("/build-trace-v2/{*}.doi", |cache, request| Box::pin(put::build_trace(cache, request))),
    post("/api/v1/push/paths", |cache, request| Box::pin(copies::lacking_paths(cache, request))),
    post("/api/v1/push/{}/lacking", |cache, request| Box::pin(copies::lacking_chunks(cache, request))),
    post("/api/v1/push/{}/chunks", |cache, request| Box::pin(copies::put_chunks(cache, request))),
    post("/api/v1/push/{}/commit", |cache, request| Box::pin(copies::commit(cache, request))),
    get("/api/v1/pull/{}", |cache, request| Box::pin(copies::entry(cache, request))),
    post("/api/v1/pull/{}/chunks", |cache, request| Box::pin(copies::chunks(cache, request))),
    get("/api/v1/node", |cache, _| Box::pin(health::node(cache))),
    get("/metrics", |cache, _| Box::pin(metrics::get(cache))),
];

/// The answer to a request.
pub async fn answer(cache: Arc<Cache>, mut request: Request) -> Response {
    let wanted = if request.is_head() { Method::GET } else { request.method.clone() };
    let mut allowed: Vec<&str> = Vec::new();
    for route in ROUTES {
        let Some(capture) = capture(route.path, &request.path) else { continue };
        if route.method != wanted {
            allowed.push(route.method.as_str());
            continue;
        }
        if cache.is_closed && !OPEN_TO_ALL.contains(&route.path) && !may_read(&cache, &request) {
            return put::unauthorized();
        }
        // Not text: who reads names as bytes takes them from the path.
        request.capture = percent::decode_text(capture).unwrap_or_default();
        let is_closed = cache.is_closed;
        let mut response = (route.handler)(cache, request).await;
        if is_closed {
            response::keep_private(&mut response);
        }
        return response;
    }
    if allowed.is_empty() {
        return response::not_found();
    }
    if allowed.contains(&"GET") {
        allowed.push("HEAD");
    }
    response::method_not_allowed(&allowed.join(", "))
}

fn may_read(cache: &Cache, request: &Request) -> bool {
    cache.writer.as_ref().is_some_and(|writer| writer.who(request).is_some())
}

/// What stands for the braces of `pattern` in `path`, where they match.
fn capture<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let Some((prefix, rest)) = pattern.split_once('{') else {
        return (pattern == path).then_some("");
    };
    let (kind, suffix) = rest.split_once('}')?;
    let captured = path.strip_prefix(prefix)?.strip_suffix(suffix)?;
    let fits = kind == "*" || (!captured.is_empty() && !captured.contains('/'));
    fits.then_some(captured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_stand_for_one_component_or_for_the_rest() {
        assert_eq!(capture("/{}.narinfo", "/abc.narinfo"), Some("abc"));
        assert_eq!(capture("/{}.narinfo", "/.narinfo"), None);
        assert_eq!(capture("/{}.narinfo", "/a/b.narinfo"), None);
        assert_eq!(capture("/nar/{}", "/nar/"), None);
        assert_eq!(capture("/nar/{}", "/nar/../x"), None);
        assert_eq!(capture("/serve/{*}", "/serve/a/b"), Some("a/b"));
        assert_eq!(capture("/healthz", "/healthz"), Some(""));
        assert_eq!(capture("/healthz", "/healthz/"), None);
    }
}
