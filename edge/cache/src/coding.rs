//! Content codings (RFC 9110 section 8.4.1): what a client accepts, and what of a stored response may be coded for it.

use crate::field;
use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, VARY};
use http::{HeaderName, StatusCode};
use serde::{Deserialize, Serialize};

/// The codings that are made here; the earlier goes first where a client wants two alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Coding {
    Brotli,
    Zstd,
    Gzip,
}

impl Coding {
    pub const ALL: [Self; 3] = [Self::Brotli, Self::Zstd, Self::Gzip];

    /// Its name in Content-Encoding and Accept-Encoding.
    #[must_use]
    pub fn token(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    fn of(token: &str) -> Option<Self> {
        // RFC 9110 section 8.4.1.3: x-gzip means gzip.
        let is = |name: &str| token.eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(|c| is(c.token())).or_else(|| is("x-gzip").then_some(Self::Gzip))
    }
}

/// What a client accepts, by its Accept-Encoding (RFC 9110 section 12.5.3). Weights in thousandths, in the order of
/// [`Coding::ALL`]; 0 is not acceptable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    weights: [u16; 3],
    identity: u16,
}

impl Accepted {
    /// Without the field nothing but the response as it is: the standard would allow any coding, clients that say nothing mostly
    /// know none.
    #[must_use]
    pub fn of(request: &HeaderMap) -> Self {
        let (mut named, mut others, mut identity) = ([None; 3], None, None);
        for member in field::list(request, &ACCEPT_ENCODING) {
            let Ok(member) = std::str::from_utf8(member) else { continue };
            let (token, weight) = weighed(member);
            match Coding::of(token) {
                Some(coding) => named[coding as usize] = named[coding as usize].max(Some(weight)),
                None if token == "*" => others = others.max(Some(weight)),
                None if token.eq_ignore_ascii_case("identity") => identity = identity.max(Some(weight)),
                None => {}
            }
        }
        let weights = named.map(|w| w.or(others).unwrap_or(0));
        // What is not named is acceptable, and what is named is wanted more.
        Self { weights, identity: identity.unwrap_or(0) }
    }

    /// The codings that it accepts and wants at least as much as none, the most wanted first.
    pub fn wanted(self) -> impl Iterator<Item = Coding> {
        let weight = move |coding: &Coding| self.weights[*coding as usize];
        let mut all = Coding::ALL;
        all.sort_by_key(|c| std::cmp::Reverse(weight(c)));
        all.into_iter().filter(move |c| weight(c) > 0 && weight(c) >= self.identity)
    }

    #[must_use]
    pub fn is_none(self) -> bool {
        self.weights == [0; 3]
    }

    /// The same in the one form in which origins are asked: eight there are, so that a response that varies on it has few variants.
    #[must_use]
    pub fn normal(self) -> HeaderValue {
        HeaderValue::from_static(match self.weights.map(|w| w > 0) {
            [true, true, true] => "br, gzip, zstd",
            [true, true, false] => "br, zstd",
            [true, false, true] => "br, gzip",
            [true, false, false] => "br",
            [false, true, true] => "gzip, zstd",
            [false, true, false] => "zstd",
            [false, false, true] => "gzip",
            [false, false, false] => "identity",
        })
    }
}

/// A member's token and its weight in thousandths (RFC 9110 section 12.4.2); one that cannot be read counts as not wanted.
fn weighed(member: &str) -> (&str, u16) {
    let mut parts = member.split(';').map(|p| p.trim_matches([' ', '\t']));
    let token = parts.next().unwrap_or_default();
    let weight = match parts.next() {
        None => Some(1000),
        Some(p) => p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")).and_then(field::weight),
    };
    (token, weight.filter(|_| parts.next().is_none()).unwrap_or(0))
}

/// Whether a response may be given in another coding than it came in: one that is whole and has none yet, of one of these types
/// (`text/*`, `*+json` and the like), of `least` bytes at least, which its origin lets be changed (RFC 9111 section 5.2.2.6).
#[must_use]
pub fn is_codable(status: StatusCode, headers: &HeaderMap, length: Option<u64>, types: &[String], least: u64) -> bool {
    let plain = !headers.contains_key(CONTENT_ENCODING) && !headers.contains_key(CONTENT_RANGE);
    let fixed = || field::list(headers, &CACHE_CONTROL).any(|d| d.eq_ignore_ascii_case(b"no-transform"));
    status == StatusCode::OK && plain && length.is_none_or(|l| l >= least) && has_type(headers, types) && !fixed()
}

fn has_type(headers: &HeaderMap, types: &[String]) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let media = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    types.iter().any(|pattern| match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(start), _) => media.starts_with(start),
        (None, Some(end)) => media.ends_with(end),
        (None, None) => media == *pattern,
    })
}

