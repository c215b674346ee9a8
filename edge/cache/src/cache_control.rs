//! Directives of Cache-Control (RFC 9111 section 5.2) and of its targeted forms (RFC 9213).

use crate::field;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, HeaderMap, HeaderName, PRAGMA};
use tidegate_control_types::planted::Bug;

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

impl RequestDirectives {
    /// Whether the client wants a newer response than the fresh stored one: from the origin, or from a cache nearer to it.
    #[must_use]
    pub fn wants_newer(&self) -> bool {
        self.no_cache || self.max_age.is_some() || self.min_fresh.is_some()
    }

    /// The directives as they apply to a response that was fetched because of the request or after it: such a response is new
    /// enough for each of them.
    #[must_use]
    pub fn satisfied(self) -> Self {
        Self { max_age: None, min_fresh: None, no_cache: false, ..self }
    }
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

/// One member of Cache-Control.
struct Directive<'a> {
    /// The name as received; for a malformed member, all bytes up to the first `=`.
    name: &'a [u8],
    value: Option<&'a [u8]>,
    /// `token [ "=" ( token / quoted-string ) ]` (RFC 9111 section 5.2).
    is_well_formed: bool,
    member: &'a [u8],
}

impl<'a> Directive<'a> {
    fn of(member: &'a [u8]) -> Self {
        let Some(at) = member.iter().position(|b| *b == b'=') else {
            return Self { name: member, value: None, is_well_formed: field::is_token(member), member };
        };
        let (name, value) = (field::trim(member.get(..at).unwrap_or_default()), field::trim(member.get(at + 1..).unwrap_or_default()));
        let is_well_formed = field::is_token(name) && (field::is_token(value) || is_quoted(value));
        Self { name, value: Some(value), is_well_formed, member }
    }

    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// Whether a value is one quoted string, with nothing before or behind it.
fn is_quoted(value: &[u8]) -> bool {
    let [b'"', inner @ .., b'"'] = value else { return false };
    let mut escaped = false;
    let plain = inner.iter().all(|b| match b {
        _ if escaped => {
            escaped = false;
            true
        }
        b'\\' => {
            escaped = true;
            true
        }
        b => *b != b'"',
    });
    plain && !escaped
}

fn directives<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = Directive<'a>> {
    field::list(headers, name).map(Directive::of)
}

/// The words in a member that cannot be parsed as a directive. Any byte that no token may hold separates words.
fn words(member: &[u8]) -> impl Iterator<Item = &[u8]> {
    member.split(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))).filter(|w| !w.is_empty())
}

/// Seconds; `None` where the value is not a number of them.
fn seconds(value: Option<&[u8]>) -> Option<u64> {
    let digits = match value? {
        [b'"', inner @ .., b'"'] => inner,
        plain => plain,
    };
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all_digits.then(|| field::digits(digits).unwrap_or(MOST_SECONDS).min(MOST_SECONDS))
}

#[must_use]
pub fn of_request(headers: &HeaderMap) -> RequestDirectives {
    let mut d = RequestDirectives::default();
    if !headers.contains_key(CACHE_CONTROL) {
        // RFC 9111 section 5.4.
        d.no_cache = headers.contains_key(PRAGMA) && field::list(headers, &PRAGMA).any(|m| m.eq_ignore_ascii_case(b"no-cache"));
        return d;
    }
    for directive in directives(headers, &CACHE_CONTROL) {
        let value = directive.value;
        match directive.name.to_ascii_lowercase().as_slice() {
            // The first of a doubled directive counts.
            b"max-age" => d.max_age = d.max_age.or(Some(seconds(value).unwrap_or(0))),
            b"max-stale" => d.max_stale = d.max_stale.or(Some(if value.is_none() { u64::MAX } else { seconds(value).unwrap_or(0) })),
            b"min-fresh" => d.min_fresh = d.min_fresh.or(Some(seconds(value).unwrap_or(0))),
            b"no-cache" => d.no_cache = true,
            b"no-store" => d.no_store = true,
            b"only-if-cached" => d.only_if_cached = true,
            _ if !directive.is_well_formed => {
                for word in words(directive.member) {
                    d.no_cache |= word.eq_ignore_ascii_case(b"no-cache");
                    d.no_store |= word.eq_ignore_ascii_case(b"no-store");
                }
            }
            _ => {}
        }
    }
    d
}

