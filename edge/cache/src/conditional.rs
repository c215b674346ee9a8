//! Conditional requests answered from a stored response (RFC 9110 section 13, RFC 9111 section 4.3.2).
//! If-Match and If-Unmodified-Since are the origin's business: a cache may ignore them (RFC 9110 section 13.1.1).

use crate::field;
use http::header::{DATE, ETAG, HeaderMap, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED};

fn weak_equal(a: &str, b: &str) -> bool {
    a.strip_prefix("W/").unwrap_or(a) == b.strip_prefix("W/").unwrap_or(b)
}

/// Whether 304 answers the request, given the headers of the stored 200.
#[must_use]
pub fn not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let Some(etag) = stored.get(ETAG).and_then(|v| v.to_str().ok()) else {
            return field::list(request, &IF_NONE_MATCH).any(|m| m == "*");
        };
        return field::list(request, &IF_NONE_MATCH).any(|m| m == "*" || weak_equal(m, etag));
    }
    let Some(since) = field::date(request, &IF_MODIFIED_SINCE) else { return false };
    // Without Last-Modified, its Date stands in (RFC 9111 section 4.3.2).
    field::date(stored, &LAST_MODIFIED).or_else(|| field::date(stored, &DATE)).is_some_and(|changed| changed <= since)
}

/// Whether a Range of the request applies to the stored response (RFC 9110 section 13.1.5).
#[must_use]
pub fn range_applies(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(value) = request.get(IF_RANGE) else { return true };
    let Ok(value) = value.to_str() else { return false };
    if value.starts_with('"') || value.starts_with("W/") {
        // Strong comparison.
        return !value.starts_with("W/") && stored.get(ETAG).is_some_and(|e| e.as_bytes() == value.as_bytes());
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
    fn if_range_compares_strongly() {
        let stored =
            headers(&[("etag", "\"a\""), ("last-modified", "Tue, 01 Jan 2019 00:00:00 GMT"), ("date", "Tue, 01 Jan 2020 00:00:00 GMT")]);
        let applies = |v: &str| range_applies(&headers(&[("if-range", v)]), &stored);
        assert!(applies("\"a\"") && applies("Tue, 01 Jan 2019 00:00:00 GMT"));
        assert!(!applies("W/\"a\"") && !applies("\"b\"") && !applies("Wed, 02 Jan 2019 00:00:00 GMT"));
    }
}
