//! Vary: which of several stored responses a request may get (RFC 9111 section 4.1).

use crate::field;
use http::header::{ACCEPT_LANGUAGE, CONTENT_LANGUAGE, HeaderMap, VARY};
use serde::{Deserialize, Serialize};

/// The fields that a response varies on, with the values of the request that it answered: what the next
/// request is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaryKey {
    varied: Box<[Varied]>,
    /// The one language that it is in, where it varies on what languages are accepted.
    language: Option<Box<str>>,
}

/// A field's name, and its value where the request had it.
type Varied = (Box<str>, Option<Box<str>>);

impl VaryKey {
    /// `None` for `Vary: *`, which matches nothing.
    #[must_use]
    pub fn new(response: &HeaderMap, request: &HeaderMap) -> Option<Self> {
        if !response.contains_key(VARY) {
            return Some(Self::default());
        }
        let mut names: Vec<Box<str>> = field::list(response, &VARY).map(|n| n.to_ascii_lowercase().into()).collect();
        names.sort_unstable();
        names.dedup();
        if names.iter().any(|n| &**n == "*") {
            return None;
        }
        let language = names.iter().any(|n| **n == *ACCEPT_LANGUAGE.as_str()).then(|| only_language(response)).flatten();
        let varied = names.into_iter().map(|n| (n.clone(), normal_value(request, &n))).collect();
        Some(Self { varied, language })
    }

    #[must_use]
    pub fn matches(&self, request: &HeaderMap) -> bool {
        self.varied.iter().all(|(name, value)| {
            normal_value(request, name).as_deref() == value.as_deref() || (**name == *ACCEPT_LANGUAGE.as_str() && self.is_wanted(request))
        })
    }

    /// Whether it is in the one language that the request wants before all others: whatever else was asked for, it would get
    /// this one.
    fn is_wanted(&self, request: &HeaderMap) -> bool {
        let Some(language) = &self.language else { return false };
        let accepted = preferences(request, ACCEPT_LANGUAGE.as_str());
        match &accepted[..] {
            [] => false,
            [first, rest @ ..] => first.1 == **language && first.0 > 0 && rest.first().is_none_or(|second| second.0 < first.0),
        }
    }

    /// The fields, with their values in the form in which they are compared.
    pub fn fields(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.varied.iter().map(|(name, value)| (&**name, value.as_deref()))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.varied.is_empty()
    }

    /// About how many bytes it takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.varied.iter().map(|(n, v)| 32 + n.len() + v.as_ref().map_or(0, |v| v.len())).sum()
    }
}

fn only_language(response: &HeaderMap) -> Option<Box<str>> {
    let mut all = field::list(response, &CONTENT_LANGUAGE);
    let only = all.next()?;
    all.next().is_none().then(|| only.to_ascii_lowercase().into())
}

/// The members of a negotiating field, the most wanted first: weight in thousandths, and the rest in lower case (RFC 9110 section
/// 12.4.2). Among equals their order says nothing (section 12.5.4).
fn preferences(headers: &HeaderMap, name: &str) -> Vec<(u16, String)> {
    let mut all = Vec::new();
    for value in headers.get_all(name) {
        for member in field::members(&String::from_utf8_lossy(value.as_bytes())) {
            let parts: Vec<String> = member.split(';').map(|p| p.trim_matches([' ', '\t']).to_ascii_lowercase()).collect();
            // What is no weight is part of the name, which then equals no other.
            all.push(match parts.split_last().and_then(|(last, before)| Some((field::weight(last.strip_prefix("q=")?)?, before))) {
                Some((weight, before)) if !before.is_empty() => (weight, before.join(";")),
                _ => (1000, parts.join(";")),
            });
        }
    }
    all.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    all.dedup();
    all
}

/// The lines of a field combined, members trimmed, and for the negotiating fields in one order: what RFC 9111 allows to be taken as
/// equal. What stands between the parts can be in none of them.
fn normal_value(headers: &HeaderMap, name: &str) -> Option<Box<str>> {
    let mut values = headers.get_all(name).iter().peekable();
    if name == "accept-encoding" && values.peek().is_none() {
        // Whoever names no coding is answered as one that wants none, and upstream is asked so.
        return Some("identity\r1000\n".into());
    }
    values.peek()?;
    let mut out = String::new();
    if matches!(name, "accept-encoding" | "accept-language" | "accept-charset") {
        for (weight, what) in preferences(headers, name) {
            out.push_str(&what);
            out.push('\r');
            out.push_str(&weight.to_string());
            out.push('\n');
        }
        return Some(out.into());
    }
    for value in values {
        for member in field::members(&String::from_utf8_lossy(value.as_bytes())) {
            out.push_str(member);
            out.push('\n');
        }
    }
    Some(out.into())
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
    fn a_request_matches_by_the_named_fields_alone() {
        let response = headers(&[("vary", "Accept-Encoding, X-A")]);
        let stored = headers(&[("accept-encoding", "gzip, br"), ("x-b", "1")]);
        let key = VaryKey::new(&response, &stored).unwrap();
        assert!(key.matches(&headers(&[("accept-encoding", "GZIP,br")])));
        assert!(!key.matches(&headers(&[("accept-encoding", "br")])));
        assert!(!key.matches(&headers(&[("accept-encoding", "gzip, br"), ("x-a", "")])), "absent is not empty");
        assert_eq!(VaryKey::new(&headers(&[("vary", "a, *")]), &stored), None);
    }

    #[test]
    fn negotiation_is_compared_by_what_it_says() {
        let response = headers(&[("vary", "accept-language")]);
        let key = |value: &str| VaryKey::new(&response, &headers(&[("accept-language", value)])).unwrap();
        let same = |a: &str, b: &str| key(a).matches(&headers(&[("accept-language", b)]));
        assert!(same("en, de", "de,EN") && same("en;q=1.0, de;q=0.50", "de;q=0.5, en") && same("a, a", "a"));
        assert!(!same("de;900,en;700", "de;q=0.9,en;q=0.7") && !same("e n", "en") && !same("en;q=5e-1", "en;q=0.5"), "made up");
        assert!(same("en ;q=0.5 , de", "de,en;Q=0.500") && !same("en;q=1.001", "en") && !same("en;q=+1", "en"));
        assert!(!same("en, de;q=0.5", "en;q=0.5, de") && !same("en", "en, de") && !same("en;q=2", "en") && !same("en;q=0", "en"));
    }

    #[test]
    fn a_language_wanted_before_all_others_is_given_where_it_is_held() {
        let response = headers(&[("vary", "accept-language"), ("content-language", "DE")]);
        let key = VaryKey::new(&response, &headers(&[("accept-language", "en, de")])).unwrap();
        let gets = |value: &str| key.matches(&headers(&[("accept-language", value)]));
        assert!(gets("fr;q=0.5, de;q=1.0") && gets("de") && gets("de, *;q=0.1"));
        assert!(!gets("fr, de") && !gets("fr, de;q=0.9") && !gets("de;q=0") && !gets("de-AT"), "another may be wanted as much");
        assert!(!key.matches(&HeaderMap::new()));
    }
}
