//! Field values as lists, dates and tags, read the same way everywhere.

use http::HeaderMap;
use http::header::HeaderName;
use std::time::{Duration, UNIX_EPOCH};

/// The members of a comma-separated list field, over all its lines, trimmed, without the empty ones
/// (RFC 9110 section 5.6.1). Commas in quoted strings do not separate.
pub fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).flat_map(members)
}

/// The members of one list value.
pub fn members(value: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        loop {
            let text = rest?;
            let (mut quoted, mut escaped) = (false, false);
            let end = text.bytes().position(|b| {
                match b {
                    _ if escaped => escaped = false,
                    b'\\' if quoted => escaped = true,
                    b'"' => quoted = !quoted,
                    b',' => return !quoted,
                    _ => {}
                }
                false
            });
            let member = match end {
                Some(at) => {
                    rest = text.get(at + 1..);
                    text.get(..at).unwrap_or_default()
                }
                None => {
                    rest = None;
                    text
                }
            };
            let member = member.trim_matches([' ', '\t']);
            if !member.is_empty() {
                return Some(member);
            }
        }
    })
}

/// Seconds since 1970 of an HTTP date in any of its three forms (RFC 9110 section 5.6.7).
#[must_use]
pub fn http_date(text: &str) -> Option<u64> {
    let at = httpdate::parse_http_date(text.trim()).ok()?;
    at.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
}

/// The date that a field holds; `None` where it is absent, doubled or no date.
#[must_use]
pub fn date(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(one), None) => http_date(one.to_str().ok()?),
        _ => None,
    }
}

/// An HTTP date in its preferred form.
#[must_use]
pub fn show_date(seconds: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799)))
}

/// A qvalue (RFC 9110 section 12.4.2), in thousandths.
#[must_use]
pub fn weight(text: &str) -> Option<u16> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let thousandths = format!("{part:0<3}").parse::<u16>().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

/// Tags of a response from all four fields that origins use for them, in no order. Surrogate-Key and xkey are
/// separated by spaces, Cache-Tag by commas, Cache-Groups is a list of strings (RFC 9875).
#[must_use]
pub fn tags(headers: &HeaderMap) -> Vec<Box<str>> {
    let mut out: Vec<Box<str>> = Vec::new();
    for name in ["surrogate-key", "xkey", "cache-tag", "cache-groups"] {
        for value in headers.get_all(name).iter().filter_map(|v| v.to_str().ok()) {
            match name {
                "surrogate-key" => out.extend(value.split_ascii_whitespace().map(Into::into)),
                "xkey" | "cache-tag" => out.extend(value.split([',', ' ', '\t']).filter(|t| !t.is_empty()).map(Into::into)),
                _ => out.extend(members(value).map(|m| m.split(';').next().unwrap_or(m).trim_matches([' ', '"']).into())),
            }
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// The fields that [`tags`] reads; clients do not see them.
pub const TAG_FIELDS: [&str; 4] = ["surrogate-key", "xkey", "cache-tag", "cache-groups"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_quoted_commas_together() {
        let got: Vec<_> = members(r#" a , "b, \" c", ,d=", e"#).collect();
        assert_eq!(got, ["a", r#""b, \" c""#, r#"d=", e"#]);
    }

    #[test]
    fn tags_come_from_every_field() {
        let mut h = HeaderMap::new();
        h.append("surrogate-key", "a b".parse().unwrap());
        h.append("cache-tag", "c,d".parse().unwrap());
        h.append("xkey", "e".parse().unwrap());
        h.append("cache-groups", r#""f";x=1, "g""#.parse().unwrap());
        assert_eq!(tags(&h).iter().map(|t| &**t).collect::<Vec<_>>(), ["a", "b", "c", "d", "e", "f", "g"]);
    }
}
