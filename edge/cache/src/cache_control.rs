//! Directives of Cache-Control (RFC 9111 section 5.2) and of its targeted forms (RFC 9213).

use crate::field;
use http::header::{CACHE_CONTROL, HeaderMap, HeaderName, PRAGMA};

/// A delta in seconds; over-large ones count as 2^31 (RFC 9111 section 1.2.2).
const MOST_SECONDS: u64 = 1 << 31;

/// Directives of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    pub max_age: Option<u64>,
    /// `Some(u64::MAX)`: any staleness.
    pub max_stale: Option<u64>,
    pub min_fresh: Option<u64>,
    pub no_cache: bool,
    pub no_store: bool,
    pub only_if_cached: bool,
}

/// Directives of a response, from the field that applies to this cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    /// Seconds; an unreadable value counts as 0, that is stale.
    pub max_age: Option<u64>,
    pub s_maxage: Option<u64>,
    pub no_cache: bool,
    pub no_store: bool,
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub stale_while_revalidate: Option<u64>,
    pub stale_if_error: Option<u64>,
    /// A targeted field spoke: Expires, Pragma and Cache-Control do not count (RFC 9213 section 2.2).
    pub targeted: bool,
}

/// Fields for this cache alone, the most specific first.
pub const TARGETED: [&str; 3] = ["tidegate-cache-control", "cdn-cache-control", "surrogate-control"];

fn directives<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = (String, Option<&'a str>)> {
    field::list(headers, name).map(|member| match member.split_once('=') {
        Some((k, v)) => (k.trim_end().to_ascii_lowercase(), Some(v.trim_start())),
        None => (member.to_ascii_lowercase(), None),
    })
}

/// Seconds; `None` where the value is not a number of them.
fn seconds(value: Option<&str>) -> Option<u64> {
    let digits = value?;
    let digits = digits.strip_prefix('"').and_then(|d| d.strip_suffix('"')).unwrap_or(digits);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(MOST_SECONDS).min(MOST_SECONDS))
}

#[must_use]
pub fn of_request(headers: &HeaderMap) -> RequestDirectives {
    let mut d = RequestDirectives::default();
    if !headers.contains_key(CACHE_CONTROL) {
        // RFC 9111 section 5.4.
        d.no_cache = headers.contains_key(PRAGMA) && field::list(headers, &PRAGMA).any(|m| m.eq_ignore_ascii_case("no-cache"));
        return d;
    }
    for (name, value) in directives(headers, &CACHE_CONTROL) {
        match name.as_str() {
            // The first of a doubled directive counts.
            "max-age" => d.max_age = d.max_age.or(Some(seconds(value).unwrap_or(0))),
            "max-stale" => d.max_stale = d.max_stale.or(Some(if value.is_none() { u64::MAX } else { seconds(value).unwrap_or(0) })),
            "min-fresh" => d.min_fresh = d.min_fresh.or(Some(seconds(value).unwrap_or(0))),
            "no-cache" => d.no_cache = true,
            "no-store" => d.no_store = true,
            "only-if-cached" => d.only_if_cached = true,
            _ => {}
        }
    }
    d
}

#[must_use]
pub fn of_response(headers: &HeaderMap) -> ResponseDirectives {
    for name in TARGETED {
        let name = HeaderName::from_static(name);
        if headers.contains_key(&name)
            && let Some(mut d) = parse(headers, &name, true)
        {
            d.targeted = true;
            return d;
        }
    }
    parse(headers, &CACHE_CONTROL, false).unwrap_or_default()
}

/// `strict`: a targeted field is a structured one, a field that is not counts as absent (RFC 9213 section 2.1).
fn parse(headers: &HeaderMap, name: &HeaderName, strict: bool) -> Option<ResponseDirectives> {
    let mut d = ResponseDirectives::default();
    let mut some = false;
    // The first of a doubled directive counts, and of a contradiction the more cautious side by the rules themselves.
    let take = |slot: &mut Option<u64>, value: Option<&str>| {
        let parsed = seconds(value);
        if strict && (parsed.is_none() || value.is_some_and(|v| v.starts_with('"'))) {
            return false;
        }
        slot.get_or_insert(parsed.unwrap_or(0));
        true
    };
    for (name, value) in directives(headers, name) {
        some = true;
        let valid = match name.as_str() {
            "max-age" => take(&mut d.max_age, value.map(|v| v.split(';').next().unwrap_or(v))),
            "s-maxage" => take(&mut d.s_maxage, value),
            "stale-while-revalidate" => take(&mut d.stale_while_revalidate, value),
            "stale-if-error" => take(&mut d.stale_if_error, value),
            // With field names, no-cache and private concern those fields alone; the cautious reading is allowed.
            "no-cache" => set(&mut d.no_cache),
            "no-store" => set(&mut d.no_store),
            "private" => set(&mut d.private),
            "public" => set(&mut d.public),
            "must-revalidate" => set(&mut d.must_revalidate),
            "proxy-revalidate" => set(&mut d.proxy_revalidate),
            "must-understand" => set(&mut d.must_understand),
            _ => true,
        };
        if !valid {
            return None;
        }
    }
    (some || !strict).then_some(d)
}

fn set(flag: &mut bool) -> bool {
    *flag = true;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(lines: &[(&'static str, &str)]) -> ResponseDirectives {
        let mut h = HeaderMap::new();
        for (n, v) in lines {
            h.append(*n, v.parse().unwrap());
        }
        of_response(&h)
    }

    #[test]
    fn directives_are_read_in_any_case_over_all_lines() {
        let d = response(&[("cache-control", "Public, MAX-AGE = 60"), ("cache-control", "s-maxage=\"10\"")]);
        assert_eq!((d.public, d.max_age, d.s_maxage), (true, Some(60), Some(10)));
    }

    #[test]
    fn unreadable_ages_count_as_stale_and_huge_ones_as_the_most() {
        assert_eq!(response(&[("cache-control", "max-age=ten")]).max_age, Some(0));
        assert_eq!(response(&[("cache-control", "max-age=-1")]).max_age, Some(0));
        assert_eq!(response(&[("cache-control", "max-age=99999999999999999999")]).max_age, Some(MOST_SECONDS));
        assert_eq!(response(&[("cache-control", "max-age=5, max-age=9")]).max_age, Some(5));
    }

    #[test]
    fn the_most_specific_valid_field_speaks_alone() {
        let d = response(&[("cache-control", "no-store"), ("cdn-cache-control", "max-age=9")]);
        assert_eq!((d.no_store, d.max_age, d.targeted), (false, Some(9), true));
        let d = response(&[("tidegate-cache-control", "max-age=1"), ("cdn-cache-control", "max-age=9")]);
        assert_eq!(d.max_age, Some(1));
        let d = response(&[("cache-control", "max-age=3"), ("cdn-cache-control", "max-age=\"x\"")]);
        assert_eq!((d.max_age, d.targeted), (Some(3), false));
    }
}
