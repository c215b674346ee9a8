//! The one place where headers are edited hop by hop, and where fields that nodes use among themselves come and go.

use bytes::BytesMut;
use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use tidegate_cache::{Revision, cache_control, field};

/// Edge to shield: the fetch must have begun at or after this revision.
pub const DEMAND: HeaderName = HeaderName::from_static("tidegate-demand");
/// Edge to shield: no cache may answer from what it stored.
pub const END_TO_END: HeaderName = HeaderName::from_static("tidegate-end-to-end");
/// Edge to shield: the site, and the scheme that the client used.
pub const SITE: HeaderName = HeaderName::from_static("tidegate-site");
pub const SCHEME: HeaderName = HeaderName::from_static("tidegate-scheme");
/// Edge to shield: how many requests to origin servers this one may cost. Shield to edge: how many it did cost.
pub const ATTEMPTS: HeaderName = HeaderName::from_static("tidegate-attempts");
/// Edge to shield: milliseconds until the deadline of the client's request.
pub const WITHIN: HeaderName = HeaderName::from_static("tidegate-within");
/// Shield to edge: the revision through which the answer is vouched for.
pub const VOUCHED: HeaderName = HeaderName::from_static("tidegate-vouched");
/// Shield to edge: the origin's body ended with its connection, so it may be a torn one.
pub const UNFRAMED: HeaderName = HeaderName::from_static("tidegate-unframed");
/// Shield to edge: this answer is the shield's own, not the origin's.
pub const OWN_ERROR: HeaderName = HeaderName::from_static("tidegate-error");
/// Shield to edge: which line of the head of the origin's answer is not valid HTTP.
pub const LINE: HeaderName = HeaderName::from_static("tidegate-line");
/// Shield to edge: a stale response, since the origin fails.
pub const STANDS_IN: HeaderName = HeaderName::from_static("tidegate-stands-in");

pub const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Fields of a response that Connection cannot name: without them it would be for more clients than it is, or mean something else.
const END_TO_END_ALWAYS: [&str; 20] = [
    "age",
    "cache-control",
    "cdn-cache-control",
    "content-encoding",
    "content-location",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "location",
    "pragma",
    "set-cookie",
    "surrogate-control",
    "tidegate-cache-control",
    "vary",
    "via",
    "warning",
    "www-authenticate",
];

/// Removes the fields of a response that belong to one connection alone: the known ones and those that Connection names (RFC 9110
/// section 7.6.1).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = field::list(headers, &header::CONNECTION).filter_map(|n| HeaderName::from_bytes(n).ok()).collect();
        for name in named.iter().filter(|n| !END_TO_END_ALWAYS.contains(&n.as_str()) && !field::TAG_FIELDS.contains(&n.as_str())) {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The protocols that a request offers to go on with. Upgrade alone, which Connection does not name, offers nothing (RFC 9110 section
/// 7.8); and what carries HTTP again would pass all that this node sees to.
#[must_use]
pub fn offered_protocols(headers: &HeaderMap) -> Option<HeaderValue> {
    if !field::list(headers, &header::CONNECTION).any(|n| n.eq_ignore_ascii_case(b"upgrade")) {
        return None;
    }
    let carries_http = |p: &&[u8]| {
        let p = p.to_ascii_lowercase();
        [&b"h2"[..], b"h3", b"http", b"tls"].iter().any(|name| p.starts_with(name))
    };
    let left: Vec<&[u8]> = field::list(headers, &header::UPGRADE).filter(|p| !carries_http(p)).collect();
    (!left.is_empty()).then(|| HeaderValue::from_bytes(&left.join(&b", "[..])).ok()).flatten()
}

/// Removes from trailers what may not stand there: what frames, routes, controls or vouches for a message (RFC 9110 section 6.5.1).
pub fn strip_of_trailers(trailers: &mut HeaderMap) {
    const OF_HEADS: [HeaderName; 17] = [
        header::AGE,
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        CDN_LOOP,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::EXPECT,
        header::HOST,
        header::MAX_FORWARDS,
        header::RANGE,
        header::SET_COOKIE,
        header::TRAILER,
        header::VARY,
        header::VIA,
    ];
    strip_hop_by_hop(trailers);
    strip_internal(trailers);
    strip_for_client(trailers);
    for name in OF_HEADS {
        trailers.remove(name);
    }
}

/// Whether the sender of a request takes trailers with its response (RFC 9110 section 10.1.4).
#[must_use]
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TE) && field::list(headers, &header::TE).any(|t| t.eq_ignore_ascii_case(b"trailers"))
}