/// The directives of the most specific field that applies to this cache.
#[must_use]
pub fn of_response(headers: &HeaderMap) -> ResponseDirectives {
    for name in TARGETED {
        let name = HeaderName::from_static(name);
        if !headers.contains_key(&name) {
            continue;
        }
        // Surrogate-Control is older than RFC 9213, and no structured field.
        let read = if name == TARGETED[2] { Some(lenient(headers, &name)) } else { strict(headers, &name) };
        if let Some(directives) = read {
            return ResponseDirectives { targeted: true, ..directives };
        }
    }
    lenient(headers, &CACHE_CONTROL)
}

/// Reads Cache-Control as origins write it. Malformed parts never permit anything: a lifetime that is not a number counts
/// as over, and each forbidding word in a malformed member counts.
fn lenient(headers: &HeaderMap, name: &HeaderName) -> ResponseDirectives {
    let mut d = ResponseDirectives::default();
    for directive in directives(headers, name) {
        let value = directive.value;
        // The first of a doubled directive counts (RFC 9111 section 4.2.1).
        let take = |slot: &mut Option<u64>| *slot = slot.or(Some(seconds(value).unwrap_or(0)));
        let mut is_known = true;
        match directive.name.to_ascii_lowercase().as_slice() {
            b"max-age" => take(&mut d.max_age),
            b"s-maxage" => take(&mut d.s_maxage),
            b"stale-while-revalidate" => take(&mut d.stale_while_revalidate),
            b"stale-if-error" => take(&mut d.stale_if_error),
            // With field names they concern those fields alone: see `unshared`.
            b"no-cache" => d.no_cache |= field_names(value).is_none(),
            b"private" => d.private |= field_names(value).is_none(),
            b"no-store" => d.no_store = true,
            b"public" => d.public = true,
            b"must-revalidate" => d.must_revalidate = true,
            b"proxy-revalidate" => d.proxy_revalidate = true,
            b"must-understand" => d.must_understand = true,
            _ => is_known = false,
        }
        if !directive.is_well_formed {
            d.forbid(directive.member);
        } else if !is_known {
            d.forbid(directive.name);
        }
    }
    d
}

impl ResponseDirectives {
    /// Takes over the words that forbid something.
    fn forbid(&mut self, text: &[u8]) {
        if Bug::BrokenPrivateIgnored.is_planted() {
            return;
        }
        for word in words(text) {
            let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
            self.no_cache |= is("no-cache");
            self.no_store |= is("no-store");
            self.private |= is("private");
            self.must_revalidate |= is("must-revalidate");
            self.proxy_revalidate |= is("proxy-revalidate");
        }
    }
}

/// Reads a targeted field, which is a Dictionary of structured fields (RFC 9213 section 2.1). `None` if it is absent, empty
/// or not a Dictionary, or if one of its directives has the wrong type: then the whole field is ignored.
fn strict(headers: &HeaderMap, name: &HeaderName) -> Option<ResponseDirectives> {
    let lines: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    let dictionary = sfv::Parser::new(&lines.join(&b", "[..])).parse::<sfv::Dictionary>().ok().filter(|d| !d.is_empty())?;
    let mut d = ResponseDirectives::default();
    for (key, entry) in &dictionary {
        let sfv::ListEntry::Item(sfv::Item { bare_item: value, .. }) = entry else {
            // An inner list: the value of no directive that is known here.
            if KNOWN.contains(&key.as_str()) {
                return None;
            }
            continue;
        };
        let seconds = || value.as_integer().and_then(|n| u64::try_from(i64::from(n)).ok()).map(|n| n.min(MOST_SECONDS));
        // Without a value a key is `true`; with field names the directive concerns those fields alone.
        let flag = || value.as_boolean();
        let flag_or_fields = || value.as_string().map_or_else(flag, |names| Some(names_of(names.as_str().as_bytes()).is_none()));
        match key.as_str() {
            "max-age" => d.max_age = Some(seconds()?),
            "s-maxage" => d.s_maxage = Some(seconds()?),
            "stale-while-revalidate" => d.stale_while_revalidate = Some(seconds()?),
            "stale-if-error" => d.stale_if_error = Some(seconds()?),
            "no-cache" => d.no_cache = flag_or_fields()?,
            "private" => d.private = flag_or_fields()?,
            "no-store" => d.no_store = flag()?,
            "public" => d.public = flag()?,
            "must-revalidate" => d.must_revalidate = flag()?,
            "proxy-revalidate" => d.proxy_revalidate = flag()?,
            "must-understand" => d.must_understand = flag()?,
            _ => {}
        }
    }
    Some(d)
}

