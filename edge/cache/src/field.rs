//! Field values as lists, dates and tags, read the same way everywhere.
//!
//! Values are bytes: a byte above 0x7f (`obs-text`, RFC 9110 section 5.5) in one member of a list hides none of the others.

use http::HeaderMap;
use http::header::HeaderName;
use std::time::{Duration, UNIX_EPOCH};

/// The members of a comma-separated list field, over all its lines, trimmed, without the empty ones
/// (RFC 9110 section 5.6.1). Commas in quoted strings do not separate.
pub fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().flat_map(|v| members(v.as_bytes()))
}

/// The members of one list value.
pub fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        loop {
            let text = rest?;
            let (mut quoted, mut escaped) = (false, false);
            let end = text.iter().position(|b| {
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
            let member = trim(member);
            if !member.is_empty() {
                return Some(member);
            }
        }
    })
}

/// Without the spaces and tabs at both ends.
#[must_use]
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// The part of a list member before the first `;`, trimmed: the member without its parameters.
#[must_use]
pub fn without_parameters(member: &[u8]) -> &[u8] {
    trim(member.split(|b| *b == b';').next().unwrap_or_default())
}

/// `tchar` of RFC 9110 section 5.6.2.
#[must_use]
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// A number in decimal digits alone; `None` for anything else, and where it is over-large.
#[must_use]
pub fn digits(text: &[u8]) -> Option<u64> {
    let number = std::str::from_utf8(text).ok().filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()))?;
    number.parse().ok()
}

/// Seconds since 1970 of an HTTP date (RFC 9110 section 5.6.7). Read tolerantly, as RFC 9110 asks of recipients: any of the
/// three forms, letters of any case, one or two digits, any number of spaces, and any word in place of the day of the week.
/// The time is that of Greenwich, or it is no date.
#[must_use]
pub fn http_date(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    let mut parts = text.split([' ', '\t', '-', ',']).filter(|p| !p.is_empty());
    if parts.next().is_none_or(|weekday| !weekday.bytes().all(|b| b.is_ascii_alphabetic())) {
        return None;
    }
    let parts: Vec<&str> = parts.collect();
    let (day, month, year, time) = match parts[..] {
        // Sun, 06 Nov 1994 08:49:37 GMT; Sunday, 06-Nov-94 08:49:37 GMT
        [day, month, year, time, zone] if zone.eq_ignore_ascii_case("gmt") => (day, month, year, time),
        // Sun Nov  6 08:49:37 1994
        [month, day, time, year] if !text.contains([',', '-']) => (day, month, year, time),
        _ => return None,
    };
    const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let month = 1 + MONTHS.iter().position(|m| month.eq_ignore_ascii_case(m))?;
    let number = |text: &str, longest: usize| digits(text.as_bytes()).filter(|_| text.len() <= longest);
    let year = match (number(year, 4)?, year.len()) {
        // RFC 9110 asks for the past where a year of two digits would be more than 50 years ahead; no such date is needed.
        (short, 2) => short + if short < 70 { 2000 } else { 1900 },
        (long, 4) => long,
        _ => return None,
    };
    let mut clock = time.split(':').map(|t| number(t, 2));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let day = number(day, 2)?;
    let is_time = hour < 24 && minute < 60 && second <= 60 && clock.next().is_none();
    (is_time && year >= 1970).then_some(())?;
    let days = days_since_1970(year, u64::try_from(month).ok()?, day)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Days from 1 January 1970 to a date of the Gregorian calendar, from 1970 on. `None`: the month has no such day.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let is_leap = |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
    let lengths = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let index = usize::try_from(month).ok()?.checked_sub(1)?;
    if day == 0 || day > *lengths.get(index)? {
        return None;
    }
    let leaps_before = |y: u64| (y - 1) / 4 - (y - 1) / 100 + (y - 1) / 400;
    let years = (year - 1970) * 365 + leaps_before(year) - leaps_before(1970);
    Some(years + lengths.iter().take(index).sum::<u64>() + day - 1)
}

/// The date that a field holds; `None` where it is absent, doubled or no date.
#[must_use]
pub fn date(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(one), None) => http_date(one.as_bytes()),
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

/// The error for a response with unreadable tags: a purge by one of these tags would miss it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableTags;