/// One Cookie field out of those that a client has split it into over HTTP/2 or HTTP/3, for what takes one alone (RFC 9113 section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let parts: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Out of what were values.
    if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// The size of a field section, as RFC 9113 section 6.5.2 counts it for every version of HTTP.
#[must_use]
pub fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

/// Fields, and bytes of them, that the head of a response from an origin may have.
pub const MAX_FIELDS: usize = 256;
pub const MAX_HEAD: usize = 256 << 10;

/// Whether a head is larger than that.
#[must_use]
pub fn is_too_large(headers: &HeaderMap) -> bool {
    headers.len() > MAX_FIELDS || size(headers) > MAX_HEAD
}

/// The fields of nodes among themselves, and the one for this network's caches that an origin may send.
const INTERNAL: &str = "tidegate-";

/// Removes fields of nodes among themselves: what clients and origins send under these names means nothing.
pub fn strip_internal(headers: &mut HeaderMap) {
    let is_internal = |n: &&HeaderName| n.as_str().starts_with(INTERNAL) && n.as_str() != cache_control::TARGETED[0];
    let gone: Vec<HeaderName> = headers.keys().filter(is_internal).cloned().collect();
    gone.iter().for_each(|name| drop(headers.remove(name)));
}

/// What a client does not see of a stored response: tags, directives for this network alone, and where else the origin is to be found
/// (RFC 7838), which is not where this network is.
pub fn strip_for_client(headers: &mut HeaderMap) {
    for name in HIDDEN.into_iter().flatten().chain([&"alt-svc"]) {
        headers.remove(*name);
    }
}

/// Tags, and directives for this network alone.
const HIDDEN: [&[&str]; 2] = [&field::TAG_FIELDS, &["surrogate-control", cache_control::TARGETED[0]]];

/// The fields of a response that clients do not see, and by which this node judges it.
#[must_use]
pub fn hidden(headers: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    for name in HIDDEN.into_iter().flatten().copied().map(HeaderName::from_static) {
        for value in headers.get_all(&name) {
            out.append(name.clone(), value.clone());
        }
    }
    out
}

/// Conditions and ranges of a client's request, and what speaks of a body that a fetch for the store does not have: the request that
/// it is made for may have been a POST.
const SELECTION: [HeaderName; 9] = [
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::RANGE,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::EXPECT,
];

/// Whether [`strip_selection`] removes the field. `name` is in lower case.
#[must_use]
pub fn is_selection(name: &str) -> bool {
    SELECTION.iter().any(|n| n.as_str() == name)
}

/// Whether a request has fields that describe its body. A fetch for the store has none.
#[must_use]
pub fn describes_a_body(headers: &HeaderMap) -> bool {
    [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::EXPECT].iter().any(|name| headers.contains_key(name))
}

/// Removes the fields that a fetch for the store does not send.
pub fn strip_selection(headers: &mut HeaderMap) {
    SELECTION.iter().for_each(|name| drop(headers.remove(name)));
}

/// Removes the fields that give a body's length, after the message has been received. From then on the length comes from the framing
/// (RFC 9112 section 6), and these fields are not read again.
pub fn strip_framing(headers: &mut HeaderMap) {
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
}

/// The same fields with all values in one piece of memory of their own: what is kept must not pin the buffers that it was
/// read into.
#[must_use]
pub fn compact(headers: &HeaderMap) -> HeaderMap {
    let mut values = BytesMut::with_capacity(headers.values().map(HeaderValue::len).sum());
    headers.values().for_each(|v| values.extend_from_slice(v.as_bytes()));
    let mut values = values.freeze();
    let mut out = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        // What was a value is one.
        if let Ok(copied) = HeaderValue::from_maybe_shared(values.split_to(value.len())) {
            out.append(name, copied);
        }
    }
    out
}

/// Fields by which a client could make an origin answer as if it had been asked something else, which the key would not show.
/// Frameworks and proxies are known to believe them.
const REFLECTED: [&str; 20] = [
    "cf-connecting-ip",
    "forwarded",
    "front-end-https",
    // Programs behind CGI take it for the proxy of their own requests (httpoxy).
    "proxy",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-host",
    "x-http-host-override",
    "x-original-host",
    "x-original-uri",
    "x-original-url",
    "x-originating-ip",
    "x-real-ip",
    "x-rewrite-uri",
    "x-rewrite-url",
    "x-scheme",
    "x-script-name",
    "x-url-scheme",
    "x-wap-profile",
];
/// Of methods that are not cached, an API may want them.
const METHOD_OVERRIDES: [&str; 3] = ["x-http-method", "x-http-method-override", "x-method-override"];

