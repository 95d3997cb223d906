//! Answers that a client may ask a part of, or have already. Source: RFC 9110, sections 13 and 14.

use std::ops::Range;

use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE};
use http::{HeaderValue, StatusCode};

use super::{Body, Request, Response, response};

/// Something of a known length whose bytes `etag` names.
pub struct Ranged {
    pub etag: String,
    pub len: u64,
    pub content_type: HeaderValue,
    pub caching: HeaderValue,
    /// Whether parts of it are given: not of what may be other bytes the next time it is asked for.
    pub has_parts: bool,
}

/// What of it a client wants.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part(Range<u64>),
    Unsatisfiable,
    /// It has it.
    Nothing,
}

impl Ranged {
    /// `body` makes the bytes of a range; it is not asked where only the head is wanted.
    pub fn answer<E>(self, request: &Request, body: impl FnOnce(Range<u64>) -> Result<Body, E>) -> Result<Response, E> {
        let wanted = self.wanted(request);
        let range = match &wanted {
            Wanted::Whole => 0..self.len,
            Wanted::Part(range) => range.clone(),
            Wanted::Unsatisfiable => return Ok(self.unsatisfiable()),
            Wanted::Nothing => return Ok(self.not_modified()),
        };
        let len = range.end - range.start;
        let body = if request.is_head() { Body::untold(len) } else { body(range.clone())? };
        let status = if wanted == Wanted::Whole { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
        let mut response = response::with_status(status, self.content_type.clone(), self.caching.clone(), body);
        if status == StatusCode::PARTIAL_CONTENT {
            let (start, last, len) = (range.start, range.end.saturating_sub(1), self.len);
            insert(&mut response, CONTENT_RANGE, &format!("bytes {start}-{last}/{len}"));
        }
        self.name(&mut response);
        Ok(response)
    }

    fn wanted(&self, request: &Request) -> Wanted {
        let has =
            |value: &str| value == "*" || value.split(',').any(|tag| tag.trim().trim_start_matches("W/") == self.etag);
        if request.header(IF_NONE_MATCH).is_some_and(has) {
            return Wanted::Nothing;
        }
        // A part of other bytes than the client has the rest of is of no use to it.
        if request.header(IF_RANGE).is_some_and(|tag| tag != self.etag) {
            return Wanted::Whole;
        }
        // Ranges are defined for GET alone: section 14.2.
        if request.is_head() || !self.has_parts {
            return Wanted::Whole;
        }
        request.header(RANGE).map_or(Wanted::Whole, |range| parse(range, self.len))
    }

    fn name(&self, response: &mut Response) {
        insert(response, ETAG, &self.etag);
        if self.has_parts {
            response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
    }

    fn unsatisfiable(&self) -> Response {
        let mut response = response::status(StatusCode::RANGE_NOT_SATISFIABLE, "416 range not satisfiable");
        insert(&mut response, CONTENT_RANGE, &format!("bytes */{}", self.len));
        response
    }

    fn not_modified(&self) -> Response {
        let mut response = response::with_status(
            StatusCode::NOT_MODIFIED,
            self.content_type.clone(),
            self.caching.clone(),
            Body::empty(),
        );
        // There is no body, and the length of none is not that of what the client has.
        response.headers_mut().remove(CONTENT_LENGTH);
        self.name(&mut response);
        response
    }
}

fn insert(response: &mut Response, name: http::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// One range of bytes. Several at once, and what is no range, may be ignored, and are.
fn parse(text: &str, len: u64) -> Wanted {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Wanted::Whole;
    };
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number beyond what there can be is beyond the end all the same.
        true if !text.is_empty() => Some(text.parse().unwrap_or(u64::MAX)),
        _ => None,
    };
    let (first, last) = match (number(first.trim()), number(last.trim())) {
        (Some(first), Some(last)) if first > last => return Wanted::Whole,
        (Some(first), Some(last)) => (first, last.saturating_add(1).min(len)),
        (Some(first), None) if last.trim().is_empty() => (first, len),
        (None, Some(0)) if first.is_empty() => return Wanted::Unsatisfiable,
        (None, Some(suffix)) if first.is_empty() => (len.saturating_sub(suffix), len),
        _ => return Wanted::Whole,
    };
    if first < last { Wanted::Part(first..last) } else { Wanted::Unsatisfiable }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_as_clients_write_them() {
        assert_eq!(parse("bytes=0-", 10), Wanted::Part(0..10));
        assert_eq!(parse("bytes=3-5", 10), Wanted::Part(3..6));
        assert_eq!(parse("bytes=3-500", 10), Wanted::Part(3..10));
        assert_eq!(parse("bytes=-4", 10), Wanted::Part(6..10));
        assert_eq!(parse("bytes=-40", 10), Wanted::Part(0..10));
        assert_eq!(parse("bytes=10-", 10), Wanted::Unsatisfiable);
        assert_eq!(parse("bytes=99999999999999999999999-", 10), Wanted::Unsatisfiable);
        assert_eq!(parse("bytes=-0", 10), Wanted::Unsatisfiable);
        assert_eq!(parse("bytes=0-0", 0), Wanted::Unsatisfiable);
        for odd in ["bytes=5-3", "bytes=0-1,3-4", "lines=0-", "bytes=", "bytes=--1", "bytes=a-b", "bytes=1-b"] {
            assert_eq!(parse(odd, 10), Wanted::Whole, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn a_part_is_within_the_whole(text in "(bytes=)?[0-9,-]{0,24}", len in any::<u64>()) {
            if let Wanted::Part(range) = parse(&text, len) {
                prop_assert!(range.start < range.end && range.end <= len);
            }
        }
    }
}
