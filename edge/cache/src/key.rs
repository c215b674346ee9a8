//! Keys: the site, then the target URI in its one normal form. Parts are length-framed, so that no two different
//! lists of parts make one key, and the site comes first, so that no tenant reaches another's.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;

/// Scheme, host, path and query of a request in normal form: what is stored under, what is sent to the origin, and
/// what purges are compared with, are one and the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    pub https: bool,
    /// Lower-case, without port.
    pub host: String,
    /// Where it is not the scheme's own.
    port: Option<u16>,
    /// Path and query, beginning with `/`.
    pub path_and_query: String,
    path_len: usize,
}

impl Target {
    /// `keeps` says whether a parameter of the query, by its name, is part of the key.
    #[must_use]
    pub fn new(https: bool, host: &str, path_and_query: &str, keeps: Option<&dyn Fn(&str) -> bool>) -> Self {
        let (path, query) = match path_and_query.split_once('?') {
            Some((p, q)) => (p, Some(q)),
            None => (path_and_query, None),
        };
        let mut text = String::with_capacity(path_and_query.len());
        push_path(&mut text, path);
        let path_len = text.len();
        if let Some(query) = query {
            push_query(&mut text, query, keeps);
        }
        Self { https, host: host.to_ascii_lowercase(), port: None, path_and_query: text, path_len }
    }

    /// On a port of its own, where `port` is not the scheme's.
    #[must_use]
    pub fn on_port(mut self, port: Option<u16>) -> Self {
        self.port = port.filter(|p| *p != if self.https { 443 } else { 80 });
        self
    }

    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Host and port as the origin is told: no other text that means the same reaches it.
    #[must_use]
    pub fn authority(&self) -> Cow<'_, str> {
        match self.port {
            None => Cow::Borrowed(&self.host),
            Some(port) => Cow::Owned(format!("{}:{port}", self.host)),
        }
    }

    #[must_use]
    pub fn path(&self) -> &str {
        self.path_and_query.get(..self.path_len).unwrap_or_default()
    }
}

/// Whether no URI may have this ASCII character (RFC 3986). Some clients send it unescaped, and others as an escape.
fn is_of_no_uri(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
}

fn push_escape(out: &mut String, byte: u8) {
    out.push('%');
    for digit in [byte >> 4, byte & 15] {
        out.extend(char::from_digit(u32::from(digit), 16).map(|d| d.to_ascii_uppercase()));
    }
}

/// Removes dot segments, decodes unreserved characters, writes the other escapes with upper-case digits (RFC 3986 sections 6.2.2.1 to
/// 6.2.2.3), and characters that no URI may have as escapes. A `%` that begins no escape is written as `%25`: unchanged, it and the
/// characters decoded after it could become one.
fn push_path(out: &mut String, path: &str) {
    let plain = !path.bytes().any(|b| b == b'%' || is_of_no_uri(b)) && !path.contains("/.");
    if plain && path.starts_with('/') {
        out.push_str(path);
        return;
    }
    let mut decoded = String::with_capacity(path.len());
    push_escapes(&mut decoded, path);
    let start = out.len();
    let mut segments = decoded.strip_prefix('/').unwrap_or(&decoded).split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    let parent = out.get(start..).and_then(|t| t.rfind('/')).map_or(start, |at| start + at);
                    out.truncate(parent);
                }
                if last {
                    out.push('/');
                }
            }
            _ => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    if out.len() == start {
        out.push('/');
    }
}

fn push_escapes(out: &mut String, text: &str) {
    let bytes = text.as_bytes();
    let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let mut rest = text.char_indices();
    while let Some((at, c)) = rest.next() {
        let (Some(high), Some(low), '%') = (hex(at + 1), hex(at + 2), c) else {
            match u8::try_from(c) {
                Ok(byte) if byte == b'%' || is_of_no_uri(byte) => push_escape(out, byte),
                _ => out.push(c),
            }
            continue;
        };
        let byte = high << 4 | low;
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            push_escape(out, byte);
        }
        rest.next();
        rest.next();
    }
}

