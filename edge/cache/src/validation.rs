//! Validating a stored response upstream, and what a 304 makes of it (RFC 9111 sections 4.3.1, 4.3.3 and 4.3.4).

use http::HeaderValue;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
    TRANSFER_ENCODING,
};

/// The fields that make a request conditional on what is stored; empty where it has no validator.
#[must_use]
pub fn conditions(stored: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let mut out = Vec::new();
    if let Some(etag) = stored.get(ETAG) {
        out.push((IF_NONE_MATCH, etag.clone()));
    }
    if let Some(changed) = stored.get(LAST_MODIFIED) {
        out.push((IF_MODIFIED_SINCE, changed.clone()));
    }
    out
}

/// Whether a 304 speaks of the stored response: its validators, where it has any, are the same (section 4.3.4).
#[must_use]
pub fn confirms(stored: &HeaderMap, not_modified: &HeaderMap) -> bool {
    let same = |name: &HeaderName| match (stored.get(name), not_modified.get(name)) {
        (Some(a), Some(b)) => a == b,
        (None, Some(_)) => false,
        (_, None) => true,
    };
    fn etag(headers: &HeaderMap) -> Option<&[u8]> {
        let value = headers.get(ETAG)?.as_bytes();
        Some(value.strip_prefix(b"W/").unwrap_or(value))
    }
    match (etag(stored), etag(not_modified)) {
        (Some(a), Some(b)) => a == b,
        (None, Some(_)) => false,
        (_, None) => same(&LAST_MODIFIED),
    }
}

/// The stored headers with those of the 304 put in their place (section 3.2). What describes the stored bytes stays.
#[must_use]
pub fn freshened(stored: &HeaderMap, not_modified: &HeaderMap) -> HeaderMap {
    const KEPT: [HeaderName; 8] = [
        CONTENT_LENGTH,
        CONTENT_ENCODING,
        CONTENT_RANGE,
        TRANSFER_ENCODING,
        HeaderName::from_static("content-md5"),
        HeaderName::from_static("content-digest"),
        HeaderName::from_static("repr-digest"),
        HeaderName::from_static("digest"),
    ];
    let mut out = stored.clone();
    for name in not_modified.keys().filter(|n| !KEPT.contains(n)) {
        out.remove(name);
        for value in not_modified.get_all(name) {
            out.append(name.clone(), value.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut h = HeaderMap::new();
        for (n, v) in lines {
            h.append(*n, v.parse().unwrap());
        }
        h
    }

    #[test]
    fn a_304_updates_the_headers_and_leaves_what_describes_the_bytes() {
        let stored = headers(&[("etag", "\"a\""), ("content-length", "5"), ("content-md5", "m"), ("x", "1"), ("x", "2"), ("y", "3")]);
        let new =
            headers(&[("etag", "\"a\""), ("content-length", "0"), ("content-md5", "n"), ("x", "9"), ("date", "d"), ("content-type", "t")]);
        assert!(confirms(&stored, &new));
        assert_eq!(
            freshened(&stored, &new),
            headers(&[
                ("etag", "\"a\""),
                ("content-length", "5"),
                ("content-md5", "m"),
                ("y", "3"),
                ("x", "9"),
                ("date", "d"),
                ("content-type", "t")
            ])
        );
        assert!(!confirms(&stored, &headers(&[("etag", "\"b\"")])));
        assert!(confirms(&stored, &headers(&[])));
    }
}