/// Whether a client says by the field which way it came, or changes the meaning of its request. `name` is in lower case.
#[must_use]
pub fn is_not_of_clients(name: &str, method: &Method) -> bool {
    if name.bytes().any(|b| matches!(b, b'_' | b'.')) {
        // Servers that hand fields on as variables (CGI and its kin) read these as hyphens.
        let plain: String = name.chars().map(|c| if matches!(c, '_' | '.') { '-' } else { c }).collect();
        return is_not_of_clients(&plain, method) || is_of_one_hop(&plain);
    }
    match name.as_bytes().first() {
        Some(b'c' | b'f' | b'p' | b't') => REFLECTED.contains(&name),
        Some(b'x') => {
            name.starts_with("x-forwarded")
                || REFLECTED.contains(&name)
                || (matches!(*method, Method::GET | Method::HEAD) && METHOD_OVERRIDES.contains(&name))
        }
        _ => false,
    }
}

/// Drops what a client says about the way it came, and what would change the meaning of its request.
pub fn strip_reflected(headers: &mut HeaderMap, method: &Method) {
    let gone: Vec<HeaderName> = headers.keys().filter(|n| is_not_of_clients(n.as_str(), method)).cloned().collect();
    gone.iter().for_each(|name| drop(headers.remove(name)));
}

/// Whether a field belongs to one connection, frames one message, or is of nodes among themselves. `name` is in lower case.
#[must_use]
pub fn is_of_one_hop(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'c' | b'h' | b'k' | b'p' | b'u') => {
            name == header::CONTENT_LENGTH.as_str() || HOP_BY_HOP.iter().any(|hop| hop.as_str() == name)
        }
        Some(b't') => name.starts_with(INTERNAL) || HOP_BY_HOP.iter().any(|hop| hop.as_str() == name),
        _ => false,
    }
}

/// Inserts a value that is made of checked parts; one that is not a field value after all is left out.
pub fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// A number in a field of nodes among themselves.
#[must_use]
pub fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    field::digits(headers.get(name)?.as_bytes())
}

/// A revision in a field of nodes among themselves.
#[must_use]
pub fn revision(headers: &HeaderMap, name: &HeaderName) -> Option<Revision> {
    Revision::parse(headers.get(name)?.to_str().ok()?)
}

/// How often this network stands in CDN-Loop (RFC 8586).
#[must_use]
pub fn loops(headers: &HeaderMap, cdn_id: &HeaderValue) -> bool {
    headers.contains_key(CDN_LOOP) && field::list(headers, &CDN_LOOP).any(|m| field::without_parameters(m) == cdn_id.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_fields_are_the_same_fields() {
        let mut h = HeaderMap::new();
        for (name, value) in [("x-a", "1"), ("set-cookie", "a=b"), ("x-a", ""), ("set-cookie", "c=d"), ("x-b", "long value")] {
            h.append(name, value.parse().unwrap());
        }
        assert_eq!(compact(&h), h);
        assert_eq!(compact(&HeaderMap::new()), HeaderMap::new());
    }

    #[test]
    fn what_a_client_says_about_its_way_does_not_reach_the_origin() {
        let names = ["x-forwarded-for", "x-forwarded-anything", "forwarded", "x-original-url", "x-http-method-override", "accept"];
        let left = |method: &Method| {
            let mut h = HeaderMap::new();
            names.iter().for_each(|n| drop(h.insert(*n, HeaderValue::from_static("v"))));
            strip_reflected(&mut h, method);
            let mut left: Vec<_> = h.keys().map(|n| n.as_str().to_owned()).collect();
            left.sort();
            left
        };
        assert_eq!(left(&Method::GET), ["accept"]);
        assert_eq!(left(&Method::POST), ["accept", "x-http-method-override"]);
    }

    #[test]
    fn fields_that_connection_names_go_with_it() {
        let mut h = HeaderMap::new();
        h.append("connection", "close, X-A".parse().unwrap());
        h.append("x-a", "1".parse().unwrap());
        h.append("x-b", "2".parse().unwrap());
        h.append("keep-alive", "1".parse().unwrap());
        strip_hop_by_hop(&mut h);
        assert_eq!(h.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-b"]);
    }

    #[test]
    fn a_loop_is_seen_whatever_else_is_in_the_list() {
        let id = HeaderValue::from_static("tidegate-1");
        let mut h = HeaderMap::new();
        h.append(CDN_LOOP, "other, tidegate-12".parse().unwrap());
        assert!(!loops(&h, &id));
        h.append(CDN_LOOP, "tidegate-1; x=1".parse().unwrap());
        assert!(loops(&h, &id));
    }
}