fn push_query(out: &mut String, query: &str, keeps: Option<&dyn Fn(&str) -> bool>) {
    let Some(keeps) = keeps else {
        out.push('?');
        push_escapes(out, query);
        return;
    };
    let mut separator = '?';
    for parameter in query.split('&') {
        let name = parameter.split('=').next().unwrap_or_default();
        let mut normal = String::new();
        push_escapes(&mut normal, name);
        if !name.is_empty() && keeps(&normal) {
            out.push(separator);
            push_escapes(out, parameter);
            separator = '&';
        }
    }
}

/// What a response is stored under, before its variants.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey(Arc<[u8]>);

impl CacheKey {
    #[must_use]
    pub fn new(site: &str, target: &Target) -> Self {
        let mut bytes = Vec::new();
        Self::write(&mut bytes, site, target);
        Self(bytes.into())
    }

    /// The key's bytes into a buffer that is used again, for a look-up without allocation.
    pub fn write(out: &mut Vec<u8>, site: &str, target: &Target) {
        out.clear();
        let scheme = if target.https { "https" } else { "http" };
        for part in [site, scheme, &target.authority(), &target.path_and_query] {
            out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(part.as_bytes());
        }
    }

    /// The key of one piece of a stored body. It equals no response's key: those begin with the length of a site's name,
    /// which is far below 2^24.
    #[must_use]
    pub fn chunk(object: u64, number: u64) -> Self {
        let mut bytes = [0xff; 17];
        bytes[1..9].copy_from_slice(&object.to_be_bytes());
        bytes[9..].copy_from_slice(&number.to_be_bytes());
        Self(bytes.as_slice().into())
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for CacheKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(text: &str) -> String {
        Target::new(true, "h", text, None).path_and_query
    }

    #[test]
    fn what_stands_in_no_uri_is_an_escape() {
        assert_eq!(normal("/a{b}|\\^`<\">?x={|}"), "/a%7Bb%7D%7C%5C%5E%60%3C%22%3E?x=%7B%7C%7D");
        assert_eq!(normal("/a%7bb"), "/a%7Bb");
    }

    #[test]
    fn one_normal_form() {
        for (given, want) in [
            ("/", "/"),
            ("", "/"),
            ("?a", "/?a"),
            ("/a/./b/../c", "/a/c"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/../../a", "/a"),
            ("/%7euser/%2f%c3%a4", "/~user/%2F%C3%A4"),
            ("/%2e%2e/a", "/a"),
            ("/a%", "/a%25"),
            ("/a%zz", "/a%25zz"),
            ("/%%361", "/%2561"),
            ("/a?b=100%", "/a?b=100%25"),
            ("/a//b", "/a//b"),
            ("/a?b=/../c&d=%41", "/a?b=/../c&d=A"),
            ("/.well-known/x", "/.well-known/x"),
        ] {
            assert_eq!(normal(given), want, "{given}");
        }
    }

    #[test]
    fn dropped_parameters_leave_no_trace() {
        let t = |keeps: &dyn Fn(&str) -> bool| Target::new(false, "H", "/p?a=1&utm_x=2&b", Some(keeps)).path_and_query;
        assert_eq!(t(&|n| !n.starts_with("utm_")), "/p?a=1&b");
        assert_eq!(t(&|_| false), "/p");
    }

    #[test]
    fn a_port_of_its_own_is_part_of_the_key_and_of_what_the_origin_is_told() {
        let on = |https, port| Target::new(https, "H", "/", None).on_port(port);
        assert_eq!((on(false, Some(80)).authority().as_ref(), on(true, Some(80)).authority().as_ref()), ("h", "h:80"));
        let key = |t: &Target| CacheKey::new("s", t);
        assert_eq!(key(&on(true, Some(443))), key(&on(true, None)));
        assert_ne!(key(&on(true, Some(8443))), key(&on(true, None)));
    }

    proptest! {
        #[test]
        fn the_normal_form_is_its_own_normal_form(text in "/[a-c./%0-9A-F?&=]{0,24}") {
            let once = normal(&text);
            prop_assert!(once.starts_with('/'));
            prop_assert_eq!(normal(&once), once);
        }

        #[test]
        fn different_parts_make_different_keys(a in "[a-z]{0,4}", b in "[a-z]{0,4}", c in "[a-z]{0,4}", d in "[a-z]{0,4}") {
            let key = |s: &str, h: &str| CacheKey::new(s, &Target::new(true, h, "/", None));
            prop_assert_eq!(key(&a, &b) == key(&c, &d), a == c && b == d);
        }
    }
}
