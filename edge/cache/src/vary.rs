//! Vary: which of several stored responses a request may get (RFC 9111 section 4.1).

use crate::field;
use http::HeaderName;
use http::header::{ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_ENCODING, CONTENT_LANGUAGE, HeaderMap, VARY};
use serde::{Deserialize, Serialize};

/// The head of a request as it reaches the origin. Variants are selected by it: it has the fields that a node adds, and lacks
/// those that a node drops.
pub trait RequestHead {
    /// Calls `visit` with each line of a field, in order. `name` is in lower case.
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8]));
}

impl RequestHead for HeaderMap {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        self.get_all(name).iter().for_each(|v| visit(v.as_bytes()));
    }
}

/// The fields that a response varies on, with the values of the request that it answered: what the next
/// request is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaryKey {
    varied: Box<[Varied]>,
    /// The one language that it is in, where it varies on what languages are accepted.
    language: Option<Box<str>>,
}

/// A field's name, and its value where the request had it.
type Varied = (Box<str>, Option<Box<[u8]>>);

/// Why a response cannot be selected for another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoVaryKey {
    /// `Vary: *`, which matches nothing.
    Star,
    /// A member is not a field name, so the response fits no known set of requests.
    Unreadable,
}

/// One request's values of the fields that a set of variants varies on.
#[derive(Debug)]
pub struct Wanted {
    /// In the order of the fields.
    values: Vec<Option<Box<[u8]>>>,
    /// The place of Accept-Language among them, and the one language that the request wants before all others.
    language: Option<(usize, Box<str>)>,
}

/// Maximum number of fields in a stored key. A response that varies on more is not shared: each look-up would read all of them.
const MOST_FIELDS: usize = 64;
/// Maximum number of members of a negotiating field; a longer field is compared byte by byte.
const MOST_MEMBERS: usize = 64;

impl VaryKey {
    /// # Errors
    /// The response answers no other request than its own.
    pub fn new(response: &HeaderMap, request: &impl RequestHead) -> Result<Self, NoVaryKey> {
        // Many origins code a response and name no Vary. The coding was chosen by this field all the same.
        let is_coded = response.contains_key(CONTENT_ENCODING);
        if !is_coded && !response.contains_key(VARY) {
            return Ok(Self::default());
        }
        let mut names: Vec<Box<str>> = Vec::new();
        if is_coded {
            names.push(ACCEPT_ENCODING.as_str().into());
        }
        for member in field::list(response, &VARY) {
            if member == b"*" {
                return Err(NoVaryKey::Star);
            }
            names.push(HeaderName::from_bytes(member).map_err(|_| NoVaryKey::Unreadable)?.as_str().into());
        }
        names.sort_unstable();
        names.dedup();
        if names.len() > MOST_FIELDS {
            return Err(NoVaryKey::Unreadable);
        }
        let language = names.iter().any(|n| **n == *ACCEPT_LANGUAGE.as_str()).then(|| only_language(response)).flatten();
        let varied = names.into_iter().map(|n| (n.clone(), normal_value(request, &n))).collect();
        Ok(Self { varied, language })
    }

    /// Whether the response answers this request.
    #[must_use]
    pub fn matches(&self, request: &impl RequestHead) -> bool {
        self.varied.is_empty() || self.is_for(&self.wanted(request))
    }

    /// The values that a request has for the fields of this key. One result serves all variants with
    /// [the same fields](Self::has_fields_of).
    #[must_use]
    pub fn wanted(&self, request: &impl RequestHead) -> Wanted {
        let place = self.varied.iter().position(|(name, _)| **name == *ACCEPT_LANGUAGE.as_str());
        let language = place.and_then(|at| Some((at, wanted_language(request)?)));
        Wanted { values: self.varied.iter().map(|(name, _)| normal_value(request, name)).collect(), language }
    }

    /// `wanted`: the request's values for the fields of this key.
    #[must_use]
    pub fn is_for(&self, wanted: &Wanted) -> bool {
        let is_in_language =
            |at: usize| wanted.language.as_ref().is_some_and(|(place, l)| *place == at && self.language.as_ref() == Some(l));
        self.varied.iter().zip(&wanted.values).enumerate().all(|(at, ((_, value), wanted))| value == wanted || is_in_language(at))
    }

