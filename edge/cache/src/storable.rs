//! Whether a shared cache may store a response (RFC 9111 section 3).

use crate::cache_control::{RequestDirectives, ResponseDirectives};
use crate::key::Target;
use http::header::{AUTHORIZATION, CONTENT_LOCATION, CONTENT_TYPE, COOKIE, EXPIRES, HeaderMap, SET_COOKIE};
use http::{Method, StatusCode};
use tidegate_control_types::planted::Bug;

macro_rules! reasons {
    ($($name:ident $token:literal $text:literal)*) => {
        /// Why a response is not stored, in words for `tidegate explain`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum NotStorable {
            $(#[doc = $text] $name,)*
        }

        impl NotStorable {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word for Cache-Status and the access log.
            #[must_use]
            pub fn detail(self) -> &'static str {
                match self {
                    $(Self::$name => $token,)*
                }
            }

            #[must_use]
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

reasons! {
    Status "not-stored-status" "a status that this cache does not understand"
    StatusOfTheRequest "not-stored-request-status" "a status or a part that concerns this request only"
    NoStore "not-stored-no-store" "its Cache-Control has no-store"
    RequestNoStore "not-stored-request-no-store" "the request's Cache-Control has no-store"
    Private "not-stored-private" "its Cache-Control has private"
    Authorization "not-stored-authorization" "the request has Authorization, and the response has neither public, s-maxage nor must-revalidate"
    NoFreshness "not-stored-no-freshness" "it has no lifetime (Cache-Control, Expires), none can be assumed, and [cache] default_ttl gives none"
    NoValidator "not-stored-no-validator" "it is stale at once, and has neither ETag nor Last-Modified to validate it with"
    HeuristicForOneClient "not-stored-cookie-without-freshness" "the request has Cookie or Authorization, and the response has no explicit lifetime"
    VaryStar "not-stored-vary-star" "its Vary is *"
    VaryUnreadable "not-stored-vary-unreadable" "its Vary has a member that is not a field name"
    TagsUnreadable "not-stored-tags-unreadable" "its tags (Surrogate-Key, Cache-Tag) are not all UTF-8, so that a purge could miss it"
    SetCookie "not-stored-set-cookie" "it sets a cookie, and no Cache-Control says that it may be shared"
    TooLarge "not-stored-too-large" "it is larger than this node may store (cache.max_object, memory)"
    Unframed "not-stored-unframed" "its body ends with its connection, so that a truncated one could not be recognised"
    Stream "not-stored-stream" "it is a stream of events, pictures or messages without an end"
}

impl NotStorable {
    /// Whether the next requests for the same key fare the same, whatever they carry. What one client asks for, and who it is,
    /// changes nothing for the others.
    #[must_use]
    pub fn is_of_the_key(self) -> bool {
        !matches!(self, Self::StatusOfTheRequest | Self::RequestNoStore | Self::Authorization | Self::HeuristicForOneClient)
    }
}

/// A request and its response, as far as storing is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    pub request: &'a HeaderMap,
    pub asked: &'a RequestDirectives,
    pub status: StatusCode,
    pub response: &'a HeaderMap,
    pub said: &'a ResponseDirectives,
    /// The site has a lifetime for responses without explicit freshness.
    pub has_default_ttl: bool,
}

/// Whether a body of this type goes on for as long as its client listens.
#[must_use]
pub fn is_stream(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return false };
    let media = crate::field::without_parameters(value.as_bytes());
    let is = |name: &[u8]| media.eq_ignore_ascii_case(name);
    let is_grpc = media.get(..b"application/grpc".len()).is_some_and(|begin| begin.eq_ignore_ascii_case(b"application/grpc"));
    is(b"text/event-stream") || is(b"multipart/x-mixed-replace") || is_grpc
}

/// Final statuses that this cache understands (RFC 9111 section 3, `must-understand`), and that are cacheable
/// without explicit freshness (RFC 9110 section 15.1) but for 206.
#[must_use]
pub fn heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

fn understood(status: StatusCode) -> bool {
    heuristically_cacheable(status) || matches!(status.as_u16(), 302 | 303 | 307 | 400 | 403 | 500 | 502 | 503 | 504)
}