/// The directives that [`strict`] reads.
const KNOWN: [&str; 11] = [
    "max-age",
    "s-maxage",
    "stale-while-revalidate",
    "stale-if-error",
    "no-cache",
    "private",
    "no-store",
    "public",
    "must-revalidate",
    "proxy-revalidate",
    "must-understand",
];

/// The fields that a directive with a value names; `None` where that is anything else than their names, or where they are such that
/// nobody can read the rest without them.
fn field_names(value: Option<&[u8]>) -> Option<Vec<HeaderName>> {
    let [b'"', names @ .., b'"'] = value? else { return None };
    names_of(names)
}

fn names_of(list: &[u8]) -> Option<Vec<HeaderName>> {
    let names: Vec<HeaderName> = field::members(list).map(|n| HeaderName::from_bytes(n).ok()).collect::<Option<_>>()?;
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
    let named = all.flat_map(|name| directives(headers, name)).filter(|d| d.is("no-cache") || d.is("private"));
    named.filter_map(|d| field_names(d.value)).flatten().collect()
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
    fn what_forbids_counts_however_it_is_written() {
        let of = |value: &[u8]| {
            let mut h = HeaderMap::new();
            h.append("cache-control", HeaderValue::from_bytes(value).unwrap());
            of_response(&h)
        };
        for private in [
            &b"private;"[..],
            b"max-age=60 private",
            b"\"private\"",
            b"private no-store",
            b"max-age=60; private",
            b"private|x",
            b"x, private=\"a",
        ] {
            assert!(of(private).private, "{}", String::from_utf8_lossy(private));
        }
        for no_store in [
            &b"no-cache; no-store; must-revalidate"[..],
            b"no-store, note=\"\xe9\"",
            b"\xe9, no-store",
            b"\xe9 no-store",
            b"note=\"no-store",
        ] {
            assert!(of(no_store).no_store, "{}", String::from_utf8_lossy(no_store));
        }
        assert!(of(b"no-store, must-understand; no-store").no_store);
        for allowed in [
            &b"note=\"private, no-store\", max-age=5"[..],
            b"no-storage, max-age=5",
            b"x-private-y=1, max-age=5",
            b"max-age=5, private=\"x-a\"",
        ] {
            let d = of(allowed);
            assert_eq!((d.private, d.no_store, d.max_age), (false, false, Some(5)), "{}", String::from_utf8_lossy(allowed));
        }
        let d = of(b"max-age=60 must-revalidate");
        assert_eq!((d.max_age, d.must_revalidate), (Some(0), true));
        assert!(!of(b"public; x").public);
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
        for invalid in [
            "max-age=9, &&",
            "max-age=9,",
            "max-age=9, x=(",
            "max-age=9;;",
            "max-age=(9)",
            "max-age=9, no-store=x",
            "max-age=\"x\"",
            "max-age=\"9\"",
            "max-age=9.5",
            "max-age",
            "MAX-AGE=9",
            "max-age=-9",
            "",
            "max-age=9, s-maxage=x",
        ] {
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
