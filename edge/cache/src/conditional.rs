//! Conditional requests answered from a stored response (RFC 9110 section 13, RFC 9111 section 4.3.2).
//! If-Match and If-Unmodified-Since are answered here only when they hold; otherwise the origin decides (RFC 9110 section 13.1.1).

use crate::field;
use http::HeaderValue;
use http::header::{DATE, ETAG, HeaderMap, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED};

fn weak_equal(a: &[u8], b: &[u8]) -> bool {
    a.strip_prefix(b"W/").unwrap_or(a) == b.strip_prefix(b"W/").unwrap_or(b)
}

/// Whether 304 answers the request, given the headers of the stored 200.
#[must_use]
pub fn not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let Some(etag) = stored.get(ETAG).map(HeaderValue::as_bytes) else {
            return field::list(request, &IF_NONE_MATCH).any(|m| m == b"*");
        };
        return field::list(request, &IF_NONE_MATCH).any(|m| m == b"*" || weak_equal(m, etag));
    }
    let Some(since) = field::date(request, &IF_MODIFIED_SINCE) else { return false };
    // Without Last-Modified, its Date stands in (RFC 9111 section 4.3.2).
    field::date(stored, &LAST_MODIFIED).or_else(|| field::date(stored, &DATE)).is_some_and(|changed| changed <= since)
}

/// Gives a 304 the validator under which its client holds the response: a weak one, where that was given a coding on its way.
pub fn name_as_held(request: &HeaderMap, not_modified: &mut HeaderMap) {
    let Some(etag) = not_modified.get(ETAG).filter(|e| !e.as_bytes().starts_with(b"W/")) else { return };
    let weak = [b"W/", etag.as_bytes()].concat();
    let names = |tag: &[u8]| field::list(request, &IF_NONE_MATCH).any(|m| m == tag);
    if names(&weak)
        && !names(etag.as_bytes())
        && let Ok(weak) = HeaderValue::from_bytes(&weak)
    {
        not_modified.insert(ETAG, weak);
    }
}

/// Whether the request's If-Match and If-Unmodified-Since, where it has any, hold for the stored response (RFC 9110 sections 13.1.1
/// and 13.1.4).
#[must_use]
pub fn holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_MATCH) {
        let etag = stored.get(ETAG).map(HeaderValue::as_bytes).filter(|e| !e.starts_with(b"W/"));
        return field::list(request, &IF_MATCH).any(|m| m == b"*" || Some(m) == etag);
    }
    if request.contains_key(IF_UNMODIFIED_SINCE) {
        let (since, changed) = (field::date(request, &IF_UNMODIFIED_SINCE), field::date(stored, &LAST_MODIFIED));
        // One that is no date is ignored.
        return since.is_none_or(|since| changed.is_some_and(|changed| changed <= since));
    }
    true
}

/// Whether the request has neither If-Match nor If-Unmodified-Since, so that any response will do.
#[must_use]
pub fn holds_for_any(request: &HeaderMap) -> bool {
    !request.contains_key(IF_MATCH) && !request.contains_key(IF_UNMODIFIED_SINCE)
}

/// Whether a Range of the request applies to the stored response (RFC 9110 section 13.1.5).
#[must_use]
pub fn range_applies(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(value) = request.get(IF_RANGE) else { return true };
    let value = value.as_bytes();
    if value.starts_with(b"\"") || value.starts_with(b"W/") {
        // Strong comparison.
        return !value.starts_with(b"W/") && stored.get(ETAG).is_some_and(|e| e.as_bytes() == value);
    }
    let (Some(date), Some(changed)) = (field::http_date(value), field::date(stored, &LAST_MODIFIED)) else { return false };
    // A date is a strong validator only a second or more before the response's own (RFC 9110 section 8.8.2.2).
    date == changed && field::date(stored, &DATE).is_none_or(|sent| sent > changed)
}

/// Whether the request has preconditions that this node evaluates itself and so does not send on with a fill.
#[must_use]
pub fn is_conditional(request: &HeaderMap) -> bool {
    request.contains_key(IF_NONE_MATCH) || request.contains_key(IF_MODIFIED_SINCE)
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
    fn if_none_match_compares_weakly_and_goes_first() {
        let stored = headers(&[("etag", "\"a\""), ("last-modified", "Tue, 01 Jan 2019 00:00:00 GMT")]);
        assert!(not_modified(&headers(&[("if-none-match", "\"b\", W/\"a\"")]), &stored));
        assert!(not_modified(&headers(&[("if-none-match", "*")]), &stored));
        assert!(!not_modified(&headers(&[("if-none-match", "\"b\""), ("if-modified-since", "Tue, 01 Jan 2030 00:00:00 GMT")]), &stored));
        assert!(not_modified(&headers(&[("if-modified-since", "Tue, 01 Jan 2019 00:00:00 GMT")]), &stored));
        assert!(!not_modified(&headers(&[("if-modified-since", "Mon, 31 Dec 2018 00:00:00 GMT")]), &stored));
    }

    #[test]
    fn a_304_names_what_the_client_holds() {
        for (held, named) in [("W/\"a\"", "W/\"a\""), ("\"a\"", "\"a\""), ("W/\"a\", \"a\"", "\"a\""), ("*", "\"a\"")] {
            let mut response = headers(&[("etag", "\"a\"")]);
            name_as_held(&headers(&[("if-none-match", held)]), &mut response);
            assert_eq!(response.get(ETAG).unwrap(), named, "{held}");
        }
    }

    #[test]
    fn what_a_client_holds_to_is_compared_strongly() {
        let stored = headers(&[("etag", "\"a\""), ("last-modified", "Tue, 01 Jan 2019 00:00:00 GMT")]);
        let holds = |name, value: &str| super::holds(&headers(&[(name, value)]), &stored);
        assert!(holds("if-match", "\"b\", \"a\"") && holds("if-match", "*") && holds("accept", "x"));
        assert!(!holds("if-match", "W/\"a\"") && !holds("if-match", "\"b\""));
        let date = "if-unmodified-since";
        assert!(holds(date, "Tue, 01 Jan 2019 00:00:00 GMT") && holds(date, "nonsense") && !holds(date, "Mon, 31 Dec 2018 00:00:00 GMT"));
        assert!(!super::holds(&headers(&[("if-match", "W/\"a\"")]), &headers(&[("etag", "W/\"a\"")])));
    }

    #[test]
    fn if_range_compares_strongly() {
        let stored =
            headers(&[("etag", "\"a\""), ("last-modified", "Tue, 01 Jan 2019 00:00:00 GMT"), ("date", "Tue, 01 Jan 2020 00:00:00 GMT")]);
        let applies = |v: &str| range_applies(&headers(&[("if-range", v)]), &stored);
        assert!(applies("\"a\"") && applies("Tue, 01 Jan 2019 00:00:00 GMT"));
        assert!(!applies("W/\"a\"") && !applies("\"b\"") && !applies("Wed, 02 Jan 2019 00:00:00 GMT"));
    }
}