/// Statuses that speak of the request which got them (its conditions, range, size, rate, early data, connection) and so tell nothing to
/// another client; RFC 6585 forbids to store four of them.
fn is_of_the_request(status: StatusCode) -> bool {
    matches!(status.as_u16(), 406 | 407 | 408 | 411 | 412 | 413 | 415..=417 | 421 | 422 | 424..=426 | 428 | 429 | 431 | 494 | 505 | 506 | 510 | 511)
}

/// Whether the response to a GET may be stored. 206 is combined and not stored by this rule.
///
/// # Errors
/// Why not.
pub fn storable(exchange: &Exchange<'_>) -> Result<(), NotStorable> {
    let Exchange { request, asked, status, response, said, has_default_ttl } = *exchange;
    let shared = said.public || said.s_maxage.is_some_and(|seconds| seconds > 0);
    let explicit = said.max_age.is_some() || said.s_maxage.is_some() || (!said.targeted && response.contains_key(EXPIRES));
    // Said of a response with a cookie: kept for a while, for whoever comes.
    let for_others_too = !said.no_cache && said.s_maxage.or(said.max_age).map_or(said.public, |seconds| seconds > 0);
    if matches!(status.as_u16(), 206 | 304) || is_of_the_request(status) {
        Err(NotStorable::StatusOfTheRequest)
    } else if status.as_u16() < 200 {
        Err(NotStorable::Status)
    } else if said.no_store && !(said.must_understand && understood(status)) {
        Err(NotStorable::NoStore)
    } else if said.must_understand && !understood(status) {
        Err(NotStorable::Status)
    } else if said.private {
        Err(NotStorable::Private)
    } else if is_stream(response) {
        Err(NotStorable::Stream)
    } else if response.contains_key(SET_COOKIE) && !for_others_too {
        Err(NotStorable::SetCookie)
    } else if !(explicit || said.public || heuristically_cacheable(status)) {
        Err(NotStorable::NoFreshness)
    } else if asked.no_store {
        Err(NotStorable::RequestNoStore)
    } else if request.contains_key(AUTHORIZATION) && !(shared || said.must_revalidate) {
        Err(NotStorable::Authorization)
    } else if !(explicit || has_default_ttl || Bug::HeuristicsForCookies.is_planted())
        && (request.contains_key(COOKIE) || request.contains_key(AUTHORIZATION))
    {
        Err(NotStorable::HeuristicForOneClient)
    } else {
        Ok(())
    }
}

/// Whether the answer to a POST is what its target gives from now on, and may be kept for a GET (RFC 9110 section 9.3.3): it says
/// so by its Content-Location, and for how long.
#[must_use]
pub fn answers_get(method: &Method, status: StatusCode, response: &HeaderMap, said: &ResponseDirectives, target: &Target) -> bool {
    // One that is stale at once must not be shared with those who wait for it either.
    let explicit = said.s_maxage.or(said.max_age).map_or(!said.targeted && response.contains_key(EXPIRES), |seconds| seconds > 0);
    let location = response.get(CONTENT_LOCATION).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<http::Uri>().ok());
    let same = location.is_some_and(|uri| {
        let host = uri.host().is_none_or(|h| h.eq_ignore_ascii_case(&target.host));
        host && uri
            .path_and_query()
            .is_some_and(|p| Target::new(false, &target.host, p.as_str(), None).path_and_query == target.path_and_query)
    });
    method == Method::POST && status == StatusCode::OK && explicit && same
}

