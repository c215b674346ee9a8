//! Vary: which of several stored responses a request may get (RFC 9111 section 4.1).

use crate::field;
use http::header::{HeaderMap, VARY};
use serde::{Deserialize, Serialize};

/// The fields that a response varies on, with the values of the request that it answered: what the next
/// request is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaryKey(Box<[Varied]>);

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
        Some(Self(names.into_iter().map(|n| (n.clone(), normal_value(request, &n))).collect()))
    }

    #[must_use]
    pub fn matches(&self, request: &HeaderMap) -> bool {
        self.0.iter().all(|(name, value)| normal_value(request, name).as_deref() == value.as_deref())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// About how many bytes it takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.0.iter().map(|(n, v)| 32 + n.len() + v.as_ref().map_or(0, |v| v.len())).sum()
    }
}

/// The lines of a field combined, members trimmed, and for the negotiating fields in lower case: what RFC 9111
/// allows to be taken as equal.
fn normal_value(headers: &HeaderMap, name: &str) -> Option<Box<str>> {
    let mut values = headers.get_all(name).iter().peekable();
    values.peek()?;
    let mut out = String::new();
    for value in values {
        for member in field::members(&String::from_utf8_lossy(value.as_bytes())) {
            if !out.is_empty() {
                out.push(',');
            }
            match name {
                "accept-encoding" | "accept-language" | "accept-charset" => {
                    out.extend(member.chars().filter(|c| *c != ' ').map(|c| c.to_ascii_lowercase()));
                }
                _ => out.push_str(member),
            }
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
}
