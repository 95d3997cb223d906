//! What the HTTP server gets from upstreams: questions that block, on threads made for that.

use std::io::Read;

use shoal_wire::nix::path_info::PathInfo;

use super::Upstreams;
use crate::http::Elsewhere;
use crate::http::cache::Later;

impl Elsewhere for Upstreams {
    fn find<'a>(&'a self, hash_part: &'a str) -> Later<'a, Option<PathInfo>> {
        let (upstreams, hash_part) = (self.clone(), hash_part.to_string());
        Box::pin(async move {
            let found = tokio::task::spawn_blocking(move || upstreams.offer(&hash_part));
            found.await.ok().flatten().map(|offer| offer.info.clone())
        })
    }

    fn nar<'a>(&'a self, info: &'a PathInfo) -> Later<'a, Option<Box<dyn Read + Send>>> {
        let (upstreams, info) = (self.clone(), info.clone());
        Box::pin(async move {
            let found = tokio::task::spawn_blocking(move || {
                let stream = upstreams.nar(&info.path).unwrap_or_else(|error| {
                    tracing::warn!(
                        path = info.path.base_name(),
                        error = format!("{error:#}"),
                        "cannot read from upstream"
                    );
                    None
                });
                // What is fetched now may not be what was described.
                stream.filter(|stream| stream.nar_hash == info.nar_hash)
            });
            found.await.ok().flatten().map(|stream| Box::new(stream) as Box<dyn Read + Send>)
        })
    }
}