/// The head of a response that may be coded says so, whichever form it goes out in (RFC 9110 section 12.5.5).
pub fn vary(headers: &mut HeaderMap) {
    if !field::list(headers, &VARY).any(|n| n == b"*" || n.eq_ignore_ascii_case(b"accept-encoding")) {
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// Makes the head of a response that of its coded form, of `length` bytes where that is known: another representation, with a weak validator, since its
/// bytes are others and its meaning is the same (RFC 9110 section 8.8.1).
pub fn describe(headers: &mut HeaderMap, coding: Coding, length: Option<u64>) {
    // Digests of the bytes as they came (RFC 9530).
    // Nor are ranges of it given.
    headers.remove(http::header::ACCEPT_RANGES);
    for digest in ["content-md5", "digest", "content-digest", "repr-digest"] {
        headers.remove(HeaderName::from_static(digest));
    }
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.token()));
    match length {
        Some(length) => drop(headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length))),
        None => drop(headers.remove(http::header::CONTENT_LENGTH)),
    }
    let strong = headers.get(ETAG).map(HeaderValue::as_bytes).filter(|v| !v.starts_with(b"W/"));
    if let Some(weak) = strong.and_then(|v| HeaderValue::from_bytes(&[b"W/", v].concat()).ok()) {
        headers.insert(ETAG, weak);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wanted(value: &str) -> Vec<&'static str> {
        let mut h = HeaderMap::new();
        h.insert(ACCEPT_ENCODING, value.parse().unwrap());
        Accepted::of(&h).wanted().map(Coding::token).collect()
    }

    #[test]
    fn clients_get_what_they_want_most() {
        for (value, want) in [
            ("gzip, deflate, br, zstd", &["br", "zstd", "gzip"][..]),
            ("gzip", &["gzip"]),
            ("x-gzip", &["gzip"]),
            ("GZIP;q=1.0, br;q=0.5", &["gzip", "br"]),
            ("gzip;q=0, br ; q=0.001", &["br"]),
            ("*", &["br", "zstd", "gzip"]),
            ("*;q=0.2, gzip;q=0.1, br;q=0", &["zstd", "gzip"]),
            ("identity, gzip;q=0.5", &[]),
            ("identity;q=0.5, gzip;q=0.5", &["gzip"]),
            ("br;q=2, gzip;q=x, zstd;level=1", &[]),
            ("deflate", &[]),
            ("", &[]),
        ] {
            assert_eq!(wanted(value), want, "{value}");
        }
        assert!(Accepted::of(&HeaderMap::new()).is_none());
    }

    fn head(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut h = HeaderMap::new();
        for (n, v) in lines {
            h.append(*n, v.parse().unwrap());
        }
        h
    }

    #[test]
    fn only_what_gains_and_may_be_changed_is_coded() {
        let types = ["text/*", "application/json", "*+xml"].map(str::to_owned);
        let codable = |status, lines: &[(&'static str, &str)], length| is_codable(status, &head(lines), length, &types, 100);
        let html = ("content-type", "Text/HTML; charset=utf-8");
        assert!(codable(StatusCode::OK, &[html], Some(100)) && codable(StatusCode::OK, &[html], None));
        assert!(codable(StatusCode::OK, &[("content-type", "image/svg+xml")], Some(100)));
        assert!(!codable(StatusCode::OK, &[html], Some(99)) && !codable(StatusCode::NOT_FOUND, &[html], Some(100)));
        for line in [("content-encoding", "gzip"), ("content-range", "bytes 0-1/2"), ("cache-control", "max-age=5, No-Transform")] {
            assert!(!codable(StatusCode::OK, &[html, line], Some(100)), "{line:?}");
        }
        assert!(!codable(StatusCode::OK, &[("content-type", "image/png")], Some(100)) && !codable(StatusCode::OK, &[], Some(100)));
    }

    #[test]
    fn the_coded_form_is_another_representation() {
        let mut h = head(&[
            ("etag", "\"a\""),
            ("content-md5", "x"),
            ("accept-ranges", "bytes"),
            ("content-length", "9"),
            ("vary", "X, accept-encoding"),
        ]);
        vary(&mut h);
        describe(&mut h, Coding::Zstd, Some(5));
        let want = [("etag", "W/\"a\""), ("content-length", "5"), ("content-encoding", "zstd"), ("vary", "X, accept-encoding")];
        assert_eq!(h, head(&want));
    }

    proptest! {
        #[test]
        fn anything_is_an_accept_encoding(value in "[ -~]{0,40}") {
            let mut h = HeaderMap::new();
            h.insert(ACCEPT_ENCODING, HeaderValue::from_str(&value).unwrap());
            let once = Accepted::of(&h);
            h.insert(ACCEPT_ENCODING, once.normal());
            let acceptable = |a: Accepted| a.weights.map(|w| w > 0);
            prop_assert_eq!(acceptable(Accepted::of(&h)), acceptable(once), "the normal form accepts the same");
        }
    }
}
