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
    // The first of a doubled directive counts (RFC 9111 section 4.2.1), in a structured field the last (RFC 9651 section 4.2.2).
    let take = |slot: &mut Option<u64>, value: Option<&str>| {
        let value = value.map(|v| if strict { v.split(';').next().unwrap_or(v).trim_end() } else { v });
        let parsed = seconds(value);
        if strict && (parsed.is_none() || value.is_some_and(|v| v.starts_with('"'))) {
            return false;
        }
        if strict || slot.is_none() {
            *slot = Some(parsed.unwrap_or(0));
        }
        true
    };
    // A structured field's keys are in lower case (RFC 9651 section 3.1.2).
    let is_key = |member: &str| member.split(['=', ';']).next().is_some_and(|key| !key.bytes().any(|b| b.is_ascii_uppercase()));
    if strict && !field::list(headers, name).all(is_key) {
        return None;
    }
    for (name, value) in directives(headers, name) {
        some = true;
        let valid = match name.as_str() {
            "max-age" => take(&mut d.max_age, value),
            "s-maxage" => take(&mut d.s_maxage, value),
            "stale-while-revalidate" => take(&mut d.stale_while_revalidate, value),
            "stale-if-error" => take(&mut d.stale_if_error, value),
            // With field names they concern those fields alone: see `unshared`.
            "no-cache" => field_names(value).is_some() || set(&mut d.no_cache),
            "private" => field_names(value).is_some() || set(&mut d.private),
            "no-store" => set(&mut d.no_store),
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

/// The fields that a directive with a value names; `None` where that is anything else than their names, or where they are such that
/// nobody can read the rest without them.
fn field_names(value: Option<&str>) -> Option<Vec<HeaderName>> {
    let names = value?.strip_prefix('"')?.strip_suffix('"')?;
    let names: Vec<HeaderName> = field::members(names).map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let vital = |n: &HeaderName| n.as_str().starts_with("content-") || matches!(n.as_str(), "vary" | "transfer-encoding" | "etag" | "date");
    (!names.is_empty() && !names.iter().any(vital)).then_some(names)
}

/// The fields of a response that are for the one who asked (RFC 9111 sections 5.2.2.4 and 5.2.2.7): it is kept without them.
#[must_use]
pub fn unshared(headers: &HeaderMap) -> Vec<HeaderName> {
    let targeted = TARGETED.map(HeaderName::from_static);
    // A list stands in quotes, and most responses have none.
    let quoted = |name: &HeaderName| headers.get_all(name).iter().any(|v| v.as_bytes().contains(&b'"'));
    let all = std::iter::once(&CACHE_CONTROL).chain(&targeted).filter(|name| quoted(name));
    let named = all.flat_map(|name| directives(headers, name)).filter(|(d, _)| matches!(d.as_str(), "no-cache" | "private"));
    named.filter_map(|(_, value)| field_names(value)).flatten().collect()
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
    fn field_names_are_of_those_fields_alone() {
        let d = response(&[("cache-control", "private=\"X-A, x-b\", no-cache=\"set-cookie\", max-age=5")]);
        assert_eq!((d.private, d.no_cache, d.max_age), (false, false, Some(5)));
        let mut h = HeaderMap::new();
        h.append("cache-control", "private=\"X-A, x-b\", no-cache=\"set-cookie\"".parse().unwrap());
        assert_eq!(unshared(&h), ["x-a", "x-b", "set-cookie"]);
        for cautious in ["private=x", "private=\"\"", "private=\"a b\"", "private=\"x, content-encoding\"", "private=", "private"] {
            assert!(response(&[("cache-control", cautious)]).private, "{cautious}");
        }
    }

    #[test]
    fn the_most_specific_valid_field_speaks_alone() {
        let d = response(&[("cache-control", "no-store"), ("cdn-cache-control", "max-age=9")]);
        assert_eq!((d.no_store, d.max_age, d.targeted), (false, Some(9), true));
        let d = response(&[("tidegate-cache-control", "max-age=1"), ("cdn-cache-control", "max-age=9")]);
        assert_eq!(d.max_age, Some(1));
        for invalid in ["max-age=\"x\"", "max-age=\"9\"", "max-age=9.5", "max-age", "MAX-AGE=9", "max-age=-9", "", "max-age=9, s-maxage=x"]
        {
            let d = response(&[("cache-control", "max-age=3"), ("cdn-cache-control", invalid)]);
            assert_eq!((d.max_age, d.targeted), (Some(3), false), "{invalid}");
        }
        for (valid, max_age) in
            [("max-age=9;a=b", 9), ("max-age=5, max-age=9", 9), ("foo=bar, max-age=9", 9), ("max-age=9 , no-store;x", 9)]
        {
            let d = response(&[("cache-control", "max-age=3"), ("cdn-cache-control", valid)]);
            assert_eq!((d.max_age, d.targeted), (Some(max_age), true), "{valid}");
        }
    }
}