/// Tags of a response from all four fields that origins use for them, in no order. Surrogate-Key and xkey are
/// separated by spaces, Cache-Tag by commas, Cache-Groups is a list of strings (RFC 9875).
///
/// # Errors
/// One of them is not UTF-8: no purge could name it.
pub fn tags(headers: &HeaderMap) -> Result<Vec<Box<str>>, UnreadableTags> {
    let mut out: Vec<Box<str>> = Vec::new();
    for name in TAG_FIELDS {
        for value in headers.get_all(name) {
            let value = std::str::from_utf8(value.as_bytes()).map_err(|_| UnreadableTags)?;
            match name {
                "surrogate-key" => out.extend(value.split_ascii_whitespace().map(Into::into)),
                "xkey" | "cache-tag" => out.extend(value.split([',', ' ', '\t']).filter(|t| !t.is_empty()).map(Into::into)),
                // A List of Strings (RFC 9875 section 2).
                _ => {
                    for member in sfv::Parser::new(value).parse::<sfv::List>().map_err(|_| UnreadableTags)? {
                        match member {
                            sfv::ListEntry::Item(sfv::Item { bare_item: sfv::BareItem::String(tag), .. }) => out.push(tag.as_str().into()),
                            sfv::ListEntry::Item(sfv::Item { bare_item: sfv::BareItem::Token(tag), .. }) => out.push(tag.as_str().into()),
                            _ => return Err(UnreadableTags),
                        }
                    }
                }
            }
        }
    }
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

/// The fields that [`tags`] reads; clients do not see them.
pub const TAG_FIELDS: [&str; 4] = ["surrogate-key", "xkey", "cache-tag", "cache-groups"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_quoted_commas_together() {
        let got: Vec<_> = members(b" a , \"b, \\\" c\", ,d=\", e").collect();
        assert_eq!(got, [&b"a"[..], b"\"b, \\\" c\"", b"d=\", e"]);
        assert_eq!(members(b"a\xff, b").collect::<Vec<_>>(), [&b"a\xff"[..], b"b"]);
    }

    #[test]
    fn dates_are_read_in_all_their_forms() {
        const AT: u64 = 784_111_777;
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "sun, 06 nov 1994 08:49:37 gmt",
            "Fri, 6 Nov 1994 8:49:37 GMT",
            "Sun,  06  Nov 1994  08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
        ] {
            assert_eq!(http_date(date.as_bytes()), Some(AT), "{date}");
        }
        for wrong in [
            "",
            "0",
            "-1",
            "Sun, 06 Nov 1994 08:49:37 +0200",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 194 08:49:37 GMT",
            "Sun, 06 Nov 1969 08:49:37 GMT",
            "06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(http_date(wrong.as_bytes()), None, "{wrong}");
        }
        for seconds in [0, 951_782_400, 951_868_800, 4_107_542_399, 253_402_300_799] {
            assert_eq!(http_date(show_date(seconds).as_bytes()), Some(seconds), "{}", show_date(seconds));
        }
    }

    #[test]
    fn tags_come_from_every_field() {
        let mut h = HeaderMap::new();
        h.append("surrogate-key", "a b".parse().unwrap());
        h.append("cache-tag", "c,d".parse().unwrap());
        h.append("xkey", "e".parse().unwrap());
        h.append("cache-groups", r#""f";x=1, "g""#.parse().unwrap());
        let shown = |h: &HeaderMap| tags(h).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        assert_eq!(shown(&h).unwrap(), "a b c d e f g");
        h.insert("surrogate-key", http::HeaderValue::from_bytes("a caf\u{e9}".as_bytes()).unwrap());
        assert_eq!(shown(&h).unwrap(), "a c caf\u{e9} d e f g");
        h.insert("surrogate-key", http::HeaderValue::from_bytes(b"a caf\xe9").unwrap());
        assert_eq!(tags(&h), Err(UnreadableTags));
        let groups = |value: &str| shown(&HeaderMap::from_iter([(http::HeaderName::from_static("cache-groups"), value.parse().unwrap())]));
        assert_eq!(groups(r#""a;b", "q\"r";x"#).unwrap(), "a;b q\"r");
        assert_eq!((groups("\"a"), groups("1"), groups("(\"a\")")), (Err(UnreadableTags), Err(UnreadableTags), Err(UnreadableTags)));
    }
}