    /// Whether both vary on the same fields.
    #[must_use]
    pub fn has_fields_of(&self, other: &Self) -> bool {
        self.varied.len() == other.varied.len() && self.varied.iter().zip(&other.varied).all(|(a, b)| a.0 == b.0)
    }

    /// Whether the value of this field selects the response. `name` is in lower case.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        self.varied.iter().any(|(varied, _)| &**varied == name)
    }

    /// A number that is the same for all requests with these values, for a table of variants with the same fields.
    #[must_use]
    pub fn hash(&self) -> u64 {
        hash_of(self.varied.iter().map(|(_, value)| value.as_deref()))
    }

    /// The same for all requests that may get it by its language, whatever else they accept; `None`: none may.
    #[must_use]
    pub fn hash_by_language(&self) -> Option<u64> {
        let language = self.language.as_ref()?.as_bytes();
        let in_its_place = |(name, value): &'_ Varied| {
            if **name == *ACCEPT_LANGUAGE.as_str() { Some(language.to_vec()) } else { value.as_deref().map(<[u8]>::to_vec) }
        };
        let values: Vec<_> = self.varied.iter().map(in_its_place).collect();
        Some(hash_of(values.iter().map(Option::as_deref)))
    }

    /// The fields, with their values in the form in which they are compared.
    pub fn fields(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
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

impl Wanted {
    /// As [`VaryKey::hash`] of the variant that answers this request.
    #[must_use]
    pub fn hash(&self) -> u64 {
        hash_of(self.values.iter().map(Option::as_deref))
    }

    /// As [`VaryKey::hash_by_language`] of a variant that may answer this request.
    #[must_use]
    pub fn hash_by_language(&self) -> Option<u64> {
        let (place, language) = self.language.as_ref()?;
        let in_its_place = |(at, value): (usize, &'_ Option<Box<[u8]>>)| {
            if at == *place { Some(language.as_bytes().to_vec()) } else { value.as_deref().map(<[u8]>::to_vec) }
        };
        let values: Vec<_> = self.values.iter().enumerate().map(in_its_place).collect();
        Some(hash_of(values.iter().map(Option::as_deref)))
    }
}

/// The language that a request prefers to all others. A variant in this language is the best possible answer.
fn wanted_language(request: &impl RequestHead) -> Option<Box<str>> {
    match &preferences(request, ACCEPT_LANGUAGE.as_str())?[..] {
        [first, rest @ ..] if first.0 > 0 && rest.first().is_none_or(|second| second.0 < first.0) => {
            std::str::from_utf8(&first.1).ok().map(Into::into)
        }
        _ => None,
    }
}

fn hash_of<'a>(values: impl Iterator<Item = Option<&'a [u8]>>) -> u64 {
    use std::hash::{BuildHasher, Hash, Hasher};
    // A random key per process, because clients choose the values.
    static KEYS: std::sync::LazyLock<std::hash::RandomState> = std::sync::LazyLock::new(std::hash::RandomState::new);
    let mut hasher = KEYS.build_hasher();
    values.for_each(|value| value.hash(&mut hasher));
    hasher.finish()
}

fn only_language(response: &HeaderMap) -> Option<Box<str>> {
    let mut all = field::list(response, &CONTENT_LANGUAGE);
    let only = std::str::from_utf8(all.next()?).ok()?;
    all.next().is_none().then(|| only.to_ascii_lowercase().into())
}

/// The members of a negotiating field, the most wanted first: weight in thousandths, and the rest in lower case (RFC 9110 section
/// 12.4.2). Among equals their order says nothing (section 12.5.4). `None`: there are too many.
fn preferences(head: &impl RequestHead, name: &str) -> Option<Vec<(u16, Vec<u8>)>> {
    let mut all = Vec::new();
    let mut count = 0;
    head.each(name, &mut |value| {
        for member in field::members(value) {
            count += 1;
            if count > MOST_MEMBERS {
                return;
            }
            let parts: Vec<Vec<u8>> = member.split(|b| *b == b';').map(|p| field::trim(p).to_ascii_lowercase()).collect();
            let weight = |last: &[u8]| field::weight(std::str::from_utf8(last.strip_prefix(b"q=")?).ok()?);
            // What is no weight is part of the name, which then equals no other.
            all.push(match parts.split_last().and_then(|(last, before)| Some((weight(last)?, before))) {
                Some((weight, before)) if !before.is_empty() => (weight, before.join(&b';')),
                _ => (1000, parts.join(&b';')),
            });
        }
    });
    all.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    all.dedup();
    (count <= MOST_MEMBERS).then_some(all)
}

