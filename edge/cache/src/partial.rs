//! Responses of which only parts are here (RFC 9111 sections 3.3 and 3.4): what ties their parts together.

use crate::field;
use http::HeaderValue;
use http::header::{ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_RANGE, DATE, ETAG, HeaderMap, LAST_MODIFIED};

/// A Last-Modified is a strong validator only where it is so many seconds older than the response (RFC 9110 section 8.8.2.2 asks
/// for one; clocks are set).
const SETTLED: u64 = 60;

/// The validator by which parts of a response can be told to be parts of the same bytes, as If-Range has it.
#[must_use]
pub fn strong_validator(response: &HeaderMap) -> Option<&HeaderValue> {
    if let Some(etag) = response.get(ETAG) {
        return (etag.as_bytes().starts_with(b"\"")).then_some(etag);
    }
    let (changed, sent) = (field::date(response, &LAST_MODIFIED)?, field::date(response, &DATE)?);
    if sent >= changed.saturating_add(SETTLED) { response.get(LAST_MODIFIED) } else { None }
}

/// Whether what `part` comes with is a part of what is stored.
#[must_use]
pub fn is_part_of(stored: &HeaderMap, part: &HeaderMap) -> bool {
    let Some(validator) = strong_validator(stored) else { return false };
    let name = if stored.contains_key(ETAG) { ETAG } else { LAST_MODIFIED };
    let codings = |headers: &HeaderMap| headers.get_all(CONTENT_ENCODING).iter().cloned().collect::<Vec<_>>();
    // Some servers give all codings of a resource one validator.
    part.get(name) == Some(validator) && codings(stored) == codings(part)
}

/// Whether the rest of a response can be asked for later, part by part.
#[must_use]
pub fn takes_ranges(response: &HeaderMap) -> bool {
    field::list(response, &ACCEPT_RANGES).any(|unit| unit.eq_ignore_ascii_case(b"bytes")) && strong_validator(response).is_some()
}

/// First and last byte, and the length of the whole, of a 206 with one part (RFC 9110 section 14.4). Invariant: `first <= last <
/// length`.
#[must_use]
pub fn content_range(response: &HeaderMap) -> Option<(u64, u64, u64)> {
    let mut values = response.get_all(CONTENT_RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (unit, rest) = value.to_str().ok()?.split_once(' ')?;
    let (bounds, length) = rest.split_once('/')?;
    let (first, last) = bounds.split_once('-')?;
    let number = |text: &str| if text.bytes().all(|b| b.is_ascii_digit()) { text.parse::<u64>().ok() } else { None };
    let (first, last, length) = (number(first)?, number(last)?, number(length)?);
    (unit.eq_ignore_ascii_case("bytes") && first <= last && last < length).then_some((first, last, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut h = HeaderMap::new();
        for (n, v) in lines {
            h.append(*n, v.parse().unwrap());
        }
        h
    }

    #[test]
    fn only_strong_validators_tie_parts() {
        let (old, new) = (("last-modified", "Tue, 01 Jan 2019 00:00:00 GMT"), ("date", "Tue, 01 Jan 2019 00:00:59 GMT"));
        let later = ("date", "Tue, 01 Jan 2019 00:01:00 GMT");
        let part = |stored: &[(&'static str, &str)], part: &[(&'static str, &str)]| is_part_of(&head(stored), &head(part));
        assert!(part(&[("etag", "\"a\"")], &[("etag", "\"a\"")]) && part(&[old, later], &[old]));
        for (stored, other) in [
            (&[("etag", "\"a\"")][..], &[("etag", "\"b\"")][..]),
            (&[("etag", "\"a\"")], &[]),
            (&[("etag", "W/\"a\"")], &[("etag", "W/\"a\"")]),
            (&[("etag", "W/\"a\""), old, later], &[("etag", "W/\"a\""), old]),
            (&[("etag", "\"a\"")], &[("etag", "\"a\""), ("content-encoding", "gzip")]),
            (&[old, new], &[old]),
            (&[old], &[old]),
            (&[], &[]),
        ] {
            assert!(!part(stored, other), "{stored:?}");
        }
        assert!(takes_ranges(&head(&[("etag", "\"a\""), ("accept-ranges", "Bytes")])));
        assert!(!takes_ranges(&head(&[("etag", "\"a\"")])) && !takes_ranges(&head(&[("accept-ranges", "bytes")])));
    }

    #[test]
    fn a_content_range_is_read_whole_or_not_at_all() {
        for (value, want) in [
            ("bytes 0-0/1", Some((0, 0, 1))),
            ("Bytes 5-9/10", Some((5, 9, 10))),
            ("bytes 5-9/*", None),
            ("bytes */10", None),
            ("bytes 5-10/10", None),
            ("bytes 6-5/10", None),
            ("bytes 5-9", None),
            ("bytes=5-9/10", None),
            ("bytes +5-9/10", None),
            ("bytes 0-99999999999999999999/99999999999999999999", None),
        ] {
            assert_eq!(content_range(&head(&[("content-range", value)])), want, "{value}");
        }
        assert_eq!(content_range(&head(&[("content-range", "bytes 0-0/1"), ("content-range", "bytes 0-0/1")])), None);
    }
}