/// Whether an answered request makes what is stored under its target invalid (RFC 9111 section 4.4).
#[must_use]
pub fn invalidates(method: &Method, status: StatusCode) -> bool {
    !method.is_safe() && (status.is_success() || status.is_redirection())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache_control;

    #[test]
    fn a_post_answers_a_get_where_it_says_so() {
        let target = Target::new(false, "h", "/a?b", None);
        let says = |location: &str, cc: &str| {
            let mut h = HeaderMap::new();
            h.insert("content-location", location.parse().unwrap());
            h.insert("cache-control", cc.parse().unwrap());
            answers_get(&Method::POST, StatusCode::OK, &h, &cache_control::of_response(&h), &target)
        };
        assert!(says("/a?b", "max-age=1") && says("http://H/a?b", "s-maxage=1"));
        assert!(!says("/a?b", "max-age=0") && !says("/a?b", "max-age=5, s-maxage=0"));
        assert!(!says("/a", "max-age=1") && !says("http://other/a?b", "max-age=1") && !says("/a?b", "public") && !says("a?b", "max-age=1"));
    }

    fn check(request: &[(&'static str, &str)], status: u16, response: &[(&'static str, &str)]) -> Result<(), NotStorable> {
        let map = |lines: &[(&'static str, &str)]| {
            let mut h = HeaderMap::new();
            for (n, v) in lines {
                h.append(*n, v.parse().unwrap());
            }
            h
        };
        let (request, response) = (map(request), map(response));
        let (asked, said) = (cache_control::of_request(&request), cache_control::of_response(&response));
        let status = StatusCode::from_u16(status).unwrap();
        let (request, asked, response, said) = (&request, &asked, &response, &said);
        storable(&Exchange { request, asked, status, response, said, has_default_ttl: false })
    }

    #[test]
    fn section_3_case_by_case() {
        let cc = "cache-control";
        for (request, status, response, want) in [
            (&[][..], 200, &[][..], Ok(())),
            (&[], 200, &[(cc, "no-store")], Err(NotStorable::NoStore)),
            (&[], 200, &[(cc, "no-store, must-understand, max-age=1")], Ok(())),
            (&[], 499, &[(cc, "must-understand, max-age=1")], Err(NotStorable::Status)),
            (&[], 200, &[(cc, "private, max-age=1")], Err(NotStorable::Private)),
            (&[], 299, &[], Err(NotStorable::NoFreshness)),
            (&[], 425, &[(cc, "max-age=60")], Err(NotStorable::StatusOfTheRequest)),
            (&[("if-match", "\"x\"")], 412, &[(cc, "public, max-age=60")], Err(NotStorable::StatusOfTheRequest)),
            (&[], 429, &[(cc, "max-age=60")], Err(NotStorable::StatusOfTheRequest)),
            (&[], 431, &[(cc, "max-age=60")], Err(NotStorable::StatusOfTheRequest)),
            (&[], 299, &[(cc, "max-age=1")], Ok(())),
            (&[], 302, &[], Err(NotStorable::NoFreshness)),
            (&[], 206, &[(cc, "max-age=1")], Err(NotStorable::StatusOfTheRequest)),
            (&[(cc, "no-store")], 200, &[(cc, "max-age=1")], Err(NotStorable::RequestNoStore)),
            (&[(cc, "no-store")], 200, &[(cc, "private")], Err(NotStorable::Private)),
            (&[("authorization", "x")], 200, &[(cc, "s-maxage=0")], Err(NotStorable::Authorization)),
            (&[("authorization", "x")], 200, &[(cc, "public")], Err(NotStorable::HeuristicForOneClient)),
            (&[("cookie", "x")], 200, &[("last-modified", "x")], Err(NotStorable::HeuristicForOneClient)),
            (&[("cookie", "x")], 200, &[(cc, "max-age=1")], Ok(())),
            (&[], 200, &[("content-type", "Text/Event-Stream; x=y"), (cc, "max-age=1")], Err(NotStorable::Stream)),
            (&[("authorization", "x")], 200, &[(cc, "max-age=1")], Err(NotStorable::Authorization)),
            (&[("authorization", "x")], 200, &[(cc, "s-maxage=1")], Ok(())),
            (&[("authorization", "x")], 200, &[(cc, "max-age=1, must-revalidate")], Ok(())),
            (&[], 200, &[("set-cookie", "a=b")], Err(NotStorable::SetCookie)),
            (&[], 200, &[("set-cookie", "a=b"), (cc, "max-age=1")], Ok(())),
            (&[], 200, &[("set-cookie", "a=b"), (cc, "no-cache, max-age=1")], Err(NotStorable::SetCookie)),
            (&[], 200, &[("set-cookie", "a=b"), (cc, "max-age=0")], Err(NotStorable::SetCookie)),
            (&[], 200, &[("set-cookie", "a=b"), (cc, "public, max-age=0")], Err(NotStorable::SetCookie)),
            (&[], 200, &[("set-cookie", "a=b"), ("expires", "0")], Err(NotStorable::SetCookie)),
            (&[], 200, &[("set-cookie", "a=b"), (cc, "public, max-age=1")], Ok(())),
        ] {
            assert_eq!(check(request, status, response), want, "{request:?} {status} {response:?}");
        }
    }
}
