//! `/serve/<store path>/…`: the files of a path, for people and scripts.
//!
//! Names are looked up in the path's own index, so there is nothing to traverse out of: `..` is no name in it. A symlink
//! is never followed here; the client is sent to where it points, if that is in the store.

use std::fmt::Write;
use std::sync::Arc;

use http::header::{CONTENT_SECURITY_POLICY, LOCATION, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use shoal_store::Export;
use shoal_wire::nix::base32;
use shoal_wire::nix::nar::index::{Entry, NarIndex, Node};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::HASH_PART_LEN;

use super::range::Ranged;
use super::{Body, Cache, Found, Request, Response, percent, response};

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
/// Longest path of names that is looked at: the depth of the deepest NAR.
const DEPTH_MAX: usize = 4096;

pub async fn get(cache: Arc<Cache>, request: Request) -> Response {
    // Each component by itself: a name that holds an escaped slash is one that no NAR has.
    let raw = request.path.strip_prefix("/serve/").unwrap_or_default();
    let Some(components) = components(raw) else { return response::not_found() };
    let Some((first, names)) = components.split_first() else { return response::not_found() };
    let first = String::from_utf8_lossy(first);
    let hash_part = first.split('-').next().unwrap_or_default();
    let record = match cache.lookup(hash_part).await {
        Ok(Found::Here(record)) if first.len() == HASH_PART_LEN || first == record.info.path.base_name() => record,
        Ok(_) => return response::not_found(),
        Err(error) => return response::unreadable(&request.path, &error),
    };
    let (names, path) = (names.to_vec(), request.path.clone());
    let make = move |cache: &Cache| {
        let export = cache.store.export(&record.info.path)?;
        let answer = |export| contained(answer(cache, &request, &record.info, export, &names));
        Ok(export.map_or_else(response::not_found, answer))
    };
    cache.made(&path, make).await
}

/// The names of a path; `None` where one is malformed or there are too many.
fn components(raw: &str) -> Option<Vec<Vec<u8>>> {
    let components = raw.split('/').filter(|component| !component.is_empty());
    let components: Vec<_> = components.take(DEPTH_MAX + 1).map(percent::decode).collect::<Option<_>>()?;
    (components.len() <= DEPTH_MAX).then_some(components)
}

/// What a build made may be a page with a script in it: it gets no rights of this server's own pages.
fn contained(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn answer(cache: &Cache, request: &Request, info: &PathInfo, export: Export, names: &[Vec<u8>]) -> Response {
    let index = export.index();
    let mut entry = index.root();
    for (depth, name) in names.iter().enumerate() {
        if let Node::Symlink { target } = &entry.node {
            return follow(cache, info, &names[..depth], target, &names[depth..]);
        }
        let Some(child) = index.child(entry, name).and_then(|number| index.get(number)) else {
            return response::not_found();
        };
        entry = child;
    }
    match &entry.node {
        Node::Symlink { target } => follow(cache, info, names, target, &[]),
        Node::Directory { .. } if !request.path.ends_with('/') => redirect(&format!("{}/", request.path)),
        Node::Directory { .. } => {
            let page = page(&format!("{}/{}", cache.dir.print(&info.path), lossy(&names.join(&b'/'))), index, entry);
            cache.whole(HTML, response::AN_HOUR, page.into())
        }
        &Node::Regular { size, offset, .. } => {
            let name = names.last().map_or(&[][..], Vec::as_slice);
            let file = Ranged {
                etag: format!("\"{}-{offset:x}\"", base32::encode(&info.nar_hash)),
                len: size,
                content_type: content_type(name),
                caching: response::AN_HOUR,
                has_parts: true,
            };
            let answer = file.answer(request, |range| {
                let len = range.end - range.start;
                let part = export.range(offset + range.start, len);
                Ok::<_, std::convert::Infallible>(Body::reading(len, part))
            });
            answer.unwrap_or_else(|never| match never {})
        }
    }
}

/// Sends the client where a symlink in the directory `at[..at.len() - 1]` points, and on to `rest` there.
fn follow(cache: &Cache, info: &PathInfo, at: &[Vec<u8>], target: &[u8], rest: &[Vec<u8>]) -> Response {
    let store = format!("{}/", cache.dir);
    let outside = || {
        let text = format!("404 this is a symlink to {}, which is not in the store", lossy(target));
        response::status(StatusCode::NOT_FOUND, &text)
    };
    // All names below the store directory, the store path's own first.
    let mut names: Vec<&[u8]> = Vec::new();
    let steps = match target.strip_prefix(store.as_bytes()) {
        Some(steps) => steps,
        None if target.starts_with(b"/") => return outside(),
        None => {
            names.push(info.path.base_name().as_bytes());
            names.extend(at.split_last().map_or(&[][..], |(_, parents)| parents).iter().map(Vec::as_slice));
            // A store path that is a symlink itself lies in the store directory.
            if at.is_empty() {
                names.clear();
            }
            target
        }
    };
    for step in steps.split(|&byte| byte == b'/').chain(rest.iter().map(Vec::as_slice)) {
        match step {
            b"" | b"." => {}
            b".." => {
                if names.pop().is_none() {
                    return outside();
                }
            }
            name => names.push(name),
        }
    }
    if names.is_empty() {
        return outside();
    }
    let path: Vec<String> = names.into_iter().map(percent::encode).collect();
    redirect(&format!("/serve/{}", path.join("/")))
}

fn redirect(to: &str) -> Response {
    let mut response = response::status(StatusCode::FOUND, to);
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory as a page.
fn page(title: &str, index: &NarIndex, directory: &Entry) -> String {
    let title = escape(title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>{title}</title></head>\n\
         <body><h1>{title}</h1>\n<table>\n<tr><td><a href=\"../\">../</a></td></tr>\n"
    );
    for entry in index.children(directory) {
        let (href, name) = (percent::encode(&entry.name), escape(&lossy(&entry.name)));
        let (slash, what) = match &entry.node {
            Node::Directory { .. } => ("/", String::new()),
            Node::Regular { executable, size, .. } => ("", format!("{size}{}", if *executable { " x" } else { "" })),
            Node::Symlink { target } => ("", format!("→ {}", escape(&lossy(target)))),
        };
        // Writing to a String cannot fail. `./` keeps a name with a colon from being read as a scheme.
        let _ = writeln!(page, "<tr><td><a href=\"./{href}{slash}\">{name}{slash}</a></td><td>{what}</td></tr>");
    }
    page.push_str("</table></body></html>\n");
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// By the name's extension; what is not known is only bytes.
fn content_type(name: &[u8]) -> HeaderValue {
    let name = lossy(name);
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    HeaderValue::from_static(match extension {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "md" | "log" | "nix" | "sh" | "c" | "h" | "cc" | "py" | "rs" | "conf" | "toml" | "yaml" | "yml" => {
            "text/plain; charset=utf-8"
        }
        "json" => "application/json",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        _ => "application/octet-stream",
    })
}