/// Request fields that are lists, as far as they are known: of others a comma may mean anything, as in a cookie.
const LISTS: [&str; 8] =
    ["accept", "cache-control", "forwarded", "if-none-match", "pragma", "prefer", "x-forwarded-for", "x-forwarded-proto"];

/// The normal form in which a field is compared. RFC 9111 section 4.1 lets a cache ignore white space and line splits in lists, and
/// order in negotiating fields. The lines of any other field are joined by a comma and compared byte by byte.
fn normal_value(head: &impl RequestHead, name: &str) -> Option<Box<[u8]>> {
    let (mut is_there, mut out) = (false, Vec::new());
    let negotiates = matches!(name, "accept-encoding" | "accept-language" | "accept-charset");
    if let Some(preferences) = negotiates.then(|| preferences(head, name)).flatten() {
        head.each(name, &mut |_| is_there = true);
        for (weight, what) in preferences {
            out.extend_from_slice(&what);
            out.push(b'\r');
            out.extend_from_slice(weight.to_string().as_bytes());
            out.push(b'\n');
        }
    } else {
        head.each(name, &mut |value| {
            let is_first = !std::mem::replace(&mut is_there, true);
            if LISTS.contains(&name) {
                for member in field::members(value) {
                    out.extend_from_slice(member);
                    out.push(b'\n');
                }
            } else {
                // Several lines are one value (RFC 9110 section 5.3).
                if !is_first {
                    out.extend_from_slice(b", ");
                }
                out.extend_from_slice(field::trim(value));
            }
        });
    }
    if !is_there && name == "accept-encoding" {
        // A request without Accept-Encoding counts as one for identity, and upstream is asked for identity.
        return Some(b"identity\r1000\n".as_slice().into());
    }
    is_there.then(|| out.into())
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
        assert_eq!(VaryKey::new(&headers(&[("vary", "a, *")]), &stored), Err(NoVaryKey::Star));
        let unreadable = http::HeaderValue::from_bytes(b"accept, caf\xe9").unwrap();
        for vary in [unreadable, http::HeaderValue::from_static("accept encoding"), http::HeaderValue::from_static("\"accept\"")] {
            assert_eq!(VaryKey::new(&HeaderMap::from_iter([(VARY, vary)]), &stored), Err(NoVaryKey::Unreadable));
        }
    }

    #[test]
    fn values_are_bytes() {
        let response = headers(&[("vary", "x")]);
        let request = |value: &[u8]| HeaderMap::from_iter([(HeaderName::from_static("x"), http::HeaderValue::from_bytes(value).unwrap())]);
        let key = VaryKey::new(&response, &request(b"caf\xe9")).unwrap();
        assert!(key.matches(&request(b"caf\xe9")) && !key.matches(&request(b"caf\xe8")));
        assert_eq!(key.hash(), key.wanted(&request(b"caf\xe9")).hash());
    }

    #[test]
    fn a_coded_response_is_for_requests_with_the_same_accept_encoding() {
        let key = VaryKey::new(&headers(&[("content-encoding", "gzip")]), &headers(&[("accept-encoding", "gzip")])).unwrap();
        assert!(key.matches(&headers(&[("accept-encoding", "gzip")])));
        assert!(!key.matches(&headers(&[("accept-encoding", "identity")])) && !key.matches(&HeaderMap::new()));
    }

    #[test]
    fn an_empty_line_counts_as_a_line() {
        let response = headers(&[("vary", "x")]);
        let key = VaryKey::new(&response, &headers(&[("x", ""), ("x", "a")])).unwrap();
        assert!(key.matches(&headers(&[("x", ", a")])) && !key.matches(&headers(&[("x", "a")])));
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
